/* Tokens to text. */
#include <string.h>

#include "text/tokenizer_impl.h"
#include "text/unicode.h"

#define REPLACEMENT "\xef\xbf\xbd"

/* The longest prefix of a character that cannot go on is one U+FFFD. */
static op_status push_byte(op_decoder *d, unsigned char byte, op_buf *out)
{
    op_status s = OP_OK;
    if (d->n_held && !op_utf8_accepts(d->held, d->n_held, byte)) {
        s = op_buf_puts(out, REPLACEMENT);
        d->n_held = 0;
    }
    if (s)
        return s;
    if (!d->n_held && !op_utf8_accepts(d->held, 0, byte))
        return op_buf_puts(out, REPLACEMENT);
    d->held[d->n_held++] = byte;
    if (d->n_held == (int)op_utf8_length(d->held[0])) {
        s = op_buf_add(out, d->held, (size_t)d->n_held);
        d->n_held = 0;
    }
    return s;
}

static op_status push_bytes(op_decoder *d, const char *bytes, size_t n, op_buf *out)
{
    const op_tokenizer *t = d->tokenizer;
    size_t i = 0;
    if (!d->started && n) {
        while (t->strip_first_meta && i < n && bytes[i] == ' ')
            i++;
        if (t->strip_space && bytes[0] == ' ')
            i = 1;
        d->started = true;
    }
    op_status s = OP_OK;
    while (!s && i < n) {
        size_t ascii = i;
        while (!d->n_held && ascii < n && (unsigned char)bytes[ascii] < 0x80)
            ascii++;
        if (ascii > i)
            s = op_buf_add(out, bytes + i, ascii - i);
        else
            s = push_byte(d, (unsigned char)bytes[ascii++], out);
        i = ascii;
    }
    return s;
}

op_status op_decoder_push(op_decoder *d, int32_t id, op_buf *out)
{
    if (id < 0 || id >= d->tokenizer->bytes.n || ((d->flags & OP_DECODE_SKIP_SPECIAL) && d->tokenizer->special[id] == TOKEN_SPECIAL))
        return OP_OK;
    size_t n;
    const char *bytes = op_strings_get(&d->tokenizer->bytes, id, &n);
    return push_bytes(d, bytes, n, out);
}

op_status op_decoder_finish(op_decoder *d, op_buf *out)
{
    bool cut = d->n_held > 0;
    d->n_held = 0;
    return cut ? op_buf_puts(out, REPLACEMENT) : OP_OK;
}

/* Whether the token is one of the "<0xNN>" that decode to a byte. */
static bool is_fallback(const op_tokenizer *t, int32_t id)
{
    return t->decode_bytes && id >= 0 && id < t->bytes.n && t->bytes.at[id + 1] - t->bytes.at[id] == 1 &&
           t->texts.at[id + 1] - t->texts.at[id] == 6;
}

op_status op_tokenizer_decode(const op_tokenizer *t, const int32_t *ids, size_t n, unsigned flags, op_buf *out)
{
    op_decoder d = {.tokenizer = t, .flags = flags};
    op_status s = OP_OK;
    for (size_t i = 0, j; !s && i < n; i = j) {
        /* The reference judges a run of byte tokens as a whole: if any of it is no UTF-8, each byte is a U+FFFD. */
        op_decoder trial = {.tokenizer = t};
        bool valid = true;
        for (j = i; j < n && is_fallback(t, ids[j]); j++) {
            unsigned char byte = (unsigned char)t->bytes.bytes[t->bytes.at[ids[j]]];
            valid = valid && op_utf8_accepts(trial.held, trial.n_held, byte);
            if (!valid)
                continue;
            trial.held[trial.n_held++] = byte;
            if (trial.n_held == (int)op_utf8_length(trial.held[0]))
                trial.n_held = 0;
        }
        valid = valid && !trial.n_held;
        for (size_t k = i; !s && k < j; k++)
            s = valid ? op_decoder_push(&d, ids[k], out) : op_buf_puts(out, REPLACEMENT);
        if (j > i && !valid)
            d.started = true;
        if (j == i)
            s = op_decoder_push(&d, ids[j++], out);
    }
    return s ? s : op_decoder_finish(&d, out);
}
