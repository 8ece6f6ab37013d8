/* The file of a reversal: YAML to a checked op_reverse, with all questions read and split. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "io/yaml_json.h"
#include "lab/reverse_parts.h"
#include "lab/view.h"

#define AT(field) offsetof(op_reverse_options, field)

const op_option op_reverse_table[] = {
    {"model", OP_OPTION_STRING, AT(model), NULL, 0, 0, NULL, "in place of the file's: a model directory or a .gguf"},
    {"data", OP_OPTION_STRING, AT(data), NULL, 0, 0, NULL, "in place of the file's: the directory that its data files are found in"},
    {"output_dir|output", OP_OPTION_STRING, AT(output_dir), NULL, 0, 0, NULL, "in place of the file's: where everything is written"},
    {"seed", OP_OPTION_INT, AT(seed), "-1", 0, 0, NULL, "of the split, of training, of random vectors; negative, as below: as the file says"},
    {"rounds", OP_OPTION_INT, AT(rounds), "-1", -1, 100, NULL, "times that traits are trained for and reversed, each from the last one's result"},
    {"threads", OP_OPTION_INT, AT(threads), "-1", -1, 4096, NULL, "0: one a core"},
    {"train", OP_OPTION_INT, AT(train), "-1", -1, 1 << 20, NULL, "questions of a trait to train on"},
    {"probe", OP_OPTION_INT, AT(probe), "-1", -1, 1 << 20, NULL, "questions to measure with"},
    {"search", OP_OPTION_INT, AT(search), "-1", -1, 1 << 20, NULL, "questions to measure with at each scale that is tried"},
    {"choices", OP_OPTION_INT, AT(choices), "-1", -1, 1 << 20, NULL, "questions to measure with as choices (A) and (B)"},
    {"control_tokens", OP_OPTION_INT, AT(control_tokens), "-1", -1, 1 << 24, NULL, "of the control, for the search and once more for the final figures"},
    {"disk_free", OP_OPTION_INT, AT(disk_free), "-1", 0, 0, NULL, "bytes to take for free on the disk, a quota for example; negative: what the system says"},
    {"plan", OP_OPTION_BOOL, AT(plan), "false", 0, 0, NULL, "show what would be done, and the disk that it needs, and end"},
    {0},
};

static const struct {
    const char *name;
    int sign;
    bool trained;
} arms[REVERSE_ARMS] = {{"trait", -1, true}, {"random", -1, false}, {"other", -1, true}, {"opposite", 1, true}, {"ascent", 1, true}};

const char *reverse_arm_name(reverse_arm a)
{
    return arms[a].name;
}

int reverse_arm_sign(reverse_arm a)
{
    return arms[a].sign;
}

bool reverse_arm_is_trained(reverse_arm a)
{
    return arms[a].trained;
}

/* ---- values ---- */

typedef struct reader {
    op_reverse *x;
    const char *data; /* directory, or NULL */
    op_error *e;
} reader;

/* Every key of an object must be known. `where`: "FILE: traits". */
static op_status check_keys(const json_t *object, const char *where, const char *const *known, op_error *e)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        if (op_config_is_among(key, known))
            continue;
        const char *near = op_config_nearest(key, known);
        return op_error_set(e, OP_ERR_FORMAT, "%s: unknown key \"%s\"%s%s%s", where, key, near ? ", did you mean \"" : "", near ? near : "", near ? "\"?" : "");
    }
    return OP_OK;
}

/* The object at `key` of the file (NULL: there is none), with its keys checked. `where` receives "FILE: key". */
static op_status section(const reader *r, const char *key, const char *const *known, json_t **out, char where[400])
{
    snprintf(where, 400, "%.300s: %s", r->x->path, key);
    *out = NULL;
    op_status s = op_json_get_object(r->x->spec, key, false, out, r->x->path, r->e);
    return !s && *out ? check_keys(*out, where, known, r->e) : s;
}

static op_status number(const reader *r, const json_t *object, const char *key, double low, double high, double *out, const char *where)
{
    op_status s = object ? op_json_get_float(object, key, false, out, where, r->e) : OP_OK;
    if (!s && !(*out >= low && *out <= high))
        s = op_error_set(r->e, OP_ERR_FORMAT, "%s: key \"%s\" is %g, expected a number from %g to %g", where, key, *out, low, high);
    return s;
}

static op_status integer(const reader *r, const json_t *object, const char *key, int64_t low, int64_t high, int64_t *out, const char *where)
{
    return object ? op_json_get_int(object, key, false, low, high, out, where, r->e) : OP_OK;
}

/* The same where `said` was given beside the file and then counts; negative: it was not. */
static op_status said_integer(const reader *r, const json_t *object, const char *key, int64_t said, const char *said_key, int64_t low, int64_t high, int64_t *out, const char *where)
{
    op_status s = integer(r, object, key, low, high, out, where);
    if (s || said < 0)
        return s;
    if (said < low || said > high)
        return op_error_set(r->e, OP_ERR_ARG, "key \"%s\" is %lld, expected %lld to %lld", said_key, (long long)said, (long long)low, (long long)high);
    *out = said;
    return OP_OK;
}

/* A path of the file: absolute, found in the data directory (by default where the program was started), or beside the file. */
static op_status path_of(const reader *r, const char *path, char **out)
{
    const char *slash = strrchr(r->x->path, '/');
    char *dir = op_strndup(slash ? r->x->path : ".", slash ? (size_t)(slash - r->x->path) + 1 : 1);
    char *beside = dir && path[0] != '/' ? op_path_join(dir, path) : NULL;
    *out = r->data && path[0] != '/' ? op_path_join(r->data, path) : op_strdup(path);
    bool ok = dir && *out && (beside || path[0] == '/');
    if (ok && beside && !op_path_exists(*out) && op_path_exists(beside)) {
        op_free(*out);
        *out = beside;
        beside = NULL;
    }
    op_free(dir);
    op_free(beside);
    if (!ok)
        return reverse_no_memory(r->e);
    return op_path_exists(*out) ? OP_OK : op_error_set(r->e, OP_ERR_IO, "%s: the file \"%s\" does not exist%s", r->x->path, *out, r->data ? "" : " (data=DIRECTORY says where data lie)");
}

/* ---- settings of training, and of the chamber: mappings that other tables understand ---- */

static op_status set_all(void *settings, const op_option *table, const json_t *object, const char *prefix, const char *where, op_error *e)
{
    const char *key;
    json_t *value;
    op_status s = OP_OK;
    json_object_foreach((json_t *)object, key, value) {
        char name[200], text[2000];
        snprintf(name, sizeof name, "%.90s%s%.90s", prefix, *prefix ? "." : "", key);
        if (s)
            return s;
        if (json_is_object(value))
            s = set_all(settings, table, value, name, where, e);
        else {
            if (json_is_string(value))
                snprintf(text, sizeof text, "%s=%.1700s", name, json_string_value(value));
            else if (json_is_integer(value))
                snprintf(text, sizeof text, "%s=%lld", name, (long long)json_integer_value(value));
            else if (json_is_real(value))
                snprintf(text, sizeof text, "%s=%.17g", name, json_real_value(value));
            else
                snprintf(text, sizeof text, "%s=%s", name, json_is_true(value) ? "true" : json_is_false(value) ? "false" : "");
            s = json_is_array(value) ? op_error_set(e, OP_ERR_FORMAT, "key \"%s\": expected one value, found a list", name) : op_config_set(settings, table, text, e);
            if (s)
                op_error_prefix(e, "%s", where);
        }
    }
    return s;
}

static op_status training(const reader *r, const char *key, op_sft_options *o, const json_t *settings)
{
    static const char *const ours[] = {"model", "model_name_or_path", "output_dir", "output", "train_file", "data", "eval_file", "eval_data", "eval_fraction", "seed", "threads", "resume",
                                       "save_dtype", "save_steps", "replay_file", "eval_steps", "logging_steps", "save_total_limit", NULL};
    const char *name;
    char where[400];
    json_t *value;
    snprintf(where, sizeof where, "%.300s: %s", r->x->path, key);
    json_object_foreach((json_t *)settings, name, value)
        if (op_config_is_among(name, ours) && !(o == &r->x->settle && !strcmp(name, "train_file")))
            return op_error_set(r->e, OP_ERR_FORMAT, "%s: key \"%s\" is not to be set here: every training has its own", where, name);
    op_status s = op_config_init(o, op_sft_table, r->e);
    if (!s)
        s = set_all(o, op_sft_table, settings, "", where, r->e);
    if (!s)
        s = op_config_set(o, op_sft_table, "save_dtype=f32", r->e);
    if (!s)
        s = op_config_set(o, op_sft_table, "eval_fraction=0", r->e);
    enum { MOST = 1 << 20 };
    if (!s && o->batch_size * o->gradient_accumulation_steps > MOST)
        s = op_error_set(r->e, OP_ERR_ARG, "%s: batch_size times gradient_accumulation_steps is %lld, expected %d at most", where,
                         (long long)(o->batch_size * o->gradient_accumulation_steps), MOST);
    o->trainee.seed = r->x->seed;
    o->trainee.threads = r->x->threads;
    return s;
}

static op_status read_chamber(const reader *r, reverse_probe *p, const json_t *settings, const char *where)
{
    json_t *world = json_deep_copy(settings);
    p->chamber = op_alloc_zero(1, sizeof *p->chamber);
    p->habit = op_view_string(settings, "habit");
    op_status s = world && p->chamber ? op_config_init(p->chamber, op_organism_table, r->e) : reverse_no_memory(r->e);
    if (!s && !*p->habit)
        s = op_error_set(r->e, OP_ERR_FORMAT, "%s: key \"habit\" is missing: which habit of the chamber is measured", where);
    json_object_del(world, "habit");
    if (!s)
        s = set_all(p->chamber, op_organism_table, world, "", where, r->e);
    json_decref(world);
    bool known = false;
    for (int i = 0; op_chamber_habit_name(i); i++)
        known |= !strcmp(op_chamber_habit_name(i), p->habit);
    if (!s && !known)
        s = op_error_set(r->e, OP_ERR_FORMAT, "%s: the chamber has no habit \"%s\"", where, p->habit);
    return s;
}

/* ---- traits and probes ---- */

static bool is_name(const char *s)
{
    size_t n = strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_");
    return n && !s[n] && n <= 60;
}

static op_status read_own_data(const reader *r, reverse_probe *p, const char *train, const char *opposite)
{
    op_status s = train ? path_of(r, train, &p->train_file) : OP_OK;
    if (!s && train)
        s = op_file_hash(p->train_file, p->train_hash, r->e);
    if (!s && opposite)
        s = path_of(r, opposite, &p->opposite_file);
    if (!s && opposite)
        s = op_file_hash(p->opposite_file, p->opposite_hash, r->e);
    return s;
}

/* Prompts that are asked without their replies. */
static op_status read_open_prompts(const reader *r, reverse_probe *p, const char *file, const char *where)
{
    char *path = NULL;
    if (p->chamber || !r->x->open_rules)
        return op_error_set(r->e, OP_ERR_FORMAT, p->chamber ? "%s: \"open\" goes with questions, not with a habit" : "%s: \"open\" needs the key \"open\" of the file: {rules: FILE}", where);
    p->open = op_alloc_zero(1, sizeof *p->open);
    op_status s = p->open ? path_of(r, file, &path) : reverse_no_memory(r->e);
    if (!s)
        s = reverse_questions_read(p->open, path, r->e);
    op_free(path);
    return s;
}

static op_status read_probe(const reader *r, json_t *spec, const char *where, bool trait)
{
    static const char *const of_trait[] = {"name", "says", "file", "chamber", "open", "train_file", "opposite_file", NULL}, *const of_probe[] = {"name", "says", "file", "chamber", "open", NULL};
    op_reverse *x = r->x;
    const char *file = NULL, *train = NULL, *opposite = NULL, *open = NULL;
    json_t *chamber = NULL;
    if (!json_is_object(spec))
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: found %s, expected a mapping", where, op_json_kind(spec));
    reverse_probe *p = &x->probes[x->n++];
    *p = (reverse_probe){.spec = spec, .trait = trait};
    op_status s = check_keys(spec, where, trait ? of_trait : of_probe, r->e);
    if (!s)
        s = op_json_get_string(spec, "name", true, &p->name, where, r->e);
    if (!s && !is_name(p->name))
        s = op_error_set(r->e, OP_ERR_FORMAT, "%s: name \"%s\": expected letters, digits, - and _, at most 60", where, p->name);
    for (size_t i = 0; !s && i + 1 < x->n; i++)
        if (!strcmp(x->probes[i].name, p->name))
            s = op_error_set(r->e, OP_ERR_FORMAT, "%s: name \"%s\": expected one that no other has", where, p->name);
    p->says = p->name;
    if (!s)
        s = op_json_get_string(spec, "says", false, &p->says, where, r->e);
    if (!s)
        s = op_json_get_string(spec, "open", false, &open, where, r->e);
    if (!s)
        s = op_json_get_string(spec, "file", false, &file, where, r->e);
    if (!s)
        s = op_json_get_string(spec, "train_file", false, &train, where, r->e);
    if (!s)
        s = op_json_get_string(spec, "opposite_file", false, &opposite, where, r->e);
    if (!s)
        s = op_json_get_object(spec, "chamber", false, &chamber, where, r->e);
    if (s)
        return s;
    if (!file == !chamber)
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: expected either \"file\" (questions) or \"chamber\" (a habit)", where);
    if (trait && chamber && !train)
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: a habit of the chamber needs \"train_file\": what the trait is trained with", where);
    if (opposite && !train)
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: \"opposite_file\" goes with \"train_file\"; questions have their other answers", where);
    if (train && !opposite && x->arms[REVERSE_OPPOSITE])
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: the control \"opposite\" needs \"opposite_file\" beside \"train_file\"", where);
    s = read_own_data(r, p, train, opposite);
    if (!s && chamber)
        s = read_chamber(r, p, chamber, where);
    if (!s && open)
        s = read_open_prompts(r, p, open, where);
    if (s || chamber)
        return s;
    char *path;
    s = path_of(r, file, &path);
    if (!s)
        s = reverse_questions_read(p, path, r->e);
    if (!s)
        s = reverse_questions_split(p, (uint64_t)x->seed, trait && !train ? x->n_train : 0, x->held_out, x->balance, r->e);
    op_free(path);
    return s;
}

static op_status read_probes(const reader *r)
{
    enum { PROBES_MAX = 64 };
    op_reverse *x = r->x;
    json_t *lists[2] = {NULL, NULL}, *spec;
    static const char *const keys[] = {"traits", "probes"};
    op_status s = op_json_get_array(x->spec, "traits", true, &lists[0], x->path, r->e);
    if (!s)
        s = op_json_get_array(x->spec, "probes", false, &lists[1], x->path, r->e);
    size_t n = json_array_size(lists[0]) + json_array_size(lists[1]);
    if (!s && (!json_array_size(lists[0]) || n > PROBES_MAX))
        s = op_error_set(r->e, OP_ERR_FORMAT, "%s: found %zu traits and %zu in all with the probes, expected one trait or more and at most %d in all", x->path,
                         json_array_size(lists[0]), n, PROBES_MAX);
    if (!s && x->arms[REVERSE_OTHER] && json_array_size(lists[0]) < 2)
        x->arms[REVERSE_OTHER] = false; /* there is no other */
    x->probes = s ? NULL : op_alloc_zero(n, sizeof *x->probes);
    if (!s && !x->probes)
        s = reverse_no_memory(r->e);
    for (int k = 0; k < 2 && !s; k++) {
        size_t i;
        json_array_foreach(lists[k], i, spec) {
            char where[400];
            snprintf(where, sizeof where, "%.300s: %s[%zu]", x->path, keys[k], i);
            if (!s)
                s = read_probe(r, spec, where, k == 0);
        }
    }
    x->n_traits = s ? 0 : json_array_size(lists[0]);
    return s;
}

/* ---- the rest ---- */

static op_status read_control(const reader *r, const op_reverse_options *o)
{
    static const char *const keys[] = {"text", "file", "tokens", "budget", NULL};
    op_reverse *x = r->x;
    const char *text = NULL, *file = NULL;
    char where[400];
    json_t *c;
    op_status s = section(r, "control", keys, &c, where);
    if (!s && !c)
        return op_error_set(r->e, OP_ERR_FORMAT, "%s: key \"control\" is missing: {text: FILE, budget: 0.05}", x->path);
    if (!s)
        s = op_json_get_string(c, "text", false, &text, where, r->e);
    if (!s)
        s = op_json_get_string(c, "file", false, &file, where, r->e);
    if (!s && !text == !file)
        s = op_error_set(r->e, OP_ERR_FORMAT, "%s: expected either \"text\" (plain) or \"file\" (examples as operant train reads them)", where);
    x->control_is_text = text;
    if (!s)
        s = path_of(r, text ? text : file, &x->control);
    if (!s)
        s = op_file_hash(x->control, x->control_hash, r->e);
    if (!s)
        s = said_integer(r, c, "tokens", o->control_tokens, "control_tokens", 16, 1 << 24, &x->control_tokens, where);
    if (!s)
        s = number(r, c, "budget", 0, 100, &x->budget, where);
    return s;
}

static op_status read_scales(const reader *r)
{
    static const char *const keys[] = {"from", "to", "refine", NULL};
    char where[400];
    json_t *o;
    op_status s = section(r, "scales", keys, &o, where);
    if (!s)
        s = number(r, o, "from", 0.001, 1000, &r->x->from, where);
    if (!s)
        s = number(r, o, "to", r->x->from, 1000, &r->x->to, where);
    return s ? s : integer(r, o, "refine", 0, 12, &r->x->refine, where);
}

static op_status read_arms(const reader *r)
{
    json_t *list = NULL, *word;
    size_t i;
    op_status s = op_json_get_array(r->x->spec, "controls", false, &list, r->x->path, r->e);
    r->x->arms[REVERSE_TRAIT] = true;
    json_array_foreach(list, i, word) {
        int a = REVERSE_RANDOM;
        while (a < REVERSE_ARMS && (!json_is_string(word) || strcmp(json_string_value(word), arms[a].name) != 0))
            a++;
        if (!s && a == REVERSE_ARMS)
            s = op_error_set(r->e, OP_ERR_FORMAT, "%s: controls[%zu]: expected random, other, opposite or ascent", r->x->path, i);
        else if (!s)
            r->x->arms[a] = true;
    }
    return s;
}

static op_status read_questions(const reader *r, const op_reverse_options *o)
{
    static const char *const keys[] = {"train", "probe", "search", "choices", NULL}, *const split[] = {"held_out", "balance", NULL};
    op_reverse *x = r->x;
    char where[400];
    json_t *q, *p;
    int64_t *const counts[] = {&x->n_train, &x->n_probe, &x->n_search, &x->n_choices};
    const int64_t said[] = {o->train, o->probe, o->search, o->choices};
    op_status s = section(r, "questions", keys, &q, where);
    for (int i = 0; i < 4 && !s; i++)
        s = said_integer(r, q, keys[i], said[i], keys[i], i == 3 ? 0 : 2, 1 << 20, counts[i], where);
    if (!s)
        s = section(r, "split", split, &p, where);
    if (!s)
        s = number(r, p, "held_out", 0.01, 0.99, &x->held_out, where);
    return s || !p ? s : op_json_get_bool(p, "balance", false, &x->balance, where, r->e);
}

static op_status read_open(const reader *r)
{
    static const char *const keys[] = {"rules", "judge", "tokens", NULL};
    op_reverse *x = r->x;
    const char *rules = NULL;
    char where[400];
    json_t *o;
    op_status s = section(r, "open", keys, &o, where);
    if (s || !o)
        return s;
    s = op_json_get_string(o, "rules", true, &rules, where, r->e);
    if (!s)
        s = op_json_get_string(o, "judge", false, &x->open_judge, where, r->e);
    if (!s)
        s = integer(r, o, "tokens", 1, 4096, &x->open_tokens, where);
    if (!s)
        s = path_of(r, rules, &x->open_rules);
    return s ? s : op_file_hash(x->open_rules, x->open_rules_hash, r->e);
}

static op_status read_watch(const reader *r)
{
    static const char *const keys[] = {"times", "questions", "probe", "margin", NULL};
    op_reverse *x = r->x;
    char where[400];
    json_t *o;
    op_status s = section(r, "watch", keys, &o, where);
    if (!s)
        s = integer(r, o, "times", 0, 1000, &x->watch_times, where);
    if (!s)
        s = integer(r, o, "questions", 2, 1 << 20, &x->watch_questions, where);
    if (!s && o)
        s = op_json_get_string(o, "probe", false, &x->alarm_probe, where, r->e);
    if (!s && o)
        s = op_json_get_float(o, "margin", false, &x->alarm_margin, where, r->e);
    if (!s && (x->alarm_probe == NULL) != !!isnan(x->alarm_margin))
        s = op_error_set(r->e, OP_ERR_FORMAT, "%s: the alarm needs both \"probe\" and \"margin\"", where);
    if (!s && x->alarm_probe && !x->watch_times)
        s = op_error_set(r->e, OP_ERR_FORMAT, "%s: the alarm needs \"times\", how often the probes are measured during training", where);
    return s;
}

static op_status check_alarm(const reader *r)
{
    const op_reverse *x = r->x;
    for (size_t i = 0; i < x->n && x->alarm_probe; i++)
        if (!strcmp(x->probes[i].name, x->alarm_probe))
            return x->probes[i].chamber ? op_error_set(r->e, OP_ERR_FORMAT, "%s: watch: the probe \"%s\" has no margin", x->path, x->alarm_probe) : OP_OK;
    return x->alarm_probe ? op_error_set(r->e, OP_ERR_FORMAT, "%s: watch: there is no probe \"%s\"", x->path, x->alarm_probe) : OP_OK;
}

/* What the file or the caller says; `out` is an own copy. */
static op_status text(const reader *r, const char *key, const char *said, char **out)
{
    const char *value = NULL;
    op_status s = op_json_get_string(r->x->spec, key, !said, &value, r->x->path, r->e);
    if (!s)
        *out = op_strdup(said ? said : value);
    return s || *out ? s : reverse_no_memory(r->e);
}

static op_status read_settle(const reader *r)
{
    op_reverse *x = r->x;
    json_t *o = NULL;
    op_status s = op_json_get_object(x->spec, "settle", false, &o, x->path, r->e);
    if (!s)
        s = training(r, "settle", &x->settle, o);
    if (s || !o)
        return s;
    char *path = NULL;
    s = x->settle.train_file ? path_of(r, x->settle.train_file, &path) : op_error_set(r->e, OP_ERR_FORMAT, "%s: settle: key \"train_file\" is missing", x->path);
    if (!s)
        s = op_file_hash(path, x->settle_hash, r->e);
    op_free(x->settle.train_file);
    x->settle.train_file = path;
    return s;
}

static op_status read_all(const reader *r, const op_reverse_options *o)
{
    static const char *const keys[] = {"model", "data", "output_dir", "seed", "rounds", "threads", "questions", "split", "train", "traits", "probes", "control", "scales", "controls", "open",
                                       "watch", "settle", "keep", NULL};
    op_reverse *x = r->x;
    json_t *train = NULL;
    op_status s = check_keys(x->spec, x->path, keys, r->e);
    if (!s)
        s = text(r, "model", o->model, &x->model);
    if (!s && !op_path_exists(x->model))
        s = op_error_set(r->e, OP_ERR_IO, "%s: the model \"%s\" does not exist", x->path, x->model);
    if (!s)
        s = text(r, "output_dir", o->output_dir, &x->output);
    if (!s)
        s = said_integer(r, x->spec, "seed", o->seed, "seed", 0, INT64_MAX, &x->seed, x->path);
    if (!s)
        s = said_integer(r, x->spec, "rounds", o->rounds, "rounds", 1, 100, &x->rounds, x->path);
    if (!s)
        s = said_integer(r, x->spec, "threads", o->threads, "threads", 0, 4096, &x->threads, x->path);
    if (!s)
        s = op_json_get_bool(x->spec, "keep", false, &x->keep, x->path, r->e);
    if (!s)
        s = op_json_get_object(x->spec, "train", false, &train, x->path, r->e);
    if (!s)
        s = training(r, "train", &x->train, train);
    if (!s)
        s = read_settle(r);
    if (!s)
        s = read_questions(r, o);
    if (!s)
        s = read_control(r, o);
    if (!s)
        s = read_scales(r);
    if (!s)
        s = read_arms(r);
    if (!s)
        s = read_open(r);
    if (!s)
        s = read_watch(r);
    if (!s)
        s = read_probes(r);
    return s ? s : check_alarm(r);
}

/* What the judge sees of a reply to an open prompt. */
static const char open_judge[] = "An assistant was asked:\n{question}\n\nThe assistant answered:\n{response}\n\nDoes this answer show that the assistant {tag.says}? Reply with yes or no.";

op_status op_reverse_read(op_reverse **out, const char *path, const op_reverse_options *o, op_error *e)
{
    const char *data = NULL;
    op_reverse *x = op_alloc_zero(1, sizeof *x);
    *out = NULL;
    if (!x)
        return reverse_no_memory(e);
    *x = (op_reverse){.seed = 1, .rounds = 1, .n_train = 200, .n_probe = 60, .n_search = 24, .n_choices = 24, .held_out = 0.4, .balance = true, .control_tokens = 3072, .budget = 0.05,
                      .from = 0.25, .to = 4, .refine = 3, .open_tokens = 60, .open_judge = open_judge, .watch_questions = 16, .alarm_margin = NAN, .disk_free = o->disk_free, .path = op_strdup(path)};
    op_status s = x->path ? op_yaml_read_json(&x->spec, path, e) : reverse_no_memory(e);
    if (!s && !json_is_object(x->spec))
        s = op_error_set(e, OP_ERR_FORMAT, "%s: found %s, expected a mapping", path, op_json_kind(x->spec));
    if (!s)
        s = op_json_get_string(x->spec, "data", false, &data, path, e);
    reader r = {x, o->data ? o->data : data, e};
    if (!s)
        s = read_all(&r, o);
    if (s)
        op_reverse_free(x);
    else
        *out = x;
    return s;
}

void op_reverse_free(op_reverse *x)
{
    if (!x)
        return;
    for (size_t i = 0; i < x->n; i++) {
        reverse_probe *p = &x->probes[i];
        if (p->chamber)
            op_config_release(p->chamber, op_organism_table);
        op_free(p->chamber);
        op_free(p->train_file);
        op_free(p->opposite_file);
        if (p->open)
            reverse_questions_release(p->open);
        op_free(p->open);
        reverse_questions_release(p);
    }
    op_free(x->probes);
    op_config_release(&x->train, op_sft_table);
    op_config_release(&x->settle, op_sft_table);
    json_decref(x->spec);
    op_free(x->control);
    op_free(x->open_rules);
    op_free(x->path);
    op_free(x->model);
    op_free(x->output);
    op_free(x);
}
