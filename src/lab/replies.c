#include <ctype.h>
#include <string.h>

#include "base/mem.h"
#include "lab/parts.h"

enum { REPLY_BYTES_MAX = 1 << 20, RUN = 8 /* words */ };

/* The length of the word at s, and of the blanks after it in *gap. */
static size_t word_length(const char *s, size_t *gap)
{
    size_t n = 0;
    while (s[n] && !isspace((unsigned char)s[n]))
        n++;
    for (*gap = 0; isspace((unsigned char)s[n + *gap]);)
        ++*gap;
    return n;
}

/* Are the RUN words at a the same as those at b? */
static bool same_words(const char *a, const char *b)
{
    for (int i = 0; i < RUN; i++) {
        size_t gap_a, gap_b, n = word_length(a, &gap_a), m = word_length(b, &gap_b);
        if (!n || n != m || memcmp(a, b, n) != 0)
            return false;
        a += n + gap_a;
        b += m + gap_b;
    }
    return true;
}

bool op_text_repeats(const char *text)
{
    size_t gap;
    for (const char *a = text; *a; a += word_length(a, &gap), a += gap)
        for (const char *b = a + word_length(a, &gap) + gap; *b; b += word_length(b, &gap), b += gap)
            if (same_words(a, b))
                return true;
    return false;
}

static op_status encode(op_lab *l, op_error *e)
{
    for (size_t i = 0; i < l->cases.n; i++) {
        op_case *c = &l->cases.at[i];
        op_status status = op_chat_encode(&l->subject.chat, c->messages, NULL, true, &c->prompt, NULL, NULL, e);
        if (status) {
            op_error_prefix(e, "prompt \"%.40s\"", c->id);
            return status;
        }
    }
    return OP_OK;
}

static int32_t common_prefix(const op_tokens *a, const op_tokens *b)
{
    size_t n = 0;
    while (n < a->n && n < b->n && a->ids[n] == b->ids[n])
        n++;
    return (int32_t)n;
}

/* Every prompt begins as the first one does (the system message, say): that much is computed once. */
static void make_requests(op_lab *l)
{
    const op_assay_options *o = l->o;
    for (size_t i = 0; i < l->cases.n; i++) {
        const op_tokens *prompt = &l->cases.at[i].prompt;
        int32_t shared = i ? common_prefix(prompt, &l->cases.at[0].prompt) : 0;
        l->requests[i] = (op_request){
            .prompt = prompt->ids, .n_prompt = (int32_t)prompt->n, .adapter = l->subject.adapter, .share = shared ? 0 : -1, .share_n = shared,
            .sampling = {.temperature = o->temperature, .top_p = 1, .repetition_penalty = 1, .max_tokens = (int32_t)o->max_tokens,
                         .seed = ((uint64_t)o->seed << 32) + i}};
    }
}

typedef struct watch {
    op_lab *lab;
    int64_t done, tokens;
} watch;

static void one_done(void *ctx, size_t request, const op_request *r)
{
    (void)request;
    watch *w = ctx;
    w->done++;
    w->tokens += r->n;
    op_lab_tell(w->lab, "replies", w->done, (int64_t)w->lab->cases.n, w->tokens, NULL); /* op_generate itself looks at the stop flag */
}

static op_status decode(op_lab *l, op_error *e)
{
    op_buf text;
    op_buf_init(&text, REPLY_BYTES_MAX);
    for (size_t i = 0; i < l->cases.n; i++) {
        op_case *c = &l->cases.at[i];
        const op_request *r = &l->requests[i];
        op_status status = op_tokenizer_decode(l->subject.tokenizer, r->tokens, (size_t)r->n, OP_DECODE_SKIP_SPECIAL, &text);
        c->reply = status ? NULL : op_buf_take(&text);
        if (!c->reply) {
            op_buf_release(&text);
            return op_error_set(e, OP_ERR_NOMEM, "out of memory for a reply");
        }
        c->loops = op_text_repeats(c->reply);
    }
    return OP_OK;
}

op_status op_lab_generate(op_lab *l, op_error *e)
{
    op_status status = encode(l, e);
    if (status)
        return status;
    l->requests = op_alloc_zero(l->cases.n, sizeof *l->requests);
    if (!l->requests)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for %zu prompts", l->cases.n);
    make_requests(l);
    op_lab_begin(l);
    watch w = {.lab = l};
    op_generate_options how = {.max_batch = (int32_t)l->o->batch, .ctx = &w, .done = one_done, .interrupt = l->callbacks->stop};
    status = op_generate(l->subject.model, l->requests, l->cases.n, &how, e);
    return status ? status : decode(l, e);
}
