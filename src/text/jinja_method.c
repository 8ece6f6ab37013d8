/* Methods of strings, lists and dictionaries, and global functions. */
#include <string.h>
#include <time.h>

#include <utf8proc.h>

#include "text/jinja_text.h"
#include "text/unicode.h"

static const char *const string_methods[] = {
    "strip",  "lstrip",     "rstrip", "split", "rsplit", "splitlines", "startswith",   "endswith",     "upper",   "lower",
    "title",  "capitalize", "replace", "join",  "find",   "rfind",      "removeprefix", "removesuffix", "isdigit", "count",
    "isspace", "index", NULL};
static const char *const dict_methods[] = {"items", "keys", "values", "get", "copy", NULL};
static const char *const list_methods[] = {"count", "index", "copy", NULL};

bool op_jinja_has_method(value of, text name)
{
    return of.kind == V_STRING ? op_text_find_word(name, string_methods) >= 0
           : of.kind == V_DICT ? op_text_find_word(name, dict_methods) >= 0
           : of.kind == V_LIST ? op_text_find_word(name, list_methods) >= 0
                               : false;
}

/* Whether t starts or ends with x, a string or a tuple of them. */
static bool affix(jinja *j, int line, text t, const value *x, bool end)
{
    if (x && x->kind == V_STRING)
        return end ? op_text_ends_with(t, x->s) : op_text_starts_with(t, x->s);
    if (!x || x->kind != V_LIST) {
        op_jinja_missing(j, line, end ? "endswith" : "startswith");
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
        return op_value_int((int64_t)op_text_characters(t) + 1);
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
    const value *first = op_jinja_argument(args, kwargs, 0, "sep"), *second = op_jinja_argument(args, kwargs, 1, "maxsplit");
    const text *word = first && first->kind == V_STRING ? &first->s : NULL;
    if (op_text_is(name, "strip"))
        return op_text_value(op_text_strip(t, word, true, true));
    if (op_text_is(name, "lstrip"))
        return op_text_value(op_text_strip(t, word, true, false));
    if (op_text_is(name, "rstrip"))
        return op_text_value(op_text_strip(t, word, false, true));
    if (op_text_is(name, "upper"))
        return op_text_change_case(j, t, CASE_UPPER);
    if (op_text_is(name, "lower"))
        return op_text_change_case(j, t, CASE_LOWER);
    if (op_text_is(name, "title"))
        return op_text_change_case(j, t, CASE_TITLE);
    if (op_text_is(name, "capitalize"))
        return op_text_change_case(j, t, CASE_CAPITALIZE);
    if (op_text_is(name, "splitlines"))
        return op_text_split_lines(j, t);
    if (op_text_is(name, "split") || op_text_is(name, "rsplit")) {
        int64_t limit = op_jinja_integer(second, -1);
        bool right = op_text_is(name, "rsplit");
        if (word)
            return op_text_split(j, line, t, *word, limit, right);
        if (right && limit >= 0)
            return op_jinja_fail(j, line, OP_ERR_UNSUPPORTED, "'rsplit' at white space with a limit is not supported");
        return op_text_split_spaces(j, t, limit);
    }
    if (op_text_is(name, "startswith") || op_text_is(name, "endswith"))
        return op_value_bool(affix(j, line, t, first, op_text_is(name, "endswith")));
    if (op_text_is(name, "isdigit") || op_text_is(name, "isspace")) {
        bool yes = t.n > 0, digit = op_text_is(name, "isdigit");
        for (size_t i = 0; i < t.n; i += op_utf8_length((unsigned char)t.s[i])) {
            uint32_t c = op_utf8_get(t.s + i);
            yes = yes && (digit ? utf8proc_category((utf8proc_int32_t)c) == UTF8PROC_CATEGORY_ND : op_text_is_space(c));
        }
        return op_value_bool(yes);
    }
    if (op_text_is(name, "join")) {
        if (!first)
            return op_jinja_missing(j, line, "join");
        const list *items = op_value_items(j, line, *first);
        for (size_t i = 0; i < items->n && !j->status; i++)
            if (items->items[i].kind != V_STRING)
                return op_jinja_fail(j, line, OP_ERR_ARG, "join: item %zu is not a string but %s", i, op_value_kind_name(items->items[i]));
        return op_text_join(j, line, items, t, NULL);
    }
    if (!word)
        return op_jinja_missing(j, line, "a method of str");
    if (op_text_is(name, "replace")) {
        const value *new = op_jinja_argument(args, kwargs, 1, "new");
        if (!new || new->kind != V_STRING)
            return op_jinja_missing(j, line, "replace");
        return op_text_replace(j, t, *word, new->s, op_jinja_integer(op_jinja_argument(args, kwargs, 2, "count"), -1));
    }
    if (op_text_is(name, "removeprefix"))
        return op_text_starts_with(t, *word) ? op_value_string(t.s + word->n, t.n - word->n) : op_text_value(t);
    if (op_text_is(name, "removesuffix"))
        return op_text_ends_with(t, *word) ? op_value_string(t.s, t.n - word->n) : op_text_value(t);
    if (op_text_is(name, "count"))
        return count_of(t, *word);
    /* find, rfind, index */
    const char *hit = word->n ? memmem(t.s, t.n, word->s, word->n) : t.s;
    if (!hit && op_text_is(name, "index"))
        return op_jinja_fail(j, line, OP_ERR_ARG, "index: the string is not there");
    size_t at = !hit ? 0 : op_text_is(name, "rfind") ? op_text_find_last(t, *word) : (size_t)(hit - t.s);
    return op_value_int(hit ? (int64_t)op_text_characters((text){t.s, at}) : -1);
}

static value list_method(jinja *j, int line, value self, text name, const value *what)
{
    if (op_text_is(name, "copy"))
        return self;
    if (!what)
        return op_jinja_missing(j, line, "a method of list");
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
    const value *first = op_jinja_argument(args, kwargs, 0, NULL);
    if (j->status)
        return self;
    if (self.kind == V_STRING)
        return string_method(j, line, self.s, name, args, kwargs);
    if (self.kind == V_LIST)
        return list_method(j, line, self, name, first);
    if (op_text_is(name, "items"))
        return op_dict_items(j, self.dict, true, true);
    if (op_text_is(name, "keys"))
        return op_dict_items(j, self.dict, true, false);
    if (op_text_is(name, "values"))
        return op_dict_items(j, self.dict, false, true);
    if (op_text_is(name, "copy"))
        return self;
    if (!first)
        return op_jinja_missing(j, line, "get");
    const value *found = op_dict_get(self.dict, *first), *fallback = op_jinja_argument(args, kwargs, 1, "default");
    return found ? *found : fallback ? *fallback : op_value_none();
}

static const char *const functions[] = {"range", "namespace", "dict", "raise_exception", "strftime_now", NULL};

bool op_jinja_has_function(text name)
{
    return op_text_find_word(name, functions) >= 0;
}

static value range(jinja *j, int line, const list *args)
{
    int64_t from = 0, to = 0, by = 1;
    value out = op_value_list(j, 0);
    for (size_t i = 0; i < args->n; i++)
        if (args->items[i].kind != V_INT)
            return op_jinja_missing(j, line, "range");
    if (args->n < 1 || args->n > 3)
        return op_jinja_missing(j, line, "range");
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
        return op_jinja_missing(j, line, "strftime_now");
    if (op_jinja_lookup(j, (text){"date_string", 11}, &date) && date.kind == V_STRING)
        return date;
    memcpy(pattern, format->s.s, format->s.n);
    pattern[format->s.n] = 0;
    localtime_r(&now, &tm);
    return op_value_copy_string(j, text_, strftime(text_, sizeof text_, pattern, &tm));
}

value op_jinja_function_call(jinja *j, int line, text name, const list *args, const dict *kwargs)
{
    const value *first = op_jinja_argument(args, kwargs, 0, NULL);
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
