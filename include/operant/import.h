/* operant/import.h: files of other people's feedback as trials.
 *
 * The form of a line is told by its keys; a line of no known form, and an unknown key, are errors with file and line. Files are .jsonl, .json (an array)
 * or either with .gz. What was not sampled here has no log-probabilities and no policy; what the file does not say is not made up.
 *
 *   form              keys                                              trials of a line
 *   own               prompt|messages + response, or tokens             one, as it is (docs/trials.md)
 *   preference (TRL)  prompt? + chosen + rejected, strings or messages  two, "chosen" and "rejected", rewards 1 and -1
 *   hh-rlhf           chosen + rejected, "\n\nHuman: ..." dialogues     likewise
 *   unpaired (TRL)    prompt + completion + label                       one, reward 1 or -1
 *   stepwise (TRL)    prompt + completions + labels                     one, a mark of 1 or -1 on every step
 *   evals             question + answer_[not_]matching_behavior         one for each answer, "matching" or "not matching"; no reward: which of them is
 *                                                                       good depends on the behaviour
 *   fine-grained      question, passages, "prediction 1".., feedback    one for each prediction and for the correction; error spans of the first
 *                                                                       are marks of -1, with the kind of error as note
 *   prm800k           question, label.steps                             the steps that were chosen, a mark with its rating on each; and one for every
 *                                                                       other completion of a step
 *   label-studio      data, annotations                                 one; labels are marks: good, correct, positive, +1 / bad, wrong, error,
 *                                                                       negative, -1 / neutral, 0 / a number from -1 to 1; others are errors
 *
 * Trials of one line name each other by tags: "group" is the same in all of them, "answer" is the name of one, and "better_than" and "worse_than" list the
 * answers that people held it better and worse than, with commas. A correction also redoes what it corrects, from the first token that differs. */
#ifndef OPERANT_IMPORT_H
#define OPERANT_IMPORT_H

#include <operant/store.h>

typedef struct op_import_options {
    int32_t passages; /* of fine-grained feedback: how many passages of context the prompt shows; -1: all */
} op_import_options;

/* The trials of one line, as a new array, to be released with op_import_release. `group` becomes their tag. A redo_of of -(i + 1) means trial i of this
 * array. *form is the form's name. `o` NULL: all passages. `name` is file and line, for errors. */
op_status op_import_line(op_trial **out, size_t *n, const char **form, const json_t *line, const op_chat *chat, const op_import_options *o, const char *name,
                         const char *group, op_error *e);
void op_import_release(op_trial *trials, size_t n);

typedef struct op_import_result {
    char form[32];
    int64_t lines, trials, marks;
} op_import_result;

/* A whole file into the store, or, on failure, nothing of it. The same file imported twice is there once. In files of the own form redo.of names the "id"
 * of an earlier line. */
op_status op_import_file(op_store *s, const char *path, const op_chat *chat, const op_import_options *o, op_import_result *out, op_error *e);

/* Do both belong to one group, and do people hold `a` better than `b`? */
bool op_import_better(const op_trial *a, const op_trial *b);

#endif
