#include "text/gguf_out.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "text/tokenizer_impl.h"

#define KEY(name) "tokenizer.ggml." name

enum { TYPE_NORMAL = 1, TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4, TYPE_UNUSED = 5, TYPE_BYTE = 6 };

static const op_family *find_family(const op_tokenizer *t)
{
    bool nfc = t->n_normal == 1 && t->normal[0].kind == OP_NORMAL_NFC;
    for (const op_family *f = op_families; f->pre; f++)
        if (f->n_split == t->n_split && memcmp(f->split, t->split, (size_t)f->n_split * sizeof *f->split) == 0 &&
            f->nfc == nfc && t->n_normal == nfc)
            return f;
    return NULL;
}

static void put_id(op_gguf_writer *w, const char *key, int32_t id)
{
    if (id >= 0)
        op_gguf_put_u32(w, key, (uint32_t)id);
}

static op_status put_tokens(const op_tokenizer *t, op_gguf_writer *w, size_t n)
{
    const char **texts = op_alloc_array(n, sizeof *texts);
    size_t *lengths = op_alloc_array(n, sizeof *lengths), known = (size_t)t->texts.n;
    int32_t *types = op_alloc_array(n, sizeof *types);
    char(*unused)[24] = op_alloc_array(n > known ? n - known : 1, sizeof *unused);
    op_status s = texts && lengths && types && unused ? OP_OK : OP_ERR_NOMEM;
    for (size_t i = 0; !s && i < n; i++) {
        texts[i] = i < known ? op_strings_get(&t->texts, (int32_t)i, &lengths[i]) : "";
        types[i] = TYPE_NORMAL;
        if (i >= known) {
            lengths[i] = (size_t)snprintf(unused[i - known], sizeof *unused, "[PAD%zu]", i);
            texts[i] = unused[i - known];
            types[i] = TYPE_UNUSED;
        } else if (t->special[i]) {
            types[i] = (int32_t)i == t->bpe.unk ? TYPE_UNKNOWN : t->special[i] == TOKEN_SPECIAL ? TYPE_CONTROL : TYPE_USER_DEFINED;
        } else if (!t->byte_level) {
            for (int k = 0; k < 256; k++)
                if (t->bpe.byte_id[k] == (int32_t)i)
                    types[i] = TYPE_BYTE;
        }
    }
    if (!s) {
        op_gguf_put_strings(w, KEY("tokens"), texts, lengths, n);
        op_gguf_put_i32s(w, KEY("token_type"), types, n);
    }
    op_free(texts);
    op_free(lengths);
    op_free(types);
    op_free(unused);
    return s;
}

/* Byte-level: the merges as lines. Else scores: llama.cpp merges the pair whose token scores highest, so a token's score is
 * minus the rank of the first merge that makes it. */
static op_status put_merges(const op_tokenizer *t, op_gguf_writer *w, size_t n_vocab)
{
    op_merge_slot *list;
    size_t n;
    op_status s = op_bpe_merges(&t->bpe, &list, &n);
    if (s)
        return s;
    if (!t->byte_level) {
        float *scores = op_alloc_zero(n_vocab, sizeof *scores);
        for (size_t i = 0; scores && i < n_vocab; i++)
            scores[i] = i < (size_t)t->texts.n && t->special[i] ? 0 : -1e9f;
        for (size_t i = n; scores && i-- > 0;)
            scores[list[i].id] = -(float)(i + 1);
        if (scores)
            op_gguf_put_f32s(w, KEY("scores"), scores, n_vocab);
        s = scores ? OP_OK : OP_ERR_NOMEM;
        op_free(scores);
    } else {
        op_strings lines = {0};
        char line[2048];
        for (size_t i = 0; !s && i < n; i++) {
            size_t a, b;
            const char *left = op_strings_get(&t->texts, (int32_t)(list[i].pair >> 32), &a);
            const char *right = op_strings_get(&t->texts, (int32_t)list[i].pair, &b);
            memcpy(line, left, a); /* op_tokenizer_merge has bounded a + b */
            line[a] = ' ';
            memcpy(line + a + 1, right, b);
            s = op_strings_add(&lines, line, a + 1 + b);
        }
        const char **texts = op_alloc_array(n + 1, sizeof *texts);
        size_t *lengths = op_alloc_array(n + 1, sizeof *lengths);
        if (!texts || !lengths)
            s = OP_ERR_NOMEM;
        for (size_t i = 0; !s && i < n; i++)
            texts[i] = op_strings_get(&lines, (int32_t)i, &lengths[i]);
        if (!s)
            op_gguf_put_strings(w, KEY("merges"), texts, lengths, n);
        op_free(texts);
        op_free(lengths);
        op_strings_release(&lines);
    }
    op_free(list);
    return s;
}

op_status op_tokenizer_put_gguf(const op_tokenizer *t, op_gguf_writer *w, int32_t n_vocab, op_error *e)
{
    const op_family *f = t->byte_level ? find_family(t) : NULL;
    bool prefix = false;
    for (int i = 0; i < t->n_normal; i++)
        prefix |= t->normal[i].kind == OP_NORMAL_PREPEND;
    for (int i = 0; i < t->n_prefix; i++)
        prefix |= t->prefix[i].kind == OP_NORMAL_PREPEND_MISSING;
    if (n_vocab < t->texts.n)
        return op_error_set(e, OP_ERR_MISMATCH, "the tokenizer has %d tokens but the model only %d", t->texts.n, n_vocab);
    if (t->byte_level && !f)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "llama.cpp has no name for this tokenizer's pre-tokenizer");
    op_gguf_put_string(w, KEY("model"), t->byte_level ? "gpt2" : "llama", t->byte_level ? 4 : 5);
    if (f)
        op_gguf_put_string(w, KEY("pre"), f->pre, strlen(f->pre));
    op_status s = put_tokens(t, w, (size_t)n_vocab);
    s = s ? s : put_merges(t, w, (size_t)n_vocab);
    if (s)
        return op_error_set(e, s, "out of memory while exporting a tokenizer");
    put_id(w, KEY("bos_token_id"), t->bos);
    put_id(w, KEY("eos_token_id"), t->eos);
    put_id(w, KEY("unknown_token_id"), t->unk);
    put_id(w, KEY("padding_token_id"), t->pad);
    op_gguf_put_bool(w, KEY("add_bos_token"), t->n_before > 0);
    op_gguf_put_bool(w, KEY("add_eos_token"), t->n_after > 0);
    op_gguf_put_bool(w, KEY("add_space_prefix"), prefix);
    if (t->chat_template)
        op_gguf_put_string(w, "tokenizer.chat_template", t->chat_template, strlen(t->chat_template));
    return OP_OK;
}
