#include <stdlib.h>
#include <string.h>

#include "io/tensors.h"

/* The format: ggml's docs/gguf.md. All numbers are little-endian and unaligned. */

enum {
    PAIRS_MAX = 65536,
    TENSORS_MAX = 1 << 20,
    PAIR_LEAST = 8 + 1 + 4 + 1, /* bytes of the shortest pair, and of the shortest tensor's entry */
    TENSOR_LEAST = 8 + 1 + 4 + 4 + 8,
    KEY_MAX = 1024, /* bytes */
    NAME_MAX_BYTES = 64,
    STRING_MAX = 1 << 24, /* bytes */
    ALIGNMENT_MAX = 1 << 20,
    ALIGNMENT_DEFAULT = 32,
};

static const size_t type_bytes[GGUF_TYPE_COUNT] = {
    [GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_U16] = 2,  [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
    [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
};

/* ggml's numbers of the element types that operant reads. */
static const struct {
    uint32_t number;
    op_dtype dtype;
} types[] = {
    {0, OP_F32},   {1, OP_F16},   {2, OP_Q4_0},  {3, OP_Q4_1},  {6, OP_Q5_0},  {7, OP_Q5_1},  {8, OP_Q8_0},  {12, OP_Q4_K},
    {13, OP_Q5_K}, {14, OP_Q6_K}, {24, OP_I8},   {25, OP_I16},  {26, OP_I32},  {27, OP_I64},  {28, OP_F64},  {30, OP_BF16},
};

size_t op_gguf_type_bytes(op_gguf_type t)
{
    return type_bytes[t];
}

bool op_gguf_tensor_type(op_dtype t, uint32_t *number)
{
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].dtype == t) {
            *number = types[i].number;
            return true;
        }
    return false;
}

/* A place in the file that never moves past its end. */
typedef struct cursor {
    const op_map *map;
    size_t at;
    const char *path;
    op_error *e;
} cursor;

static op_status refuse(const cursor *c, size_t at, const char *what, unsigned long long found, unsigned long long most)
{
    return op_error_set(c->e, OP_ERR_FORMAT, "%s: offset %zu: %s: found %llu, expected at most %llu", c->path, at, what,
                        found, most);
}

static op_status no_memory(const cursor *c)
{
    return op_error_set(c->e, OP_ERR_NOMEM, "%s: out of memory", c->path);
}

static op_status skip(cursor *c, uint64_t n, const char *what)
{
    if (n > c->map->size - c->at)
        return op_error_set(c->e, OP_ERR_FORMAT, "%s: offset %zu: the file ends inside %s", c->path, c->at, what);
    c->at += n;
    return OP_OK;
}

static op_status take(cursor *c, void *out, size_t n, const char *what)
{
    op_status s = skip(c, n, what);
    if (!s)
        memcpy(out, c->map->data + c->at - n, n);
    return s;
}

static op_status take_string(cursor *c, const char **s, size_t *n, size_t most, const char *what)
{
    uint64_t length;
    size_t begin = c->at;
    op_status status = take(c, &length, sizeof length, what);
    if (!status && length > most)
        status = refuse(c, begin, what, length, most);
    if (!status)
        status = skip(c, length, what);
    if (!status) {
        *n = length;
        *s = (const char *)c->map->data + c->at - length;
    }
    return status;
}

/* Keys and tensor names are printable ASCII; they come back as 0-terminated copies. */
static op_status take_name(cursor *c, op_tensors *t, const char **out, size_t most, const char *what)
{
    const char *s;
    size_t n, begin = c->at;
    op_status status = take_string(c, &s, &n, most, what);
    if (status)
        return status;
    for (size_t i = 0; i < n; i++)
        if (s[i] <= ' ' || s[i] > '~')
            return op_error_set(c->e, OP_ERR_FORMAT, "%s: offset %zu: %s: found byte %d, expected printable ASCII", c->path,
                                begin + 8 + i, what, (unsigned char)s[i]);
    if (!n)
        return op_error_set(c->e, OP_ERR_FORMAT, "%s: offset %zu: %s is empty", c->path, begin, what);
    *out = op_tensors_copy(t, s, n);
    return *out ? OP_OK : no_memory(c);
}

static op_status take_type(cursor *c, op_gguf_type *out, const char *what)
{
    uint32_t type;
    size_t begin = c->at;
    op_status s = take(c, &type, sizeof type, what);
    if (!s && type >= GGUF_TYPE_COUNT)
        s = refuse(c, begin, what, type, GGUF_TYPE_COUNT - 1);
    if (!s)
        *out = (op_gguf_type)type;
    return s;
}

static op_status take_array(cursor *c, op_gguf_pair *p)
{
    uint64_t n;
    size_t begin = c->at;
    op_status s = take_type(c, &p->item, "an array's type");
    if (!s && p->item == GGUF_ARRAY)
        return op_error_set(c->e, OP_ERR_UNSUPPORTED, "%s: offset %zu: key \"%s\": arrays of arrays are not supported", c->path,
                            begin, p->key);
    if (!s)
        s = take(c, &n, sizeof n, "an array's length");
    if (s)
        return s;
    size_t least = p->item == GGUF_STRING ? sizeof(uint64_t) : type_bytes[p->item];
    size_t room = (c->map->size - c->at) / least;
    if (n > room)
        return refuse(c, begin + 4, "an array's length", n, room);
    p->n = n;
    p->data = c->map->data + c->at;
    if (p->item != GGUF_STRING)
        return skip(c, n * least, "an array");
    p->strings = op_alloc_array(n, sizeof *p->strings);
    if (!p->strings)
        return no_memory(c);
    for (size_t i = 0; i < n && !s; i++) {
        const char *text;
        size_t length;
        p->strings[i] = c->map->data + c->at;
        s = take_string(c, &text, &length, STRING_MAX, "a string of an array");
    }
    return s;
}

static op_status take_pair(cursor *c, op_tensors *t, op_gguf_pair *p)
{
    op_status s = take_name(c, t, &p->key, KEY_MAX, "a key");
    if (!s)
        s = take_type(c, &p->type, "a value's type");
    if (s)
        return s;
    if (p->type == GGUF_ARRAY)
        return take_array(c, p);
    if (p->type != GGUF_STRING) {
        p->data = c->map->data + c->at;
        return skip(c, type_bytes[p->type], "a value");
    }
    const char *text;
    s = take_string(c, &text, &p->n, STRING_MAX, "a string");
    if (!s) {
        p->data = (unsigned char *)op_tensors_copy(t, text, p->n);
        s = p->data ? OP_OK : no_memory(c);
    }
    return s;
}

/* `data` is the offset in the data section until the last tensor is read: only then is it known where the section begins. */
static op_status take_tensor(cursor *c, op_tensors *t, op_tensor *x, uint64_t *offset)
{
    uint32_t rank, type;
    size_t begin = c->at;
    op_status s = take_name(c, t, &x->name, NAME_MAX_BYTES, "a tensor's name");
    if (!s)
        s = take(c, &rank, sizeof rank, "a tensor's rank");
    if (!s && rank > OP_TENSOR_RANK_MAX)
        s = refuse(c, c->at - sizeof rank, "a tensor's rank", rank, OP_TENSOR_RANK_MAX);
    if (s)
        return s;
    x->rank = (int)rank;
    for (int i = x->rank - 1; i >= 0 && !s; i--)
        s = take(c, &x->shape[i], sizeof x->shape[i], "a tensor's shape");
    if (!s)
        s = take(c, &type, sizeof type, "a tensor's type");
    if (!s)
        s = take(c, offset, sizeof *offset, "a tensor's offset");
    if (s)
        return s;
    size_t i = 0;
    while (i < sizeof types / sizeof *types && types[i].number != type)
        i++;
    if (i == sizeof types / sizeof *types)
        return op_error_set(c->e, OP_ERR_UNSUPPORTED, "%s: offset %zu: tensor \"%s\": element type %u is not supported",
                            c->path, begin, x->name, type);
    x->dtype = types[i].dtype;
    if (!op_tensor_measure(x))
        return op_error_set(c->e, OP_ERR_FORMAT,
                            "%s: offset %zu: tensor \"%s\": its shape overflows or its rows are no whole blocks of %s", c->path,
                            begin, x->name, op_dtype_name(x->dtype));
    return OP_OK;
}

static op_status get_alignment(const cursor *c, const op_tensors *t, uint64_t *out)
{
    int64_t a = op_tensors_meta_int(t, "general.alignment", ALIGNMENT_DEFAULT);
    if (a < 1 || a > ALIGNMENT_MAX || (a & (a - 1)))
        return op_error_set(c->e, OP_ERR_FORMAT, "%s: key \"general.alignment\": found %lld, expected a power of two up to %d",
                            c->path, (long long)a, ALIGNMENT_MAX);
    *out = (uint64_t)a;
    return OP_OK;
}

static int by_place(const void *a, const void *b)
{
    const op_tensor *x = *(op_tensor *const *)a, *y = *(op_tensor *const *)b;
    if (x->data != y->data)
        return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static op_status check_overlaps(const cursor *c, const op_tensors *t)
{
    op_tensor **order = op_alloc_array(t->n, sizeof *order);
    if (!order)
        return no_memory(c);
    for (size_t i = 0; i < t->n; i++)
        order[i] = &t->tensors[i];
    qsort(order, t->n, sizeof *order, by_place);
    op_status s = OP_OK;
    for (size_t i = 1; i < t->n && !s; i++) {
        const unsigned char *end = (const unsigned char *)order[i - 1]->data + order[i - 1]->bytes;
        if (end > (const unsigned char *)order[i]->data)
            s = op_error_set(c->e, OP_ERR_FORMAT, "%s: offset %td: tensors \"%s\" and \"%s\" overlap", c->path,
                             (const unsigned char *)order[i]->data - c->map->data, order[i - 1]->name, order[i]->name);
    }
    op_free(order);
    return s;
}

static op_status place_tensors(cursor *c, op_tensors *t, const uint64_t *offsets)
{
    uint64_t align = 0;
    op_status s = get_alignment(c, t, &align);
    if (s)
        return s;
    size_t base = (c->at + align - 1) & ~(size_t)(align - 1);
    size_t room = base < c->map->size ? c->map->size - base : 0;
    for (size_t i = 0; i < t->n; i++) {
        op_tensor *x = &t->tensors[i];
        if (offsets[i] % align)
            return op_error_set(c->e, OP_ERR_FORMAT, "%s: tensor \"%s\": found offset %llu, expected a multiple of %llu", c->path,
                                x->name, (unsigned long long)offsets[i], (unsigned long long)align);
        if (x->bytes > room || offsets[i] > room - x->bytes)
            return op_error_set(c->e, OP_ERR_FORMAT, "%s: tensor \"%s\": %zu bytes from offset %llu: out of range: "
                                "the data at offset %zu have %zu bytes",
                                c->path, x->name, x->bytes, (unsigned long long)offsets[i], base, room);
        x->data = x->bytes ? c->map->data + base + offsets[i] : c->map->data;
    }
    return check_overlaps(c, t);
}

static op_status take_tensors(cursor *c, op_tensors *t, size_t n)
{
    uint64_t *offsets = op_alloc_array(n, sizeof *offsets);
    t->tensors = op_alloc_zero(n, sizeof *t->tensors);
    op_status s = offsets && t->tensors && !op_index_init(&t->index, n) ? OP_OK : no_memory(c);
    for (size_t i = 0; i < n && !s; i++) {
        size_t begin = c->at;
        s = take_tensor(c, t, &t->tensors[i], &offsets[i]);
        if (!s && !op_index_add(&t->index, t->tensors[i].name, (uint32_t)i))
            s = op_error_set(c->e, OP_ERR_FORMAT, "%s: offset %zu: tensor \"%s\" is there twice", c->path, begin,
                             t->tensors[i].name);
    }
    if (!s) {
        t->n = n;
        s = place_tensors(c, t, offsets);
    }
    op_free(offsets);
    return s;
}

static op_status take_pairs(cursor *c, op_tensors *t, size_t n)
{
    t->pairs = op_alloc_zero(n, sizeof *t->pairs);
    if (!t->pairs || op_index_init(&t->keys, n))
        return no_memory(c);
    t->n_pairs = n;
    op_status s = OP_OK;
    for (size_t i = 0; i < n && !s; i++) {
        size_t begin = c->at;
        s = take_pair(c, t, &t->pairs[i]);
        if (!s && !op_index_add(&t->keys, t->pairs[i].key, (uint32_t)i))
            s = op_error_set(c->e, OP_ERR_FORMAT, "%s: offset %zu: key \"%s\" is there twice", c->path, begin,
                             t->pairs[i].key);
    }
    return s;
}

/* A count just taken: within the limit, and not more than the rest of the file could hold. */
static op_status check_count(const cursor *c, uint64_t n, size_t most, size_t least_bytes, const char *what)
{
    size_t room = (c->map->size - c->at) / least_bytes;
    if (n <= most && n <= room)
        return OP_OK;
    return refuse(c, c->at - sizeof n, what, n, room < most ? room : most);
}

op_status op_gguf_parse(op_tensors *t, const op_map *bytes, const char *path, op_error *e)
{
    t->format = OP_GGUF;
    cursor c = {bytes, 0, path, e};
    char magic[4];
    uint32_t version;
    uint64_t n_tensors, n_pairs;
    op_status s = take(&c, magic, sizeof magic, "the magic bytes");
    if (!s && memcmp(magic, "GGUF", 4))
        s = op_error_set(e, OP_ERR_FORMAT, "%s: offset 0: expected the magic bytes \"GGUF\"", path);
    if (!s)
        s = take(&c, &version, sizeof version, "the version");
    if (!s && version != 2 && version != 3)
        s = op_error_set(e, OP_ERR_UNSUPPORTED, "%s: offset 4: found version %u, expected 2 or 3", path, version);
    if (!s)
        s = take(&c, &n_tensors, sizeof n_tensors, "the number of tensors");
    if (!s)
        s = check_count(&c, n_tensors, TENSORS_MAX, TENSOR_LEAST, "the number of tensors");
    if (!s)
        s = take(&c, &n_pairs, sizeof n_pairs, "the number of keys");
    if (!s)
        s = check_count(&c, n_pairs, PAIRS_MAX, PAIR_LEAST, "the number of keys");
    if (!s)
        s = take_pairs(&c, t, n_pairs);
    return s ? s : take_tensors(&c, t, n_tensors);
}
