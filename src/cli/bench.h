/* cli/bench.h: the kinds of work that `operant bench` measures (bench_work.c), each in a process of its own (cmd_bench.c). */
#ifndef OP_CLI_BENCH_H
#define OP_CLI_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include <operant/status.h>

typedef struct bench_options {
    char *model, *file, *at_once;
    int64_t batch, length, steps, lora_r, threads, block_tokens, prompt_tokens, max_tokens, prefill_tokens, prompts, answers;
    double peak_seconds;
    int dtype, weights, optim, grad_dtype, what;
    bool profile;
} bench_options;

/* Each adds its numbers to the object `out`: tokens_per_s, the median of o->steps repetitions after one that does not count, peak_rss_mb
 * of this process, and more. With o->profile also "profiles": an array of {"work", "seconds", "operations": [{"op", "N", "K", "calls",
 * "seconds", "bytes", "flop"}]}, all for one repetition. */
op_status bench_train(const bench_options *o, bool lora, json_t *out, op_error *e);
op_status bench_prefill(const bench_options *o, json_t *out, op_error *e);
op_status bench_generate(const bench_options *o, json_t *out, op_error *e);
op_status bench_update(const bench_options *o, json_t *out, op_error *e);
op_status bench_tokenize(const bench_options *o, json_t *out, op_error *e);

#endif
