#include "trial/session_parts.h"

#include <math.h>
#include <string.h>
#include <time.h>

#include <operant/clock.h>

#include "base/mem.h"
#include "base/rng.h"
#include "trial/settings.h"

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for a round");
}

static op_status grow(void *array, size_t n, size_t *cap, size_t size, op_error *e)
{
    return op_grow(array, n, cap, size) ? OP_OK : no_memory(e);
}

/* An array for the method, alive until the round ends. NULL when memory is out. */
static void *hand_out(op_session *s, size_t n, size_t size, op_error *e)
{
    void *p = grow(&s->owned, s->n_owned, &s->cap_owned, sizeof *s->owned, e) ? NULL : op_alloc_zero(n ? n : 1, size);
    if (p)
        s->owned[s->n_owned++] = p;
    else
        no_memory(e);
    return p;
}

void op_session_clear_round(op_session *s)
{
    for (size_t i = 0; i < s->n_entries; i++) {
        op_trial_release(s->entries[i].trial);
        op_free(s->entries[i].trial);
    }
    for (size_t i = 0; i < s->n_cues; i++) {
        op_cue_release(s->cues[i]);
        op_free(s->cues[i]);
    }
    for (size_t i = 0; i < s->n_owned; i++)
        op_free(s->owned[i]);
    s->n_entries = s->n_cues = s->n_owned = 0;
    s->draws = s->samples = 0;
    s->model_seconds = 0;
}

/* ---- what is asked ---- */

/* A finite source is gone through in a new order on every pass, an endless one in its own. order[n] is drawn when *pass is not yet the one of the next cue. */
static uint64_t cue_index(const op_session *s, uint32_t *order, uint64_t *pass)
{
    uint64_t n = s->source->n, k = s->cues_drawn;
    if (!n)
        return k;
    if (*pass != k / n)
        op_rng_permute(s->seed, (uint64_t)OP_STREAM_SHUFFLE | (uint64_t)(s->stage_at << 16 | (k / n)) << 32, (uint32_t)n, order);
    *pass = k / n;
    return order[k % n];
}

op_status op_session_add_cue(op_session *s, op_cue *cue, const op_cue **out, op_error *e)
{
    op_cue *c = op_alloc(sizeof *c);
    op_status status = c ? grow(&s->cues, s->n_cues, &s->cap_cues, sizeof *s->cues, e) : no_memory(e);
    if (status) {
        op_free(c);
        op_cue_release(cue);
        return status;
    }
    *c = *cue;
    *cue = (op_cue){0};
    *out = s->cues[s->n_cues++] = c;
    return OP_OK;
}

op_status op_session_cues(op_session *s, op_cue *const **cues, size_t *n, op_error *e)
{
    size_t first = s->n_cues, count = (size_t)s->stage->prompts;
    uint32_t *order = op_alloc_array(s->source->n ? s->source->n : 1, sizeof *order);
    uint64_t pass = UINT64_MAX; /* of `order`: none yet */
    op_status status = order ? OP_OK : no_memory(e);
    for (size_t i = 0; !status && i < count; i++) {
        op_cue drawn;
        const op_cue *kept;
        status = s->source->draw(s->source, cue_index(s, order, &pass), &drawn, e);
        if (!status)
            status = op_session_add_cue(s, &drawn, &kept, e);
        s->cues_drawn += !status;
    }
    op_free(order);
    op_cue **list = status ? NULL : hand_out(s, count, sizeof *list, e);
    if (!list)
        return status ? status : OP_ERR_NOMEM;
    memcpy(list, s->cues + first, count * sizeof *list);
    *cues = list;
    *n = count;
    return OP_OK;
}

static size_t index_of_cue(const op_session *s, const op_cue *c)
{
    size_t i = 0;
    while (i < s->n_cues && s->cues[i] != c)
        i++;
    return i;
}

static size_t index_of_trial(const op_session *s, const op_trial *t)
{
    size_t i = 0;
    while (i < s->n_entries && s->entries[i].trial != t)
        i++;
    return i;
}

const op_cue *op_session_cue_of(const op_session *s, const op_trial *t)
{
    size_t i = index_of_trial(s, t);
    return i < s->n_entries ? s->cues[s->entries[i].cue] : NULL;
}

/* ---- trials ---- */

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* An empty trial of a cue, the next entry of the round. */
static op_status add_trial(op_session *s, size_t cue, size_t parent, op_trial **out, op_error *e)
{
    const op_cue *c = s->cues[cue];
    op_trial *t = op_alloc(sizeof *t);
    op_status status = t ? grow(&s->entries, s->n_entries, &s->cap_entries, sizeof *s->entries, e) : no_memory(e);
    if (status) {
        op_free(t);
        return status;
    }
    op_trial_init(t);
    s->entries[s->n_entries] = (op_entry){.trial = t, .cue = cue, .parent = parent, .number = s->round << 24 | (int64_t)s->n_entries};
    s->n_entries++;
    t->prompt = op_alloc_array((size_t)c->n_prompt, sizeof *t->prompt);
    json_decref(t->tags);
    t->tags = json_copy(c->tags);
    t->messages = json_incref(c->messages);
    t->time = now_ms();
    if (!t->prompt || !t->tags)
        return no_memory(e);
    memcpy(t->prompt, c->prompt, (size_t)c->n_prompt * sizeof *t->prompt);
    t->n_prompt = c->n_prompt;
    *out = t;
    return OP_OK;
}

op_status op_session_trial(op_session *s, const op_cue *cue, const int32_t *response, int32_t n, const char *by, op_trial **out, op_error *e)
{
    size_t at = index_of_cue(s, cue);
    if (at == s->n_cues)
        return op_error_set(e, OP_ERR_ARG, "a trial of a cue that is not of this round");
    op_status status = add_trial(s, at, SIZE_MAX, out, e);
    if (status)
        return status;
    op_trial *t = *out;
    t->response = op_alloc_array((size_t)(n ? n : 1), sizeof *t->response);
    t->by = by ? op_strdup(by) : NULL;
    if (!t->response || (by && !t->by))
        return no_memory(e);
    memcpy(t->response, response, (size_t)n * sizeof *t->response);
    t->n_response = t->n_forced = n;
    return OP_OK;
}

int64_t op_session_number(const op_session *s, const op_trial *t)
{
    size_t i = index_of_trial(s, t);
    return i < s->n_entries ? s->entries[i].number : -1;
}

void op_session_is(op_session *s, const op_trial *t, int64_t number)
{
    size_t i = index_of_trial(s, t);
    if (i < s->n_entries)
        s->entries[i].number = number;
}

/* What a request of the sampler is made from, and what becomes of it. */
typedef struct asking {
    op_trial *trial;
    const op_trial *kept;  /* its first `at` response tokens come first; NULL: none */
    int32_t at;
    const int32_t *forced;
    int32_t n_forced;
    int32_t *prompt;       /* owned while asking */
    op_request *answer;    /* borrowed while asking; without tokens where the answer was over before */
} asking;

static op_status fill_request(op_session *s, asking *a, op_request *r, op_error *e)
{
    int32_t n = a->trial->n_prompt, kept = a->kept ? a->at : 0;
    a->prompt = op_alloc_array((size_t)(n + kept + a->n_forced), sizeof *a->prompt);
    if (!a->prompt)
        return no_memory(e);
    memcpy(a->prompt, a->trial->prompt, (size_t)n * sizeof *a->prompt);
    if (kept)
        memcpy(a->prompt + n, a->kept->response, (size_t)kept * sizeof *a->prompt);
    if (a->n_forced)
        memcpy(a->prompt + n + kept, a->forced, (size_t)a->n_forced * sizeof *a->prompt);
    *r = (op_request){.prompt = a->prompt, .n_prompt = n + kept + a->n_forced, .adapter = s->subject.adapter, .share = -1, .sampling = s->stage->sampling};
    r->sampling.seed = op_rng_u64(s->seed, OP_STREAM_SAMPLE, (uint64_t)s->round << 24 | s->samples++);
    r->sampling.max_tokens -= kept + a->n_forced;
    if (r->sampling.max_tokens < 1)
        r->sampling.max_tokens = 1;
    return OP_OK;
}

/* Kept tokens have the log p they were sampled with, placed ones none (NAN), the rest what the sampler says. */
static op_status take_answer(op_session *s, const asking *a, const op_request *r, op_error *e)
{
    op_trial *t = a->trial;
    int32_t kept = a->kept ? a->at : 0, before = kept + a->n_forced, n = before + r->n;
    t->response = op_alloc_array((size_t)(n ? n : 1), sizeof *t->response);
    t->logprobs = op_alloc_array((size_t)(n ? n : 1), sizeof *t->logprobs);
    if (!t->response || !t->logprobs)
        return no_memory(e);
    memcpy(t->response, a->prompt + t->n_prompt, (size_t)before * sizeof *t->response);
    for (int32_t i = 0; i < before; i++)
        t->logprobs[i] = i < kept && a->kept->logprobs ? a->kept->logprobs[i] : NAN;
    if (r->n) {
        memcpy(t->response + before, r->tokens, (size_t)r->n * sizeof *t->response);
        memcpy(t->logprobs + before, r->logprobs, (size_t)r->n * sizeof *t->logprobs);
    }
    t->n_response = n;
    t->n_forced = before;
    t->finish = r->n ? r->finish : OP_FINISH_STOP;
    t->sampler = r->sampling;
    memcpy(t->policy, s->policy, sizeof t->policy);
    s->tokens += r->n;
    s->stage_tokens += r->n;
    s->trials++;
    s->stage_trials++;
    return OP_OK;
}

/* Groups of answers to one prompt follow each other: the first of a group computes the prompt for the others. */
static void share_prompts(op_request *r, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        size_t first = r[i - 1].share >= 0 ? (size_t)r[i - 1].share : i - 1;
        if (r[i].n_prompt == r[first].n_prompt && !memcmp(r[i].prompt, r[first].prompt, (size_t)r[i].n_prompt * sizeof *r->prompt)) {
            r[i].share = (int32_t)first;
            r[i].share_n = r[i].n_prompt;
        }
    }
}

/* Is the last of the kept or placed tokens one that ends an answer? */
static bool is_over(const op_session *s, const asking *a)
{
    const op_model_config *c = op_model_get_config(s->subject.model);
    int32_t last = a->n_forced ? a->forced[a->n_forced - 1] : a->kept && a->at ? a->kept->response[a->at - 1] : -1;
    for (int32_t i = 0; i < c->n_eos; i++)
        if (c->eos[i] == last)
            return true;
    return false;
}

static op_status ask_all(op_session *s, asking *a, size_t n, op_error *e)
{
    op_request *requests = op_alloc_zero(n + 1, sizeof *requests), *over = requests + n; /* one for all that are over */
    size_t n_asked = 0;
    op_status status = requests ? OP_OK : no_memory(e);
    for (size_t i = 0; !status && i < n; i++) {
        bool ended = is_over(s, &a[i]);
        status = fill_request(s, &a[i], ended ? over : &requests[n_asked], e);
        a[i].answer = ended ? over : &requests[n_asked];
        n_asked += !ended;
    }
    double start = op_seconds();
    if (!status && n_asked) {
        share_prompts(requests, n_asked);
        op_generate_options how = {.interrupt = s->callbacks->stop};
        status = op_generate(s->subject.model, requests, n_asked, &how, e);
    }
    s->model_seconds += op_seconds() - start;
    for (size_t i = 0; requests && i < n; i++) {
        if (!status)
            status = take_answer(s, &a[i], a[i].answer, e);
        if (a[i].answer && a[i].answer != over)
            op_request_release(a[i].answer);
        op_free(a[i].prompt);
        a[i].prompt = NULL;
    }
    op_free(requests);
    return status;
}

op_status op_session_sample(op_session *s, const op_cue *const *cues, size_t n, int64_t group, op_trial ***trials, op_error *e)
{
    size_t count = n * (size_t)group;
    op_trial **list = hand_out(s, count, sizeof *list, e);
    asking *a = list ? op_alloc_zero(count ? count : 1, sizeof *a) : NULL;
    op_status status = a ? OP_OK : no_memory(e);
    for (size_t i = 0; !status && i < count; i++) {
        size_t cue = index_of_cue(s, cues[i / (size_t)group]);
        status = cue < s->n_cues ? add_trial(s, cue, SIZE_MAX, &list[i], e) : op_error_set(e, OP_ERR_ARG, "a cue that is not of this round");
        a[i].trial = list[i];
    }
    if (!status)
        status = ask_all(s, a, count, e);
    op_free(a);
    *trials = list;
    return status;
}

op_status op_session_redo(op_session *s, op_trial *const *trials, size_t n, const int32_t *at, const int32_t *const *forced, const int32_t *n_forced,
                          op_trial ***out, op_error *e)
{
    op_trial **list = hand_out(s, n, sizeof *list, e);
    asking *a = list ? op_alloc_zero(n ? n : 1, sizeof *a) : NULL;
    op_status status = a ? OP_OK : no_memory(e);
    for (size_t i = 0; !status && i < n; i++) {
        size_t parent = index_of_trial(s, trials[i]);
        if (parent == s->n_entries || at[i] < 0 || at[i] > trials[i]->n_response)
            status = op_error_set(e, OP_ERR_ARG, "trial %lld cannot be redone from token %d of %d", (long long)trials[i]->id, at[i], trials[i]->n_response);
        else
            status = add_trial(s, s->entries[parent].cue, parent, &list[i], e);
        if (status)
            break;
        list[i]->redo_at = at[i];
        a[i] = (asking){.trial = list[i], .kept = trials[i], .at = at[i], .forced = forced ? forced[i] : NULL, .n_forced = forced && forced[i] ? n_forced[i] : 0};
    }
    if (!status)
        status = ask_all(s, a, n, e);
    op_free(a);
    *out = list;
    return status;
}

/* ---- alternatives ---- */

typedef struct likely {
    int32_t id;
    float logit;
} likely;

/* The k likeliest of logits[v], best first. */
static void find_likeliest(const float *logits, int32_t v, int32_t k, likely *best)
{
    int32_t n = 0;
    for (int32_t id = 0; id < v; id++) {
        if (n == k && logits[id] <= best[n - 1].logit)
            continue;
        int32_t at = n < k ? n++ : n - 1;
        for (; at > 0 && best[at - 1].logit < logits[id]; at--)
            best[at] = best[at - 1];
        best[at] = (likely){id, logits[id]};
    }
}

static double log_sum_exp(const float *logits, int32_t v)
{
    double max = logits[0], sum = 0;
    for (int32_t i = 1; i < v; i++)
        max = fmax(max, (double)logits[i]);
    for (int32_t i = 0; i < v; i++)
        sum += exp((double)logits[i] - max);
    return max + log(sum);
}

static op_status likeliest_at(op_session *s, op_pass *pass, op_trial *t, int32_t at, int32_t k, float *logits, op_error *e)
{
    enum { K_MAX = 64 };
    likely best[K_MAX];
    int32_t n = t->n_prompt + at, v = op_model_get_config(s->subject.model)->vocab;
    int32_t *ids = op_alloc_array((size_t)n, sizeof *ids);
    if (!ids)
        return no_memory(e);
    memcpy(ids, t->prompt, (size_t)t->n_prompt * sizeof *ids);
    memcpy(ids + t->n_prompt, t->response, (size_t)at * sizeof *ids);
    const op_seq seq = {.length = n, .parent = -1, .adapter = s->subject.adapter};
    const op_batch batch = {.n_tokens = n, .n_seqs = 1, .ids = ids, .seqs = &seq};
    const op_how how = {0};
    const int32_t row = n - 1;
    op_status status = op_model_forward(s->subject.model, pass, &batch, &how, e);
    if (!status)
        status = op_model_logits(s->subject.model, pass, &row, 1, logits, e);
    if (!status)
        find_likeliest(logits, v, k, best);
    double all = status ? 0 : log_sum_exp(logits, v);
    for (int32_t i = 0; !status && i < k; i++)
        status = op_trial_add_alternative(t, at, &best[i].id, 1, (double)best[i].logit - all, false, "model", e);
    op_free(ids);
    return status;
}

op_status op_session_alternatives(op_session *s, op_trial *const *trials, size_t n, const int32_t *at, int32_t k, op_error *e)
{
    int32_t vocab = op_model_get_config(s->subject.model)->vocab, most = vocab < 64 ? vocab : 64;
    if (k < 1 || k > most)
        return op_error_set(e, OP_ERR_ARG, "%d alternatives, expected 1 to %d", k, most);
    op_pass *pass = NULL;
    double start = op_seconds();
    float *logits = op_alloc_array((size_t)vocab, sizeof *logits);
    op_status status = logits ? op_pass_new(&pass, s->subject.model, e) : no_memory(e);
    for (size_t i = 0; !status && i < n; i++) {
        if (at[i] < 0 || at[i] >= trials[i]->n_response)
            status = op_error_set(e, OP_ERR_ARG, "trial %lld has no token %d, it has %d", (long long)trials[i]->id, at[i], trials[i]->n_response);
        else
            status = likeliest_at(s, pass, trials[i], at[i], k, logits, e);
    }
    op_pass_free(pass);
    op_free(logits);
    s->model_seconds += op_seconds() - start;
    return status;
}

/* ---- feedback ---- */

/* A teacher that withheld some of what it thought (several, with their own schedules) says in the tag "verdict" what it was. */
static bool is_success(const op_session *s, const op_trial *t)
{
    const json_t *verdict = json_object_get(t->tags, "verdict");
    if (json_is_boolean(verdict))
        return json_is_true(verdict);
    return t->has_reward ? t->reward > s->stage->success_above : op_trial_first_error(t) < 0;
}

/* What a trial had before its teacher spoke. */
typedef struct before {
    int32_t n_marks, n_alternatives;
    bool by;
} before;

/* Takes back what the teacher said, or only the reward. */
static void withhold(op_trial *t, before had, bool reward_only)
{
    t->has_reward = false;
    t->reward = 0;
    for (; !reward_only && t->n_marks > had.n_marks; t->n_marks--) {
        op_free(t->marks[t->n_marks - 1].by);
        op_free(t->marks[t->n_marks - 1].note);
    }
    for (; !reward_only && t->n_alternatives > had.n_alternatives; t->n_alternatives--) {
        op_free(t->alternatives[t->n_alternatives - 1].ids);
        op_free(t->alternatives[t->n_alternatives - 1].by);
    }
    if (!had.by && t->n_marks == had.n_marks && t->n_alternatives == had.n_alternatives) { /* nobody gave feedback */
        op_free(t->by);
        t->by = NULL;
    }
}

static op_status follow(op_session *s, op_entry *x, before had, op_error *e)
{
    double size = 1;
    op_trial *t = x->trial;
    x->success = is_success(s, t);
    x->probe = op_reinforce_is_probe(s->schedule);
    op_consequence next = op_reinforce_next(s->schedule, x->success, &size);
    s->successes[s->n_successes++ % OP_SESSION_WINDOW] = x->success;
    if (json_object_set_new(t->tags, "success", json_boolean(x->success)))
        return no_memory(e);
    if (next != OP_FEEDBACK)
        withhold(t, had, s->stage->thin == 1 && next != OP_PROBE);
    if (next == OP_FEEDBACK && size != 1) {
        t->reward *= size;
        if (json_object_set_new(t->tags, "jackpot", json_real(size)))
            return no_memory(e);
    }
    if (x->probe && json_object_set_new(t->tags, "probe", json_true()))
        return no_memory(e);
    return OP_OK;
}

/* What a teacher says must fit the response. A trial has no id before it is stored, so its round and its place there name it. */
static op_status check_trial(const op_session *s, const op_trial *t, op_error *e)
{
    op_error why = {0};
    size_t i = index_of_trial(s, t);
    if (i == s->n_entries)
        return op_error_set(e, OP_ERR_ARG, "a trial that is not of this round");
    op_status status = op_trial_check(t, op_model_get_config(s->subject.model)->vocab, &why);
    const char *text = strncmp(why.message, "trial 0: ", 9) ? why.message : why.message + 9;
    return status ? op_error_set(e, status, "round %lld, trial %zu: %s", (long long)s->round + 1, i + 1, text) : OP_OK;
}

/* What the teacher says of trials; `asked`: its opinion, outside every schedule. */
static op_status hear(op_session *s, op_trial *const *trials, size_t n, bool asked, op_error *e)
{
    if (!s->teacher)
        return op_error_set(e, OP_ERR_ARG, "it has no teacher");
    s->teacher->asked = asked;
    op_status status = s->teacher->teach(s->teacher, trials, n, e);
    for (size_t i = 0; !status && i < n; i++)
        status = check_trial(s, trials[i], e);
    return status;
}

op_status op_session_ask(op_session *s, op_trial *const *trials, size_t n, op_error *e)
{
    return hear(s, trials, n, true, e);
}

op_status op_session_teach(op_session *s, op_trial *const *trials, size_t n, bool *success, op_error *e)
{
    before *had = op_alloc_array(n + 1, sizeof *had);
    if (!had)
        return no_memory(e);
    for (size_t i = 0; i < n; i++)
        had[i] = (before){trials[i]->n_marks, trials[i]->n_alternatives, trials[i]->by};
    op_status status = hear(s, trials, n, false, e);
    for (size_t i = 0; !status && i < n; i++) {
        op_entry *x = &s->entries[index_of_trial(s, trials[i])];
        status = follow(s, x, had[i], e);
        if (!status && success)
            success[i] = x->success;
    }
    op_free(had);
    if (!status && s->teacher->learn)
        status = s->teacher->learn(s->teacher, trials, n, e);
    return status;
}

/* ---- the rest ---- */

op_lesson *op_session_lesson(op_session *s)
{
    return s->lesson;
}

const op_chat *op_session_chat(const op_session *s)
{
    return &s->subject.chat;
}

op_status op_session_path(const op_session *s, const char *file, char **out, op_error *e)
{
    return op_settings_path(out, s->room.dir, file, e);
}

const op_subject *op_session_subject(const op_session *s)
{
    return &s->subject;
}

json_t *op_session_memory(op_session *s)
{
    return s->memory;
}

uint64_t op_session_random(op_session *s, uint64_t purpose)
{
    return op_rng_u64(s->seed, (uint64_t)OP_STREAM_SHUFFLE | (purpose | 1u << 31) << 32, (uint64_t)s->round << 24 | s->draws++); /* not those of cue_index */
}

double op_session_success(const op_session *s, int64_t over)
{
    int64_t n = s->n_successes < over ? s->n_successes : over, sum = 0;
    if (n > OP_SESSION_WINDOW)
        n = OP_SESSION_WINDOW;
    for (int64_t i = 0; i < n; i++)
        sum += s->successes[(s->n_successes - 1 - i) % OP_SESSION_WINDOW];
    return n ? (double)sum / (double)n : NAN;
}
