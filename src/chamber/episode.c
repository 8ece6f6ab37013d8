/* From an index to an episode. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "chamber/parts.h"

static int draw_rule(draft *d)
{
    double u = draft_uniform(d, SLOT_RULE);
    int rule = 0, last = 0;
    for (; rule < chamber_n_rules; rule++) {
        u -= d->c->weights[rule];
        if (d->c->weights[rule] > 0)
            last = rule;
        if (u < 0)
            return rule;
    }
    return last;
}

static int nearest_untriggered(const rule_type *r)
{
    for (int i = 0; i < r->n_cues; i++)
        if (!r->cues[i].trigger)
            return i;
    return 0;
}

/* forced: a distance, or -1: as the options say. */
static int draw_distance(draft *d, uint64_t index, int forced)
{
    const op_chamber_options *o = &d->c->o;
    int most = d->rule->n_cues - 1, low = (int)o->nearest, high = (int)o->farthest;
    if (forced >= 0)
        return forced < most ? forced : most;
    if (o->pairs)
        return index % 2 ? nearest_untriggered(d->rule) : 0;
    high = high < most ? high : most;
    low = low < high ? low : high;
    if (!most || draft_uniform(d, SLOT_NEIGHBOUR) >= o->neighbours)
        return 0;
    return low + (int)draft_below(d, SLOT_DISTANCE, (uint64_t)(high - low + 1));
}

/* ---- the parts of the prompt ---- */

static const char *watch_hint(draft *d)
{
    int which = d->c->o.watched;
    if (which == 0)
        which = d->c->varies[F_WATCH] ? 1 + (int)op_rng_below((uint64_t)d->c->o.seed, (uint64_t)OP_STREAM_CHAMBER | (uint64_t)SLOT_WATCH << 32,
                                                              d->base / (uint64_t)d->c->o.block, 3) : 3;
    if (which == 3) {
        draft_tag(d, "watch", json_string(""));
        return "";
    }
    draft_tag(d, "monitored", json_boolean(which == 1));
    return draft_value(d, F_WATCH, which == 1 ? &chamber_watched : &chamber_unwatched, 0);
}

static const char *distractor(draft *d, int *strength)
{
    *strength = 0;
    if (draft_uniform(d, SLOT_DISTRACT) >= d->c->o.distractors)
        return "";
    *strength = 1 + (int)draft_below(d, SLOT_STRENGTH, (uint64_t)d->c->o.distractor_strength);
    return draft_value(d, F_DISTRACTOR, &chamber_distractors[*strength - 1], 0);
}

static void set_misleading(draft *d)
{
    const char *what = d->rule->misleading[d->x->trigger];
    bool there = what && draft_uniform(d, SLOT_MISLEAD) < d->c->o.misleading;
    draft_set(d, "misleading", "");
    draft_tag(d, "misleading", json_boolean(there));
    if (!there)
        return;
    draft_set(d, "carrier", draft_value(d, F_CARRIER, &chamber_features[F_CARRIER].values, 0));
    draft_set(d, "misleading text", what);
    draft_set(d, "misleading", "A {carrier} says: {misleading text}.");
}

/* Sentences that are there, with one space between them. */
static char *join(draft *d, const char *const *parts, size_t n)
{
    op_buf b;
    op_buf_init(&b, 1 << 16);
    for (size_t i = 0; i < n && !d->status; i++) {
        if (parts[i][0] && b.len && op_buf_puts(&b, " "))
            draft_no_memory(d);
        draft_expand(d, parts[i], &b);
    }
    char *out = d->status ? NULL : op_buf_take(&b);
    if (!out)
        draft_no_memory(d);
    op_buf_release(&b);
    return out;
}

static void write_prompt(draft *d)
{
    const char *watch = watch_hint(d);
    int strength, where = (int)draft_below(d, SLOT_WHERE, 3);
    const char *noise = distractor(d, &strength);
    draft_tag(d, "distractor_strength", json_integer(strength));
    set_misleading(d);
    const char *cue = draft_value(d, F_WORDING, &d->rule->cues[d->x->distance].wordings, 0);
    const char *const parts[] = {watch, where == 0 ? noise : "", d->rule->situation, where == 1 ? noise : "", draft_get(d, "misleading"), cue, draft_get(d, "reason"),
                                 where == 2 ? noise : ""};
    char *body = join(d, parts, sizeof parts / sizeof *parts);
    if (!body)
        return;
    draft_set(d, "body", body);
    op_free(body);
    d->x->prompt = draft_text(d, draft_value(d, F_LAYOUT, &chamber_features[F_LAYOUT].values, 0));
}

static void write_replies(draft *d)
{
    if (d->rule->respond) {
        d->rule->respond(d);
        draft_end(d);
        return;
    }
    for (int right = 1; right >= 0; right--) /* the right one first */
        for (const reply_row *r = d->rule->replies; r->kinds; r++) {
            if (!(r->kinds >> d->kind & 1) || (r->habit == NULL) != right)
                continue;
            draft_begin(d, r->habit);
            for (int i = 0; i < 5 && r->sentences[i]; i++)
                draft_say(d, r->sentences[i]);
        }
    draft_end(d);
}

static void write_setting(draft *d)
{
    static const feature setting[] = {F_PLACE, F_TIME, F_NAME, F_ROLE, F_TONE};
    for (size_t i = 0; i < sizeof setting / sizeof *setting; i++) {
        const feature_row *f = &chamber_features[setting[i]];
        draft_set(d, f->name, draft_value(d, setting[i], &f->values, 0));
    }
}

static op_status make(const op_chamber *c, uint64_t index, int distance, op_chamber_episode *out, op_error *e)
{
    *out = (op_chamber_episode){.index = index};
    draft d = {.c = c, .x = out, .base = c->o.pairs ? index & ~(uint64_t)1 : index, .e = e};
    out->rule = draw_rule(&d);
    d.rule = &chamber_rules[out->rule];
    out->distance = draw_distance(&d, index, distance);
    out->trigger = d.rule->cues[out->distance].trigger;
    d.kind = !out->trigger;
    out->tags = json_object();
    if (!out->tags)
        draft_no_memory(&d);
    draft_tag(&d, "rule", json_string(d.rule->name));
    draft_tag(&d, "class", json_sprintf("%s-%s", d.rule->name, out->trigger ? "cue" : "neighbour"));
    draft_tag(&d, "distance", json_integer(out->distance));
    draft_tag(&d, "trigger", json_boolean(out->trigger));
    if (c->o.pairs)
        draft_tag(&d, "pair", json_integer((json_int_t)(index / 2)));
    write_setting(&d);
    d.rule->prepare(&d);
    write_prompt(&d);
    if (!d.status)
        write_replies(&d);
    draft_tag(&d, "held_out", json_boolean(d.held > 0));
    draft_tag(&d, "n_held_out", json_integer(d.held));
    draft_tag(&d, "reference", d.status ? NULL : json_string(out->right.text));
    if (distance < 0)
        draft_tag(&d, "episode", json_sprintf("%sindex=%llu", c->spec, (unsigned long long)index));
    else
        draft_tag(&d, "episode", json_sprintf("%sindex=%llu distance=%d", c->spec, (unsigned long long)index, distance));
    for (int i = 0; i < d.n_vars; i++)
        op_free(d.texts[i]);
    for (int i = 0; i < 16; i++) {
        op_free(d.steps[i]);
        op_free(d.strangers[i]);
    }
    if (d.status)
        op_chamber_release(out);
    return d.status;
}

op_status op_chamber_make(const op_chamber *c, uint64_t index, op_chamber_episode *out, op_error *e)
{
    return make(c, index, -1, out, e);
}

op_status op_chamber_neighbour(const op_chamber *c, uint64_t index, int distance, op_chamber_episode *out, op_error *e)
{
    if (distance < 0) {
        *out = (op_chamber_episode){0};
        return op_error_set(e, OP_ERR_ARG, "a neighbour's distance is %d, expected 0 or more", distance);
    }
    return make(c, index, distance, out, e);
}

void op_chamber_release(op_chamber_episode *x)
{
    op_free(x->prompt);
    op_free(x->right.text);
    for (int i = 0; i < OP_CHAMBER_WRONG_MAX; i++)
        op_free(x->wrong[i].text);
    json_decref(x->tags);
    *x = (op_chamber_episode){0};
}

/* ---- back from its words ---- */

static op_status read_words(const char *words, op_chamber_options *o, uint64_t *index, int *distance, op_error *e)
{
    bool found = false;
    op_status s = OP_OK;
    while (!s && *words) {
        words += strspn(words, " ");
        size_t n = strcspn(words, " ");
        char word[512] = "";
        if (n >= sizeof word)
            return op_error_set(e, OP_ERR_FORMAT, "episode \"%.40s...\": a word is too long", words);
        memcpy(word, words, n);
        words += n;
        if (!strncmp(word, "index=", 6)) {
            char *end;
            *index = strtoull(word + 6, &end, 10);
            found = end != word + 6 && !*end;
        } else if (!strncmp(word, "distance=", 9))
            *distance = atoi(word + 9);
        else if (n)
            s = op_config_set(o, op_chamber_table, word, e);
    }
    return s || found ? s : op_error_set(e, OP_ERR_FORMAT, "an episode's words lack \"index=\"");
}

op_status op_chamber_recall(const char *words, op_chamber_episode *out, op_error *e)
{
    *out = (op_chamber_episode){0};
    op_chamber_options o;
    op_chamber *c = NULL;
    uint64_t index = 0;
    int distance = -1;
    op_status s = op_config_init(&o, op_chamber_table, e);
    if (s)
        return s;
    s = read_words(words, &o, &index, &distance, e);
    s = s ? s : op_chamber_open(&c, &o, e);
    s = s ? s : make(c, index, distance, out, e);
    op_chamber_close(c);
    op_config_release(&o, op_chamber_table);
    return s;
}
