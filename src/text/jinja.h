/* text/jinja.h: the parts of the template interpreter: syntax tree, values, and what the files share.
 *
 *   jinja_lex.c     source -> tokens, with the white-space rules of trim_blocks and lstrip_blocks
 *   jinja_parse.c   tokens -> tree
 *   jinja_value.c   values: from JSON, to text as Python writes it, to JSON, comparison
 *   jinja_eval.c    the tree is walked: expressions, statements
 *   jinja_filter.c, jinja_test.c, jinja_method.c  what templates call; on strings through jinja_text.h
 *
 * Errors are sticky: the first one is kept in jinja.status and every function returns at once afterwards, so that
 * expressions need no check after each step. Memory comes from a pool that is freed as a whole. */
#ifndef OP_TEXT_JINJA_H
#define OP_TEXT_JINJA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include <operant/buf.h>
#include <operant/status.h>

#define JINJA_SOURCE_MAX ((size_t)1 << 20) /* bytes of a template */
#define JINJA_DEPTH_MAX 100                /* nesting of blocks and brackets */
#define JINJA_EVAL_MAX 1000                /* nesting of what is evaluated, macro calls included */
#define JINJA_STEPS_MAX 5000000            /* nodes visited in one rendering */
#define JINJA_POOL_MAX ((size_t)256 << 20) /* bytes of values in one rendering */
#define JINJA_RANGE_MAX 100000

/* Memory that is freed together. */
typedef struct pool_chunk pool_chunk;
typedef struct pool {
    pool_chunk *chunks;
    size_t used, max;
} pool;
void *op_pool_alloc(pool *p, size_t bytes); /* 16-byte aligned; NULL: memory or the limit is out */
void op_pool_release(pool *p);

typedef enum value_kind {
    V_UNDEFINED, V_NONE, V_BOOL, V_INT, V_FLOAT, V_STRING, V_LIST, V_DICT, V_NAMESPACE, V_LOOP, V_MACRO, V_FUNCTION, V_METHOD,
} value_kind;

typedef struct value value;
typedef struct node node;

typedef struct text {
    const char *s;
    size_t n;
} text;

typedef struct list {
    value *items;
    size_t n, cap;
    bool tuple; /* written (a, b) */
    bool lazy;  /* what Python calls a generator: true even when empty */
} list;

typedef struct dict {
    value *pairs; /* key, value, key, value */
    size_t n, cap; /* of pairs */
} dict;

typedef struct loop {
    const list *items;
    size_t at;
} loop;

typedef struct method method;

struct value {
    value_kind kind;
    union {
        bool b;
        int64_t i;
        double f;
        text s; /* V_STRING: the string; V_UNDEFINED and V_FUNCTION: the name */
        list *list;
        dict *dict; /* V_DICT, V_NAMESPACE */
        loop *loop;
        const node *macro;
        method *method;
    };
};

struct method {
    value self;
    text name;
};

typedef enum node_kind {
    /* statements */
    N_TEXT, N_OUTPUT, N_IF, N_FOR, N_SET, N_SET_BLOCK, N_MACRO, N_BREAK, N_CONTINUE,
    /* expressions */
    N_CONST, N_NAME, N_LIST, N_TUPLE, N_DICT, N_ATTR, N_ITEM, N_SLICE, N_CALL, N_FILTER, N_TEST, N_NOT, N_NEGATE, N_PLUS,
    N_BINARY, N_AND, N_OR, N_COMPARE, N_CONDITION,
} node_kind;

typedef enum op_kind {
    O_ADD, O_SUB, O_MUL, O_DIV, O_FLOORDIV, O_MOD, O_POW, O_CONCAT, O_EQ, O_NE, O_LT, O_LE, O_GT, O_GE, O_IN, O_NOT_IN,
} op_kind;

/* Children by kind:
 *   N_OUTPUT a | N_IF a, body, orelse | N_FOR target a, sequence b, condition c, body, orelse | N_SET target a, b
 *   N_SET_BLOCK target a, filters b (around an empty N_CONST), body | N_MACRO name, args (names), kwargs (defaults), body
 *   N_ATTR a.name | N_ITEM a[b] | N_SLICE a[b:c:d] | N_CALL a(args, kwargs) | N_FILTER a|name(args) | N_TEST a is name(args)
 *   N_BINARY a op b | N_COMPARE a, then next: op b, op b ... | N_CONDITION a if b else c
 *   N_LIST, N_TUPLE, N_DICT args (pairs one after the other) */
struct node {
    node_kind kind;
    op_kind op;
    int line;
    int builtin; /* N_FILTER, N_TEST: number of the filter or test */
    text name;   /* N_TEXT: the text */
    value value; /* N_CONST */
    node *a, *b, *c, *d;
    node *body, *orelse; /* first statements */
    node *args;          /* first argument */
    node *kwargs;        /* first keyword argument: name, a */
    node *next;          /* next sibling */
};

typedef enum token_kind {
    T_TEXT, T_PRINT_BEGIN, T_PRINT_END, T_BLOCK_BEGIN, T_BLOCK_END, T_NAME, T_STRING, T_INT, T_FLOAT, T_OP, T_END,
} token_kind;

typedef struct token {
    token_kind kind;
    int line;
    text s; /* the text, name, string (unescaped) or operator */
    double f;
    int64_t i;
} token;

typedef struct token_list {
    token *items; /* owned */
    size_t n, cap;
} token_list;

/* A variable; those of the innermost scope come last. */
typedef struct variable {
    text name;
    value value;
} variable;

/* What is at work: parsing or one rendering. */
typedef struct jinja {
    pool *pool;
    op_error *e;
    op_status status; /* the first error */
    int depth;
    long steps;

    op_buf *out;
    variable *variables; /* owned */
    size_t n_variables, variables_cap;
    size_t globals; /* variables below this are those of the template itself, seen from macros */
    size_t visible; /* variables from here on are seen, besides the globals */
    size_t frame;   /* variables from here on belong to the innermost scope */
    int leaving;    /* 0, or N_BREAK or N_CONTINUE on its way to its loop */
} jinja;

/* Keeps the first error, with its line; returns undefined. */
value op_jinja_fail(jinja *j, int line, op_status s, const char *format, ...) OP_PRINTF(4, 5);
void *op_jinja_alloc(jinja *j, size_t bytes); /* NULL: the error is set */

/* jinja_lex.c; strings point into `source` or into the pool */
void op_jinja_lex(jinja *j, const char *source, size_t n, token_list *out);
/* jinja_parse.c */
node *op_jinja_parse(jinja *j, const token_list *tokens);

/* jinja_value.c */
value op_value_none(void);
value op_value_bool(bool b);
value op_value_int(int64_t i);
value op_value_float(double f);
value op_value_string(const char *s, size_t n); /* borrowed */
value op_value_copy_string(jinja *j, const char *s, size_t n);
value op_value_undefined(text name);
value op_value_list(jinja *j, size_t cap);
value op_value_dict(jinja *j, value_kind kind);
void op_list_add(jinja *j, list *l, value v);
void op_dict_set(jinja *j, dict *d, value key, value v);
const value *op_dict_get(const dict *d, value key); /* NULL: absent */
const value *op_dict_get_name(const dict *d, text name);
value op_value_from_json(jinja *j, const json_t *x);
bool op_value_is_true(value v);
bool op_value_equal(value a, value b);
int op_value_compare(jinja *j, int line, value a, value b); /* an error if they have no order */
bool op_value_is_number(value v); /* bool, int or float */
double op_value_number(value v);
text op_value_text(jinja *j, value v);                    /* str(v) */
void op_value_print(jinja *j, op_buf *out, value v);      /* appends str(v) */
const char *op_value_kind_name(value v);                  /* as Python calls the type */
typedef struct json_style {
    int indent; /* -1: one line */
    bool ascii, sort;
    text item_separator, key_separator;
} json_style;
void op_value_to_json(jinja *j, int line, op_buf *out, value v, const json_style *style, int level);
list *op_value_items(jinja *j, int line, value v); /* what a loop over v sees; an error if v cannot be looped over */
bool op_text_is(text t, const char *s);

/* jinja_eval.c */
value op_jinja_eval(jinja *j, const node *n);
void op_jinja_run(jinja *j, const node *statements);
value op_jinja_attribute(jinja *j, int line, value of, text name);
value op_jinja_item(jinja *j, int line, value of, value key);
value op_jinja_call(jinja *j, int line, value callee, const list *args, const dict *kwargs);
bool op_jinja_lookup(const jinja *j, text name, value *out);
void op_jinja_set(jinja *j, text name, value v);

/* jinja_filter.c, jinja_test.c, jinja_method.c: numbers of filters and tests by name (-1: unknown), and their application */
int op_jinja_filter_find(text name);
int op_jinja_test_find(text name);
value op_jinja_filter_apply(jinja *j, int line, int filter, value v, const list *args, const dict *kwargs);
bool op_jinja_test_apply(jinja *j, int line, int test, value v, const list *args);
bool op_jinja_has_method(value of, text name);
value op_jinja_method_call(jinja *j, int line, value self, text name, const list *args, const dict *kwargs);
bool op_jinja_has_function(text name);
value op_jinja_function_call(jinja *j, int line, text name, const list *args, const dict *kwargs);

#endif
