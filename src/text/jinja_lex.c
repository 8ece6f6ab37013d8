#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "text/jinja.h"
#include "text/unicode.h"

typedef struct lexer {
    jinja *j;
    const char *s;
    size_t n, at;
    int line;
    token_list *out;
    bool at_line_start; /* the last thing consumed ended a line */
} lexer;

static void emit(lexer *x, token t)
{
    token_list *out = x->out;
    if (x->j->status)
        return;
    if (out->n == out->cap) {
        size_t cap = out->cap ? 2 * out->cap : 256;
        token *items = op_realloc(out->items, cap * sizeof *items);
        if (!items) {
            op_jinja_fail(x->j, x->line, OP_ERR_NOMEM, "out of memory");
            return;
        }
        out->items = items;
        out->cap = cap;
    }
    out->items[out->n++] = t;
}

static void count_lines(lexer *x, size_t from, size_t to)
{
    for (size_t i = from; i < to; i++)
        x->line += x->s[i] == '\n';
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool is_name(char c, bool first)
{
    return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (!first && c >= '0' && c <= '9') || (c & 0x80);
}

/* Text up to `end` before a tag whose mark is `sign`; lstrip_blocks: spaces before a block tag go if they start the line. */
static void text_before(lexer *x, size_t end, char sign, bool block)
{
    size_t start = x->at, stop = end;
    if (sign == '-') {
        while (stop > start && is_space(x->s[stop - 1]))
            stop--;
    } else if (block && sign != '+') {
        size_t line = stop;
        while (line > start && x->s[line - 1] != '\n' && is_space(x->s[line - 1]))
            line--;
        if (line > start ? x->s[line - 1] == '\n' : x->at_line_start)
            stop = line;
    }
    if (stop > start)
        emit(x, (token){.kind = T_TEXT, .line = x->line, .s = {x->s + start, stop - start}});
    count_lines(x, start, end);
    x->at = end;
}

/* What follows a closing tag: "-" swallows all space, a block's end swallows one line end. */
static void after_tag(lexer *x, char sign, bool block)
{
    size_t start = x->at;
    if (sign == '-')
        while (x->at < x->n && is_space(x->s[x->at]))
            x->at++;
    else if (block && sign != '+' && x->at < x->n && x->s[x->at] == '\n')
        x->at++;
    count_lines(x, start, x->at);
    x->at_line_start = x->at > start && x->s[x->at - 1] == '\n';
}

static char sign_at(const lexer *x, size_t at)
{
    return at < x->n && (x->s[at] == '-' || x->s[at] == '+') ? x->s[at] : 0;
}

/* \uNNNN and its kin; returns how many characters were read after the backslash, SIZE_MAX: wrong digits. */
static size_t escape(const char *s, size_t n, op_buf *out, op_status *status)
{
    static const char names[] = "abfnrtv\\'\"", bytes[] = "\a\b\f\n\r\t\v\\'\"";
    const char *known = s[0] ? strchr(names, s[0]) : NULL;
    size_t digits = s[0] == 'x' ? 2 : s[0] == 'u' ? 4 : s[0] == 'U' ? 8 : 0;
    if (known) {
        *status = op_buf_add(out, &bytes[known - names], 1);
        return 1;
    }
    if (s[0] == '\n')
        return 1;
    uint32_t c = 0;
    size_t i = 0;
    if (digits) {
        for (i = 1; i <= digits && i < n; i++) {
            const char *hex = "0123456789abcdef", *digit = s[i] ? strchr(hex, s[i] | 0x20) : NULL;
            if (!digit || (s[i] < '0'))
                break;
            c = c << 4 | (uint32_t)(digit - hex);
        }
        if (i <= digits || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
            return SIZE_MAX;
    } else if (s[0] >= '0' && s[0] <= '7') {
        for (; i < 3 && i < n && s[i] >= '0' && s[i] <= '7'; i++)
            c = c << 3 | (uint32_t)(s[i] - '0');
    } else {
        *status = op_buf_add(out, "\\", 1);
        return 0;
    }
    char utf8[4];
    *status = op_buf_add(out, utf8, op_utf8_put(c, utf8));
    return i;
}

static void lex_string(lexer *x)
{
    char quote = x->s[x->at];
    size_t start = x->at + 1, end = start;
    bool escaped = false;
    for (; end < x->n && x->s[end] != quote; end++)
        if (x->s[end] == '\\') {
            escaped = true;
            end++;
        }
    if (end >= x->n) {
        op_jinja_fail(x->j, x->line, OP_ERR_FORMAT, "a string is not closed");
        return;
    }
    token t = {.kind = T_STRING, .line = x->line, .s = {x->s + start, end - start}};
    if (escaped) {
        op_buf b;
        op_buf_init(&b, JINJA_SOURCE_MAX * 4);
        op_status s = OP_OK;
        for (size_t i = start; !s && i < end;) {
            if (x->s[i] != '\\') {
                s = op_buf_add(&b, x->s + i++, 1);
                continue;
            }
            size_t read = escape(x->s + i + 1, end - i - 1, &b, &s);
            if (read == SIZE_MAX) {
                op_jinja_fail(x->j, x->line, OP_ERR_FORMAT, "'%.6s' is no escape", x->s + i);
                break;
            }
            i += 1 + read;
        }
        value v = op_value_copy_string(x->j, b.data ? b.data : "", b.len);
        if (s)
            op_jinja_fail(x->j, x->line, s, "out of memory");
        t.s = v.s;
        op_buf_release(&b);
    }
    count_lines(x, x->at, end);
    x->at = end + 1;
    emit(x, t);
}

static void lex_number(lexer *x)
{
    char digits[64];
    size_t n = 0, i = x->at;
    bool is_float = false;
    for (; i < x->n && n + 1 < sizeof digits; i++) {
        char c = x->s[i];
        bool exponent = (c == 'e' || c == 'E') && i + 1 < x->n &&
                        ((x->s[i + 1] >= '0' && x->s[i + 1] <= '9') || x->s[i + 1] == '-' || x->s[i + 1] == '+');
        bool point = c == '.' && !is_float && i + 1 < x->n && x->s[i + 1] >= '0' && x->s[i + 1] <= '9';
        bool sign = (c == '-' || c == '+') && n && (digits[n - 1] == 'e' || digits[n - 1] == 'E');
        if (c == '_')
            continue;
        if (!(c >= '0' && c <= '9') && !exponent && !point && !sign)
            break;
        is_float |= exponent || point;
        digits[n++] = c;
    }
    digits[n] = 0;
    token t = {.kind = is_float ? T_FLOAT : T_INT, .line = x->line, .s = {x->s + x->at, i - x->at}};
    if (is_float)
        t.f = strtod(digits, NULL);
    else if (n > 19 || ((t.i = strtoll(digits, NULL, 10)) == INT64_MAX && strcmp(digits, "9223372036854775807") != 0))
        op_jinja_fail(x->j, x->line, OP_ERR_UNSUPPORTED, "the number %s is too large", digits);
    x->at = i;
    emit(x, t);
}

static void lex_operator(lexer *x)
{
    static const char *const two[] = {"==", "!=", "<=", ">=", "//", "**"};
    size_t n = 0;
    for (size_t k = 0; k < sizeof two / sizeof *two; k++)
        if (x->n - x->at >= 2 && memcmp(x->s + x->at, two[k], 2) == 0)
            n = 2;
    if (!n && strchr("+-*/%~<>=.:|,()[]{}", x->s[x->at]) && x->s[x->at])
        n = 1;
    if (!n) {
        op_jinja_fail(x->j, x->line, OP_ERR_FORMAT, "'%c' does not belong in an expression", x->s[x->at]);
        return;
    }
    emit(x, (token){.kind = T_OP, .line = x->line, .s = {x->s + x->at, n}});
    x->at += n;
}

/* Tokens up to the closing "}}" or "%}". Inside brackets the closing signs are operators. */
static void lex_tag(lexer *x, bool block)
{
    char brackets[JINJA_DEPTH_MAX];
    int depth = 0;
    while (!x->j->status) {
        while (x->at < x->n && is_space(x->s[x->at]))
            x->line += x->s[x->at++] == '\n';
        if (x->at >= x->n) {
            op_jinja_fail(x->j, x->line, OP_ERR_FORMAT, "a tag is not closed with '%s'", block ? "%}" : "}}");
            return;
        }
        char c = x->s[x->at], sign = sign_at(x, x->at);
        size_t close = x->at + (sign == '-' || (sign == '+' && block));
        if (!depth && x->n - close >= 2 && x->s[close] == (block ? '%' : '}') && x->s[close + 1] == '}') {
            emit(x, (token){.kind = block ? T_BLOCK_END : T_PRINT_END, .line = x->line, .s = {x->s + close, 2}});
            x->at = close + 2;
            after_tag(x, sign, block);
            return;
        }
        if (is_name(c, true)) {
            size_t start = x->at;
            while (x->at < x->n && is_name(x->s[x->at], false))
                x->at++;
            emit(x, (token){.kind = T_NAME, .line = x->line, .s = {x->s + start, x->at - start}});
        } else if (c >= '0' && c <= '9') {
            lex_number(x);
        } else if (c == '\'' || c == '"') {
            lex_string(x);
        } else {
            if (strchr("([{", c) && c) {
                if (depth == JINJA_DEPTH_MAX) {
                    op_jinja_fail(x->j, x->line, OP_ERR_UNSUPPORTED, "brackets nested deeper than %d", JINJA_DEPTH_MAX);
                    return;
                }
                brackets[depth++] = c;
            } else if (strchr(")]}", c) && c) {
                char open = c == ')' ? '(' : c == ']' ? '[' : '{';
                if (!depth || brackets[--depth] != open) {
                    op_jinja_fail(x->j, x->line, OP_ERR_FORMAT, "'%c' closes nothing", c);
                    return;
                }
            }
            lex_operator(x);
        }
    }
}

/* {% raw %} ... {% endraw %}: x->at is after "{%" and its sign; false: this is another block. */
static bool lex_raw(lexer *x)
{
    size_t i = x->at;
    while (i < x->n && is_space(x->s[i]))
        i++;
    if (x->n - i < 3 || memcmp(x->s + i, "raw", 3) != 0)
        return false;
    i += 3;
    while (i < x->n && is_space(x->s[i]))
        i++;
    char sign = sign_at(x, i);
    i += sign != 0;
    if (x->n - i < 2 || memcmp(x->s + i, "%}", 2) != 0)
        return false;
    count_lines(x, x->at, i);
    x->at = i + 2;
    after_tag(x, sign, false); /* trim_blocks leaves what is raw alone */
    for (size_t k = x->at; k + 2 <= x->n; k++) {
        if (memcmp(x->s + k, "{%", 2) != 0)
            continue;
        char before = sign_at(x, k + 2);
        size_t e = k + 2 + (before != 0);
        while (e < x->n && is_space(x->s[e]))
            e++;
        if (x->n - e < 6 || memcmp(x->s + e, "endraw", 6) != 0)
            continue;
        e += 6;
        while (e < x->n && is_space(x->s[e]))
            e++;
        char after = sign_at(x, e);
        e += after != 0;
        if (x->n - e < 2 || memcmp(x->s + e, "%}", 2) != 0)
            continue;
        text_before(x, k, before, true);
        count_lines(x, k, e);
        x->at = e + 2;
        after_tag(x, after, true);
        return true;
    }
    op_jinja_fail(x->j, x->line, OP_ERR_FORMAT, "'raw' is not closed with 'endraw'");
    return true;
}

void op_jinja_lex(jinja *j, const char *source, size_t n, token_list *out)
{
    lexer x = {.j = j, .s = source, .n = n, .line = 1, .out = out, .at_line_start = true};
    if (x.n && x.s[x.n - 1] == '\n')
        x.n--; /* one line end at the very end does not count */
    while (x.at < x.n && !j->status) {
        size_t tag = x.at;
        while (tag < x.n && !(x.s[tag] == '{' && tag + 1 < x.n && strchr("{%#", x.s[tag + 1]) && x.s[tag + 1]))
            tag++;
        if (tag >= x.n) {
            text_before(&x, x.n, '+', false);
            break;
        }
        char kind = x.s[tag + 1], sign = sign_at(&x, tag + 2);
        if (kind == '{' && sign == '+')
            sign = 0;
        text_before(&x, tag, sign, kind != '{');
        x.at = tag + 2 + (sign != 0);
        if (kind == '#') {
            const char *end = memmem(x.s + x.at, x.n - x.at, "#}", 2);
            if (!end) {
                op_jinja_fail(j, x.line, OP_ERR_FORMAT, "a comment is not closed with '#}'");
                break;
            }
            size_t close = (size_t)(end - x.s);
            char last = close > x.at ? x.s[close - 1] : 0;
            count_lines(&x, x.at, close);
            x.at = close + 2;
            after_tag(&x, last == '-' || last == '+' ? last : 0, true);
        } else if (kind == '{' || !lex_raw(&x)) {
            emit(&x, (token){.kind = kind == '{' ? T_PRINT_BEGIN : T_BLOCK_BEGIN, .line = x.line, .s = {x.s + tag, 2}});
            lex_tag(&x, kind == '%');
        }
    }
    emit(&x, (token){.kind = T_END, .line = x.line, .s = {"", 0}});
}
