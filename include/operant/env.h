/* operant/env.h: what the processor and the build offer. */
#ifndef OPERANT_ENV_H
#define OPERANT_ENV_H

#include <stdbool.h>

#include <operant/dtype.h>

bool op_env_native_bf16(void);       /* the processor multiplies bf16: AVX512-BF16 or AMX */
const char *op_env_simd(void);       /* level of the SIMD loops: "x86-64-v4 bf16" */
const char *op_env_products(void);   /* oneDNN's instruction set: "avx512_core_bf16", "avx512_core_amx" ... */
const char *op_env_onednn(void);     /* "2.6.3" */
int op_env_threads(int n);           /* sets the threads of every op (0: all cores); returns their number */
/* GFLOP/s of the best product of the processor, 512 x 1536 x 576 packed, measured now for `seconds`; OP_F32 or OP_BF16. */
double op_env_peak(op_dtype act, double seconds);
/* GB/s between memory and processor, measured now for `seconds` with a loop over 384 MiB; 0 when memory is out. */
double op_env_bandwidth(double seconds);

#endif
