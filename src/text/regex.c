#include "text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#include <operant/buf.h>

#include "base/mem.h"

enum { PATTERN_MAX = 1 << 16, STEPS_MAX = 1 << 20, STACK_MAX = 1 << 20 };

static void *get_memory(PCRE2_SIZE n, void *ctx)
{
    (void)ctx;
    return op_alloc(n);
}

static void free_memory(void *p, void *ctx)
{
    (void)ctx;
    op_free(p);
}

/* ---- Ruby's syntax to Perl's ---- */

/* Oniguruma's word characters are letters, marks, digits and connectors; PCRE2's have no marks. */
#define WORD "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}"
#define HEX "0-9a-fA-F"

typedef struct scan {
    const char *at;  /* the rest of the pattern */
    bool in_class;
    op_buf out;
    const char *why; /* what is not supported */
} scan;

static op_status escape(scan *x)
{
    char c = x->at[1];
    const char *set = c == 'w' || c == 'W' ? WORD : c == 'h' || c == 'H' ? HEX : NULL;
    bool negative = c == 'W' || c == 'H';
    if (!c || strchr("bBCEGKQ", c) || (x->in_class && negative)) {
        x->why = c ? "an escape that PCRE2 reads otherwise" : "a backslash at the end";
        return OP_OK;
    }
    op_status s = OP_OK;
    if (!set)
        s = op_buf_add(&x->out, x->at, 2);
    else if (x->in_class)
        s = op_buf_puts(&x->out, set);
    else if (!(s = op_buf_puts(&x->out, negative ? "[^" : "[")) && !(s = op_buf_puts(&x->out, set)))
        s = op_buf_puts(&x->out, "]");
    x->at += 2;
    return s;
}

/* Is s at "{...}+", which repeats the repetition in Ruby and makes it possessive in Perl, or at "{,n}"? */
static bool is_odd_count(const char *s)
{
    const char *end = s + 1 + strspn(s + 1, "0123456789,");
    return *s == '{' && *end == '}' && (s[1] == ',' || end[1] == '+');
}

static op_status translate(scan *x)
{
    op_status s = OP_OK;
    const char *opened = NULL; /* where a class's first character may stand */
    while (!s && !x->why && *x->at) {
        char c = *x->at;
        if (c == '\\') {
            s = escape(x);
            continue;
        }
        if (x->in_class && (c == '[' || (c == '&' && x->at[1] == '&')))
            x->why = c == '[' ? "a class within a class" : "&& in a class";
        else if (!x->in_class && is_odd_count(x->at))
            x->why = x->at[1] == ',' ? "{,n}" : "{n}+";
        else if (!x->in_class && !strncmp(x->at, "(?", 2) && memchr(x->at + 2, 'm', strspn(x->at + 2, "aimsux-")))
            x->why = "(?m)";
        if (!x->in_class && c == '[') {
            x->in_class = true;
            opened = x->at + 1 + (x->at[1] == '^');
        } else if (x->in_class && c == ']' && x->at != opened) {
            x->in_class = false;
        }
        s = op_buf_add(&x->out, x->at++, 1);
    }
    return s;
}

/* ---- compiling ---- */

static pcre2_code *compile(const char *pattern, size_t n, uint32_t options, int *code, PCRE2_SIZE *offset)
{
    pcre2_general_context *memory = pcre2_general_context_create(get_memory, free_memory, NULL);
    pcre2_compile_context *how = memory ? pcre2_compile_context_create(memory) : NULL;
    pcre2_code *made = NULL;
    *code = PCRE2_ERROR_NOMEMORY;
    if (how && !pcre2_set_newline(how, PCRE2_NEWLINE_LF))
        made = pcre2_compile((PCRE2_SPTR)pattern, n, options, code, offset, how);
    if (made)
        pcre2_jit_compile(made, PCRE2_JIT_COMPLETE); /* without it patterns run the same, slower */
    pcre2_compile_context_free(how);
    pcre2_general_context_free(memory);
    return made;
}

op_status op_regex_new(op_regex **out, const char *pattern, bool literal, const char *name, op_error *e)
{
    scan x = {.at = pattern};
    int code = 0;
    PCRE2_SIZE offset = 0;
    *out = NULL;
    op_buf_init(&x.out, PATTERN_MAX);
    op_status s = literal ? op_buf_puts(&x.out, pattern) : translate(&x);
    if (!s && x.why)
        s = op_error_set(e, OP_ERR_UNSUPPORTED, "%s: the pre-tokenizer's expression '%.200s' has %s, which is not supported", name, pattern, x.why);
    else if (s)
        s = op_error_set(e, s, "%s: the pre-tokenizer's expression is too long, or memory is out", name);
    /* Ruby's ^ and $ are those of lines */
    uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE);
    if (!s)
        *out = (op_regex *)compile(x.out.data ? x.out.data : "", x.out.len, options, &code, &offset);
    op_buf_release(&x.out);
    if (s || *out)
        return s;
    if (code == PCRE2_ERROR_NOMEMORY || code == PCRE2_ERROR_HEAP_FAILED)
        return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory for the pre-tokenizer's expression", name);
    char why[120];
    pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
    return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: the pre-tokenizer's expression '%.200s': %s", name, pattern, why);
}

void op_regex_free(op_regex *r)
{
    pcre2_code_free((pcre2_code *)r);
}

/* ---- matching ---- */

static bool make_room(op_regex_room *room)
{
    pcre2_general_context *memory = pcre2_general_context_create(get_memory, free_memory, NULL);
    if (memory) {
        room->match = pcre2_match_data_create(1, memory);
        room->how = pcre2_match_context_create(memory);
        room->stack = pcre2_jit_stack_create(1 << 15, STACK_MAX, memory);
    }
    pcre2_general_context_free(memory);
    if (!room->match || !room->how || !room->stack)
        return false;
    pcre2_set_match_limit(room->how, STEPS_MAX);
    pcre2_jit_stack_assign(room->how, NULL, room->stack);
    return true;
}

void op_regex_room_release(op_regex_room *room)
{
    pcre2_match_data_free(room->match);
    pcre2_match_context_free(room->how);
    pcre2_jit_stack_free(room->stack);
    *room = (op_regex_room){0};
}

op_status op_regex_find(const op_regex *r, op_regex_room *room, const char *s, size_t n, size_t from, bool *found, size_t *begin, size_t *end,
                        op_error *e)
{
    if (!room->match && !make_room(room)) {
        op_regex_room_release(room);
        return OP_ERR_NOMEM;
    }
    int rc = pcre2_match((const pcre2_code *)r, (PCRE2_SPTR)s, n, from, PCRE2_NO_UTF_CHECK, room->match, room->how);
    *found = rc >= 0;
    if (rc == PCRE2_ERROR_NOMATCH)
        return OP_OK;
    if (rc < 0) {
        char why[120];
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof why);
        return rc == PCRE2_ERROR_NOMEMORY ? OP_ERR_NOMEM
                                          : op_error_set(e, OP_ERR_FORMAT, "text to encode: the pre-tokenizer's expression on '%.*s': %s",
                                                         (int)(n - from < 40 ? n - from : 40), s + from, why);
    }
    const PCRE2_SIZE *v = pcre2_get_ovector_pointer(room->match);
    *begin = v[0];
    *end = v[1] > v[0] ? v[1] : v[0];
    return OP_OK;
}
