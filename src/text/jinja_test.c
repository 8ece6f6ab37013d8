/* What may follow "is". */
#include <string.h>

#include "text/jinja_text.h"

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

int op_jinja_test_find(text name)
{
    return op_text_find_word(name, tests);
}

bool op_jinja_test_apply(jinja *j, int line, int test, value v, const list *args)
{
    const value *x = op_jinja_argument(args, NULL, 0, NULL);
    if (test >= TEST_EQ || test == TEST_DIVISIBLEBY || test == TEST_IN || test == TEST_SAMEAS) {
        if (!x) {
            op_jinja_missing(j, line, tests[test]);
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
        value same = op_text_change_case(j, t, test == TEST_LOWER ? CASE_LOWER : CASE_UPPER);
        value other = op_text_change_case(j, t, test == TEST_LOWER ? CASE_UPPER : CASE_LOWER);
        return op_value_equal(same, op_text_value(t)) && !op_value_equal(other, op_text_value(t));
    }
    case TEST_ODD:
    case TEST_EVEN:
        if (v.kind != V_INT) {
            op_jinja_missing(j, line, tests[test]);
            return false;
        }
        return (v.i & 1) == (test == TEST_ODD);
    case TEST_DIVISIBLEBY:
        if (v.kind != V_INT || x->kind != V_INT || !x->i) {
            op_jinja_missing(j, line, tests[test]);
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
