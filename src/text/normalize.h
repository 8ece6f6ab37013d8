/* text/normalize.h: what happens to a text before it is cut into words, with the place in the source of every byte. */
#ifndef OP_TEXT_NORMALIZE_H
#define OP_TEXT_NORMALIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <operant/status.h>

typedef enum op_normal_kind {
    OP_NORMAL_NFC,
    OP_NORMAL_PREPEND,         /* `content` before the text, unless it is empty */
    OP_NORMAL_PREPEND_MISSING, /* the same unless the text starts with it */
    OP_NORMAL_REPLACE,         /* every `pattern` by `content` */
} op_normal_kind;

typedef struct op_normal_step {
    op_normal_kind kind;
    bool first_only; /* prepend only at the very start of the text */
    char pattern[8], content[8];
} op_normal_step;

/* A normalised piece of text. Byte i comes from bytes from[i]..to[i]-1 of the source. Zero-initialise; release frees. */
typedef struct op_normal {
    char *bytes;
    uint32_t *from, *to;
    size_t n, cap;
} op_normal;

void op_normal_release(op_normal *x);

/* Where a piece stands in what is being encoded. */
typedef enum op_place { OP_PLACE_START, OP_PLACE_AFTER_TOKEN, OP_PLACE_CONTINUES } op_place;

/* Whether a step would leave s[n] as it is. */
bool op_normal_is_identity(const op_normal_step *steps, int n_steps, const char *s, size_t n, op_place place);

/* *out becomes s[n], whose first byte is byte `base` of the source. */
op_status op_normal_set(op_normal *out, const char *s, size_t n, uint32_t base);

/* Applies the steps to *x; *scratch is working memory. OP_ERR_NOMEM is the only error. */
op_status op_normal_apply(op_normal *x, op_normal *scratch, const op_normal_step *steps, int n_steps, op_place place);

#endif
