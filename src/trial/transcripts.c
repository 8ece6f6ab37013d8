/* The answers of a stage that show best what was learned and what was not. */
#include <math.h>

#include "base/mem.h"
#include "io/json.h"
#include "trial/session_parts.h"

enum { EACH = 2 /* of the best and of the worst */ };

/* One that was chosen in an earlier round, or a trial of this one. */
typedef struct candidate {
    json_t *old;
    const op_trial *trial;
    double score;
    bool chosen;
} candidate;

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the transcripts of a stage");
}

/* The reward, or without one the mean of the marks; NAN: nobody said anything, or the policy did not sample it. */
static double score_of(const op_trial *t)
{
    double sum = 0;
    for (int32_t i = 0; i < t->n_marks; i++)
        sum += t->marks[i].value * (t->marks[i].end - t->marks[i].start);
    return !t->logprobs ? NAN : t->has_reward ? t->reward : t->n_marks ? sum / t->n_response : NAN;
}

/* ---- words ---- */

static op_status add_text(const op_trial *t, const op_tokenizer *k, int32_t from, int32_t to, op_buf *out, op_error *e)
{
    char *text;
    op_status status = op_trial_text(t, k, from, to, &text, e);
    if (!status && op_buf_puts(out, text))
        status = no_memory(e);
    op_free(text);
    return status;
}

/* The response as it was marked, [+good+] and [-bad-], and whether it was done again. Stays empty where there is nothing to say. */
static op_status note_of(const op_trial *t, const op_tokenizer *k, bool redo, op_buf *out, op_error *e)
{
    float *m = op_alloc_zero((size_t)t->n_response + 1, sizeof *m);
    op_status status = m ? OP_OK : no_memory(e);
    if (!status && redo && op_buf_printf(out, "done again from token %d%s", t->redo_at, t->n_marks ? "; " : ""))
        status = no_memory(e);
    if (!status && t->n_marks) {
        op_trial_token_marks(t, m);
        status = op_buf_puts(out, "marked: ") ? no_memory(e) : OP_OK;
    }
    for (int32_t i = 0, end; !status && t->n_marks && i < t->n_response; i = end) {
        const char *sign = m[i] > 0 ? "+" : "-";
        for (end = i + 1; end < t->n_response && m[end] == m[i]; end++)
            ;
        if (m[i] != 0 && op_buf_printf(out, "[%s", sign))
            status = no_memory(e);
        if (!status)
            status = add_text(t, k, i, end, out, e);
        if (!status && m[i] != 0 && op_buf_printf(out, "%s]", sign))
            status = no_memory(e);
    }
    op_free(m);
    return status;
}

/* The last message of the dialogue, or the prompt as it stands. */
static op_status prompt_of(const op_trial *t, const op_tokenizer *k, op_buf *out, op_error *e)
{
    size_t n = json_array_size(t->messages);
    const char *words = json_string_value(json_object_get(json_array_get(t->messages, n ? n - 1 : 0), "content"));
    const op_trial prompt = {.response = t->prompt, .n_response = t->n_prompt};
    if (!words)
        return add_text(&prompt, k, 0, t->n_prompt, out, e);
    return op_buf_puts(out, words) ? no_memory(e) : OP_OK;
}

static op_status transcript_of(const op_session *s, const candidate *c, bool redo, json_t **out, op_error *e)
{
    const op_tokenizer *k = s->subject.chat.tokenizer;
    op_buf text[3];
    for (int i = 0; i < 3; i++)
        op_buf_init(&text[i], OP_JSON_BYTES_MAX);
    op_status status = prompt_of(c->trial, k, &text[0], e);
    if (!status)
        status = add_text(c->trial, k, 0, c->trial->n_response, &text[1], e);
    if (!status)
        status = note_of(c->trial, k, redo, &text[2], e);
    if (!status) {
        *out = json_pack("{so sf ss ss ss*}", "title", json_sprintf("%s, round %lld", s->stage->name, (long long)s->stage_round + 1), "score", c->score, "prompt",
                         text[0].len ? text[0].data : "", "response", text[1].len ? text[1].data : "", "note", text[2].len ? text[2].data : NULL);
        status = *out ? OP_OK : no_memory(e);
    }
    for (int i = 0; i < 3; i++)
        op_buf_release(&text[i]);
    return status;
}

/* ---- the choice ---- */

/* EACH of the highest scores times `side`; of equal ones the latest. */
static void choose(candidate *c, size_t n, double side)
{
    for (int k = 0; k < EACH; k++) {
        candidate *best = NULL;
        for (size_t i = 0; i < n; i++)
            if (!c[i].chosen && !isnan(c[i].score) && (!best || side * c[i].score >= side * best->score))
                best = &c[i];
        if (best)
            best->chosen = true;
    }
}

op_status op_transcripts_choose(const op_session *s, json_t **shown, op_error *e)
{
    size_t n = json_array_size(*shown), all = n + s->n_entries;
    json_t *next = json_array();
    candidate *c = op_alloc_zero(all + 1, sizeof *c);
    op_status status = next && c ? OP_OK : no_memory(e);
    for (size_t i = 0; !status && i < all; i++) {
        json_t *old = i < n ? json_array_get(*shown, i) : NULL;
        const op_trial *t = old ? NULL : s->entries[i - n].trial;
        c[i] = (candidate){old, t, old ? json_number_value(json_object_get(old, "score")) : score_of(t), false};
    }
    if (!status) {
        choose(c, all, 1);
        choose(c, all, -1);
    }
    for (size_t i = 0; !status && i < all; i++) {
        json_t *line = json_incref(c[i].old);
        if (!c[i].chosen) {
            json_decref(line);
            continue;
        }
        if (!line)
            status = transcript_of(s, &c[i], s->entries[i - n].parent != SIZE_MAX, &line, e);
        if (!status && json_array_append_new(next, line))
            status = no_memory(e);
    }
    op_free(c);
    json_decref(status ? next : *shown);
    *shown = status ? *shown : next;
    return status;
}
