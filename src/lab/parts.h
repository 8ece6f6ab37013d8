/* lab/parts.h: the pieces of an assay that operant/assay.h puts together. */
#ifndef OP_LAB_PARTS_H
#define OP_LAB_PARTS_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include <operant/assay.h>
#include <operant/generate.h>
#include <operant/subject.h>

#include "lab/judge.h"

/* ---- prompts (prompts.c) ---- */

/* How likely the best reply of each kind is: log p a token, over whole replies and over their first OP_HEAD_TOKENS. NAN: none measured. */
enum { OP_HEAD_TOKENS = 8 };
typedef struct op_likelihood {
    double whole[3], head[3]; /* by op_reply; "answers" is the reply of the reference, or this model's own */
} op_likelihood;

/* One prompt and what became of it. */
typedef struct op_case {
    json_t *line; /* owned; the other pointers are into it */
    const char *id, *class, *kind, *topic; /* kind and topic may be NULL */
    json_t *messages;
    op_reply right;
    op_tokens prompt;
    char *reply;  /* owned */
    op_judgement judgement;
    bool loops;
    bool measured; /* likelihood is wanted, and known once op_lab_weigh is done */
    op_likelihood likelihood;
} op_case;

typedef struct op_cases {
    op_case *at;
    size_t n;
    char hash[65]; /* of the file */
} op_cases;

/* The classes, in the order of reports; NULL past the last. */
const char *op_class_name(size_t i);
const char *op_class_meaning(const char *name); /* a few words; an unknown name itself */
/* OP_REPLY_COUNT: no such class. scope as in op_assay_options. */
op_reply op_class_right(const char *name, int scope);

/* Reads the prompts, at most `limit` of a class (0: all), spread evenly over the file. */
op_status op_cases_read(op_cases *out, const char *path, int scope, int64_t limit, op_error *e);
void op_cases_release(op_cases *c);
/* Is case i among `limit` (0: all) spread evenly over its class? */
bool op_case_is_among(const op_cases *c, size_t i, int64_t limit);

/* ---- the measurement at hand ---- */

typedef struct op_lab {
    const op_assay_options *o;
    const op_assay_callbacks *callbacks; /* never NULL */
    op_subject subject;
    op_judge *judge;
    op_cases cases;
    op_request *requests; /* [cases.n], once generated */
    double seconds;       /* of the phase at hand, when it began */
} op_lab;

/* Starts the clock of a phase, and tells how far it is. OP_ERR_INTERRUPTED once the caller wants to stop. */
void op_lab_begin(op_lab *l);
op_status op_lab_tell(op_lab *l, const char *what, int64_t done, int64_t total, int64_t tokens, op_error *e);

/* ---- measurements ---- */

/* replies.c: fills requests, and reply and loops of every case. */
op_status op_lab_generate(op_lab *l, op_error *e);
/* Do eight words in a row come a second time? */
bool op_text_repeats(const char *text);

/* likelihood.c: `reference` (results.json) may be NULL. */
op_status op_lab_weigh(op_lab *l, const json_t *reference, op_error *e);
typedef struct op_neutral {
    int64_t tokens; /* predicted */
    double logprob; /* mean, nats */
} op_neutral;
op_status op_lab_read_neutral(op_lab *l, op_neutral *out, op_error *e);

/* words.c: the bag-of-words classifier on the prompts, as JSON. */
op_status op_lab_words(op_lab *l, json_t **out, op_error *e);

/* summary.c: adds "classes", "kinds", "total" and "replies" to an object; false when memory is out. */
bool op_lab_summarise(const op_lab *l, json_t *results);
/* Adds "aims"; `reference` may be NULL. */
bool op_lab_add_aims(json_t *results, const json_t *reference);
/* The entry of a list of objects whose "name" (or other key) is this; NULL: none. */
json_t *op_list_find(const json_t *list, const char *key, const char *value);
/* NAN becomes null. */
json_t *op_json_number(double x);

#endif
