/* A protocol from its file to its result: the loop over stages and rounds, checkpoints and resume. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <operant/clock.h>

#include "base/hash.h"
#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "ops/ops.h"
#include "train/checkpoint.h"
#include "train/journal.h"
#include "trial/session_parts.h"

typedef struct run {
    op_session s;
    op_protocol protocol;
    const op_session_kit *kit;
    op_session_result *result;
    json_t *identity, *figures; /* figures: of every finished stage */
    json_t *shown;              /* transcripts of the stage, replaced in every round */
    const char *path;           /* of the protocol file */
    char *dir, *checkpoints, run_id[65];
    json_t *begun;              /* what a resume needs, as it was when this round began; NULL: nobody can interrupt one */
    op_journal journal;
    int64_t saved;              /* round of the newest checkpoint, -1: none */
    double seconds, model_seconds;
} run;

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the session");
}

/* An error in a stage tells which, in what file. */
static op_status of_stage(const run *r, size_t at, op_status status, op_error *e)
{
    if (status)
        op_error_prefix(e, "%s: stage %zu, \"%s\"", r->path, at + 1, r->protocol.stages[at].stage.name);
    return status;
}

static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

/* ---- a stage ---- */

static op_status open_source(run *r, const json_t *settings, op_error *e)
{
    const char *type = json_string_value(json_object_get(settings, "type"));
    if (!type || !strcmp(type, "data"))
        return op_cues_from_data(&r->s.source, settings, &r->s.room, e);
    for (const op_cue_source_type *t = r->kit->sources; t && t->name; t++)
        if (!strcmp(t->name, type))
            return t->open(&r->s.source, settings, &r->s.room, e);
    return op_error_set(e, OP_ERR_ARG, "cues: key \"type\": unknown source \"%s\"", type);
}

static void close_stage(op_session *s)
{
    op_teacher_close(s->teacher);
    op_reinforce_free(s->schedule);
    op_lesson_free(s->lesson);
    if (s->source)
        s->source->free(s->source);
    json_decref(s->memory);
    s->memory = NULL;
    s->teacher = NULL;
    s->schedule = NULL;
    s->lesson = NULL;
    s->source = NULL;
}

static op_status open_parts(run *r, op_error *e)
{
    op_session *s = &r->s;
    const op_stage_plan *plan = &r->protocol.stages[s->stage_at];
    op_reinforce_options schedule;
    s->stage = &plan->stage;
    s->memory = json_object();
    op_status status = s->memory ? plan->cues ? open_source(r, plan->cues, e) : OP_OK : no_memory(e);
    if (!status && plan->teacher)
        status = op_teacher_open(&s->teacher, plan->teacher, &s->room, r->kit->teachers, e);
    json_t *every = plan->schedule ? NULL : json_pack("{ss}", "type", "continuous");
    if (!status)
        status = op_reinforce_from_json(&schedule, plan->schedule ? plan->schedule : every, s->seed, e);
    json_decref(every);
    if (!status)
        status = op_reinforce_new(&s->schedule, &schedule, e);
    return status ? status : op_lesson_new(&s->lesson, &s->stage->lesson, e);
}

/* Everything of a stage but its counters. */
static op_status open_stage(run *r, op_error *e)
{
    return of_stage(r, r->s.stage_at, open_parts(r, e), e);
}

static bool is_new(const run *r, size_t at)
{
    const op_stage_plan *x = &r->protocol.stages[at];
    for (size_t i = 0; i < at; i++) {
        const op_stage_plan *y = &r->protocol.stages[i];
        if (x->teacher == y->teacher && x->schedule == y->schedule && x->cues == y->cues)
            return false;
    }
    return true;
}

static op_status check_lesson(const run *r, size_t at, op_error *e)
{
    const op_lesson_options *o = &r->protocol.stages[at].stage.lesson;
    op_lesson *lesson = NULL;
    op_status status = op_lesson_new(&lesson, o, e);
    op_lesson_free(lesson);
    if (!status && o->kl > 0 && !r->s.reference.model && r->protocol.o.trainee.method == OP_METHOD_FULL)
        status = op_error_set(e, OP_ERR_ARG, "\"lesson.kl\" needs \"reference\": with method=full there is no other model to stay near to");
    return status;
}

/* Opens every stage that differs from those before it, and closes it again: what is wrong with the last one should not come out when the others are done. */
static op_status try_stages(run *r, op_error *e)
{
    op_session *s = &r->s;
    op_status status = OP_OK;
    for (s->stage_at = 0; !status && s->stage_at < r->protocol.n; s->stage_at++) {
        status = of_stage(r, s->stage_at, check_lesson(r, s->stage_at, e), e);
        if (status || !s->stage_at || !is_new(r, s->stage_at))
            continue;
        status = open_stage(r, e);
        close_stage(s);
    }
    s->stage_at = 0;
    return status;
}

static bool stage_is_over(const op_session *s)
{
    const op_stage *x = s->stage;
    return s->stage_round >= x->rounds || (x->budget_trials && s->stage_trials >= x->budget_trials) ||
           (x->budget_tokens && s->stage_tokens >= x->budget_tokens) ||
           (x->until_success > 0 && s->n_successes >= x->until_over && op_session_success(s, x->until_over) >= x->until_success);
}

/* ---- state that a resume needs, beside the learner's ---- */

static json_t *successes_json(const op_session *s)
{
    char text[OP_SESSION_WINDOW + 1];
    int64_t n = s->n_successes < OP_SESSION_WINDOW ? s->n_successes : OP_SESSION_WINDOW;
    for (int64_t i = 0; i < n; i++)
        text[i] = (char)('0' + s->successes[(s->n_successes - n + i) % OP_SESSION_WINDOW]);
    text[n] = 0;
    return json_string(text);
}

static op_status save_extra(run *r, json_t **out, op_error *e)
{
    op_session *s = &r->s;
    json_t *schedule = NULL, *teacher = NULL;
    op_running baseline = op_lesson_running(s->lesson);
    op_status status = op_reinforce_save(s->schedule, &schedule, e);
    if (!status && s->teacher && s->teacher->save)
        status = s->teacher->save(s->teacher, &teacher, e);
    *out = status ? NULL : json_pack("{sI sI sI sI sI sI sI so so so* sf sI sO sO so}", "stage", (json_int_t)s->stage_at, "stage_round", (json_int_t)s->stage_round,
                                     "stage_trials", (json_int_t)s->stage_trials, "stage_tokens", (json_int_t)s->stage_tokens, "trials", (json_int_t)s->trials,
                                     "cues", (json_int_t)s->cues_drawn, "told", (json_int_t)s->n_successes, "successes", successes_json(s), "schedule",
                                     schedule, "teacher", teacher, "baseline", baseline.mean, "baseline_count", (json_int_t)baseline.count, "figures",
                                     r->figures, "transcripts", r->shown, "memory", json_copy(s->memory)); /* what lies in the memory is never changed in place */
    if (status)
        json_decref(schedule);
    return status || *out ? status : no_memory(e);
}

static op_status load_extra(run *r, json_t *x, op_error *e)
{
    op_session *s = &r->s;
    int64_t stage = 0, cues = 0, count = 0;
    double mean = 0;
    const char *told = "", *name = "checkpoint";
    op_status status = op_json_get_int(x, "stage", true, 0, (int64_t)r->protocol.n - 1, &stage, name, e);
    s->stage_at = (size_t)stage;
    if (!status)
        status = open_stage(r, e);
    if (!status)
        status = op_json_get_int(x, "stage_round", true, 0, INT64_MAX, &s->stage_round, name, e);
    if (!status)
        status = op_json_get_int(x, "stage_trials", true, 0, INT64_MAX, &s->stage_trials, name, e);
    if (!status)
        status = op_json_get_int(x, "stage_tokens", true, 0, INT64_MAX, &s->stage_tokens, name, e);
    if (!status)
        status = op_json_get_int(x, "trials", true, 0, INT64_MAX, &s->trials, name, e);
    if (!status)
        status = op_json_get_int(x, "cues", true, 0, INT64_MAX, &cues, name, e);
    if (!status)
        status = op_json_get_int(x, "told", true, 0, INT64_MAX, &s->n_successes, name, e);
    if (!status)
        status = op_json_get_string(x, "successes", true, &told, name, e);
    if (!status)
        status = op_json_get_float(x, "baseline", true, &mean, name, e);
    if (!status)
        status = op_json_get_int(x, "baseline_count", true, 0, INT64_MAX, &count, name, e);
    if (!status)
        status = op_reinforce_load(s->schedule, json_object_get(x, "schedule"), e);
    if (!status && s->teacher && s->teacher->load && json_object_get(x, "teacher"))
        status = s->teacher->load(s->teacher, json_object_get(x, "teacher"), e);
    if (status)
        return status;
    s->cues_drawn = (uint64_t)cues;
    op_lesson_set_running(s->lesson, (op_running){mean, count});
    size_t n = strlen(told);
    if (n > OP_SESSION_WINDOW || (int64_t)n > s->n_successes || strspn(told, "01") != n || !json_is_array(json_object_get(x, "figures")) ||
        !json_is_object(json_object_get(x, "memory")))
        return op_error_set(e, OP_ERR_FORMAT, "%s: what it holds of the stage is damaged", name);
    for (size_t i = 0; i < n; i++)
        s->successes[(s->n_successes - (int64_t)n + (int64_t)i) % OP_SESSION_WINDOW] = told[i] == '1';
    json_t *shown = json_object_get(x, "transcripts");
    if (json_is_array(shown)) { /* checkpoints of the version before have none */
        json_decref(r->shown);
        r->shown = json_incref(shown);
    }
    json_decref(r->figures);
    json_decref(s->memory);
    r->figures = json_deep_copy(json_object_get(x, "figures"));
    s->memory = json_deep_copy(json_object_get(x, "memory"));
    return r->figures && s->memory ? OP_OK : no_memory(e);
}

static op_status save_as(run *r, json_t *extra, int64_t trials, int64_t tokens, op_error *e)
{
    const op_run_state state = {.step = r->s.round, .position = trials, .tokens = tokens, .first = {.loss = NAN}, .last = {.loss = NAN}, .extra = extra};
    if (r->saved == r->s.round)
        return OP_OK;
    op_status status = op_checkpoint_save(r->checkpoints, r->s.learner, &state, r->identity, (int32_t)r->protocol.o.trainee.save_total_limit, e);
    if (!status)
        r->saved = r->s.round;
    return status;
}

static op_status save(run *r, op_error *e)
{
    json_t *extra = NULL;
    op_status status = r->saved == r->s.round ? OP_OK : save_extra(r, &extra, e);
    if (!status)
        status = save_as(r, extra, r->s.trials, r->s.tokens, e);
    json_decref(extra);
    return status;
}

/* ---- a round ---- */

/* Which weights sampled: the run and how often they were updated. */
static void name_policy(run *r)
{
    char text[128];
    snprintf(text, sizeof text, "%s/%lld", r->run_id, (long long)op_learner_steps(r->s.learner));
    op_hash(text, strlen(text), r->s.policy);
}

/* Every trial of the round in one transaction; parents first, since a redo comes after what it redoes. */
static op_status store_round(run *r, op_error *e)
{
    op_session *s = &r->s;
    op_status status = op_store_begin(s->store, e);
    if (status)
        return status;
    for (size_t i = 0; !status && i < s->n_entries; i++) {
        op_entry *x = &s->entries[i];
        char key[128];
        if (x->probe && !r->protocol.o.keep_probes)
            continue;
        if (x->parent != SIZE_MAX)
            x->trial->redo_of = s->entries[x->parent].trial->id;
        snprintf(key, sizeof key, "%.32s/%lld/%lld", r->run_id, (long long)(x->number >> 24), (long long)(x->number & 0xffffff));
        status = op_store_add(s->store, x->trial, key, e);
        if (status == OP_ERR_MISMATCH)
            op_error_prefix(e, "another build or number of threads made what is in the store, name another with store=");
    }
    if (!status)
        return op_store_commit(s->store, e);
    op_store_rollback(s->store);
    return status;
}

static double mean_reward(const op_session *s)
{
    double sum = 0;
    size_t n = 0;
    for (size_t i = 0; i < s->n_entries; i++)
        if (s->entries[i].trial->has_reward) {
            sum += s->entries[i].trial->reward;
            n++;
        }
    return n ? sum / (double)n : NAN;
}

static op_status log_round(run *r, const op_session_progress *p, op_error *e)
{
    const op_lesson_stats *l = &p->lesson;
    json_t *line = json_pack("{sI ss sI sI sI so so so so so so so so so so so so sI sf sf}", "step", (json_int_t)r->s.round, "stage", p->stage, "stage_round",
                             (json_int_t)p->round, "trials", (json_int_t)p->trials, "sampled_tokens", (json_int_t)p->tokens, "success", number(p->success),
                             "reward", number(p->reward), "policy_loss", number(l->policy_loss), "preference_loss", number(l->preference_loss),
                             "imitation_loss", number(l->imitation_loss), "entropy", number(l->entropy), "kl", number(l->kl), "clip_fraction",
                             number(l->clip_fraction), "zero_variance", number(l->zero_variance), "marks_per_trial", number(l->marks_per_trial),
                             "preference_accuracy", number(l->preference_accuracy), "grad_norm", number(l->step.grad_norm), "trained_tokens", (json_int_t)l->step.trained, "model_share", p->model_share, "seconds", p->seconds);
    return line ? op_journal_add(&r->journal, line, e) : no_memory(e);
}

static op_status learn(run *r, op_session_progress *p, op_error *e)
{
    op_session *s = &r->s;
    op_status status = OP_OK;
    double start = op_seconds();
    for (int64_t u = 0; !status && u < s->stage->updates && (!u || op_lesson_items(s->lesson)); u++)
        status = op_lesson_learn(s->lesson, s->learner, s->reference.model, u ? NULL : s->policy, s->stage->lr, &p->lesson, e);
    s->model_seconds += op_seconds() - start;
    op_lesson_clear(s->lesson);
    return status;
}

static op_status remember_begin(run *r, op_error *e)
{
    json_decref(r->begun);
    r->begun = NULL;
    return r->s.callbacks->stop && r->saved != r->s.round ? save_extra(r, &r->begun, e) : OP_OK;
}

static op_status do_round(run *r, op_error *e)
{
    op_session *s = &r->s;
    double start = op_seconds();
    op_session_progress p = {.stage = s->stage->name, .method = s->stage->method->name, .rounds = s->stage->rounds};
    int64_t trials = s->trials, tokens = s->tokens;
    name_policy(r);
    op_status status = remember_begin(r, e);
    if (!status)
        status = of_stage(r, s->stage_at, s->stage->method->round(s, s->stage, e), e);
    if (!status)
        status = store_round(r, e);
    p.reward = mean_reward(s);
    if (!status)
        status = learn(r, &p, e);
    if (!status)
        status = op_transcripts_choose(s, &r->shown, e);
    double model = s->model_seconds;
    op_session_clear_round(s);
    if (status == OP_ERR_INTERRUPTED && r->begun) { /* in the middle: a resume does this round again */
        op_status saved = save_as(r, r->begun, trials, tokens, e);
        status = saved ? saved : status;
    }
    if (status)
        return status;
    s->round++;
    s->stage_round++;
    p.seconds = op_seconds() - start;
    r->seconds += p.seconds;
    r->model_seconds += model;
    p.round = s->stage_round;
    p.trials = s->trials;
    p.tokens = s->tokens;
    p.success = op_session_success(s, s->stage->until_over);
    p.model_share = p.seconds > 0 ? model / p.seconds : 0;
    p.eta_s = r->seconds / (double)(s->round - r->result->resumed_from) * (double)(s->stage->rounds - s->stage_round);
    if (s->callbacks->progress)
        s->callbacks->progress(s->callbacks->ctx, &p);
    return log_round(r, &p, e);
}

/* ---- the whole ---- */

static bool stopped(const run *r)
{
    return r->s.callbacks->stop && *r->s.callbacks->stop;
}

static op_status finish_stage(run *r, op_error *e)
{
    op_session *s = &r->s;
    json_t *x = json_pack("{ss ss sI sI sI so}", "name", s->stage->name, "method", s->stage->method->name, "rounds", (json_int_t)s->stage_round, "trials",
                          (json_int_t)s->stage_trials, "tokens", (json_int_t)s->stage_tokens, "success", number(op_session_success(s, s->stage->until_over)));
    if (!x || json_array_append_new(r->figures, x))
        return no_memory(e);
    close_stage(s);
    s->stage_at++;
    s->stage_round = s->stage_trials = s->stage_tokens = s->n_successes = 0;
    s->cues_drawn = 0;
    if (s->stage_at < r->protocol.n) {
        json_decref(r->shown);
        r->shown = json_array();
        if (!r->shown)
            return no_memory(e);
    }
    return s->stage_at < r->protocol.n ? open_stage(r, e) : OP_OK;
}

static op_status run_stages(run *r, op_error *e)
{
    op_session *s = &r->s;
    const char *again = strcmp(r->protocol.o.trainee.resume, "auto") ? "resume=auto" : "the same command";
    op_status status = OP_OK;
    while (!status && s->stage_at < r->protocol.n && !stopped(r)) {
        if (stage_is_over(s)) {
            status = save(r, e);
            if (!status)
                status = finish_stage(r, e);
            continue;
        }
        status = do_round(r, e);
        if (!status && r->protocol.o.save_rounds && s->round % r->protocol.o.save_rounds == 0)
            status = save(r, e);
    }
    if (status == OP_ERR_INTERRUPTED)
        return op_error_set(e, OP_ERR_INTERRUPTED, "stopped in round %lld; %s goes on from its beginning", (long long)s->round + 1, again);
    if (!status && s->stage_at < r->protocol.n) {
        status = save(r, e);
        if (!status)
            status = op_error_set(e, OP_ERR_INTERRUPTED, "stopped after round %lld; %s goes on from there", (long long)s->round, again);
    }
    return status;
}

static op_status write_results(run *r, op_error *e)
{
    char *path = op_path_join(r->protocol.o.trainee.output_dir, "results.json");
    json_t *root = json_pack("{ss ss sI sI sI sO sO}", "model", r->protocol.o.trainee.model, "protocol_hash", r->protocol.hash, "rounds", (json_int_t)r->s.round,
                             "trials", (json_int_t)r->s.trials, "tokens", (json_int_t)r->s.tokens, "stages", r->figures, "transcripts", r->shown);
    op_status status = path && root ? op_json_write(path, root, e) : no_memory(e);
    json_decref(root);
    op_free(path);
    return status;
}

static op_status resume(run *r, op_error *e)
{
    const char *how = r->protocol.o.trainee.resume;
    char *newest = NULL;
    const char *path = NULL;
    op_run_state state = {0};
    op_status status = OP_OK;
    if (!strcmp(how, "auto")) {
        status = op_checkpoint_newest(r->checkpoints, &newest, e);
        path = newest;
    } else if (strcmp(how, "none") != 0) {
        path = how;
    }
    r->saved = -1;
    if (!status && path) {
        status = op_checkpoint_load(path, r->s.learner, &state, r->identity, e);
        r->s.round = r->result->resumed_from = state.step;
        r->s.tokens = state.tokens;
        if (!status)
            status = load_extra(r, state.extra, e);
        r->saved = state.step;
        json_decref(state.extra);
    } else if (!status) {
        status = try_stages(r, e);
        status = status ? status : open_stage(r, e);
    }
    if (!status)
        status = op_checkpoint_forget(r->checkpoints, path ? r->s.round : -1, e);
    op_free(newest);
    return status;
}

/* A dataset line that ends nowhere, a store's default place. */
static op_status open_store(run *r, op_error *e)
{
    const op_protocol_options *o = &r->protocol.o;
    char *path = o->store ? op_strdup(o->store) : op_path_join(o->trainee.output_dir, "trials.db");
    op_status status = path ? op_store_open(&r->s.store, path, e) : no_memory(e);
    op_free(path);
    return status;
}

static op_status open_reference(run *r, op_error *e)
{
    const op_protocol_options *o = &r->protocol.o;
    if (!o->reference)
        return OP_OK;
    if (op_path_same(o->reference, o->trainee.output_dir))
        return op_error_set(e, OP_ERR_ARG, "output_dir \"%s\" is the directory of the reference model", o->trainee.output_dir);
    op_model_options how = {.backend = o->trainee.backend, .act = op_subject_dtype(o->trainee.dtype, o->trainee.backend)};
    return op_subject_open(&r->s.reference, o->reference, &how, e);
}

/* The store's URL without a password. */
static json_t *store_shown(const char *url)
{
    const char *user = strstr(url, "://"), *at = user ? strchr(user, '@') : NULL, *colon = user ? strchr(user + 3, ':') : NULL;
    return at && colon && colon < at ? json_sprintf("%.*s:...%s", (int)(colon - url), url, at) : json_string(url);
}

/* protocol.json, which people share. What an earlier run in this directory found is not this one's. */
static op_status write_config(run *r, op_error *e)
{
    const op_protocol_options *o = &r->protocol.o;
    char *path = op_path_join(o->trainee.output_dir, "protocol.json"), *old = op_path_join(o->trainee.output_dir, "results.json");
    json_t *root = json_copy(r->protocol.root);
    bool ok = path && old && root && (!o->store || !json_object_set_new(root, "store", store_shown(o->store)));
    op_status status = ok ? op_json_write(path, root, e) : no_memory(e);
    if (!status)
        status = op_path_remove(old, e);
    json_decref(root);
    op_free(path);
    op_free(old);
    return status;
}

static op_status begin(run *r, op_error *e)
{
    op_session *s = &r->s;
    const op_trainee_options *o = &r->protocol.o.trainee;
    op_threads_set((int)o->threads);
    op_learner_options learning = op_trainee_learner(o);
    learning.objective = op_objective_weighted();
    r->figures = json_array();
    r->shown = json_array();
    r->checkpoints = op_path_join(o->output_dir, "checkpoints");
    s->seed = (uint64_t)o->seed;
    op_status status = r->figures && r->shown && r->checkpoints ? op_trainee_open(&s->subject, o, e) : no_memory(e);
    s->subject.adapter = o->method == OP_METHOD_LORA ? 0 : -1;
    s->room = (op_classroom){.chat = &s->subject.chat, .model = s->subject.model, .dir = r->dir, .seed = s->seed, .more = r->kit->teachers};
    if (!status)
        status = open_reference(r, e);
    if (!status)
        status = op_learner_new(&s->learner, s->subject.model, &learning, e);
    if (!status)
        status = op_session_identity(s, &r->protocol, r->dir, &r->identity, r->run_id, e);
    if (!status)
        status = op_dir_make(r->checkpoints, e);
    if (!status)
        status = open_store(r, e);
    if (!status)
        status = resume(r, e);
    if (!status)
        status = write_config(r, e);
    return status ? status : op_journal_open(&r->journal, o->output_dir, s->round ? s->round : -1, e);
}

static void end(run *r)
{
    op_session *s = &r->s;
    op_session_clear_round(s);
    op_free(s->cues);
    op_free(s->entries);
    op_free(s->owned);
    close_stage(s);
    op_journal_close(&r->journal);
    op_store_close(s->store);
    op_learner_free(s->learner);
    op_subject_close(&s->reference);
    op_subject_close(&s->subject);
    json_decref(r->identity);
    json_decref(r->figures);
    json_decref(r->shown);
    json_decref(r->begun);
    op_free(r->dir);
    op_free(r->checkpoints);
    op_protocol_release(&r->protocol);
}

op_status op_session_run(const char *protocol, const op_session_kit *kit, const char *const *overrides, size_t n_overrides, const op_session_callbacks *c,
                         op_session_result *result, op_error *e)
{
    static const op_session_callbacks none = {0};
    op_session_result ignored;
    result = result ? result : &ignored;
    *result = (op_session_result){.success = NAN};
    run *r = op_alloc_zero(1, sizeof *r);
    if (!r)
        return no_memory(e);
    r->kit = kit;
    r->result = result;
    r->path = protocol;
    r->saved = -1;
    r->journal = (op_journal){-1, -1};
    r->s.callbacks = c ? c : &none;
    r->s.protocol = &r->protocol;
    const char *slash = strrchr(protocol, '/');
    r->dir = slash ? op_strndup(protocol, (size_t)(slash - protocol) + (slash == protocol)) : op_strdup(".");
    op_status status = r->dir ? op_protocol_read(&r->protocol, protocol, kit, overrides, n_overrides, e) : no_memory(e);
    if (!status)
        status = begin(r, e);
    if (!status)
        status = run_stages(r, e);
    if (!status)
        status = op_trainee_save(&r->s.subject, &r->protocol.o.trainee, e);
    if (!status)
        status = write_results(r, e);
    result->rounds = r->s.round;
    result->trials = r->s.trials;
    result->tokens = r->s.tokens;
    result->seconds = r->seconds;
    result->model_share = r->seconds > 0 ? r->model_seconds / r->seconds : 0;
    if (json_array_size(r->figures)) {
        json_t *last = json_object_get(json_array_get(r->figures, json_array_size(r->figures) - 1), "success");
        result->success = json_is_number(last) ? json_number_value(last) : NAN;
    }
    snprintf(result->output_dir, sizeof result->output_dir, "%s", r->protocol.o.trainee.output_dir ? r->protocol.o.trainee.output_dir : "");
    end(r);
    op_free(r);
    return status;
}
