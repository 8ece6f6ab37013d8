/* The way from bytes to jansson's values. jansson's own lexer is not used because it cannot report that memory is out (it
 * ends in an assertion or reads past its buffer), and because it knows no integers beyond 64 bits. Grammar: RFC 8259. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <operant/buf.h>

#include "base/mem.h"
#include "io/json.h"
#include "io/utf8.h"

typedef struct reader {
    const char *start, *at, *end;
    const char *name;
    op_error *e;
    op_status status;
    op_buf text; /* the string or number at hand */
    int depth;
} reader;

static json_t *fail(reader *r, const char *at, const char *what)
{
    int line = 1;
    for (const char *p = r->start; p < at; p++)
        line += *p == '\n';
    char where[32] = "";
    if (line > 1)
        snprintf(where, sizeof where, "line %d, ", line);
    if (!r->status)
        r->status = op_error_set(r->e, OP_ERR_FORMAT, "%s: %soffset %td: %s", r->name, where, at - r->start, what);
    return NULL;
}

static json_t *no_memory(reader *r)
{
    if (!r->status)
        r->status = op_error_set(r->e, OP_ERR_NOMEM, "%s: out of memory", r->name);
    return NULL;
}

static json_t *made(reader *r, json_t *v)
{
    return v ? v : no_memory(r);
}

static void skip_blanks(reader *r)
{
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\n' || *r->at == '\t' || *r->at == '\r'))
        r->at++;
}

static bool next_is(reader *r, char c)
{
    skip_blanks(r);
    if (r->at == r->end || *r->at != c)
        return false;
    r->at++;
    return true;
}

static json_t *parse_number(reader *r)
{
    const char *begin = r->at;
    bool whole = true;
#define DIGITS()                                                        \
    do {                                                                \
        if (r->at == r->end || *r->at < '0' || *r->at > '9')            \
            return fail(r, r->at, "expected a digit");                  \
        while (r->at < r->end && *r->at >= '0' && *r->at <= '9')        \
            r->at++;                                                    \
    } while (0)
    if (*r->at == '-')
        r->at++;
    if (r->at < r->end && *r->at == '0')
        r->at++;
    else
        DIGITS();
    if (r->at < r->end && *r->at == '.') {
        whole = false;
        r->at++;
        DIGITS();
    }
    if (r->at < r->end && (*r->at == 'e' || *r->at == 'E')) {
        whole = false;
        r->at++;
        if (r->at < r->end && (*r->at == '+' || *r->at == '-'))
            r->at++;
        DIGITS();
    }
#undef DIGITS
    int64_t i = 0; /* downwards, because there is one more negative number */
    for (const char *p = begin + (*begin == '-'); whole && p < r->at; p++)
        whole = !__builtin_mul_overflow(i, 10, &i) && !__builtin_sub_overflow(i, *p - '0', &i);
    if (whole && (*begin == '-' || i != INT64_MIN))
        return made(r, json_integer(*begin == '-' ? i : -i));
    op_buf_clear(&r->text);
    if (op_buf_add(&r->text, begin, (size_t)(r->at - begin)))
        return no_memory(r);
    double d = strtod(r->text.data, NULL);
    return isfinite(d) ? made(r, json_real(d)) : fail(r, begin, "the number is too large");
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Four digits at p, or -1. */
static int hex4(const reader *r, const char *p)
{
    int v = 0;
    if (r->end - p < 4)
        return -1;
    for (int i = 0; i < 4 && v >= 0; i++)
        v = hex_digit(p[i]) < 0 ? -1 : v * 16 + hex_digit(p[i]);
    return v;
}

/* Appends the character of the escape at r->at, which is after the backslash. */
static bool unescape(reader *r)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *begin = r->at - 1, *found = r->at < r->end && *r->at ? strchr(from, *r->at) : NULL;
    unsigned char out[4];
    size_t n = 1;
    if (found) {
        r->at++;
        out[0] = (unsigned char)to[found - from];
    } else {
        int c = r->at < r->end && *r->at == 'u' ? hex4(r, r->at + 1) : -1;
        r->at += c < 0 ? 0 : 5;
        if (c >= 0xd800 && c < 0xdc00) { /* the first half of a surrogate pair */
            bool pair = r->end - r->at >= 6 && r->at[0] == '\\' && r->at[1] == 'u';
            int low = pair ? hex4(r, r->at + 2) : -1;
            c = low >= 0xdc00 && low < 0xe000 ? 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00) : -1;
            r->at += c < 0 ? 0 : 6;
        } else if (c >= 0xdc00 && c < 0xe000) {
            c = -1;
        }
        if (c < 0) {
            fail(r, begin, "not a valid escape");
            return false;
        }
        n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
        static const unsigned char lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
        for (size_t i = n; i-- > 1; c >>= 6)
            out[i] = (unsigned char)(0x80 | (c & 63));
        out[0] = (unsigned char)(lead[n] | c);
    }
    if (op_buf_add(&r->text, out, n))
        no_memory(r);
    return !r->status;
}

/* Reads a string from after its opening quote into *s, *n: a piece of the input, or of r->text if it has escapes. */
static bool parse_text(reader *r, const char **s, size_t *n)
{
    const char *opening = r->at - 1, *piece = r->at; /* piece: what is not yet in r->text */
    op_buf_clear(&r->text);
    bool escaped = false;
    while (r->at < r->end && *r->at != '"') {
        if (*r->at == '\\') {
            escaped = true;
            if (op_buf_add(&r->text, piece, (size_t)(r->at - piece)))
                return no_memory(r); /* NULL is false */
            r->at++;
            if (!unescape(r))
                return false;
            piece = r->at;
            continue;
        }
        size_t length = op_utf8_length(r->at, (size_t)(r->end - r->at));
        if (!length || (unsigned char)*r->at < 0x20) {
            fail(r, r->at, length ? "a control character in a string" : "not UTF-8");
            return false;
        }
        r->at += length;
    }
    if (r->at >= r->end) {
        fail(r, opening, "the string does not end");
        return false;
    }
    if (escaped && op_buf_add(&r->text, piece, (size_t)(r->at - piece)))
        return no_memory(r);
    *s = escaped ? r->text.data : piece;
    *n = escaped ? r->text.len : (size_t)(r->at - piece);
    r->at++;
    return true;
}

static json_t *parse_value(reader *r);

static json_t *parse_array(reader *r)
{
    json_t *array = made(r, json_array());
    if (!array || next_is(r, ']'))
        return array;
    do {
        json_t *v = parse_value(r);
        if (v && json_array_append_new(array, v))
            no_memory(r);
    } while (!r->status && next_is(r, ','));
    if (!r->status && !next_is(r, ']'))
        fail(r, r->at, "expected ',' or ']'");
    if (!r->status)
        return array;
    json_decref(array);
    return NULL;
}

/* Reads "key": value into the object. */
static void parse_member(reader *r, json_t *object)
{
    skip_blanks(r);
    const char *begin = r->at, *s;
    size_t n, before = json_object_size(object);
    if (!next_is(r, '"')) {
        fail(r, r->at, "expected a key in quotes");
        return;
    }
    if (!parse_text(r, &s, &n))
        return;
    if (memchr(s, 0, n)) {
        fail(r, begin, "a key with a 0 byte");
        return;
    }
    char *copy = s == r->text.data ? op_strndup(s, n) : NULL; /* the value will overwrite r->text */
    if (s == r->text.data && !copy) {
        no_memory(r);
        return;
    }
    json_t *v = next_is(r, ':') ? parse_value(r) : fail(r, r->at, "expected ':'");
    if (v && json_object_setn_new_nocheck(object, copy ? copy : s, n, v))
        no_memory(r);
    else if (v && json_object_size(object) == before)
        fail(r, begin, "this key is there twice");
    op_free(copy);
}

static json_t *parse_object(reader *r)
{
    json_t *object = made(r, json_object());
    if (!object || next_is(r, '}'))
        return object;
    do
        parse_member(r, object);
    while (!r->status && next_is(r, ','));
    if (!r->status && !next_is(r, '}'))
        fail(r, r->at, "expected ',' or '}'");
    if (!r->status)
        return object;
    json_decref(object);
    return NULL;
}

static json_t *parse_word(reader *r)
{
    static const char *const words[] = {"true", "false", "null"};
    for (int i = 0; i < 3; i++) {
        size_t n = strlen(words[i]);
        if ((size_t)(r->end - r->at) >= n && !memcmp(r->at, words[i], n)) {
            r->at += n;
            return i == 0 ? json_true() : i == 1 ? json_false() : json_null();
        }
    }
    return fail(r, r->at, "expected a value");
}

static json_t *parse_value(reader *r)
{
    const char *s;
    size_t n;
    json_t *v;
    skip_blanks(r);
    if (r->at == r->end)
        return fail(r, r->at, "expected a value, found the end");
    if (*r->at == '-' || (*r->at >= '0' && *r->at <= '9'))
        return parse_number(r);
    if (next_is(r, '"'))
        return parse_text(r, &s, &n) ? made(r, json_stringn_nocheck(s, n)) : NULL;
    if (*r->at != '[' && *r->at != '{')
        return parse_word(r);
    if (r->depth == OP_JSON_DEPTH_MAX)
        return fail(r, r->at, "nested too deep");
    r->depth++;
    v = next_is(r, '[') ? parse_array(r) : (r->at++, parse_object(r));
    r->depth--;
    return v;
}

op_status op_json_parse(json_t **out, const char *bytes, size_t n, const char *name, op_error *e)
{
    *out = NULL;
    if (n > OP_JSON_BYTES_MAX)
        return op_error_set(e, OP_ERR_FORMAT, "%s: found %zu bytes of JSON, expected at most %zu", name, n,
                            OP_JSON_BYTES_MAX);
    reader r = {.start = bytes, .at = bytes, .end = bytes + n, .name = name, .e = e};
    op_buf_init(&r.text, n);
    *out = parse_value(&r);
    skip_blanks(&r);
    if (!r.status && r.at < r.end)
        fail(&r, r.at, "expected the end");
    op_buf_release(&r.text);
    if (r.status) {
        json_decref(*out);
        *out = NULL;
    }
    return r.status;
}
