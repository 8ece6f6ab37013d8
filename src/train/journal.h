/* train/journal.h: metrics.jsonl of a run directory, and the same numbers for TensorBoard. */
#ifndef OP_TRAIN_JOURNAL_H
#define OP_TRAIN_JOURNAL_H

#include <stdint.h>

#include <jansson.h>

#include <operant/status.h>

typedef struct op_journal {
    int lines, events; /* file descriptors, -1: closed */
} op_journal;

/* Opens both files of `dir` for appending, after cutting metrics.jsonl back to the lines whose "step" is at most `step` (-1: none) and
 * writing the event file anew from these. */
op_status op_journal_open(op_journal *j, const char *dir, int64_t step, op_error *e);
/* Appends an object with an integer "step"; its other numbers become scalars in TensorBoard. Adds "time", in seconds since 1970. Takes `line` over. */
op_status op_journal_add(op_journal *j, json_t *line, op_error *e);
void op_journal_close(op_journal *j);

#endif
