/* text/split.h: pre-tokenizers, which cut a text into the words that are merged one by one.
 *
 * The regular expressions of the supported families are scanned by hand: many times faster than any engine. */
#ifndef OP_TEXT_SPLIT_H
#define OP_TEXT_SPLIT_H

#include <stdbool.h>
#include <stddef.h>

#include <operant/status.h>

typedef enum op_split {
    OP_SPLIT_GPT2,   /* ByteLevel's own expression */
    OP_SPLIT_LLAMA3, /* numbers in groups of up to three */
    OP_SPLIT_QWEN2,  /* as Llama-3, but every number on its own */
    OP_SPLIT_TEKKEN, /* Mistral's: a word ends before an upper-case letter that follows a lower-case one */
    OP_SPLIT_DIGITS, /* every numeric character on its own */
    OP_SPLIT_DIGIT_RUNS,
    OP_SPLIT_META,     /* before every U+2581 */
    OP_SPLIT_META_RUN, /* before every run of U+2581 */
    OP_SPLIT_REGEX,         /* any other expression (regex.h): its matches and what lies between them, */
    OP_SPLIT_REGEX_MATCHES, /* the matches alone, */
    OP_SPLIT_REGEX_GAPS,    /* or what lies between them alone */
} op_split;

/* The kind of an expression as tokenizer.json writes it; false: none that is known here. */
bool op_split_from_regex(op_split *out, const char *regex);
const char *op_split_regex(op_split kind); /* NULL: has none */

/* Not for the three of regex.h: end of the piece that starts at `at` (< n) of s[n], valid UTF-8. */
size_t op_split_next(op_split kind, const char *s, size_t at, size_t n);

#endif
