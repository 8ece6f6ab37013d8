/* text/bpe.h: the vocabulary and the merges of a byte pair encoding, and the merging of one word.
 *
 * A token is known by its key: the bytes it stands for in the text handed to op_bpe_word (for byte-level vocabularies the
 * bytes behind the printable stand-ins, else the token's own characters). The symbols merged first are bytes, or characters. */
#ifndef OP_TEXT_BPE_H
#define OP_TEXT_BPE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <operant/status.h>
#include <operant/tokenizer.h>

/* n strings in one block: string i is bytes[at[i]] .. bytes[at[i + 1] - 1]. */
typedef struct op_strings {
    char *bytes;
    uint32_t *at;
    int32_t n;
    size_t bytes_cap, at_cap;
} op_strings;

op_status op_strings_add(op_strings *s, const char *bytes, size_t n);
void op_strings_release(op_strings *s);
static inline const char *op_strings_get(const op_strings *s, int32_t i, size_t *len)
{
    *len = s->at[i + 1] - s->at[i];
    return s->bytes + s->at[i];
}

/* A hash table from strings to their number; the strings stay where they are. */
typedef struct op_lookup {
    struct op_lookup_slot {
        int32_t at;   /* string number, -1: empty */
        uint32_t tag; /* upper half of the hash, to spare most comparisons */
    } *slots;
    uint64_t mask;
} op_lookup;

op_status op_lookup_init(op_lookup *x, int32_t n); /* room for n strings */
void op_lookup_put(op_lookup *x, const op_strings *s, int32_t i); /* the first of equal strings wins */
int32_t op_lookup_find(const op_lookup *x, const op_strings *s, const char *key, size_t n); /* -1: absent */
void op_lookup_release(op_lookup *x);

typedef struct op_merge_slot {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX: empty */
    uint32_t rank;
    int32_t id; /* what the pair becomes */
} op_merge_slot;

typedef struct op_bpe {
    op_strings keys;
    op_lookup index;       /* of the keys that a word may equal */
    op_merge_slot *merges;
    uint64_t merge_mask;
    int32_t byte_id[256]; /* byte-level: each byte's token; else the "<0xNN>" tokens; -1: none */
    bool bytes;           /* symbols are bytes */
    bool byte_fallback;   /* unknown characters become "<0xNN>" tokens */
    bool fuse_unk;        /* neighbouring unknown characters become one unknown token */
    bool ignore_merges;   /* a word that is a token becomes it without merging */
    int32_t unk;          /* -1: unknown characters vanish */
    atomic_uchar *whole;  /* per token: 0 not tried yet, 1 the word equal to its key encodes to it, 2 it does not */
} op_bpe;

/* Set up: keys and the flags above are filled by the caller, then op_bpe_init, then op_bpe_merge in order of rank. */
op_status op_bpe_init(op_bpe *b, size_t n_merges);
op_status op_bpe_resize(op_bpe *b, size_t n_merges); /* forgets all merges and makes room for n */
void op_bpe_index(op_bpe *b, int32_t id); /* words may equal this token's key */
void op_bpe_merge(op_bpe *b, int32_t left, int32_t right, int32_t id, uint32_t rank);
void op_bpe_release(op_bpe *b);

/* All merges in order of rank, in a new block (op_free). */
op_status op_bpe_merges(const op_bpe *b, op_merge_slot **out, size_t *n);

/* Appends the tokens of one word, offsets counted from `base`. */
op_status op_bpe_word(const op_bpe *b, const char *word, size_t n, uint32_t base, op_tokens *out);

op_status op_tokens_reserve(op_tokens *t, size_t more);

#endif
