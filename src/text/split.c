#include "text/split.h"

#include <string.h>

#include "text/unicode.h"

static const char *const expressions[] = {
    [OP_SPLIT_GPT2] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
    [OP_SPLIT_LLAMA3] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
                        "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    [OP_SPLIT_QWEN2] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
                       "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    [OP_SPLIT_TEKKEN] =
        "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
        "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
        "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
};

bool op_split_from_regex(op_split *out, const char *regex)
{
    for (op_split k = OP_SPLIT_GPT2; k <= OP_SPLIT_TEKKEN; k++)
        if (strcmp(regex, expressions[k]) == 0) {
            *out = k;
            return true;
        }
    return false;
}

const char *op_split_regex(op_split kind)
{
    return kind <= OP_SPLIT_TEKKEN ? expressions[kind] : NULL;
}

static inline unsigned class_at(const char *s, size_t at)
{
    unsigned char c = (unsigned char)s[at];
    return c < 0x80 ? op_class(c) : op_class(op_utf8_get(s + at));
}

static inline size_t step(const char *s, size_t at)
{
    return at + op_utf8_length((unsigned char)s[at]);
}

/* End of the run of characters with any bit of `any`, or with none of them. */
static inline size_t run_of(const char *s, size_t at, size_t n, unsigned any)
{
    while (at < n && (class_at(s, at) & any))
        at = step(s, at);
    return at;
}

static inline size_t run_without(const char *s, size_t at, size_t n, unsigned any)
{
    while (at < n && !(class_at(s, at) & any))
        at = step(s, at);
    return at;
}

static inline bool is_newline(char c)
{
    return c == '\n' || c == '\r';
}

/* Length of 's 't 're 've 'm 'll 'd after the apostrophe at s[at], or 0. Ignoring case, U+017F is an s as well. */
static size_t contraction(const char *s, size_t at, size_t n, bool ignore_case)
{
    size_t left = n - at - 1;
    if (left < 1)
        return 0;
    char fold = ignore_case ? 0x20 : 0, a = s[at + 1];
    if (ignore_case && left > 1 && memcmp(s + at + 1, "\xc5\xbf", 2) == 0)
        return 3;
    a = (char)(a | (a >= 'A' && a <= 'Z' ? fold : 0));
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return 2;
    if (left < 2)
        return 0;
    char b = s[at + 2];
    b = (char)(b | (b >= 'A' && b <= 'Z' ? fold : 0));
    return ((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* \s+(?!\S)|\s+ from a space on: the last space of a run belongs to the word that follows. */
static size_t spaces(const char *s, size_t at, size_t n)
{
    size_t end = run_of(s, at, n, OP_SPACE);
    if (end == n)
        return end;
    size_t last = op_utf8_back(s, end);
    return last > at ? last : end;
}

#define WORDLIKE (OP_LETTER | OP_NUMBER)
#define NOT_OTHER (OP_LETTER | OP_NUMBER | OP_SPACE)

static size_t next_gpt2(const char *s, size_t at, size_t n)
{
    size_t length = s[at] == '\'' ? contraction(s, at, n, false) : 0;
    if (length)
        return at + length;
    size_t start = at + (s[at] == ' ' && at + 1 < n);
    unsigned class = class_at(s, start);
    if (class & OP_LETTER)
        return run_of(s, start, n, OP_LETTER);
    if (class & OP_NUMBER)
        return run_of(s, start, n, OP_NUMBER);
    if (!(class & OP_SPACE))
        return run_without(s, start, n, NOT_OTHER);
    return spaces(s, at, n);
}

/* ` ?[^\s\p{L}\p{N}]+[\r\n]*` (with "/" too if slash), `\s*[\r\n]+` and the spaces, which end the newer expressions. */
static size_t next_rest(const char *s, size_t at, size_t n, bool slash)
{
    size_t start = at + (s[at] == ' ' && at + 1 < n);
    if (!(class_at(s, start) & NOT_OTHER)) {
        size_t end = run_without(s, start, n, NOT_OTHER);
        while (end < n && (is_newline(s[end]) || (slash && s[end] == '/')))
            end++;
        return end;
    }
    size_t end = run_of(s, at, n, OP_SPACE);
    for (size_t i = end; i > at; i--)
        if (is_newline(s[i - 1]))
            return i;
    return spaces(s, at, n);
}

static size_t next_llama3(const char *s, size_t at, size_t n, int numbers)
{
    size_t length = s[at] == '\'' ? contraction(s, at, n, true) : 0;
    if (length)
        return at + length;
    unsigned class = class_at(s, at);
    if (class & OP_LETTER)
        return run_of(s, at, n, OP_LETTER);
    if (class & OP_NUMBER) {
        for (; numbers && at < n && (class_at(s, at) & OP_NUMBER); numbers--)
            at = step(s, at);
        return at;
    }
    size_t second = step(s, at);
    if (!is_newline(s[at]) && second < n && (class_at(s, second) & OP_LETTER))
        return run_of(s, second, n, OP_LETTER);
    return next_rest(s, at, n, false);
}

/* `[upper]*[lower]+` from `at`, or `at` if it does not match. Letters without case are both upper and lower. */
static size_t upper_lower(const char *s, size_t at, size_t n)
{
    size_t middle = run_of(s, at, n, OP_UPPER), end = run_of(s, middle, n, OP_LOWER);
    if (end > middle)
        return end;
    while (middle > at) { /* the first part gives back until the second matches */
        size_t last = op_utf8_back(s, middle);
        if (class_at(s, last) & OP_LOWER)
            return middle;
        middle = last;
    }
    return at;
}

/* `[upper]+[lower]*` */
static size_t uppers_lower(const char *s, size_t at, size_t n)
{
    size_t middle = run_of(s, at, n, OP_UPPER);
    return middle == at ? at : run_of(s, middle, n, OP_LOWER);
}

static size_t next_tekken(const char *s, size_t at, size_t n)
{
    unsigned class = class_at(s, at);
    size_t second = !(class & WORDLIKE) && !is_newline(s[at]) ? step(s, at) : at, end;
    if ((end = upper_lower(s, second, n)) > second || (end = upper_lower(s, at, n)) > at ||
        (end = uppers_lower(s, second, n)) > second || (end = uppers_lower(s, at, n)) > at)
        return end;
    if (class & OP_NUMBER)
        return step(s, at);
    return next_rest(s, at, n, true);
}

static bool is_meta(const char *s, size_t at, size_t n)
{
    return n - at >= 3 && memcmp(s + at, "\xe2\x96\x81", 3) == 0;
}

static size_t next_meta(const char *s, size_t at, size_t n, bool runs)
{
    for (size_t i = at; runs && is_meta(s, i, n); i += 3)
        at = i;
    for (at++; at < n && !is_meta(s, at, n); at++)
        ;
    return at;
}

size_t op_split_next(op_split kind, const char *s, size_t at, size_t n)
{
    switch (kind) {
    case OP_SPLIT_GPT2: return next_gpt2(s, at, n);
    case OP_SPLIT_LLAMA3: return next_llama3(s, at, n, 3);
    case OP_SPLIT_QWEN2: return next_llama3(s, at, n, 1);
    case OP_SPLIT_TEKKEN: return next_tekken(s, at, n);
    case OP_SPLIT_DIGITS: return class_at(s, at) & OP_DIGIT ? step(s, at) : run_without(s, at, n, OP_DIGIT);
    case OP_SPLIT_DIGIT_RUNS:
        return class_at(s, at) & OP_DIGIT ? run_of(s, at, n, OP_DIGIT) : run_without(s, at, n, OP_DIGIT);
    case OP_SPLIT_META: return next_meta(s, at, n, false);
    case OP_SPLIT_META_RUN: return next_meta(s, at, n, true);
    default: break;
    }
    return n;
}
