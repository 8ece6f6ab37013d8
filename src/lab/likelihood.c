/* Which reply is likely: candidates as branches of one prompt, computed together; and how likely a neutral text is. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "io/file.h"
#include "lab/parts.h"
#include "lab/yaml_get.h"

enum { CANDIDATES_MAX = 64, WINDOW = 512, WINDOWS = 4, NEUTRAL_BYTES_MAX = 1 << 22 };

/* ---- candidates.yaml ---- */

typedef struct candidates {
    const char *text[CANDIDATES_MAX]; /* into the document */
    op_reply kind[CANDIDATES_MAX];
    int n;
    yaml_document_t doc;
} candidates;

static op_status add_list(candidates *c, const yaml_node_t *root, op_reply kind, const char *path, op_error *e)
{
    const yaml_node_t *list;
    op_status status = op_yaml_get(&c->doc, root, op_reply_name(kind), YAML_SEQUENCE_NODE, &list, path, e);
    if (status)
        return status;
    for (yaml_node_item_t *i = list->data.sequence.items.start; i < list->data.sequence.items.top; i++) {
        const yaml_node_t *node = yaml_document_get_node(&c->doc, *i);
        if (node->type != YAML_SCALAR_NODE || !*op_yaml_text(node) || c->n == CANDIDATES_MAX)
            return op_error_set(e, OP_ERR_FORMAT, "%s: line %d: expected a text, and at most %d of them in all", path, op_yaml_line(node),
                                CANDIDATES_MAX);
        c->text[c->n] = op_yaml_text(node);
        c->kind[c->n++] = kind;
    }
    return OP_OK;
}

static op_status read_candidates(candidates *c, const char *path, op_error *e)
{
    static const char *const keys[] = {"asks", "declines", NULL};
    op_status status = op_yaml_open(&c->doc, path, e);
    if (status)
        return status;
    const yaml_node_t *root = yaml_document_get_root_node(&c->doc);
    status = op_yaml_check_keys(&c->doc, root, keys, path, e);
    if (!status)
        status = add_list(c, root, OP_REPLY_ASKS, path, e);
    if (!status)
        status = add_list(c, root, OP_REPLY_DECLINES, path, e);
    if (status)
        yaml_document_delete(&c->doc);
    return status;
}

/* ---- one prompt with its branches ---- */

typedef struct forest {
    int32_t *ids;
    size_t n, cap;
    op_seq seqs[CANDIDATES_MAX + 2];
    op_reply kind[CANDIDATES_MAX + 2];
    int32_t n_seqs;
    uint8_t *want;
    float *logp;
} forest;

static op_status grow(forest *f, size_t more, op_error *e)
{
    if (f->n + more <= f->cap)
        return OP_OK;
    size_t cap = 2 * (f->n + more);
    int32_t *ids = op_realloc(f->ids, cap * sizeof *ids);
    f->ids = ids ? ids : f->ids;
    uint8_t *want = op_realloc(f->want, cap);
    f->want = want ? want : f->want;
    float *logp = op_realloc(f->logp, cap * sizeof *logp);
    f->logp = logp ? logp : f->logp;
    if (!ids || !want || !logp)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for the candidates of a prompt");
    f->cap = cap;
    return OP_OK;
}

static op_status add_seq(forest *f, const int32_t *ids, size_t n, int32_t adapter, op_reply kind, op_error *e)
{
    op_status status = grow(f, n, e);
    if (status)
        return status;
    bool root = !f->n_seqs;
    memcpy(f->ids + f->n, ids, n * sizeof *ids);
    memset(f->want + f->n, !root, n);
    f->seqs[f->n_seqs] = (op_seq){.start = (int32_t)f->n, .length = (int32_t)n, .parent = root ? -1 : 0,
                                  .branch = root ? 0 : f->seqs[0].length, .adapter = adapter};
    f->kind[f->n_seqs++] = kind;
    f->n += n;
    return OP_OK;
}

/* A candidate as the chat template writes it after this prompt: the words and the token that ends the turn. */
static op_status add_candidate(forest *f, const op_lab *l, const op_case *c, const char *text, op_reply kind, op_error *e)
{
    op_tokens whole;
    op_turns turns = {0};
    op_tokens_init(&whole);
    json_t *messages = json_copy(c->messages);
    op_status status = OP_OK;
    if (!messages || json_array_append_new(messages, json_pack("{ssss}", "role", "assistant", "content", text)))
        status = op_error_set(e, OP_ERR_NOMEM, "out of memory for a candidate");
    if (!status)
        status = op_chat_encode(&l->subject.chat, messages, NULL, false, &whole, &turns, NULL, e);
    size_t first = c->prompt.n, end = first;
    while (!status && end < whole.n && turns.turn[end] >= 0)
        end++;
    if (!status && (end == first || memcmp(whole.ids, c->prompt.ids, first * sizeof *whole.ids) != 0))
        status = op_error_set(e, OP_ERR_UNSUPPORTED, "prompt \"%.40s\": the chat template writes another beginning when a reply follows", c->id);
    if (!status)
        status = add_seq(f, whole.ids + first, end - first, l->subject.adapter, kind, e);
    json_decref(messages);
    op_turns_release(&turns);
    op_tokens_release(&whole);
    return status;
}

/* The reply of the untrained model to the same prompt, token by token; without a reference this model's own. */
static op_status add_reference(forest *f, const op_lab *l, size_t i, const json_t *reference, op_error *e)
{
    const op_request *r = &l->requests[i];
    if (!reference)
        return r->n ? add_seq(f, r->tokens, (size_t)r->n, l->subject.adapter, OP_REPLY_ANSWERS, e) : OP_OK;
    const json_t *found = op_list_find(json_object_get(reference, "replies"), "id", l->cases.at[i].id), *tokens = json_object_get(found, "tokens");
    size_t n = json_array_size(tokens);
    if (!n)
        return OP_OK;
    int32_t *ids = op_alloc_array(n, sizeof *ids);
    op_status status = ids ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory for a reference");
    const int32_t vocab = op_model_get_config(l->subject.model)->vocab;
    for (size_t k = 0; !status && k < n; k++) {
        const json_t *id = json_array_get(tokens, k);
        ids[k] = (int32_t)json_integer_value(id);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= vocab)
            status = op_error_set(e, OP_ERR_MISMATCH, "%s: reply \"%.40s\": a token that this model does not have", l->o->reference, l->cases.at[i].id);
    }
    if (!status)
        status = add_seq(f, ids, n, l->subject.adapter, OP_REPLY_ANSWERS, e);
    op_free(ids);
    return status;
}

static double mean(const float *x, int32_t n)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++)
        sum += x[i];
    return sum / n;
}

static void read_off(const forest *f, op_likelihood *out)
{
    for (int k = 0; k < 3; k++)
        out->whole[k] = out->head[k] = NAN;
    for (int32_t s = 1; s < f->n_seqs; s++) {
        const op_seq *q = &f->seqs[s];
        double whole = mean(f->logp + q->start, q->length);
        double head = mean(f->logp + q->start, q->length < OP_HEAD_TOKENS ? q->length : OP_HEAD_TOKENS);
        op_reply k = f->kind[s];
        out->whole[k] = whole > out->whole[k] || isnan(out->whole[k]) ? whole : out->whole[k];
        out->head[k] = head > out->head[k] || isnan(out->head[k]) ? head : out->head[k];
    }
}

static op_status weigh_case(op_lab *l, size_t i, forest *f, op_pass *pass, const candidates *set, const json_t *reference, op_error *e)
{
    op_case *c = &l->cases.at[i];
    f->n = 0;
    f->n_seqs = 0;
    op_status status = add_seq(f, c->prompt.ids, c->prompt.n, l->subject.adapter, OP_REPLY_SILENT, e);
    for (int k = 0; !status && k < set->n; k++)
        status = add_candidate(f, l, c, set->text[k], set->kind[k], e);
    if (!status)
        status = add_reference(f, l, i, reference, e);
    op_batch batch = {(int32_t)f->n, f->n_seqs, f->ids, f->seqs};
    if (!status)
        status = op_model_forward(l->subject.model, pass, &batch, &(op_how){0}, e);
    if (!status)
        status = op_model_logprobs(l->subject.model, pass, f->want, NULL, f->logp, e);
    if (!status)
        read_off(f, &c->likelihood);
    return status;
}

static bool is_listed(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *at = list; at && *at;) {
        at += strspn(at, ", ");
        size_t len = strcspn(at, ", ");
        if (len == n && !memcmp(at, word, n))
            return true;
        at += len;
    }
    return false;
}

op_status op_lab_weigh(op_lab *l, const json_t *reference, op_error *e)
{
    candidates set = {0};
    op_status status = read_candidates(&set, l->o->candidates, e);
    if (status)
        return status;
    forest f = {0};
    op_pass *pass = NULL;
    status = op_pass_new(&pass, l->subject.model, e);
    int64_t total = 0, done = 0, tokens = 0;
    for (size_t i = 0; i < l->cases.n; i++) {
        op_case *c = &l->cases.at[i];
        c->measured = is_listed(l->o->logprob_classes, c->class) && op_case_is_among(&l->cases, i, l->o->logprob_limit);
        total += c->measured;
    }
    op_lab_begin(l);
    for (size_t i = 0; !status && i < l->cases.n; i++) {
        if (!l->cases.at[i].measured)
            continue;
        status = weigh_case(l, i, &f, pass, &set, reference, e);
        tokens += (int64_t)f.n;
        if (!status)
            status = op_lab_tell(l, "log-probabilities", ++done, total, tokens, e);
    }
    op_pass_free(pass);
    op_free(f.ids);
    op_free(f.want);
    op_free(f.logp);
    yaml_document_delete(&set.doc);
    return status;
}

/* ---- the neutral text ---- */

/* Windows of WINDOW tokens, WINDOWS at a time; the first token of a window is not predicted. */
static op_status read_windows(op_lab *l, const op_tokens *text, op_neutral *out, op_error *e)
{
    op_pass *pass = NULL;
    op_status status = op_pass_new(&pass, l->subject.model, e);
    float *logp = op_alloc_array(WINDOW * WINDOWS, sizeof *logp);
    if (!status && !logp)
        status = op_error_set(e, OP_ERR_NOMEM, "out of memory for the neutral text");
    int32_t longest = op_model_get_config(l->subject.model)->max_positions;
    int32_t window = longest < WINDOW ? longest : WINDOW;
    double sum = 0;
    for (size_t at = 0; !status && at < text->n;) {
        op_seq seqs[WINDOWS];
        op_batch batch = {0, 0, text->ids + at, seqs};
        while (batch.n_seqs < WINDOWS && at < text->n) {
            int32_t n = text->n - at < (size_t)window ? (int32_t)(text->n - at) : window;
            seqs[batch.n_seqs++] = (op_seq){.start = batch.n_tokens, .length = n, .parent = -1, .adapter = l->subject.adapter};
            batch.n_tokens += n;
            at += (size_t)n;
        }
        status = op_model_forward(l->subject.model, pass, &batch, &(op_how){0}, e);
        if (!status)
            status = op_model_logprobs(l->subject.model, pass, NULL, NULL, logp, e);
        for (int32_t t = 0; !status && t < batch.n_tokens; t++)
            sum += logp[t];
        out->tokens += batch.n_tokens - batch.n_seqs;
        if (!status)
            status = op_lab_tell(l, "neutral text", (int64_t)at, (int64_t)text->n, (int64_t)at, e);
    }
    out->logprob = out->tokens ? sum / (double)out->tokens : NAN;
    op_pass_free(pass);
    op_free(logp);
    return status;
}

op_status op_lab_read_neutral(op_lab *l, op_neutral *out, op_error *e)
{
    *out = (op_neutral){0};
    op_buf bytes;
    op_buf_init(&bytes, NEUTRAL_BYTES_MAX);
    op_tokens text;
    op_tokens_init(&text);
    op_status status = op_file_read(l->o->neutral, &bytes, e);
    if (!status) {
        status = op_tokenizer_encode(l->subject.tokenizer, bytes.data ? bytes.data : "", bytes.len, OP_ENCODE_AFFIX, &text, e);
        if (status)
            op_error_prefix(e, "%s", l->o->neutral);
    }
    op_lab_begin(l);
    if (!status)
        status = read_windows(l, &text, out, e);
    op_tokens_release(&text);
    op_buf_release(&bytes);
    return status;
}
