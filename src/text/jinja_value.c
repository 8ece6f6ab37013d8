#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "base/mem.h"
#include "text/jinja.h"
#include "text/unicode.h"

struct pool_chunk {
    pool_chunk *next;
    size_t size, used;
    _Alignas(16) unsigned char data[];
};

void *op_pool_alloc(pool *p, size_t bytes)
{
    if (bytes > p->max || p->used > p->max - bytes)
        return NULL;
    bytes = (bytes + 15) / 16 * 16;
    pool_chunk *c = p->chunks;
    if (!c || c->size - c->used < bytes) {
        size_t size = p->used < 8192 ? 8192 : p->used < ((size_t)1 << 20) ? p->used : (size_t)1 << 20;
        size = bytes > size ? bytes : size;
        if (!(c = op_alloc(sizeof *c + size)))
            return NULL;
        c->next = p->chunks;
        c->size = size;
        c->used = 0;
        p->chunks = c;
    }
    void *at = c->data + c->used;
    c->used += bytes;
    p->used += bytes;
    return at;
}

void op_pool_release(pool *p)
{
    while (p->chunks) {
        pool_chunk *next = p->chunks->next;
        op_free(p->chunks);
        p->chunks = next;
    }
    p->used = 0;
}

value op_jinja_fail(jinja *j, int line, op_status s, const char *format, ...)
{
    if (!j->status) {
        char message[OP_ERROR_MAX];
        va_list args;
        va_start(args, format);
        vsnprintf(message, sizeof message, format, args);
        va_end(args);
        j->status = line ? op_error_set(j->e, s, "chat template, line %d: %s", line, message)
                         : op_error_set(j->e, s, "chat template: %s", message);
    }
    return (value){.kind = V_UNDEFINED, .s = {"", 0}};
}

void *op_jinja_alloc(jinja *j, size_t bytes)
{
    void *p = j->status ? NULL : op_pool_alloc(j->pool, bytes);
    if (!p)
        op_jinja_fail(j, 0, OP_ERR_NOMEM, "out of memory, or more than %zu bytes of values", j->pool->max);
    return p;
}

bool op_text_is(text t, const char *s)
{
    return t.n == strlen(s) && memcmp(t.s, s, t.n) == 0;
}

static bool same_text(text a, text b)
{
    return a.n == b.n && memcmp(a.s, b.s, a.n) == 0;
}

value op_value_none(void)
{
    return (value){.kind = V_NONE};
}

value op_value_bool(bool b)
{
    return (value){.kind = V_BOOL, .b = b};
}

value op_value_int(int64_t i)
{
    return (value){.kind = V_INT, .i = i};
}

value op_value_float(double f)
{
    return (value){.kind = V_FLOAT, .f = f};
}

value op_value_string(const char *s, size_t n)
{
    return (value){.kind = V_STRING, .s = {s, n}};
}

value op_value_undefined(text name)
{
    return (value){.kind = V_UNDEFINED, .s = name};
}

value op_value_copy_string(jinja *j, const char *s, size_t n)
{
    char *copy = op_jinja_alloc(j, n + 1);
    if (!copy)
        return op_value_string("", 0);
    memcpy(copy, s, n);
    copy[n] = 0;
    return op_value_string(copy, n);
}

static list no_items;
static dict no_pairs;

value op_value_list(jinja *j, size_t cap)
{
    list *l = op_jinja_alloc(j, sizeof *l);
    if (!l)
        return (value){.kind = V_LIST, .list = &no_items};
    *l = (list){.cap = cap, .items = cap ? op_jinja_alloc(j, cap * sizeof(value)) : NULL};
    if (!l->items)
        l->cap = 0;
    return (value){.kind = V_LIST, .list = l};
}

value op_value_dict(jinja *j, value_kind kind)
{
    dict *d = op_jinja_alloc(j, sizeof *d);
    if (d)
        *d = (dict){0};
    return (value){.kind = kind, .dict = d ? d : &no_pairs};
}

/* Room for one more of `width` values; false: an error is set. */
static bool grow(jinja *j, value **items, size_t n, size_t *cap, size_t width)
{
    if (n < *cap)
        return true;
    size_t more = *cap ? 2 * *cap : 4;
    value *copy = op_jinja_alloc(j, more * width * sizeof *copy);
    if (!copy)
        return false;
    if (n)
        memcpy(copy, *items, n * width * sizeof *copy);
    *items = copy;
    *cap = more;
    return true;
}

void op_list_add(jinja *j, list *l, value v)
{
    if (!j->status && grow(j, &l->items, l->n, &l->cap, 1))
        l->items[l->n++] = v;
}

const value *op_dict_get(const dict *d, value key)
{
    for (size_t i = 0; i < d->n; i++)
        if (op_value_equal(d->pairs[2 * i], key))
            return &d->pairs[2 * i + 1];
    return NULL;
}

const value *op_dict_get_name(const dict *d, text name)
{
    for (size_t i = 0; i < d->n; i++)
        if (d->pairs[2 * i].kind == V_STRING && same_text(d->pairs[2 * i].s, name))
            return &d->pairs[2 * i + 1];
    return NULL;
}

void op_dict_set(jinja *j, dict *d, value key, value v)
{
    value *old = (value *)(uintptr_t)op_dict_get(d, key);
    if (old) {
        *old = v;
    } else if (!j->status && grow(j, &d->pairs, d->n, &d->cap, 2)) {
        d->pairs[2 * d->n] = key;
        d->pairs[2 * d->n++ + 1] = v;
    }
}

/* Strings are borrowed from the JSON, which must outlive the rendering. Depth is bounded by the JSON reader's. */
value op_value_from_json(jinja *j, const json_t *x)
{
    value v;
    size_t i;
    const char *key;
    json_t *item;
    if (j->status || ++j->depth > JINJA_DEPTH_MAX)
        return op_jinja_fail(j, 0, OP_ERR_UNSUPPORTED, "variables nested deeper than %d", JINJA_DEPTH_MAX);
    switch (json_typeof(x)) {
    case JSON_OBJECT:
        v = op_value_dict(j, V_DICT);
        json_object_foreach((json_t *)(uintptr_t)x, key, item) {
            value child = op_value_from_json(j, item);
            if (!j->status && grow(j, &v.dict->pairs, v.dict->n, &v.dict->cap, 2)) {
                v.dict->pairs[2 * v.dict->n] = op_value_string(key, strlen(key));
                v.dict->pairs[2 * v.dict->n++ + 1] = child;
            }
        }
        break;
    case JSON_ARRAY:
        v = op_value_list(j, json_array_size(x));
        json_array_foreach(x, i, item)
            op_list_add(j, v.list, op_value_from_json(j, item));
        break;
    case JSON_STRING: v = op_value_string(json_string_value(x), json_string_length(x)); break;
    case JSON_INTEGER: v = op_value_int(json_integer_value(x)); break;
    case JSON_REAL: v = op_value_float(json_real_value(x)); break;
    case JSON_NULL: v = op_value_none(); break;
    default: v = op_value_bool(json_is_true(x)); break;
    }
    j->depth--;
    return v;
}

bool op_value_is_true(value v)
{
    switch (v.kind) {
    case V_UNDEFINED:
    case V_NONE: return false;
    case V_BOOL: return v.b;
    case V_INT: return v.i != 0;
    case V_FLOAT: return v.f != 0;
    case V_STRING: return v.s.n != 0;
    case V_LIST: return v.list->n || v.list->lazy;
    case V_DICT: return v.dict->n;
    default: return true;
    }
}

bool op_value_is_number(value v)
{
    return v.kind == V_BOOL || v.kind == V_INT || v.kind == V_FLOAT;
}

double op_value_number(value v)
{
    return v.kind == V_FLOAT ? v.f : v.kind == V_BOOL ? v.b : (double)v.i;
}

bool op_value_equal(value a, value b)
{
    if (op_value_is_number(a) && op_value_is_number(b)) {
        if (a.kind == V_FLOAT || b.kind == V_FLOAT)
            return op_value_number(a) == op_value_number(b);
        return (a.kind == V_BOOL ? a.b : a.i) == (b.kind == V_BOOL ? b.b : b.i);
    }
    if (a.kind != b.kind)
        return false;
    switch (a.kind) {
    case V_STRING: return same_text(a.s, b.s);
    case V_LIST:
        if (a.list->n != b.list->n || a.list->tuple != b.list->tuple)
            return false;
        for (size_t i = 0; i < a.list->n; i++)
            if (!op_value_equal(a.list->items[i], b.list->items[i]))
                return false;
        return true;
    case V_DICT:
        if (a.dict->n != b.dict->n)
            return false;
        for (size_t i = 0; i < a.dict->n; i++) {
            const value *other = op_dict_get(b.dict, a.dict->pairs[2 * i]);
            if (!other || !op_value_equal(a.dict->pairs[2 * i + 1], *other))
                return false;
        }
        return true;
    case V_UNDEFINED:
    case V_NONE: return true;
    case V_NAMESPACE: return a.dict == b.dict;
    case V_FUNCTION: return same_text(a.s, b.s);
    default: return a.macro == b.macro;
    }
}

int op_value_compare(jinja *j, int line, value a, value b)
{
    if (op_value_is_number(a) && op_value_is_number(b)) {
        if (a.kind == V_INT && b.kind == V_INT)
            return (a.i > b.i) - (a.i < b.i);
        double x = op_value_number(a), y = op_value_number(b);
        return (x > y) - (x < y);
    }
    if (a.kind == V_STRING && b.kind == V_STRING) {
        int order = memcmp(a.s.s, b.s.s, a.s.n < b.s.n ? a.s.n : b.s.n);
        return order ? order : (a.s.n > b.s.n) - (a.s.n < b.s.n);
    }
    if (a.kind == V_LIST && b.kind == V_LIST) {
        for (size_t i = 0; i < a.list->n && i < b.list->n; i++)
            if (!op_value_equal(a.list->items[i], b.list->items[i]))
                return op_value_compare(j, line, a.list->items[i], b.list->items[i]);
        return (a.list->n > b.list->n) - (a.list->n < b.list->n);
    }
    op_jinja_fail(j, line, OP_ERR_ARG, "%s and %s have no order", op_value_kind_name(a), op_value_kind_name(b));
    return 0;
}

const char *op_value_kind_name(value v)
{
    static const char *const names[] = {"Undefined", "NoneType",  "bool",        "int",   "float",    "str",   "list",
                                        "dict",      "Namespace", "LoopContext", "Macro", "function", "method"};
    return names[v.kind];
}

static void add(jinja *j, op_buf *out, const char *s, size_t n)
{
    if (!j->status && op_buf_add(out, s, n))
        op_jinja_fail(j, 0, OP_ERR_NOMEM, "out of memory, or more than %zu bytes of output", out->max);
}

static void puts_(jinja *j, op_buf *out, const char *s)
{
    add(j, out, s, strlen(s));
}

/* As Python writes floats: the shortest digits that read back the same, exponents from 1e16 and below 1e-4. */
static void print_float(jinja *j, op_buf *out, double f, bool json)
{
    char digits[40], written[64];
    if (isnan(f) || isinf(f)) {
        puts_(j, out, isnan(f) ? (json ? "NaN" : "nan") : json ? (f > 0 ? "Infinity" : "-Infinity") : f > 0 ? "inf" : "-inf");
        return;
    }
    int precision = 0;
    do
        snprintf(digits, sizeof digits, "%.*e", precision, f);
    while (strtod(digits, NULL) != f && ++precision < 18);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent >= 16 || exponent < -4) {
        *strchr(digits, 'e') = 0;
        snprintf(written, sizeof written, "%se%c%02d", digits, exponent < 0 ? '-' : '+', abs(exponent));
    } else {
        int decimals = precision - exponent;
        snprintf(written, sizeof written, "%.*f", decimals > 1 ? decimals : 1, f);
    }
    puts_(j, out, written);
}

static bool printable(uint32_t c)
{
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return c == ' ' || !(k == UTF8PROC_CATEGORY_CN || k == UTF8PROC_CATEGORY_CC || k == UTF8PROC_CATEGORY_CF ||
                         k == UTF8PROC_CATEGORY_CS || k == UTF8PROC_CATEGORY_CO || k == UTF8PROC_CATEGORY_ZL ||
                         k == UTF8PROC_CATEGORY_ZP || k == UTF8PROC_CATEGORY_ZS);
}

static void print_repr_string(jinja *j, op_buf *out, text t)
{
    char quote = memchr(t.s, '\'', t.n) && !memchr(t.s, '"', t.n) ? '"' : '\'', escaped[16];
    add(j, out, &quote, 1);
    for (size_t i = 0, step; i < t.n && !j->status; i += step) {
        step = op_utf8_length((unsigned char)t.s[i]);
        uint32_t c = op_utf8_get(t.s + i);
        const char *short_form = c == '\n' ? "\\n" : c == '\r' ? "\\r" : c == '\t' ? "\\t" : c == '\\' ? "\\\\" : NULL;
        if (short_form)
            puts_(j, out, short_form);
        else if (c == (uint32_t)quote)
            add(j, out, (char[]){'\\', quote}, 2);
        else if (printable(c))
            add(j, out, t.s + i, step);
        else {
            snprintf(escaped, sizeof escaped, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
            puts_(j, out, escaped);
        }
    }
    add(j, out, &quote, 1);
}

static void print(jinja *j, op_buf *out, value v, bool repr)
{
    char number[32];
    if (j->status)
        return;
    if (++j->depth > JINJA_EVAL_MAX) {
        op_jinja_fail(j, 0, OP_ERR_UNSUPPORTED, "a value nested too deep to print");
        return;
    }
    switch (v.kind) {
    case V_UNDEFINED:
        if (repr)
            puts_(j, out, "Undefined");
        break;
    case V_NONE: puts_(j, out, "None"); break;
    case V_BOOL: puts_(j, out, v.b ? "True" : "False"); break;
    case V_INT:
        snprintf(number, sizeof number, "%lld", (long long)v.i);
        puts_(j, out, number);
        break;
    case V_FLOAT: print_float(j, out, v.f, false); break;
    case V_STRING:
        if (repr)
            print_repr_string(j, out, v.s);
        else
            add(j, out, v.s.s, v.s.n);
        break;
    case V_LIST:
        puts_(j, out, v.list->tuple ? "(" : "[");
        for (size_t i = 0; i < v.list->n; i++) {
            if (i)
                puts_(j, out, ", ");
            print(j, out, v.list->items[i], true);
        }
        puts_(j, out, v.list->tuple ? (v.list->n == 1 ? ",)" : ")") : "]");
        break;
    case V_DICT:
    case V_NAMESPACE:
        puts_(j, out, v.kind == V_DICT ? "{" : "<Namespace {");
        for (size_t i = 0; i < v.dict->n; i++) {
            if (i)
                puts_(j, out, ", ");
            print(j, out, v.dict->pairs[2 * i], true);
            puts_(j, out, ": ");
            print(j, out, v.dict->pairs[2 * i + 1], true);
        }
        puts_(j, out, v.kind == V_DICT ? "}" : "}>");
        break;
    default: op_jinja_fail(j, 0, OP_ERR_UNSUPPORTED, "a %s cannot be printed", op_value_kind_name(v));
    }
    j->depth--;
}

void op_value_print(jinja *j, op_buf *out, value v)
{
    print(j, out, v, false);
}

text op_value_text(jinja *j, value v)
{
    if (v.kind == V_STRING)
        return v.s;
    op_buf b;
    op_buf_init(&b, j->pool->max);
    print(j, &b, v, false);
    value copy = op_value_copy_string(j, b.data ? b.data : "", b.len);
    op_buf_release(&b);
    return copy.s;
}

static void json_string_(jinja *j, op_buf *out, text t, bool ascii)
{
    char escaped[16];
    puts_(j, out, "\"");
    for (size_t i = 0, step; i < t.n && !j->status; i += step) {
        step = op_utf8_length((unsigned char)t.s[i]);
        uint32_t c = op_utf8_get(t.s + i);
        const char *names = "\"\\\n\r\t\b\f", *letters = "\"\\nrtbf", *known = c && c < 0x80 ? strchr(names, (int)c) : NULL;
        if (known) {
            add(j, out, (char[]){'\\', letters[known - names]}, 2);
        } else if (c >= 0x10000 && ascii) {
            snprintf(escaped, sizeof escaped, "\\u%04x\\u%04x", 0xd800 + ((c - 0x10000) >> 10), 0xdc00 + ((c - 0x10000) & 0x3ff));
            puts_(j, out, escaped);
        } else if (c < 0x20 || (c >= 0x7f && ascii)) {
            snprintf(escaped, sizeof escaped, "\\u%04x", c);
            puts_(j, out, escaped);
        } else {
            add(j, out, t.s + i, step);
        }
    }
    puts_(j, out, "\"");
}

static void json_line(jinja *j, op_buf *out, const json_style *style, int level)
{
    if (style->indent < 0)
        return;
    puts_(j, out, "\n");
    for (int i = 0; i < style->indent * level && !j->status; i++)
        puts_(j, out, " ");
}

static int by_key(const void *a, const void *b)
{
    const value *x = a, *y = b;
    int order = memcmp(x->s.s, y->s.s, x->s.n < y->s.n ? x->s.n : y->s.n);
    return order ? order : (x->s.n > y->s.n) - (x->s.n < y->s.n);
}

/* The pairs in order of key, with keys as strings. */
static const value *sorted_pairs(jinja *j, const dict *d)
{
    value *pairs = op_jinja_alloc(j, (2 * d->n + 1) * sizeof *pairs);
    if (!pairs)
        return d->pairs;
    memcpy(pairs, d->pairs, 2 * d->n * sizeof *pairs);
    for (size_t i = 0; i < d->n; i++)
        if (pairs[2 * i].kind != V_STRING)
            return d->pairs;
    qsort(pairs, d->n, 2 * sizeof *pairs, by_key);
    return pairs;
}

void op_value_to_json(jinja *j, int line, op_buf *out, value v, const json_style *style, int level)
{
    char number[32];
    const value *pairs;
    if (j->status)
        return;
    if (level > JINJA_DEPTH_MAX) {
        op_jinja_fail(j, line, OP_ERR_UNSUPPORTED, "a value nested too deep for JSON");
        return;
    }
    switch (v.kind) {
    case V_NONE: puts_(j, out, "null"); return;
    case V_BOOL: puts_(j, out, v.b ? "true" : "false"); return;
    case V_INT:
        snprintf(number, sizeof number, "%lld", (long long)v.i);
        puts_(j, out, number);
        return;
    case V_FLOAT: print_float(j, out, v.f, true); return;
    case V_STRING: json_string_(j, out, v.s, style->ascii); return;
    case V_LIST:
        puts_(j, out, "[");
        for (size_t i = 0; i < v.list->n; i++) {
            if (i)
                add(j, out, style->item_separator.s, style->item_separator.n);
            json_line(j, out, style, level + 1);
            op_value_to_json(j, line, out, v.list->items[i], style, level + 1);
        }
        if (v.list->n)
            json_line(j, out, style, level);
        puts_(j, out, "]");
        return;
    case V_DICT:
        pairs = style->sort ? sorted_pairs(j, v.dict) : v.dict->pairs;
        puts_(j, out, "{");
        for (size_t i = 0; i < v.dict->n; i++) {
            if (i)
                add(j, out, style->item_separator.s, style->item_separator.n);
            json_line(j, out, style, level + 1);
            value key = pairs[2 * i];
            if (key.kind == V_STRING) {
                json_string_(j, out, key.s, style->ascii);
            } else {
                puts_(j, out, "\"");
                op_value_to_json(j, line, out, key, style, level + 1);
                puts_(j, out, "\"");
            }
            add(j, out, style->key_separator.s, style->key_separator.n);
            op_value_to_json(j, line, out, pairs[2 * i + 1], style, level + 1);
        }
        if (v.dict->n)
            json_line(j, out, style, level);
        puts_(j, out, "}");
        return;
    default: op_jinja_fail(j, line, OP_ERR_ARG, "a value of type %s cannot become JSON", op_value_kind_name(v));
    }
}

list *op_value_items(jinja *j, int line, value v)
{
    value out;
    switch (v.kind) {
    case V_LIST: return v.list;
    case V_UNDEFINED: return &no_items;
    case V_STRING:
        out = op_value_list(j, 0);
        for (size_t i = 0, step; i < v.s.n && !j->status; i += step) {
            step = op_utf8_length((unsigned char)v.s.s[i]);
            op_list_add(j, out.list, op_value_string(v.s.s + i, step));
        }
        return out.list;
    case V_DICT:
        out = op_value_list(j, v.dict->n);
        for (size_t i = 0; i < v.dict->n; i++)
            op_list_add(j, out.list, v.dict->pairs[2 * i]);
        return out.list;
    default:
        op_jinja_fail(j, line, OP_ERR_ARG, "a value of type %s cannot be looped over", op_value_kind_name(v));
        return &no_items;
    }
}
