/* Reading a protocol file: settings at the top, defaults of the stages, the stages. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/mem.h"
#include "io/yaml_json.h"
#include "trial/session_parts.h"

#define AT(field) offsetof(op_protocol_options, field)

const op_option op_protocol_table[] = {
    OP_TRAINEE_ROWS(AT(trainee)),
    {"store", OP_OPTION_STRING, AT(store), NULL, 0, 0, NULL, "where trials are kept: an SQLite file or postgresql://...; default trials.db in output_dir"},
    {"reference", OP_OPTION_STRING, AT(reference), NULL, 0, 0, NULL, "model that the KL term and preferences compare with; with method=lora the base model is it"},
    {"save_rounds|save_steps", OP_OPTION_INT, AT(save_rounds), "10", 0, 1 << 30, NULL, "rounds between checkpoints; 0: only at the end of a stage or when stopped"},
    {"keep_probes", OP_OPTION_BOOL, AT(keep_probes), "true", 0, 0, NULL, "store the trials of probes too"},
    {0},
};

#define STAGE(field) offsetof(op_stage, field)
#define LESSON(field) offsetof(op_stage, lesson.field)

const op_option op_stage_table[] = {
    {"name", OP_OPTION_STRING, STAGE(name), NULL, 0, 0, NULL, "of the stage, in progress and results; default the method's"},
    {"method", OP_OPTION_STRING, STAGE(method_name), NULL, 0, 0, NULL, "see docs/methods.md"},
    {"rounds", OP_OPTION_INT, STAGE(rounds), "10", 1, 1 << 30, NULL, "rounds at most"},
    {"prompts", OP_OPTION_INT, STAGE(prompts), "8", 1, 4096, NULL, "cues of a round"},
    {"group", OP_OPTION_INT, STAGE(group), "4", 1, 256, NULL, "answers to each cue"},
    {"updates", OP_OPTION_INT, STAGE(updates), "1", 1, 64, NULL, "steps of the learner over the trials of a round"},
    {"learning_rate|lr", OP_OPTION_FLOAT, STAGE(lr), "0", 0, 10, NULL, "of this stage; 0: the protocol's"},
    {"success_above", OP_OPTION_FLOAT, STAGE(success_above), "0.5", -1e9, 1e9, NULL, "a reward above this is a success; without a reward, no negative mark is one"},
    {"thin", OP_OPTION_CHOICE, STAGE(thin), "feedback", 0, 0, "feedback|reward", "what the schedule takes away: all feedback, or the reward while marks stay"},
    {"until.success", OP_OPTION_FLOAT, STAGE(until_success), "0", 0, 1, NULL, "the stage ends when this share of the last until.over trials succeeded; 0: never"},
    {"until.over", OP_OPTION_INT, STAGE(until_over), "64", 1, OP_SESSION_WINDOW, NULL, "trials"},
    {"budget.trials", OP_OPTION_INT, STAGE(budget_trials), "0", 0, 1e15, NULL, "the stage ends after this many responses; 0: no limit"},
    {"budget.tokens", OP_OPTION_INT, STAGE(budget_tokens), "0", 0, 1e15, NULL, "and after this many sampled tokens; 0: no limit"},
    {"sampling.temperature|temperature", OP_OPTION_FLOAT, STAGE(temperature), "1", 0, 100, NULL, "of the answers; policy gradients assume 1 and no cuts"},
    {"sampling.top_k|top_k", OP_OPTION_INT, STAGE(top_k), "0", 0, 1 << 30, NULL, "0: off"},
    {"sampling.top_p|top_p", OP_OPTION_FLOAT, STAGE(top_p), "1", 0, 1, NULL, "1: off"},
    {"sampling.min_p|min_p", OP_OPTION_FLOAT, STAGE(min_p), "0", 0, 1, NULL, "0: off"},
    {"sampling.repetition_penalty|repetition_penalty", OP_OPTION_FLOAT, STAGE(repetition_penalty), "1", 0.01, 100, NULL, "1: off"},
    {"sampling.max_tokens|max_tokens", OP_OPTION_INT, STAGE(max_tokens), "64", 1, 1 << 20, NULL, "of an answer"},
    {"lesson.outcome_weight", OP_OPTION_FLOAT, LESSON(outcome_weight), "1", -1e6, 1e6, NULL, "of reward minus baseline in a token's advantage"},
    {"lesson.mark_weight", OP_OPTION_FLOAT, LESSON(mark_weight), "1", -1e6, 1e6, NULL, "of its marks"},
    {"lesson.baseline", OP_OPTION_CHOICE, LESSON(baseline), "group", 0, 0, OP_BASELINE_CHOICES, "what rewards are compared with"},
    {"lesson.divide_by_deviation", OP_OPTION_BOOL, LESSON(divide_by_deviation), "false", 0, 0, NULL, "of the group's rewards, as GRPO does"},
    {"lesson.clip_low", OP_OPTION_FLOAT, LESSON(clip_low), "0.2", 0, 1, NULL, "a token's ratio to the sampling policy is clipped below 1 minus this"},
    {"lesson.clip_high", OP_OPTION_FLOAT, LESSON(clip_high), "0.28", 0, 1e6, NULL, "and above 1 plus this"},
    {"lesson.kl", OP_OPTION_FLOAT, LESSON(kl), "0", 0, 1e6, NULL, "weight of the KL divergence from the reference"},
    {"lesson.kl_kind", OP_OPTION_CHOICE, LESSON(kl_kind), "sampled", 0, 0, OP_KL_CHOICES, "estimated from the tokens sampled, or exact over the vocabulary"},
    {"lesson.constant_length", OP_OPTION_FLOAT, LESSON(constant_length), "0", 0, 1e9, NULL, "the loss is divided by trials times this; 0: by the tokens with an advantage"},
    {"lesson.per_sequence_mean", OP_OPTION_BOOL, LESSON(per_sequence_mean), "false", 0, 0, NULL, "a mean over each response first, as GRPO does"},
    {"lesson.preference", OP_OPTION_CHOICE, LESSON(preference), "dpo", 0, 0, "dpo|ipo|hinge", "loss of a preferred pair"},
    {"lesson.beta", OP_OPTION_FLOAT, LESSON(beta), "0.1", 0, 1e6, NULL, "of preferences and KTO"},
    {"lesson.preference_weight", OP_OPTION_FLOAT, LESSON(preference_weight), "1", 0, 1e6, NULL, "of the preference term"},
    {"lesson.preference_mean", OP_OPTION_BOOL, LESSON(preference_mean), "false", 0, 0, NULL, "a pair's log-ratios are means over tokens, not sums"},
    {"lesson.kto_weight", OP_OPTION_FLOAT, LESSON(kto_weight), "1", 0, 1e6, NULL, "of the term of answers judged alone (KTO)"},
    {"lesson.desirable", OP_OPTION_FLOAT, LESSON(desirable), "1", 0, 1e6, NULL, "KTO's weight of desirable answers"},
    {"lesson.undesirable", OP_OPTION_FLOAT, LESSON(undesirable), "1", 0, 1e6, NULL, "and of undesirable ones"},
    {"lesson.imitation_weight", OP_OPTION_FLOAT, LESSON(imitation_weight), "1", 0, 1e6, NULL, "of what is learned as it is"},
    {"lesson.unlikelihood", OP_OPTION_BOOL, LESSON(unlikelihood), "false", 0, 0, NULL, "negative weights of imitation teach -log(1 - p) instead"},
    {0},
};

/* Keys with a form of their own: of the top, and without the last of a stage. */
static const char *const structured[] = {"cues", "teacher", "schedule", "stages", NULL};
static const char *const of_stage[] = {"cues", "teacher", "schedule", NULL};

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the protocol");
}

/* Is `key` a name or alias in the table? One that ends in '.': the beginning of one? */
static bool has_key(const op_option *table, const char *key)
{
    size_t n = strlen(key);
    for (; table && table->key; table++)
        for (const char *at = table->key; at; at = strchr(at, '|') ? strchr(at, '|') + 1 : NULL)
            if (n && !strncmp(at, key, n) && (strcspn(at, "|") == n || key[n - 1] == '.'))
                return true;
    return false;
}

/* ---- JSON values as words of a table ---- */

static op_status add_scalar(op_buf *out, const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_STRING: return op_buf_puts(out, json_string_value(v));
    case JSON_INTEGER: return op_buf_printf(out, "%lld", (long long)json_integer_value(v));
    case JSON_REAL: return op_buf_printf(out, "%.17g", json_real_value(v));
    case JSON_TRUE: return op_buf_puts(out, "true");
    case JSON_FALSE: return op_buf_puts(out, "false");
    default: return op_buf_puts(out, "null");
    }
}

/* Where members of a mapping go: a table and, as `apart`, keys that are read elsewhere. A list of them ends without a table. */
typedef struct target {
    void *settings;
    const op_option *table;
    const char *const *apart;
} target;

static const target *find_target(const target *to, const char *key)
{
    while (to->table && !has_key(to->table, key))
        to++;
    return to->table ? to : NULL;
}

/* Names the nearest key that there is. */
static op_status unknown_key(const target *to, const char *key, const char *name, op_error *e)
{
    enum { KEYS_MAX = 200, KEY_MAX = 64 };
    char room[KEYS_MAX][KEY_MAX];
    const char *words[KEYS_MAX + 1];
    size_t n = 0;
    for (const char *const *apart = to->apart; *apart && n < KEYS_MAX; apart++)
        words[n++] = *apart;
    for (; to->table; to++)
        for (const op_option *o = to->table; o->key; o++)
            for (const char *at = o->key; n < KEYS_MAX; at += strcspn(at, "|") + 1) {
                snprintf(room[n], KEY_MAX, "%.*s", (int)strcspn(at, "|"), at);
                words[n] = room[n];
                n++;
                if (!strchr(at, '|'))
                    break;
            }
    words[n] = NULL;
    const char *near = op_config_nearest(key, words);
    return op_error_set(e, OP_ERR_ARG, "%s: unknown key \"%.100s\"%s%s%s", name, key, near ? ", did you mean \"" : "", near ? near : "", near ? "\"" : "");
}

/* Of the row that has this key. */
static op_option_type type_of(const op_option *table, const char *key)
{
    for (; table->key; table++) {
        const op_option alone[] = {*table, {0}};
        if (has_key(alone, key))
            return table->type;
    }
    return OP_OPTION_STRING;
}

/* Sets one key of the first target that knows it. null unsets a text and leaves anything else as it is. */
static op_status set_value(const target *to, const char *key, const json_t *v, const char *name, op_error *e)
{
    op_error why = {0};
    op_buf word;
    const target *t = find_target(to, key);
    if (!t)
        return unknown_key(to, key, name, e);
    op_option_type type = type_of(t->table, key);
    bool text = type == OP_OPTION_STRING || type == OP_OPTION_LIST;
    if (json_is_null(v) && !text)
        return OP_OK;
    if (type == OP_OPTION_STRING && json_is_number(v))
        return op_error_set(e, OP_ERR_ARG, "%s: key \"%s\": found a number, expected a text; write it in quotes", name, key);
    op_buf_init(&word, 1 << 20);
    op_status status = op_buf_printf(&word, "%s=", key);
    size_t i;
    json_t *item;
    if (json_is_array(v))
        json_array_foreach((json_t *)v, i, item)
            status = status ? status : (i ? op_buf_puts(&word, ",") : OP_OK) ? OP_ERR_NOMEM : add_scalar(&word, item);
    else
        status = status ? status : add_scalar(&word, v);
    if (status)
        op_error_set(&why, status, "out of memory");
    else
        status = op_config_set(t->settings, t->table, word.data, &why);
    op_buf_release(&word);
    return status ? op_error_set(e, status, "%s: %s", name, why.message) : OP_OK;
}

/* Sets every member of an object, nested ones as "outer.inner"; what is read elsewhere is left alone. */
static op_status set_members(const target *to, const json_t *object, const char *prefix, const char *name, op_error *e)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        char full[128];
        if (!*prefix && op_config_is_among(key, to->apart))
            continue;
        if ((size_t)snprintf(full, sizeof full, "%s%s", prefix, key) >= sizeof full - 1)
            return op_error_set(e, OP_ERR_FORMAT, "%s: a key of more than %zu characters", name, sizeof full - 2);
        op_status status;
        if (json_is_object(value)) {
            strcat(full, ".");
            if (find_target(to, full)) {
                status = set_members(to, value, full, name, e);
            } else {
                full[strlen(full) - 1] = 0;
                status = unknown_key(to, full, name, e);
            }
        } else {
            status = set_value(to, full, value, name, e);
        }
        if (status)
            return status;
    }
    return OP_OK;
}

/* ---- stages ---- */

static const op_method *find_method(const op_session_kit *kit, const char *name)
{
    for (const op_method *const *m = kit->methods; *m; m++)
        if (!strcmp((*m)->name, name))
            return *m;
    return NULL;
}

static op_status unknown_method(const op_session_kit *kit, const char *found, const char *name, op_error *e)
{
    char known[400] = "";
    for (const op_method *const *m = kit->methods; *m; m++) {
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s", n ? ", " : "", (*m)->name);
    }
    return op_error_set(e, OP_ERR_ARG, "%s: key \"method\": found \"%s\", expected one of %s", name, found ? found : "nothing", known);
}

/* The stage's own value of a structured key, or the protocol's. */
static const json_t *own_or_default(const json_t *stage, const json_t *root, const char *key)
{
    const json_t *v = json_object_get(stage, key);
    v = v ? v : json_object_get(root, key);
    return json_is_null(v) ? NULL : v;
}

static op_status read_stage(op_protocol *p, op_stage_plan *plan, const json_t *object, const op_session_kit *kit, const char *name, op_error *e)
{
    op_stage *s = &plan->stage;
    op_status status = op_config_init(s, op_stage_table, e);
    if (status)
        return status;
    if (!json_is_object(object))
        return op_error_set(e, OP_ERR_FORMAT, "%s: not a mapping", name);
    const char *method = json_string_value(json_object_get(object, "method"));
    s->method = method ? find_method(kit, method) : NULL;
    if (!s->method)
        return unknown_method(kit, method, name, e);
    if (s->method->table) {
        s->settings = op_alloc_zero(1, s->method->settings_size);
        status = s->settings ? op_config_init(s->settings, s->method->table, e) : no_memory(e);
    }
    const target to[] = {{s, op_stage_table, of_stage}, {s->settings, s->method->table, of_stage}, {0}};
    if (!status)
        status = set_members(to, object, "", name, e);
    if (!status && !s->name)
        status = (s->name = op_strdup(s->method->name)) ? OP_OK : no_memory(e);
    if (status)
        return status;
    s->lr = s->lr > 0 ? s->lr : p->o.trainee.learning_rate;
    s->sampling = (op_sampling){.temperature = s->temperature, .top_k = (int32_t)s->top_k, .top_p = s->top_p, .min_p = s->min_p,
                                .repetition_penalty = s->repetition_penalty, .max_tokens = (int32_t)s->max_tokens};
    plan->teacher = own_or_default(object, p->root, "teacher");
    plan->schedule = own_or_default(object, p->root, "schedule");
    plan->cues = own_or_default(object, p->root, "cues");
    if (!plan->cues && !s->method->asks_nothing)
        return op_error_set(e, OP_ERR_ARG, "%s: key \"cues\" is not set, here or at the top", name);
    op_reinforce_options unused;
    status = plan->schedule ? op_reinforce_from_json(&unused, plan->schedule, 0, e) : OP_OK;
    if (status)
        op_error_prefix(e, "%s: key \"schedule\"", name);
    return status;
}

static op_status read_stages(op_protocol *p, const char *path, const op_session_kit *kit, op_error *e)
{
    const json_t *list = json_object_get(p->root, "stages");
    size_t n = json_array_size(list);
    if (!n || n > 1000)
        return op_error_set(e, OP_ERR_FORMAT, "%s: key \"stages\": expected a list of 1 to 1000 stages", path);
    p->stages = op_alloc_zero(n, sizeof *p->stages);
    if (!p->stages)
        return no_memory(e);
    for (size_t i = 0; i < n; i++) {
        char name[300];
        snprintf(name, sizeof name, "%.240s: stage %zu", path, i + 1);
        p->n = i + 1;
        op_status status = read_stage(p, &p->stages[i], json_array_get(list, i), kit, name, e);
        if (status)
            return status;
    }
    return OP_OK;
}

/* ---- the file ---- */

/* A word of the command line replaces the file's value, so that the resolved file is what ran. "a.b=c" sets member b of a. */
static op_status override(json_t *root, const char *word, op_error *e)
{
    const char *equals = strchr(word, '=');
    if (!equals || equals == word)
        return op_error_set(e, OP_ERR_ARG, "\"%s\": expected key=value", word);
    json_t *value = NULL;
    op_status status = op_yaml_to_json(&value, equals + 1, strlen(equals + 1), word, e);
    json_t *at = root;
    for (const char *key = word; !status;) {
        size_t n = strcspn(key, ".=");
        char part[128];
        if (n >= sizeof part)
            status = op_error_set(e, OP_ERR_ARG, "\"%.100s...\": a key of more than %zu characters", word, sizeof part - 1);
        snprintf(part, sizeof part, "%.*s", (int)n, key);
        size_t place = (size_t)strtoul(part, NULL, 10) - 1; /* stages.1.lr: the first stage */
        json_t *next = json_is_array(at) ? json_array_get(at, place) : json_object_get(at, part);
        if (!status && json_is_array(at) && !next)
            status = op_error_set(e, OP_ERR_ARG, "\"%s\": found \"%s\", expected a number from 1 to %zu", word, part, json_array_size(at));
        if (status || key[n] == '=') {
            if (!status && (json_is_array(at) ? json_array_set(at, place, value) : json_object_set(at, part, value)))
                status = no_memory(e);
            break;
        }
        if (!next && json_object_set_new(at, part, next = json_object()))
            status = no_memory(e);
        if (!status && !json_is_object(next) && !json_is_array(next))
            status = op_error_set(e, OP_ERR_ARG, "\"%s\": \"%s\" holds no further keys", word, part);
        at = next;
        key += n + 1;
    }
    json_decref(value);
    return status;
}

static op_status hash_root(op_protocol *p, op_error *e)
{
    char *text = json_dumps(p->root, JSON_COMPACT | JSON_SORT_KEYS);
    if (!text)
        return no_memory(e);
    op_hash(text, strlen(text), p->hash);
    op_free(text);
    return OP_OK;
}

bool op_is_protocol(const char *path)
{
    json_t *root = NULL;
    op_error e;
    bool yes = !op_yaml_read_json(&root, path, &e) && json_object_get(root, "stages");
    json_decref(root);
    return yes;
}

op_status op_protocol_from_json(op_protocol *out, json_t *root, const char *path, const op_session_kit *kit, const char *const *overrides, size_t n_overrides,
                                op_error *e)
{
    *out = (op_protocol){.root = root};
    op_status status = op_config_init(&out->o, op_protocol_table, e);
    if (!status && !json_is_object(out->root))
        status = op_error_set(e, OP_ERR_FORMAT, "%s: expected a mapping with \"stages\"", path);
    for (size_t i = 0; !status && i < n_overrides; i++)
        status = override(out->root, overrides[i], e);
    const target to[] = {{&out->o, op_protocol_table, structured}, {0}};
    if (!status)
        status = set_members(to, out->root, "", path, e);
    if (!status)
        status = op_trainee_check(&out->o.trainee, e);
    if (!status)
        status = read_stages(out, path, kit, e);
    return status ? status : hash_root(out, e);
}

op_status op_protocol_read(op_protocol *out, const char *path, const op_session_kit *kit, const char *const *overrides, size_t n_overrides, op_error *e)
{
    json_t *root;
    *out = (op_protocol){0};
    op_status status = op_yaml_read_json(&root, path, e);
    return status ? status : op_protocol_from_json(out, root, path, kit, overrides, n_overrides, e);
}

void op_protocol_release(op_protocol *p)
{
    for (size_t i = 0; i < p->n; i++) {
        op_stage *s = &p->stages[i].stage;
        if (s->settings)
            op_config_release(s->settings, s->method->table);
        op_free(s->settings);
        op_config_release(s, op_stage_table);
    }
    op_free(p->stages);
    op_config_release(&p->o, op_protocol_table);
    json_decref(p->root);
    *p = (op_protocol){0};
}
