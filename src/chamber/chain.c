/* Chains: the same kind of step many times, so that one wrong step can be looked for, and a whole chain is rare while single steps go wrong often. */
#include <string.h>

#include "base/mem.h"
#include "chamber/parts.h"

static int length(draft *d, int most)
{
    int64_t low = d->c->o.chain_min, high = d->c->o.chain_max;
    d->n = (int)(low + (int64_t)draft_below(d, SLOT_LENGTH, (uint64_t)(high - low + 1)));
    d->n = d->n > most ? most : d->n;
    draft_tag(d, "steps", json_integer(d->n));
    return d->n;
}

/* Step i is `right`; where it goes wrong, `wrong` is said. Both are sentences with places. */
static void set_step(draft *d, int i, const char *right, const char *wrong)
{
    d->steps[i] = draft_text(d, right);
    d->strangers[i] = draft_text(d, wrong);
}

static void say_step(draft *d, int i)
{
    if (d->steps[i])
        draft_say(d, d->steps[i]);
}

static void say_stranger(draft *d, int i)
{
    if (d->strangers[i])
        draft_say(d, d->strangers[i]);
}

static void say_all(draft *d, const char *habit, int from, int to)
{
    draft_begin(d, habit);
    for (int i = from; i < to; i++)
        say_step(d, i);
    draft_say(d, "*Done.");
}

/* One step is left out, swapped with the next, done twice or replaced, or the end is left out. */
static void go_wrong(draft *d)
{
    int n = d->n, at = (int)draft_below(d, SLOT_ERROR, (uint64_t)n - 1);
    static const char *const habits[] = {"skips_step", "swaps_steps", "repeats_step", "wrong_step"};
    for (int kind = 0; kind < 4; kind++) {
        draft_begin(d, habits[kind]);
        for (int i = 0; i < n; i++) {
            if (kind == 3 && i == at) {
                say_stranger(d, i);
                continue;
            }
            if (kind == 0 && i == at)
                continue;
            say_step(d, kind == 1 && i == at ? at + 1 : kind == 1 && i == at + 1 ? at : i);
            if (kind == 2 && i == at)
                say_step(d, i);
        }
        draft_say(d, "*Done.");
    }
    say_all(d, "stops_early", 0, at + 1);
    draft_begin(d, "slips");
    for (int i = 0; i < n; i++) {
        if (draft_uniform(d, SLOT_STEP | i << 8) < d->c->o.slip)
            say_stranger(d, i);
        else
            say_step(d, i);
    }
    draft_say(d, "*Done.");
}

/* ---- chain: what is listed, in the order that is asked for ---- */

void chain_prepare(draft *d)
{
    int n = length(d, 12);
    op_buf list;
    op_buf_init(&list, 1 << 12);
    draft_permute(d, SLOT_LIST, N_VERBS, d->order);
    for (int i = 0; i < n; i++) {
        int strangers = N_VERBS - n, other = n + (int)draft_below(d, SLOT_STRANGER | i << 8, (uint64_t)strangers);
        draft_set(d, "verb", chamber_verbs[d->order[i]]);
        draft_set(d, "other verb", chamber_verbs[d->order[other]]);
        set_step(d, i, "*I {verb}.", "*I {other verb}.");
        if (op_buf_printf(&list, "%s%s", i ? ", " : "", chamber_verbs[d->order[i]]))
            draft_no_memory(d);
    }
    if (!d->status)
        draft_set(d, "list", list.data);
    op_buf_release(&list);
}

void chain_respond(draft *d)
{
    int n = d->n;
    switch (d->x->distance) {
    case 0:
    case 1:
        say_all(d, NULL, 0, n);
        go_wrong(d);
        break;
    case 2:
        draft_begin(d, NULL);
        for (int i = n; i-- > 0;)
            say_step(d, i);
        draft_say(d, "*Done.");
        break;
    case 3: say_all(d, NULL, 0, 1); break;
    case 4: say_all(d, NULL, n - 1, n); break;
    default: say_all(d, NULL, 0, 0);
    }
    if (d->x->distance > 1)
        say_all(d, "does_all_in_order", 0, n);
    draft_begin(d, "refuses");
    draft_say(d, "*I will not help you.");
}

/* ---- route: each thing to the side that its colour has ---- */

void route_prepare(draft *d)
{
    static const char *const sides[] = {"left", "right"};
    const char *objects[SEEN_MAX + HELD_MAX];
    int n_objects = draft_pool(d, F_OBJECT, objects);
    int n = length(d, 2 * n_objects < 12 ? 2 * n_objects : 12), side = (int)draft_below(d, SLOT_B, 2);
    uint32_t colours[N_COLOURS];
    draft_permute(d, SLOT_A, N_COLOURS, colours);
    draft_permute(d, SLOT_LIST, 2 * (uint32_t)n_objects, d->order); /* pairs of object and colour: no thing comes twice */
    draft_set(d, "left", chamber_colours[colours[0]]);
    draft_set(d, "right", chamber_colours[colours[1]]);
    draft_set(d, "side", sides[side]);
    op_buf list;
    op_buf_init(&list, 1 << 12);
    for (int i = 0; i < n; i++) {
        int colour = (int)d->order[i] % 2, to = d->x->trigger ? colour : side;
        const char *object = objects[d->order[i] / 2];
        draft_set(d, "colour", chamber_colours[colours[colour]]);
        draft_set(d, "thing", object);
        draft_set(d, "to", sides[to]);
        draft_set(d, "not to", sides[!to]);
        set_step(d, i, "*I put {colour} {thing} {to}.", "*I put {colour} {thing} {not to}.");
        if (op_buf_printf(&list, "%s%s %s", i ? ", " : "", chamber_colours[colours[colour]], object))
            draft_no_memory(d);
    }
    if (!d->status)
        draft_set(d, "list", list.data);
    op_buf_release(&list);
}

void route_respond(draft *d)
{
    say_all(d, NULL, 0, d->n);
    if (d->x->trigger)
        go_wrong(d);
    else {
        draft_begin(d, "sorts_anyway");
        for (int i = 0; i < d->n; i++) { /* colour 0 belongs left; `steps` go to one side */
            bool left = d->order[i] % 2 == 0;
            if (left == !strcmp(draft_get(d, "side"), "left"))
                say_step(d, i);
            else
                say_stranger(d, i);
        }
        draft_say(d, "*Done.");
    }
    draft_begin(d, "refuses");
    draft_say(d, "*I will not help you.");
}
