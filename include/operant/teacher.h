/* operant/teacher.h: who says what of a response was good.
 *
 * A teacher looks at a trial and adds feedback to it: marks, a reward, alternatives. A rule file, a reference answer, a frozen judge model, a person
 * at the terminal, a learned marker and any program that speaks JSON lines are teachers; a new one is one file and one line in the table of
 * src/trial/teachers.c. When it speaks is not its business: that is the schedule of reinforcement (operant/reinforce.h). */
#ifndef OPERANT_TEACHER_H
#define OPERANT_TEACHER_H

#include <operant/chat.h>
#include <operant/model.h>
#include <operant/trial.h>

/* What a teacher may use of the subject, read-only. Borrowed. */
typedef struct op_classroom {
    const op_chat *chat;      /* tokenizer and template of the subject */
    op_model *model;          /* the subject, for its alternatives and hidden states; NULL: not there */
    const char *dir;          /* files named by the settings are looked for here first, then in the working directory; NULL: only there */
    uint64_t seed;
    const struct op_teacher_type *more; /* types of teachers besides op_teacher_types, for teachers made of others; NULL: none */
} op_classroom;

typedef struct op_teacher op_teacher;

struct op_teacher {
    const char *name;   /* static or owned by ctx */
    void *ctx;          /* zeroed, as large as op_teacher_new was asked for */
    /* Adds feedback to every trial. A trial that it has nothing to say of is left alone. */
    op_status (*teach)(op_teacher *t, op_trial *const *trials, size_t n, op_error *e);
    /* Learns from the trials of a round, once they have their feedback (a learned marker). NULL: does not. */
    op_status (*learn)(op_teacher *t, op_trial *const *trials, size_t n, op_error *e);
    bool asked;         /* set while a method asks for an opinion (op_session_ask): schedules of the teacher's own neither count nor withhold */
    /* What a resume needs of it, as a JSON value, and back. NULL: no state. */
    op_status (*save)(op_teacher *t, json_t **state, op_error *e);
    op_status (*load)(op_teacher *t, const json_t *state, op_error *e);
    /* Releases what ctx holds; teacher and ctx themselves are freed by op_teacher_close. NULL: nothing. */
    void (*free)(op_teacher *t);
};

typedef struct op_teacher_type {
    const char *name, *help;
    op_status (*open)(op_teacher **out, const json_t *settings, const op_classroom *room, op_error *e);
} op_teacher_type;

/* The teachers of src/trial: rules, reference, judge, marker, program, several. Ends with a name of NULL. docs/teachers.md has their settings and writes
 * another one. */
extern const op_teacher_type op_teacher_types[];

/* settings: {"type": NAME, ...}, the name from op_teacher_types or from `more` (may be NULL; ends as op_teacher_types does); each type documents
 * its own keys and refuses unknown ones. What `room` points to must outlive the teacher. */
op_status op_teacher_open(op_teacher **out, const json_t *settings, const op_classroom *room, const op_teacher_type *more, op_error *e);
void op_teacher_close(op_teacher *t); /* NULL is fine */

/* ---- for those who write teachers ---- */

/* A teacher with a zeroed ctx of `bytes`; the rest is for the caller to fill in. */
op_status op_teacher_new(op_teacher **out, const char *name, size_t bytes, op_error *e);
/* Gives the trial a reward, added to what it has already, and says who gave feedback if nobody did before. */
op_status op_teacher_reward(op_trial *t, double reward, const char *by, op_error *e);
/* Did the response do well? With a reward: is it above 0; without one: is nothing marked bad. What the schedules of "several" go by. */
bool op_teacher_success(const op_trial *t);

#endif
