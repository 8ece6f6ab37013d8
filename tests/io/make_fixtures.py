#!/usr/bin/env python3
"""Makes quants.gguf and quants.safetensors: random blocks of every element type that operant reads, and what the `gguf`
package makes of them as floats. Needs PyPI gguf, safetensors and numpy; run it in this folder."""
import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file

rng = np.random.default_rng(20)
BLOCKS = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}

writer = gguf.GGUFWriter("quants.gguf", "llama")
writer.add_string("test.string", "Grüße")
writer.add_array("test.strings", ["a", "", "déjà vu"])
writer.add_array("test.ints", [-1, 2, 3])
writer.add_array("test.floats", [0.5, -2.25])
writer.add_bool("test.bool", True)
writer.add_uint64("test.u64", 2**40)
writer.add_int8("test.i8", -8)
writer.add_float64("test.f64", 0.1)
expected = {}

for name, scales in BLOCKS.items():
    block, size = gguf.GGML_QUANT_SIZES[T[name]]
    rows, row = 3, 2 if block == 256 else 8
    data = rng.integers(0, 256, (rows * row, size), dtype=np.uint8)
    for at in scales:  # finite scales, some of them denormal
        half = (rng.normal(size=rows * row) * 10.0 ** rng.integers(-7, 0, rows * row)).astype(np.float16)
        data[:, at:at + 2] = half.view(np.uint8).reshape(-1, 2)
    data = data.reshape(rows, row * size)
    writer.add_tensor(name, data, raw_dtype=T[name])
    expected[name] = gguf.quants.dequantize(data, T[name]).astype(np.float32)

values = (rng.normal(size=(4, 64)) * 10.0 ** rng.integers(-6, 5, (4, 64))).astype(np.float32)
values[0, :32] = 0
writer.add_tensor("F32", values)
writer.add_tensor("F16", values.astype(np.float16))
writer.add_tensor("F64", values.astype(np.float64))
writer.add_tensor("BF16", gguf.quants.quantize(values, T.BF16), raw_dtype=T.BF16)
writer.add_tensor("from_f32", gguf.quants.quantize(values, T.Q8_0), raw_dtype=T.Q8_0)
expected["F32"] = expected["F64"] = values
expected["F16"] = values.astype(np.float16).astype(np.float32)
expected["BF16"] = gguf.quants.dequantize(gguf.quants.quantize(values, T.BF16), T.BF16)
expected["from_f32"] = gguf.quants.dequantize(gguf.quants.quantize(values, T.Q8_0), T.Q8_0)

writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
save_file(expected, "quants.safetensors", {"format": "pt"})
