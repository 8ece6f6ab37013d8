/* operant/trial.h: the record of one response and of what was said about it.
 *
 * Tokens are the truth: prompt and response are kept exactly as they were sampled, and text is a view of them. Places in a response are token
 * indexes, 0 .. n_response; JSON lines carry code points of the text, end exclusive, and the tokens beside them.
 *
 * A trial owns everything that it points to. op_trial_init makes an empty one, op_trial_release frees it, op_trial_copy makes a deep copy. */
#ifndef OPERANT_TRIAL_H
#define OPERANT_TRIAL_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include <operant/chat.h>
#include <operant/dataset.h>
#include <operant/generate.h>
#include <operant/status.h>
#include <operant/tokenizer.h>

typedef struct op_mark {
    int32_t start, end; /* response tokens start .. end-1; 0 <= start < end <= n_response */
    double value;       /* -1 .. 1 */
    char *by;           /* who marked; NULL: the trial's `by` */
    char *note;         /* kind of error or reason, or NULL */
} op_mark;

/* Another continuation at a response token: the first of `ids` would stand at token `at`. */
typedef struct op_alternative {
    int32_t at;
    int32_t *ids, n;    /* n >= 1 */
    double logprob;     /* of ids[0] under the policy, NAN: unknown */
    bool picked;        /* the teacher chose it */
    char *by;           /* "model", or who wrote it */
} op_alternative;

typedef struct op_trial {
    int64_t id;           /* given by the store, 0: none */
    int32_t *prompt, n_prompt;      /* token ids, template and special tokens included; n_prompt >= 1 */
    int32_t *response, n_response;  /* as sampled, with the end token if one was; n_response >= 0 */
    float *logprobs;      /* [n_response] log p of each under the policy that sampled it, NAN: unknown (forced); or NULL (imported, typed) */
    int32_t n_forced;     /* the first n_forced response tokens were placed by the teacher, or kept from the trial that this one redoes */
    char policy[65];      /* hash of the weights that sampled it, "" unknown */
    op_sampling sampler;  /* valid if logprobs is not NULL */
    op_finish finish;
    json_t *messages;     /* the dialogue that the prompt renders, or NULL */
    json_t *tags;         /* object of strings, numbers and booleans (context, cue, arm, class, ...), never NULL after init */
    op_mark *marks;
    int32_t n_marks;
    bool has_reward;
    double reward;        /* of the whole response */
    op_alternative *alternatives;
    int32_t n_alternatives;
    int64_t redo_of;      /* id of the trial that this one redoes, 0: none */
    int32_t redo_at;      /* response token that it was rewound to */
    char *by;             /* who gave the feedback, NULL: nobody yet */
    int64_t time;         /* of the response, ms since 1970 (UTC) */
} op_trial;

void op_trial_init(op_trial *t);
void op_trial_release(op_trial *t);
op_status op_trial_copy(op_trial *out, const op_trial *t, op_error *e);

#define OP_TRIAL_MARKS_MAX(n_response) (4 * (int64_t)(n_response) + 1024)

/* Marks (at most OP_TRIAL_MARKS_MAX) and alternatives must lie within the response, values within -1 .. 1, tokens within the vocabulary (0: unknown), and no
 * token may be marked good and bad by the same teacher. Where log-probabilities tell which tokens were sampled, no mark may touch one that was neither
 * sampled nor forced. The error names the trial. */
op_status op_trial_check(const op_trial *t, int32_t vocab, op_error *e);

/* Adds feedback; strings are copied. */
op_status op_trial_add_mark(op_trial *t, int32_t start, int32_t end, double value, const char *by, const char *note, op_error *e);
op_status op_trial_add_alternative(op_trial *t, int32_t at, const int32_t *ids, int32_t n, double logprob, bool picked, const char *by, op_error *e);
/* m[n_response]: the sum of the marks on every token, clamped to -1 .. 1. */
void op_trial_token_marks(const op_trial *t, float *m);
/* The first token with a negative mark, or -1. */
int32_t op_trial_first_error(const op_trial *t);

/* The text of response tokens from .. to-1, special tokens left out; a character cut by the boundary is a replacement character. *out is the caller's. */
op_status op_trial_text(const op_trial *t, const op_tokenizer *k, int32_t from, int32_t to, char **out, op_error *e);
/* begin[i] .. end[i]-1 are the code points of that text (of the whole response) that token i touches: none for a special token, and one that several
 * share where a token is a part of a character. Both are [n_response]. */
op_status op_trial_offsets(const op_trial *t, const op_tokenizer *k, int32_t *begin, int32_t *end, op_error *e);
/* The response tokens *start .. *end-1 that touch the code points from .. to-1; OP_ERR_ARG: they are none, or outside the text. */
op_status op_trial_span(const op_trial *t, const op_tokenizer *k, int64_t from, int64_t to, int32_t *start, int32_t *end, op_error *e);

/* The project's own JSON form (docs/trials.md). `k` turns code points into tokens and back; NULL: tokens alone, without text. `chat` is used for lines that
 * have no "prompt_tokens" or "tokens", and may be NULL for others. `name` is the file and line, for errors. On failure *out is released. */
op_status op_trial_from_json(op_trial *out, const json_t *line, const op_tokenizer *k, const op_chat *chat, const char *name, op_error *e);
op_status op_trial_to_json(const op_trial *t, const op_tokenizer *k, json_t **out, op_error *e);
/* What such a line teaches, for op_dataset_options.trials: prompt and response as they were sampled; each response token weighs the trial's reward (none: 0)
 * plus its marks, which is the advantage that a lesson without a baseline gives it. */
op_status op_trial_example(op_example *out, const json_t *line, const op_chat *chat, const char *name, op_error *e);
/* Appends it as one line, with the 17 digits that doubles need to come back as they were. */
op_status op_trial_append(const op_trial *t, const op_tokenizer *k, op_buf *out, op_error *e);

#endif
