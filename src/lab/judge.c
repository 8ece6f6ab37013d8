#include "lab/judge.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/mem.h"
#include "lab/yaml_get.h"

typedef enum place { REPLY, FIRST_SENTENCE, LAST_SENTENCE, ANY_QUESTION, PLACES } place;
static const char *const places[] = {"reply", "first_sentence", "last_sentence", "any_question"};

static const char *const replies[] = {"asks", "answers", "declines", "silent"};

typedef struct rule {
    char *name;
    op_reply verdict; /* of no meaning for hostility */
    place where;
    pcre2_code *code;
} rule;

enum { RULES_MAX = 64 }; /* hostility is a bit a rule */

typedef struct rules {
    rule rule[RULES_MAX];
    int n;
} rules;

struct op_judge {
    rules verdicts, hostility;
    op_reply fallback;
    pcre2_general_context *memory;
    pcre2_match_data *match;
    pcre2_match_context *how;
    pcre2_jit_stack *stack; /* patterns that walk over a whole reply need more than the 32 KiB that they get otherwise */
    char *name;
};

const char *op_reply_name(op_reply r)
{
    return replies[r];
}

op_reply op_reply_find(const char *name)
{
    for (int i = 0; i < OP_REPLY_COUNT; i++)
        if (!strcmp(name, replies[i]))
            return (op_reply)i;
    return OP_REPLY_COUNT;
}

/* ---- sentences ---- */

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Does text[n] end in . ! or ?, perhaps inside a closing quotation mark or bracket? */
static bool ends_sentence(const char *text, size_t n)
{
    static const char *const closers[] = {"\"", "'", ")", "]", "\u201d", "\u2019"};
    for (size_t i = 0; i < sizeof closers / sizeof *closers; i++) {
        size_t len = strlen(closers[i]);
        if (n > len && !memcmp(text + n - len, closers[i], len)) {
            n -= len;
            break;
        }
    }
    return n && strchr(".!?", text[n - 1]);
}

/* The sentence that begins at or after *at; false at the end. A sentence ends with its line, or with a mark that a blank follows. */
static bool next_sentence(const char *text, size_t n, size_t *at, size_t *start, size_t *end)
{
    while (*at < n && is_blank(text[*at]))
        (*at)++;
    *start = *at;
    while (*at < n && text[*at] != '\n' && !(is_blank(text[*at]) && ends_sentence(text + *start, *at - *start)))
        (*at)++;
    *end = *at;
    while (*end > *start && is_blank(text[*end - 1]))
        (*end)--;
    return *end > *start;
}

/* ---- matching ---- */

static op_status match(const op_judge *j, const rule *r, const char *text, size_t n, bool *found, op_error *e)
{
    int rc = pcre2_match(r->code, (PCRE2_SPTR)text, n, 0, 0, j->match, j->how);
    *found = rc >= 0;
    if (rc >= 0 || rc == PCRE2_ERROR_NOMATCH)
        return OP_OK;
    char why[120];
    pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof why);
    return op_error_set(e, rc == PCRE2_ERROR_NOMEMORY ? OP_ERR_NOMEM : OP_ERR_FORMAT, "%s: rule \"%s\" on the reply \"%.*s\": %s", j->name,
                        r->name, (int)(n < 60 ? n : 60), text, why);
}

static op_status holds(const op_judge *j, const rule *r, const char *text, size_t n, bool *found, op_error *e)
{
    if (r->where == REPLY)
        return match(j, r, text, n, found, e);
    size_t at = 0, start, end, last_start = 0, last_end = 0;
    *found = false;
    while (next_sentence(text, n, &at, &start, &end)) {
        last_start = start;
        last_end = end;
        if (r->where == FIRST_SENTENCE)
            break;
        if (r->where == ANY_QUESTION && text[end - 1] == '?') {
            op_status status = match(j, r, text + start, end - start, found, e);
            if (status || *found)
                return status;
        }
    }
    return r->where == ANY_QUESTION ? OP_OK : match(j, r, text + last_start, last_end - last_start, found, e);
}

op_status op_judge_reply(const op_judge *j, const char *text, size_t n, op_judgement *out, op_error *e)
{
    while (n && is_blank(text[n - 1]))
        n--;
    while (n && is_blank(*text)) {
        text++;
        n--;
    }
    *out = (op_judgement){n ? j->fallback : OP_REPLY_SILENT, "default", 0};
    bool found = false;
    for (int i = 0; n && !found && i < j->verdicts.n; i++) {
        const rule *r = &j->verdicts.rule[i];
        op_status status = holds(j, r, text, n, &found, e);
        if (status)
            return status;
        if (found)
            *out = (op_judgement){r->verdict, r->name, 0};
    }
    for (int i = 0; n && i < j->hostility.n; i++) {
        op_status status = holds(j, &j->hostility.rule[i], text, n, &found, e);
        if (status)
            return status;
        out->hostile |= (uint64_t)found << i;
    }
    return OP_OK;
}

const char *op_judge_hostility_name(const op_judge *j, int i)
{
    return i < j->hostility.n ? j->hostility.rule[i].name : NULL;
}

/* ---- reading the rules ---- */

static void *get_memory(size_t bytes, void *ctx)
{
    (void)ctx;
    return op_alloc(bytes);
}

static void free_memory(void *p, void *ctx)
{
    (void)ctx;
    op_free(p);
}

static op_status no_memory(const char *name, op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
}

static op_status compile(const op_judge *j, rule *r, const yaml_node_t *pattern, op_error *e)
{
    pcre2_compile_context *how = pcre2_compile_context_create(j->memory);
    if (!how)
        return no_memory(j->name, e);
    int code = 0;
    size_t offset = 0;
    r->code = pcre2_compile((PCRE2_SPTR)op_yaml_text(pattern), PCRE2_ZERO_TERMINATED, PCRE2_CASELESS | PCRE2_UTF | PCRE2_UCP, &code, &offset, how);
    pcre2_compile_context_free(how);
    if (r->code) {
        pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE); /* without it patterns run the same, slower */
        return OP_OK;
    }
    if (code == PCRE2_ERROR_NOMEMORY || code == 121 /* "failed to allocate heap memory" */)
        return no_memory(j->name, e);
    char why[120];
    pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
    return op_error_set(e, OP_ERR_FORMAT, "%s: line %d: rule \"%.60s\": offset %zu of the pattern: %s", j->name, op_yaml_line(pattern), r->name,
                        offset, why);
}

static op_status find_word(const char *const *words, int n, const yaml_node_t *node, const char *name, int *out, op_error *e)
{
    for (*out = 0; *out < n; ++*out)
        if (!strcmp(words[*out], op_yaml_text(node)))
            return OP_OK;
    op_error_set(e, OP_ERR_FORMAT, "%s: line %d: found \"%.40s\", expected one of", name, op_yaml_line(node), op_yaml_text(node));
    for (int i = 0; e && i < n; i++) {
        size_t used = strlen(e->message);
        snprintf(e->message + used, sizeof e->message - used, " %s", words[i]);
    }
    return OP_ERR_FORMAT;
}

static op_status read_rule(op_judge *j, rules *set, bool verdicts, yaml_document_t *doc, const yaml_node_t *map, op_error *e)
{
    static const char *const keys[] = {"name", "where", "pattern", "verdict", NULL}, *const without[] = {"name", "where", "pattern", NULL};
    const yaml_node_t *name, *where, *pattern, *verdict = NULL;
    if (map->type != YAML_MAPPING_NODE || set->n == RULES_MAX)
        return op_error_set(e, OP_ERR_FORMAT, "%s: line %d: expected a mapping, and at most %d of them", j->name, op_yaml_line(map), RULES_MAX);
    op_status status = op_yaml_check_keys(doc, map, verdicts ? keys : without, j->name, e);
    if (!status)
        status = op_yaml_get(doc, map, "name", YAML_SCALAR_NODE, &name, j->name, e);
    if (!status)
        status = op_yaml_get(doc, map, "where", YAML_SCALAR_NODE, &where, j->name, e);
    if (!status)
        status = op_yaml_get(doc, map, "pattern", YAML_SCALAR_NODE, &pattern, j->name, e);
    if (!status && verdicts)
        status = op_yaml_get(doc, map, "verdict", YAML_SCALAR_NODE, &verdict, j->name, e);
    int at = 0, means = 0;
    if (!status)
        status = find_word(places, PLACES, where, j->name, &at, e);
    if (!status && verdicts)
        status = find_word(replies, OP_REPLY_SILENT, verdict, j->name, &means, e);
    if (status)
        return status;
    rule *r = &set->rule[set->n++];
    *r = (rule){.name = op_strdup(op_yaml_text(name)), .where = (place)at, .verdict = (op_reply)means};
    return r->name ? compile(j, r, pattern, e) : no_memory(j->name, e);
}

static op_status read_rules(op_judge *j, rules *set, const char *key, bool verdicts, yaml_document_t *doc, const yaml_node_t *root, op_error *e)
{
    const yaml_node_t *list;
    op_status status = op_yaml_get(doc, root, key, YAML_SEQUENCE_NODE, &list, j->name, e);
    if (status)
        return status;
    for (yaml_node_item_t *i = list->data.sequence.items.start; !status && i < list->data.sequence.items.top; i++)
        status = read_rule(j, set, verdicts, doc, yaml_document_get_node(doc, *i), e);
    return status;
}

static op_status read_judge(op_judge *j, yaml_document_t *doc, op_error *e)
{
    static const char *const keys[] = {"rules", "default", "hostility", NULL};
    const yaml_node_t *root = yaml_document_get_root_node(doc), *fallback;
    int means = 0;
    op_status status = op_yaml_check_keys(doc, root, keys, j->name, e);
    if (!status)
        status = op_yaml_get(doc, root, "default", YAML_SCALAR_NODE, &fallback, j->name, e);
    if (!status)
        status = find_word(replies, OP_REPLY_SILENT, fallback, j->name, &means, e);
    if (!status)
        status = read_rules(j, &j->verdicts, "rules", true, doc, root, e);
    if (!status)
        status = read_rules(j, &j->hostility, "hostility", false, doc, root, e);
    j->fallback = (op_reply)means;
    return status;
}

op_status op_judge_open(op_judge **out, const char *path, op_error *e)
{
    *out = NULL;
    yaml_document_t doc;
    op_status status = op_yaml_open(&doc, path, e);
    if (status)
        return status;
    op_judge *j = op_alloc_zero(1, sizeof *j);
    if (j) {
        j->name = op_strdup(path);
        j->memory = pcre2_general_context_create(get_memory, free_memory, NULL);
        j->match = j->memory ? pcre2_match_data_create(1, j->memory) : NULL;
        j->how = j->memory ? pcre2_match_context_create(j->memory) : NULL;
        j->stack = j->memory ? pcre2_jit_stack_create(1 << 15, 1 << 24, j->memory) : NULL;
    }
    bool ok = j && j->name && j->match && j->how && j->stack;
    if (ok)
        pcre2_jit_stack_assign(j->how, NULL, j->stack);
    status = ok ? read_judge(j, &doc, e) : no_memory(path, e);
    yaml_document_delete(&doc);
    if (status) {
        op_judge_free(j);
        return status;
    }
    *out = j;
    return OP_OK;
}

static void release_rules(rules *set)
{
    for (int i = 0; i < set->n; i++) {
        op_free(set->rule[i].name);
        pcre2_code_free(set->rule[i].code);
    }
}

void op_judge_free(op_judge *j)
{
    if (!j)
        return;
    release_rules(&j->verdicts);
    release_rules(&j->hostility);
    pcre2_match_data_free(j->match);
    pcre2_match_context_free(j->how);
    pcre2_jit_stack_free(j->stack);
    pcre2_general_context_free(j->memory);
    op_free(j->name);
    op_free(j);
}
