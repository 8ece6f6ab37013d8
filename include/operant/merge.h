/* operant/merge.h: several models into one, as mergekit's YAML says it.
 *
 * The file is read as mergekit 0.1.5 reads it (docs/merge.md lists the keys, the methods and the few differences) and gives the same tensors: bit for bit
 * where a method works element by element, to one step of bfloat16 where it sums or sorts, in distribution where it is random. A model is
 * a directory, a .gguf file or "MODEL+ADAPTER"; nothing is downloaded. Tensors are read from maps in parts and written at once, so that memory holds parts of
 * the inputs of one tensor and what the method must keep of it. */
#ifndef OPERANT_MERGE_H
#define OPERANT_MERGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <operant/status.h>

typedef struct op_merge_options {
    uint64_t seed; /* of dare_* and della*: the same seed gives the same bits, whatever the number of threads */
    /* Called for every tensor done; false stops with OP_ERR_INTERRUPTED. NULL: nobody watches. */
    bool (*watch)(void *ctx, size_t done, size_t total);
    void *ctx;
} op_merge_options;

typedef struct op_merge_report {
    size_t tensors;
    int64_t elements;
    int layers;
    char method[32];
} op_merge_report;

/* Merges what the YAML file `config` says into the model directory `output`: weights, config.json, the tokenizer, and the YAML itself as mergekit_config.yml.
 * Relative paths in it are from the current directory, as mergekit has it. All is written under another name first: on failure nothing is left, and a name that is
 * taken by anything but an empty directory is refused (OP_ERR_ARG). Errors of the YAML (OP_ERR_FORMAT, OP_ERR_ARG) name its line, those of models the tensor.
 * *report (may be NULL) is filled on success. */
op_status op_merge(const char *config, const char *output, const op_merge_options *o, op_merge_report *report, op_error *e);

/* The same for YAML in memory; `name` stands in messages. */
op_status op_merge_text(const char *yaml, size_t n, const char *name, const char *output, const op_merge_options *o, op_merge_report *report, op_error *e);

#endif
