#include <operant/env.h>

#include <stdio.h>

#include "ops/cpu/cpu.h"
#include "ops/ops.h"

bool op_env_native_bf16(void)
{
    return op_ops_native_bf16();
}

const char *op_env_simd(void)
{
    return op_ops_simd();
}

const char *op_env_products(void)
{
    return op_ops_product_isa();
}

const char *op_env_onednn(void)
{
    return op_cpu_onednn_version();
}

int op_env_threads(int n)
{
    return op_threads_set(n);
}

double op_env_peak(op_dtype act, double seconds)
{
    const op_ops *ops = op_ops_get("cpu", act);
    return ops ? op_ops_peak(ops, 512, 1536, 576, seconds) : 0;
}

double op_env_bandwidth(double seconds)
{
    return op_ops_bandwidth(seconds);
}
