#include "train/moments.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "ops/dynamic8.h"

static size_t blocks_of(const op_param *x)
{
    return x->n < OP_MOMENTS_SMALL ? 0 : (x->n + OP_MOMENT_BLOCK - 1) / OP_MOMENT_BLOCK;
}

op_status op_moments_init(op_moments *x, const op_params *p, op_error *e)
{
    size_t floats = 0, codes = 0;
    for (size_t i = 0; i < p->n_table; i++) {
        size_t blocks = blocks_of(&p->table[i]);
        floats += blocks ? 2 * blocks : 2 * p->table[i].n;
        codes += blocks ? 2 * p->table[i].n : 0;
    }
    *x = (op_moments){.of = op_alloc_zero(p->n_table, sizeof *x->of), .bytes = op_alloc_aligned(floats * sizeof(float) + codes),
                      .names = op_alloc_zero(p->n_table, sizeof *x->names)};
    if (!x->of || !x->bytes || !x->names) {
        op_moments_release(x);
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for the optimiser of %zu parameters", p->n);
    }
    float *at = (float *)(void *)x->bytes;
    uint8_t *code = x->bytes + floats * sizeof(float);
    for (size_t i = 0; i < p->n_table; i++) {
        size_t blocks = blocks_of(&p->table[i]), n = p->table[i].n;
        x->of[i] = blocks ? (op_param_moments){.codes = {code, code + n, at, at + blocks}, .blocks = (int64_t)blocks}
                          : (op_param_moments){.m = at, .v = at + n};
        at += blocks ? 2 * blocks : 2 * n;
        code += blocks ? 2 * n : 0;
        snprintf(x->names[i], sizeof x->names[i], "%s.top", p->table[i].name);
    }
    return OP_OK;
}

void op_moments_release(op_moments *x)
{
    op_free(x->of);
    op_free(x->names);
    op_free_aligned(x->bytes);
    *x = (op_moments){0};
}

size_t op_moments_tensors(const op_moments *x, const op_params *p, bool second, op_tensor_out *tensors)
{
    size_t n = 0;
    for (size_t i = 0; i < p->n_table; i++) {
        const op_param *param = &p->table[i];
        const op_param_moments *m = &x->of[i];
        tensors[n++] = (op_tensor_out){.name = param->name, .dtype = m->m ? OP_F32 : OP_U8, .rank = param->cols > 1 ? 2 : 1, .shape = {param->rows, param->cols},
                                       .data = m->m ? (const void *)(second ? m->v : m->m) : second ? m->codes.v : m->codes.m};
        if (!m->m)
            tensors[n++] = (op_tensor_out){.name = x->names[i], .dtype = OP_F32, .rank = 1, .shape = {m->blocks},
                                           .data = second ? m->codes.v_top : m->codes.m_top};
    }
    return n;
}

static op_status read_one(const op_tensors *file, const char *name, op_dtype dtype, size_t n, void *out, const char *path, op_error *e)
{
    const op_tensor *t = op_tensors_find(file, name);
    if (!t || t->dtype != dtype || t->count != (int64_t)n)
        return op_error_set(e, OP_ERR_MISMATCH, "\"%s\": found %s \"%s\", expected %zu of type %s", path, t ? "another shape or type of" : "no", name, n,
                            op_dtype_name(dtype));
    if (out)
        memcpy(out, t->data, t->bytes);
    return OP_OK;
}

op_status op_moments_read(op_moments *x, const op_params *p, bool second, const char *path, bool dry, op_error *e)
{
    op_tensors *file;
    op_status status = op_tensors_open(&file, path, e);
    if (status)
        return status;
    for (size_t i = 0; i < p->n_table && !status; i++) {
        const op_param_moments *m = &x->of[i];
        void *out = m->m ? (void *)(second ? m->v : m->m) : second ? m->codes.v : m->codes.m;
        status = read_one(file, p->table[i].name, m->m ? OP_F32 : OP_U8, p->table[i].n, dry ? NULL : out, path, e);
        if (!status && !m->m)
            status = read_one(file, x->names[i], OP_F32, (size_t)m->blocks, dry ? NULL : second ? m->codes.v_top : m->codes.m_top, path, e);
    }
    op_tensors_close(file);
    return status;
}
