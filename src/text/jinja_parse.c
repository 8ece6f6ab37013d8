#include <string.h>

#include "text/jinja.h"

/* The grammar is that of Jinja's own parser: expressions by precedence, one function a level. */
typedef struct parser {
    jinja *j;
    const token *t; /* the next token; the last is T_END */
    int loops;      /* loops around this place, for break and continue */
} parser;

static node *expression(parser *p);
static node *unary(parser *p, bool with_filter);
static node *statements(parser *p, const char *const *ends);

static node *new_node(parser *p, node_kind kind)
{
    node *n = op_jinja_alloc(p->j, sizeof *n);
    if (n)
        *n = (node){.kind = kind, .line = p->t->line};
    return n;
}

static node *fail(parser *p, const char *expected)
{
    const token *t = p->t;
    if (t->kind == T_END)
        op_jinja_fail(p->j, t->line, OP_ERR_FORMAT, "expected %s, found the end of the template", expected);
    else
        op_jinja_fail(p->j, t->line, OP_ERR_FORMAT, "expected %s, found '%.*s'", expected, (int)(t->s.n < 40 ? t->s.n : 40), t->s.s);
    return NULL;
}

static bool failed(const parser *p)
{
    return p->j->status != OP_OK;
}

static bool enter(parser *p)
{
    if (++p->j->depth > JINJA_DEPTH_MAX)
        op_jinja_fail(p->j, p->t->line, OP_ERR_UNSUPPORTED, "nested deeper than %d", JINJA_DEPTH_MAX);
    return !failed(p);
}

static bool at_op(const parser *p, const char *op)
{
    return p->t->kind == T_OP && op_text_is(p->t->s, op);
}

static bool at_name(const parser *p, const char *name)
{
    return p->t->kind == T_NAME && op_text_is(p->t->s, name);
}

static bool skip_op(parser *p, const char *op)
{
    bool yes = at_op(p, op);
    p->t += yes;
    return yes;
}

static bool skip_name(parser *p, const char *name)
{
    bool yes = at_name(p, name);
    p->t += yes;
    return yes;
}

static void expect_op(parser *p, const char *op)
{
    char quoted[16] = "'";
    if (!skip_op(p, op)) {
        strcat(strcat(quoted, op), "'");
        fail(p, quoted);
    }
}

static void expect_kind(parser *p, token_kind kind, const char *what)
{
    if (p->t->kind == kind)
        p->t++;
    else
        fail(p, what);
}

static text expect_name(parser *p)
{
    text s = {"", 0};
    if (p->t->kind == T_NAME)
        s = (p->t++)->s;
    else
        fail(p, "a name");
    return s;
}

/* Puts n after *end, the place where the next sibling goes. */
static void append(node ***end, node *n)
{
    if (n) {
        **end = n;
        *end = &n->next;
    }
}

/* (a, b, name=c): p->t is after the "(". */
static void arguments(parser *p, node *call)
{
    node **args = &call->args, **kwargs = &call->kwargs;
    while (!failed(p) && !skip_op(p, ")")) {
        if (at_op(p, "*") || at_op(p, "**")) {
            fail(p, "an argument ('*' and '**' are not supported)");
        } else if (p->t->kind == T_NAME && p->t[1].kind == T_OP && op_text_is(p->t[1].s, "=")) {
            node *n = new_node(p, N_CONST);
            if (!n)
                return;
            n->name = p->t->s;
            p->t += 2;
            n->a = expression(p);
            append(&kwargs, n);
        } else {
            if (call->kwargs)
                fail(p, "a named argument");
            append(&args, expression(p));
        }
        if (!failed(p) && !at_op(p, ")"))
            expect_op(p, ",");
    }
}

static node *constant(parser *p, value v)
{
    node *n = new_node(p, N_CONST);
    if (n)
        n->value = v;
    return n;
}

/* Items up to `close`; the "(" or "[" is behind. */
static void items(parser *p, node **end, const char *close)
{
    while (!failed(p) && !skip_op(p, close)) {
        append(&end, expression(p));
        if (!failed(p) && !at_op(p, close))
            expect_op(p, ",");
    }
}

static node *parenthesis(parser *p)
{
    node *tuple = new_node(p, N_TUPLE);
    if (!tuple || skip_op(p, ")"))
        return tuple;
    node *first = expression(p);
    if (failed(p))
        return NULL;
    if (skip_op(p, ")"))
        return first;
    expect_op(p, ",");
    tuple->args = first;
    items(p, &first->next, ")");
    return tuple;
}

static node *dictionary(parser *p)
{
    node *n = new_node(p, N_DICT);
    node **end = n ? &n->args : NULL;
    while (!failed(p) && !skip_op(p, "}")) {
        append(&end, expression(p));
        expect_op(p, ":");
        append(&end, failed(p) ? NULL : expression(p));
        if (!failed(p) && !at_op(p, "}"))
            expect_op(p, ",");
    }
    return n;
}

static node *strings(parser *p)
{
    text s = p->t->s;
    node *n = constant(p, op_value_string(s.s, s.n));
    for (p->t++; n && p->t->kind == T_STRING; p->t++) { /* 'a' 'b' is 'ab' */
        text more = p->t->s;
        char *joined = op_jinja_alloc(p->j, s.n + more.n + 1);
        if (!joined)
            return NULL;
        memcpy(joined, s.s, s.n);
        memcpy(joined + s.n, more.s, more.n);
        s = (text){joined, s.n + more.n};
        n->value = op_value_string(s.s, s.n);
    }
    return n;
}

static node *primary(parser *p)
{
    const token *t = p->t;
    node *n;
    switch (t->kind) {
    case T_NAME:
        if (skip_name(p, "true") || skip_name(p, "True"))
            return constant(p, op_value_bool(true));
        if (skip_name(p, "false") || skip_name(p, "False"))
            return constant(p, op_value_bool(false));
        if (skip_name(p, "none") || skip_name(p, "None"))
            return constant(p, op_value_none());
        if ((n = new_node(p, N_NAME)))
            n->name = t->s;
        p->t++;
        return n;
    case T_STRING: return strings(p);
    case T_INT: n = constant(p, op_value_int(t->i)); p->t++; return n;
    case T_FLOAT: n = constant(p, op_value_float(t->f)); p->t++; return n;
    default: break;
    }
    if (skip_op(p, "("))
        return parenthesis(p);
    if (skip_op(p, "[")) {
        if ((n = new_node(p, N_LIST)))
            items(p, &n->args, "]");
        return n;
    }
    if (skip_op(p, "{"))
        return dictionary(p);
    return fail(p, "an expression");
}

/* What is between "[" and "]". */
static node *subscript(parser *p, node *of)
{
    node *n = new_node(p, N_ITEM);
    if (!n)
        return NULL;
    n->a = of;
    node *part[3] = {NULL, NULL, NULL};
    int colons = 0;
    while (!failed(p) && !skip_op(p, "]")) {
        if (skip_op(p, ":")) {
            if (++colons > 2)
                fail(p, "']'");
        } else if (part[colons]) {
            fail(p, "']'");
        } else {
            part[colons] = expression(p);
        }
    }
    if (!colons && !part[0])
        fail(p, "a subscript");
    n->b = part[0];
    if (colons) {
        n->kind = N_SLICE;
        n->c = part[1];
        n->d = part[2];
    }
    return n;
}

static node *postfix(parser *p, node *n)
{
    while (!failed(p)) {
        node *outer;
        if (skip_op(p, ".")) {
            if (p->t->kind == T_INT) {
                outer = new_node(p, N_ITEM);
                if (outer)
                    outer->b = constant(p, op_value_int(p->t->i));
                p->t++;
            } else {
                outer = new_node(p, N_ATTR);
                if (outer)
                    outer->name = expect_name(p);
            }
            if (outer)
                outer->a = n;
        } else if (skip_op(p, "[")) {
            outer = subscript(p, n);
        } else if (skip_op(p, "(")) {
            if ((outer = new_node(p, N_CALL))) {
                outer->a = n;
                arguments(p, outer);
            }
        } else {
            return n;
        }
        n = outer;
    }
    return NULL;
}

static node *filter(parser *p, node *of)
{
    node *n = new_node(p, N_FILTER);
    if (!n)
        return NULL;
    n->a = of;
    n->name = expect_name(p);
    n->builtin = op_jinja_filter_find(n->name);
    if (!failed(p) && n->builtin < 0)
        op_jinja_fail(p->j, n->line, OP_ERR_UNSUPPORTED, "filter '%.*s' is not supported", (int)n->name.n, n->name.s);
    if (skip_op(p, "("))
        arguments(p, n);
    return n;
}

/* After "is": a test, perhaps with one argument that needs no brackets. */
static node *test(parser *p, node *of)
{
    bool negated = skip_name(p, "not");
    node *n = new_node(p, N_TEST);
    if (!n)
        return NULL;
    n->a = of;
    n->name = expect_name(p);
    n->builtin = op_jinja_test_find(n->name);
    if (!failed(p) && n->builtin < 0)
        op_jinja_fail(p->j, n->line, OP_ERR_UNSUPPORTED, "test '%.*s' is not supported", (int)n->name.n, n->name.s);
    token_kind k = p->t->kind;
    if (skip_op(p, "("))
        arguments(p, n);
    else if ((k == T_NAME && !at_name(p, "else") && !at_name(p, "or") && !at_name(p, "and") && !at_name(p, "is") &&
              !at_name(p, "if") && !at_name(p, "not") && !at_name(p, "in")) ||
             k == T_STRING || k == T_INT || k == T_FLOAT || at_op(p, "[") || at_op(p, "{"))
        n->args = postfix(p, primary(p));
    if (!negated)
        return n;
    node *not = new_node(p, N_NOT);
    if (not)
        not->a = n;
    return not;
}

static node *filters(parser *p, node *n)
{
    while (!failed(p)) {
        if (skip_op(p, "|")) {
            n = filter(p, n);
        } else if (skip_name(p, "is")) {
            n = test(p, n);
        } else if (skip_op(p, "(")) {
            node *call = new_node(p, N_CALL);
            if (!call)
                return NULL;
            call->a = n;
            arguments(p, call);
            n = call;
        } else {
            return n;
        }
    }
    return NULL;
}

static node *unary(parser *p, bool with_filter)
{
    node *n = NULL;
    if (!enter(p))
        return NULL;
    bool minus = at_op(p, "-");
    if (minus || at_op(p, "+")) {
        if ((n = new_node(p, minus ? N_NEGATE : N_PLUS))) {
            p->t++;
            n->a = unary(p, false);
        }
    } else {
        n = primary(p);
    }
    n = postfix(p, n);
    if (with_filter)
        n = filters(p, n);
    p->j->depth--;
    return n;
}

static node *binary(parser *p, op_kind op, node *a, node *b)
{
    node *n = new_node(p, N_BINARY);
    if (n) {
        n->op = op;
        n->a = a;
        n->b = b;
    }
    return n;
}

typedef struct level {
    const char *sign;
    op_kind op;
} level;

/* Left-associative operators, the loosest level first; the last has no sign and means unary. */
static const level levels[4][5] = {
    {{"+", O_ADD}, {"-", O_SUB}},
    {{"~", O_CONCAT}},
    {{"*", O_MUL}, {"//", O_FLOORDIV}, {"/", O_DIV}, {"%", O_MOD}},
    {{"**", O_POW}},
};

static node *arithmetic(parser *p, int depth)
{
    if (depth == 4)
        return unary(p, true);
    node *n = arithmetic(p, depth + 1);
    for (const level *l = levels[depth]; l->sign && !failed(p);) {
        if (skip_op(p, l->sign)) {
            n = binary(p, l->op, n, arithmetic(p, depth + 1));
            l = levels[depth];
        } else {
            l++;
        }
    }
    return n;
}

static bool comparison(parser *p, op_kind *op)
{
    static const level signs[] = {{"==", O_EQ}, {"!=", O_NE}, {"<=", O_LE}, {">=", O_GE}, {"<", O_LT}, {">", O_GT}};
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++)
        if (skip_op(p, signs[i].sign)) {
            *op = signs[i].op;
            return true;
        }
    *op = at_name(p, "not") ? O_NOT_IN : O_IN;
    if (*op == O_NOT_IN && p->t[1].kind == T_NAME && op_text_is(p->t[1].s, "in")) {
        p->t += 2;
        return true;
    }
    return skip_name(p, "in");
}

static node *compare(parser *p)
{
    node *first = arithmetic(p, 0), *n = NULL, **end = NULL;
    op_kind op;
    while (!failed(p) && comparison(p, &op)) {
        if (!n) {
            if (!(n = new_node(p, N_COMPARE)))
                return NULL;
            n->a = first;
            end = &n->args;
        }
        append(&end, binary(p, op, NULL, arithmetic(p, 0)));
    }
    return n ? n : first;
}

static node *not(parser *p)
{
    if (!at_name(p, "not"))
        return compare(p);
    node *n = new_node(p, N_NOT);
    if (!n || !enter(p))
        return NULL;
    p->t++;
    n->a = not(p);
    p->j->depth--;
    return n;
}

static node *logic(parser *p, bool or)
{
    node *n = or ? logic(p, false) : not(p);
    while (!failed(p) && skip_name(p, or ? "or" : "and")) {
        node *both = new_node(p, or ? N_OR : N_AND);
        if (!both)
            return NULL;
        both->a = n;
        both->b = or ? logic(p, false) : not(p);
        n = both;
    }
    return n;
}

static node *expression(parser *p)
{
    if (!enter(p))
        return NULL;
    node *n = logic(p, true);
    while (!failed(p) && skip_name(p, "if")) {
        node *choice = new_node(p, N_CONDITION);
        if (!choice)
            return NULL;
        choice->a = n;
        choice->b = logic(p, true);
        if (skip_name(p, "else"))
            choice->c = expression(p);
        n = choice;
    }
    p->j->depth--;
    return n;
}

/* a or a, b without brackets. */
static node *bare_tuple(parser *p, bool conditions)
{
    node *first = conditions ? expression(p) : logic(p, true);
    if (failed(p) || !at_op(p, ","))
        return first;
    node *n = new_node(p, N_TUPLE);
    if (!n)
        return NULL;
    n->args = first;
    node **end = &first->next;
    while (!failed(p) && skip_op(p, ",") && p->t->kind != T_BLOCK_END && p->t->kind != T_PRINT_END)
        append(&end, conditions ? expression(p) : logic(p, true));
    return n;
}

/* The left side of set and for: a name, a.b (set only), or several names. */
static node *target(parser *p, bool attributes)
{
    node *n = NULL, **end = NULL, *tuple = NULL;
    bool bracket = skip_op(p, "(");
    do {
        if (tuple && p->t->kind != T_NAME)
            break;
        n = new_node(p, N_NAME);
        if (!n)
            return NULL;
        n->name = expect_name(p);
        if (attributes && !tuple && at_op(p, ".")) {
            p->t++;
            node *attribute = new_node(p, N_ATTR);
            if (!attribute)
                return NULL;
            attribute->a = n;
            attribute->name = expect_name(p);
            return attribute;
        }
        if (!tuple && at_op(p, ",")) {
            if (!(tuple = new_node(p, N_TUPLE)))
                return NULL;
            end = &tuple->args;
        }
        if (tuple)
            append(&end, n);
    } while (!failed(p) && skip_op(p, ","));
    if (bracket)
        expect_op(p, ")");
    return tuple ? tuple : n;
}

static void block_end(parser *p)
{
    expect_kind(p, T_BLOCK_END, "'%}'");
}

/* Statements up to one of the tags `ends`, whose name is consumed. */
static node *body(parser *p, const char *const *ends, const char **end)
{
    block_end(p);
    node *first = failed(p) ? NULL : statements(p, ends);
    *end = NULL;
    for (; !failed(p) && *ends; ends++)
        if (skip_name(p, *ends))
            *end = *ends;
    return first;
}

static node *if_statement(parser *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL}, *const last[] = {"endif", NULL};
    const char *end;
    node *n = new_node(p, N_IF);
    if (!n || !enter(p))
        return NULL;
    n->a = bare_tuple(p, true);
    n->body = body(p, ends, &end);
    if (end == ends[0])
        n->orelse = if_statement(p); /* consumes the endif */
    else if (end == ends[1])
        n->orelse = body(p, last, &end);
    p->j->depth--;
    return n;
}

static node *for_statement(parser *p)
{
    static const char *const ends[] = {"else", "endfor", NULL}, *const last[] = {"endfor", NULL};
    const char *end;
    node *n = new_node(p, N_FOR);
    if (!n)
        return NULL;
    n->a = target(p, false);
    if (!failed(p) && !skip_name(p, "in"))
        fail(p, "'in'");
    n->b = failed(p) ? NULL : bare_tuple(p, false);
    if (!failed(p) && skip_name(p, "if"))
        n->c = expression(p);
    if (at_name(p, "recursive"))
        op_jinja_fail(p->j, p->t->line, OP_ERR_UNSUPPORTED, "'recursive' loops are not supported");
    p->loops++;
    n->body = body(p, ends, &end);
    p->loops--;
    if (end == ends[0])
        n->orelse = body(p, last, &end);
    return n;
}

static node *set_statement(parser *p)
{
    static const char *const ends[] = {"endset", NULL};
    const char *end;
    node *n = new_node(p, N_SET);
    if (!n)
        return NULL;
    n->a = target(p, true);
    if (skip_op(p, "=")) {
        n->b = bare_tuple(p, true);
        return n;
    }
    n->kind = N_SET_BLOCK;
    n->b = filters(p, constant(p, op_value_none()));
    n->body = body(p, ends, &end);
    return n;
}

static node *macro_statement(parser *p)
{
    static const char *const ends[] = {"endmacro", NULL};
    const char *end;
    node *n = new_node(p, N_MACRO);
    if (!n)
        return NULL;
    n->name = expect_name(p);
    node **names = &n->args, **defaults = &n->kwargs;
    expect_op(p, "(");
    while (!failed(p) && !skip_op(p, ")")) {
        node *name = new_node(p, N_NAME);
        if (!name)
            return NULL;
        name->name = expect_name(p);
        append(&names, name);
        if (skip_op(p, "=")) {
            node *fallback = new_node(p, N_CONST);
            if (!fallback)
                return NULL;
            fallback->name = name->name;
            fallback->a = expression(p);
            append(&defaults, fallback);
        }
        if (!failed(p) && !at_op(p, ")"))
            expect_op(p, ",");
    }
    int loops = p->loops;
    p->loops = 0;
    n->body = body(p, ends, &end);
    p->loops = loops;
    return n;
}

/* A block tag: p->t is after "{%". `generation` marks a reply for transformers and prints what it holds. */
static node *statement(parser *p)
{
    static const char *const ends[] = {"endgeneration", NULL};
    const char *end;
    const token *t = p->t;
    node *n = NULL;
    if (!enter(p))
        return NULL;
    if (skip_name(p, "if"))
        n = if_statement(p);
    else if (skip_name(p, "for"))
        n = for_statement(p);
    else if (skip_name(p, "set"))
        n = set_statement(p);
    else if (skip_name(p, "macro"))
        n = macro_statement(p);
    else if (skip_name(p, "generation"))
        n = body(p, ends, &end);
    else if (p->loops && (at_name(p, "break") || at_name(p, "continue")))
        n = new_node(p, op_text_is((p->t++)->s, "break") ? N_BREAK : N_CONTINUE);
    else if (t->kind == T_NAME)
        op_jinja_fail(p->j, t->line, OP_ERR_UNSUPPORTED, "tag '%.*s' is not supported here", (int)(t->s.n < 60 ? t->s.n : 60), t->s.s);
    else
        fail(p, "the name of a tag");
    block_end(p);
    p->j->depth--;
    return n;
}

static node *statements(parser *p, const char *const *ends)
{
    node *first = NULL, **end = &first;
    while (!failed(p)) {
        const token *t = p->t;
        if (t->kind == T_END) {
            if (*ends)
                fail(p, *ends);
            break;
        }
        p->t++;
        if (t->kind == T_TEXT) {
            node *n = new_node(p, N_TEXT);
            if (n)
                n->name = t->s;
            append(&end, n);
        } else if (t->kind == T_PRINT_BEGIN) {
            node *n = new_node(p, N_OUTPUT);
            if (n)
                n->a = bare_tuple(p, true);
            append(&end, n);
            expect_kind(p, T_PRINT_END, "'}}'");
        } else {
            for (const char *const *e = ends; *e; e++)
                if (at_name(p, *e))
                    return first;
            node *n = statement(p);
            while (n) { /* a generation block gives several */
                node *next = n->next;
                append(&end, n);
                n = next;
            }
        }
    }
    return first;
}

node *op_jinja_parse(jinja *j, const token_list *tokens)
{
    static const char *const none[] = {NULL};
    parser p = {.j = j, .t = tokens->items};
    return statements(&p, none);
}
