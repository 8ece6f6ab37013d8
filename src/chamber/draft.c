/* Draws, values, and sentences with places. */
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "chamber/parts.h"

op_status draft_no_memory(draft *d)
{
    return d->status = d->status ? d->status : op_error_set(d->e, OP_ERR_NOMEM, "out of memory for an episode of the chamber");
}

static uint64_t stream(int slot)
{
    return (uint64_t)OP_STREAM_CHAMBER | (uint64_t)slot << 32;
}

uint64_t draft_below(draft *d, int slot, uint64_t n)
{
    return op_rng_below((uint64_t)d->c->o.seed, stream(slot), d->base, n);
}

double draft_uniform(draft *d, int slot)
{
    return op_rng_uniform((uint64_t)d->c->o.seed, stream(slot), d->base);
}

void draft_permute(draft *d, int slot, uint32_t n, uint32_t *out)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = i;
    for (uint32_t i = n; i > 1; i--) { /* Fisher-Yates; the upper bits of the stream tell the places apart */
        uint32_t j = (uint32_t)draft_below(d, slot | (int)i << 16, i), x = out[i - 1];
        out[i - 1] = out[j];
        out[j] = x;
    }
}

/* ---- values ---- */

static int count(const char *const *list)
{
    int n = 0;
    while (list[n])
        n++;
    return n;
}

/* The setting stays the same within a block of episodes. */
static uint64_t turn_of(const draft *d, feature f)
{
    return f <= F_WATCH ? d->base / (uint64_t)d->c->o.block : d->base;
}

const char *draft_value(draft *d, feature f, const values *list, int slot)
{
    int n_seen = count(list->seen), n_held = count(list->held), settings = d->c->o.settings;
    bool varies = d->c->varies[f], held = false;
    uint64_t at = 0;
    if (varies || slot) {
        if (!varies || !n_held)
            settings = OP_CHAMBER_SEEN;
        uint64_t n = (uint64_t)(settings == OP_CHAMBER_SEEN ? n_seen : settings == OP_CHAMBER_HELD_OUT ? n_held : n_seen + n_held);
        at = op_rng_below((uint64_t)d->c->o.seed, stream((SLOT_FEATURE + (int)f) | slot << 8), turn_of(d, f), n);
        held = settings == OP_CHAMBER_HELD_OUT || at >= (uint64_t)n_seen;
        if (settings == OP_CHAMBER_BOTH && held)
            at -= (uint64_t)n_seen;
    }
    d->held += held;
    const char *value = held ? list->held[at] : list->seen[at];
    if (slot == 0 && (f == F_LAYOUT || f == F_WORDING)) /* too long to name by themselves */
        draft_tag(d, chamber_features[f].name, json_sprintf("%s-%d", held ? "held" : "seen", (int)at));
    else if (slot == 0)
        draft_tag(d, chamber_features[f].name, json_string(value));
    return value;
}

int draft_pool(draft *d, feature f, const char **out)
{
    const values *list = &chamber_features[f].values;
    int settings = d->c->varies[f] ? d->c->o.settings : OP_CHAMBER_SEEN, n = 0;
    for (int i = 0; settings != OP_CHAMBER_HELD_OUT && list->seen[i]; i++)
        out[n++] = list->seen[i];
    for (int i = 0; settings != OP_CHAMBER_SEEN && list->held[i]; i++)
        out[n++] = list->held[i];
    d->held += settings == OP_CHAMBER_HELD_OUT;
    return n;
}

void draft_object(draft *d)
{
    draft_set(d, "object", draft_value(d, F_OBJECT, &chamber_features[F_OBJECT].values, 0));
}

/* ---- places ---- */

const char *draft_get(draft *d, const char *name)
{
    for (int i = 0; i < d->n_vars; i++)
        if (!strcmp(d->names[i], name))
            return d->texts[i];
    return "";
}

void draft_expand(draft *d, const char *text, op_buf *out)
{
    while (*text && !d->status) {
        size_t n = strcspn(text, "{");
        if (op_buf_add(out, text, n))
            draft_no_memory(d);
        text += n;
        if (*text != '{')
            continue;
        char name[24] = "";
        n = strcspn(text, "}");
        memcpy(name, text + 1, n - 1 < sizeof name ? n - 1 : sizeof name - 1);
        text += n + 1;
        if (op_buf_puts(out, draft_get(d, name)))
            draft_no_memory(d);
    }
}

char *draft_text(draft *d, const char *text)
{
    op_buf b;
    op_buf_init(&b, 1 << 16);
    draft_expand(d, text, &b);
    char *out = d->status ? NULL : op_buf_take(&b);
    if (!out)
        draft_no_memory(d);
    op_buf_release(&b);
    return out;
}

void draft_set(draft *d, const char *name, const char *text)
{
    char *copy = draft_text(d, text);
    if (!copy)
        return;
    for (int i = 0; i < d->n_vars; i++)
        if (!strcmp(d->names[i], name)) {
            op_free(d->texts[i]);
            d->texts[i] = copy;
            return;
        }
    d->names[d->n_vars] = name;
    d->texts[d->n_vars++] = copy;
}

void draft_set_int(draft *d, const char *name, int64_t x)
{
    op_buf b;
    op_buf_init(&b, 64);
    if (op_buf_printf(&b, "%lld", (long long)x))
        draft_no_memory(d);
    else
        draft_set(d, name, b.data);
    op_buf_release(&b);
}

void draft_tag(draft *d, const char *key, json_t *value)
{
    if (d->status)
        json_decref(value);
    else if (!value || json_object_set_new(d->x->tags, key, value))
        draft_no_memory(d);
}

/* ---- replies ---- */

static void release_reply(op_chamber_reply *r)
{
    op_free(r->text);
    *r = (op_chamber_reply){0};
}

/* What went wrong by chance nowhere is no wrong reply. */
void draft_end(draft *d)
{
    op_chamber_episode *x = d->x;
    if (d->reply && d->reply != &x->right && !d->status) {
        if (strcmp(d->reply->text, x->right.text))
            x->n_wrong++;
        else
            release_reply(d->reply);
    }
    d->reply = NULL;
}

void draft_begin(draft *d, const char *habit)
{
    draft_end(d);
    d->reply = habit ? &d->x->wrong[d->x->n_wrong] : &d->x->right;
    d->reply->habit = habit;
}

void draft_say(draft *d, const char *sentence)
{
    op_chamber_reply *r = d->reply;
    op_buf b;
    op_buf_init(&b, 1 << 16);
    if (r->text && (op_buf_puts(&b, r->text) || op_buf_puts(&b, " ")))
        draft_no_memory(d);
    op_chamber_segment *s = &r->segments[r->n++];
    *s = (op_chamber_segment){.start = (int32_t)b.len, .action = sentence[0] == '*'};
    draft_expand(d, sentence + s->action, &b);
    s->end = (int32_t)b.len;
    op_free(r->text);
    r->text = d->status ? NULL : op_buf_take(&b);
    if (!r->text)
        draft_no_memory(d);
    op_buf_release(&b);
}
