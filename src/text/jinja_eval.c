#include <math.h>
#include <string.h>

#include <operant/chat.h>

#include "base/mem.h"
#include "text/jinja_text.h"
#include "text/unicode.h"

struct op_template {
    pool pool;
    char *source;
    node *statements;
};

/* ---- variables ---- */

bool op_jinja_lookup(const jinja *j, text name, value *out)
{
    for (size_t i = j->n_variables; i > 0; i--) {
        if (i == j->visible && j->visible > j->globals)
            i = j->globals;
        if (i == 0)
            break;
        const variable *v = &j->variables[i - 1];
        if (v->name.n == name.n && memcmp(v->name.s, name.s, name.n) == 0) {
            *out = v->value;
            return true;
        }
    }
    return false;
}

static void push_variable(jinja *j, text name, value v)
{
    if (j->status)
        return;
    if (j->n_variables == j->variables_cap) {
        size_t cap = j->variables_cap ? 2 * j->variables_cap : 64;
        variable *more = op_realloc(j->variables, cap * sizeof *more);
        if (!more) {
            op_jinja_fail(j, 0, OP_ERR_NOMEM, "out of memory");
            return;
        }
        j->variables = more;
        j->variables_cap = cap;
    }
    j->variables[j->n_variables++] = (variable){name, v};
}

void op_jinja_set(jinja *j, text name, value v)
{
    for (size_t i = j->frame; i < j->n_variables; i++)
        if (j->variables[i].name.n == name.n && memcmp(j->variables[i].name.s, name.s, name.n) == 0) {
            j->variables[i].value = v;
            return;
        }
    push_variable(j, name, v);
    if (j->frame == 0)
        j->globals = j->n_variables;
}

static void assign(jinja *j, const node *target, value v)
{
    if (j->status)
        return;
    if (target->kind == N_NAME) {
        op_jinja_set(j, target->name, v);
    } else if (target->kind == N_ATTR) {
        value space;
        if (!op_jinja_lookup(j, target->a->name, &space) || space.kind != V_NAMESPACE)
            op_jinja_fail(j, target->line, OP_ERR_ARG, "'%.*s' is no namespace: its attributes cannot be set",
                       (int)target->a->name.n, target->a->name.s);
        else
            op_dict_set(j, space.dict, op_value_string(target->name.s, target->name.n), v);
    } else {
        const list *l = op_value_items(j, target->line, v);
        size_t i = 0;
        for (const node *t = target->args; t; t = t->next, i++)
            if (i < l->n)
                assign(j, t, l->items[i]);
        if (i != l->n)
            op_jinja_fail(j, target->line, OP_ERR_ARG, "%zu values for %zu names", l->n, i);
    }
}

/* ---- expressions ---- */

static value loop_attribute(jinja *j, const loop *l, text name)
{
    size_t n = l->items->n, i = l->at;
    if (op_text_is(name, "index"))
        return op_value_int((int64_t)i + 1);
    if (op_text_is(name, "index0"))
        return op_value_int((int64_t)i);
    if (op_text_is(name, "first"))
        return op_value_bool(i == 0);
    if (op_text_is(name, "last"))
        return op_value_bool(i + 1 == n);
    if (op_text_is(name, "length"))
        return op_value_int((int64_t)n);
    if (op_text_is(name, "revindex"))
        return op_value_int((int64_t)(n - i));
    if (op_text_is(name, "revindex0"))
        return op_value_int((int64_t)(n - i) - 1);
    if (op_text_is(name, "previtem"))
        return i ? l->items->items[i - 1] : op_value_undefined(name);
    if (op_text_is(name, "nextitem"))
        return i + 1 < n ? l->items->items[i + 1] : op_value_undefined(name);
    return op_jinja_fail(j, 0, OP_ERR_UNSUPPORTED, "'loop.%.*s' is not supported", (int)name.n, name.s);
}

value op_jinja_attribute(jinja *j, int line, value of, text name)
{
    const value *found = NULL;
    if (j->status)
        return of;
    if (of.kind == V_UNDEFINED)
        return op_jinja_fail(j, line, OP_ERR_ARG, "'%.*s' is undefined: it has no '%.*s'", (int)of.s.n, of.s.s, (int)name.n, name.s);
    if (of.kind == V_LOOP)
        return loop_attribute(j, of.loop, name);
    if (of.kind == V_NAMESPACE || (of.kind == V_DICT && !op_jinja_has_method(of, name)))
        return (found = op_dict_get_name(of.dict, name)) ? *found : op_value_undefined(name);
    if (!op_jinja_has_method(of, name))
        return op_value_undefined(name);
    method *m = op_jinja_alloc(j, sizeof *m);
    if (!m)
        return of;
    *m = (method){of, name};
    return (value){.kind = V_METHOD, .method = m};
}

/* Byte offset of character k. */
static size_t byte_of(text t, size_t k)
{
    size_t i = 0;
    for (; k && i < t.n; k--)
        i += op_utf8_length((unsigned char)t.s[i]);
    return i;
}

value op_jinja_item(jinja *j, int line, value of, value key)
{
    if (j->status)
        return of;
    if (of.kind == V_UNDEFINED)
        return op_jinja_fail(j, line, OP_ERR_ARG, "'%.*s' is undefined: it has no items", (int)of.s.n, of.s.s);
    const value *found = of.kind == V_DICT ? op_dict_get(of.dict, key) : NULL;
    if (found)
        return *found;
    if ((of.kind == V_LIST || of.kind == V_STRING) && (key.kind == V_INT || key.kind == V_BOOL)) {
        int64_t n = of.kind == V_LIST ? (int64_t)of.list->n : (int64_t)op_text_characters(of.s);
        int64_t i = key.kind == V_INT ? key.i : key.b;
        i += i < 0 ? n : 0;
        if (i < 0 || i >= n)
            return op_value_undefined((text){"item", 4});
        if (of.kind == V_LIST)
            return of.list->items[i];
        size_t at = byte_of(of.s, (size_t)i);
        return op_value_string(of.s.s + at, op_utf8_length((unsigned char)of.s.s[at]));
    }
    if (key.kind == V_STRING)
        return op_jinja_attribute(j, line, of, key.s);
    return op_value_undefined((text){"item", 4});
}

/* One end of a slice: absent or none is `fallback`; negative counts from the end; cut to [low, high]. */
static int64_t bound(jinja *j, const node *n, int64_t fallback, int64_t length, int64_t low, int64_t high)
{
    value v = n ? op_jinja_eval(j, n) : op_value_none();
    if (v.kind == V_NONE)
        return fallback;
    if (v.kind != V_INT) {
        op_jinja_fail(j, n->line, OP_ERR_ARG, "a slice with a %s", op_value_kind_name(v));
        return 0;
    }
    int64_t i = v.i < 0 ? v.i + length : v.i;
    return i < low ? low : i > high ? high : i;
}

static value slice(jinja *j, const node *n)
{
    value of = op_jinja_eval(j, n->a), step = n->d ? op_jinja_eval(j, n->d) : op_value_int(1);
    if (j->status)
        return of;
    if (of.kind != V_LIST && of.kind != V_STRING)
        return op_jinja_fail(j, n->line, OP_ERR_ARG, "a value of type %s cannot be sliced", op_value_kind_name(of));
    if (step.kind == V_NONE)
        step = op_value_int(1);
    if (step.kind != V_INT || step.i == 0 || step.i > INT32_MAX || step.i < -INT32_MAX)
        return op_jinja_fail(j, n->line, OP_ERR_ARG, "the step of a slice must be a number other than 0");
    const list *l = op_value_items(j, n->line, of);
    int64_t length = (int64_t)l->n, by = step.i;
    int64_t first = by > 0 ? bound(j, n->b, 0, length, 0, length) : bound(j, n->b, length - 1, length, -1, length - 1);
    int64_t last = by > 0 ? bound(j, n->c, length, length, 0, length) : bound(j, n->c, -1, length, -1, length - 1);
    if (of.kind == V_STRING && by == 1) {
        size_t from = byte_of(of.s, (size_t)first);
        size_t to = last > first ? byte_of(of.s, (size_t)last) : from;
        return op_value_string(of.s.s + from, to - from);
    }
    value out = op_value_list(j, 0);
    for (int64_t i = first; (by > 0 ? i < last : i > last) && !j->status; i += by)
        op_list_add(j, out.list, l->items[i]);
    if (of.kind == V_LIST) {
        if (!j->status)
            out.list->tuple = of.list->tuple;
        return out;
    }
    return op_jinja_method_call(j, n->line, op_value_string("", 0), (text){"join", 4}, &(list){.items = &out, .n = 1}, NULL);
}

static value concatenate(jinja *j, text a, text b)
{
    char *s = op_jinja_alloc(j, a.n + b.n + 1);
    if (!s)
        return op_value_string("", 0);
    memcpy(s, a.s, a.n);
    memcpy(s + a.n, b.s, b.n);
    return op_value_string(s, a.n + b.n);
}

static value repeat(jinja *j, int line, value what, int64_t times)
{
    value out = what.kind == V_LIST ? op_value_list(j, 0) : op_value_string("", 0);
    size_t n = what.kind == V_LIST ? what.list->n : what.s.n;
    if (times <= 0 || !n)
        return out;
    if ((uint64_t)times > j->pool->max / n)
        return op_jinja_fail(j, line, OP_ERR_NOMEM, "a repetition of more than %zu bytes", j->pool->max);
    if (what.kind == V_LIST) {
        for (int64_t k = 0; k < times && !j->status; k++)
            for (size_t i = 0; i < n && !j->status; i++)
                op_list_add(j, out.list, what.list->items[i]);
        return out;
    }
    char *s = op_jinja_alloc(j, n * (size_t)times + 1);
    for (int64_t k = 0; s && k < times; k++)
        memcpy(s + n * (size_t)k, what.s.s, n);
    return s ? op_value_string(s, n * (size_t)times) : out;
}

static int64_t whole(value v)
{
    return v.kind == V_BOOL ? v.b : v.i;
}

static value arithmetic(jinja *j, int line, op_kind op, value a, value b)
{
    static const char *const signs[] = {"+", "-", "*", "/", "//", "%", "**"};
    if (op == O_ADD && a.kind == V_STRING && b.kind == V_STRING)
        return concatenate(j, a.s, b.s);
    if (op == O_ADD && a.kind == V_LIST && b.kind == V_LIST) {
        value out = op_value_list(j, a.list->n + b.list->n);
        for (size_t i = 0; i < a.list->n; i++)
            op_list_add(j, out.list, a.list->items[i]);
        for (size_t i = 0; i < b.list->n; i++)
            op_list_add(j, out.list, b.list->items[i]);
        return out;
    }
    if (op == O_MUL && (a.kind == V_STRING || a.kind == V_LIST) && (b.kind == V_INT || b.kind == V_BOOL))
        return repeat(j, line, a, whole(b));
    if (op == O_MUL && (b.kind == V_STRING || b.kind == V_LIST) && (a.kind == V_INT || a.kind == V_BOOL))
        return repeat(j, line, b, whole(a));
    for (int k = 0; k < 2; k++) {
        value v = k ? b : a;
        if (v.kind == V_UNDEFINED)
            return op_jinja_fail(j, line, OP_ERR_ARG, "'%.*s' is undefined: it cannot be used with %s", (int)v.s.n, v.s.s, signs[op]);
    }
    if (!op_value_is_number(a) || !op_value_is_number(b))
        return op_jinja_fail(j, line, OP_ERR_ARG, "%s cannot be used with %s and %s", signs[op], op_value_kind_name(a),
                          op_value_kind_name(b));
    bool zero = op_value_number(b) == 0;
    if (zero && (op == O_DIV || op == O_FLOORDIV || op == O_MOD))
        return op_jinja_fail(j, line, OP_ERR_ARG, "division by zero");
    if (a.kind != V_FLOAT && b.kind != V_FLOAT && op != O_DIV) {
        int64_t x = whole(a), y = whole(b), r = 0;
        bool overflow = false;
        switch (op) {
        case O_ADD: overflow = __builtin_add_overflow(x, y, &r); break;
        case O_SUB: overflow = __builtin_sub_overflow(x, y, &r); break;
        case O_MUL: overflow = __builtin_mul_overflow(x, y, &r); break;
        case O_POW:
            if (y < 0)
                return op_value_float(pow((double)x, (double)y));
            for (r = 1; y > 0 && !overflow; y--) {
                overflow = __builtin_mul_overflow(r, x, &r);
                if (r == 0 || r == 1)
                    break;
                if (r == -1 && x == -1) {
                    r = y % 2 ? -1 : 1;
                    break;
                }
            }
            break;
        default:
            if ((overflow = y == -1 && x == INT64_MIN))
                break;
            r = x / y - (x % y != 0 && (x < 0) != (y < 0));
            if (op == O_MOD)
                r = x - r * y;
        }
        return overflow ? op_jinja_fail(j, line, OP_ERR_ARG, "a number beyond 64 bits") : op_value_int(r);
    }
    double x = op_value_number(a), y = op_value_number(b);
    switch (op) {
    case O_ADD: return op_value_float(x + y);
    case O_SUB: return op_value_float(x - y);
    case O_MUL: return op_value_float(x * y);
    case O_DIV: return op_value_float(x / y);
    case O_FLOORDIV: return op_value_float(floor(x / y));
    case O_MOD: return op_value_float(x - floor(x / y) * y);
    default: return op_value_float(pow(x, y));
    }
}

static bool contains(jinja *j, int line, value in, value what)
{
    if (in.kind == V_STRING) {
        if (what.kind == V_STRING)
            return what.s.n == 0 || memmem(in.s.s, in.s.n, what.s.s, what.s.n);
        op_jinja_fail(j, line, OP_ERR_ARG, "'in' a string needs a string, not %s", op_value_kind_name(what));
        return false;
    }
    if (in.kind == V_DICT)
        return op_dict_get(in.dict, what);
    const list *l = op_value_items(j, line, in);
    for (size_t i = 0; i < l->n; i++)
        if (op_value_equal(l->items[i], what))
            return true;
    return false;
}

static bool compare(jinja *j, int line, op_kind op, value a, value b)
{
    switch (op) {
    case O_EQ: return op_value_equal(a, b);
    case O_NE: return !op_value_equal(a, b);
    case O_IN: return contains(j, line, b, a);
    case O_NOT_IN: return !contains(j, line, b, a);
    case O_LT: return op_value_compare(j, line, a, b) < 0;
    case O_LE: return op_value_compare(j, line, a, b) <= 0;
    case O_GT: return op_value_compare(j, line, a, b) > 0;
    default: return op_value_compare(j, line, a, b) >= 0;
    }
}

/* Positional and named arguments of a call, filter or test. */
static void arguments(jinja *j, const node *n, list **args, dict **kwargs)
{
    value l = op_value_list(j, 0), d;
    *args = l.list;
    *kwargs = NULL;
    for (const node *a = n->args; a && !j->status; a = a->next)
        op_list_add(j, l.list, op_jinja_eval(j, a));
    if (n->kwargs && !j->status) {
        d = op_value_dict(j, V_DICT);
        *kwargs = d.dict;
        for (const node *k = n->kwargs; k && !j->status; k = k->next)
            op_dict_set(j, d.dict, op_value_string(k->name.s, k->name.n), op_jinja_eval(j, k->a));
    }
}

/* Runs statements with their output going to a new string, in a scope of their own. */
static value capture(jinja *j, const node *statements)
{
    op_buf *outer = j->out, b;
    size_t frame = j->frame, n = j->n_variables;
    op_buf_init(&b, outer->max);
    j->out = &b;
    j->frame = n;
    op_jinja_run(j, statements);
    j->frame = frame;
    j->n_variables = n;
    j->out = outer;
    value v = op_value_copy_string(j, b.data ? b.data : "", b.len);
    op_buf_release(&b);
    return v;
}

static value call_macro(jinja *j, int line, const node *m, const list *args, const dict *kwargs)
{
    size_t visible = j->visible, n = j->n_variables, frame = j->frame, i = 0, used = 0;
    j->visible = j->frame = n;
    for (const node *p = m->args; p; p = p->next, i++) {
        const value *named = kwargs ? op_dict_get_name(kwargs, p->name) : NULL;
        const node *fallback = m->kwargs;
        while (fallback && !(fallback->name.n == p->name.n && memcmp(fallback->name.s, p->name.s, p->name.n) == 0))
            fallback = fallback->next;
        used += named != NULL;
        push_variable(j, p->name, i < args->n ? args->items[i]
                                  : named     ? *named
                                  : fallback  ? op_jinja_eval(j, fallback->a)
                                              : op_value_undefined(p->name));
    }
    if (args->n > i || (kwargs && used != kwargs->n))
        op_jinja_fail(j, line, OP_ERR_ARG, "macro '%.*s' takes %zu arguments and no others", (int)m->name.n, m->name.s, i);
    value v = capture(j, m->body);
    j->visible = visible;
    j->n_variables = n;
    j->frame = frame;
    return v;
}

value op_jinja_call(jinja *j, int line, value callee, const list *args, const dict *kwargs)
{
    if (j->status)
        return callee;
    if (callee.kind == V_MACRO)
        return call_macro(j, line, callee.macro, args, kwargs);
    if (callee.kind == V_FUNCTION)
        return op_jinja_function_call(j, line, callee.s, args, kwargs);
    if (callee.kind == V_METHOD)
        return op_jinja_method_call(j, line, callee.method->self, callee.method->name, args, kwargs);
    if (callee.kind == V_UNDEFINED)
        return op_jinja_fail(j, line, OP_ERR_UNSUPPORTED, "'%.*s' is undefined, or a function that is not supported",
                          (int)callee.s.n, callee.s.s);
    return op_jinja_fail(j, line, OP_ERR_ARG, "a value of type %s cannot be called", op_value_kind_name(callee));
}

static value call(jinja *j, const node *n)
{
    list *args;
    dict *kwargs;
    const node *a = n->a;
    if (a->kind != N_ATTR) {
        value callee = op_jinja_eval(j, a);
        arguments(j, n, &args, &kwargs);
        return op_jinja_call(j, n->line, callee, args, kwargs);
    }
    value self = op_jinja_eval(j, a->a);
    if (j->status)
        return self;
    if (self.kind == V_LOOP && op_text_is(a->name, "cycle")) {
        arguments(j, n, &args, &kwargs);
        return args->n ? args->items[self.loop->at % args->n] : op_value_undefined(a->name);
    }
    if (op_jinja_has_method(self, a->name)) {
        arguments(j, n, &args, &kwargs);
        return j->status ? self : op_jinja_method_call(j, n->line, self, a->name, args, kwargs);
    }
    value callee = op_jinja_attribute(j, n->line, self, a->name);
    if (callee.kind == V_UNDEFINED)
        return op_jinja_fail(j, n->line, OP_ERR_UNSUPPORTED, "method '%.*s' of %s is not supported", (int)a->name.n, a->name.s,
                          op_value_kind_name(self));
    arguments(j, n, &args, &kwargs);
    return op_jinja_call(j, n->line, callee, args, kwargs);
}

static value eval(jinja *j, const node *n)
{
    value a, b;
    list *args;
    dict *kwargs;
    switch (n->kind) {
    case N_CONST: return n->value;
    case N_NAME:
        if (op_jinja_lookup(j, n->name, &a))
            return a;
        if (op_jinja_has_function(n->name))
            return (value){.kind = V_FUNCTION, .s = n->name};
        return op_value_undefined(n->name);
    case N_LIST:
    case N_TUPLE:
        a = op_value_list(j, 0);
        for (const node *x = n->args; x && !j->status; x = x->next)
            op_list_add(j, a.list, op_jinja_eval(j, x));
        if (!j->status)
            a.list->tuple = n->kind == N_TUPLE;
        return a;
    case N_DICT:
        a = op_value_dict(j, V_DICT);
        for (const node *x = n->args; x && x->next && !j->status; x = x->next->next) {
            b = op_jinja_eval(j, x);
            op_dict_set(j, a.dict, b, op_jinja_eval(j, x->next));
        }
        return a;
    case N_ATTR: return op_jinja_attribute(j, n->line, op_jinja_eval(j, n->a), n->name);
    case N_ITEM:
        a = op_jinja_eval(j, n->a);
        return op_jinja_item(j, n->line, a, op_jinja_eval(j, n->b));
    case N_SLICE: return slice(j, n);
    case N_CALL: return call(j, n);
    case N_FILTER:
        a = op_jinja_eval(j, n->a);
        arguments(j, n, &args, &kwargs);
        return j->status ? a : op_jinja_filter_apply(j, n->line, n->builtin, a, args, kwargs);
    case N_TEST:
        a = op_jinja_eval(j, n->a);
        arguments(j, n, &args, &kwargs);
        return j->status ? a : op_value_bool(op_jinja_test_apply(j, n->line, n->builtin, a, args));
    case N_NOT: return op_value_bool(!op_value_is_true(op_jinja_eval(j, n->a)));
    case N_NEGATE: return arithmetic(j, n->line, O_SUB, op_value_int(0), op_jinja_eval(j, n->a));
    case N_PLUS: return arithmetic(j, n->line, O_ADD, op_value_int(0), op_jinja_eval(j, n->a));
    case N_AND:
        a = op_jinja_eval(j, n->a);
        return op_value_is_true(a) ? op_jinja_eval(j, n->b) : a;
    case N_OR:
        a = op_jinja_eval(j, n->a);
        return op_value_is_true(a) ? a : op_jinja_eval(j, n->b);
    case N_CONDITION:
        if (op_value_is_true(op_jinja_eval(j, n->b)))
            return op_jinja_eval(j, n->a);
        return n->c ? op_jinja_eval(j, n->c) : op_value_undefined((text){"the inline if without else", 26});
    case N_COMPARE:
        a = op_jinja_eval(j, n->a);
        for (const node *x = n->args; x && !j->status; x = x->next) {
            b = op_jinja_eval(j, x->b);
            if (j->status || !compare(j, n->line, x->op, a, b))
                return op_value_bool(false);
            a = b;
        }
        return op_value_bool(true);
    case N_BINARY:
        a = op_jinja_eval(j, n->a);
        b = op_jinja_eval(j, n->b);
        if (j->status)
            return a;
        if (n->op == O_CONCAT)
            return concatenate(j, op_value_text(j, a), op_value_text(j, b));
        return arithmetic(j, n->line, n->op, a, b);
    default: return op_jinja_fail(j, n->line, OP_ERR_FORMAT, "a statement where a value is needed");
    }
}

/* Counts the visit; false: a limit is reached or an error is set. */
static bool step(jinja *j, int line)
{
    if (!j->status && ++j->steps > JINJA_STEPS_MAX)
        op_jinja_fail(j, line, OP_ERR_UNSUPPORTED, "more than %d steps", JINJA_STEPS_MAX);
    if (!j->status && j->depth >= JINJA_EVAL_MAX)
        op_jinja_fail(j, line, OP_ERR_UNSUPPORTED, "nested deeper than %d", JINJA_EVAL_MAX);
    return !j->status;
}

value op_jinja_eval(jinja *j, const node *n)
{
    if (!step(j, n->line))
        return op_value_undefined((text){"", 0});
    j->depth++;
    value v = eval(j, n);
    j->depth--;
    return v;
}

/* ---- statements ---- */

static void run_for(jinja *j, const node *n)
{
    static const text loop_name = {"loop", 4};
    const list *all = op_value_items(j, n->line, op_jinja_eval(j, n->b)), *items = all;
    size_t base = j->n_variables, frame = j->frame;
    j->frame = base;
    if (n->c) {
        value kept = op_value_list(j, 0);
        for (size_t i = 0; i < all->n && step(j, n->line); i++) {
            j->n_variables = base;
            assign(j, n->a, all->items[i]);
            if (op_value_is_true(op_jinja_eval(j, n->c)))
                op_list_add(j, kept.list, all->items[i]);
        }
        items = kept.list;
    }
    loop *l = op_jinja_alloc(j, sizeof *l);
    for (size_t i = 0; l && i < items->n && step(j, n->line); i++) {
        *l = (loop){items, i};
        j->n_variables = base;
        push_variable(j, loop_name, (value){.kind = V_LOOP, .loop = l});
        assign(j, n->a, items->items[i]);
        op_jinja_run(j, n->body);
        if (j->leaving == N_BREAK) {
            j->leaving = 0;
            break;
        }
        j->leaving = 0;
    }
    j->n_variables = base;
    j->frame = frame;
    if (!items->n)
        op_jinja_run(j, n->orelse);
}

static void run(jinja *j, const node *n)
{
    value v;
    switch (n->kind) {
    case N_TEXT: op_value_print(j, j->out, op_value_string(n->name.s, n->name.n)); break;
    case N_OUTPUT:
        v = op_jinja_eval(j, n->a);
        op_value_print(j, j->out, v);
        break;
    case N_IF:
        v = op_jinja_eval(j, n->a);
        op_jinja_run(j, op_value_is_true(v) ? n->body : n->orelse);
        break;
    case N_FOR: run_for(j, n); break;
    case N_SET: assign(j, n->a, op_jinja_eval(j, n->b)); break;
    case N_SET_BLOCK: {
        v = capture(j, n->body);
        const node *chain[16];
        size_t depth = 0;
        for (const node *f = n->b; f->kind == N_FILTER && depth < 16; f = f->a)
            chain[depth++] = f;
        while (depth && !j->status) {
            list *args;
            dict *kwargs;
            const node *f = chain[--depth];
            arguments(j, f, &args, &kwargs);
            v = j->status ? v : op_jinja_filter_apply(j, f->line, f->builtin, v, args, kwargs);
        }
        assign(j, n->a, v);
        break;
    }
    case N_MACRO: op_jinja_set(j, n->name, (value){.kind = V_MACRO, .macro = n}); break;
    case N_BREAK:
    case N_CONTINUE: j->leaving = n->kind; break;
    default: op_jinja_fail(j, n->line, OP_ERR_FORMAT, "a value where a statement is needed");
    }
}

void op_jinja_run(jinja *j, const node *statements)
{
    for (const node *n = statements; n && !j->leaving && step(j, n->line); n = n->next) {
        j->depth++;
        run(j, n);
        j->depth--;
    }
}

/* ---- the public functions ---- */

op_status op_template_parse(op_template **out, const char *source, size_t n, op_error *e)
{
    *out = NULL;
    if (n > JINJA_SOURCE_MAX)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "chat template: %zu bytes, at most %zu", n, JINJA_SOURCE_MAX);
    size_t valid = op_utf8_valid(source, n);
    if (valid < n)
        return op_error_set(e, OP_ERR_FORMAT, "chat template: byte %zu is not valid UTF-8", valid);
    op_template *t = op_alloc_zero(1, sizeof *t);
    char *copy = op_alloc(n + 1);
    if (!t || !copy) {
        op_free(t);
        op_free(copy);
        return op_error_set(e, OP_ERR_NOMEM, "chat template: out of memory");
    }
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) /* line ends become \n, as in Jinja */
        if (source[i] != '\r')
            copy[kept++] = source[i];
        else if (i + 1 == n || source[i + 1] != '\n')
            copy[kept++] = '\n';
    copy[kept] = 0;
    t->source = copy;
    t->pool.max = JINJA_POOL_MAX;
    jinja j = {.pool = &t->pool, .e = e};
    token_list tokens = {0};
    op_jinja_lex(&j, copy, kept, &tokens);
    if (!j.status)
        t->statements = op_jinja_parse(&j, &tokens);
    op_free(tokens.items);
    if (j.status) {
        op_template_free(t);
        return j.status;
    }
    *out = t;
    return OP_OK;
}

void op_template_free(op_template *t)
{
    if (!t)
        return;
    op_pool_release(&t->pool);
    op_free(t->source);
    op_free(t);
}

op_status op_template_render(const op_template *t, json_t *vars, op_buf *out, op_error *e)
{
    pool values = {.max = JINJA_POOL_MAX};
    jinja j = {.pool = &values, .e = e, .out = out};
    size_t start = out->len;
    value globals = op_value_from_json(&j, vars);
    push_variable(&j, (text){"", 0}, op_value_none()); /* so that only the template itself has frame 0 */
    for (size_t i = 0; globals.kind == V_DICT && i < globals.dict->n; i++)
        push_variable(&j, globals.dict->pairs[2 * i].s, globals.dict->pairs[2 * i + 1]);
    j.globals = j.n_variables;
    op_jinja_run(&j, t->statements);
    op_free(j.variables);
    op_pool_release(&values);
    if (j.status && out->data) {
        out->len = start;
        out->data[start] = 0;
    }
    return j.status;
}
