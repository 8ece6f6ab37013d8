/* text/regex.h: the expressions of pre-tokenizers that split.h does not know, run by PCRE2.
 *
 * tokenizer.json writes them for Oniguruma in Ruby's syntax. What PCRE2 reads alike goes to it as it is; \w, \W, \h and \H are rewritten;
 * what it would silently read otherwise is refused: classes within classes, && in a class, word boundaries, (?m), {n}+ and {,n}. */
#ifndef OP_TEXT_REGEX_H
#define OP_TEXT_REGEX_H

#include <stdbool.h>
#include <stddef.h>

#include <operant/status.h>

typedef struct op_regex op_regex;

/* literal: the pattern is a string to be found. OP_ERR_UNSUPPORTED says what PCRE2 cannot read; `name` is the file's. */
op_status op_regex_new(op_regex **out, const char *pattern, bool literal, const char *name, op_error *e);
void op_regex_free(op_regex *r);

/* What matching needs besides: one for each thread at a time. Zero-initialise; op_regex_find makes it. */
typedef struct op_regex_room {
    void *match, *how, *stack;
} op_regex_room;
void op_regex_room_release(op_regex_room *room);

/* The first match in s[n] (valid UTF-8) at or after byte `from`: bytes *begin..*end-1, or *found is false. An expression that needs more
 * than 2^20 steps is OP_ERR_FORMAT. */
op_status op_regex_find(const op_regex *r, op_regex_room *room, const char *s, size_t n, size_t from, bool *found, size_t *begin, size_t *end,
                        op_error *e);

#endif
