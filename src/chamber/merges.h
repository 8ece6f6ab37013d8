/* chamber/merges.h: a small trainer of byte-level BPE vocabularies (Sennrich, Haddow, Birch: 1508.07909) for a text of few different words. */
#ifndef OP_CHAMBER_MERGES_H
#define OP_CHAMBER_MERGES_H

#include <operant/tokenizer.h>

typedef struct merges merges;

op_status merges_new(merges **out, op_error *e);
void merges_free(merges *m); /* NULL is fine */
op_status merges_add(merges *m, const char *text, op_error *e); /* counts its words */
/* Merges the commonest pair until every word is one token or there are `most` tokens, then makes the tokenizer: bytes, merged tokens, special tokens. */
op_status merges_learn(merges *m, int32_t most, const char *const *special, int32_t n_special, op_tokenizer **out, op_error *e);
/* What a tokenizer.json does not hold. eos and pad are ids. */
op_status merges_dress(op_tokenizer *t, const char *chat_template, int32_t eos, int32_t pad, op_error *e);

#endif
