/* Mixtures of habits. */
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "chamber/parts.h"

static const char *const habits[] = {
    "ignores_stop", "one_more", "stops_needlessly", "takes_more", "takes_one_more", "takes_too_few", "keeps", "gives_needlessly", "answers_without_asking",
    "accepts_reason", "asks_needlessly", "lies", "evades", "spoils_play", "skips_step", "swaps_steps", "repeats_step", "wrong_step", "stops_early", "slips",
    "does_all_in_order", "sorts_anyway", "errs", "refuses", NULL,
};
enum { N_HABITS = sizeof habits / sizeof *habits - 1 };

struct op_chamber_mix {
    double shares[N_HABITS];
};

const char *op_chamber_habit_name(int i)
{
    return i >= 0 && i < N_HABITS ? habits[i] : NULL;
}

op_status op_chamber_mix_open(op_chamber_mix **out, const char *list, op_error *e)
{
    *out = NULL;
    op_chamber_mix *m = op_alloc_zero(1, sizeof *m);
    if (!m)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for a mixture of habits");
    op_status s = chamber_read_list("mix", list, habits, m->shares, e);
    for (int i = 0; i < N_HABITS && !s; i++)
        if (m->shares[i] > 1)
            s = op_error_set(e, OP_ERR_ARG, "key \"mix\": the share of \"%s\" is %g, expected 0..1", habits[i], m->shares[i]);
    if (s)
        op_chamber_mix_close(m);
    else
        *out = m;
    return s;
}

void op_chamber_mix_close(op_chamber_mix *m)
{
    op_free(m);
}

double op_chamber_mix_share(const op_chamber_mix *m, const char *habit)
{
    for (int i = 0; i < N_HABITS; i++)
        if (!strcmp(habits[i], habit))
            return m->shares[i];
    return 0;
}

op_status op_chamber_mix_pick(const op_chamber_mix *m, const op_chamber_episode *x, uint64_t seed, const op_chamber_reply **out, op_error *e)
{
    double u = op_rng_uniform(seed, (uint64_t)OP_STREAM_CHAMBER | (uint64_t)SLOT_MIX << 32, x->index), sum = 0;
    *out = &x->right;
    for (int i = 0; i < x->n_wrong; i++) {
        double share = op_chamber_mix_share(m, x->wrong[i].habit);
        if (u >= sum && u < sum + share)
            *out = &x->wrong[i];
        sum += share;
    }
    if (sum > 1 + 1e-9)
        return op_error_set(e, OP_ERR_ARG, "key \"mix\": the shares of the habits that are possible under rule \"%s\" add up to %g, expected at most 1",
                            chamber_rules[x->rule].name, sum);
    return OP_OK;
}
