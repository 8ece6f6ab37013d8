/* Asking a model many episodes at once. */
#include "chamber/answers.h"

#include <string.h>

#include "base/mem.h"
#include "base/rng.h"

enum { CHUNK = 64, MAX_TOKENS = 160 };

typedef struct chunk {
    op_chamber_episode episodes[CHUNK];
    op_request requests[CHUNK];
    op_tokens prompts[CHUNK];
} chunk;

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory while asking episodes");
}

static op_status prepare(const chamber_asking *q, const op_chamber *world, chunk *c, size_t i, uint64_t index, op_error *e)
{
    op_status s = op_chamber_make(world, index, &c->episodes[i], e);
    json_t *messages = s ? NULL : json_pack("[{ss ss}]", "role", "user", "content", c->episodes[i].prompt);
    if (!s && !messages)
        s = no_memory(e);
    s = s ? s : op_chat_encode(q->chat, messages, NULL, true, &c->prompts[i], NULL, NULL, e);
    json_decref(messages);
    c->requests[i] = (op_request){.prompt = c->prompts[i].ids, .n_prompt = (int32_t)c->prompts[i].n, .adapter = q->adapter, .share = -1,
                                  .sampling = {.temperature = q->temperature, .top_p = 1, .repetition_penalty = 1, .max_tokens = MAX_TOKENS,
                                               .seed = op_rng_u64((uint64_t)q->world->seed, OP_STREAM_CHAMBER, index)}};
    return s;
}

/* ---- a partner goes on ---- */

static bool first_part_said(const chamber_asking *q, const int32_t *tokens, int32_t n)
{
    int64_t sentences = 0;
    for (int32_t i = 0; i < n; i++) {
        size_t length = 0;
        const char *bytes = op_tokenizer_bytes(q->chat->tokenizer, tokens[i], &length);
        sentences += bytes && length && strchr(".?!", bytes[length - 1]) != NULL;
    }
    return sentences >= q->handover;
}

static op_verdict stop_there(void *ctx, size_t request, const int32_t *tokens, int32_t n, float logprob)
{
    (void)request;
    (void)logprob;
    return first_part_said(ctx, tokens, n) ? OP_STOP : OP_GO;
}

/* All tokens of a request: its prompt and what was said. NULL: no memory. */
static int32_t *said_so_far(const op_request *r)
{
    int32_t *all = op_alloc_array((size_t)(r->n_prompt + r->n), sizeof *all);
    if (all) {
        memcpy(all, r->prompt, (size_t)r->n_prompt * sizeof *all);
        memcpy(all + r->n_prompt, r->tokens, (size_t)r->n * sizeof *all);
    }
    return all;
}

/* What `more` said goes behind what r said. Nobody asks for the log-probabilities of two models in a row. */
static op_status append(op_request *r, const op_request *more, op_error *e)
{
    int32_t *all = op_realloc(r->tokens, (size_t)(r->n + more->n) * sizeof *all);
    if (!all)
        return no_memory(e);
    memcpy(all + r->n, more->tokens, (size_t)more->n * sizeof *all);
    r->tokens = all;
    r->n += more->n;
    op_free(r->logprobs);
    r->logprobs = NULL;
    return OP_OK;
}

/* The first speaker's part is there; what ended before it was all said stands. */
static op_status partner_goes_on(const chamber_asking *q, chunk *c, size_t n, op_error *e)
{
    op_request later[CHUNK], *of[CHUNK];
    size_t m = 0;
    op_status s = OP_OK;
    for (size_t i = 0; i < n && !s; i++) {
        op_request *r = &c->requests[i];
        if (!first_part_said(q, r->tokens, r->n))
            continue;
        later[m] = (op_request){.prompt = said_so_far(r), .n_prompt = r->n_prompt + r->n, .adapter = q->partner_adapter, .share = -1, .sampling = r->sampling};
        later[m].sampling.seed = op_rng_u64(r->sampling.seed, OP_STREAM_CHAMBER, 1);
        s = later[m].prompt ? OP_OK : no_memory(e);
        of[m++] = r;
    }
    s = s || !m ? s : op_generate(q->partner, later, m, &(op_generate_options){.interrupt = q->stop}, e);
    for (size_t i = 0; i < m; i++) {
        s = s ? s : append(of[i], &later[i], e);
        op_free((void *)later[i].prompt);
        op_request_release(&later[i]);
    }
    return s;
}

/* ---- asking ---- */

static op_status hear(const chamber_asking *q, const chunk *c, size_t i, op_error *e)
{
    const op_request *r = &c->requests[i];
    op_buf text;
    op_chamber_verdict v = {0};
    op_buf_init(&text, 1 << 20);
    op_status s = op_tokenizer_decode(q->chat->tokenizer, r->tokens, (size_t)r->n, OP_DECODE_SKIP_SPECIAL, &text) ? no_memory(e) : OP_OK;
    const char *words = text.data ? text.data : "";
    s = s ? s : op_chamber_judge(&c->episodes[i], words, &v, e);
    s = s ? s : q->heard(q->ctx, &(chamber_answer){&c->episodes[i], &c->prompts[i], r, words, &v}, e);
    op_chamber_verdict_release(&v);
    op_buf_release(&text);
    return s;
}

static op_status ask_chunk(const chamber_asking *q, const op_chamber *world, chunk *c, uint64_t first, size_t n, op_error *e)
{
    op_status s = OP_OK;
    for (size_t i = 0; i < n; i++) {
        op_tokens_init(&c->prompts[i]);
        c->episodes[i] = (op_chamber_episode){0};
        c->requests[i] = (op_request){0};
    }
    for (size_t i = 0; i < n && !s; i++)
        s = prepare(q, world, c, i, first + i, e);
    op_generate_options how = {.interrupt = q->stop, .ctx = (void *)q, .stop = q->partner ? stop_there : NULL};
    s = s ? s : op_generate(q->model, c->requests, n, &how, e);
    s = s || !q->partner ? s : partner_goes_on(q, c, n, e);
    for (size_t i = 0; i < n; i++) {
        s = s ? s : hear(q, c, i, e);
        op_request_release(&c->requests[i]);
        op_tokens_release(&c->prompts[i]);
        op_chamber_release(&c->episodes[i]);
    }
    return s;
}

op_status chamber_ask(const chamber_asking *q, int64_t n, op_error *e)
{
    op_chamber *world = NULL;
    chunk *c = op_alloc_zero(1, sizeof *c);
    op_status s = c ? op_chamber_open(&world, q->world, e) : no_memory(e);
    for (int64_t done = 0; done < n && !s; done += CHUNK)
        s = ask_chunk(q, world, c, CHAMBER_FRESH + (uint64_t)done, (size_t)(n - done < CHUNK ? n - done : CHUNK), e);
    op_chamber_close(world);
    op_free(c);
    return s;
}
