/* generalise: against learning the setting instead of the cue. Of a larger pool the cues are chosen whose irrelevant features differ most from each other,
 * and distractors grow stronger as the level is mastered. `alike` chooses the most similar instead: blocked training, the control. Overtraining, then
 * weaning, are two stages: a second one with schedule: {type: weaning}. */
#include <stddef.h>
#include <string.h>

#include "base/mem.h"
#include "methods/common.h"
#include "methods/methods.h"

enum { SPREAD, ALIKE, DRAWN };

typedef struct settings {
    int choose;
    char *vary, *rising;
    int64_t pool, first, last, over;
    double criterion;
} settings;

static const op_option table[] = {
    {"choose", OP_OPTION_CHOICE, offsetof(settings, choose), "spread", 0, 0, "spread|alike|drawn", "cues whose features differ most, or least, or as they come"},
    {"vary", OP_OPTION_LIST, offsetof(settings, vary), "place,time,name,role,tone,layout,watch", 0, 0, NULL, "tags of the irrelevant features"},
    {"pool", OP_OPTION_INT, offsetof(settings, pool), "4", 1, 256, NULL, "cues are chosen among this many times prompts"},
    {"rising", OP_OPTION_STRING, offsetof(settings, rising), "distractor_strength", 0, 0, NULL, "tag with a number that may not pass the level; null: none"},
    {"first", OP_OPTION_INT, offsetof(settings, first), "0", 0, 1000, NULL, "the level at first"},
    {"last", OP_OPTION_INT, offsetof(settings, last), "3", 0, 1000, NULL, "and at last"},
    {"criterion", OP_OPTION_FLOAT, offsetof(settings, criterion), "0.8", 0, 1, NULL, "share of successes before the level rises"},
    {"over", OP_OPTION_INT, offsetof(settings, over), "64", 1, 1 << 20, NULL, "trials by which that is judged"},
    {0},
};

/* Features that a and b have in common. */
static int64_t shared_features(const op_cue *a, const op_cue *b, const char *list)
{
    int64_t n = 0;
    for (const char *at = list; at && *at; at += strcspn(at, ","), at += *at == ',') {
        char key[64] = "";
        size_t size = strcspn(at, ",");
        memcpy(key, at, size < sizeof key ? size : sizeof key - 1);
        const json_t *x = json_object_get(a->tags, key), *y = json_object_get(b->tags, key);
        n += x && y && json_equal(x, y);
    }
    return n;
}

/* What speaks against choosing cue c after those chosen. Too strong a distractor speaks against it more than anything else. */
static int64_t cost(const settings *o, const op_cue *c, op_cue *const *chosen, size_t n, int64_t level)
{
    int64_t shared = 0, strength = o->rising ? json_integer_value(json_object_get(c->tags, o->rising)) : 0;
    for (size_t i = 0; o->choose != DRAWN && i < n; i++)
        shared += shared_features(c, chosen[i], o->vary);
    strength = strength < 0 ? 0 : strength > 1000 ? 1000 : strength;
    return (strength > level ? strength << 32 : 0) + (o->choose == ALIKE ? -shared : shared);
}

/* The first n of the pool become the chosen ones. */
static void choose(const settings *o, op_cue **pool, size_t n_pool, size_t n, int64_t level)
{
    for (size_t i = 0; i < n; i++) {
        size_t best = i;
        int64_t least = INT64_MAX;
        for (size_t j = i; j < n_pool; j++) {
            int64_t x = cost(o, pool[j], pool, i, level);
            if (x < least) {
                least = x;
                best = j;
            }
        }
        op_cue *c = pool[best];
        memmove(pool + i + 1, pool + i, (best - i) * sizeof *pool);
        pool[i] = c;
    }
}

static op_status learn_round(op_session *s, const op_stage *stage, op_error *e)
{
    const settings *o = stage->settings;
    int64_t level = o->first + method_level(s), right = 0;
    answers a = {0};
    op_cue **pool;
    size_t n;
    op_status status = method_pool(s, o->pool, &pool, &n, e);
    if (!status) {
        choose(o, pool, n, (size_t)stage->prompts, level);
        status = method_answers_to(s, stage, pool, (size_t)stage->prompts, &a, e);
    }
    if (!status)
        status = method_add_groups(s, &a, e);
    for (size_t i = 0; !status && i < a.n; i++)
        right += a.success[i];
    if (!status)
        status = method_climb(s, right, (int64_t)a.n, o->criterion, o->over, o->last - o->first, e);
    method_answers_release(&a);
    op_free(pool);
    return status;
}

const op_method op_method_generalise = {.name = "generalise", .help = "cues whose irrelevant features vary, with distractors that grow stronger", .table = table,
                                        .settings_size = sizeof(settings), .round = learn_round};
