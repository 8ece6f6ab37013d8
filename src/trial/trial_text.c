/* The text of a trial's response, and which tokens stand behind which code points. Both come from one streaming decoder, so that they always agree. */
#include <operant/trial.h>

#include <string.h>

#include "base/mem.h"
#include "text/unicode.h"
#include "trial/trial_parts.h"

static op_status no_memory(const op_trial *t, op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the text of trial %lld", (long long)t->id);
}

op_status op_trial_view(const op_trial *t, const op_tokenizer *k, int32_t from, int32_t to, op_buf *out)
{
    op_decoder d = {.tokenizer = k, .flags = OP_DECODE_SKIP_SPECIAL, .started = from > 0};
    op_status s = OP_OK;
    for (int32_t i = from; !s && i < to; i++)
        s = op_decoder_push(&d, t->response[i], out);
    return s ? s : op_decoder_finish(&d, out);
}

op_status op_trial_text(const op_trial *t, const op_tokenizer *k, int32_t from, int32_t to, char **out, op_error *e)
{
    *out = NULL;
    if (from < 0 || from > to || to > t->n_response)
        return op_error_set(e, OP_ERR_ARG, "trial %lld: the text of tokens %d..%d, expected a span within 0..%d", (long long)t->id, from, to, t->n_response);
    op_buf b;
    op_buf_init(&b, OP_TRIAL_TEXT_MAX);
    if (!op_trial_view(t, k, from, to, &b))
        *out = op_buf_take(&b);
    op_buf_release(&b);
    return *out ? OP_OK : no_memory(t, e);
}

int32_t op_code_points(const char *s, size_t n)
{
    int32_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += ((unsigned char)s[i] & 0xc0) != 0x80;
    return count;
}

op_status op_trial_offsets(const op_trial *t, const op_tokenizer *k, int32_t *begin, int32_t *end, op_error *e)
{
    op_decoder d = {.tokenizer = k, .flags = OP_DECODE_SKIP_SPECIAL};
    op_buf b;
    op_buf_init(&b, OP_TRIAL_TEXT_MAX);
    op_status s = OP_OK;
    int32_t whole = 0; /* code points written so far */
    for (int32_t i = 0; !s && i < t->n_response; i++) {
        size_t n = 0;
        const char *bytes = op_tokenizer_bytes(k, t->response[i], &n);
        bool shown = n && !op_tokenizer_is_special(k, t->response[i]);
        /* bytes held back are the start of code point `whole`; this token either goes on with it or makes it a U+FFFD */
        bool goes_on = shown && d.n_held && op_utf8_accepts(d.held, d.n_held, (unsigned char)bytes[0]);
        begin[i] = whole + (d.n_held && !goes_on);
        b.len = 0;
        s = op_decoder_push(&d, t->response[i], &b);
        whole += op_code_points(b.data, b.len);
        end[i] = shown ? whole + (d.n_held > 0) : begin[i];
    }
    op_buf_release(&b);
    return s ? no_memory(t, e) : OP_OK;
}

op_status op_trial_span(const op_trial *t, const op_tokenizer *k, int64_t from, int64_t to, int32_t *start, int32_t *end, op_error *e)
{
    int32_t *begin = op_alloc_array((size_t)t->n_response + 1, 2 * sizeof *begin);
    if (!begin)
        return no_memory(t, e);
    int32_t *stop = begin + t->n_response + 1, last = 0;
    *start = *end = -1;
    op_status s = op_trial_offsets(t, k, begin, stop, e);
    for (int32_t i = 0; !s && i < t->n_response; i++) {
        last = stop[i] > last ? stop[i] : last;
        if (begin[i] >= to || stop[i] <= from || begin[i] == stop[i])
            continue;
        *start = *start < 0 ? i : *start;
        *end = i + 1;
    }
    op_free(begin);
    if (!s && (from < 0 || from >= to || to > last || *start < 0))
        s = op_error_set(e, OP_ERR_ARG, "trial %lld: code points %lld..%lld, expected a span that is not empty within 0..%d", (long long)t->id,
                         (long long)from, (long long)to, last);
    return s;
}
