/* cli/teach.h: what `operant teach` is made of: a desk with the trial at hand and what was said about it so far, and a screen that shows it. */
#ifndef OP_CLI_TEACH_H
#define OP_CLI_TEACH_H

#include <operant/store.h>

#include "cli/cli.h"

enum { TEACH_TOP = 10, TEACH_ACTIONS_MAX = 1000 };

/* One thing that the person did; they are replayed, so that undoing is forgetting the last. */
typedef struct teach_action {
    enum { TEACH_MARK, TEACH_ALTERNATIVE, TEACH_REWARD } what;
    int32_t start, end; /* mark: tokens; alternative: start is its place */
    double value;       /* mark (0 takes it away) or reward; alternative: log p or NAN */
    int32_t *ids, n;    /* alternative; owned */
    bool typed;         /* by the person, not one of the model's */
} teach_action;

/* ---- the desk (teach_desk.c) ---- */
typedef struct teach_desk {
    op_trial trial;     /* as it is in the store */
    const char *by;     /* the person */
    char *draft;        /* path of the file that holds the actions until they are accepted */
    teach_action *actions; /* [TEACH_ACTIONS_MAX] */
    int n_actions;
} teach_desk;

op_status teach_desk_init(teach_desk *d, const char *by, const char *draft, op_error *e);
void teach_desk_release(teach_desk *d);
/* Puts a trial on the desk (taken over) and forgets the actions. */
void teach_desk_lay(teach_desk *d, op_trial *t);
/* Adds an action (ids are copied) and writes the draft. */
op_status teach_desk_do(teach_desk *d, const teach_action *a, op_error *e);
op_status teach_desk_undo(teach_desk *d, op_error *e); /* nothing to undo is fine */
/* value[n_response]: the mark of each token now. */
void teach_desk_marks(const teach_desk *d, float *value);
const teach_action *teach_desk_alternative(const teach_desk *d, int32_t at); /* the last one there, or NULL */
const teach_action *teach_desk_reward(const teach_desk *d);                  /* the last one, or NULL */
/* Writes the actions into the store as feedback and removes the draft. */
op_status teach_desk_accept(teach_desk *d, op_store *store, op_error *e);
/* The trial of a draft that is there, or 0. */
op_status teach_desk_find_draft(const teach_desk *d, int64_t *trial, op_error *e);
/* The actions of the draft, for the trial on the desk. */
op_status teach_desk_take_up(teach_desk *d, op_error *e);

/* ---- the screen (teach_screen.c) ---- */
typedef struct teach_choice {
    int32_t id;
    float logprob;
} teach_choice;

typedef struct teach_view {
    const teach_desk *desk;
    const op_tokenizer *tokenizer;
    int32_t cursor, anchor;      /* anchor -1: no span */
    teach_choice top[TEACH_TOP]; /* the likeliest tokens at the cursor */
    int n_top;
    bool all_ten, help;          /* the digits choose among all ten; the help is shown */
    long place, of;
    const char *message, *typing; /* typing: the line being typed, or NULL */
} teach_view;

/* Keys beyond bytes. */
enum { TEACH_LEFT = 256, TEACH_RIGHT, TEACH_UP, TEACH_DOWN, TEACH_HOME, TEACH_END, TEACH_ESCAPE, TEACH_RESIZED, TEACH_STOPPED };

op_status teach_screen_open(op_error *e); /* OP_ERR_UNSUPPORTED: this is no terminal */
void teach_screen_close(void);
int teach_screen_key(void);               /* waits: a byte, or one of those above; TEACH_STOPPED after Ctrl-C or the end of the input */
void teach_screen_draw(const teach_view *v);

#endif
