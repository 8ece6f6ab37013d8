/* operant/generate.h: sampling from a model, many prompts at once.
 *
 * Requests run together in up to `max_batch` slots; a finished one leaves and the next takes its place. A row of the sampler's products depends on
 * no other row, and those of adapters have one fixed, padded number of rows, so the tokens and log-probabilities of a request depend only
 * on the request (its prompt, adapter, sampling settings, seed), never on what ran beside it; for one build, instruction set and
 * number of threads. One exception: the products of adapters where oneDNN
 * multiplies floats with AVX2 (op_ops_product_isa(), what `operant env` shows as products, is avx2 or avx2_vnni): their last place depends
 * on the slot; max_batch 1, or ONEDNN_MAX_CPU_ISA=AVX in the environment, keeps the promise there. */
#ifndef OPERANT_GENERATE_H
#define OPERANT_GENERATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <operant/model.h>
#include <operant/status.h>

typedef struct op_sampling {
    double temperature;        /* 0: greedy; default 1 */
    int32_t top_k;             /* 0: off */
    double top_p;              /* 1: off */
    double min_p;              /* 0: off; relative to the likeliest token */
    double repetition_penalty; /* 1: off (Keskar et al.: 1909.05858, section 4.1) */
    int32_t max_tokens;        /* new tokens, 1 or more */
    uint64_t seed;             /* of this request */
} op_sampling;

typedef enum op_finish { OP_FINISH_STOP, OP_FINISH_LENGTH, OP_FINISH_VETO } op_finish; /* end token or stop callback; max_tokens or context; veto */

typedef struct op_request {
    const int32_t *prompt; /* [n_prompt], n_prompt >= 1, borrowed */
    int32_t n_prompt;
    int32_t adapter;       /* -1: none */
    int32_t share;         /* an earlier request of the same call whose first share_n prompt tokens are also this one's (computed once), or -1 */
    int32_t share_n;
    op_sampling sampling;
    /* results: tokens include the end token that finished the text */
    int32_t *tokens;       /* [n] owned by the request, freed by op_request_release */
    float *logprobs;       /* [n] log p under the model itself (temperature 1, nothing forbidden), as the training forward gives it */
    int32_t n;
    op_finish finish;
} op_request;

void op_request_release(op_request *r);

/* What a gate or stop callback answers. */
typedef enum op_verdict { OP_GO, OP_STOP, OP_VETO } op_verdict;

typedef struct op_generate_options {
    int32_t max_batch; /* slots, 1..32; 0: 32 */
    const int32_t *stop_ids; /* besides the model's end tokens */
    int32_t n_stop_ids;
    bool ignore_eos;
    void *ctx;
    /* Before a token is drawn: may forbid tokens by setting logits[V] to -INFINITY. ids[n]: prompt and tokens so far. NULL: none. */
    op_verdict (*gate)(void *ctx, size_t request, const int32_t *ids, int32_t n, float *logits);
    /* After a token was drawn: OP_STOP ends the text as finished, OP_VETO as vetoed. The new tokens only. Also serves streaming. NULL: none. */
    op_verdict (*stop)(void *ctx, size_t request, const int32_t *tokens, int32_t n, float logprob);
    /* Called when a request is finished. NULL: none. */
    void (*done)(void *ctx, size_t request, const op_request *r);
    const volatile int *interrupt; /* becomes non-zero: OP_ERR_INTERRUPTED; NULL: never */
} op_generate_options;

/* Runs all requests. On failure the results so far remain and must be released all the same. */
op_status op_generate(op_model *m, op_request *requests, size_t n, const op_generate_options *o, op_error *e);

#endif
