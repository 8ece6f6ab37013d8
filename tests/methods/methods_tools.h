/* What the tests of methods share: a tiny random model, a world whose cues and teacher are the test's, and a look at log p before and after. */
#ifndef OP_TESTS_METHODS_TOOLS_H
#define OP_TESTS_METHODS_TOOLS_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <operant/session.h>

#include "base/mem.h"
#include "io/file.h"
#include "methods/common.h"
#include "methods/methods.h"

#define CHATML                                                                                                                  \
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"                    \
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

enum { VOCAB = 416, WORDS = 400, CALLS = 512 };

static op_error e[1];
static char dir[64];

static inline const char *in_dir(const char *name)
{
    static char paths[8][256];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", dir, name);
    return path;
}

static inline void assert_ok(op_status s)
{
    if (s)
        fail_msg("%s", e->message);
}

/* ---- the world ---- */

/* Cues of the test, gone through in order again and again: the prompt's words, and its tags. `plain`: no chat template. */
typedef struct test_cue {
    const char *words, *tags;
    bool plain;
} test_cue;
static const test_cue *world_cues;
static size_t world_n;

static int world_seed = 1;

/* What the teacher says of one trial. */
static void (*world_teach)(op_trial *t);

/* Copies of what the teacher was shown; trial i in call seen_call[i]. */
static op_trial seen[CALLS];
static int seen_call[CALLS], n_seen, n_calls;

static inline void forget(void)
{
    while (n_seen)
        op_trial_release(&seen[--n_seen]);
    n_calls = 0;
}

static op_status world_draw(op_cue_source *c, uint64_t index, op_cue *out, op_error *err)
{
    const op_chat *chat = c->ctx;
    const test_cue *x = &world_cues[index % world_n];
    op_tokens tokens;
    op_tokens_init(&tokens);
    *out = (op_cue){.tags = x->tags ? json_loads(x->tags, 0, NULL) : json_object()};
    if (!x->plain)
        out->messages = json_pack("[{ssss}]", "role", "user", "content", x->words);
    op_status s = out->tags && (x->plain || out->messages) ? OP_OK : op_error_set(err, OP_ERR_NOMEM, "out of memory");
    if (!s && x->plain)
        s = op_tokenizer_encode(chat->tokenizer, x->words, strlen(x->words), 0, &tokens, err);
    else if (!s)
        s = op_chat_encode(chat, out->messages, NULL, true, &tokens, NULL, NULL, err);
    if (s) {
        op_cue_release(out);
    } else {
        out->prompt = tokens.ids;
        out->n_prompt = (int32_t)tokens.n;
        tokens.ids = NULL;
    }
    op_tokens_release(&tokens);
    return s;
}

static void world_free(op_cue_source *c)
{
    op_free(c);
}

static op_status world_source(op_cue_source **out, const json_t *settings, const op_classroom *room, op_error *err)
{
    (void)settings;
    *out = op_alloc_zero(1, sizeof **out);
    if (!*out)
        return op_error_set(err, OP_ERR_NOMEM, "out of memory");
    **out = (op_cue_source){.ctx = (void *)(uintptr_t)room->chat, .draw = world_draw, .free = world_free};
    return OP_OK;
}

static op_status speak(op_teacher *t, op_trial *const *trials, size_t n, op_error *err)
{
    (void)t;
    for (size_t i = 0; i < n; i++) {
        world_teach(trials[i]);
        if (n_seen < CALLS && op_trial_copy(&seen[n_seen], trials[i], err))
            return OP_ERR_NOMEM;
        if (n_seen < CALLS)
            seen_call[n_seen++] = n_calls;
    }
    n_calls++;
    return OP_OK;
}

static op_status world_teacher(op_teacher **out, const json_t *settings, const op_classroom *room, op_error *err)
{
    (void)settings;
    (void)room;
    *out = op_alloc_zero(1, sizeof **out);
    if (!*out)
        return op_error_set(err, OP_ERR_NOMEM, "out of memory");
    **out = (op_teacher){.name = "world", .teach = speak};
    return OP_OK;
}

static inline void reward(op_trial *t, double x)
{
    t->has_reward = true;
    t->reward = x;
}

static inline void mark(op_trial *t, int32_t at, double value)
{
    assert_int_equal(op_trial_add_mark(t, at, at + 1, value, "world", NULL, NULL), OP_OK);
}

/* ---- running ---- */

/* What a test puts in the place of a method, or around one. */
static op_status (*spy)(op_session *s, const op_stage *stage, op_error *err);

static op_status call_spy(op_session *s, const op_stage *stage, op_error *err)
{
    return spy(s, stage, err);
}

/* Tokens that the last round's lesson looked at. */
static int64_t trained;

static void note_progress(void *ctx, const op_session_progress *p)
{
    (void)ctx;
    trained = p->lesson.step.trained;
}

/* Runs one stage, written as the members of a YAML mapping, into in_dir(out). `around` (may be NULL): its settings, but `spy` is called. */
static inline op_status run_stage(const char *out, const char *stage, const op_method *around, const volatile int *stop)
{
    static const op_teacher_type teachers[] = {{"world", "", world_teacher}, {0}};
    static const op_cue_source_type sources[] = {{"world", "", world_source}, {0}};
    op_method wrapped = around ? *around : (op_method){.name = "spy"};
    const op_method *methods[32] = {0};
    size_t n = 0;
    for (; op_methods[n]; n++)
        methods[n] = op_methods[n];
    wrapped.name = "spy";
    wrapped.round = call_spy;
    methods[n] = &wrapped;
    const op_session_kit kit = {.methods = methods, .teachers = teachers, .sources = sources};
    const op_session_callbacks callbacks = {.progress = note_progress, .stop = stop};
    char yaml[2048];
    op_session_result result;
    snprintf(yaml, sizeof yaml,
             "model: %s\noutput_dir: %s\nstore: ':memory:'\nseed: %d\nsave_rounds: 0\ndtype: f32\nsave_dtype: f32\nthreads: 1\nlearning_rate: 5e-3\ncues: {type: world}\nteacher: {type: world}\n"
             "stages: [{%s}]\n", in_dir("model"), in_dir(out), world_seed, stage);
    op_status s = op_file_put(in_dir("protocol.yaml"), yaml, strlen(yaml), e);
    return s ? s : op_session_run(in_dir("protocol.yaml"), &kit, NULL, 0, &callbacks, &result, e);
}

static inline void run(const char *out, const char *stage)
{
    forget();
    assert_ok(run_stage(out, stage, NULL, NULL));
}

/* ---- looking ---- */

static inline op_model *open_model(const char *name)
{
    op_model *m;
    assert_ok(op_model_open(&m, in_dir(name), &(op_model_options){.act = OP_F32}, e));
    return m;
}

/* log p of each response token under the model at `name`. */
static inline void log_probs(const char *name, const op_trial *t, float *out)
{
    op_model *m = open_model(name);
    op_pass *pass;
    int32_t n = t->n_prompt + t->n_response, ids[512];
    float logp[512];
    assert_true(n <= 512);
    memcpy(ids, t->prompt, (size_t)t->n_prompt * sizeof *ids);
    memcpy(ids + t->n_prompt, t->response, (size_t)t->n_response * sizeof *ids);
    const op_seq seq = {.length = n, .parent = -1, .adapter = -1};
    const op_batch batch = {.n_tokens = n, .n_seqs = 1, .ids = ids, .seqs = &seq};
    assert_ok(op_pass_new(&pass, m, e));
    assert_ok(op_model_forward(m, pass, &batch, &(op_how){0}, e));
    assert_ok(op_model_logprobs(m, pass, NULL, NULL, logp, e));
    memcpy(out, logp + t->n_prompt, (size_t)t->n_response * sizeof *out);
    op_pass_free(pass);
    op_model_free(m);
}

/* By how much log p of response token `at` rose from the untrained model to that of the run. */
static inline double rise(const char *name, const op_trial *t, int32_t at)
{
    float before[512], after[512];
    log_probs("model", t, before);
    log_probs(name, t, after);
    return (double)after[at] - (double)before[at];
}

/* The probability that the answer to the first prompt that was seen begins with an even token. */
static inline double even_probability(const char *name)
{
    op_model *m = open_model(name);
    op_pass *pass;
    float logits[VOCAB];
    double all = 0, even = 0;
    const op_seq seq = {.length = seen[0].n_prompt, .parent = -1, .adapter = -1};
    const op_batch batch = {.n_tokens = seq.length, .n_seqs = 1, .ids = seen[0].prompt, .seqs = &seq};
    const int32_t row = seq.length - 1;
    assert_ok(op_pass_new(&pass, m, e));
    assert_ok(op_model_forward(m, pass, &batch, &(op_how){0}, e));
    assert_ok(op_model_logits(m, pass, &row, 1, logits, e));
    for (int i = 0; i < VOCAB; i++) {
        all += exp((double)logits[i]);
        even += i % 2 ? 0 : exp((double)logits[i]);
    }
    op_pass_free(pass);
    op_model_free(m);
    return even / all;
}

static inline int set_up(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/operant-test-XXXXXX");
    assert_non_null(mkdtemp(dir));
    assert_ok(op_dir_make(in_dir("model"), e));
    op_model_config c = {.family = OP_LLAMA, .vocab = VOCAB, .width = 32, .layers = 2, .heads = 2, .kv_heads = 1, .head_dim = 16, .ffn = 64, .max_positions = 256,
                         .norm_eps = 1e-5f, .rope_theta = 10000, .tied = true, .bos = 401, .pad = 400, .eos = {402}, .n_eos = 1};
    op_model *m;
    assert_ok(op_model_new(&m, &c, &(op_model_options){.trainable = OP_TRAIN_ALL, .seed = 3}, e));
    assert_ok(op_model_save(m, in_dir("model"), OP_F32, e));
    op_model_free(m);
    const char *fixtures = getenv("FIXTURES");
    char path[512];
    op_buf b;
    op_buf_init(&b, 1 << 20);
    snprintf(path, sizeof path, "%s/smollm.json", fixtures ? fixtures : "tests/text/fixtures");
    assert_ok(op_file_read(path, &b, e));
    assert_ok(op_file_put(in_dir("model/tokenizer.json"), b.data, b.len, e));
    op_buf_release(&b);
    json_t *config = json_pack("{ssss}", "eos_token", "<|im_end|>", "chat_template", CHATML);
    char *text = json_dumps(config, 0);
    assert_ok(op_file_put(in_dir("model/tokenizer_config.json"), text, strlen(text), e));
    op_free(text);
    json_decref(config);
    return 0;
}

static inline int tear_down(void **state)
{
    (void)state;
    forget();
    return op_path_remove(dir, NULL);
}

#endif
