/* text/tokenizer_impl.h: what a tokenizer is made of. A reader (tokenizer_json.c, tokenizer_gguf.c) fills the parts and
 * calls op_tokenizer_finish. */
#ifndef OP_TEXT_TOKENIZER_IMPL_H
#define OP_TEXT_TOKENIZER_IMPL_H

#include <jansson.h>

#include <operant/tokenizer.h>

#include "text/bpe.h"
#include "text/normalize.h"
#include "text/regex.h"
#include "text/split.h"

/* A token that is found in the text before anything else happens. */
typedef struct op_added {
    int32_t id;
    bool special, lstrip, rstrip, single_word, normalized;
} op_added;

/* A trie over the contents of added tokens; node 0 is the root. */
typedef struct op_trie_node {
    int32_t child, sibling; /* -1: none */
    int32_t added;          /* index into the added tokens, -1: none ends here */
    unsigned char byte;
} op_trie_node;

typedef struct op_trie {
    op_trie_node *nodes;
    size_t n, cap;
    bool first[256]; /* some content starts with this byte */
} op_trie;

op_status op_trie_add(op_trie *t, const char *content, size_t n, int32_t added);
void op_trie_release(op_trie *t);

#define OP_STEPS_MAX 8
#define OP_AFFIX_MAX 8

struct op_tokenizer {
    op_strings texts; /* every token as the vocabulary writes it */
    op_strings bytes; /* every token as it is decoded */
    op_bpe bpe;
    bool byte_level;  /* keys are bytes behind printable stand-ins */

    op_added *added;
    size_t n_added, added_cap;
    op_trie raw, normalized; /* added tokens found before and after normalisation */
    unsigned char *special;  /* [vocabulary] 0, or one of: */
#define TOKEN_SPECIAL 1      /* added and special */
#define TOKEN_ADDED 2        /* added, plain text to a reader */

    op_normal_step normal[OP_STEPS_MAX]; /* the normalizer ... */
    int n_normal;
    op_normal_step prefix[OP_STEPS_MAX]; /* ... and what the pre-tokenizer does to the text */
    int n_prefix;
    op_split split[OP_STEPS_MAX];
    op_regex *regex[OP_STEPS_MAX]; /* owned, of the steps that are OP_SPLIT_REGEX... */
    int n_split;

    int32_t before[OP_AFFIX_MAX], after[OP_AFFIX_MAX]; /* what OP_ENCODE_AFFIX adds */
    int n_before, n_after;

    /* Decoding: tokens "<0xNN>" are bytes; U+2581 is a space; the first token loses all of them, or the text its first space. */
    bool decode_bytes, decode_meta, strip_first_meta, strip_space;

    int32_t bos, eos, pad, unk;
    char *chat_template; /* owned, or NULL */
    char *json;          /* the tokenizer.json it came from, owned, or NULL */
    size_t json_n;
    json_t *config;      /* the tokenizer_config.json beside it, or NULL */
};

/* An empty tokenizer, or NULL. */
op_tokenizer *op_tokenizer_new(void);

/* Appends an added token whose text is already in texts. */
op_status op_tokenizer_add(op_tokenizer *t, op_added a);

/* From the parts filled so far (texts, flags, steps, added): keys, byte ids, decoded bytes and the tables. in_model[id] says
 * whether a token belongs to the model's vocabulary (NULL: all). op_bpe_merge may be called afterwards. */
op_status op_tokenizer_prepare(op_tokenizer *t, const bool *in_model, size_t n_merges);

/* After the merges: tries of the added tokens. */
op_status op_tokenizer_finish(op_tokenizer *t);

/* Merges in order of rank: strings "a b" or pairs. The index is over texts. */
op_status op_tokenizer_merge(op_tokenizer *t, const op_lookup *texts, const char *left, size_t n_left, const char *right,
                             size_t n_right, uint32_t rank, const char *name, op_error *e);

/* Places of characters that may be part of no special token: at[n], ascending, in a longer text whose byte `base` is the first encoded. */
typedef struct op_plain {
    const uint32_t *at;
    size_t n;
    uint32_t base;
} op_plain;
op_status op_tokenizer_encode_plain(const op_tokenizer *t, const char *text, size_t n, unsigned flags, op_plain plain, op_tokens *out,
                                    op_error *e);

/* Does s[n] begin with the text of a special token, or is it the beginning of one? */
bool op_tokenizer_begins_special(const op_tokenizer *t, const char *s, size_t n);

/* What llama.cpp calls a family of byte-level vocabularies, and how it cuts text. */
typedef struct op_family {
    const char *pre; /* tokenizer.ggml.pre; NULL ends the table */
    int n_split;
    op_split split[2];
    bool nfc, ignore_merges, add_bos;
} op_family;
extern const op_family op_families[];

/* GPT-2's printable stand-in for a byte, and back (-1: c stands for none). */
uint32_t op_byte_to_char(unsigned char byte);
int op_char_to_byte(uint32_t c);

#endif
