#!/usr/bin/env python3
"""Makes the seeds of the safetensors, gguf and config targets: small files, one for each feature. Run it in this folder."""
import json
import pathlib
import struct


def put(target, name, data):
    folder = pathlib.Path("corpus") / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def safetensors(header, data=b""):
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
header, at = {"__metadata__": {"format": "pt", "grüße": "\n\"\u20ac"}}, 0
for dtype, size in SIZES.items():
    header[dtype.lower()] = {"dtype": dtype, "shape": [3, 2], "data_offsets": [at, at + 6 * size]}
    at += 6 * size
put("safetensors", "types", safetensors(header, bytes(i & 255 for i in range(at))))
put("safetensors", "empty", safetensors({}))
put("safetensors", "shapes", safetensors({
    "scalar": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
    "none": {"dtype": "F16", "shape": [0, 5], "data_offsets": [4, 4]},
    "four": {"dtype": "BF16", "shape": [1, 2, 1, 2], "data_offsets": [4, 12]}}, bytes(12)))
put("safetensors", "hole", safetensors({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, b"12"))
put("safetensors", "overlap", safetensors({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
                                           "b": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}, b"123"))
put("safetensors", "numbers", safetensors({"a": {"dtype": "U8", "shape": [1e0, -1, 18446744073709551616], "data_offsets": [0.5, None]}}))


def string(s):
    b = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(b)) + b


FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9


def value(kind, v):
    return string(v) if kind == STRING else struct.pack(FORMATS[kind], v)


def pair(key, kind, v):
    return string(key) + struct.pack("<I", kind) + value(kind, v)


def array(key, kind, vs):
    return string(key) + struct.pack("<IIQ", ARRAY, kind, len(vs)) + b"".join(value(kind, v) for v in vs)


def tensor(name, shape, kind, offset):
    return string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", kind, offset)


def gguf(pairs=(), tensors=(), data=b"", version=3, align=32):
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % align) + data


put("gguf", "empty", gguf())
put("gguf", "version2", gguf(version=2))
put("gguf", "values", gguf([pair(f"k{kind}", kind, 1) for kind in FORMATS] + [pair("s", STRING, "text"), pair("b", STRING, b"\xff")]))
put("gguf", "arrays", gguf([array(f"a{kind}", kind, [0, 1, 0]) for kind in FORMATS] + [array("as", STRING, ["a", "", b"\xfe"])]))
BLOCKS = {0: (4, 4), 1: (4, 8), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 12: (256, 144), 13: (256, 176),
          14: (256, 210), 24: (4, 4), 25: (4, 8), 26: (4, 16), 27: (4, 32), 28: (4, 32), 30: (4, 8)}
tensors, data = [], b""
for kind, (elements, size) in BLOCKS.items():
    tensors.append(tensor(f"t{kind}", [elements], kind, len(data)))
    data += bytes(i * 7 & 255 for i in range(size)) + bytes(-size % 32)
put("gguf", "types", gguf((), tensors, data))
put("gguf", "aligned", gguf([pair("general.alignment", 4, 64)], [tensor("a", [1, 2, 1, 2], 0, 64)], bytes(80), align=64))
put("gguf", "overlap", gguf((), [tensor("a", [16], 0, 0), tensor("b", [1], 0, 32)], bytes(64)))

put("config", "all", b"""# a comment
max_steps: 7
lr: 2e-3
bf16: off
model: "a\\tb \\u00e9"
schedule: cosine
lora:
  r: -3
  targets: [q, k, 'v']
""")
put("config", "dots", b"lora.r: 4\nlora.targets: 'a,b'\nmodel: ~\n")
put("config", "flow", b"{steps: 3, lora: {r: 1}, model: |\n  block\n  text\n}")
put("config", "block", b"model: >-\n  folded\n  text\nlearning_rate: .inf\n")
put("config", "twice", b"lr: 1\nlearning_rate: 2\n")
put("config", "anchor", b"steps: &x 1\nlora: {r: *x}\n")
put("config", "tag", b"---\nsteps: !!int 1\n...\n---\n")
put("config", "unknown", b"learnin_rate: 1\n? [a]\n: b\n")
put("config", "word", b"=lora.targets=x,y")
put("config", "wide", "\ufeffmodel: caf\u00e9\n".encode("utf-16-le"))
