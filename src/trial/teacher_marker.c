/* A learned marker: a small head on the subject's hidden states that learns to foresee the reward of the whole response from what has been said so far, and
 * clicks where its prediction jumps. Once the click is reliable the reward itself can come now and then (a conditioned reinforcer).
 *
 * Settings: {"type": "marker", ...}
 *     layer      the residual stream that enters this layer, 0 .. L, L the one that leaves the last; default two thirds of the way up
 *     hidden     0: a linear head (default); else so many tanh units
 *     lr         of its own steps, more than 0, at most 2; default 0.1
 *     passes     over the rewarded trials of a round; default 4
 *     threshold  a jump of more than this many units of reward is a click; default 0.2
 *     graded     true: a mark is as large as the jump (at most 1); default false: 1 or -1
 *     after      rewarded trials that it learns from before it clicks; default 32
 *     name       what its marks are signed with; default "marker"
 *
 *   x_t = (h_t - mean) / deviation / sqrt(C)       mean and deviation are those of all states seen so far
 *   v_t = b + w . x_t,  or  b + w . tanh(U x_t + c) / sqrt(H)     so that a step has about the same effect with any head
 *   loss = mean over t of (R - v_t)^2 / 2, one step a trial: v_t comes to be the reward to be expected after token t (a value by Monte Carlo)
 *   click at t: |v_t - v_(t-1)| > threshold, where v_(-1) stands at the last token of the prompt */
#include "trial/teachers.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "io/json.h"
#include "trial/settings.h"

enum { STREAM_MARKER = 0x6d6b, AT_ONCE = 64 /* trials whose states are held */ };

typedef struct marker {
    json_t *settings;
    op_model *model;
    op_pass *pass;
    int32_t C, H;
    int64_t layer, passes, after;
    double lr, threshold;
    bool graded;
    /* learned: saved as one block */
    float *learned;      /* [n_learned], of which: */
    size_t n_learned;
    float *b, *w, *c, *U; /* w [H or C], c [H], U [H, C] */
    float *mean, *square; /* [C]; square: sum of squared distances from the mean */
    int64_t states;       /* seen */
    int64_t rewarded;     /* trials */
    /* room */
    float *unit, *x;      /* [H], [C] */
    float *h;             /* [.., C] states of the trials at hand, one after the other */
    size_t h_room;        /* floats */
    size_t at;            /* row of h where the tap writes */
    int32_t first, rows;  /* what it keeps of the batch */
} marker;

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "marker: out of memory");
}

/* ---- hidden states ---- */

static op_status keep_states(void *ctx, int32_t layer, const op_batch *batch, float *resid)
{
    marker *m = ctx;
    (void)layer;
    (void)batch;
    memcpy(m->h + m->at * (size_t)m->C, resid + (size_t)m->first * m->C, (size_t)m->rows * m->C * sizeof *m->h);
    return OP_OK;
}

/* The subject as it is now reads the trial: row `at` of h stands at the last token of the prompt, row at + 1 + i at response token i. */
static op_status read_states(marker *m, const op_trial *t, size_t at, op_error *e)
{
    int32_t n = t->n_prompt + t->n_response;
    if (n > op_model_get_config(m->model)->max_positions)
        return op_error_set(e, OP_ERR_ARG, "marker: trial %lld has %d tokens, the model takes %d", (long long)t->id, n, op_model_get_config(m->model)->max_positions);
    m->at = at;
    m->first = t->n_prompt - 1;
    m->rows = t->n_response + 1;
    size_t n_taps, need = (at + (size_t)m->rows) * (size_t)m->C;
    const op_tap *others = op_model_taps(m->model, &n_taps);
    op_tap *taps = op_alloc_array(n_taps + 1, sizeof *taps);
    int32_t *ids = op_alloc_array((size_t)n, sizeof *ids);
    op_status s = taps && ids ? OP_OK : no_memory(e);
    if (!s && need > m->h_room) {
        float *h = op_realloc(m->h, need * sizeof *h);
        m->h = h ? h : m->h;
        m->h_room = h ? need : m->h_room;
        s = h ? OP_OK : no_memory(e);
    }
    if (!s && !m->pass)
        s = op_pass_new(&m->pass, m->model, e);
    if (!s) {
        memcpy(ids, t->prompt, (size_t)t->n_prompt * sizeof *ids);
        if (t->n_response)
            memcpy(ids + t->n_prompt, t->response, (size_t)t->n_response * sizeof *ids);
        if (n_taps)
            memcpy(taps, others, n_taps * sizeof *taps);
        taps[n_taps] = (op_tap){.layer = (int32_t)m->layer, .ctx = m, .forward = keep_states};
        s = op_model_set_taps(m->model, taps, n_taps + 1) ? no_memory(e) : OP_OK;
    }
    if (!s) {
        op_seq seq = {.length = n, .parent = -1, .adapter = op_model_adapter_count(m->model) ? 0 : -1};
        s = op_model_forward(m->model, m->pass, &(op_batch){n, 1, ids, &seq}, &(op_how){0}, e);
        op_model_set_taps(m->model, taps, n_taps); /* fewer: cannot fail */
    }
    op_free(taps);
    op_free(ids);
    return s;
}

/* ---- the head ---- */

static void standardise(marker *m, const float *h)
{
    float scale = 1 / sqrtf((float)m->C);
    for (int32_t i = 0; i < m->C; i++) {
        float variance = m->states > 1 ? m->square[i] / (float)(m->states - 1) : 1;
        m->x[i] = (h[i] - m->mean[i]) / sqrtf(variance + 1e-6f) * scale;
    }
}

static float predict(marker *m, const float *h)
{
    standardise(m, h);
    float v = *m->b, scale = m->H ? 1 / sqrtf((float)m->H) : 1;
    if (!m->H)
        for (int32_t i = 0; i < m->C; i++)
            v += m->w[i] * m->x[i];
    for (int32_t k = 0; k < m->H; k++) {
        float a = m->c[k];
        for (int32_t i = 0; i < m->C; i++)
            a += m->U[(size_t)k * m->C + i] * m->x[i];
        m->unit[k] = tanhf(a);
        v += m->w[k] * m->unit[k] * scale;
    }
    return v;
}

/* One step on one state, after predict: `step` is the rate times (R - v). */
static void move(marker *m, float step)
{
    float scale = m->H ? 1 / sqrtf((float)m->H) : 1;
    *m->b += step;
    if (!m->H)
        for (int32_t i = 0; i < m->C; i++)
            m->w[i] += step * m->x[i];
    for (int32_t k = 0; k < m->H; k++) {
        float inner = step * scale * m->w[k] * (1 - m->unit[k] * m->unit[k]);
        m->w[k] += step * scale * m->unit[k];
        m->c[k] += inner;
        for (int32_t i = 0; i < m->C; i++)
            m->U[(size_t)k * m->C + i] += inner * m->x[i];
    }
}

/* Welford's running mean and squares (Technometrics 4, 1962). */
static void count_states(marker *m)
{
    for (int32_t r = 0; r < m->rows; r++) {
        m->states++;
        for (int32_t i = 0; i < m->C; i++) {
            float h = m->h[(m->at + (size_t)r) * (size_t)m->C + (size_t)i], d = h - m->mean[i];
            m->mean[i] += d / (float)m->states;
            m->square[i] += d * (h - m->mean[i]);
        }
    }
}

/* ---- teaching and learning ---- */

static op_status click(marker *m, op_trial *t, const char *name, op_error *e)
{
    op_status s = read_states(m, t, 0, e);
    float before = s ? 0 : predict(m, m->h);
    for (int32_t i = 0; !s && i < t->n_response; i++) {
        float v = predict(m, m->h + (size_t)(i + 1) * m->C), jump = v - before;
        if (fabsf(jump) > m->threshold)
            s = op_trial_add_mark(t, i, i + 1, m->graded ? fmax(-1, fmin(1, (double)jump)) : jump > 0 ? 1 : -1, name, NULL, e);
        before = v;
    }
    return s;
}

static op_status teach(op_teacher *t, op_trial *const *trials, size_t n, op_error *e)
{
    marker *m = t->ctx;
    op_status s = OP_OK;
    for (size_t i = 0; !s && m->rewarded >= m->after && i < n; i++)
        s = click(m, trials[i], t->name, e);
    return s;
}

/* The reward pulls at the prediction after every token of the response. */
static void step(marker *m, const float *h, int32_t rows, double reward)
{
    for (int32_t r = 0; r < rows; r++) {
        float v = predict(m, h + (size_t)r * m->C);
        move(m, (float)m->lr / (float)rows * ((float)reward - v));
    }
}

static op_status learn_some(marker *m, op_trial *const *trials, size_t n, op_error *e)
{
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        if (!trials[i]->has_reward)
            continue;
        op_status s = read_states(m, trials[i], at, e);
        if (s)
            return s;
        count_states(m);
        m->rewarded++;
        at += (size_t)m->rows;
    }
    for (int64_t pass = 0; pass < m->passes; pass++) {
        at = 0;
        for (size_t i = 0; i < n; i++) {
            if (!trials[i]->has_reward)
                continue;
            step(m, m->h + at * (size_t)m->C, trials[i]->n_response + 1, trials[i]->reward);
            at += (size_t)trials[i]->n_response + 1;
        }
    }
    return OP_OK;
}

static op_status learn(op_teacher *t, op_trial *const *trials, size_t n, op_error *e)
{
    op_status s = OP_OK;
    for (size_t i = 0; !s && i < n; i += AT_ONCE)
        s = learn_some(t->ctx, trials + i, n - i < AT_ONCE ? n - i : AT_ONCE, e);
    return s;
}

/* ---- state: counts, and the learned floats bit by bit as hexadecimal digits ---- */

static op_status save(op_teacher *t, json_t **state, op_error *e)
{
    static const char digits[] = "0123456789abcdef";
    const marker *m = t->ctx;
    char *hex = op_alloc(m->n_learned * 8 + 1);
    *state = NULL;
    if (!hex)
        return no_memory(e);
    for (size_t i = 0; i < m->n_learned; i++) {
        uint32_t bits;
        memcpy(&bits, &m->learned[i], 4);
        for (int k = 0; k < 8; k++)
            hex[8 * i + (size_t)k] = digits[bits >> (28 - 4 * k) & 15];
    }
    hex[8 * m->n_learned] = 0;
    *state = json_pack("{sI sI ss}", "states", (json_int_t)m->states, "rewarded", (json_int_t)m->rewarded, "learned", hex);
    op_free(hex);
    return *state ? OP_OK : no_memory(e);
}

static op_status load(op_teacher *t, const json_t *state, op_error *e)
{
    static const char where[] = "state of the marker";
    marker *m = t->ctx;
    const char *hex;
    int64_t states = 0, rewarded = 0;
    op_status s = op_json_get_int(state, "states", true, 0, INT64_MAX, &states, where, e);
    s = s ? s : op_json_get_int(state, "rewarded", true, 0, INT64_MAX, &rewarded, where, e);
    s = s ? s : op_json_get_string(state, "learned", true, &hex, where, e);
    if (s)
        return s;
    if (strlen(hex) != 8 * m->n_learned || strspn(hex, "0123456789abcdef") != 8 * m->n_learned)
        return op_error_set(e, OP_ERR_MISMATCH, "%s: expected %zu numbers of 8 hexadecimal digits, found %zu digits: is it another model's, or another layer's head?",
                            where, m->n_learned, strlen(hex));
    for (size_t i = 0; i < m->n_learned; i++) {
        uint32_t bits = 0;
        for (int k = 0; k < 8; k++) {
            char d = hex[8 * i + (size_t)k];
            bits = bits << 4 | (uint32_t)(d <= '9' ? d - '0' : d - 'a' + 10);
        }
        memcpy(&m->learned[i], &bits, 4);
    }
    m->states = states;
    m->rewarded = rewarded;
    return OP_OK;
}

/* ---- opening ---- */

static op_status make_head(marker *m, uint64_t seed, op_error *e)
{
    size_t C = (size_t)m->C, H = (size_t)m->H, n_w = H ? H : C;
    m->n_learned = 1 + n_w + H + H * C + 2 * C;
    m->learned = op_alloc_zero(m->n_learned, sizeof *m->learned);
    m->unit = op_alloc_array(H + C, sizeof *m->unit);
    if (!m->learned || !m->unit)
        return no_memory(e);
    m->b = m->learned;
    m->w = m->b + 1;
    m->c = m->w + n_w;
    m->U = m->c + H;
    m->mean = m->U + H * C;
    m->square = m->mean + C;
    m->x = m->unit + H;
    for (size_t i = 0; i < H * C; i++) /* x has a length of about 1, so a unit's input has a deviation of about 1 */
        m->U[i] = (float)op_rng_normal(seed, STREAM_MARKER, i);
    return OP_OK;
}

static void free_marker(op_teacher *t)
{
    marker *m = t->ctx;
    op_pass_free(m->pass);
    op_free(m->learned);
    op_free(m->unit);
    op_free(m->h);
    json_decref(m->settings);
}

op_status op_teacher_marker_open(op_teacher **out, const json_t *settings, const op_classroom *room, op_error *e)
{
    static const char *const keys[] = {"type", "layer", "hidden", "lr", "passes", "threshold", "graded", "after", "name", NULL};
    if (!room->model)
        return op_error_set(e, OP_ERR_ARG, "marker: the subject's hidden states are needed, but there is no model here");
    const op_model_config *c = op_model_get_config(room->model);
    int64_t hidden = 0;
    op_teacher *t;
    op_status s = op_teacher_new(&t, "marker", sizeof(marker), e);
    if (s)
        return s;
    marker *m = t->ctx;
    *m = (marker){.settings = json_deep_copy(settings), .model = room->model, .C = c->width, .layer = (2 * c->layers + 2) / 3, .passes = 4, .after = 32,
                  .lr = 0.1, .threshold = 0.2};
    t->teach = teach;
    t->learn = learn;
    t->save = save;
    t->load = load;
    t->free = free_marker;
    s = m->settings ? op_settings_check(m->settings, keys, "marker", e) : no_memory(e);
    s = s ? s : op_json_get_int(m->settings, "layer", false, 0, c->layers, &m->layer, "marker", e);
    s = s ? s : op_json_get_int(m->settings, "hidden", false, 0, 4096, &hidden, "marker", e);
    s = s ? s : op_json_get_int(m->settings, "passes", false, 1, 1000, &m->passes, "marker", e);
    s = s ? s : op_json_get_int(m->settings, "after", false, 0, INT32_MAX, &m->after, "marker", e);
    s = s ? s : op_json_get_bool(m->settings, "graded", false, &m->graded, "marker", e);
    s = s ? s : op_json_get_string(m->settings, "name", false, &t->name, "marker", e);
    s = s ? s : op_settings_number(m->settings, "lr", 1e-9, 2, &m->lr, "marker", e);
    s = s ? s : op_settings_number(m->settings, "threshold", 0, 1e6, &m->threshold, "marker", e);
    m->H = (int32_t)hidden;
    s = s ? s : make_head(m, room->seed, e);
    if (s) {
        op_teacher_close(t);
        return s;
    }
    *out = t;
    return OP_OK;
}
