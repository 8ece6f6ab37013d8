#include "ops/ops.h"

#include <omp.h>
#include <pthread.h>
#include <string.h>

#include "ops/ref/ref.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static op_ops ref_f32;

static void fill(void)
{
    ref_f32 = (op_ops){.name = "ref", .act = OP_F32, .act_size = 4};
    op_ref_products(&ref_f32);
    op_ref_rows(&ref_f32);
    op_ref_attention(&ref_f32);
    op_ref_vocabulary(&ref_f32);
}

const op_ops *op_ops_get(const char *name, op_dtype act)
{
    pthread_once(&once, fill);
    return strcmp(name, "ref") == 0 && act == OP_F32 ? &ref_f32 : NULL;
}

int op_threads_set(int n)
{
    omp_set_num_threads(n > 0 ? n : omp_get_num_procs());
    return omp_get_max_threads();
}

int op_threads(void)
{
    return omp_get_max_threads();
}
