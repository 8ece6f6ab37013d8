#include "text/jinja_text.h"

#include <string.h>

#include <utf8proc.h>

#include "text/unicode.h"

bool op_text_is_space(uint32_t c)
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
text op_text_strip(text t, const text *set, bool left, bool right)
{
    while (left && t.n) {
        uint32_t c = op_utf8_get(t.s);
        if (!(set ? is_one_of(*set, c) : op_text_is_space(c)))
            break;
        size_t n = op_utf8_length((unsigned char)t.s[0]);
        t = (text){t.s + n, t.n - n};
    }
    while (right && t.n) {
        size_t last = op_utf8_back(t.s, t.n);
        uint32_t c = op_utf8_get(t.s + last);
        if (!(set ? is_one_of(*set, c) : op_text_is_space(c)))
            break;
        t.n = last;
    }
    return t;
}

value op_text_value(text t)
{
    return op_value_string(t.s, t.n);
}

static bool is_letter(uint32_t c)
{
    return op_class(c) & OP_LETTER;
}

value op_text_change_case(jinja *j, text t, letter_case how)
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
                : how == CASE_JINJA_TITLE ? op_text_is_space((uint32_t)c) || (c < 128 && c && strchr("-({[<", c))
                                          : false;
    }
    out[n] = 0;
    return op_value_string(out, n);
}

bool op_text_starts_with(text t, text prefix)
{
    return t.n >= prefix.n && memcmp(t.s, prefix.s, prefix.n) == 0;
}

bool op_text_ends_with(text t, text suffix)
{
    return t.n >= suffix.n && memcmp(t.s + t.n - suffix.n, suffix.s, suffix.n) == 0;
}

/* Every `old` becomes `new`, at most `limit` times (negative: all). */
value op_text_replace(jinja *j, text t, text old, text new, int64_t limit)
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

value op_text_split_spaces(jinja *j, text t, int64_t limit)
{
    value out = op_value_list(j, 0);
    for (t = op_text_strip(t, NULL, true, false); t.n && !j->status; t = op_text_strip(t, NULL, true, false)) {
        size_t n = 0;
        if (limit == 0) {
            n = t.n;
            op_list_add(j, out.list, op_value_string(t.s, n));
            return out;
        }
        while (n < t.n && !op_text_is_space(op_utf8_get(t.s + n)))
            n += op_utf8_length((unsigned char)t.s[n]);
        op_list_add(j, out.list, op_value_string(t.s, n));
        t = (text){t.s + n, t.n - n};
        limit -= limit > 0;
    }
    return out;
}

/* Last place of `what` in t, or t.n + 1. */
size_t op_text_find_last(text t, text what)
{
    for (size_t i = t.n + 1; i-- > 0;)
        if (t.n - i >= what.n && memcmp(t.s + i, what.s, what.n) == 0)
            return i;
    return t.n + 1;
}

value op_text_split(jinja *j, int line, text t, text by, int64_t limit, bool from_right)
{
    value out = op_value_list(j, 0);
    if (!by.n)
        return op_jinja_fail(j, line, OP_ERR_ARG, "split with an empty separator");
    while (limit != 0 && !j->status) {
        const char *hit = memmem(t.s, t.n, by.s, by.n);
        if (!hit)
            break;
        size_t at = from_right ? op_text_find_last(t, by) : (size_t)(hit - t.s);
        if (from_right) {
            op_list_add(j, out.list, op_value_string(t.s + at + by.n, t.n - at - by.n));
            t.n = at;
        } else {
            op_list_add(j, out.list, op_value_string(t.s, at));
            t = (text){t.s + at + by.n, t.n - at - by.n};
        }
        limit -= limit > 0;
    }
    op_list_add(j, out.list, op_text_value(t));
    for (size_t i = 0; from_right && i < out.list->n / 2; i++) {
        value swap = out.list->items[i];
        out.list->items[i] = out.list->items[out.list->n - 1 - i];
        out.list->items[out.list->n - 1 - i] = swap;
    }
    return out;
}

value op_text_split_lines(jinja *j, text t)
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

size_t op_text_characters(text t)
{
    size_t n = 0;
    for (size_t i = 0; i < t.n; i++)
        n += ((unsigned char)t.s[i] & 0xc0) != 0x80;
    return n;
}

int op_text_find_word(text name, const char *const *names)
{
    for (int i = 0; names[i]; i++)
        if (op_text_is(name, names[i]))
            return i;
    return -1;
}

/* Argument number i, or the one called `name`, or NULL. */
const value *op_jinja_argument(const list *args, const dict *kwargs, size_t i, const char *name)
{
    if (i < args->n)
        return &args->items[i];
    return kwargs && name ? op_dict_get_name(kwargs, (text){name, strlen(name)}) : NULL;
}

bool op_jinja_flag(const list *args, const dict *kwargs, size_t i, const char *name)
{
    const value *v = op_jinja_argument(args, kwargs, i, name);
    return v && op_value_is_true(*v);
}

int64_t op_jinja_integer(const value *v, int64_t fallback)
{
    return v && v->kind == V_INT ? v->i : v && v->kind == V_BOOL ? v->b : fallback;
}

value op_jinja_missing(jinja *j, int line, const char *what)
{
    return op_jinja_fail(j, line, OP_ERR_ARG, "%s: an argument is missing or of the wrong type", what);
}

value op_jinja_dotted(jinja *j, int line, value v, value path, const value *fallback)
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
        v = op_jinja_item(j, line, v, number ? op_value_int(index) : op_text_value(name));
        v = v.kind == V_UNDEFINED && fallback ? *fallback : v;
        if (!dot)
            break;
        rest = (text){dot + 1, rest.n - name.n - 1};
    }
    return v;
}

value op_text_join(jinja *j, int line, const list *items, text by, const value *attribute)
{
    op_buf b;
    op_buf_init(&b, j->pool->max);
    op_status s = OP_OK;
    for (size_t i = 0; i < items->n && !s && !j->status; i++) {
        value item = attribute ? op_jinja_dotted(j, line, items->items[i], *attribute, NULL) : items->items[i];
        text t = op_value_text(j, item);
        if (i)
            s = op_buf_add(&b, by.s, by.n);
        s = s ? s : op_buf_add(&b, t.s, t.n);
    }
    value v = op_value_copy_string(j, b.data ? b.data : "", b.len);
    op_buf_release(&b);
    return s ? op_jinja_fail(j, line, s, "out of memory, or more than %zu bytes of values", j->pool->max) : v;
}

value op_dict_items(jinja *j, const dict *d, bool keys, bool values)
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
