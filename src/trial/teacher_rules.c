/* Rules: patterns on the words of a response, each with a reward, a mark, or neither (a condition for later ones).
 *
 * Settings: {"type": "rules", "file": FILE} or {"type": "rules", "rules": [...], ...}: the file, YAML or JSON, holds the same keys:
 *     name        what the feedback is signed with; default "rules"
 *     otherwise   the reward when no rule that has one holds; without it such a trial gets none
 *     rules       1 .. 64 of
 *       name      needed, unlike the others'
 *       pattern   needed: PCRE2, in UTF-8, case-insensitive
 *       where     response (default), first_line, last_line, or prompt (the last message of the user; without messages all of it)
 *       absent    true: the rule holds where the pattern is not found
 *       if        tags: {NAME: VALUE or [VALUE, ...], ...}, all of which the trial has; rules: [NAME, ...], earlier rules that hold; not: [NAME, ...], that do not
 *       reward    added to the trial's
 *       mark      -1 .. 1, on every match
 *       span      match (default), whole (the whole response), or 1 .. 9, a group of the pattern
 * A mark is signed NAME/RULE. Marks of several rules on one token add up. */
#include "trial/teachers.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/mem.h"
#include "io/json.h"
#include "io/yaml_json.h"
#include "trial/settings.h"
#include "trial/trial_parts.h"

enum { RULES_MAX = 64, /* a rule that holds is a bit */
       GROUPS_MAX = 9, MATCHES_MAX = 1000, MATCH_LIMIT = 1000000 };

typedef enum place { RESPONSE, FIRST_LINE, LAST_LINE, PROMPT } place;
#define PLACES "response|first_line|last_line|prompt"

typedef struct rule {
    char *name, *by;
    pcre2_code *code;
    place where;
    bool absent, whole;
    uint32_t group;       /* whose span is marked; 0: the match */
    double reward, mark;  /* NAN: none */
    json_t *tags;         /* borrowed from the settings */
    uint64_t must, must_not; /* earlier rules */
} rule;

typedef struct rules {
    json_t *settings;     /* keeps the strings alive */
    char *path;
    const char *name, *source; /* source: for messages */
    const op_tokenizer *tokenizer;
    double otherwise;
    rule rule[RULES_MAX];
    int n;
    pcre2_general_context *memory;
    pcre2_match_data *match;
    pcre2_match_context *how;
    pcre2_jit_stack *stack;
} rules;

static op_status no_memory(const rules *r, op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", r->source);
}

/* ---- teaching ---- */

static void narrow(place where, const char **text, size_t *n)
{
    const char *cut = *n && where == FIRST_LINE ? memchr(*text, '\n', *n) : *n && where == LAST_LINE ? memrchr(*text, '\n', *n) : NULL;
    if (!cut)
        return;
    size_t before = (size_t)(cut - *text);
    *text = where == FIRST_LINE ? *text : cut + 1;
    *n = where == FIRST_LINE ? before : *n - before - 1;
}

static op_status words_of_prompt(const rules *r, const op_trial *t, op_buf *out)
{
    for (size_t i = json_array_size(t->messages); i-- > 0;) {
        json_t *m = json_array_get(t->messages, i), *role = json_object_get(m, "role"), *content = json_object_get(m, "content");
        if (json_is_string(role) && !strcmp(json_string_value(role), "user") && json_is_string(content))
            return op_buf_add(out, json_string_value(content), json_string_length(content));
    }
    return op_tokenizer_decode(r->tokenizer, t->prompt, (size_t)t->n_prompt, OP_DECODE_SKIP_SPECIAL, out);
}

static bool has_tag(const json_t *value, const json_t *wanted)
{
    size_t n = json_is_array(wanted) ? json_array_size(wanted) : 1;
    for (size_t i = 0; value && i < n; i++) {
        const json_t *w = json_is_array(wanted) ? json_array_get(wanted, i) : wanted;
        if (json_is_number(value) && json_is_number(w) ? json_number_value(value) == json_number_value(w) : json_equal(value, w))
            return true;
    }
    return false;
}

static bool applies(const rule *u, const op_trial *t, uint64_t held)
{
    const char *key;
    json_t *wanted;
    json_object_foreach(u->tags, key, wanted)
        if (!has_tag(json_object_get(t->tags, key), wanted))
            return false;
    return (held & u->must) == u->must && !(held & u->must_not);
}

static op_status match(const rules *r, const rule *u, const char *text, size_t n, size_t from, bool *found, op_error *e)
{
    int rc = pcre2_match(u->code, (PCRE2_SPTR)text, n, from, from ? PCRE2_NO_UTF_CHECK : 0, r->match, r->how);
    *found = rc >= 0;
    if (rc >= 0 || rc == PCRE2_ERROR_NOMATCH)
        return OP_OK;
    char why[120];
    pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof why);
    return op_error_set(e, rc == PCRE2_ERROR_NOMEMORY ? OP_ERR_NOMEM : OP_ERR_FORMAT, "rule \"%.60s\": %s", u->name, why);
}

/* Marks bytes from .. to-1 of the words, leaving out tokens before *next, which the rule marked already. */
static op_status mark_bytes(const rules *r, const rule *u, op_trial *t, const char *words, size_t from, size_t to, int32_t *next, op_error *e)
{
    int32_t start, end, before = op_code_points(words, from);
    op_status s = op_trial_span(t, r->tokenizer, before, before + op_code_points(words + from, to - from), &start, &end, e);
    if (s)
        return s;
    start = start > *next ? start : *next;
    *next = end > *next ? end : *next;
    return start < end ? op_trial_add_mark(t, start, end, u->mark, u->by, NULL, e) : OP_OK;
}

static op_status mark_matches(const rules *r, const rule *u, op_trial *t, const char *words, const char *text, size_t n, op_error *e)
{
    int32_t next = 0;
    size_t at = 0;
    op_status s = OP_OK;
    for (int i = 0; !s && at <= n && i < MATCHES_MAX; i++) {
        bool found;
        s = match(r, u, text, n, at, &found, e);
        if (s || !found)
            return s;
        const size_t *group = pcre2_get_ovector_pointer(r->match);
        size_t from = group[2 * u->group], to = group[2 * u->group + 1];
        at = group[1] > at ? group[1] : at + 1;
        while (at < n && ((unsigned char)text[at] & 0xc0) == 0x80) /* not into the middle of a character */
            at++;
        if (from != PCRE2_UNSET && from < to)
            s = mark_bytes(r, u, t, words, (size_t)(text - words) + from, (size_t)(text - words) + to, &next, e);
    }
    return s;
}

static op_status apply(const rules *r, const rule *u, op_trial *t, const op_buf *response, const op_buf *prompt, bool *holds, op_error *e)
{
    const char *words = u->where == PROMPT ? prompt->data : response->data;
    size_t n = u->where == PROMPT ? prompt->len : response->len;
    words = words ? words : "";
    const char *text = words;
    narrow(u->where, &text, &n);
    bool found;
    op_status s = match(r, u, text, n, 0, &found, e);
    *holds = found != u->absent;
    if (s || !*holds || isnan(u->mark))
        return s;
    if (u->whole)
        return t->n_response ? op_trial_add_mark(t, 0, t->n_response, u->mark, u->by, NULL, e) : OP_OK;
    return mark_matches(r, u, t, words, text, n, e);
}

static op_status teach_one(const rules *r, op_trial *t, op_error *e)
{
    op_buf response, prompt;
    op_buf_init(&response, OP_TRIAL_TEXT_MAX);
    op_buf_init(&prompt, OP_TRIAL_TEXT_MAX);
    uint64_t held = 0;
    double reward = 0;
    bool rewarded = false;
    op_status s = op_trial_view(t, r->tokenizer, 0, t->n_response, &response) || words_of_prompt(r, t, &prompt) ? no_memory(r, e) : OP_OK;
    for (int i = 0; !s && i < r->n; i++) {
        const rule *u = &r->rule[i];
        bool holds = false;
        if (applies(u, t, held))
            s = apply(r, u, t, &response, &prompt, &holds, e);
        held |= (uint64_t)holds << i;
        if (holds && !isnan(u->reward)) {
            reward += u->reward;
            rewarded = true;
        }
    }
    if (!s && (rewarded || !isnan(r->otherwise)))
        s = op_teacher_reward(t, rewarded ? reward : r->otherwise, r->name, e);
    op_buf_release(&response);
    op_buf_release(&prompt);
    return s;
}

static op_status teach(op_teacher *teacher, op_trial *const *trials, size_t n, op_error *e)
{
    const rules *r = teacher->ctx;
    op_status s = OP_OK;
    for (size_t i = 0; !s && i < n; i++) {
        s = teach_one(r, trials[i], e);
        if (s)
            op_error_prefix(e, "%s: trial %lld", r->source, (long long)trials[i]->id);
    }
    return s;
}

/* ---- reading ---- */

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

static op_status compile(const rules *r, rule *u, const char *pattern, op_error *e)
{
    pcre2_compile_context *how = pcre2_compile_context_create(r->memory);
    if (!how)
        return no_memory(r, e);
    int code = 0;
    size_t offset = 0;
    u->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_CASELESS | PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &offset, how);
    pcre2_compile_context_free(how);
    if (!u->code) {
        if (code == PCRE2_ERROR_NOMEMORY || code == 121 /* "failed to allocate heap memory" */)
            return no_memory(r, e);
        char why[120];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        return op_error_set(e, OP_ERR_FORMAT, "%s: rule \"%.60s\": key \"pattern\": offset %zu: %s", r->source, u->name, offset, why);
    }
    pcre2_jit_compile(u->code, PCRE2_JIT_COMPLETE); /* without it patterns run the same, slower */
    uint32_t groups = 0;
    pcre2_pattern_info(u->code, PCRE2_INFO_CAPTURECOUNT, &groups);
    return u->group <= groups ? OP_OK
                              : op_error_set(e, OP_ERR_FORMAT, "%s: rule \"%.60s\": key \"span\": found %u, but the pattern has %u groups", r->source, u->name,
                                             u->group, groups);
}

typedef struct earlier {
    const rules *r;
    const rule *u;
    uint64_t *bits;
} earlier;

static op_status find_earlier(void *ctx, const char *name, op_error *e)
{
    const earlier *f = ctx;
    for (int i = 0; i < (int)(f->u - f->r->rule); i++)
        if (!strcmp(f->r->rule[i].name, name)) {
            *f->bits |= (uint64_t)1 << i;
            return OP_OK;
        }
    return op_error_set(e, OP_ERR_FORMAT, "%s: rule \"%.60s\": key \"if\": no earlier rule is named \"%.60s\"", f->r->source, f->u->name, name);
}

static op_status read_conditions(rules *r, rule *u, const json_t *map, const char *where, op_error *e)
{
    static const char *const keys[] = {"tags", "rules", "not", NULL};
    json_t *when = NULL;
    op_status s = op_json_get_object(map, "if", false, &when, where, e);
    if (s || !when)
        return s;
    s = op_settings_check(when, keys, where, e);
    s = s ? s : op_json_get_object(when, "tags", false, &u->tags, where, e);
    s = s ? s : op_settings_words(when, "rules", false, find_earlier, &(earlier){r, u, &u->must}, where, e);
    return s ? s : op_settings_words(when, "not", false, find_earlier, &(earlier){r, u, &u->must_not}, where, e);
}

static op_status read_span(rule *u, const json_t *map, const char *where, op_error *e)
{
    json_t *span = json_object_get(map, "span");
    if (json_is_integer(span)) {
        int64_t group = 0;
        op_status s = op_json_get_int(map, "span", false, 1, GROUPS_MAX, &group, where, e);
        u->group = (uint32_t)group;
        return s;
    }
    int choice = 0;
    op_status s = op_settings_choice(map, "span", "match|whole", &choice, where, e);
    u->whole = choice == 1;
    return s;
}

static op_status read_rule(rules *r, const json_t *map, op_error *e)
{
    static const char *const keys[] = {"name", "pattern", "where", "absent", "if", "reward", "mark", "span", NULL};
    rule *u = &r->rule[r->n];
    char where[300];
    const char *name, *pattern;
    snprintf(where, sizeof where, "%.250s: rules[%d]", r->source, r->n);
    *u = (rule){.reward = NAN, .mark = NAN};
    op_status s = op_settings_check(map, keys, where, e);
    s = s ? s : op_json_get_string(map, "name", true, &name, where, e);
    s = s ? s : op_json_get_string(map, "pattern", true, &pattern, where, e);
    if (s)
        return s;
    for (int i = 0; i < r->n; i++)
        if (!strcmp(r->rule[i].name, name))
            return op_error_set(e, OP_ERR_FORMAT, "%s: key \"name\": \"%.60s\" is rules[%d] already", where, name, i);
    r->n++; /* from here on it is released with the others */
    size_t room = strlen(r->name) + strlen(name) + 2;
    u->name = op_strdup(name);
    u->by = op_alloc(room);
    if (!u->name || !u->by)
        return no_memory(r, e);
    snprintf(u->by, room, "%s/%s", r->name, name);
    int at = 0;
    s = op_settings_choice(map, "where", PLACES, &at, where, e);
    u->where = (place)at;
    s = s ? s : op_json_get_bool(map, "absent", false, &u->absent, where, e);
    s = s ? s : read_span(u, map, where, e);
    s = s ? s : read_conditions(r, u, map, where, e);
    if (!s && json_object_get(map, "reward"))
        s = op_settings_number(map, "reward", -1e6, 1e6, &u->reward, where, e);
    if (!s && json_object_get(map, "mark"))
        s = op_settings_number(map, "mark", -1, 1, &u->mark, where, e);
    if (!s && !isnan(u->mark) && !u->whole && (u->absent || u->where == PROMPT))
        s = op_error_set(e, OP_ERR_FORMAT, "%s: key \"span\": %s has no place in the response to mark, expected whole", where,
                         u->absent ? "a pattern that is absent" : "a pattern on the prompt");
    return s ? s : compile(r, u, pattern, e);
}

static op_status read_rules(rules *r, const json_t *settings, op_error *e)
{
    static const char *const keys[] = {"type", "name", "otherwise", "rules", NULL};
    json_t *list = NULL, *map;
    size_t i;
    op_status s = op_settings_check(settings, keys, r->source, e);
    s = s ? s : op_json_get_string(settings, "name", false, &r->name, r->source, e);
    if (!s && json_object_get(settings, "otherwise"))
        s = op_settings_number(settings, "otherwise", -1e6, 1e6, &r->otherwise, r->source, e);
    s = s ? s : op_json_get_array(settings, "rules", true, &list, r->source, e);
    if (!s && (!json_array_size(list) || json_array_size(list) > RULES_MAX))
        s = op_error_set(e, OP_ERR_FORMAT, "%s: key \"rules\": found %zu rules, expected 1..%d", r->source, json_array_size(list), RULES_MAX);
    if (s)
        return s;
    json_array_foreach(list, i, map) {
        s = read_rule(r, map, e);
        if (s)
            return s;
    }
    return OP_OK;
}

static op_status read_file(rules *r, const json_t *settings, const op_classroom *room, op_error *e)
{
    static const char *const keys[] = {"type", "file", NULL};
    const char *file;
    op_status s = op_settings_check(settings, keys, r->source, e);
    s = s ? s : op_json_get_string(settings, "file", true, &file, r->source, e);
    s = s ? s : op_settings_path(&r->path, room->dir, file, e);
    if (s)
        return s;
    r->source = r->path;
    s = op_yaml_read_json(&r->settings, r->path, e);
    return s ? s : read_rules(r, r->settings, e);
}

static void free_rules(op_teacher *teacher)
{
    rules *r = teacher->ctx;
    for (int i = 0; i < r->n; i++) {
        op_free(r->rule[i].name);
        op_free(r->rule[i].by);
        pcre2_code_free(r->rule[i].code);
    }
    pcre2_match_data_free(r->match);
    pcre2_match_context_free(r->how);
    pcre2_jit_stack_free(r->stack);
    pcre2_general_context_free(r->memory);
    json_decref(r->settings);
    op_free(r->path);
}

op_status op_teacher_rules_open(op_teacher **out, const json_t *settings, const op_classroom *room, op_error *e)
{
    op_teacher *t;
    op_status s = op_teacher_new(&t, "rules", sizeof(rules), e);
    if (s)
        return s;
    rules *r = t->ctx;
    t->teach = teach;
    t->free = free_rules;
    r->name = r->source = "rules";
    r->tokenizer = room->chat->tokenizer;
    r->otherwise = NAN;
    r->memory = pcre2_general_context_create(get_memory, free_memory, NULL);
    r->match = r->memory ? pcre2_match_data_create(GROUPS_MAX + 1, r->memory) : NULL;
    r->how = r->memory ? pcre2_match_context_create(r->memory) : NULL;
    r->stack = r->memory ? pcre2_jit_stack_create(1 << 15, 1 << 24, r->memory) : NULL;
    if (!r->match || !r->how || !r->stack) {
        s = no_memory(r, e);
    } else {
        pcre2_jit_stack_assign(r->how, NULL, r->stack);
        pcre2_set_match_limit(r->how, MATCH_LIMIT); /* a pattern that backtracks without end is an error, not a stop */
        if (json_object_get(settings, "file")) {
            s = read_file(r, settings, room, e);
        } else {
            r->settings = json_deep_copy(settings);
            s = r->settings ? read_rules(r, r->settings, e) : no_memory(r, e);
        }
    }
    t->name = r->name;
    if (s) {
        op_teacher_close(t);
        return s;
    }
    *out = t;
    return OP_OK;
}
