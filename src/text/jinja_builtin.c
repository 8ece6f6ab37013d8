#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <utf8proc.h>

#include "base/mem.h"
#include "text/jinja.h"
#include "text/unicode.h"

/* ---- arguments ---- */

/* Argument number i, or the one called `name`, or NULL. */
static const value *argument(const list *args, const dict *kwargs, size_t i, const char *name)
{
    if (i < args->n)
        return &args->items[i];
    return kwargs && name ? op_dict_get_name(kwargs, (text){name, strlen(name)}) : NULL;
}

static bool flag(const list *args, const dict *kwargs, size_t i, const char *name)
{
    const value *v = argument(args, kwargs, i, name);
    return v && op_value_is_true(*v);
}

static int64_t integer(const value *v, int64_t fallback)
{
    return v && v->kind == V_INT ? v->i : v && v->kind == V_BOOL ? v->b : fallback;
}

static value missing(jinja *j, int line, const char *what)
{
    return op_jinja_fail(j, line, OP_ERR_ARG, "%s: an argument is missing or of the wrong type", what);
}

/* ---- text ---- */

static bool is_space(uint32_t c)
{
    return (c >= 0x1c && c <= 0x1f) || (op_class(c) & OP_SPACE);
}

static bool is_one_of(text set, uint32_t c)
{
    for (size_t i = 0; i < set.n; i += op_utf8_length((unsigned char)set.s[i]))
        if (op_utf8_get(set.s + i) == c)
            return true;
    return false;
}

/* Without leading and trailing characters of `set` (NULL: white space). */
static text strip(text t, const text *set, bool left, bool right)
{
    while (left && t.n) {
        uint32_t c = op_utf8_get(t.s);
        if (!(set ? is_one_of(*set, c) : is_space(c)))
            break;
        size_t n = op_utf8_length((unsigned char)t.s[0]);
        t = (text){t.s + n, t.n - n};
    }
    while (right && t.n) {
        size_t last = op_utf8_back(t.s, t.n);
        uint32_t c = op_utf8_get(t.s + last);
        if (!(set ? is_one_of(*set, c) : is_space(c)))
            break;
        t.n = last;
    }
    return t;
}

static value of_text(text t)
{
    return op_value_string(t.s, t.n);
}

typedef enum letter_case { CASE_UPPER, CASE_LOWER, CASE_CAPITALIZE, CASE_TITLE, CASE_JINJA_TITLE } letter_case;

static bool is_letter(uint32_t c)
{
    return op_class(c) & OP_LETTER;
}

static value change_case(jinja *j, text t, letter_case how)
{
    char *out = op_jinja_alloc(j, 2 * t.n + 4); /* no simple mapping more than doubles the bytes */
    size_t n = 0;
    bool start = true; /* of a word */
    if (!out)
        return op_value_string("", 0);
    for (size_t i = 0; i < t.n; i += op_utf8_length((unsigned char)t.s[i])) {
        utf8proc_int32_t c = (utf8proc_int32_t)op_utf8_get(t.s + i);
        bool upper = how == CASE_UPPER || (how != CASE_LOWER && start);
        n += op_utf8_put((uint32_t)(upper ? utf8proc_toupper(c) : utf8proc_tolower(c)), out + n);
        start = how == CASE_TITLE         ? !is_letter((uint32_t)c)
                : how == CASE_JINJA_TITLE ? is_space((uint32_t)c) || (c < 128 && c && strchr("-({[<", c))
                                          : false;
    }
    out[n] = 0;
    return op_value_string(out, n);
}

static bool starts_with(text t, text prefix)
{
    return t.n >= prefix.n && memcmp(t.s, prefix.s, prefix.n) == 0;
}

static bool ends_with(text t, text suffix)
{
    return t.n >= suffix.n && memcmp(t.s + t.n - suffix.n, suffix.s, suffix.n) == 0;
}

/* Every `old` becomes `new`, at most `limit` times (negative: all). */
static value replace(jinja *j, text t, text old, text new, int64_t limit)
{
    op_buf b;
    op_buf_init(&b, j->pool->max);
    op_status s = OP_OK;
    size_t i = 0;
    while (!s && i <= t.n && limit != 0) {
        const char *hit = old.n ? (i < t.n ? memmem(t.s + i, t.n - i, old.s, old.n) : NULL) : t.s + i;
        if (!hit)
            break;
        size_t at = (size_t)(hit - t.s), step = old.n;
        s = op_buf_add(&b, t.s + i, at - i);
        s = s ? s : op_buf_add(&b, new.s, new.n);
        if (!old.n && at < t.n) { /* between all characters */
            step = op_utf8_length((unsigned char)t.s[at]);
            s = s ? s : op_buf_add(&b, t.s + at, step);
        } else if (!old.n) {
            step = 1;
        }
        i = at + step;
        limit -= limit > 0;
    }
    if (!s && i < t.n)
        s = op_buf_add(&b, t.s + i, t.n - i);
    value v = op_value_copy_string(j, b.data ? b.data : "", b.len);
    op_buf_release(&b);
    return s ? op_jinja_fail(j, 0, s, "out of memory, or more than %zu bytes of values", j->pool->max) : v;
}

static value split_spaces(jinja *j, text t, int64_t limit)
{
    value out = op_value_list(j, 0);
    for (t = strip(t, NULL, true, false); t.n && !j->status; t = strip(t, NULL, true, false)) {
        size_t n = 0;
        if (limit == 0) {
            n = t.n;
            op_list_add(j, out.list, op_value_string(t.s, n));
            return out;
        }
        while (n < t.n && !is_space(op_utf8_get(t.s + n)))
            n += op_utf8_length((unsigned char)t.s[n]);
        op_list_add(j, out.list, op_value_string(t.s, n));
        t = (text){t.s + n, t.n - n};
        limit -= limit > 0;
    }
    return out;
}

/* Last place of `what` in t, or t.n + 1. */
static size_t find_last(text t, text what)
{
    for (size_t i = t.n + 1; i-- > 0;)
        if (t.n - i >= what.n && memcmp(t.s + i, what.s, what.n) == 0)
            return i;
    return t.n + 1;
}

static value split(jinja *j, int line, text t, text by, int64_t limit, bool from_right)
{
    value out = op_value_list(j, 0);
    if (!by.n)
        return op_jinja_fail(j, line, OP_ERR_ARG, "split with an empty separator");
    while (limit != 0 && !j->status) {
        const char *hit = memmem(t.s, t.n, by.s, by.n);
        if (!hit)
            break;
        size_t at = from_right ? find_last(t, by) : (size_t)(hit - t.s);
        if (from_right) {
            op_list_add(j, out.list, op_value_string(t.s + at + by.n, t.n - at - by.n));
            t.n = at;
        } else {
            op_list_add(j, out.list, op_value_string(t.s, at));
            t = (text){t.s + at + by.n, t.n - at - by.n};
        }
        limit -= limit > 0;
    }
    op_list_add(j, out.list, of_text(t));
    for (size_t i = 0; from_right && i < out.list->n / 2; i++) {
        value swap = out.list->items[i];
        out.list->items[i] = out.list->items[out.list->n - 1 - i];
        out.list->items[out.list->n - 1 - i] = swap;
    }
    return out;
}

static value split_lines(jinja *j, text t)
{
    value out = op_value_list(j, 0);
    size_t start = 0;
    for (size_t i = 0; i < t.n && !j->status; i++) {
        if (t.s[i] != '\n' && t.s[i] != '\r')
            continue;
        op_list_add(j, out.list, op_value_string(t.s + start, i - start));
        i += t.s[i] == '\r' && i + 1 < t.n && t.s[i + 1] == '\n';
        start = i + 1;
    }
    if (start < t.n)
        op_list_add(j, out.list, op_value_string(t.s + start, t.n - start));
    return out;
}

static value join(jinja *j, int line, const list *items, text by, const value *attribute);

static size_t characters(text t)
{
    size_t n = 0;
    for (size_t i = 0; i < t.n; i++)
        n += ((unsigned char)t.s[i] & 0xc0) != 0x80;
    return n;
}

/* ---- methods ---- */

static const char *const string_methods[] = {
    "strip",  "lstrip",     "rstrip", "split", "rsplit", "splitlines", "startswith",   "endswith",     "upper",   "lower",
    "title",  "capitalize", "replace", "join",  "find",   "rfind",      "removeprefix", "removesuffix", "isdigit", "count",
    "isspace", "index", NULL};
static const char *const dict_methods[] = {"items", "keys", "values", "get", "copy", NULL};
static const char *const list_methods[] = {"count", "index", "copy", NULL};

static bool one_of(text name, const char *const *names)
{
    for (; *names; names++)
        if (op_text_is(name, *names))
            return true;
    return false;
}

bool op_jinja_has_method(value of, text name)
{
    return of.kind == V_STRING ? one_of(name, string_methods)
           : of.kind == V_DICT ? one_of(name, dict_methods)
           : of.kind == V_LIST ? one_of(name, list_methods)
                               : false;
}

/* Whether t starts or ends with x, a string or a tuple of them. */
static bool affix(jinja *j, int line, text t, const value *x, bool end)
{
    if (x && x->kind == V_STRING)
        return end ? ends_with(t, x->s) : starts_with(t, x->s);
    if (!x || x->kind != V_LIST) {
        missing(j, line, end ? "endswith" : "startswith");
        return false;
    }
    for (size_t i = 0; i < x->list->n; i++)
        if (affix(j, line, t, &x->list->items[i], end))
            return true;
    return false;
}

static value count_of(text t, text what)
{
    int64_t n = 0;
    if (!what.n)
        return op_value_int((int64_t)characters(t) + 1);
    for (size_t i = 0; i + what.n <= t.n;) {
        const char *hit = memmem(t.s + i, t.n - i, what.s, what.n);
        if (!hit)
            break;
        n++;
        i = (size_t)(hit - t.s) + what.n;
    }
    return op_value_int(n);
}

static value string_method(jinja *j, int line, text t, text name, const list *args, const dict *kwargs)
{
    const value *first = argument(args, kwargs, 0, "sep"), *second = argument(args, kwargs, 1, "maxsplit");
    const text *word = first && first->kind == V_STRING ? &first->s : NULL;
    if (op_text_is(name, "strip"))
        return of_text(strip(t, word, true, true));
    if (op_text_is(name, "lstrip"))
        return of_text(strip(t, word, true, false));
    if (op_text_is(name, "rstrip"))
        return of_text(strip(t, word, false, true));
    if (op_text_is(name, "upper"))
        return change_case(j, t, CASE_UPPER);
    if (op_text_is(name, "lower"))
        return change_case(j, t, CASE_LOWER);
    if (op_text_is(name, "title"))
        return change_case(j, t, CASE_TITLE);
    if (op_text_is(name, "capitalize"))
        return change_case(j, t, CASE_CAPITALIZE);
    if (op_text_is(name, "splitlines"))
        return split_lines(j, t);
    if (op_text_is(name, "split") || op_text_is(name, "rsplit")) {
        int64_t limit = integer(second, -1);
        bool right = op_text_is(name, "rsplit");
        if (word)
            return split(j, line, t, *word, limit, right);
        if (right && limit >= 0)
            return op_jinja_fail(j, line, OP_ERR_UNSUPPORTED, "'rsplit' at white space with a limit is not supported");
        return split_spaces(j, t, limit);
    }
    if (op_text_is(name, "startswith") || op_text_is(name, "endswith"))
        return op_value_bool(affix(j, line, t, first, op_text_is(name, "endswith")));
    if (op_text_is(name, "isdigit") || op_text_is(name, "isspace")) {
        bool yes = t.n > 0, digit = op_text_is(name, "isdigit");
        for (size_t i = 0; i < t.n; i += op_utf8_length((unsigned char)t.s[i])) {
            uint32_t c = op_utf8_get(t.s + i);
            yes = yes && (digit ? utf8proc_category((utf8proc_int32_t)c) == UTF8PROC_CATEGORY_ND : is_space(c));
        }
        return op_value_bool(yes);
    }
    if (op_text_is(name, "join")) {
        if (!first)
            return missing(j, line, "join");
        const list *items = op_value_items(j, line, *first);
        for (size_t i = 0; i < items->n && !j->status; i++)
            if (items->items[i].kind != V_STRING)
                return op_jinja_fail(j, line, OP_ERR_ARG, "join: item %zu is not a string but %s", i, op_value_kind_name(items->items[i]));
        return join(j, line, items, t, NULL);
    }
    if (!word)
        return missing(j, line, "a method of str");
    if (op_text_is(name, "replace")) {
        const value *new = argument(args, kwargs, 1, "new");
        if (!new || new->kind != V_STRING)
            return missing(j, line, "replace");
        return replace(j, t, *word, new->s, integer(argument(args, kwargs, 2, "count"), -1));
    }
    if (op_text_is(name, "removeprefix"))
        return starts_with(t, *word) ? op_value_string(t.s + word->n, t.n - word->n) : of_text(t);
    if (op_text_is(name, "removesuffix"))
        return ends_with(t, *word) ? op_value_string(t.s, t.n - word->n) : of_text(t);
    if (op_text_is(name, "count"))
        return count_of(t, *word);
    /* find, rfind, index */
    const char *hit = word->n ? memmem(t.s, t.n, word->s, word->n) : t.s;
    if (!hit && op_text_is(name, "index"))
        return op_jinja_fail(j, line, OP_ERR_ARG, "index: the string is not there");
    size_t at = !hit ? 0 : op_text_is(name, "rfind") ? find_last(t, *word) : (size_t)(hit - t.s);
    return op_value_int(hit ? (int64_t)characters((text){t.s, at}) : -1);
}

static value dict_items(jinja *j, const dict *d, bool keys, bool values)
{
    value out = op_value_list(j, d->n);
    for (size_t i = 0; i < d->n && !j->status; i++) {
        value pair = d->pairs[2 * i + (keys ? 0 : 1)];
        if (keys && values) {
            pair = op_value_list(j, 2);
            op_list_add(j, pair.list, d->pairs[2 * i]);
            op_list_add(j, pair.list, d->pairs[2 * i + 1]);
            if (!j->status)
                pair.list->tuple = true;
        }
        op_list_add(j, out.list, pair);
    }
    return out;
}

static value list_method(jinja *j, int line, value self, text name, const value *what)
{
    if (op_text_is(name, "copy"))
        return self;
    if (!what)
        return missing(j, line, "a method of list");
    int64_t n = 0, at = -1;
    for (size_t i = 0; i < self.list->n; i++)
        if (op_value_equal(self.list->items[i], *what)) {
            at = at < 0 ? (int64_t)i : at;
            n++;
        }
    if (op_text_is(name, "count"))
        return op_value_int(n);
    return at < 0 ? op_jinja_fail(j, line, OP_ERR_ARG, "index: the item is not in the list") : op_value_int(at);
}

value op_jinja_method_call(jinja *j, int line, value self, text name, const list *args, const dict *kwargs)
{
    const value *first = argument(args, kwargs, 0, NULL);
    if (j->status)
        return self;
    if (self.kind == V_STRING)
        return string_method(j, line, self.s, name, args, kwargs);
    if (self.kind == V_LIST)
        return list_method(j, line, self, name, first);
    if (op_text_is(name, "items"))
        return dict_items(j, self.dict, true, true);
    if (op_text_is(name, "keys"))
        return dict_items(j, self.dict, true, false);
    if (op_text_is(name, "values"))
        return dict_items(j, self.dict, false, true);
    if (op_text_is(name, "copy"))
        return self;
    if (!first)
        return missing(j, line, "get");
    const value *found = op_dict_get(self.dict, *first), *fallback = argument(args, kwargs, 1, "default");
    return found ? *found : fallback ? *fallback : op_value_none();
}

/* ---- functions ---- */

static const char *const functions[] = {"range", "namespace", "dict", "raise_exception", "strftime_now", NULL};

bool op_jinja_has_function(text name)
{
    return one_of(name, functions);
}

static value range(jinja *j, int line, const list *args)
{
    int64_t from = 0, to = 0, by = 1;
    value out = op_value_list(j, 0);
    for (size_t i = 0; i < args->n; i++)
        if (args->items[i].kind != V_INT)
            return missing(j, line, "range");
    if (args->n < 1 || args->n > 3)
        return missing(j, line, "range");
    if (args->n > 1)
        from = args->items[0].i;
    to = args->items[args->n > 1].i;
    if (args->n > 2)
        by = args->items[2].i;
    if (!by)
        return op_jinja_fail(j, line, OP_ERR_ARG, "range with step 0");
    for (int64_t i = from; (by > 0 ? i < to : i > to) && !j->status;) {
        if (out.list->n == JINJA_RANGE_MAX)
            return op_jinja_fail(j, line, OP_ERR_UNSUPPORTED, "a range of more than %d numbers", JINJA_RANGE_MAX);
        op_list_add(j, out.list, op_value_int(i));
        if (__builtin_add_overflow(i, by, &i))
            break;
    }
    return out;
}

static value strftime_now(jinja *j, int line, const value *format)
{
    char pattern[128], text_[256];
    value date;
    struct tm tm;
    time_t now = time(NULL);
    if (!format || format->kind != V_STRING || format->s.n >= sizeof pattern)
        return missing(j, line, "strftime_now");
    if (op_jinja_lookup(j, (text){"date_string", 11}, &date) && date.kind == V_STRING)
        return date;
    memcpy(pattern, format->s.s, format->s.n);
    pattern[format->s.n] = 0;
    localtime_r(&now, &tm);
    return op_value_copy_string(j, text_, strftime(text_, sizeof text_, pattern, &tm));
}

value op_jinja_function_call(jinja *j, int line, text name, const list *args, const dict *kwargs)
{
    const value *first = argument(args, kwargs, 0, NULL);
    if (j->status)
        return op_value_none();
    if (op_text_is(name, "range"))
        return range(j, line, args);
    if (op_text_is(name, "strftime_now"))
        return strftime_now(j, line, first);
    if (op_text_is(name, "raise_exception")) {
        text message = first ? op_value_text(j, *first) : (text){"", 0};
        return op_jinja_fail(j, line, OP_ERR_ARG, "%.*s", (int)(message.n < 400 ? message.n : 400), message.s);
    }
    value d = op_value_dict(j, op_text_is(name, "dict") ? V_DICT : V_NAMESPACE);
    for (size_t i = 0; first && first->kind == V_DICT && i < first->dict->n; i++)
        op_dict_set(j, d.dict, first->dict->pairs[2 * i], first->dict->pairs[2 * i + 1]);
    for (size_t i = 0; kwargs && i < kwargs->n; i++)
        op_dict_set(j, d.dict, kwargs->pairs[2 * i], kwargs->pairs[2 * i + 1]);
    return d;
}

/* ---- tests ---- */

static const char *const tests[] = {
    "defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "true", "false", "mapping", "iterable",
    "sequence", "odd", "even", "divisibleby", "in", "callable", "sameas", "lower", "upper",
    "eq", "equalto", "==", "ne", "!=", "lt", "lessthan", "<", "le", "<=", "gt", "greaterthan", ">", "ge", ">=", NULL};
enum {
    TEST_DEFINED, TEST_UNDEFINED, TEST_NONE, TEST_STRING, TEST_NUMBER, TEST_INTEGER, TEST_FLOAT, TEST_BOOLEAN, TEST_TRUE,
    TEST_FALSE, TEST_MAPPING, TEST_ITERABLE, TEST_SEQUENCE, TEST_ODD, TEST_EVEN, TEST_DIVISIBLEBY, TEST_IN, TEST_CALLABLE,
    TEST_SAMEAS, TEST_LOWER, TEST_UPPER, TEST_EQ, TEST_EQ2, TEST_EQ3, TEST_NE, TEST_NE2, TEST_LT, TEST_LT2, TEST_LT3,
    TEST_LE, TEST_LE2, TEST_GT, TEST_GT2, TEST_GT3, TEST_GE, TEST_GE2,
};

static int find(text name, const char *const *names)
{
    for (int i = 0; names[i]; i++)
        if (op_text_is(name, names[i]))
            return i;
    return -1;
}

int op_jinja_test_find(text name)
{
    return find(name, tests);
}

bool op_jinja_test_apply(jinja *j, int line, int test, value v, const list *args)
{
    const value *x = argument(args, NULL, 0, NULL);
    if (test >= TEST_EQ || test == TEST_DIVISIBLEBY || test == TEST_IN || test == TEST_SAMEAS) {
        if (!x) {
            missing(j, line, tests[test]);
            return false;
        }
    }
    switch (test) {
    case TEST_DEFINED: return v.kind != V_UNDEFINED;
    case TEST_UNDEFINED: return v.kind == V_UNDEFINED;
    case TEST_NONE: return v.kind == V_NONE;
    case TEST_STRING: return v.kind == V_STRING;
    case TEST_NUMBER: return op_value_is_number(v);
    case TEST_INTEGER: return v.kind == V_INT;
    case TEST_FLOAT: return v.kind == V_FLOAT;
    case TEST_BOOLEAN: return v.kind == V_BOOL;
    case TEST_TRUE: return v.kind == V_BOOL && v.b;
    case TEST_FALSE: return v.kind == V_BOOL && !v.b;
    case TEST_MAPPING: return v.kind == V_DICT;
    case TEST_ITERABLE: return v.kind == V_LIST || v.kind == V_DICT || v.kind == V_STRING || v.kind == V_UNDEFINED;
    case TEST_SEQUENCE: return (v.kind == V_LIST && !v.list->lazy) || v.kind == V_DICT || v.kind == V_STRING || v.kind == V_UNDEFINED;
    case TEST_CALLABLE: return v.kind == V_MACRO || v.kind == V_FUNCTION || v.kind == V_METHOD;
    case TEST_LOWER:
    case TEST_UPPER: {
        text t = op_value_text(j, v);
        value same = change_case(j, t, test == TEST_LOWER ? CASE_LOWER : CASE_UPPER);
        value other = change_case(j, t, test == TEST_LOWER ? CASE_UPPER : CASE_LOWER);
        return op_value_equal(same, of_text(t)) && !op_value_equal(other, of_text(t));
    }
    case TEST_ODD:
    case TEST_EVEN:
        if (v.kind != V_INT) {
            missing(j, line, tests[test]);
            return false;
        }
        return (v.i & 1) == (test == TEST_ODD);
    case TEST_DIVISIBLEBY:
        if (v.kind != V_INT || x->kind != V_INT || !x->i) {
            missing(j, line, tests[test]);
            return false;
        }
        return x->i == -1 || v.i % x->i == 0;
    case TEST_IN: {
        const list *l = x->kind == V_STRING && v.kind == V_STRING ? NULL : op_value_items(j, line, *x);
        if (!l)
            return v.s.n == 0 || memmem(x->s.s, x->s.n, v.s.s, v.s.n);
        for (size_t i = 0; i < l->n; i++)
            if (op_value_equal(l->items[i], v))
                return true;
        return false;
    }
    case TEST_SAMEAS: return v.kind == x->kind && op_value_equal(v, *x);
    case TEST_EQ:
    case TEST_EQ2:
    case TEST_EQ3: return op_value_equal(v, *x);
    case TEST_NE:
    case TEST_NE2: return !op_value_equal(v, *x);
    case TEST_LT:
    case TEST_LT2:
    case TEST_LT3: return op_value_compare(j, line, v, *x) < 0;
    case TEST_LE:
    case TEST_LE2: return op_value_compare(j, line, v, *x) <= 0;
    case TEST_GT:
    case TEST_GT2:
    case TEST_GT3: return op_value_compare(j, line, v, *x) > 0;
    default: return op_value_compare(j, line, v, *x) >= 0;
    }
}

/* ---- filters ---- */

typedef value (*filter_fn)(jinja *j, int line, value v, const list *args, const dict *kwargs);

/* "a.b.0" or an index: what attribute= of map, join, sort, ... means. */
static value dotted(jinja *j, int line, value v, value path, const value *fallback)
{
    if (path.kind != V_STRING)
        return op_jinja_item(j, line, v, path);
    text rest = path.s;
    while (!j->status) {
        const char *dot = memchr(rest.s, '.', rest.n);
        text name = {rest.s, dot ? (size_t)(dot - rest.s) : rest.n};
        bool number = name.n > 0 && name.n < 10;
        int64_t index = 0;
        for (size_t i = 0; i < name.n; i++) {
            number = number && name.s[i] >= '0' && name.s[i] <= '9';
            index = number ? index * 10 + (name.s[i] - '0') : 0;
        }
        v = op_jinja_item(j, line, v, number ? op_value_int(index) : of_text(name));
        v = v.kind == V_UNDEFINED && fallback ? *fallback : v;
        if (!dot)
            break;
        rest = (text){dot + 1, rest.n - name.n - 1};
    }
    return v;
}

static value join(jinja *j, int line, const list *items, text by, const value *attribute)
{
    op_buf b;
    op_buf_init(&b, j->pool->max);
    op_status s = OP_OK;
    for (size_t i = 0; i < items->n && !s && !j->status; i++) {
        value item = attribute ? dotted(j, line, items->items[i], *attribute, NULL) : items->items[i];
        text t = op_value_text(j, item);
        if (i)
            s = op_buf_add(&b, by.s, by.n);
        s = s ? s : op_buf_add(&b, t.s, t.n);
    }
    value v = op_value_copy_string(j, b.data ? b.data : "", b.len);
    op_buf_release(&b);
    return s ? op_jinja_fail(j, line, s, "out of memory, or more than %zu bytes of values", j->pool->max) : v;
}

static value filter_join(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    const value *by = argument(args, kwargs, 0, "d");
    return join(j, line, op_value_items(j, line, v), by ? op_value_text(j, *by) : (text){"", 0}, argument(args, kwargs, 1, "attribute"));
}

static value filter_tojson(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    const value *ascii = argument(args, kwargs, 0, "ensure_ascii"), *indent = argument(args, kwargs, 1, "indent");
    const value *separators = argument(args, kwargs, 2, "separators"), *sort = argument(args, kwargs, 3, "sort_keys");
    int64_t width = indent && indent->kind != V_NONE ? integer(indent, 0) : -1;
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
    const value *set = argument(args, kwargs, 0, "chars");
    return of_text(strip(op_value_text(j, v), set && set->kind == V_STRING ? &set->s : NULL, true, true));
}

#define CASE_FILTER(name, how)                                                                         \
    static value filter_##name(jinja *j, int line, value v, const list *args, const dict *kwargs)      \
    {                                                                                                  \
        (void)line, (void)args, (void)kwargs;                                                          \
        return change_case(j, op_value_text(j, v), how);                                                  \
    }
CASE_FILTER(upper, CASE_UPPER)
CASE_FILTER(lower, CASE_LOWER)
CASE_FILTER(capitalize, CASE_CAPITALIZE)
CASE_FILTER(title, CASE_JINJA_TITLE)

static value filter_length(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)args, (void)kwargs;
    if (v.kind == V_STRING)
        return op_value_int((int64_t)characters(v.s));
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
    const value *fallback = argument(args, kwargs, 0, "default_value");
    if (v.kind == V_UNDEFINED || (flag(args, kwargs, 1, "boolean") && !op_value_is_true(v)))
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
    return v.kind == V_STRING ? join(j, line, out.list, (text){"", 0}, NULL) : out;
}

static value filter_string(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)line, (void)args, (void)kwargs;
    return of_text(op_value_text(j, v));
}

static value filter_safe(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)j, (void)line, (void)args, (void)kwargs;
    return v;
}

static value filter_replace(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    const value *old = argument(args, kwargs, 0, "old"), *new = argument(args, kwargs, 1, "new");
    if (!old || !new)
        return missing(j, line, "replace");
    return replace(j, op_value_text(j, v), op_value_text(j, *old), op_value_text(j, *new), integer(argument(args, kwargs, 2, "count"), -1));
}

static value filter_items(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)args, (void)kwargs;
    if (v.kind == V_UNDEFINED)
        return op_value_list(j, 0);
    return v.kind == V_DICT ? dict_items(j, v.dict, true, true) : missing(j, line, "items");
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
        return missing(j, line, "map");
    }
    list others = rest(args, 1);
    for (size_t i = 0; i < l->n && !j->status; i++) {
        value item = attribute ? dotted(j, line, l->items[i], *attribute, fallback)
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
    const value *attribute = by_attribute ? argument(args, NULL, 0, NULL) : NULL;
    const value *name = argument(args, NULL, by_attribute, NULL);
    value out = op_value_list(j, 0);
    int test = name && name->kind == V_STRING ? op_jinja_test_find(name->s) : -1;
    if (name && test < 0)
        return op_jinja_fail(j, line, OP_ERR_UNSUPPORTED, "test '%.*s' is not supported", name->kind == V_STRING ? (int)name->s.n : 1,
                          name->kind == V_STRING ? name->s.s : "?");
    if (by_attribute && !attribute)
        return missing(j, line, "selectattr");
    list others = rest(args, by_attribute ? 2 : 1);
    for (size_t i = 0; i < l->n && !j->status; i++) {
        value item = attribute ? dotted(j, line, l->items[i], *attribute, NULL) : l->items[i];
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
            k.key = dotted(j, line, k.key, *attribute, NULL);
        if (part >= 0)
            k.key = k.key.list->items[part];
        if (!case_sensitive && k.key.kind == V_STRING)
            k.key = change_case(j, k.key.s, CASE_LOWER);
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
    return sort(j, line, op_value_items(j, line, v), argument(args, kwargs, 2, "attribute"), -1, flag(args, kwargs, 1, "case_sensitive"),
                flag(args, kwargs, 0, "reverse"));
}

static value filter_dictsort(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    const value *by = argument(args, kwargs, 1, "by");
    if (v.kind != V_DICT)
        return missing(j, line, "dictsort");
    value pairs = dict_items(j, v.dict, true, true);
    return j->status ? v
                     : sort(j, line, pairs.list, NULL, by && by->kind == V_STRING && op_text_is(by->s, "value"),
                            flag(args, kwargs, 0, "case_sensitive"), flag(args, kwargs, 2, "reverse"));
}

static value filter_unique(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    const value *attribute = argument(args, kwargs, 1, "attribute");
    const list *l = op_value_items(j, line, v);
    value out = op_value_list(j, 0), seen = op_value_list(j, 0);
    for (size_t i = 0; i < l->n && !j->status; i++) {
        value key = attribute ? dotted(j, line, l->items[i], *attribute, NULL) : l->items[i];
        if (key.kind == V_STRING && !flag(args, kwargs, 0, "case_sensitive"))
            key = change_case(j, key.s, CASE_LOWER);
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
    const value *width = argument(args, kwargs, 0, "width");
    bool first = flag(args, kwargs, 1, "first"), blank = flag(args, kwargs, 2, "blank");
    text t = op_value_text(j, v), pad;
    if (width && width->kind == V_STRING) {
        pad = width->s;
    } else {
        int64_t n = integer(width, 4);
        if (n < 0 || n > 1000)
            return missing(j, line, "indent");
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
    t = strip(t, NULL, true, true);
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
    const value *fallback = argument(args, kwargs, 0, "default");
    value out = op_value_int(integer(fallback, 0));
    if (v.kind == V_INT || v.kind == V_BOOL)
        return op_value_int(integer(&v, 0));
    if (v.kind == V_STRING && !parse_number(v.s, true, &out) && parse_number(v.s, false, &v))
        v.kind = V_FLOAT;
    if (v.kind == V_FLOAT && fabs(v.f) < 9e18)
        return op_value_int((int64_t)v.f);
    return out;
}

static value filter_float(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    (void)j, (void)line;
    const value *fallback = argument(args, kwargs, 0, "default");
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
    return v.kind == V_INT && v.i != INT64_MIN ? op_value_int(v.i < 0 ? -v.i : v.i) : missing(j, line, "abs");
}

static value filter_round(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    const value *how = argument(args, kwargs, 1, "method");
    int64_t digits = integer(argument(args, kwargs, 0, "precision"), 0);
    if (!op_value_is_number(v) || digits < 0 || digits > 15)
        return missing(j, line, "round");
    double scale = pow(10, (double)digits), x = op_value_number(v) * scale;
    if (how && how->kind == V_STRING && op_text_is(how->s, "ceil"))
        return op_value_float(ceil(x) / scale);
    if (how && how->kind == V_STRING && op_text_is(how->s, "floor"))
        return op_value_float(floor(x) / scale);
    return v.kind == V_INT ? v : op_value_float(rint(x) / scale);
}

static value filter_sum(jinja *j, int line, value v, const list *args, const dict *kwargs)
{
    const value *attribute = argument(args, kwargs, 0, "attribute");
    const list *l = op_value_items(j, line, v);
    double total = 0;
    bool whole = true;
    for (size_t i = 0; i < l->n && !j->status; i++) {
        value item = attribute ? dotted(j, line, l->items[i], *attribute, NULL) : l->items[i];
        if (!op_value_is_number(item))
            return missing(j, line, "sum");
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
    return find(name, filters);
}

value op_jinja_filter_apply(jinja *j, int line, int filter, value v, const list *args, const dict *kwargs)
{
    if (j->status || ++j->steps > JINJA_STEPS_MAX)
        return op_jinja_fail(j, line, OP_ERR_UNSUPPORTED, "more than %d steps", JINJA_STEPS_MAX);
    return filter_functions[filter](j, line, v, args, kwargs);
}
