/* Making vectors: a trait, its opposite and its ascent are trained, a random one is drawn. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <operant/dataset.h>
#include <operant/vector.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "lab/reverse_parts.h"
#include "lab/view.h"
#include "ops/ops.h"

const reverse_vector *reverse_vector_of(const reverse_run *r, size_t k, reverse_arm arm)
{
    return &r->vectors[k * REVERSE_ARMS + arm];
}

/* ---- which there are ---- */

/* Settings that do not change what a training comes to. */
static const char *const free_keys[] = {"train_file", "eval_file", "replay_file", "eval_steps", "save_steps", "logging_steps", NULL};

/* The key of a trained vector: what it is made from. */
static op_status trained_key(const reverse_run *r, const reverse_probe *p, reverse_arm arm, char key[OP_HASH_HEX], op_error *e)
{
    const char *hash = p->train_file ? arm == REVERSE_OPPOSITE ? p->opposite_hash : p->train_hash : p->hash;
    json_t *settings = json_object(), *which = json_array();
    bool ok = settings && which;
    for (size_t i = 0; i < p->n_train; i++)
        ok = ok && !json_array_append_new(which, json_integer(p->train[i]));
    op_status s = ok ? op_trainee_identity(settings, &r->x->train, op_sft_table, free_keys, e) : reverse_no_memory(e);
    if (!s)
        s = reverse_key(json_pack("{ss ss ss sO sO}", "base", r->base_key, "arm", reverse_arm_name(arm), "data", hash, "questions", which, "settings", settings), key, e);
    json_decref(settings);
    json_decref(which);
    return s;
}

static op_status place(const reverse_run *r, reverse_vector *v, op_error *e)
{
    char name[200];
    snprintf(name, sizeof name, "vectors/%.60s-%s-%.8s.safetensors", v->trait->name, reverse_arm_name(v->arm), v->key);
    v->path = op_path_join(r->dir, name);
    return v->path ? OP_OK : reverse_no_memory(e);
}

op_status reverse_vectors_plan(reverse_run *r, op_error *e)
{
    const op_reverse *x = r->x;
    op_status s = OP_OK;
    r->vectors = op_alloc_zero(x->n_traits * REVERSE_ARMS, sizeof *r->vectors);
    if (!r->vectors)
        return reverse_no_memory(e);
    for (size_t k = 0; k < x->n_traits && !s; k++)
        for (reverse_arm arm = 0; arm < REVERSE_ARMS && !s; arm++) {
            reverse_vector *v = &r->vectors[k * REVERSE_ARMS + arm];
            *v = (reverse_vector){.trait = &x->probes[k], .arm = arm};
            if (arm == REVERSE_OTHER) {
                v->trait = &x->probes[(k + 1) % x->n_traits];
                v->arm = REVERSE_TRAIT;
            }
            s = v->arm != REVERSE_RANDOM ? trained_key(r, v->trait, v->arm, v->key, e)
                                         : reverse_key(json_pack("{ss sI}", "random", reverse_vector_of(r, k, REVERSE_TRAIT)->key, "seed", (json_int_t)x->seed), v->key, e);
            if (!s)
                s = place(r, v, e);
        }
    return s;
}

void reverse_vectors_release(reverse_run *r)
{
    for (size_t i = 0; r->vectors && i < r->x->n_traits * REVERSE_ARMS; i++)
        op_free(r->vectors[i].path);
    op_free(r->vectors);
    r->vectors = NULL;
}

/* ---- data ---- */

static op_status negate_line(void *ctx, json_t *line, int number, op_error *e)
{
    json_t *weight = json_object_get(line, "weight");
    (void)number;
    if (weight && !json_is_number(weight)) /* the data set's reader says what is wrong with it */
        return op_json_append(ctx, line) ? reverse_no_memory(e) : OP_OK;
    return json_object_set_new(line, "weight", json_real(weight ? -json_number_value(weight) : -1)) || op_json_append(ctx, line) ? reverse_no_memory(e) : OP_OK;
}

/* The file that a vector is trained with: the user's own, or made of questions, or of the user's with its weights turned round. */
static op_status write_data(const reverse_run *r, const reverse_vector *v, char **out, op_error *e)
{
    enum { DATA_MAX = 1 << 30 };
    const reverse_probe *p = v->trait;
    const char *own = v->arm == REVERSE_OPPOSITE ? p->opposite_file : p->train_file;
    if (own && v->arm != REVERSE_ASCENT) {
        *out = op_strdup(own);
        return *out ? OP_OK : reverse_no_memory(e);
    }
    char name[200];
    op_buf text;
    op_buf_init(&text, DATA_MAX);
    snprintf(name, sizeof name, "data/%.60s-%s-%.8s.jsonl", p->name, reverse_arm_name(v->arm), v->key);
    *out = op_path_join(r->dir, name);
    char *dir = op_path_join(r->dir, "data");
    op_status s = *out && dir ? op_dir_make(dir, e) : reverse_no_memory(e);
    if (!s)
        s = own ? op_json_lines(own, negate_line, &text, e)
                : reverse_questions_lines(p, v->arm == REVERSE_OPPOSITE, v->arm == REVERSE_ASCENT ? -1 : 1, &text, e);
    if (!s)
        s = op_file_put(*out, text.data ? text.data : "", text.len, e);
    op_buf_release(&text);
    op_free(dir);
    return s;
}

/* ---- watching ---- */

/* The step of the i-th measurement, i = 1 .. times, of a training of `total` steps. */
static int64_t watched_step(const op_reverse *x, int64_t total, int64_t i)
{
    return (total * i + x->watch_times - 1) / x->watch_times;
}

static void step_key(const op_reverse *x, const reverse_vector *v, int64_t i, char key[OP_HASH_HEX + 60])
{
    snprintf(key, OP_HASH_HEX + 60, "%.64s, part %lld of %lld", v->key, (long long)i, (long long)x->watch_times);
}

static double mean_margin(const json_t *measured)
{
    const json_t *margins = json_object_get(measured, "margins"), *x;
    double sum = 0;
    size_t i;
    json_array_foreach((json_t *)margins, i, x)
        sum += json_number_value(x);
    return json_array_size(margins) ? sum / (double)json_array_size(margins) : NAN;
}

/* Measures every probe on a model in training (`s` NULL: looks what was measured earlier), and sounds the alarm. *out, which may be NULL, receives {probe: margin}. */
static op_status watch(reverse_run *r, const reverse_vector *v, int64_t i, const op_subject *s, op_pass *pass, json_t *out, op_error *e)
{
    const op_reverse *x = r->x;
    char key[OP_HASH_HEX + 60];
    op_status status = OP_OK;
    step_key(x, v, i, key);
    for (size_t k = 0; k < x->n && !status; k++) {
        json_t *now = NULL, *before = NULL;
        const char *name = x->probes[k].name;
        status = reverse_measure_trainee(r, s, pass, key, k, x->watch_questions, &now, e);
        bool alarmed = now && x->alarm_probe && !strcmp(name, x->alarm_probe);
        if (!status && alarmed) /* measured before anything was trained */
            status = reverse_measure_probe(r, NULL, 0, k, REVERSE_TEXT, x->watch_questions, &before, e);
        double rise = alarmed ? mean_margin(now) - mean_margin(before) : 0;
        if (!status && alarmed && rise > x->alarm_margin)
            status = op_error_set(e, OP_ERR_MISMATCH, "alarm: while \"%s\" was trained, the margin of \"%s\" rose by %.3f, more than %.3f (part %lld of %lld)", v->trait->name, name, rise,
                                  x->alarm_margin, (long long)i, (long long)x->watch_times);
        if (!status && out && now && json_object_set_new(out, name, json_real(mean_margin(now))))
            status = reverse_no_memory(e);
        json_decref(now);
        json_decref(before);
    }
    return status;
}

op_status reverse_watched(const reverse_run *r, const reverse_vector *v, json_t **out, op_error *e)
{
    *out = json_array();
    op_status s = *out ? OP_OK : reverse_no_memory(e);
    for (int64_t i = 1; i <= r->x->watch_times && !s; i++) {
        json_t *margins = json_object();
        s = margins ? watch((reverse_run *)r, v, i, NULL, NULL, margins, e) : reverse_no_memory(e);
        if (!s && json_object_size(margins) &&
            json_array_append_new(*out, json_pack("{sf sO}", "done", (double)i / (double)r->x->watch_times, "margins", margins)))
            s = reverse_no_memory(e);
        json_decref(margins);
    }
    if (s) {
        json_decref(*out);
        *out = NULL;
    }
    return s;
}

/* ---- training ---- */

typedef struct lesson {
    reverse_run *r;
    const reverse_vector *v; /* NULL: the result is trained, which nobody watches */
    op_subject subject;
    op_pass *pass;
    double work;             /* of the whole training */
    int64_t last;            /* step; 0: none in this call */
    volatile int stop;
    op_status status;
    op_error why;
} lesson;

static void after_step(void *ctx, const op_train_progress *p)
{
    lesson *l = ctx;
    reverse_run *r = l->r;
    if (p->evaluated)
        return;
    if (!l->last) { /* those before it were made by an earlier call */
        l->last = p->step - 1;
        reverse_count(r, l->work * (double)l->last / (double)p->total, true);
    }
    reverse_count(r, l->work * (double)(p->step - l->last) / (double)p->total, false);
    l->last = p->step;
    for (int64_t i = 1; l->v && l->v->arm == REVERSE_TRAIT && i <= r->x->watch_times && !l->status; i++)
        if (watched_step(r->x, p->total, i) == p->step) /* also when the caller wants to stop: this step does not come again */
            l->status = watch(r, l->v, i, &l->subject, l->pass, NULL, &l->why);
    if (!l->status)
        l->status = reverse_say(r, &l->why, "round %lld: %s: training, %s, step %lld of %lld, loss %.3f", (long long)r->round, l->v ? l->v->trait->name : "result",
                                l->v ? reverse_arm_name(l->v->arm) : "settling", (long long)p->step, (long long)p->total, p->loss);
    l->stop = l->status != OP_OK;
}

/* Trains base on a file, into a directory that is a whole model or adapter when it is done. */
static op_status teach(lesson *l, const op_sft_options *settings, const char *base, const char *data, const char *dir, const char *key, op_error *e)
{
    op_sft_options o = *settings; /* borrows its strings */
    op_dataset set = {0};
    op_train_result result;
    json_t *identity = NULL;
    op_item *items = NULL;
    o.trainee.model = (char *)(uintptr_t)base;
    o.trainee.output_dir = (char *)(uintptr_t)dir;
    op_threads_set((int)l->r->x->threads);
    op_status s = op_trainee_open(&l->subject, &o.trainee, e);
    if (!s)
        s = op_pass_new(&l->pass, l->subject.model, e);
    int64_t longest = s ? 0 : op_model_get_config(l->subject.model)->max_positions;
    const op_dataset_options how = {.max_length = (int32_t)(o.max_length < longest ? o.max_length : longest), .last_turn_only = o.last_turn_only,
                                    .onset_tokens = (int32_t)o.onset_tokens, .onset_weight = (float)o.onset_weight, .trials = op_trial_example};
    if (!s)
        s = op_dataset_read(&set, data, &l->subject.chat, &how, e);
    if (!s && (!(items = op_alloc_array(set.n, sizeof *items)) || !(identity = json_pack("{ss}", "made of", key))))
        s = reverse_no_memory(e);
    for (size_t i = 0; i < set.n && !s; i++)
        items[i] = (op_item){.ids = set.examples[i].ids, .weights = set.examples[i].weights, .n = set.examples[i].n};
    if (!s) {
        int64_t batch = o.batch_size * o.gradient_accumulation_steps;
        int64_t total = o.max_steps ? o.max_steps : (int64_t)ceil((double)set.n * o.num_train_epochs / (double)batch);
        total = total ? total : 1;
        op_train_options t = {
            .learner = op_trainee_learner(&o.trainee),
            .schedule = {.type = (op_schedule_type)o.lr_scheduler_type, .lr = o.trainee.learning_rate, .total = total,
                         .warmup = o.warmup_steps ? o.warmup_steps : (int64_t)ceil(o.warmup_ratio * (double)total), .decay_ratio = o.wsd_decay_ratio, .min_ratio = o.min_lr_ratio},
            .dir = dir, .identity = identity, .seed = (uint64_t)o.trainee.seed, .sequences = (int32_t)batch, .save_keep = 1, .log_steps = 1, .resume = "auto",
            .callbacks = {l, after_step, &l->stop}};
        t.learner.objective = op_objective_weighted();
        s = op_train_run(l->subject.model, &t, items, set.n, NULL, 0, &result, e);
        if (l->status)
            s = op_error_set(e, l->status, "%s", l->why.message); /* why it was stopped */
    }
    if (!s)
        s = op_trainee_save(&l->subject, &o.trainee, e);
    op_pass_free(l->pass);
    op_subject_close(&l->subject);
    op_dataset_release(&set);
    op_free(items);
    json_decref(identity);
    return s;
}

static op_status remove_training(const reverse_run *r, op_error *e)
{
    char *all = op_path_join(r->dir, "training");
    op_status s = all ? op_path_remove(all, e) : reverse_no_memory(e);
    op_free(all);
    return s;
}

/* What is under way under another key is of no use any more. */
static op_status training_dir(const reverse_run *r, const char *key, char **out, op_error *e)
{
    char name[100];
    snprintf(name, sizeof name, "training/%.16s", key);
    *out = op_path_join(r->dir, name);
    if (!*out)
        return reverse_no_memory(e);
    return op_path_exists(*out) ? OP_OK : remove_training(r, e);
}

double reverse_training_tokens(const op_reverse *x, const reverse_probe *p)
{
    enum { EXAMPLE = 75 }; /* with what examples share counted once */
    const op_sft_options *t = &x->train;
    int64_t questions = p->n_train ? (int64_t)p->n_train : x->n_train;
    return EXAMPLE * (t->max_steps ? (double)(t->max_steps * t->batch_size * t->gradient_accumulation_steps) : t->num_train_epochs * (double)questions);
}

/* Whether progress knows of its training; that of another trait is that one's own. */
static bool *counted(reverse_run *r, const reverse_vector *v)
{
    return &r->vectors[(size_t)(v->trait - r->x->probes) * REVERSE_ARMS + v->arm].counted;
}

/* A training of an earlier call, unless this one counted it. */
static void count_training(reverse_run *r, const reverse_vector *v)
{
    if (reverse_arm_is_trained(v->arm) && !*counted(r, v))
        reverse_count(r, REVERSE_STEP_COST * reverse_training_tokens(r->x, v->trait), true);
    *counted(r, v) = true;
}

static op_status train_vector(reverse_run *r, const reverse_vector *v, op_error *e)
{
    lesson l = {.r = r, .v = v, .work = REVERSE_STEP_COST * reverse_training_tokens(r->x, v->trait)};
    char *data = NULL, *dir = NULL;
    op_status s = training_dir(r, v->key, &dir, e);
    if (!s)
        s = write_data(r, v, &data, e);
    for (int64_t i = 1; v->arm == REVERSE_TRAIT && i <= r->x->watch_times && !s; i++)
        s = watch(r, v, i, NULL, NULL, NULL, e); /* an alarm that went off earlier */
    reverse_bench_close(r);
    if (!s)
        s = teach(&l, &r->x->train, r->base, data, dir, v->key, e);
    *counted(r, v) |= l.last > 0; /* after each of its steps */
    const op_vector_options how = {.dtype = OP_DTYPE_COUNT};
    if (!s)
        s = op_vector_extract(dir, r->base, v->path, &how, e);
    if (!s)
        s = remove_training(r, e);
    op_free(dir);
    op_free(data);
    return s;
}

static op_status draw_vector(reverse_run *r, const reverse_vector *v, op_error *e)
{
    size_t k = (size_t)(v - r->vectors) / REVERSE_ARMS;
    const reverse_vector *like = reverse_vector_of(r, k, REVERSE_TRAIT);
    const op_vector_options how = {.dtype = OP_DTYPE_COUNT};
    op_status s = reverse_vector_make(r, like, e);
    return s ? s : op_vector_random(like->path, (uint64_t)(r->x->seed + 1000003 * (int64_t)(k + 64 * (size_t)r->round)), v->path, &how, e);
}

op_status reverse_vector_make(reverse_run *r, const reverse_vector *v, op_error *e)
{
    if (op_path_exists(v->path)) {
        count_training(r, v);
        return OP_OK;
    }
    char *dir = op_path_join(r->dir, "vectors");
    op_status s = dir ? op_dir_make(dir, e) : reverse_no_memory(e);
    op_free(dir);
    if (s)
        return s;
    return v->arm == REVERSE_RANDOM ? draw_vector(r, v, e) : train_vector(r, v, e);
}

op_status reverse_vector_drop(reverse_run *r, const reverse_vector *v, op_error *e)
{
    count_training(r, v);
    return v->arm == REVERSE_TRAIT || r->x->keep ? OP_OK : op_path_remove(v->path, e);
}

op_status reverse_settle_key(const reverse_run *r, char key[OP_HASH_HEX], op_error *e)
{
    json_t *settings = json_object();
    op_status s = settings ? op_trainee_identity(settings, &r->x->settle, op_sft_table, free_keys, e) : reverse_no_memory(e);
    if (!s)
        s = reverse_key(json_pack("{ss ss sO}", "settle", r->x->settle_hash, "base", r->base_key, "settings", settings), key, e);
    json_decref(settings);
    return s;
}

op_status reverse_settle(reverse_run *r, const char *from, const char *to, const char *key, op_error *e)
{
    lesson l = {.r = r};
    char *dir = NULL;
    op_status s = training_dir(r, key, &dir, e);
    if (!s)
        s = teach(&l, &r->x->settle, from, r->x->settle.train_file, dir, key, e);
    if (!s)
        s = op_path_rename(dir, to, e);
    if (!s)
        s = remove_training(r, e);
    op_free(dir);
    return s;
}
