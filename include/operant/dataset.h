/* operant/dataset.h: training data, from the public forms to token ids with a signed weight for every token.
 *
 * Forms are detected by their keys, never guessed silently: an unknown or missing key is an error with file and line.
 *   messages              [{"role","content","weight"?}...]: assistant turns have weight 1 (or "weight"), the rest 0
 *   prompt + completion   (strings, or message lists): completion 1, prompt 0
 *   instruction, input?, output (Alpaca)     as a user turn and an assistant turn
 *   conversations (ShareGPT) [{"from","value"}]
 *   text                  every token weight 1
 *   prompt|messages + response + marks?      own form: marks [{"start","end","value","by"?}] (code points of `response`, end exclusive)
 *                         set the signed weight of the response tokens that they touch; unmarked response tokens have `weight` (default 1)
 *   tokens                lines of `operant trials export`, if op_dataset_options.trials reads them: ids as they were sampled, nothing is encoded again
 * An optional top-level "weight" multiplies a line; "id", "tags", "topic", "class", "kind" are carried along, ignored.
 * Files are .jsonl, .json (an array) or either with .gz. */
#ifndef OPERANT_DATASET_H
#define OPERANT_DATASET_H

#include <stdint.h>

#include <jansson.h>

#include <operant/chat.h>
#include <operant/jsonl.h>
#include <operant/status.h>

typedef struct op_example {
    int32_t *ids;   /* [n] */
    float *weights; /* [n] signed weight of token i as something to predict; 0: context. weights[0] is always 0 */
    int32_t n;
    int32_t line;   /* of the file, from 1 */
} op_example;

/* An example out of a trial: a line with "tokens", and with "prompt_tokens" if it has a "response", too (operant generate writes lines that lack them). One of
 * weights that are all zero has nothing to teach: a file's is left out. */
typedef op_status (*op_example_fn)(op_example *out, const json_t *line, const op_chat *chat, const char *name, op_error *e);

typedef struct op_dataset {
    op_example *examples; /* owned */
    size_t n;
    char form[32];        /* the form found, "messages" etc. */
    char hash[65];        /* SHA-256 of the file's bytes: resume refuses data that changed */
    int64_t tokens, trained_tokens; /* all, and those with a weight other than 0 */
    int64_t truncated;    /* examples cut at max_length */
    int64_t left_out;     /* trials that have nothing to teach */
} op_dataset;

typedef struct op_dataset_options {
    int32_t max_length; /* tokens; longer examples are cut at the end; 0: no limit. An example with no trained token left is an error */
    int last_turn_only; /* weight only the last assistant turn of a dialogue */
    int32_t onset_tokens; /* the first tokens of every run of weighted tokens, where a reply decides what it is, ... */
    float onset_weight;   /* ... have this many times their weight; 0 is taken as 1 */
    op_example_fn trials; /* op_trial_example (operant/trial.h); NULL: they are refused */
} op_dataset_options;

op_status op_dataset_read(op_dataset *out, const char *path, const op_chat *chat, const op_dataset_options *o,
                          op_error *e);
void op_dataset_release(op_dataset *d);

/* One line of a file as an example (also for preprocess). The form is detected. `name` is for errors. */
op_status op_example_from_json(op_example *out, json_t *line, const op_chat *chat, const op_dataset_options *o,
                               const char *name, op_error *e);
void op_example_release(op_example *x);

#endif
