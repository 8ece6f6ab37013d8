#include "io/gguf.h"

#include <string.h>

#include "io/tensors.h"

enum { ALIGNMENT = 32, VERSION = 3, NAME_BYTES = 63 };

struct op_gguf_writer {
    op_buf pairs; /* as they stand in the file */
    json_t *keys; /* the set of keys so far */
    op_tensor_out *tensors;
    size_t n, cap;
    op_error first; /* failure; its code is OP_OK while there is none */
};

op_gguf_writer *op_gguf_writer_new(void)
{
    op_gguf_writer *w = op_alloc_zero(1, sizeof *w);
    if (!w)
        return NULL;
    op_buf_init(&w->pairs, (size_t)1 << 30);
    w->keys = json_object();
    if (w->keys)
        return w;
    op_free(w);
    return NULL;
}

void op_gguf_writer_free(op_gguf_writer *w)
{
    if (!w)
        return;
    op_buf_release(&w->pairs);
    json_decref(w->keys);
    op_free(w->tensors);
    op_free(w);
}

static void add(op_gguf_writer *w, const void *bytes, size_t n)
{
    if (!w->first.code && op_buf_add(&w->pairs, bytes, n))
        op_error_set(&w->first, OP_ERR_NOMEM, "out of memory");
}

static void add_string(op_gguf_writer *w, const char *s, size_t n)
{
    uint64_t length = n;
    add(w, &length, sizeof length);
    add(w, s, n);
}

static bool is_printable(const char *s)
{
    const char *p = s;
    while (*p > ' ' && *p <= '~')
        p++;
    return !*p && p > s;
}

static void begin(op_gguf_writer *w, const char *key, op_gguf_type type)
{
    uint32_t number = type;
    if (w->first.code)
        return;
    if (!is_printable(key))
        op_error_set(&w->first, OP_ERR_ARG, "key \"%s\" is no printable ASCII", key);
    else if (json_object_get(w->keys, key))
        op_error_set(&w->first, OP_ERR_ARG, "key \"%s\" is there twice", key);
    else if (json_object_set_new(w->keys, key, json_true()))
        op_error_set(&w->first, OP_ERR_NOMEM, "out of memory");
    add_string(w, key, strlen(key));
    add(w, &number, sizeof number);
}

static void begin_array(op_gguf_writer *w, const char *key, op_gguf_type type, size_t n)
{
    uint32_t number = type;
    uint64_t length = n;
    begin(w, key, GGUF_ARRAY);
    add(w, &number, sizeof number);
    add(w, &length, sizeof length);
}

void op_gguf_put_string(op_gguf_writer *w, const char *key, const char *s, size_t n)
{
    begin(w, key, GGUF_STRING);
    add_string(w, s, n);
}

void op_gguf_put_u32(op_gguf_writer *w, const char *key, uint32_t v)
{
    begin(w, key, GGUF_U32);
    add(w, &v, sizeof v);
}

void op_gguf_put_i32(op_gguf_writer *w, const char *key, int32_t v)
{
    begin(w, key, GGUF_I32);
    add(w, &v, sizeof v);
}

void op_gguf_put_u64(op_gguf_writer *w, const char *key, uint64_t v)
{
    begin(w, key, GGUF_U64);
    add(w, &v, sizeof v);
}

void op_gguf_put_f32(op_gguf_writer *w, const char *key, float v)
{
    begin(w, key, GGUF_F32);
    add(w, &v, sizeof v);
}

void op_gguf_put_bool(op_gguf_writer *w, const char *key, bool v)
{
    begin(w, key, GGUF_BOOL);
    add(w, &(uint8_t){v}, 1);
}

void op_gguf_put_i32s(op_gguf_writer *w, const char *key, const int32_t *v, size_t n)
{
    begin_array(w, key, GGUF_I32, n);
    add(w, v, n * sizeof *v);
}

void op_gguf_put_f32s(op_gguf_writer *w, const char *key, const float *v, size_t n)
{
    begin_array(w, key, GGUF_F32, n);
    add(w, v, n * sizeof *v);
}

void op_gguf_put_strings(op_gguf_writer *w, const char *key, const char *const *strings, const size_t *lengths, size_t n)
{
    begin_array(w, key, GGUF_STRING, n);
    for (size_t i = 0; i < n; i++)
        add_string(w, strings[i], lengths ? lengths[i] : strlen(strings[i]));
}

void op_gguf_put_copy(op_gguf_writer *w, const op_tensors *from, const char *key)
{
    int64_t i = op_index_find(&from->keys, key);
    if (i < 0) {
        if (!w->first.code)
            op_error_set(&w->first, OP_ERR_ARG, "key \"%s\" is not in the file it shall be copied from", key);
        return;
    }
    const op_gguf_pair *p = &from->pairs[i];
    if (p->type == GGUF_STRING) {
        op_gguf_put_string(w, key, (const char *)p->data, p->n);
    } else if (p->type == GGUF_ARRAY) {
        begin_array(w, key, p->item, p->n);
        for (size_t k = 0; p->strings && k < p->n; k++) {
            uint64_t n;
            memcpy(&n, p->strings[k], sizeof n);
            add_string(w, (const char *)p->strings[k] + sizeof n, n);
        }
        if (!p->strings)
            add(w, p->data, p->n * op_gguf_type_bytes(p->item));
    } else {
        begin(w, key, p->type);
        add(w, p->data, op_gguf_type_bytes(p->type));
    }
}

void op_gguf_add_tensor(op_gguf_writer *w, const op_tensor_out *t)
{
    if (w->n == w->cap) {
        size_t cap = w->cap ? 2 * w->cap : 64;
        op_tensor_out *grown = op_realloc(w->tensors, cap * sizeof *grown);
        if (!grown) {
            if (!w->first.code)
                op_error_set(&w->first, OP_ERR_NOMEM, "out of memory");
            return;
        }
        w->tensors = grown;
        w->cap = cap;
    }
    w->tensors[w->n++] = *t;
}

static size_t pad(uint64_t n)
{
    return (size_t)(-n % ALIGNMENT);
}

/* Checks all tensors and appends their entries to *out. */
static op_status add_entries(const op_gguf_writer *w, op_buf *out, const char *path, op_error *e)
{
    op_index names;
    uint64_t offset = 0;
    if (op_index_init(&names, w->n))
        return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", path);
    op_status s = OP_OK;
    for (size_t i = 0; i < w->n && !s; i++) {
        const op_tensor_out *t = &w->tensors[i];
        size_t bytes;
        uint32_t type, rank = (uint32_t)t->rank;
        s = op_tensor_out_check(t, &bytes, path, e);
        if (s)
            break;
        uint64_t length = strlen(t->name);
        if (!is_printable(t->name) || length > NAME_BYTES)
            s = op_error_set(e, OP_ERR_ARG, "%s: tensor \"%s\": expected a name of at most %d printable bytes", path, t->name,
                             NAME_BYTES);
        else if (!op_index_add(&names, t->name, 0))
            s = op_error_set(e, OP_ERR_ARG, "%s: tensor \"%s\" is there twice", path, t->name);
        else if (!op_gguf_tensor_type(t->dtype, &type))
            s = op_error_set(e, OP_ERR_UNSUPPORTED, "%s: tensor \"%s\": GGUF has no type %s", path, t->name,
                             op_dtype_name(t->dtype));
        if (s)
            break;
        bool ok = !op_buf_add(out, &length, sizeof length) && !op_buf_add(out, t->name, length) &&
                  !op_buf_add(out, &rank, sizeof rank);
        for (int k = t->rank - 1; k >= 0 && ok; k--)
            ok = !op_buf_add(out, &t->shape[k], sizeof t->shape[k]);
        if (!ok || op_buf_add(out, &type, sizeof type) || op_buf_add(out, &offset, sizeof offset))
            s = op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", path);
        offset += bytes + pad(bytes);
    }
    op_index_release(&names);
    return s;
}

static op_status write_all(const op_gguf_writer *w, op_file *f, const op_buf *entries, op_error *e)
{
    struct {
        char magic[4];
        uint32_t version;
        uint64_t n_tensors, n_pairs;
    } head = {{'G', 'G', 'U', 'F'}, VERSION, w->n, json_object_size(w->keys)};
    op_status s = op_file_write(f, &head, sizeof head, e);
    if (!s)
        s = op_file_write(f, w->pairs.data, w->pairs.len, e);
    if (!s)
        s = op_file_write(f, entries->data, entries->len, e);
    if (!s)
        s = op_file_zeros(f, pad(f->size), e);
    for (size_t i = 0; i < w->n && !s; i++) {
        s = op_tensor_out_write(&w->tensors[i], f, e);
        if (!s)
            s = op_file_zeros(f, pad(f->size), e);
    }
    return s;
}

op_status op_gguf_save(op_gguf_writer *w, const char *path, op_error *e)
{
    if (w->first.code)
        return op_error_set(e, w->first.code, "%s: %s", path, w->first.message);
    op_buf entries;
    op_buf_init(&entries, (size_t)1 << 30);
    op_file f = {0};
    op_status s = add_entries(w, &entries, path, e);
    if (!s)
        s = op_file_create(&f, path, e);
    if (!s)
        s = write_all(w, &f, &entries, e);
    if (!s)
        s = op_file_commit(&f, e);
    op_file_abort(&f);
    op_buf_release(&entries);
    return s;
}
