/* io/tensors.h: what the readers of safetensors and GGUF share: the inside of op_tensors. */
#ifndef OP_IO_TENSORS_H
#define OP_IO_TENSORS_H

#include <stdbool.h>

#include <operant/tensors.h>

#include "base/mem.h"
#include "io/file.h"

/* A hash table from names to their places in an array. Names are borrowed. */
typedef struct op_index {
    const char **names; /* [room] */
    uint32_t *places;   /* [room] */
    size_t room, n;     /* room is a power of two and at least twice the most names it takes */
} op_index;

op_status op_index_init(op_index *x, size_t most);
/* Adds a name that the table has room for; false if it is there already. */
bool op_index_add(op_index *x, const char *name, uint32_t place);
/* The place of a name, or -1. */
int64_t op_index_find(const op_index *x, const char *name);
void op_index_release(op_index *x);

/* GGUF's value types, by their number in the file. */
typedef enum op_gguf_type {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY, GGUF_U64,
    GGUF_I64, GGUF_F64, GGUF_TYPE_COUNT
} op_gguf_type;

size_t op_gguf_type_bytes(op_gguf_type t);                /* of a value; 0 for strings and arrays */
bool op_gguf_tensor_type(op_dtype t, uint32_t *number);   /* ggml's number of an element type; false if it has none */

typedef struct op_gguf_pair {
    const char *key;
    op_gguf_type type, item;   /* item: of an array's elements */
    const unsigned char *data; /* in the map: the scalar, or an array's first element. Of a string: its 0-terminated copy */
    size_t n;                  /* bytes of a string, elements of an array */
    const unsigned char **strings; /* [n] an array of strings: where each begins (its u64 length) */
} op_gguf_pair;

/* An array of GGUF's metadata found once, for many reads: NULL if there is none. Elements by index, as op_tensors_meta_array_... gives them. */
const op_gguf_pair *op_gguf_array(const op_tensors *t, const char *key);
const char *op_gguf_array_string(const op_gguf_pair *p, size_t i, size_t *len);
int64_t op_gguf_array_int(const op_gguf_pair *p, size_t i);

struct op_tensors {
    op_tensors_format format;
    op_map *maps; /* [n_maps] */
    size_t n_maps;
    op_tensor *tensors; /* [n] */
    size_t n;
    op_index index;
    op_arena arena;   /* names, keys and short strings */
    json_t *metadata; /* safetensors: an object of strings, or NULL */
    op_gguf_pair *pairs; /* GGUF: [n_pairs] */
    size_t n_pairs;
    op_index keys;
};

/* These fill an empty *t, and leave what they made in it on failure: op_tensors_close frees it. The bytes of a file are
 * borrowed for t's life; `path` is its name in messages. */
op_status op_safetensors_parse(op_tensors *t, const op_map *bytes, const char *path, op_error *e);
op_status op_safetensors_read_index(op_tensors *t, const char *path, op_error *e); /* *.safetensors.index.json */
op_status op_gguf_parse(op_tensors *t, const op_map *bytes, const char *path, op_error *e);

/* Maps one more file, for t's life. *m is borrowed and good until the next call. */
op_status op_tensors_map(op_tensors *t, const char *path, const op_map **m, op_error *e);

/* op_tensors_open for bytes that the caller keeps until op_tensors_close. */
op_status op_tensors_parse(op_tensors **out, const void *bytes, size_t n, const char *name, op_error *e);

/* A copy of s[n] with a final 0, in t's arena. */
char *op_tensors_copy(op_tensors *t, const char *s, size_t n);

/* Sets t's count from its shape and its bytes from count and type. False if either overflows, a size is negative or the
 * rows are no whole blocks. */
bool op_tensor_measure(op_tensor *t);

#endif
