/* What the tests of trials, stores and importers share: a small tokenizer with a template, and random trials. */
#ifndef OP_TESTS_TRIAL_TOOLS_H
#define OP_TESTS_TRIAL_TOOLS_H

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

#include <operant/trial.h>

#include "base/mem.h"
#include "base/rng.h"
#include "io/file.h"
#include "io/json.h"

#define CHATML                                                                                                                  \
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"                    \
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

static op_tokenizer *tokenizer;
static op_template *tmpl;
static op_chat chat;
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

static inline void assert_says(const char *part)
{
    if (!strstr(e->message, part))
        fail_msg("'%s' does not say '%s'", e->message, part);
}

static inline int open_words(void **state)
{
    (void)state;
    char path[512];
    const char *fixtures = getenv("FIXTURES");
    snprintf(path, sizeof path, "%s/smollm.json", fixtures ? fixtures : "tests/text/fixtures");
    strcpy(dir, "/tmp/operant-test-XXXXXX");
    assert_non_null(mkdtemp(dir));
    assert_ok(op_tokenizer_open(&tokenizer, path, e));
    assert_ok(op_template_parse(&tmpl, CHATML, strlen(CHATML), e));
    chat = (op_chat){.tokenizer = tokenizer, .tmpl = tmpl};
    return 0;
}

static inline int close_words(void **state)
{
    (void)state;
    op_tokenizer_free(tokenizer);
    op_template_free(tmpl);
    return op_path_remove(dir, NULL);
}

static inline json_t *parse(const char *text)
{
    json_t *v;
    assert_ok(op_json_parse(&v, text, strlen(text), "test", e));
    return v;
}

/* The token whose bytes are exactly these; there is one for every byte. */
static inline int32_t token_of(const char *bytes, size_t n)
{
    for (int32_t i = 0; i < op_tokenizer_vocab_size(tokenizer); i++) {
        size_t len;
        const char *b = op_tokenizer_bytes(tokenizer, i, &len);
        if (len == n && !memcmp(b, bytes, n) && !op_tokenizer_is_special(tokenizer, i))
            return i;
    }
    fail_msg("no token for %.*s", (int)n, bytes);
    return -1;
}

static inline uint64_t draw(uint64_t seed, uint64_t *counter, uint64_t n)
{
    return op_rng_below(seed, OP_STREAM_TEST, (*counter)++, n);
}

/* Any tokens in any order: halves of characters, special tokens in the middle, texts that re-tokenise differently. */
static inline void random_trial(op_trial *t, uint64_t seed)
{
    uint64_t c = 0;
    static const char *const people[] = {NULL, "ann", "b\xc3\xa9la", "model"};
    int32_t vocab = op_tokenizer_vocab_size(tokenizer);
    op_trial_init(t);
    t->n_prompt = 1 + (int32_t)draw(seed, &c, 9);
    t->n_response = (int32_t)draw(seed, &c, 12);
    t->prompt = op_alloc_array((size_t)t->n_prompt, sizeof *t->prompt);
    t->response = op_alloc_array((size_t)t->n_response, sizeof *t->response);
    for (int32_t i = 0; i < t->n_prompt; i++)
        t->prompt[i] = (int32_t)draw(seed, &c, (uint64_t)vocab);
    for (int32_t i = 0; i < t->n_response; i++)
        t->response[i] = (int32_t)draw(seed, &c, (uint64_t)vocab);
    t->finish = (op_finish)draw(seed, &c, 3);
    if (draw(seed, &c, 2)) {
        t->n_forced = (int32_t)draw(seed, &c, (uint64_t)t->n_response + 1);
        t->logprobs = op_alloc_array((size_t)t->n_response, sizeof *t->logprobs);
        for (int32_t i = 0; i < t->n_response; i++)
            t->logprobs[i] = i < t->n_forced ? NAN : -(float)op_rng_uniform(seed, OP_STREAM_TEST, c++) * 20;
        double temperature = op_rng_uniform(seed, OP_STREAM_TEST, c++);
        t->sampler = (op_sampling){.temperature = temperature, .top_k = 3, .top_p = 0.1 + 0.2, .repetition_penalty = 1, .max_tokens = 7,
                                   .seed = op_rng_u64(seed, OP_STREAM_TEST, c++)};
        memset(t->policy, 'a' + (int)draw(seed, &c, 6), 64);
    }
    if (draw(seed, &c, 2))
        t->messages = parse("[{\"role\":\"user\",\"content\":\"h\xc3\xa9llo\"}]");
    if (draw(seed, &c, 2))
        json_object_set_new(t->tags, "cue", json_string("stop \"now\"\n"));
    if (draw(seed, &c, 2))
        json_object_set_new(t->tags, "level", json_real(op_rng_uniform(seed, OP_STREAM_TEST, c++)));
    for (uint64_t n = t->n_response ? draw(seed, &c, 4) : 0; n > 0; n--) {
        int32_t a = (int32_t)draw(seed, &c, (uint64_t)t->n_response), b = a + 1 + (int32_t)draw(seed, &c, (uint64_t)(t->n_response - a));
        double value = -op_rng_uniform(seed, OP_STREAM_TEST, c++);
        const char *by = people[draw(seed, &c, 4)], *note = draw(seed, &c, 2) ? "wrong \xe2\x80\x94 twice" : NULL;
        assert_ok(op_trial_add_mark(t, a, b, value, by, note, e));
    }
    for (uint64_t n = draw(seed, &c, 3); n > 0; n--) {
        int32_t ids[3], length = 1 + (int32_t)draw(seed, &c, 3), at = (int32_t)draw(seed, &c, (uint64_t)t->n_response + 1);
        ids[0] = (int32_t)(n * 7 + draw(seed, &c, 7)); /* no two alternatives begin alike */
        ids[1] = (int32_t)draw(seed, &c, (uint64_t)vocab);
        ids[2] = (int32_t)draw(seed, &c, (uint64_t)vocab);
        double logprob = draw(seed, &c, 2) ? (double)NAN : -op_rng_uniform(seed, OP_STREAM_TEST, c++);
        bool picked = draw(seed, &c, 2);
        assert_ok(op_trial_add_alternative(t, at, ids, length, logprob, picked, people[draw(seed, &c, 4)], e));
    }
    if ((t->has_reward = draw(seed, &c, 2)))
        t->reward = op_rng_normal(seed, OP_STREAM_TEST, c++);
    if (draw(seed, &c, 2))
        t->by = op_strdup("ann");
    t->time = (int64_t)draw(seed, &c, 1u << 31) * 1000;
    assert_ok(op_trial_check(t, vocab, e));
}

static inline bool same_text(const char *a, const char *b)
{
    return a && b ? !strcmp(a, b) : a == b;
}

static inline bool same_number(double a, double b)
{
    return a == b || (isnan(a) && isnan(b));
}

/* Everything but the id. */
static inline void assert_same_trial(const op_trial *a, const op_trial *b)
{
    assert_int_equal(a->n_prompt, b->n_prompt);
    assert_memory_equal(a->prompt, b->prompt, (size_t)a->n_prompt * 4);
    assert_int_equal(a->n_response, b->n_response);
    if (a->n_response)
        assert_memory_equal(a->response, b->response, (size_t)a->n_response * 4);
    assert_int_equal(!a->logprobs, !b->logprobs);
    for (int32_t i = 0; a->logprobs && i < a->n_response; i++)
        assert_true(same_number(a->logprobs[i], b->logprobs[i]));
    assert_int_equal(a->n_forced, b->n_forced);
    assert_string_equal(a->policy, b->policy);
    if (a->logprobs) {
        const op_sampling *x = &a->sampler, *y = &b->sampler;
        assert_true(x->temperature == y->temperature && x->top_k == y->top_k && x->top_p == y->top_p && x->min_p == y->min_p);
        assert_true(x->repetition_penalty == y->repetition_penalty && x->max_tokens == y->max_tokens && x->seed == y->seed);
    }
    assert_int_equal(a->finish, b->finish);
    assert_int_equal(!a->messages, !b->messages);
    assert_true(!a->messages || json_equal(a->messages, b->messages));
    assert_true(json_equal(a->tags, b->tags));
    assert_int_equal(a->n_marks, b->n_marks);
    for (int32_t i = 0; i < a->n_marks; i++) {
        const op_mark *x = &a->marks[i], *y = &b->marks[i];
        assert_true(x->start == y->start && x->end == y->end && x->value == y->value && same_text(x->by, y->by) && same_text(x->note, y->note));
    }
    assert_int_equal(a->has_reward, b->has_reward);
    assert_true(!a->has_reward || a->reward == b->reward);
    assert_int_equal(a->n_alternatives, b->n_alternatives);
    for (int32_t i = 0; i < a->n_alternatives; i++) {
        const op_alternative *x = &a->alternatives[i], *y = &b->alternatives[i];
        assert_true(x->at == y->at && x->n == y->n && !memcmp(x->ids, y->ids, (size_t)x->n * 4));
        assert_true(same_number(x->logprob, y->logprob) && x->picked == y->picked && same_text(x->by, y->by));
    }
    assert_true(a->redo_of == b->redo_of && a->redo_at == b->redo_at && a->time == b->time && same_text(a->by, b->by));
}

/* Runs `job` with every allocation failing in turn, from the first on, until it succeeds. */
static inline void fail_every_allocation(op_status (*job)(void *ctx), void *ctx)
{
    for (long n = 0;; n += 1 + n / 64) {
        op_alloc_fail_from(n);
        op_status s = job(ctx);
        op_alloc_fail_from(-1);
        if (s == OP_OK)
            return;
        if (s != OP_ERR_NOMEM)
            fail_msg("allocation %ld: status %d, %s", n, s, e->message);
        assert_true(n < 20000);
    }
}

#endif
