/* operant/tokenizer.h: text to token ids and back.
 *
 * Byte-level BPE (GPT-2, SmolLM, Qwen2/3, Llama-3) and SentencePiece-style BPE with byte fallback (Llama-2, Mistral), from
 * a tokenizer.json or from GGUF metadata. The ids are those of the reference library `tokenizers`. The families' expressions that cut
 * text into words are scanned by our own code with the reference's Unicode tables; any other expression runs in PCRE2, whose classes are
 * those of the Unicode version it was built with (Debian 12: 14.0), so that characters newer than that may be cut otherwise; one
 * that PCRE2 would read differently is an error when the tokenizer is opened. A tokenizer is
 * immutable after opening and may be used from many threads. Text is UTF-8; invalid bytes are an error. */
#ifndef OPERANT_TOKENIZER_H
#define OPERANT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <operant/buf.h>
#include <operant/status.h>
#include <operant/tensors.h>

typedef struct op_tokenizer op_tokenizer;

/* Opens the tokenizer of a model: a directory with tokenizer.json (and tokenizer_config.json, chat_template.jinja), a
 * tokenizer.json, or a .gguf file. */
op_status op_tokenizer_open(op_tokenizer **out, const char *model_path, op_error *e);
op_status op_tokenizer_from_json(op_tokenizer **out, const char *json, size_t n, const char *name, op_error *e);
op_status op_tokenizer_from_gguf(op_tokenizer **out, const op_tensors *gguf, op_error *e);
void op_tokenizer_free(op_tokenizer *t);

int32_t op_tokenizer_vocab_size(const op_tokenizer *t);
int32_t op_tokenizer_bos(const op_tokenizer *t); /* -1: none; likewise the others */
int32_t op_tokenizer_eos(const op_tokenizer *t);
int32_t op_tokenizer_pad(const op_tokenizer *t);
int32_t op_tokenizer_unk(const op_tokenizer *t);
bool op_tokenizer_is_special(const op_tokenizer *t, int32_t id);
int32_t op_tokenizer_find(const op_tokenizer *t, const char *token); /* an added or special token's text; -1 */
/* The chat template's source, or NULL. */
const char *op_tokenizer_chat_template(const op_tokenizer *t);
/* The bytes of one token (not 0-terminated UTF-8: a token may be part of a character). */
const char *op_tokenizer_bytes(const op_tokenizer *t, int32_t id, size_t *len);

/* A growing list of tokens; ids[i] covers bytes begin[i]..end[i]-1 of the text that was encoded. */
typedef struct op_tokens {
    int32_t *ids;
    uint32_t *begin, *end;
    size_t n, cap;
} op_tokens;

void op_tokens_init(op_tokens *t);
void op_tokens_clear(op_tokens *t);
void op_tokens_release(op_tokens *t);

enum {
    OP_ENCODE_PLAIN = 0,
    OP_ENCODE_SPECIAL = 1, /* special tokens written in the text become their ids: for text that you wrote. What a user wrote is encoded
                              without it, or with op_chat_encode (operant/chat.h), which tells the template's words from the user's */
    OP_ENCODE_AFFIX = 2,   /* add what the post-processor adds (a BOS, say) */
    OP_ENCODE_CONTINUE = 4,    /* the text goes on inside a longer one: nothing is prefixed to it (Llama-2's first space) */
    OP_ENCODE_AFTER_TOKEN = 8, /* the text goes on after an added token of a longer one */
};

/* Appends the tokens of text[n] to *out. */
op_status op_tokenizer_encode(const op_tokenizer *t, const char *text, size_t n, unsigned flags, op_tokens *out,
                              op_error *e);

enum { OP_DECODE_ALL = 0, OP_DECODE_SKIP_SPECIAL = 1 };

/* Appends the text of ids[n]. Bytes that are no UTF-8 become U+FFFD. */
op_status op_tokenizer_decode(const op_tokenizer *t, const int32_t *ids, size_t n, unsigned flags, op_buf *out);

/* Streaming decode: bytes are held back until they complete a code point. Zero-initialise, set `tokenizer`. */
typedef struct op_decoder {
    const op_tokenizer *tokenizer;
    unsigned flags;
    unsigned char held[8];
    int n_held;
    bool started;
} op_decoder;

op_status op_decoder_push(op_decoder *d, int32_t id, op_buf *out);
op_status op_decoder_finish(op_decoder *d, op_buf *out); /* what is left becomes U+FFFD */

/* Writes tokenizer.json (the original bytes when there were any), tokenizer_config.json with chat_template,
 * special_tokens_map.json and chat_template.jinja into an existing directory, so that transformers loads them. */
op_status op_tokenizer_save(const op_tokenizer *t, const char *dir, op_error *e);

#endif
