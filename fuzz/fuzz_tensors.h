/* What the targets of both formats do with a file that opens: read everything in it. */
#ifndef OP_FUZZ_TENSORS_H
#define OP_FUZZ_TENSORS_H

#include <stdlib.h>
#include <string.h>

#include "io/tensors.h"

enum { READ_MAX = 1 << 16 }; /* elements of a tensor; the rest is more of the same */

static void read_everything(const op_tensors *t)
{
    static float out[READ_MAX];
    for (size_t i = 0; i < op_tensors_count(t); i++) {
        const op_tensor *x = op_tensors_at(t, i);
        if (op_tensors_find(t, x->name) != x)
            abort();
        int64_t n = x->count < READ_MAX ? x->count : READ_MAX;
        op_error e;
        op_tensor_read_f32(x, 0, n, out, &e);
        op_tensor_read_f32(x, x->count - n, n, out, &e);
    }
    json_t *all = op_tensors_meta_json(t, 1000);
    const char *key;
    json_t *v;
    json_object_foreach(all, key, v) {
        op_tensors_meta_string(t, key, NULL);
        op_tensors_meta_int(t, key, 0);
        op_tensors_meta_float(t, key, 0);
        size_t n = op_tensors_meta_array(t, key), len;
        for (size_t i = 0; i <= n && i < 1000; i++) {
            op_tensors_meta_array_string(t, key, i, &len);
            op_tensors_meta_array_int(t, key, i);
            op_tensors_meta_array_float(t, key, i);
        }
    }
    json_decref(all);
}

/* Parses a copy of exactly the size, so that a read past its end shows. */
static void parse_and_read(const uint8_t *data, size_t n, const char *name)
{
    op_tensors *t;
    op_error e = {0};
    uint8_t *copy = malloc(n ? n : 1);
    memcpy(copy, data, n);
    if (!op_tensors_parse(&t, copy, n, name, &e))
        read_everything(t);
    else if (!*e.message)
        abort();
    op_tensors_close(t);
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#endif
