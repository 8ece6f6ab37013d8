/* differential: differential reinforcement. Each cue is asked in one batch with its nearest neighbour that must be answered differently, so that what
 * tells them apart is all that is left to learn. Neighbours come from the source (tags that tie two cues), or are mined: the nearest in the model's own
 * hidden space. `random` is the control. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "base/mem.h"
#include "methods/common.h"
#include "methods/methods.h"

enum { TAGS, MINED, RANDOM };

typedef struct settings {
    int neighbours;
    char *differ, *ties;
    int64_t pool, layer;
} settings;

static const op_option table[] = {
    {"neighbours", OP_OPTION_CHOICE, offsetof(settings, neighbours), "tags", 0, 0, "tags|mined|random", "tied to the cue by a tag; nearest in hidden space; or any, as a control"},
    {"differ", OP_OPTION_STRING, offsetof(settings, differ), "class", 0, 0, NULL, "the tag in which a neighbour differs from its cue"},
    {"ties", OP_OPTION_LIST, offsetof(settings, ties), "pair,topic", 0, 0, NULL, "tags that tie, where equal; \"neighbour_of\" names another cue's \"id\" and always ties"},
    {"pool", OP_OPTION_INT, offsetof(settings, pool), "1", 1, 256, NULL, "pairs are looked for among this many times prompts cues"},
    {"layer", OP_OPTION_INT, offsetof(settings, layer), "-1", -1, 1000, NULL, "mined: of the stream that enters this layer; -1: two thirds up"},
    {0},
};

typedef struct pool {
    op_cue **cues;
    size_t n;
    float *at; /* mined: [n, width], of length 1 around the pool's middle */
    int32_t width;
    bool *taken;
} pool;

static bool equal_tag(const op_cue *a, const char *key_a, const op_cue *b, const char *key_b)
{
    const json_t *x = json_object_get(a->tags, key_a), *y = json_object_get(b->tags, key_b);
    return x && y && json_equal(x, y);
}

static bool tied(const op_cue *a, const op_cue *b, const char *ties)
{
    if (equal_tag(a, "neighbour_of", b, "id") || equal_tag(b, "neighbour_of", a, "id"))
        return true;
    for (const char *at = ties; at && *at; at += strcspn(at, ","), at += *at == ',') {
        char key[64] = "";
        size_t n = strcspn(at, ",");
        memcpy(key, at, n < sizeof key ? n : sizeof key - 1);
        if (equal_tag(a, key, b, key))
            return true;
    }
    return false;
}

static op_status place_pool(op_session *s, const settings *o, pool *p, op_error *e)
{
    const op_model_config *c = op_model_get_config(op_session_subject(s)->model);
    int32_t layer = o->layer < 0 ? 2 * c->layers / 3 : (int32_t)o->layer;
    p->width = c->width;
    p->at = op_alloc_array(p->n * (size_t)p->width, sizeof *p->at);
    op_status status = p->at ? method_hidden(s, p->cues, p->n, layer, p->at, e) : method_no_memory(e);
    for (int32_t k = 0; !status && k < p->width; k++) { /* what all prompts share says nothing of who is near */
        double mean = 0;
        for (size_t i = 0; i < p->n; i++)
            mean += (double)p->at[i * (size_t)p->width + (size_t)k] / (double)p->n;
        for (size_t i = 0; i < p->n; i++)
            p->at[i * (size_t)p->width + (size_t)k] -= (float)mean;
    }
    for (size_t i = 0; !status && i < p->n; i++) {
        float *x = p->at + i * (size_t)p->width;
        double square = 1e-30;
        for (int32_t k = 0; k < p->width; k++)
            square += (double)x[k] * (double)x[k];
        for (int32_t k = 0; k < p->width; k++)
            x[k] = (float)((double)x[k] / sqrt(square));
    }
    return status;
}

/* How near b is to a: the cosine, a number drawn by chance, or whether a tag ties them. -INFINITY: it is no neighbour. */
static double nearness(op_session *s, const settings *o, const pool *p, size_t a, size_t b)
{
    double sum = 0;
    const op_cue *x = p->cues[a], *y = p->cues[b];
    if (!json_object_get(x->tags, o->differ) || equal_tag(x, o->differ, y, o->differ))
        return -INFINITY;
    if (o->neighbours == TAGS)
        return tied(x, y, o->ties) ? 1 : -INFINITY;
    if (o->neighbours == RANDOM)
        return (double)(op_session_random(s, 2) >> 11);
    for (int32_t k = 0; k < p->width; k++)
        sum += (double)p->at[a * (size_t)p->width + (size_t)k] * (double)p->at[b * (size_t)p->width + (size_t)k];
    return sum;
}

/* Cue, neighbour, cue, neighbour, ...: at most `most` of them, in the order of the pool. */
static size_t choose_pairs(op_session *s, const settings *o, pool *p, size_t most, op_cue **out)
{
    size_t n = 0;
    for (size_t i = 0; i < p->n && n + 2 <= most; i++) {
        size_t best = p->n;
        double nearest = -INFINITY, x;
        for (size_t j = 0; !p->taken[i] && j < p->n; j++)
            if (j != i && !p->taken[j] && (x = nearness(s, o, p, i, j)) > nearest) {
                nearest = x;
                best = j;
            }
        if (best == p->n)
            continue;
        p->taken[i] = p->taken[best] = true;
        out[n++] = p->cues[i];
        out[n++] = p->cues[best];
    }
    return n;
}

static op_status learn_pairs(op_session *s, const op_stage *stage, pool *p, op_error *e)
{
    const settings *o = stage->settings;
    answers a = {0};
    op_cue **pairs = op_alloc_array(p->n + 1, sizeof *pairs);
    p->taken = op_alloc_zero(p->n + 1, sizeof *p->taken);
    op_status status = pairs && p->taken ? OP_OK : method_no_memory(e);
    if (!status && o->neighbours == MINED)
        status = place_pool(s, o, p, e);
    size_t n = status ? 0 : choose_pairs(s, o, p, (size_t)stage->prompts, pairs);
    if (!status && !n)
        status = op_error_set(e, OP_ERR_ARG, "stage \"%s\": none of %zu cues has a neighbour with another \"%s\"", stage->name, p->n, o->differ);
    if (!status)
        status = method_answers_to(s, stage, pairs, n, &a, e);
    if (!status)
        status = method_add_groups(s, &a, e);
    method_answers_release(&a);
    op_free(pairs);
    op_free(p->taken);
    op_free(p->at);
    return status;
}

static op_status learn_round(op_session *s, const op_stage *stage, op_error *e)
{
    const settings *o = stage->settings;
    pool p = {0};
    op_status status = stage->prompts < 2 ? op_error_set(e, OP_ERR_ARG, "stage \"%s\": key \"prompts\" is %lld, expected 2 or more", stage->name, (long long)stage->prompts)
                                          : method_pool(s, o->pool, &p.cues, &p.n, e);
    if (!status)
        status = learn_pairs(s, stage, &p, e);
    op_free(p.cues);
    return status;
}

const op_method op_method_differential = {.name = "differential", .help = "each cue in one batch with its nearest neighbour that must be answered differently",
                                          .table = table, .settings_size = sizeof(settings), .round = learn_round};
