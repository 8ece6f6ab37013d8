/* Protocols run with the real methods on a tiny random model; the teacher is the test's. */
#include "trial_tools.h"

#include <signal.h>
#include <sys/wait.h>

#include <operant/clock.h>

#include "trial/session_parts.h"

enum { VOCAB = 416 };

static char self[4096]; /* path of this program */

/* ---- a teacher that likes even tokens ---- */

/* What a faulty teacher does to a trial. */
static void spoil(op_trial *t, const char *fault)
{
    if (!strcmp(fault, "outside"))
        t->marks[0].end = t->n_response + 1;
    else if (!strcmp(fault, "contradiction"))
        assert_ok(op_trial_add_mark(t, 0, 1, -t->marks[0].value, "even", NULL, e));
    else if (!strcmp(fault, "vocabulary"))
        assert_ok(op_trial_add_alternative(t, 0, (const int32_t[]){VOCAB}, 1, NAN, false, "even", e));
    else
        t->logprobs[0] = NAN; /* never sampled */
}

static op_status even_teach(op_teacher *t, op_trial *const *trials, size_t n, op_error *err)
{
    const char *fault = t->ctx;
    op_status s = OP_OK;
    for (size_t i = 0; !s && i < n; i++) {
        op_trial *x = trials[i];
        double even = 0;
        for (int32_t k = 0; !s && k < x->n_response; k++) {
            even += x->response[k] % 2 == 0;
            s = op_trial_add_mark(x, k, k + 1, x->response[k] % 2 ? -0.5 : 0.5, "even", NULL, err);
        }
        if (!s)
            s = op_teacher_reward(x, even / x->n_response, "even", err);
        if (!s && fault && i == 1)
            spoil(x, fault);
    }
    return s;
}

static op_status even_open(op_teacher **out, const json_t *settings, const op_classroom *room, op_error *err)
{
    (void)room;
    op_status s = op_teacher_new(out, "even", 0, err);
    if (!s) {
        (*out)->teach = even_teach;
        (*out)->ctx = (void *)(uintptr_t)json_string_value(json_object_get(settings, "fault"));
    }
    return s;
}

/* ---- a method for looking inside ---- */

static op_status (*spy)(op_session *s, const op_stage *stage, op_error *err);

static op_status call_spy(op_session *s, const op_stage *stage, op_error *err)
{
    return spy(s, stage, err);
}

static const op_session_kit *kit(void)
{
    static const op_teacher_type teachers[] = {{"even", "", even_open}, {0}};
    static const op_method spying = {.name = "spy", .help = "", .round = call_spy};
    static const op_method *methods[32];
    static op_session_kit k = {.methods = methods, .teachers = teachers};
    size_t n = 0;
    for (; op_methods[n]; n++)
        methods[n] = op_methods[n];
    methods[n] = &spying;
    return &k;
}

/* ---- files ---- */

static void put(const char *name, const char *text)
{
    assert_ok(op_file_put(in_dir(name), text, strlen(text), e));
}

#define TOP "model: %s/model\noutput_dir: %s/%s\ndtype: f32\nsave_dtype: f32\nthreads: 1\nlearning_rate: 1e-3\nseed: 5\nsave_rounds: 2\n" \
            "cues: {type: data, file: cues.jsonl}\nteacher: {type: even}\n"

/* Marks on a thinned schedule with probes and jackpots; redos of the round before; a learned marker beside the teacher, on rewards that come now and then. */
#define STAGES                                                                                                                                             \
    "stages:\n"                                                                                                                                            \
    "  - {name: marks, method: marking, rounds: 5, prompts: 3, group: 2, max_tokens: 6, success_above: 0.4,\n"                                             \
    "     schedule: {type: variable_ratio, n: 2, probe: 0.2, jackpot: 0.5, failures: scheduled}}\n"                                                        \
    "  - {name: again, method: redo, variant: rewind, delay: 1, rounds: 5, prompts: 3, group: 2, max_tokens: 6, success_above: 0.6, updates: 2,\n"         \
    "     lesson: {baseline: running}}\n"                                                                                                                  \
    "  - {name: clicks, method: reward, rounds: 5, prompts: 3, group: 2, max_tokens: 6, lesson: {mark_weight: 0.5}, thin: reward,\n"                       \
    "     schedule: {type: fixed_interval, n: 3, failures: scheduled},\n"                                                                                  \
    "     teacher: {type: several, teachers: [{teacher: {type: even}, schedule: {type: random, n: 2}}, {teacher: {type: marker, after: 1, threshold: 0.001}}]}}\n"

static const char *protocol(const char *out, const char *stages)
{
    static char path[256];
    char text[8192], name[64];
    snprintf(name, sizeof name, "%s.yaml", out);
    snprintf(path, sizeof path, "%s", in_dir(name));
    int n = snprintf(text, sizeof text, TOP, dir, dir, out);
    snprintf(text + n, sizeof text - (size_t)n, "%s", stages);
    put(name, text);
    return path;
}

static op_status run_with(const char *path, const char *const *words, size_t n, const op_session_callbacks *c, op_session_result *r)
{
    op_session_result ignored;
    return op_session_run(path, kit(), words, n, c, r ? r : &ignored, e);
}

static void run(const char *path)
{
    assert_ok(run_with(path, NULL, 0, NULL, NULL));
}

/* ---- what a run leaves ---- */

static json_t *read_json(const char *out, const char *name)
{
    json_t *v;
    char path[128];
    snprintf(path, sizeof path, "%s/%s", out, name);
    assert_ok(op_json_read(&v, in_dir(path), e));
    return v;
}

static char *bytes_of(const char *out, const char *name, size_t *n)
{
    char path[128];
    op_buf b;
    op_buf_init(&b, 1 << 26);
    snprintf(path, sizeof path, "%s/%s", out, name);
    assert_ok(op_file_read(in_dir(path), &b, e));
    *n = b.len;
    return op_buf_take(&b);
}

static bool exists(const char *out, const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", out, name);
    return op_path_exists(in_dir(path));
}

typedef struct trials {
    op_trial *x;
    size_t n;
} trials;

static op_status keep(void *ctx, const op_trial *t, op_error *err)
{
    trials *all = ctx;
    op_trial *x = op_realloc(all->x, (all->n + 1) * sizeof *x);
    assert_non_null(x);
    all->x = x;
    return op_trial_copy(&x[all->n++], t, err);
}

static trials stored(const char *out)
{
    trials all = {0};
    op_store *s;
    char path[128];
    const op_store_query every = {0};
    snprintf(path, sizeof path, "%s/trials.db", out);
    assert_ok(op_store_open(&s, in_dir(path), e));
    assert_ok(op_store_each(s, &every, keep, &all, e));
    op_store_close(s);
    return all;
}

static void trials_free(trials *all)
{
    for (size_t i = 0; i < all->n; i++)
        op_trial_release(&all->x[i]);
    op_free(all->x);
}

/* Weights, optimiser and trials; a trial's time is when it was sampled first. */
static void assert_same_end(const char *a, const char *b)
{
    static const char *const files[] = {"model.safetensors", "results.json", "checkpoints/step-00000015/values.safetensors",
                                        "checkpoints/step-00000015/adam_m.safetensors", "checkpoints/step-00000015/adam_v.safetensors"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        size_t n, m;
        char *x = bytes_of(a, files[i], &n), *y = bytes_of(b, files[i], &m);
        if (strcmp(files[i], "results.json")) {
            assert_int_equal(n, m);
            assert_memory_equal(x, y, n);
        } else {
            json_t *one = parse(x), *two = parse(y);
            assert_true(json_equal(json_object_get(one, "stages"), json_object_get(two, "stages")));
            assert_true(json_equal(json_object_get(one, "transcripts"), json_object_get(two, "transcripts")));
            json_decref(one);
            json_decref(two);
        }
        op_free(x);
        op_free(y);
    }
    trials x = stored(a), y = stored(b);
    assert_int_equal(x.n, y.n);
    for (size_t i = 0; i < x.n; i++) {
        assert_int_equal(x.x[i].id, y.x[i].id);
        y.x[i].time = x.x[i].time;
        assert_same_trial(&x.x[i], &y.x[i]);
    }
    trials_free(&x);
    trials_free(&y);
}

/* A line for every round, in order. */
static void assert_metrics_are_whole(const char *out, int rounds)
{
    size_t n;
    char *text = bytes_of(out, "metrics.jsonl", &n), *rest = text;
    int step = 0;
    for (char *line; (line = strsep(&rest, "\n")) && *line;) {
        json_t *v = parse(line);
        assert_int_equal(json_integer_value(json_object_get(v, "step")), ++step);
        assert_true(json_is_number(json_object_get(v, "model_share")));
        json_decref(v);
    }
    assert_int_equal(step, rounds);
    op_free(text);
}

/* Of the last stage's rounds, the eleventh to the fifteenth, two with the highest rewards and two with the lowest, or with the mean of the marks. */
static void assert_transcripts_are_the_extremes(const json_t *shown, const trials *all)
{
    double scores[64], low = INFINITY, high = -INFINITY;
    size_t n = 0, i;
    json_t *t;
    for (size_t k = all->n - 30; k < all->n; k++) {
        const op_trial *x = &all->x[k];
        double sum = 0;
        for (int32_t m = 0; m < x->n_marks; m++)
            sum += x->marks[m].value * (x->marks[m].end - x->marks[m].start);
        if (x->has_reward || x->n_marks)
            scores[n++] = x->has_reward ? x->reward : sum / x->n_response;
    }
    assert_true(n > 8);
    for (size_t k = 0; k < n; k++) {
        low = fmin(low, scores[k]);
        high = fmax(high, scores[k]);
    }
    assert_int_equal(json_array_size(shown), 4);
    int lowest = 0, highest = 0;
    json_array_foreach((json_t *)shown, i, t) {
        double score = json_number_value(json_object_get(t, "score"));
        int above = 0, below = 0;
        for (size_t k = 0; k < n; k++) {
            above += scores[k] > score + 1e-12;
            below += scores[k] < score - 1e-12;
        }
        assert_true(above < 2 || below < 2);
        lowest += fabs(score - low) < 1e-12;
        highest += fabs(score - high) < 1e-12;
        assert_int_equal(strncmp(json_string_value(json_object_get(t, "title")), "clicks, round ", 14), 0);
        assert_true(json_is_string(json_object_get(t, "prompt")) && json_is_string(json_object_get(t, "response")));
    }
    assert_true(lowest && highest);
}

/* ---- running ---- */

static void a_protocol_of_three_stages_leaves_model_results_metrics_trials_and_itself(void **state)
{
    (void)state;
    op_session_result r;
    assert_ok(run_with(protocol("whole", STAGES), NULL, 0, NULL, &r));
    assert_int_equal(r.rounds, 15);
    static const char *const there[] = {"config.json", "model.safetensors", "tokenizer.json", "results.json", "metrics.jsonl", "trials.db", "protocol.json"};
    for (size_t i = 0; i < sizeof there / sizeof *there; i++)
        assert_true(exists("whole", there[i]));
    assert_metrics_are_whole("whole", 15);
    json_t *results = read_json("whole", "results.json"), *stages = json_object_get(results, "stages");
    assert_int_equal(json_array_size(stages), 3);
    assert_string_equal(json_string_value(json_object_get(json_array_get(stages, 1), "name")), "again");
    assert_int_equal(json_integer_value(json_object_get(results, "trials")), r.trials);
    trials all = stored("whole");
    assert_transcripts_are_the_extremes(json_object_get(results, "transcripts"), &all);
    json_decref(results);
    assert_int_equal(all.n, r.trials);
    int redos = 0, jackpots = 0, probes = 0, clicks = 0;
    for (size_t i = 0; i < all.n; i++) {
        const op_trial *t = &all.x[i];
        redos += t->redo_of > 0;
        jackpots += json_object_get(t->tags, "jackpot") != NULL;
        if (json_object_get(t->tags, "probe")) {
            assert_false(t->has_reward || t->n_marks || t->by);
            probes++;
        }
        for (int32_t k = 0; k < t->n_marks; k++)
            clicks += t->marks[k].by && !strcmp(t->marks[k].by, "marker");
    }
    if (!redos || !jackpots || !probes || !clicks)
        fail_msg("%d redos, %d jackpots, %d probes, %d clicks", redos, jackpots, probes, clicks);
    trials_free(&all);
}

static pid_t start(const char *path)
{
    pid_t pid = fork();
    if (!pid) {
        execl(self, self, "--child", path, (char *)NULL);
        _exit(127);
    }
    assert_true(pid > 0);
    return pid;
}

static bool ended(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status))
        assert_int_equal(WEXITSTATUS(status), 0);
    return WIFEXITED(status);
}

static void a_protocol_killed_at_twenty_random_moments_ends_in_the_same_weights_and_the_same_store(void **state)
{
    (void)state;
    double begin = op_seconds();
    assert_true(ended(start(protocol("one", STAGES))));
    double lasts = op_seconds() - begin;
    char path[256];
    snprintf(path, sizeof path, "%s", protocol("killed", STAGES));
    uint64_t seed = (uint64_t)getpid(), c = 0;
    int kills = 0;
    while (kills < 20) {
        pid_t pid = start(path);
        usleep((useconds_t)(1e6 * lasts * op_rng_uniform(seed, OP_STREAM_TEST, c++)));
        kill(pid, SIGKILL);
        if (!ended(pid)) {
            kills++;
            continue;
        }
        assert_same_end("one", "killed");
        assert_ok(op_path_remove(in_dir("killed"), e));
    }
    assert_true(ended(start(path)));
    assert_same_end("one", "killed");
    assert_metrics_are_whole("killed", 15);
}

/* Stops after so many rounds, or in the middle of the next one. */
typedef struct stopper {
    volatile int flag;
    int64_t rounds;
    bool inside;
} stopper;

static stopper *stopping;

static void count_round(void *ctx, const op_session_progress *p)
{
    (void)p;
    stopper *s = ctx;
    s->flag = --s->rounds == 0 && !s->inside;
}

static void ctrl_c_leaves_a_run_that_goes_on_to_the_same_end(void **state)
{
    (void)state;
    run(protocol("one", STAGES));
    const char *path = protocol("stopped", STAGES);
    int64_t done = 0;
    for (int64_t n = 1; n < 5; n++) {
        stopper s = {.rounds = n};
        op_session_result r;
        assert_int_equal(run_with(path, NULL, 0, &(op_session_callbacks){.ctx = &s, .progress = count_round, .stop = &s.flag}, &r), OP_ERR_INTERRUPTED);
        assert_says("the same command goes on");
        assert_int_equal(r.resumed_from, done);
        assert_int_equal(r.rounds, done += n);
        assert_false(exists("stopped", "model.safetensors"));
    }
    run(path);
    assert_same_end("one", "stopped");
    assert_metrics_are_whole("stopped", 15);
}

/* Three rounds of its own; the flag is raised while the third one samples. */
static op_status interrupted_round(op_session *s, const op_stage *stage, op_error *err)
{
    op_cue *const *cues;
    op_trial **list;
    size_t n;
    json_t *memory = op_session_memory(s), *kept = json_array();
    json_int_t rounds = json_integer_value(json_object_get(memory, "rounds")) + 1;
    char now[32], then[32];
    snprintf(now, sizeof now, "kept by %d", (int)rounds);
    snprintf(then, sizeof then, "kept by %d", (int)rounds - 1);
    if (json_object_get(memory, now) || json_array_size(json_object_get(memory, then)) != (rounds > 1))
        return op_error_set(err, OP_ERR_ARG, "the memory is not what it was");
    json_object_set_new(memory, "rounds", json_integer(rounds));
    json_object_set_new(memory, now, kept);
    json_array_append_new(kept, json_integer(rounds));
    json_object_del(memory, then);
    op_status status = op_session_cues(s, &cues, &n, err);
    stopping->flag = rounds == 3 && stopping->inside;
    if (!status)
        status = op_session_sample(s, (const op_cue *const *)cues, n, stage->group, &list, err);
    if (!status)
        status = op_session_teach(s, list, n, NULL, err);
    if (!status && rounds > 5)
        status = op_error_set(err, OP_ERR_ARG, "a round was counted twice");
    return status ? status : op_lesson_add_group(op_session_lesson(s), (const op_trial *const *)list, n, err);
}

static void ctrl_c_in_the_middle_of_a_round_loses_that_round_only(void **state)
{
    (void)state;
    const char *stage = "stages: [{method: spy, rounds: 5, prompts: 3, group: 1, max_tokens: 4, schedule: {type: variable_ratio, n: 2}}]\nsave_steps: 0\n";
    stopper s = {0};
    spy = interrupted_round;
    stopping = &s;
    run(protocol("plain", stage));
    const char *path = protocol("inside", stage);
    s.inside = true;
    op_session_result r;
    assert_int_equal(run_with(path, NULL, 0, &(op_session_callbacks){.stop = &s.flag}, &r), OP_ERR_INTERRUPTED);
    assert_int_equal(r.rounds, 2);
    s = (stopper){0};
    assert_ok(run_with(path, NULL, 0, &(op_session_callbacks){.stop = &s.flag}, &r));
    assert_int_equal(r.resumed_from, 2);
    size_t n, m;
    char *x = bytes_of("plain", "model.safetensors", &n), *y = bytes_of("inside", "model.safetensors", &m);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    op_free(x);
    op_free(y);
    trials a = stored("plain"), b = stored("inside");
    assert_int_equal(a.n, b.n);
    trials_free(&a);
    trials_free(&b);
}

/* ---- ids ---- */

static op_trial first_sampled;

static op_status learn_the_first(op_session *s, const op_stage *stage, op_error *err)
{
    op_cue *const *cues;
    op_trial **list, *t;
    size_t n;
    op_status status = op_session_cues(s, &cues, &n, err);
    if (status)
        return status;
    if (!first_sampled.prompt) {
        status = op_session_sample(s, (const op_cue *const *)cues, 1, stage->group, &list, err);
        return status ? status : op_trial_copy(&first_sampled, list[0], err);
    }
    status = op_session_trial(s, cues[0], first_sampled.response, first_sampled.n_response, "test", &t, err);
    return status ? status : op_lesson_add_imitation(op_session_lesson(s), t, 0, NULL, err);
}

/* log p of the response under the model of a run. */
static double log_p(const char *name, const op_trial *t)
{
    op_model *m;
    op_pass *pass;
    int32_t n = t->n_prompt + t->n_response, ids[512];
    float logp[512];
    double sum = 0;
    assert_ok(op_model_open(&m, in_dir(name), &(op_model_options){.act = OP_F32}, e));
    memcpy(ids, t->prompt, (size_t)t->n_prompt * sizeof *ids);
    memcpy(ids + t->n_prompt, t->response, (size_t)t->n_response * sizeof *ids);
    const op_seq seq = {.length = n, .parent = -1, .adapter = -1};
    assert_ok(op_pass_new(&pass, m, e));
    assert_ok(op_model_forward(m, pass, &(op_batch){.n_tokens = n, .n_seqs = 1, .ids = ids, .seqs = &seq}, &(op_how){0}, e));
    assert_ok(op_model_logprobs(m, pass, NULL, NULL, logp, e));
    for (int32_t i = t->n_prompt; i < n; i++)
        sum += (double)logp[i];
    op_pass_free(pass);
    op_model_free(m);
    return sum;
}

static void a_response_whose_text_has_other_tokens_is_stored_and_learned_as_it_was_sampled(void **state)
{
    (void)state;
    spy = learn_the_first;
    run(protocol("ids", "stages: [{method: spy, rounds: 25, prompts: 1, group: 1, max_tokens: 20, lr: 1e-2}]\n"));
    char *text;
    op_tokens again;
    op_tokens_init(&again);
    const op_trial *t = &first_sampled;
    assert_ok(op_trial_text(t, tokenizer, 0, t->n_response, &text, e));
    assert_ok(op_tokenizer_encode(tokenizer, text, strlen(text), OP_ENCODE_CONTINUE, &again, e));
    bool same = again.n == (size_t)t->n_response && !memcmp(again.ids, t->response, again.n * sizeof *again.ids);
    assert_false(same); /* else the test tests nothing */
    trials all = stored("ids");
    assert_int_equal(all.n, 25);
    for (size_t i = 0; i < all.n; i++) {
        assert_int_equal(all.x[i].n_response, t->n_response);
        assert_memory_equal(all.x[i].response, t->response, (size_t)t->n_response * sizeof *t->response);
    }
    assert_true(log_p("ids", t) > log_p("model", t) / 2); /* very much likelier, to the token */
    trials_free(&all);
    op_tokens_release(&again);
    op_free(text);
    op_trial_release(&first_sampled);
}

/* ---- transcripts ---- */

enum { TOLD = 6 };

/* A session in the middle of a round: trials that each say one byte, with these rewards (NAN: none). */
static op_session told(const double *rewards)
{
    static op_stage stage = {.name = (char *)(uintptr_t)"talk"};
    op_session s = {.stage = &stage, .stage_round = 6, .subject.chat.tokenizer = tokenizer, .entries = calloc(TOLD, sizeof(op_entry)), .n_entries = TOLD};
    for (int i = 0; i < TOLD; i++) {
        op_trial *t = calloc(1, sizeof *t);
        op_trial_init(t);
        t->prompt = op_alloc_array(1, sizeof *t->prompt);
        t->response = op_alloc_array(2, sizeof *t->response);
        t->logprobs = op_alloc_zero(2, sizeof *t->logprobs);
        t->prompt[0] = token_of("?", 1);
        t->response[0] = token_of(&"abcdef"[i], 1);
        t->response[1] = token_of("!", 1);
        t->n_prompt = 1;
        t->n_response = 2;
        t->has_reward = !isnan(rewards[i]);
        t->reward = t->has_reward ? rewards[i] : 0;
        s.entries[i] = (op_entry){.trial = t, .parent = i == 5 ? 0 : SIZE_MAX};
    }
    return s;
}

static void told_free(op_session *s)
{
    for (int i = 0; i < TOLD; i++) {
        op_trial_release(s->entries[i].trial);
        free(s->entries[i].trial);
    }
    free(s->entries);
}

static void assert_told(const json_t *shown, const char *first_letters)
{
    size_t i;
    json_t *t;
    char found[16] = "";
    json_array_foreach((json_t *)shown, i, t)
        strncat(found, json_string_value(json_object_get(t, "response")), 1);
    assert_string_equal(found, first_letters);
}

static op_session telling;
static json_t *told_so_far;

static op_status choose_transcripts(void *ctx)
{
    (void)ctx;
    const json_t *before = told_so_far;
    op_status s = op_transcripts_choose(&telling, &told_so_far, e);
    assert_true(!s || told_so_far == before);
    return s;
}

static void transcripts_are_two_of_the_best_and_two_of_the_worst_and_of_equals_the_latest(void **state)
{
    (void)state;
    json_t *shown = json_array();
    op_session s = told((const double[]){1, 0, 1, 0.5, 1, 0});
    assert_ok(op_transcripts_choose(&s, &shown, e));
    assert_told(shown, "bcef");
    const json_t *last = json_array_get(shown, 3);
    assert_string_equal(json_string_value(json_object_get(last, "title")), "talk, round 7");
    assert_string_equal(json_string_value(json_object_get(last, "prompt")), "?");
    assert_string_equal(json_string_value(json_object_get(last, "response")), "f!");
    assert_string_equal(json_string_value(json_object_get(last, "note")), "done again from token 0");
    assert_null(json_object_get(json_array_get(shown, 0), "note"));
    told_free(&s);
    s = told((const double[]){NAN, 0.5, NAN, NAN, -1, NAN}); /* what nobody rewarded is not shown, unless it was marked */
    assert_ok(op_trial_add_mark(s.entries[2].trial, 0, 1, -1, "me", NULL, e));
    assert_ok(op_trial_add_mark(s.entries[2].trial, 1, 2, -0.5, "me", NULL, e));
    telling = s;
    told_so_far = shown;
    fail_every_allocation(choose_transcripts, NULL);
    shown = told_so_far;
    assert_told(shown, "cece"); /* the best of the first round, then what was worse than all of it */
    assert_string_equal(json_string_value(json_object_get(json_array_get(shown, 2), "note")), "marked: [-c-][-!-]");
    assert_float_equal(json_number_value(json_object_get(json_array_get(shown, 2), "score")), -0.75, 0);
    told_free(&s);
    json_decref(shown);
}

/* ---- what a teacher may not say ---- */

static void feedback_that_does_not_fit_the_response_is_an_error_that_names_the_trial(void **state)
{
    (void)state;
    static const char *const cases[][2] = {{"outside", "a mark on tokens 0..5, expected a span within 0..4"},
                                           {"contradiction", "token 0 is marked good and bad by the same teacher"},
                                           {"vocabulary", "token 0 of the alternative is 416, expected 0..415"},
                                           {"unsampled", "a mark on token 0, which was never sampled"}};
    for (size_t i = 0; i < 4; i++) {
        char stages[256], word[32];
        snprintf(stages, sizeof stages, "stages: [{name: first, method: marking, rounds: 1, prompts: 2, group: 1, max_tokens: 4, teacher: {type: even, fault: %s}}]\n",
                 cases[i][0]);
        snprintf(word, sizeof word, "seed=%zu", 40 + i);
        assert_int_equal(run_with(protocol("faulty", stages), (const char *const[]){word, "resume=none"}, 2, NULL, NULL), OP_ERR_ARG);
        assert_says("faulty.yaml: stage 1, \"first\": round 1, trial 2: ");
        if (strcmp(cases[i][0], "outside"))
            assert_says(cases[i][1]);
        else
            assert_says("expected a span within 0..");
    }
}

/* ---- schedules ---- */

static void a_schedule_that_thins_the_reward_leaves_the_marks(void **state)
{
    (void)state;
    run(protocol("thin", "stages: [{method: marking, rounds: 2, prompts: 3, group: 2, max_tokens: 4, thin: reward, schedule: {type: none}}]\n"));
    run(protocol("none", "stages: [{method: marking, rounds: 2, prompts: 3, group: 2, max_tokens: 4, schedule: {type: none}}]\n"));
    trials thin = stored("thin"), none = stored("none");
    assert_int_equal(thin.n, 12);
    assert_int_equal(none.n, 12);
    for (size_t i = 0; i < 12; i++) {
        assert_int_equal(thin.x[i].n_marks, thin.x[i].n_response);
        assert_false(thin.x[i].has_reward);
        assert_false(none.x[i].has_reward || none.x[i].n_marks || none.x[i].by);
    }
    trials_free(&thin);
    trials_free(&none);
}

/* One answer; again with the end token placed after its first; and an opinion of it. */
static op_status place_the_end(op_session *s, const op_stage *stage, op_error *err)
{
    op_cue *const *cues;
    op_trial **list, **again;
    size_t n;
    (void)stage;
    const op_model_config *c = op_model_get_config(op_session_subject(s)->model);
    const int32_t at = 1, one = 1, end = c->eos[0], *forced = &end;
    op_status status = op_session_cues(s, &cues, &n, err);
    if (!status)
        status = op_session_sample(s, (const op_cue *const *)cues, 1, 1, &list, err);
    if (!status)
        status = op_session_redo(s, list, 1, &at, &forced, &one, &again, err);
    if (status)
        return status;
    assert_int_equal(again[0]->n_response, 2);
    assert_int_equal(again[0]->response[1], end);
    assert_int_equal(again[0]->finish, OP_FINISH_STOP);
    for (int i = 0; !status && i < 3; i++)
        status = op_session_ask(s, list, 1, err);
    assert_true(status || (list[0]->has_reward && list[0]->n_marks == 3 * list[0]->n_response));
    return status;
}

static void an_answer_is_over_where_the_end_is_placed_and_an_opinion_does_not_wait_for_a_schedule(void **state)
{
    (void)state;
    spy = place_the_end;
    run(protocol("placed", "stages: [{method: spy, rounds: 1, prompts: 1, group: 1, max_tokens: 6,\n"
                           "  teacher: {type: several, teachers: [{teacher: {type: even}, schedule: {type: fixed_ratio, n: 1000, failures: never}}]}}]\n"));
}

/* ---- the protocol file ---- */

static op_status read_protocol(const char *text, const char *const *words, size_t n, op_protocol *p)
{
    put("read.yaml", text);
    return op_protocol_read(p, in_dir("read.yaml"), kit(), words, n, e);
}

#define READ "model: m\noutput_dir: o\n"
#define CUES "cues: {type: data, file: c}\n"

static void errors_of_a_protocol_name_file_stage_key_and_the_nearest_key(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {READ CUES "learning_rat: 1\nstages: [{method: reward}]", "read.yaml: unknown key \"learning_rat\", did you mean \"learning_rate\""},
        {READ CUES "teachr: {type: rules}\nstages: [{method: reward}]", "read.yaml: unknown key \"teachr\", did you mean \"teacher\""},
        {READ CUES "stages: [{method: reward}, {method: reward, promts: 3}]", "read.yaml: stage 2: unknown key \"promts\", did you mean \"prompts\""},
        {READ CUES "stages: [{method: redo, vriant: retry}]", "read.yaml: stage 1: unknown key \"vriant\", did you mean \"variant\""},
        {READ CUES "stages: [{method: reward, variant: retry}]", "read.yaml: stage 1: unknown key \"variant\""},
        {READ CUES "stages: [{method: reward, lesson: {bta: 1}}]", "stage 1: unknown key \"lesson.bta\", did you mean \"lesson.beta\""},
        {READ CUES "stages: [{method: reward, lesosn: {beta: 1}}]", "stage 1: unknown key \"lesosn\""},
        {READ CUES "stages: [{method: reward, group: 0}]", "stage 1: key \"group\": found \"0\", expected 1 to 256"},
        {READ CUES "stages: [{method: reward, thin: half}]", "stage 1: key \"thin\": found \"half\", expected one of feedback|reward"},
        {READ CUES "stages: [{method: rewrd}]", "stage 1: key \"method\": found \"rewrd\", expected one of "},
        {READ CUES "stages: [{method: reward, stages: []}]", "stage 1: unknown key \"stages\""},
        {READ CUES "stages: [7]", "stage 1: not a mapping"},
        {READ CUES "stages: 7", "key \"stages\": expected a list of 1 to 1000 stages"},
        {READ "stages: [{method: reward}]", "stage 1: key \"cues\" is not set"},
        {READ CUES "stages: [{method: reward, schedule: {type: fixed_ratio, m: 2}}]", "stage 1: key \"schedule\": "},
        {"model: m\n" CUES "stages: [{method: reward}]", "key \"output_dir\" is not set"},
        {"[1, 2]", "read.yaml: expected a mapping with \"stages\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        op_protocol p;
        assert_true(read_protocol(cases[i].text, NULL, 0, &p) != OP_OK);
        assert_says(cases[i].says);
        op_protocol_release(&p);
    }
}

static void a_mistake_in_the_last_stage_comes_out_before_the_first(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"{method: reward, teacher: {type: evn}}", "late.yaml: stage 2, \"reward\": teacher: key \"type\": found \"evn\""},
        {"{method: reward, name: late, cues: {type: data, file: cues.jsonl, clases: [a]}}", "stage 2, \"late\": cues: unknown key \"clases\", did you mean \"classes\""},
        {"{method: reward, cues: {type: data, file: none.jsonl}}", "none.jsonl"},
        {"{method: reward, cues: {type: data, file: cues.jsonl, classes: [z]}}", "no cue of these classes"},
        {"{method: reward, cues: {type: data, file: cues.jsonl, only: {class: z}}}", "no cue of these"},
        {"{method: reward, lesson: {kl: 0.1}}", "stage 2, \"reward\": \"lesson.kl\" needs \"reference\""},
        {"{method: reward, name: 7}", "key \"name\": found a number, expected a text"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char stages[512];
        snprintf(stages, sizeof stages, "stages: [{method: reward, rounds: 1, prompts: 1, group: 1, max_tokens: 2}, %s]\n", cases[i][0]);
        assert_true(run_with(protocol("late", stages), NULL, 0, NULL, NULL) != OP_OK);
        assert_says(cases[i][1]);
        assert_false(exists("late", "metrics.jsonl"));
    }
}

static void words_of_the_command_line_override_the_file_at_any_depth(void **state)
{
    (void)state;
    static const char *const words[] = {"lr=0.25",      "stages.2.lr=0.5",         "stages.1.sampling.temperature=0.75", "stages.1.lesson.beta=3",
                                        "seed=7",       "stages.2.variant=retry",  "lora.r=4",                           "teacher.type=reference",
                                        "reference=",   "stages.1.schedule.n=4"};
    op_protocol p;
    assert_ok(read_protocol(READ CUES "learning_rate: 1\nlora_r: 8\nreference: x\nstages: [{method: reward, temperature: 1, schedule: {type: fixed_ratio, n: 2}, lesson: {beta: 1, kl: 2}}, {method: redo}]",
                            words, sizeof words / sizeof *words, &p));
    assert_true(p.o.trainee.learning_rate == 0.25 && p.o.trainee.seed == 7 && p.o.trainee.lora_r == 4);
    assert_null(p.o.reference);
    assert_true(p.stages[0].stage.lr == 0.25 && p.stages[1].stage.lr == 0.5);
    assert_true(p.stages[0].stage.sampling.temperature == 0.75);
    assert_true(p.stages[0].stage.lesson.beta == 3 && p.stages[0].stage.lesson.kl == 2);
    assert_int_equal(json_integer_value(json_object_get(p.stages[0].schedule, "n")), 4);
    assert_string_equal(json_string_value(json_object_get(p.stages[1].teacher, "type")), "reference");
    op_protocol_release(&p);
    static const char *const wrong[][2] = {{"stages.3.lr=1", "found \"3\", expected a number from 1 to 2"},
                                           {"stages.0.lr=1", "found \"0\", expected a number from 1 to 2"},
                                           {"seed.x=1", "\"seed\" holds no further keys"},
                                           {"seed", "expected key=value"},
                                           {"sed=1", "unknown key \"sed\", did you mean \"seed\""}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_true(read_protocol(READ CUES "seed: 1\nstages: [{method: reward}, {method: redo}]", &wrong[i][0], 1, &p) != OP_OK);
        assert_says(wrong[i][1]);
        op_protocol_release(&p);
    }
}

static void a_changed_protocol_refuses_to_resume(void **state)
{
    (void)state;
    const char *stages = "stages: [{name: a, method: reward, rounds: 2, prompts: 1, group: 2, max_tokens: 2}]\n";
    const char *path = protocol("changed", stages);
    run(path);
    static const char *const words[][2] = {{"stages.1.group=3", "the stages with hash"}, {"teacher.fault=outside", "the stages with hash"}, {"seed=9", "seed \"5\", now it is \"9\""}};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(run_with(path, &words[i][0], 1, NULL, NULL), OP_ERR_MISMATCH);
        assert_says(i < 2 ? "stages with hash" : words[i][1]);
    }
    put("own.jsonl", "{\"prompt\": \"a b\"}\n");
    path = protocol("files", "stages: [{method: reward, rounds: 1, prompts: 1, group: 1, max_tokens: 2, cues: {type: data, file: own.jsonl}}]\n");
    run(path);
    put("own.jsonl", "{\"prompt\": \"b a\"}\n");
    assert_int_equal(run_with(path, NULL, 0, NULL, NULL), OP_ERR_MISMATCH);
    assert_says("stages with hash");
    path = protocol("changed", stages);
    op_session_result r;
    assert_ok(run_with(path, (const char *const[]){"save_rounds=7", "save_dtype=bf16"}, 2, NULL, &r)); /* these decide nothing */
    assert_int_equal(r.resumed_from, 2);
}

/* The judge is a model that another run leaves. Which of two replies it calls good is what its random weights say: labels that it cannot meet are turned around. */
static void another_judge_refuses_to_resume(void **state)
{
    (void)state;
    const char *one = "stages: [{method: reward, rounds: 1, prompts: 1, group: 2, max_tokens: 2}]\n";
    char path[256], stages[512];
    static const char *const good_first[] = {"true", "false"};
    run(protocol("judge", one));
    snprintf(stages, sizeof stages, "stages: [{method: reward, rounds: 1, prompts: 1, group: 2, max_tokens: 2, teacher: {type: several, teachers: [{teacher: {type: even}},\n"
             "  {teacher: {type: judge, model: %s/judge, labelled: labelled.jsonl, raw: true, dtype: f32, prompt: '{response} good?'}}]}}]\n", dir);
    snprintf(path, sizeof path, "%s", protocol("judged", stages));
    op_status s = OP_ERR_MISMATCH;
    for (int turn = 0; turn < 2 && s; turn++) {
        char labels[256];
        snprintf(labels, sizeof labels, "{\"prompt\":\"a\",\"response\":\"the sea\",\"label\":%s}\n{\"prompt\":\"a\",\"response\":\"no idea\",\"label\":%s}\n", good_first[turn],
                 good_first[!turn]);
        put("labelled.jsonl", labels);
        s = run_with(path, NULL, 0, NULL, NULL);
    }
    assert_ok(s);
    op_session_result r;
    assert_ok(run_with(path, NULL, 0, NULL, &r));
    assert_int_equal(r.resumed_from, 1);
    assert_ok(op_path_remove(in_dir("judge"), e));
    assert_ok(run_with(protocol("judge", one), (const char *const[]){"lr=1e-2"}, 1, NULL, NULL));
    assert_int_equal(run_with(path, NULL, 0, NULL, NULL), OP_ERR_MISMATCH);
    assert_says("the judges with hash");
}

static op_status read_all(void *ctx)
{
    static const char *const words[] = {"stages.1.lr=1", "lora.r=4"};
    op_protocol p;
    op_status s = op_protocol_read(&p, ctx, kit(), words, 2, e);
    op_protocol_release(&p);
    return s;
}

static void every_allocation_of_reading_a_protocol_may_fail(void **state)
{
    (void)state;
    char path[256];
    snprintf(path, sizeof path, "%s", protocol("alloc", STAGES));
    fail_every_allocation(read_all, path);
}

static op_status read_cues(void *ctx)
{
    op_cue_source *s = NULL;
    op_cue cue;
    const op_classroom room = {.chat = &chat, .dir = dir};
    op_status status = op_cues_from_data(&s, ctx, &room, e);
    if (status)
        return status;
    status = s->draw(s, 3, &cue, e);
    if (!status)
        op_cue_release(&cue);
    s->free(s);
    return status;
}

static void cues_of_a_table_are_asked_in_the_chat_template_and_only_those_that_are_wanted(void **state)
{
    (void)state;
    const op_classroom room = {.chat = &chat, .dir = dir};
    put("cues.csv", "prompt,label\nsay a,no\nsay b,yes\nsay d,no\n");
    json_t *table = parse("{\"type\":\"data\",\"file\":\"cues.csv\",\"only\":{\"label\":\"yes\"},\"chat\":true}"),
           *lines = parse("{\"type\":\"data\",\"file\":\"cues.jsonl\"}");
    op_cue_source *a, *b;
    op_cue in_table, in_lines;
    assert_ok(op_cues_from_data(&a, table, &room, e));
    assert_ok(op_cues_from_data(&b, lines, &room, e));
    assert_int_equal(a->n, 1);
    assert_ok(a->draw(a, 0, &in_table, e));
    assert_ok(b->draw(b, 1, &in_lines, e)); /* "say b" */
    assert_true(json_equal(in_table.messages, in_lines.messages));
    assert_int_equal(in_table.n_prompt, in_lines.n_prompt);
    assert_memory_equal(in_table.prompt, in_lines.prompt, (size_t)in_lines.n_prompt * sizeof *in_lines.prompt);
    op_cue_release(&in_table);
    op_cue_release(&in_lines);
    a->free(a);
    b->free(b);
    json_decref(table);
    json_decref(lines);
}

static void every_allocation_of_reading_cues_may_fail(void **state)
{
    (void)state;
    put("many.csv", "prompt,label\na,z\nb,y\nc,y\nd,y\n\"e\",y\n");
    json_t *table = parse("{\"type\":\"data\",\"file\":\"many.csv\",\"only\":{\"label\":\"y\"},\"chat\":true}");
    fail_every_allocation(read_cues, table);
    json_decref(table);
    json_t *settings = parse("{\"type\":\"data\",\"file\":\"cues.jsonl\",\"classes\":[\"a\",\"b\"]}");
    fail_every_allocation(read_cues, settings);
    json_decref(settings);
}

/* ---- */

static int set_up(void **state)
{
    int rc = open_words(state);
    op_model_config c = {.family = OP_LLAMA, .vocab = VOCAB, .width = 32, .layers = 2, .heads = 2, .kv_heads = 1, .head_dim = 16, .ffn = 64, .max_positions = 256,
                         .norm_eps = 1e-5f, .rope_theta = 10000, .tied = true, .bos = -1, .pad = -1, .eos = {VOCAB - 1}, .n_eos = 1};
    op_model *m;
    assert_ok(op_dir_make(in_dir("model"), e));
    assert_ok(op_model_new(&m, &c, &(op_model_options){.trainable = OP_TRAIN_ALL, .seed = 3}, e));
    assert_ok(op_model_save(m, in_dir("model"), OP_F32, e));
    op_model_free(m);
    char path[512];
    const char *fixtures = getenv("FIXTURES");
    op_buf b;
    op_buf_init(&b, 1 << 20);
    snprintf(path, sizeof path, "%s/smollm.json", fixtures ? fixtures : "tests/text/fixtures");
    assert_ok(op_file_read(path, &b, e));
    assert_ok(op_file_put(in_dir("model/tokenizer.json"), b.data, b.len, e));
    op_buf_clear(&b);
    json_t *config = json_pack("{ssss}", "eos_token", "<|im_end|>", "chat_template", CHATML);
    assert_ok(op_json_write(in_dir("model/tokenizer_config.json"), config, e));
    json_decref(config);
    for (int i = 0; i < 8; i++)
        op_buf_printf(&b, "{\"messages\":[{\"role\":\"user\",\"content\":\"say %c\"},{\"role\":\"assistant\",\"content\":\"no\"}],\"class\":\"%c\"}\n", 'a' + i, 'a' + i % 2);
    assert_ok(op_file_put(in_dir("cues.jsonl"), b.data, b.len, e));
    op_buf_release(&b);
    return rc;
}

static int child(const char *path)
{
    op_error why = {0};
    op_session_result r;
    op_status s = op_session_run(path, kit(), NULL, 0, NULL, &r, &why);
    if (s)
        fprintf(stderr, "%s\n", why.message);
    return s ? 1 : 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--child"))
        return child(argv[2]);
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_protocol_of_three_stages_leaves_model_results_metrics_trials_and_itself),
        cmocka_unit_test(a_protocol_killed_at_twenty_random_moments_ends_in_the_same_weights_and_the_same_store),
        cmocka_unit_test(ctrl_c_leaves_a_run_that_goes_on_to_the_same_end),
        cmocka_unit_test(ctrl_c_in_the_middle_of_a_round_loses_that_round_only),
        cmocka_unit_test(a_response_whose_text_has_other_tokens_is_stored_and_learned_as_it_was_sampled),
        cmocka_unit_test(transcripts_are_two_of_the_best_and_two_of_the_worst_and_of_equals_the_latest),
        cmocka_unit_test(feedback_that_does_not_fit_the_response_is_an_error_that_names_the_trial),
        cmocka_unit_test(a_schedule_that_thins_the_reward_leaves_the_marks),
        cmocka_unit_test(an_answer_is_over_where_the_end_is_placed_and_an_opinion_does_not_wait_for_a_schedule),
        cmocka_unit_test(errors_of_a_protocol_name_file_stage_key_and_the_nearest_key),
        cmocka_unit_test(a_mistake_in_the_last_stage_comes_out_before_the_first),
        cmocka_unit_test(words_of_the_command_line_override_the_file_at_any_depth),
        cmocka_unit_test(a_changed_protocol_refuses_to_resume),
        cmocka_unit_test(another_judge_refuses_to_resume),
        cmocka_unit_test(every_allocation_of_reading_a_protocol_may_fail),
        cmocka_unit_test(cues_of_a_table_are_asked_in_the_chat_template_and_only_those_that_are_wanted),
        cmocka_unit_test(every_allocation_of_reading_cues_may_fail),
    };
    return cmocka_run_group_tests(tests, set_up, close_words);
}
