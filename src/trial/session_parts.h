/* trial/session_parts.h: the state behind operant/session.h. protocol.c reads a protocol file, session.c is what methods call, session_run.c is
 * the loop with checkpoints, session_identity.c what a resume must share, transcripts.c what results show, cues.c the cues of a data file. */
#ifndef OP_TRIAL_SESSION_PARTS_H
#define OP_TRIAL_SESSION_PARTS_H

#include <operant/session.h>
#include <operant/trainee.h>

/* ---- protocol.c ---- */

typedef struct op_protocol_options {
    op_trainee_options trainee;
    char *store, *reference;
    int64_t save_rounds;
    bool keep_probes;
} op_protocol_options;

/* One stage with what it is opened from. Everything owned but `plan`'s pointers into the protocol's JSON. */
typedef struct op_stage_plan {
    op_stage stage;
    const json_t *teacher, *schedule, *cues; /* borrowed; NULL: none */
} op_stage_plan;

typedef struct op_protocol {
    op_protocol_options o;
    json_t *root;       /* the file, overrides applied */
    op_stage_plan *stages;
    size_t n;
    char hash[65];      /* of the resolved file */
} op_protocol;

op_status op_protocol_read(op_protocol *out, const char *path, const op_session_kit *kit, const char *const *overrides, size_t n_overrides, op_error *e);
/* The same of a file already read; `root` is taken, also on failure. Whatever comes of either, op_protocol_release frees it. */
op_status op_protocol_from_json(op_protocol *out, json_t *root, const char *path, const op_session_kit *kit, const char *const *overrides, size_t n_overrides,
                                op_error *e);
void op_protocol_release(op_protocol *p);

/* ---- cues.c ---- */

op_status op_cues_from_data(op_cue_source **out, const json_t *settings, const op_classroom *room, op_error *e);

/* ---- session.c ---- */

/* A trial of the round, and what the session knows of it. */
typedef struct op_entry {
    op_trial *trial;   /* owned */
    size_t cue;        /* index into the round's cues */
    size_t parent;     /* entry that it redoes, or SIZE_MAX */
    int64_t number;    /* of the trial in the run, and its key in the store */
    bool probe, success;
} op_entry;

enum { OP_SESSION_WINDOW = 4096 }; /* successes remembered at most */

struct op_session {
    const op_protocol *protocol;
    const op_session_callbacks *callbacks; /* never NULL */
    op_subject subject, reference;         /* reference.model NULL: none */
    op_learner *learner;
    op_store *store;
    op_classroom room;
    uint64_t seed;
    /* the stage */
    size_t stage_at;
    const op_stage *stage;
    op_teacher *teacher;       /* NULL: none */
    op_reinforce *schedule;
    op_cue_source *source;
    op_lesson *lesson;
    /* the round */
    int64_t round, stage_round; /* of the run, of the stage */
    op_cue **cues;
    size_t n_cues, cap_cues;
    op_entry *entries;
    size_t n_entries, cap_entries;
    void **owned;              /* arrays handed to the method, freed at the end of the round */
    size_t n_owned, cap_owned;
    uint64_t draws, samples;   /* random numbers and sampling requests so far in this round */
    char policy[65];
    double model_seconds;
    /* the run */
    json_t *memory;            /* the method's, never NULL in a stage */
    int64_t trials, tokens, stage_trials, stage_tokens;
    uint64_t cues_drawn;       /* of the stage's source */
    uint8_t successes[OP_SESSION_WINDOW]; /* a ring */
    int64_t n_successes;       /* ever told */
};

/* The share of successes among the last `over` (at most OP_SESSION_WINDOW); NAN before the first. */
double op_session_success(const op_session *s, int64_t over);
/* Forgets the round's trials and cues. */
void op_session_clear_round(op_session *s);

/* ---- session_identity.c ---- */

/* *identity: what decides the outcome of the run, by names that an error may say; the caller decrefs it, also after a failure. run_id is its hash. `dir` is the protocol's directory. */
op_status op_session_identity(const op_session *s, const op_protocol *p, const char *dir, json_t **identity, char run_id[65], op_error *e);

/* ---- transcripts.c ---- */

/* *shown: the two trials with the highest scores of the stage so far and the two with the lowest, of equal ones the latest; takes those of this round into
 * account. A new array in place of the old one: {title, score, prompt, response, note?} in the order in which they were sampled. Fails only with
 * OP_ERR_NOMEM, and then leaves *shown as it was. */
op_status op_transcripts_choose(const op_session *s, json_t **shown, op_error *e);

#endif
