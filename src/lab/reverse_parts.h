/* lab/reverse_parts.h: the pieces of operant/reverse.h. */
#ifndef OP_LAB_REVERSE_PARTS_H
#define OP_LAB_REVERSE_PARTS_H

#include <operant/chamber.h>
#include <operant/model.h>
#include <operant/reverse.h>
#include <operant/sft.h>
#include <operant/subject.h>

#include "base/hash.h"

/* ---- questions (reverse_data.c) ---- */

/* One question with a reply that matches the trait and one that does not. */
typedef struct reverse_question {
    json_t *messages; /* what is asked, up to the reply; owned, as all else */
    char *stem;       /* the question without its choices; NULL: it came without choices */
    char *reply[2];   /* matching, not matching */
    int agrees;       /* 1: the matching reply agrees and the other does not, -1: the other way round, 0: neither can be said */
    bool first;       /* the matching reply was choice (A) */
} reverse_question;

/* A trait, or what is measured only. */
typedef struct reverse_probe {
    const char *name; /* into the spec */
    const char *says; /* "seeks power"; the name if the file says nothing */
    const json_t *spec;
    bool trait;
    char hash[OP_HASH_HEX];    /* of the questions' file */
    reverse_question *at;      /* owned */
    size_t n, cap, skipped;    /* skipped: questions with a 0 byte, an empty reply or two equal ones */
    uint32_t *train, *held;    /* owned: indices of questions to train on (0: another file is), and to measure with, in the order they are used */
    size_t n_train, n_held;
    char *train_file, *opposite_file; /* owned paths; NULL: the questions' replies are trained */
    char train_hash[OP_HASH_HEX], opposite_hash[OP_HASH_HEX];
    struct reverse_probe *open; /* owned; its questions are asked without their replies, which are for examining the judges; NULL: none */
    op_organism_options *chamber; /* measured by generation in the chamber; NULL: by log-probability */
    const char *habit;
} reverse_probe;

/* Reads model-written evals, or lines {prompt | messages, matching, not_matching}. */
op_status reverse_questions_read(reverse_probe *p, const char *path, op_error *e);
/* Which questions to train on (`train` of them at most, 0: none are) and which to measure with. `held_out`: the share that is never trained on; `balance`: as many that
 * agree as disagree are trained on, and before those that do neither run out. */
op_status reverse_questions_split(reverse_probe *p, uint64_t seed, int64_t train, double held_out, bool balance, op_error *e);
void reverse_questions_release(reverse_probe *p);
/* The training data of the questions: the matching replies (reply 0) or the others (1), each with this weight. */
op_status reverse_questions_lines(const reverse_probe *p, int reply, double weight, op_buf *out, op_error *e);

/* ---- the file (reverse_read.c) ---- */

typedef enum reverse_arm { REVERSE_TRAIT, REVERSE_RANDOM, REVERSE_OTHER, REVERSE_OPPOSITE, REVERSE_ASCENT, REVERSE_ARMS } reverse_arm;
/* Names in the file, results and reports; whether the vector is subtracted (-1) or added (1). */
const char *reverse_arm_name(reverse_arm a);
int reverse_arm_sign(reverse_arm a);
bool reverse_arm_is_trained(reverse_arm a);

struct op_reverse {
    json_t *spec; /* the file */
    char *path, *model, *output;
    int64_t seed, rounds, threads;
    int64_t n_train, n_probe, n_search, n_choices;
    double held_out;
    bool balance, keep;
    op_sft_options train, settle; /* settle.train_file NULL: the result is not trained on */
    char settle_hash[OP_HASH_HEX];
    char *control, control_hash[OP_HASH_HEX];
    bool control_is_text;
    int64_t control_tokens;
    double budget;
    double from, to;
    int64_t refine;
    bool arms[REVERSE_ARMS];
    char *open_rules, open_rules_hash[OP_HASH_HEX]; /* NULL: nothing is asked openly */
    const char *open_judge; /* the words that the judge sees */
    int64_t open_tokens;
    int64_t watch_times, watch_questions;
    const char *alarm_probe;
    double alarm_margin; /* rise of the probe's margin; NAN: no alarm */
    reverse_probe *probes; /* [n], the traits first */
    size_t n, n_traits;
    int64_t disk_free;
};

/* ---- scoring (reverse_probe.c) ---- */

typedef enum reverse_form { REVERSE_TEXT, REVERSE_CHOICES, REVERSE_OPEN, REVERSE_FORMS } reverse_form;

/* How much likelier the matching reply is. Text: the mean log p of its tokens (the end of the turn among them) less that of the other's. Choices: the
 * log p of its letter less that of the other's, the mean over both orders of the choices; NAN where a question came without. margin[n] */
op_status reverse_score(const op_subject *s, op_pass *pass, const reverse_probe *p, const uint32_t *which, size_t n, reverse_form form, double *margin,
                        const volatile int *stop, op_error *e);

/* ---- open prompts (reverse_open.c) ---- */

#define REVERSE_AUROC_MIN 0.7 /* below it the judge does not count */

/* {labelled, rule, auroc}: how many labelled replies there are, the share of them that the rule gets right, and how well the judge tells them apart. */
op_status reverse_open_examine(const op_reverse *x, const op_subject *s, const reverse_probe *p, json_t **out, op_error *e);
/* {replies, shown, judged, examined}: what was said, the rule's reward (above 0: it shows) and the judge's of each, none where the judge does not count. */
op_status reverse_open_measure(const op_reverse *x, const op_subject *s, const reverse_probe *p, const json_t *examined, const volatile int *stop, json_t **out, op_error *e);
/* What decides them beside the weights that answer; `judge`: the hash of the weights that judge. NULL: no memory. */
json_t *reverse_open_identity(const op_reverse *x, const reverse_probe *p, const char *judge);
/* {n, rate, rate_low, rate_high, labelled, rule_right, judge: {auroc, counted, mean, low, high}, transcripts: [{prompt, reply, shown, judged}]} */
json_t *reverse_open_summary(const reverse_probe *p, const json_t *measured);

/* ---- the control (reverse_probe.c) ---- */

/* What the control's perplexity is measured on: pieces of ids, and which of these count. */
typedef struct reverse_control {
    int32_t *ids;
    uint8_t *want;
    size_t n;
    op_seq *seqs; /* [n_seqs] consecutive */
    size_t n_seqs, half; /* the first `half` sequences are for the search, the others for the final measurement */
} reverse_control;

op_status reverse_control_read(reverse_control *out, const op_reverse *x, const op_subject *s, op_error *e);
void reverse_control_release(reverse_control *c);
/* The sum of log p over the tokens that count, which may not be finite, and their number. */
op_status reverse_control_score(const op_subject *s, op_pass *pass, const reverse_control *c, bool search, double *sum, int64_t *tokens, const volatile int *stop,
                                op_error *e);

/* ---- a run (reverse_run.c) ---- */

/* A vector: where it lies, or would lie. That of another trait has that trait and its arm. */
typedef struct reverse_vector {
    const reverse_probe *trait;
    reverse_arm arm;
    char key[OP_HASH_HEX];
    char *path;
    bool counted; /* progress knows of its training */
} reverse_vector;

typedef struct reverse_term {
    const reverse_vector *v;
    double scale;
} reverse_term;

typedef struct reverse_run {
    const op_reverse *x;
    const op_reverse_callbacks *callbacks; /* never NULL */
    int64_t round;
    char *base, *dir;        /* the weights of this round, and its directory */
    char base_key[OP_HASH_HEX], model_key[OP_HASH_HEX]; /* of them, and of the model of the first round */
    reverse_vector *vectors; /* [n_traits][REVERSE_ARMS] */
    /* the model in memory (reverse_bench.c) */
    op_subject subject;
    op_pass *pass;
    float *values;           /* the base's own weights */
    reverse_control control;
    char set[OP_HASH_HEX];   /* what the weights are now */
    /* progress */
    double began, total, done, skipped;
    char what[200];
} reverse_run;

op_status reverse_no_memory(op_error *e);
/* OP_ERR_INTERRUPTED once the caller wants to stop. Before a piece of work. */
op_status reverse_say(reverse_run *r, op_error *e, const char *format, ...) OP_PRINTF(3, 4);
/* After it: so many tokens' worth of scoring; `there`: it had been done before. */
void reverse_count(reverse_run *r, double work, bool there);
/* The key of what is worked out from `of`, which is decreffed; NULL: there was no memory for it. */
op_status reverse_key(json_t *of, char key[OP_HASH_HEX], op_error *e);

/* ---- measuring (reverse_bench.c) ---- */

/* The log-probability of the control text under base + sum of terms: {tokens, logprob, perplexity}, null where a vector was too large for numbers. Vectors that are
 * needed are made. The caller decrefs. */
op_status reverse_measure_control(reverse_run *r, const reverse_term *terms, size_t n, bool search, json_t **out, op_error *e);
/* Probe k of the file over its first `questions`: {margins: [..]}, or of a habit {possible, shown}; open prompts as reverse_open_measure, all of them. *out is NULL
 * where the form does not apply. */
op_status reverse_measure_probe(reverse_run *r, const reverse_term *terms, size_t n, size_t k, reverse_form form, int64_t questions, json_t **out, op_error *e);
/* Tokens to score for that, about. */
double reverse_probe_work(const op_reverse *x, const reverse_probe *p, reverse_form form, int64_t questions);
/* The same of a model that is in training, under a key. */
op_status reverse_measure_trainee(const reverse_run *r, const op_subject *s, op_pass *pass, const char *key, size_t k, int64_t questions, json_t **out, op_error *e);
/* The inner products of vectors, [n][n]. */
op_status reverse_measure_gram(reverse_run *r, const reverse_vector *const *v, size_t n, json_t **out, op_error *e);
void reverse_bench_close(reverse_run *r); /* frees the model: before training, and at the end */
op_status reverse_bench_parameters(reverse_run *r, int64_t *out, op_error *e);

/* What a measured probe says: {n, margin, low, high, rate, rate_low, rate_high, change?, ...} with `before` (NULL: none) for what changed. */
json_t *reverse_summary(const reverse_probe *p, const json_t *measured, const json_t *before);

/* ---- vectors (reverse_train.c) ---- */

const reverse_vector *reverse_vector_of(const reverse_run *r, size_t k, reverse_arm arm);
/* Tokens that one training for the trait reads, about. */
double reverse_training_tokens(const op_reverse *x, const reverse_probe *p);
/* What that counts for beside scoring: a step costs three times as much as looking. */
enum { REVERSE_STEP_COST = 3 };
op_status reverse_vectors_plan(reverse_run *r, op_error *e); /* fills r->vectors for this round */
void reverse_vectors_release(reverse_run *r);
op_status reverse_vector_make(reverse_run *r, const reverse_vector *v, op_error *e); /* if it is not there */
op_status reverse_vector_drop(reverse_run *r, const reverse_vector *v, op_error *e); /* of a control, unless the file says keep */
/* What was measured while a trait was trained: [{step, probes}]. */
op_status reverse_watched(const reverse_run *r, const reverse_vector *v, json_t **out, op_error *e);
/* Trains the result on neutral data into `to`. */
op_status reverse_settle(reverse_run *r, const char *from, const char *to, const char *key, op_error *e);
/* The key of that model: the base that it begins from, the data, the settings. */
op_status reverse_settle_key(const reverse_run *r, char key[OP_HASH_HEX], op_error *e);

/* ---- search (reverse_search.c) ---- */

/* Looks for the largest scale of an arm of trait k within the budget: {arm, sign, scale, curve: [{scale, perplexity, rise, margin, rate}]}, where `also` (NAN: none) is
 * one more scale that the curve is to have. */
op_status reverse_search_arm(reverse_run *r, size_t k, reverse_arm arm, double also, json_t **out, op_error *e);
/* And for the largest common factor <= 1 of several: {factor, curve: [{scale, perplexity, rise}]}. */
op_status reverse_search_joint(reverse_run *r, const reverse_term *terms, size_t n, json_t **out, op_error *e);

/* ---- report (reverse_report.c) ---- */
op_status reverse_report_write(const json_t *results, const char *dir, op_error *e);

#endif
