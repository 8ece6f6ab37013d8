/* operant/session.h: a subject in training: what a method may do.
 *
 * A protocol file lists stages; each has a method, a teacher, a schedule of reinforcement, a criterion for going on and a budget. A stage runs in
 * rounds: cues are drawn, the policy answers, the teacher speaks as the schedule says, the method turns trials into lessons, the learner takes a
 * step, everything is stored. A method is one file in src/methods with a `round` function and one line in the table there; it makes trials and lessons
 * through the functions below and never touches weights.
 *
 * The run directory is that of operant/train.h, with trials in trials.db. After every round it is resumable; a kill in the middle of a round goes back to its
 * beginning, and since sampling is drawn by (seed, round, request), and stored trials have keys, it ends in the same weights and the same store. */
#ifndef OPERANT_SESSION_H
#define OPERANT_SESSION_H

#include <operant/config.h>
#include <operant/lesson.h>
#include <operant/reinforce.h>
#include <operant/store.h>
#include <operant/subject.h>
#include <operant/teacher.h>

/* What is asked: a dialogue of the data file, or an episode of the chamber. */
typedef struct op_cue {
    int32_t *prompt, n_prompt; /* token ids */
    json_t *messages;          /* or NULL */
    json_t *tags;              /* copied into every trial: class, topic, "reference" (right answer), neighbour of, ... */
} op_cue;

typedef struct op_session op_session;
typedef struct op_method op_method;

/* A stage, resolved; filled through op_stage_table. */
typedef struct op_stage {
    char *name;
    char *method_name;
    const op_method *method;
    void *settings;                 /* the method's own, by its table; NULL: it has none */
    int64_t rounds, prompts, group; /* budget in rounds; cues of a round; answers to each */
    op_sampling sampling;
    double temperature, top_p, min_p, repetition_penalty;
    int64_t top_k, max_tokens;
    double until_success;           /* ends when the rate of success over the last `until_over` trials reaches it; 0: never */
    int64_t until_over, budget_trials, budget_tokens; /* 0: none */
    double lr;                      /* 0: the protocol's learning_rate */
    int64_t updates;                /* learner steps over the trials of a round */
    double success_above;           /* a reward above this is a success; without a reward, no negative mark is one */
    int thin;                       /* what the schedule takes away: 0 all feedback, 1 the reward only (marks stay) */
    op_lesson_options lesson;
} op_stage;

struct op_method {
    const char *name;      /* in protocol files */
    const char *help;
    const op_option *table; /* keys of its own in a stage; NULL: none */
    size_t settings_size;
    bool asks_nothing;      /* a stage needs no cues */
    /* One round: sample, teach, fill the session's lesson. The session then learns and stores. */
    op_status (*round)(op_session *s, const op_stage *stage, op_error *e);
};

/* Where cues come from: "data" (a file of dialogues or prompts, in src/trial), or a world such as the chamber. */
typedef struct op_cue_source op_cue_source;
struct op_cue_source {
    void *ctx;
    uint64_t n;            /* cues of a pass; 0: endless */
    op_status (*draw)(op_cue_source *c, uint64_t index, op_cue *out, op_error *e); /* out is released by op_cue_release */
    void (*free)(op_cue_source *c);
};
typedef struct op_cue_source_type {
    const char *name, *help;
    op_status (*open)(op_cue_source **out, const json_t *settings, const op_classroom *room, op_error *e);
} op_cue_source_type;
void op_cue_release(op_cue *c);

/* What a session is put together from by the program; src/trial does not know the folders above it. */
typedef struct op_session_kit {
    const op_method *const *methods;    /* NULL-terminated */
    const op_teacher_type *teachers;    /* besides op_teacher_types; ends with a name of NULL; NULL: none */
    const op_cue_source_type *sources;  /* besides "data"; ends with a name of NULL; NULL: none */
} op_session_kit;

extern const op_method *const op_methods[]; /* NULL-terminated; src/methods/methods.c */

/* ---- what a method may do; every trial made belongs to the session and lives until the round ends ---- */

/* The cues of this round, drawn by seed (without replacement within a pass over the data). */
op_status op_session_cues(op_session *s, op_cue *const **cues, size_t *n, op_error *e);
/* group answers to each of n cues: trials[i * group + k]. All at once, in one batch. */
op_status op_session_sample(op_session *s, const op_cue *const *cues, size_t n, int64_t group, op_trial ***trials, op_error *e);
/* Answers again: keeps the first at[i] response tokens of trials[i], places forced[i] (n_forced[i] tokens; NULL: none) and lets the policy go on. The new trials
 * name what they redo. */
op_status op_session_redo(op_session *s, op_trial *const *trials, size_t n, const int32_t *at, const int32_t *const *forced, const int32_t *n_forced,
                          op_trial ***out, op_error *e);
/* Adds the k likeliest tokens at response token at[i] (k <= 64) to each trial as alternatives by "model". */
op_status op_session_alternatives(op_session *s, op_trial *const *trials, size_t n, const int32_t *at, int32_t k, op_error *e);
/* The teacher speaks of every trial, as far as the schedule lets it; success[i] (may be NULL) says what it thought, also of probes. */
op_status op_session_teach(op_session *s, op_trial *const *trials, size_t n, bool *success, op_error *e);
/* The teacher's opinion without the schedule and without a trace in the schedule (for choosing among alternatives). */
op_status op_session_ask(op_session *s, op_trial *const *trials, size_t n, op_error *e);
op_lesson *op_session_lesson(op_session *s);
/* A trial made by hand (a reference answer, a teacher's text): tokens copied. */
op_status op_session_trial(op_session *s, const op_cue *cue, const int32_t *response, int32_t n, const char *by, op_trial **out, op_error *e);
const op_cue *op_session_cue_of(const op_session *s, const op_trial *t);
const op_chat *op_session_chat(const op_session *s);
/* The model with its words, read-only: for its hidden states, say. */
const op_subject *op_session_subject(const op_session *s);
/* A cue of the method's own making, for this round. What it holds is taken, also on failure. */
op_status op_session_add_cue(op_session *s, op_cue *cue, const op_cue **out, op_error *e);
/* Which trial of the run this is. A later round that tells it again (op_session_trial with the same tokens) says so with op_session_is, and the store
 * keeps one trial, with one id; what that one redid or who redid it holds for both. */
int64_t op_session_number(const op_session *s, const op_trial *t);
void op_session_is(op_session *s, const op_trial *t, int64_t number);
/* What the method remembers from round to round: a JSON object, empty when the stage begins and kept in checkpoints. Borrowed; never NULL. A value that an
 * earlier round put there is replaced or removed, not changed in place: a round that is interrupted is done again from what was there when it began. */
json_t *op_session_memory(op_session *s);
/* A file that the settings name, relative to the protocol or to the working directory. *out is freed with op_free. */
op_status op_session_path(const op_session *s, const char *file, char **out, op_error *e);
uint64_t op_session_random(op_session *s, uint64_t purpose); /* fixed by seed, round and the number of calls in it */

/* ---- running ---- */

typedef struct op_session_progress {
    const char *stage, *method;
    int64_t round, rounds;  /* of the stage */
    int64_t trials, tokens; /* of the run: responses, and tokens sampled */
    double success;         /* of the last `over` trials that the teacher looked at, NAN: none yet */
    double reward;          /* mean of this round, NAN: none given */
    op_lesson_stats lesson; /* of this round's last update */
    double model_share;     /* of the round's time spent in the model */
    double seconds, eta_s;
} op_session_progress;

typedef struct op_session_callbacks {
    void *ctx;
    void (*progress)(void *ctx, const op_session_progress *p); /* NULL: none; after every round */
    const volatile int *stop; /* becomes non-zero: the round is finished, a checkpoint written, OP_ERR_INTERRUPTED; NULL: never */
} op_session_callbacks;

typedef struct op_session_result {
    int64_t rounds, trials, tokens, resumed_from;
    double success, seconds, model_share;
    char output_dir[1024];
} op_session_result;

/* The keys of a protocol file's top level, besides cues, teacher, schedule (defaults of the stages) and stages. */
extern const op_option op_protocol_table[];
/* The keys of a stage, besides those, lesson.* and the method's own. */
extern const op_option op_stage_table[];

/* Is this YAML file a protocol (has it stages)? */
bool op_is_protocol(const char *path);

/* Runs a protocol file to its end; `overrides` are n "key=value" for its top level. The result lies in output_dir as with op_sft_run, beside it
 * results.json (figures of every stage; transcripts: the answers of the last stage with the highest and the lowest rewards) and trials.db. Stopped by `stop`: OP_ERR_INTERRUPTED, and the same call goes on. */
op_status op_session_run(const char *protocol, const op_session_kit *kit, const char *const *overrides, size_t n_overrides, const op_session_callbacks *c,
                         op_session_result *result, op_error *e);

#endif
