/* operant/trainee.h: a model that learns: the settings that every kind of training shares, opening it for that, and saving the result.
 *
 * The settings are rows of the caller's own table (operant/config.h), so that their keys are the same everywhere:
 *     const op_option table[] = {OP_TRAINEE_ROWS(offsetof(settings, trainee)), {"more", ...}, {0}};
 * The result lies directly in output_dir: with method=full a model directory that transformers loads, with method=lora an adapter as PEFT writes it,
 * in both cases with the tokenizer's files. */
#ifndef OPERANT_TRAINEE_H
#define OPERANT_TRAINEE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <operant/config.h>
#include <operant/subject.h>
#include <operant/train.h>

enum { OP_METHOD_FULL, OP_METHOD_LORA };

typedef struct op_trainee_options {
    char *model, *output_dir;
    int method; /* OP_METHOD_* */
    int64_t lora_r;
    double lora_alpha, lora_dropout;
    char *lora_target_modules;
    bool lora_rslora, freeze_embedding;

    int optim;      /* op_optim */
    int grad_dtype; /* 0 f32, 1 bf16 */
    double learning_rate, adam_beta1, adam_beta2, adam_epsilon, weight_decay, max_grad_norm;

    int dtype; /* of OP_SUBJECT_DTYPES */
    char *backend;
    int64_t threads, block_tokens, share_prefix;
    bool recompute;
    int64_t seed;
    char *resume;
    int64_t save_total_limit;
    int save_dtype; /* 0 bf16, 1 f32, 2 f16 */
} op_trainee_options;

#define OP_TRAINEE_AT(base, field) ((base) + offsetof(op_trainee_options, field))
#define OP_TRAINEE_ROWS(base) \
    {"model|model_name_or_path", OP_OPTION_STRING, OP_TRAINEE_AT(base, model), NULL, 0, 0, NULL, "what to start from: a model directory, an adapter directory or a .gguf file"}, \
    {"output_dir|output", OP_OPTION_STRING, OP_TRAINEE_AT(base, output_dir), NULL, 0, 0, NULL, "run directory; the result lies directly in it"}, \
    {"method", OP_OPTION_CHOICE, OP_TRAINEE_AT(base, method), "full", 0, 0, "full|lora", "train every weight, or an adapter beside frozen weights"}, \
    {"lora.r|lora_r", OP_OPTION_INT, OP_TRAINEE_AT(base, lora_r), "16", 1, 512, NULL, "rank of the adapter"}, \
    {"lora.alpha|lora_alpha", OP_OPTION_FLOAT, OP_TRAINEE_AT(base, lora_alpha), "32", 0, 1e6, NULL, "the adapter's output is scaled by alpha / r"}, \
    {"lora.dropout|lora_dropout", OP_OPTION_FLOAT, OP_TRAINEE_AT(base, lora_dropout), "0", 0, 0.99, NULL, "probability that an input of the adapter is dropped"}, \
    {"lora.target_modules|lora_target_modules", OP_OPTION_LIST, OP_TRAINEE_AT(base, lora_target_modules), "all-linear", 0, 0, NULL, "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, or all-linear"}, \
    {"lora.rslora|lora.use_rslora|use_rslora", OP_OPTION_BOOL, OP_TRAINEE_AT(base, lora_rslora), "false", 0, 0, NULL, "scale by alpha / sqrt(r) instead"}, \
    {"freeze_embedding", OP_OPTION_BOOL, OP_TRAINEE_AT(base, freeze_embedding), "false", 0, 0, NULL, "method=full without the embedding (and the output layer tied to it): forgets less, runs faster"}, \
    {"optim", OP_OPTION_CHOICE, OP_TRAINEE_AT(base, optim), "adamw", 0, 0, OP_OPTIM_CHOICES, "adamw_8bit: its two moments in 8 bits each instead of 32, 6 bytes less for every trained parameter"}, \
    {"grad_dtype", OP_OPTION_CHOICE, OP_TRAINEE_AT(base, grad_dtype), "f32", 0, 0, "f32|bf16", "type of the gradients of method=full; bf16 (with dtype=bf16): 2 bytes less for every trained parameter"}, \
    {"learning_rate|lr", OP_OPTION_FLOAT, OP_TRAINEE_AT(base, learning_rate), "2e-5", 0, 10, NULL, "highest learning rate"}, \
    {"adam_beta1", OP_OPTION_FLOAT, OP_TRAINEE_AT(base, adam_beta1), "0.9", 0, 0.99999, NULL, "decay of AdamW's mean of gradients"}, \
    {"adam_beta2", OP_OPTION_FLOAT, OP_TRAINEE_AT(base, adam_beta2), "0.999", 0, 0.9999999, NULL, "decay of AdamW's mean of squared gradients"}, \
    {"adam_epsilon", OP_OPTION_FLOAT, OP_TRAINEE_AT(base, adam_epsilon), "1e-8", 0, 1, NULL, "added to AdamW's denominator"}, \
    {"weight_decay", OP_OPTION_FLOAT, OP_TRAINEE_AT(base, weight_decay), "0", 0, 10, NULL, "of matrices, per step and unit of learning rate"}, \
    {"max_grad_norm", OP_OPTION_FLOAT, OP_TRAINEE_AT(base, max_grad_norm), "1", 0, 1e9, NULL, "the gradient is scaled down to this length; 0: never"}, \
    {"dtype", OP_OPTION_CHOICE, OP_TRAINEE_AT(base, dtype), "auto", 0, 0, OP_SUBJECT_DTYPES, "type of activations and products; auto: bf16 where the processor multiplies it"}, \
    {"backend", OP_OPTION_STRING, OP_TRAINEE_AT(base, backend), NULL, 0, 0, NULL, "\"cpu\", or \"ref\" for plain C"}, \
    {"threads", OP_OPTION_INT, OP_TRAINEE_AT(base, threads), "0", 0, 4096, NULL, "0: one a core"}, \
    {"block_tokens", OP_OPTION_INT, OP_TRAINEE_AT(base, block_tokens), "512", 1, 1 << 24, NULL, "tokens of a micro-batch: decides memory, not the result"}, \
    {"share_prefix", OP_OPTION_INT, OP_TRAINEE_AT(base, share_prefix), "16", 0, 1 << 24, NULL, "examples of a micro-batch that begin with this many equal tokens compute them once; 0: never"}, \
    {"recompute|gradient_checkpointing", OP_OPTION_BOOL, OP_TRAINEE_AT(base, recompute), "false", 0, 0, NULL, "keep only the input of each layer and compute the rest again: less memory, more time"}, \
    {"seed", OP_OPTION_INT, OP_TRAINEE_AT(base, seed), "1", 0, 0, NULL, "of everything random: the held-out split, the order of the data, sampling, the adapter and dropout"}, \
    {"resume|resume_from_checkpoint", OP_OPTION_STRING, OP_TRAINEE_AT(base, resume), "auto", 0, 0, NULL, "auto: go on from the newest checkpoint of output_dir; none: start afresh; or a checkpoint's path"}, \
    {"save_total_limit", OP_OPTION_INT, OP_TRAINEE_AT(base, save_total_limit), "1", 0, 1 << 20, NULL, "checkpoints kept; 0: all"}, \
    {"save_dtype", OP_OPTION_CHOICE, OP_TRAINEE_AT(base, save_dtype), "bf16", 0, 0, "bf16|f32|f16", "type of the saved weights (method=full)"}

/* model and output_dir must be set and differ. */
op_status op_trainee_check(const op_trainee_options *o, op_error *e);
/* Opens the model with what is to be trained. One given as an adapter over a base: training an adapter goes on from it, training everything first folds
 * it in. The caller closes the subject. */
op_status op_trainee_open(op_subject *out, const op_trainee_options *o, op_error *e);
/* The optimiser's part of the settings; the objective is the caller's. */
op_learner_options op_trainee_learner(const op_trainee_options *o);
/* Saves into output_dir, and removes what an earlier run of the other method left there, which would be found first. */
op_status op_trainee_save(const op_subject *s, const op_trainee_options *o, op_error *e);

/* Adds every setting of `table` that decides what is learned to a JSON object, as the text that config.yaml has for it: the identity that a checkpoint and its
 * resume must share. `leave_out` (NULL-terminated, may be NULL) names more keys that do not decide, or that a hash stands for. */
op_status op_trainee_identity(json_t *out, const void *settings, const op_option *table, const char *const *leave_out, op_error *e);

#endif
