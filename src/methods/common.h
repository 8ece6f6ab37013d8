/* methods/common.h: what several methods do. Sentences of a method's file read in these words:
 *
 *     answers a;                                 the cues of the round, their answers, what the teacher thought
 *     status = method_answers(s, stage, &a, e);
 *     ...
 *     method_answers_release(&a);
 *
 * Trials and cues are the session's; what these functions allocate is the caller's. */
#ifndef OP_METHODS_COMMON_H
#define OP_METHODS_COMMON_H

#include <operant/session.h>

typedef struct answers {
    op_cue *const *cues;
    size_t n_cues, n, group; /* trials[cue * group + k], n = n_cues * group */
    op_trial **trials;
    bool *success;           /* what the teacher thought, also where it was kept back. Owned */
} answers;

/* Draws the round's cues, samples a group of answers to each, and lets the teacher speak as the schedule says. Released also after a failure. */
op_status method_answers(op_session *s, const op_stage *stage, answers *out, op_error *e);
/* The same with the cues given. */
op_status method_answers_to(op_session *s, const op_stage *stage, op_cue *const *cues, size_t n, answers *out, op_error *e);
void method_answers_release(answers *a);
/* Learns from every group as the lesson's options say: outcome and marks. */
op_status method_add_groups(op_session *s, const answers *a, op_error *e);

/* Was it told that it failed? (A probe was not, nor is an answer whose feedback the schedule kept back.) */
bool method_punished(const op_trial *t, bool success);
/* Of a trial that was asked about and not taught: what op_session_teach would call a success. */
bool method_succeeded(const op_stage *stage, const op_trial *t);
/* How good the teacher found it: the reward, plus the mean of its marks over the response. */
double method_score(const op_trial *t);

/* The first response token in which the two differ; -1: one is the beginning of the other. */
int32_t method_parting(const op_trial *a, const op_trial *b);
/* Prefers `good` where the two part, over `span` tokens (0: all that follows). Nothing where they do not part. */
op_status method_prefer(op_session *s, const op_trial *good, const op_trial *bad, int32_t span, op_error *e);

/* The right answer of the cue (its tag "reference", with the token that ends a turn) as a trial by "reference". *out is NULL where it has none. */
op_status method_reference(op_session *s, const op_cue *cue, op_trial **out, op_error *e);

/* The steps of a response, its sentences: step i is the tokens ends[i-1] .. ends[i]-1; the last ends with the response. *ends is freed with op_free. */
op_status method_steps(const op_session *s, const op_trial *t, int32_t **ends, int32_t *n, op_error *e);

/* A trial as the lesson is to see it: `t` borrows from the real one what is not its own. */
typedef struct view {
    op_trial t;
    int32_t *prompt; /* owned, or NULL */
    op_mark *marks;  /* owned, or NULL */
} view;
/* Response tokens from .. to-1; those before become prompt, so that they earn nothing. Marks are cut to what is left. */
op_status method_view(view *out, const op_trial *t, int32_t from, int32_t to, op_error *e);
/* The same response with m[n_response] for marks. */
op_status method_view_marks(view *out, const op_trial *t, const float *m, op_error *e);
/* Releases n views (made by the above, or all zeros), adding them as one group before if `status`, which is handed on, is OP_OK. */
op_status method_add_views(op_session *s, view *views, size_t n, op_status status, op_error *e);

/* What is to be done again: trials[n], from which of its tokens, with what placed there. Begins as all zeros. */
typedef struct plan {
    op_trial **trials;
    int32_t *at, *n_forced;
    const int32_t **forced; /* borrowed; NULL: nothing */
    size_t n, cap;
} plan;
op_status method_plan_add(plan *p, op_trial *t, int32_t at, const int32_t *forced, int32_t n_forced, op_error *e);
/* All of it in one batch. The teacher is asked about the new trials, outside the schedule: a correction is no trial of its own. */
op_status method_plan_run(op_session *s, const plan *p, op_trial ***out, op_error *e);
void method_plan_release(plan *p);

/* A level that rises by one, up to `top`, whenever the share `criterion` of `over` trials or more was right. Kept in the session's memory; begins at 0. */
int64_t method_level(op_session *s);
op_status method_climb(op_session *s, int64_t right, int64_t tried, double criterion, int64_t over, int64_t top, op_error *e);

/* `times` the round's number of cues, to choose from. *cues is freed with op_free. */
op_status method_pool(op_session *s, int64_t times, op_cue ***cues, size_t *n, op_error *e);

/* later.c: keeps a copy of the trial for a later round of the stage. A method that keeps any calls method_recall once a round, before it keeps: *out[n]
 * are those that are due now, as trials of this round made by hand, with their feedback. *out is freed with op_free. */
op_status method_keep(op_session *s, const op_trial *t, int64_t rounds, op_error *e);
op_status method_recall(op_session *s, op_trial ***out, size_t *n, op_error *e);

/* hidden.c: the mean of the residual stream that enters `layer` (L: that leaves the last) over each prompt, into out[n * C]. */
op_status method_hidden(op_session *s, op_cue *const *cues, size_t n, int32_t layer, float *out, op_error *e);

/* attention.c: share[i][n_response], the attention that the last token of trials[i] pays to each of its response tokens, scaled to a mean of 1 over them. The
 * arrays are the caller's (op_free), also after a failure; NULL where there is no response. */
op_status method_attention(op_session *s, op_trial *const *trials, size_t n, float **share, op_error *e);

op_status method_no_memory(op_error *e);

#endif
