/* Scoring replies and a control text. Prompts that begin alike (the system's turn, a question with and without its choices) are computed once: the sequences of a batch
 * become a tree of what they share. */
#include <math.h>
#include <string.h>

#include <operant/dataset.h>

#include "base/mem.h"
#include "io/file.h"
#include "lab/reverse_parts.h"

/* ---- a batch as a tree ---- */

enum { BLOCK = 1024, SEQUENCES_MAX = 256 };

/* A prompt with a reply; ids are op_free's. */
typedef struct sequence {
    int32_t *ids;
    int32_t n, from, to; /* the reply's tokens that count */
    double sum;          /* of their log p */
} sequence;

typedef struct tree {
    sequence seqs[SEQUENCES_MAX];
    size_t n;
    size_t tokens;          /* of all sequences, shared or not */
    int32_t *ids;           /* [tokens] of the batch */
    uint8_t *want;
    float *logp;
    op_seq nodes[2 * SEQUENCES_MAX];
    int32_t n_ids, n_nodes, adapter;
    int32_t *place[SEQUENCES_MAX]; /* [.n] where each token of a sequence lies in the batch */
} tree;

static void clear(tree *t)
{
    for (size_t i = 0; i < t->n; i++) {
        op_free(t->seqs[i].ids);
        op_free(t->place[i]);
    }
    op_free(t->ids);
    op_free(t->want);
    op_free(t->logp);
    *t = (tree){.adapter = t->adapter};
}

/* How many tokens the sequences of `which` have in common from `depth` on. */
static int32_t common(const tree *t, const size_t *which, size_t n, int32_t depth)
{
    const sequence *a = &t->seqs[which[0]];
    int32_t end = a->n;
    for (size_t i = 1; i < n; i++) {
        const sequence *b = &t->seqs[which[i]];
        int32_t k = depth;
        while (k < end && k < b->n && a->ids[k] == b->ids[k])
            k++;
        end = k;
    }
    return end - depth;
}

static int32_t add_node(tree *t, const size_t *which, size_t n, int32_t depth, int32_t length, int32_t parent)
{
    const sequence *a = &t->seqs[which[0]];
    t->nodes[t->n_nodes] = (op_seq){.start = t->n_ids, .length = length, .parent = parent, .branch = parent < 0 ? 0 : depth, .adapter = t->adapter};
    memcpy(t->ids + t->n_ids, a->ids + depth, (size_t)length * sizeof *a->ids);
    for (size_t i = 0; i < n; i++)
        for (int32_t k = 0; k < length; k++) {
            const sequence *q = &t->seqs[which[i]];
            t->place[which[i]][depth + k] = t->n_ids + k;
            t->want[t->n_ids + k] |= depth + k >= q->from && depth + k < q->to;
        }
    t->n_ids += length;
    return t->n_nodes++;
}

/* The sequences of `which`, which agree in their first `depth` tokens, as nodes below `parent`. Reorders `which`. */
static void grow(tree *t, size_t *which, size_t n, int32_t depth, int32_t parent)
{
    int32_t shared = common(t, which, n, depth);
    if (shared) {
        parent = add_node(t, which, n, depth, shared, parent);
        depth += shared;
    }
    for (size_t at = 0, end; at < n; at = end) { /* groups by the token that comes next; one that ends here is done */
        const sequence *a = &t->seqs[which[at]];
        end = at + 1;
        if (a->n == depth)
            continue;
        for (size_t i = end; i < n; i++) {
            size_t moved = which[i];
            if (t->seqs[moved].n == depth || t->seqs[moved].ids[depth] != a->ids[depth])
                continue;
            memmove(which + end + 1, which + end, (i - end) * sizeof *which);
            which[end++] = moved;
        }
        grow(t, which + at, end - at, depth, parent);
    }
}

static op_status run(tree *t, const op_subject *s, op_pass *pass, op_error *e)
{
    size_t which[SEQUENCES_MAX];
    t->ids = op_alloc_array(t->tokens + 1, sizeof *t->ids);
    t->want = op_alloc_zero(t->tokens + 1, 1);
    t->logp = op_alloc_array(t->tokens + 1, sizeof *t->logp);
    bool ok = t->ids && t->want && t->logp;
    for (size_t i = 0; i < t->n; i++) {
        which[i] = i;
        t->place[i] = op_alloc_array((size_t)t->seqs[i].n, sizeof **t->place);
        ok = ok && t->place[i];
    }
    if (!ok)
        return reverse_no_memory(e);
    grow(t, which, t->n, 0, -1);
    op_batch batch = {t->n_ids, t->n_nodes, t->ids, t->nodes};
    op_status status = op_model_forward(s->model, pass, &batch, &(op_how){0}, e);
    if (!status)
        status = op_model_logprobs(s->model, pass, t->want, NULL, t->logp, e);
    for (size_t i = 0; i < t->n && !status; i++) {
        sequence *q = &t->seqs[i];
        for (int32_t k = q->from; k < q->to; k++)
            q->sum += t->logp[t->place[i][k]];
        if (!isfinite(q->sum))
            status = op_error_set(e, OP_ERR_FORMAT, "a reply's log-probability is no number: the model's weights are not finite");
    }
    return status;
}

/* ---- replies ---- */

/* Appends the tokens of `messages` with a reply. `whole`: the end of the turn counts too. */
static op_status add_reply(tree *t, const op_subject *s, const json_t *messages, const char *reply, bool whole, op_error *e)
{
    op_tokens ids;
    op_turns turns = {0};
    op_tokens_init(&ids);
    json_t *all = json_copy((json_t *)messages);
    op_status status = OP_OK;
    if (!s->tmpl)
        status = op_error_set(e, OP_ERR_UNSUPPORTED, "questions need a chat template, which this model does not have");
    else if (!all || json_array_append_new(all, json_pack("{ssss}", "role", "assistant", "content", reply)))
        status = reverse_no_memory(e);
    if (!status)
        status = op_chat_encode(&s->chat, all, NULL, false, &ids, &turns, NULL, e);
    json_decref(all);
    int32_t longest = op_model_get_config(s->model)->max_positions;
    size_t last = json_array_size(messages), from = 0, to;
    while (!status && from < ids.n && turns.turn[from] != (int32_t)last)
        from++;
    for (to = from; !status && to < ids.n && turns.turn[to] == (int32_t)last;)
        to++;
    op_turns_release(&turns);
    if (!status && to - from < 2)
        status = op_error_set(e, OP_ERR_UNSUPPORTED, "the chat template writes no reply \"%.60s\"", reply);
    if (!status && to > (size_t)longest)
        status = op_error_set(e, OP_ERR_UNSUPPORTED, "a question with its reply has %zu tokens, the model takes %d: \"%.60s\"", to, longest, reply);
    if (status) {
        op_tokens_release(&ids);
        return status;
    }
    t->seqs[t->n++] = (sequence){.ids = ids.ids, .n = (int32_t)to, .from = (int32_t)from, .to = (int32_t)to - !whole};
    t->tokens += to;
    ids.ids = NULL;
    op_tokens_release(&ids);
    return OP_OK;
}

/* The question with its choices, the matching reply first or second. */
static op_status add_letters(tree *t, const op_subject *s, const reverse_question *q, bool first, op_error *e)
{
    op_buf text;
    op_buf_init(&text, 1 << 20);
    json_t *messages = NULL;
    op_status status = OP_OK;
    if (op_buf_printf(&text, "%s\n\nChoices:\n (A) %s\n (B) %s", q->stem, q->reply[!first], q->reply[first]) ||
        !(messages = json_pack("[{ssss}]", "role", "user", "content", text.data)))
        status = reverse_no_memory(e);
    if (!status)
        status = add_reply(t, s, messages, first ? " (A)" : " (B)", false, e);
    if (!status)
        status = add_reply(t, s, messages, first ? " (B)" : " (A)", false, e);
    json_decref(messages);
    op_buf_release(&text);
    return status;
}

static op_status add_question(tree *t, const op_subject *s, const reverse_question *q, reverse_form form, op_error *e)
{
    op_status status;
    if (form == REVERSE_TEXT) {
        status = add_reply(t, s, q->messages, q->reply[0], true, e);
        return status ? status : add_reply(t, s, q->messages, q->reply[1], true, e);
    }
    status = q->stem ? add_letters(t, s, q, true, e) : OP_OK;
    return status || !q->stem ? status : add_letters(t, s, q, false, e);
}

static double mean(const sequence *q)
{
    return q->sum / (q->to - q->from);
}

op_status reverse_score(const op_subject *s, op_pass *pass, const reverse_probe *p, const uint32_t *which, size_t n, reverse_form form, double *margin,
                        const volatile int *stop, op_error *e)
{
    tree *t = op_alloc_zero(1, sizeof *t);
    op_status status = t ? OP_OK : reverse_no_memory(e);
    for (size_t at = 0; at < n && !status;) {
        size_t begin = at;
        t->adapter = s->adapter;
        while (at < n && !status && t->tokens < BLOCK && t->n + 4 <= SEQUENCES_MAX)
            status = add_question(t, s, &p->at[which[at++]], form, e);
        if (!status && t->n)
            status = run(t, s, pass, e);
        for (size_t i = begin, k = 0; i < at && !status; i++) {
            const sequence *q = t->seqs + k;
            bool choices = form == REVERSE_CHOICES, asked = !choices || p->at[which[i]].stem;
            margin[i] = !asked ? NAN : choices ? (q[0].sum - q[1].sum + q[2].sum - q[3].sum) / 2 : mean(q) - mean(q + 1);
            k += !asked ? 0 : choices ? 4 : 2;
        }
        clear(t);
        if (!status && stop && *stop)
            status = op_error_set(e, OP_ERR_INTERRUPTED, "stopped");
    }
    if (t)
        clear(t);
    op_free(t);
    return status;
}

/* ---- the control ---- */

void reverse_control_release(reverse_control *c)
{
    op_free(c->ids);
    op_free(c->want);
    op_free(c->seqs);
    *c = (reverse_control){0};
}

/* Room for `tokens` ids in at most as many sequences. */
static op_status allocate(reverse_control *c, size_t tokens, op_error *e)
{
    c->ids = op_alloc_array(tokens + 1, sizeof *c->ids);
    c->want = op_alloc_zero(tokens + 1, sizeof *c->want);
    c->seqs = op_alloc_array(tokens + 1, sizeof *c->seqs);
    return c->ids && c->want && c->seqs ? OP_OK : reverse_no_memory(e);
}

/* Tokens of a positive weight count, without weights all, the first never: nothing precedes it. */
static void add_piece(reverse_control *c, const int32_t *ids, const float *weights, int32_t n, int32_t adapter)
{
    memcpy(c->ids + c->n, ids, (size_t)n * sizeof *ids);
    for (int32_t i = 1; i < n; i++)
        c->want[c->n + (size_t)i] = !weights || weights[i] > 0;
    c->seqs[c->n_seqs++] = (op_seq){.start = (int32_t)c->n, .length = n, .parent = -1, .adapter = adapter};
    c->n += (size_t)n;
}

/* Plain text: windows of equal length, of which the first half is for the search. */
static op_status read_text(reverse_control *out, const op_reverse *x, const op_subject *s, op_error *e)
{
    enum { WINDOW = 512, BYTES_A_TOKEN = 12 };
    int32_t longest = op_model_get_config(s->model)->max_positions;
    int64_t window = longest < WINDOW ? longest : WINDOW, want = x->control_tokens;
    window = window < want ? window : want;
    int64_t each = (want + window - 1) / window; /* windows for the search, and as many for the end */
    op_map map;
    op_tokens all;
    op_tokens_init(&all);
    op_status status = op_map_open(&map, x->control, e);
    if (status)
        return status;
    size_t bytes = map.size, most = (size_t)(2 * each * window * BYTES_A_TOKEN);
    for (bytes = bytes < most ? bytes : most; bytes && bytes < map.size && (map.data[bytes] & 0xc0) == 0x80;) /* not within a character */
        bytes--;
    status = op_tokenizer_encode(s->tokenizer, (const char *)map.data, bytes, 0, &all, e);
    op_map_close(&map);
    if (status)
        op_error_prefix(e, "%s", x->control);
    if (!status && all.n < (size_t)(2 * window))
        status = op_error_set(e, OP_ERR_FORMAT, "%s: found %zu tokens, expected %lld or more: half of them for the search, half for the final figures", x->control, all.n, (long long)(2 * window));
    if (!status && (size_t)(2 * each * window) > all.n)
        each = (int64_t)all.n / (2 * window);
    if (!status)
        status = allocate(out, (size_t)(2 * each * window), e);
    for (int64_t i = 0; i < 2 * each && !status; i++)
        add_piece(out, all.ids + i * window, NULL, (int32_t)window, s->adapter);
    out->half = (size_t)each;
    op_tokens_release(&all);
    return status;
}

/* Examples as operant train reads them: the tokens that it would learn; every second one is for the search. */
static op_status read_examples(reverse_control *out, const op_reverse *x, const op_subject *s, op_error *e)
{
    op_dataset data;
    op_dataset_options how = {.max_length = op_model_get_config(s->model)->max_positions, .trials = op_trial_example};
    op_status status = op_dataset_read(&data, x->control, &s->chat, &how, e);
    if (status)
        return status;
    size_t tokens = 0, n = 0;
    for (size_t i = 0; i < data.n; i++) {
        int32_t learned = 0;
        for (int32_t t = 1; t < data.examples[i].n; t++)
            learned += data.examples[i].weights[t] > 0;
        tokens += (size_t)data.examples[i].n;
        n += learned > 0;
    }
    status = n < data.n || n < 2 ? op_error_set(e, OP_ERR_FORMAT, "%s: found %zu examples of which a token is learned among %zu, expected two or more, all of them such", x->control, n, data.n)
                                 : allocate(out, tokens, e);
    for (size_t half = 0; half < 2 && !status; half++) {
        size_t first = out->n;
        for (size_t i = half; i < data.n && (int64_t)(out->n - first) < x->control_tokens; i += 2)
            add_piece(out, data.examples[i].ids, data.examples[i].weights, data.examples[i].n, s->adapter);
        out->half = half ? out->half : out->n_seqs;
    }
    op_dataset_release(&data);
    return status;
}

op_status reverse_control_read(reverse_control *out, const op_reverse *x, const op_subject *s, op_error *e)
{
    *out = (reverse_control){0};
    op_status status = x->control_is_text ? read_text(out, x, s, e) : read_examples(out, x, s, e);
    if (status)
        reverse_control_release(out);
    return status;
}

op_status reverse_control_score(const op_subject *s, op_pass *pass, const reverse_control *c, bool search, double *sum, int64_t *tokens, const volatile int *stop,
                                op_error *e)
{
    size_t first = search ? 0 : c->half, end = search ? c->half : c->n_seqs;
    float *logp = op_alloc_array(c->n + 1, sizeof *logp);
    op_status status = logp ? OP_OK : reverse_no_memory(e);
    *sum = 0;
    *tokens = 0;
    while (first < end && !status) {
        op_seq batch_seqs[64];
        op_batch b = {0, 0, c->ids + c->seqs[first].start, batch_seqs};
        const uint8_t *want = c->want + c->seqs[first].start;
        while (first < end && b.n_seqs < 64 && (!b.n_seqs || b.n_tokens + c->seqs[first].length <= BLOCK)) {
            op_seq q = c->seqs[first++];
            q.start = b.n_tokens;
            b.n_tokens += q.length;
            batch_seqs[b.n_seqs++] = q;
        }
        status = op_model_forward(s->model, pass, &b, &(op_how){0}, e);
        if (!status)
            status = op_model_logprobs(s->model, pass, want, NULL, logp, e);
        for (int32_t i = 0; i < b.n_tokens && !status; i++)
            if (want[i]) {
                *sum += logp[i];
                ++*tokens;
            }
        if (!status && stop && *stop)
            status = op_error_set(e, OP_ERR_INTERRUPTED, "stopped");
    }
    op_free(logp);
    return status;
}
