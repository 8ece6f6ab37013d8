/* What may follow "|". */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "text/jinja_text.h"

typedef value (*filter_fn)(jinja *j, int line, value v, const list *args, const dict *kwargs);

static value filter_join(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    const value *by = op_jinja_argument(args, kwargs, 0, "d");
    return op_text_join(j, line, op_value_items(j, line, v), by ? op_value_text(j, *by) : (text){"", 0}, op_jinja_argument(args, kwargs, 1, "attribute"));
}

static value filter_tojson(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    const value *ascii = op_jinja_argument(args, kwargs, 0, "ensure_ascii"), *indent = op_jinja_argument(args, kwargs, 1, "indent");
    const value *separators = op_jinja_argument(args, kwargs, 2, "separators"), *sort = op_jinja_argument(args, kwargs, 3, "sort_keys");
    int64_t width = indent && indent->kind != V_NONE ? op_jinja_integer(indent, 0) : -1;
    json_style style = {.indent = width > 64 ? 64 : (int)width, .ascii = ascii && op_value_is_true(*ascii),
                        .sort = sort && op_value_is_true(*sort), .item_separator = {", ", width >= 0 ? 1 : 2},
                        .key_separator = {": ", 2}};
    if (separators && separators->kind == V_LIST && separators->list->n == 2) {
        style.item_separator = op_value_text(j, separators->list->items[0]);
        style.key_separator = op_value_text(j, separators->list->items[1]);
    }
    op_buf b;
    op_buf_init(&b, j->pool->max);
    op_value_to_json(j, line, &b, v, &style, 0);
    value out = op_value_copy_string(j, b.data ? b.data : "", b.len);
    op_buf_release(&b);
    return out;
}

static value filter_trim(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)line;
    const value *set = op_jinja_argument(args, kwargs, 0, "chars");
    return op_text_value(op_text_strip(op_value_text(j, v), set && set->kind == V_STRING ? &set->s : NULL, true, true));
}

#define CASE_FILTER(name, how)                                                                         \
    static value filter_##name(jinja *j, int line, value v, const list *args, const dict *kwargs)      \
    {                                                                                                  \
        (void)line, (void)args, (void)kwargs;                                                          \
        return op_text_change_case(j, op_value_text(j, v), how);                                                  \
    }
CASE_FILTER(upper, CASE_UPPER)
CASE_FILTER(lower, CASE_LOWER)
CASE_FILTER(capitalize, CASE_CAPITALIZE)
CASE_FILTER(title, CASE_JINJA_TITLE)

static value filter_length(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)args, (void)kwargs;
    if (v.kind == V_STRING)
        return op_value_int((int64_t)op_text_characters(v.s));
    return op_value_int((int64_t)op_value_items(j, line, v)->n);
}

static value filter_first(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)args, (void)kwargs;
    const list *l = op_value_items(j, line, v);
    return l->n ? l->items[0] : op_value_undefined((text){"first", 5});
}

static value filter_last(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)args, (void)kwargs;
    const list *l = op_value_items(j, line, v);
    return l->n ? l->items[l->n - 1] : op_value_undefined((text){"last", 4});
}

static value filter_default(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)j, (void)line;
    const value *fallback = op_jinja_argument(args, kwargs, 0, "default_value");
    if (v.kind == V_UNDEFINED || (op_jinja_flag(args, kwargs, 1, "boolean") && !op_value_is_true(v)))
        return fallback ? *fallback : op_value_string("", 0);
    return v;
}

static value copy_list(jinja *j, const list *l)
{
    value out = op_value_list(j, l->n);
    for (size_t i = 0; i < l->n; i++)
        op_list_add(j, out.list, l->items[i]);
    return out;
}

static value filter_list(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)args, (void)kwargs;
    return copy_list(j, op_value_items(j, line, v));
}

static value filter_reverse(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)args, (void)kwargs;
    const list *l = op_value_items(j, line, v);
    value out = op_value_list(j, l->n);
    for (size_t i = l->n; i-- > 0;)
        op_list_add(j, out.list, l->items[i]);
    return v.kind == V_STRING ? op_text_join(j, line, out.list, (text){"", 0}, NULL) : out;
}

static value filter_string(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)line, (void)args, (void)kwargs;
    return op_text_value(op_value_text(j, v));
}

static value filter_safe(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)j, (void)line, (void)args, (void)kwargs;
    return v;
}

static value filter_replace(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    const value *old = op_jinja_argument(args, kwargs, 0, "old"), *new = op_jinja_argument(args, kwargs, 1, "new");
    if (!old || !new)
        return op_jinja_missing(j, line, "replace");
    return op_text_replace(j, op_value_text(j, v), op_value_text(j, *old), op_value_text(j, *new), op_jinja_integer(op_jinja_argument(args, kwargs, 2, "count"), -1));
}

static value filter_items(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)args, (void)kwargs;
    if (v.kind == V_UNDEFINED)
        return op_value_list(j, 0);
    return v.kind == V_DICT ? op_dict_items(j, v.dict, true, true) : op_jinja_missing(j, line, "items");
}

/* Calls filter or test `name` (the argument after `skip` others) with the arguments behind it. */
static list rest(const list *args, size_t skip)
{
    return skip < args->n ? (list){.items = args->items + skip, .n = args->n - skip} : (list){0};
}

static value filter_map(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    const value *attribute = kwargs ? op_dict_get_name(kwargs, (text){"attribute", 9}) : NULL;
    const value *fallback = kwargs ? op_dict_get_name(kwargs, (text){"default", 7}) : NULL;
    const list *l = op_value_items(j, line, v);
    value out = op_value_list(j, l->n);
    int filter = -1;
    if (!attribute && args->n && args->items[0].kind == V_STRING) {
        filter = op_jinja_filter_find(args->items[0].s);
        if (filter < 0)
            return op_jinja_fail(j, line, OP_ERR_UNSUPPORTED, "filter '%.*s' is not supported", (int)args->items[0].s.n,
                              args->items[0].s.s);
    } else if (!attribute) {
        return op_jinja_missing(j, line, "map");
    }
    list others = rest(args, 1);
    for (size_t i = 0; i < l->n && !j->status; i++) {
        value item = attribute ? op_jinja_dotted(j, line, l->items[i], *attribute, fallback)
                               : op_jinja_filter_apply(j, line, filter, l->items[i], &others, kwargs);
        op_list_add(j, out.list, item);
    }
    if (!j->status)
        out.list->lazy = true;
    return out;
}

static value select_(jinja *j, int line, value v, const list *args, bool by_attribute, bool want)
{
    const list *l = op_value_items(j, line, v);
    const value *attribute = by_attribute ? op_jinja_argument(args, NULL, 0, NULL) : NULL;
    const value *name = op_jinja_argument(args, NULL, by_attribute, NULL);
    value out = op_value_list(j, 0);
    int test = name && name->kind == V_STRING ? op_jinja_test_find(name->s) : -1;
    if (name && test < 0)
        return op_jinja_fail(j, line, OP_ERR_UNSUPPORTED, "test '%.*s' is not supported", name->kind == V_STRING ? (int)name->s.n : 1,
                          name->kind == V_STRING ? name->s.s : "?");
    if (by_attribute && !attribute)
        return op_jinja_missing(j, line, "selectattr");
    list others = rest(args, by_attribute ? 2 : 1);
    for (size_t i = 0; i < l->n && !j->status; i++) {
        value item = attribute ? op_jinja_dotted(j, line, l->items[i], *attribute, NULL) : l->items[i];
        bool yes = name ? op_jinja_test_apply(j, line, test, item, &others) : op_value_is_true(item);
        if (yes == want)
            op_list_add(j, out.list, l->items[i]);
    }
    if (!j->status)
        out.list->lazy = true;
    return out;
}

#define SELECT_FILTER(name, by_attribute, want)                                                        \
    static value filter_##name(jinja *j, int line, value v, const list *args, const dict *kwargs)      \
    {                                                                                                  \
        (void)kwargs;                                                                                  \
        return select_(j, line, v, args, by_attribute, want);                                          \
    }
SELECT_FILTER(select, false, true)
SELECT_FILTER(reject, false, false)
SELECT_FILTER(selectattr, true, true)
SELECT_FILTER(rejectattr, true, false)

typedef struct sort_key {
    value key, item;
} sort_key;

/* Sorts by insertion from the right place found by halving: stable, and an error of comparison stops it. */
static value sort(jinja *j, int line, const list *l, const value *attribute, int part, bool case_sensitive, bool reverse)
{
    sort_key *keys = op_jinja_alloc(j, (l->n + 1) * sizeof *keys);
    value out = op_value_list(j, l->n);
    for (size_t i = 0; keys && i < l->n && !j->status; i++) {
        sort_key k = {.key = l->items[i], .item = l->items[i]};
        if (attribute)
            k.key = op_jinja_dotted(j, line, k.key, *attribute, NULL);
        if (part >= 0)
            k.key = k.key.list->items[part];
        if (!case_sensitive && k.key.kind == V_STRING)
            k.key = op_text_change_case(j, k.key.s, CASE_LOWER);
        size_t low = 0, high = i;
        while (low < high) {
            size_t middle = (low + high) / 2;
            int order = op_value_compare(j, line, k.key, keys[middle].key);
            if (reverse ? order > 0 : order < 0)
                high = middle;
            else
                low = middle + 1;
        }
        memmove(keys + low + 1, keys + low, (i - low) * sizeof *keys);
        keys[low] = k;
    }
    for (size_t i = 0; keys && i < l->n && !j->status; i++)
        op_list_add(j, out.list, keys[i].item);
    return out;
}

static value filter_sort(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    return sort(j, line, op_value_items(j, line, v), op_jinja_argument(args, kwargs, 2, "attribute"), -1, op_jinja_flag(args, kwargs, 1, "case_sensitive"),
                op_jinja_flag(args, kwargs, 0, "reverse"));
}

static value filter_dictsort(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    const value *by = op_jinja_argument(args, kwargs, 1, "by");
    if (v.kind != V_DICT)
        return op_jinja_missing(j, line, "dictsort");
    value pairs = op_dict_items(j, v.dict, true, true);
    return j->status ? v
                     : sort(j, line, pairs.list, NULL, by && by->kind == V_STRING && op_text_is(by->s, "value"),
                            op_jinja_flag(args, kwargs, 0, "case_sensitive"), op_jinja_flag(args, kwargs, 2, "reverse"));
}

static value filter_unique(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    const value *attribute = op_jinja_argument(args, kwargs, 1, "attribute");
    const list *l = op_value_items(j, line, v);
    value out = op_value_list(j, 0), seen = op_value_list(j, 0);
    for (size_t i = 0; i < l->n && !j->status; i++) {
        value key = attribute ? op_jinja_dotted(j, line, l->items[i], *attribute, NULL) : l->items[i];
        if (key.kind == V_STRING && !op_jinja_flag(args, kwargs, 0, "case_sensitive"))
            key = op_text_change_case(j, key.s, CASE_LOWER);
        bool known = false;
        for (size_t k = 0; k < seen.list->n && !known; k++)
            known = op_value_equal(seen.list->items[k], key);
        j->steps += (long)seen.list->n;
        if (known)
            continue;
        op_list_add(j, seen.list, key);
        op_list_add(j, out.list, l->items[i]);
    }
    return out;
}

static value filter_indent(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    const value *width = op_jinja_argument(args, kwargs, 0, "width");
    bool first = op_jinja_flag(args, kwargs, 1, "first"), blank = op_jinja_flag(args, kwargs, 2, "blank");
    text t = op_value_text(j, v), pad;
    if (width && width->kind == V_STRING) {
        pad = width->s;
    } else {
        int64_t n = op_jinja_integer(width, 4);
        if (n < 0 || n > 1000)
            return op_jinja_missing(j, line, "indent");
        char *spaces = op_jinja_alloc(j, (size_t)n + 1);
        if (!spaces)
            return v;
        memset(spaces, ' ', (size_t)n);
        pad = (text){spaces, (size_t)n};
    }
    op_buf b;
    op_buf_init(&b, j->pool->max);
    op_status s = first ? op_buf_add(&b, pad.s, pad.n) : OP_OK;
    for (size_t i = 0; i < t.n && !s; i++) {
        s = op_buf_add(&b, t.s + i, 1);
        bool ends = t.s[i] == '\n', empty = i + 1 == t.n || t.s[i + 1] == '\n';
        if (!s && ends && (blank || !empty))
            s = op_buf_add(&b, pad.s, pad.n);
    }
    value out = op_value_copy_string(j, b.data ? b.data : "", b.len);
    op_buf_release(&b);
    return s ? op_jinja_fail(j, line, s, "out of memory, or more than %zu bytes of values", j->pool->max) : out;
}

/* The number that a string writes, with nothing but white space around it. */
static bool parse_number(text t, bool whole, value *out)
{
    char digits[64], *end;
    t = op_text_strip(t, NULL, true, true);
    if (!t.n || t.n >= sizeof digits || memchr(t.s, 'x', t.n) || memchr(t.s, 'X', t.n))
        return false;
    memcpy(digits, t.s, t.n);
    digits[t.n] = 0;
    *out = whole ? op_value_int(strtoll(digits, &end, 10)) : op_value_float(strtod(digits, &end));
    return *end == 0;
}

static value filter_int(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)j, (void)line;
    const value *fallback = op_jinja_argument(args, kwargs, 0, "default");
    value out = op_value_int(op_jinja_integer(fallback, 0));
    if (v.kind == V_INT || v.kind == V_BOOL)
        return op_value_int(op_jinja_integer(&v, 0));
    if (v.kind == V_STRING && !parse_number(v.s, true, &out) && parse_number(v.s, false, &v))
        v.kind = V_FLOAT;
    if (v.kind == V_FLOAT && fabs(v.f) < 9e18)
        return op_value_int((int64_t)v.f);
    return out;
}

static value filter_float(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)j, (void)line;
    const value *fallback = op_jinja_argument(args, kwargs, 0, "default");
    value out = fallback && op_value_is_number(*fallback) ? *fallback : op_value_float(0);
    if (op_value_is_number(v))
        return op_value_float(op_value_number(v));
    if (v.kind == V_STRING)
        parse_number(v.s, false, &out);
    return out;
}

static value filter_abs(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)args, (void)kwargs;
    if (v.kind == V_FLOAT)
        return op_value_float(fabs(v.f));
    return v.kind == V_INT && v.i != INT64_MIN ? op_value_int(v.i < 0 ? -v.i : v.i) : op_jinja_missing(j, line, "abs");
}

static value filter_round(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    const value *how = op_jinja_argument(args, kwargs, 1, "method");
    int64_t digits = op_jinja_integer(op_jinja_argument(args, kwargs, 0, "precision"), 0);
    if (!op_value_is_number(v) || digits < 0 || digits > 15)
        return op_jinja_missing(j, line, "round");
    double scale = pow(10, (double)digits), x = op_value_number(v) * scale;
    if (how && how->kind == V_STRING && op_text_is(how->s, "ceil"))
        return op_value_float(ceil(x) / scale);
    if (how && how->kind == V_STRING && op_text_is(how->s, "floor"))
        return op_value_float(floor(x) / scale);
    return v.kind == V_INT ? v : op_value_float(rint(x) / scale);
}

static value filter_sum(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    const value *attribute = op_jinja_argument(args, kwargs, 0, "attribute");
    const list *l = op_value_items(j, line, v);
    double total = 0;
    bool whole = true;
    for (size_t i = 0; i < l->n && !j->status; i++) {
        value item = attribute ? op_jinja_dotted(j, line, l->items[i], *attribute, NULL) : l->items[i];
        if (!op_value_is_number(item))
            return op_jinja_missing(j, line, "sum");
        whole = whole && item.kind != V_FLOAT;
        total += op_value_number(item);
    }
    return whole && fabs(total) < 9e15 ? op_value_int((int64_t)total) : op_value_float(total);
}

static value extreme(jinja *j, int line, value v, int sign)
{
    const list *l = op_value_items(j, line, v);
    value best = l->n ? l->items[0] : op_value_undefined((text){"an empty list", 13});
    for (size_t i = 1; i < l->n && !j->status; i++)
        if (op_value_compare(j, line, l->items[i], best) * sign > 0)
            best = l->items[i];
    return best;
}

static value filter_min(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)args, (void)kwargs;
    return extreme(j, line, v, -1);
}

static value filter_max(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)args, (void)kwargs;
    return extreme(j, line, v, 1);
}

static const char *const filters[] = {
    "tojson", "trim",   "upper",      "lower",      "capitalize", "title", "length", "count",    "join",   "list",   "first",
    "last",   "default", "d",         "replace",    "string",     "safe",  "items",  "map",      "select", "reject", "selectattr",
    "rejectattr", "sort", "dictsort", "unique",     "reverse",    "indent", "int",   "float",    "abs",    "round",  "sum",
    "min",    "max",    NULL};
static const filter_fn filter_functions[] = {
    filter_tojson,     filter_trim,   filter_upper,    filter_lower,  filter_capitalize, filter_title,  filter_length,
    filter_length,     filter_join,   filter_list,     filter_first,  filter_last,       filter_default, filter_default,
    filter_replace,    filter_string, filter_safe,     filter_items,  filter_map,        filter_select, filter_reject,
    filter_selectattr, filter_rejectattr, filter_sort, filter_dictsort, filter_unique,   filter_reverse, filter_indent,
    filter_int,        filter_float,  filter_abs,      filter_round,  filter_sum,        filter_min,    filter_max};

int op_jinja_filter_find(text name)
{
    return op_text_find_word(name, filters);
}

value op_jinja_filter_apply(jinja *j, int line, int filter, value v, const list *args, const dict *kwargs)
{
    if (j->status || ++j->steps > JINJA_STEPS_MAX)
        return op_jinja_fail(j, line, OP_ERR_UNSUPPORTED, "more than %d steps", JINJA_STEPS_MAX);
    return filter_functions[filter](j, line, v, args, kwargs);
}
