/* operant/sft.h: supervised fine-tuning with signed token weights: what `operant train` runs.
 *
 * Opens a model, its tokenizer and chat template, and a data set; holds some of it out; trains; saves. Keys are those that users of Hugging
 * Face's trainers know. The run directory (operant/train.h) is output_dir, and the result lies directly in it: with method=full a model
 * directory that transformers loads, with method=lora an adapter as PEFT writes it, in both cases with the tokenizer's files. */
#ifndef OPERANT_SFT_H
#define OPERANT_SFT_H

#include <stdbool.h>
#include <stdint.h>

#include <operant/config.h>
#include <operant/status.h>
#include <operant/train.h>
#include <operant/trainee.h>

/* Filled through op_sft_table (operant/config.h); the table tells keys, defaults, ranges and meanings. */
typedef struct op_sft_options {
    op_trainee_options trainee;
    char *train_file, *eval_file, *replay_file;
    double eval_fraction;
    int64_t max_length;
    bool last_turn_only;
    int64_t onset_tokens;
    double onset_weight;

    double min_lr_ratio, wsd_decay_ratio;
    int lr_scheduler_type; /* op_schedule_type */
    double warmup_ratio;
    int64_t warmup_steps;
    double num_train_epochs;
    int64_t max_steps;
    int64_t batch_size, gradient_accumulation_steps;

    int64_t eval_steps, save_steps, logging_steps;
} op_sft_options;

extern const op_option op_sft_table[];

/* What is known before the first step. */
typedef struct op_sft_plan {
    int64_t parameters, trained_parameters; /* of the model */
    int64_t examples, held_out, tokens, trained_tokens, truncated; /* of the data */
    int64_t steps;
    const char *form;  /* of the data set */
    const char *dtype; /* of the products */
    int threads;
} op_sft_plan;

typedef struct op_sft_callbacks {
    void *ctx;
    void (*plan)(void *ctx, const op_sft_plan *p);            /* NULL: none; called once */
    void (*progress)(void *ctx, const op_train_progress *p);  /* NULL: none */
    const volatile int *stop; /* as in op_train_callbacks */
    op_parallel *parallel;    /* the processes that train together, of which rank 0 saves; NULL: this one alone */
} op_sft_callbacks;

/* Runs to the end and saves the result. `callbacks` may be NULL. Stopped by `stop`, it writes a checkpoint but no result and returns OP_ERR_INTERRUPTED;
 * resume=auto then goes on. */
op_status op_sft_run(const op_sft_options *o, const op_sft_callbacks *callbacks, op_train_result *result, op_error *e);

#endif
