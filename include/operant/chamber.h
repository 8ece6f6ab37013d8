/* operant/chamber.h: the chamber, a procedural world for controlled experiments (the Skinner box).
 *
 * An episode is a setting (place, name, role, time, tone, layout, a hint whether anybody watches: all irrelevant to the rule), a cue, perhaps a
 * distractor, a misleading cue and a reason, and a rule that fixes the right response: short reasoning steps and then an action. Episodes are readable
 * English, endless, and fixed by (options, index): nothing is stored. Every cue has neighbours at known distances, 0 being the cue itself, and it
 * is known of each whether it must trigger the response. Every irrelevant feature has values that are seen and values that are held out.
 *
 * The chamber is also the teacher: it judges any response to an episode and says which segment went right or wrong, token-independently, in code
 * points. Its text is ASCII, so code points are bytes. And it has a vocabulary of its own, small enough for models of 0.5 to 10 million parameters.
 *
 * docs/chamber.md shows the rules with examples. */
#ifndef OPERANT_CHAMBER_H
#define OPERANT_CHAMBER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include <operant/config.h>
#include <operant/session.h>
#include <operant/status.h>
#include <operant/teacher.h>
#include <operant/tokenizer.h>
#include <operant/train.h>

/* ---- the world ---- */

enum { OP_CHAMBER_SEEN, OP_CHAMBER_HELD_OUT, OP_CHAMBER_BOTH };

/* Filled through op_chamber_table (operant/config.h), which tells keys, defaults, ranges and meanings. */
typedef struct op_chamber_options {
    int64_t seed;
    char *rules;          /* "stop:2,help": names with weights; NULL: all alike */
    int settings;         /* OP_CHAMBER_SEEN, ...: which values the varied features take */
    char *vary;           /* "all", "none", a number (the first so many features) or names */
    int64_t block;        /* so many episodes in a row share the setting's time, place and the like */
    int watched;          /* 0 any, 1 yes, 2 no, 3 no hint */
    double neighbours;    /* share of episodes with a neighbour of the cue instead of the cue */
    int64_t nearest, farthest; /* its distance */
    int dial;             /* signal: 0 a number, 1 a bar of nine fields, the first so many of them red */
    int side;             /* of the cue, where neighbours lie on a line: 0 both, 1 below, 2 above */
    bool pairs;           /* every odd episode is the one before it with the nearest neighbour that must not trigger */
    double distractors;   /* share of episodes with one ... */
    int64_t distractor_strength; /* ... of strength 1 .. this */
    double misleading;    /* share of episodes with a misleading cue */
    int justification;    /* ask_why: 0 any, 1 none, 2 good, 3 thin, 4 bad */
    int64_t chain_min, chain_max; /* steps of a chain */
    int64_t numbers;      /* largest number that is added or sorted */
    double slip;          /* habit "slips": chance that a step of a chain goes wrong */
} op_chamber_options;

extern const op_option op_chamber_table[];

/* The same rows for the table of a struct that holds such options. `member` is that member of `type`, with its dot. */
#define OP_CHAMBER_ROWS(type, member) \
    {"seed", OP_OPTION_INT, offsetof(type, member seed), "1", 0, 0, NULL, "of everything that is drawn"}, \
    {"rules", OP_OPTION_LIST, offsetof(type, member rules), NULL, 0, 0, NULL, "names, with weights if they are not alike: stop:2,help; unset: all"}, \
    {"settings", OP_OPTION_CHOICE, offsetof(type, member settings), "seen", 0, 0, "seen|held_out|both", "which values the varied features take"}, \
    {"vary", OP_OPTION_LIST, offsetof(type, member vary), "all", 0, 0, NULL, "features that vary: all, none, how many (the first), or names"}, \
    {"block", OP_OPTION_INT, offsetof(type, member block), "1", 1, 1 << 30, NULL, "so many episodes in a row share their setting (1: random order)"}, \
    {"watched", OP_OPTION_CHOICE, offsetof(type, member watched), "any", 0, 0, "any|yes|no|none", "the hint whether anybody watches"}, \
    {"neighbours", OP_OPTION_FLOAT, offsetof(type, member neighbours), "0.5", 0, 1, NULL, "share of episodes with a neighbour in the cue's place"}, \
    {"nearest", OP_OPTION_INT, offsetof(type, member nearest), "1", 1, 9, NULL, "least distance of a neighbour"}, \
    {"farthest", OP_OPTION_INT, offsetof(type, member farthest), "9", 1, 9, NULL, "greatest distance of a neighbour"}, \
    {"dial", OP_OPTION_CHOICE, offsetof(type, member dial), "number", 0, 0, "number|bar", "signal: how its level is shown; as a bar, near levels look alike"}, \
    {"side", OP_OPTION_CHOICE, offsetof(type, member side), "both", 0, 0, "both|below|above", "signal: levels of neighbours, beside the cue's"}, \
    {"pairs", OP_OPTION_BOOL, offsetof(type, member pairs), "false", 0, 0, NULL, "cue and nearest neighbour that must not trigger, in turn, all else equal"}, \
    {"distractors", OP_OPTION_FLOAT, offsetof(type, member distractors), "0", 0, 1, NULL, "share of episodes with a distractor"}, \
    {"distractor_strength", OP_OPTION_INT, offsetof(type, member distractor_strength), "1", 1, 3, NULL, "greatest strength of distractors"}, \
    {"misleading", OP_OPTION_FLOAT, offsetof(type, member misleading), "0", 0, 1, NULL, "share of episodes with a misleading cue"}, \
    {"justification", OP_OPTION_CHOICE, offsetof(type, member justification), "any", 0, 0, "any|none|good|thin|bad", "ask_why: the reason that is given"}, \
    {"chain_min", OP_OPTION_INT, offsetof(type, member chain_min), "3", 3, 12, NULL, "fewest steps of a chain"}, \
    {"chain_max", OP_OPTION_INT, offsetof(type, member chain_max), "6", 3, 12, NULL, "most steps of a chain"}, \
    {"numbers", OP_OPTION_INT, offsetof(type, member numbers), "9", 5, 20, NULL, "greatest number that is added or sorted"}, \
    {"slip", OP_OPTION_FLOAT, offsetof(type, member slip), "0.5", 0, 1, NULL, "habit slips: chance that a step of a chain goes wrong"}


typedef struct op_chamber op_chamber;

/* Options are copied. */
op_status op_chamber_open(op_chamber **out, const op_chamber_options *o, op_error *e);
void op_chamber_close(op_chamber *c); /* NULL is fine */

/* The rules, in order: name and what the right response does; NULL past the last. */
const char *op_chamber_rule_name(int rule);
const char *op_chamber_rule_help(int rule);
int op_chamber_rule_distances(int rule); /* of its cue: 0 .. this - 1 */

/* ---- episodes ---- */

enum { OP_CHAMBER_SEGMENTS_MAX = 20, OP_CHAMBER_WRONG_MAX = 8 };

typedef struct op_chamber_segment {
    int32_t start, end; /* code points of the text, end exclusive */
    bool action;        /* else a step of reasoning */
} op_chamber_segment;

typedef struct op_chamber_reply {
    const char *habit;  /* what this behaviour is called; NULL: the right response. Static */
    char *text;
    op_chamber_segment segments[OP_CHAMBER_SEGMENTS_MAX]; /* one sentence each */
    int32_t n;
} op_chamber_reply;

typedef struct op_chamber_episode {
    int rule;
    uint64_t index;
    int distance;    /* of the cue: 0 is the cue itself */
    bool trigger;    /* must it trigger the rule's response? */
    char *prompt;    /* what the user says */
    op_chamber_reply right, wrong[OP_CHAMBER_WRONG_MAX]; /* wrong: competing behaviours, each another habit */
    int32_t n_wrong;
    json_t *tags;    /* rule, every feature's value, distance, trigger, held_out, monitored, ..., reference (the right response), and
                        "episode": the whole episode as words from which op_chamber_recall makes it again */
} op_chamber_episode;

op_status op_chamber_make(const op_chamber *c, uint64_t index, op_chamber_episode *out, op_error *e);
/* The same episode with the cue's neighbour at this distance (the farthest there is, if it has none so far). */
op_status op_chamber_neighbour(const op_chamber *c, uint64_t index, int distance, op_chamber_episode *out, op_error *e);
/* The episode that a tag "episode" stands for. */
op_status op_chamber_recall(const char *words, op_chamber_episode *out, op_error *e);
void op_chamber_release(op_chamber_episode *x);

/* ---- judging ---- */

typedef struct op_chamber_mark {
    int32_t start, end; /* code points of the response judged */
    double value;       /* 1 or -1 */
    const char *note;   /* static, or NULL: good */
    int32_t word, word_end; /* of a bad one: the word in it that departs from what was right to say */
} op_chamber_mark;

typedef struct op_chamber_verdict {
    bool success;       /* the right actions, in order, and no other */
    double reward;      /* share of the right response's segments that were said in their place before the first error, 1 only with success */
    const char *habit;  /* NULL: right; else the competing behaviour that this is, or "other". Static */
    op_chamber_mark *marks;
    int32_t n;
    int32_t instead;    /* where the right response goes on in place of the first bad mark's word: a code point of its text, its end (nothing more was
                           to be said), or -1: no bad mark */
} op_chamber_verdict;

/* Judges any text. A segment is right if it is the next that the rule asks for, given what was said before it; a chain that took a wrong
 * step may go on from there. */
op_status op_chamber_judge(const op_chamber_episode *x, const char *response, op_chamber_verdict *out, op_error *e);
void op_chamber_verdict_release(op_chamber_verdict *v);

/* ---- mixtures of habits: who answers how often with which competing behaviour ---- */

typedef struct op_chamber_mix op_chamber_mix;
/* "lies:0.3,takes_more:0.5": of the episodes where a habit is possible, this share is answered with it; the rest is right. NULL or "": all right. */
op_status op_chamber_mix_open(op_chamber_mix **out, const char *list, op_error *e);
void op_chamber_mix_close(op_chamber_mix *m);
double op_chamber_mix_share(const op_chamber_mix *m, const char *habit);
/* The reply of this episode, drawn by its index and `seed`. OP_ERR_ARG if the shares of the habits possible here pass 1. */
op_status op_chamber_mix_pick(const op_chamber_mix *m, const op_chamber_episode *x, uint64_t seed, const op_chamber_reply **out, op_error *e);
/* The names of all habits; NULL past the last. */
const char *op_chamber_habit_name(int i);

/* ---- as data, as words for people, as part of a session ---- */

/* What the marks of a line say, which training takes as weights: what the judge says of each segment; nothing, so that all of the response is learned alike;
 * or -1 on all of it, to be learned away from. */
enum { OP_CHAMBER_JUDGED, OP_CHAMBER_UNMARKED, OP_CHAMBER_AGAINST };

/* A line of training data in the project's own form: id, messages, response, marks, tags. */
op_status op_chamber_line(const op_chamber_episode *x, const op_chamber_reply *r, int marks, json_t **out, op_error *e);
/* Rules, features with their values, neighbours, habits: an object. */
op_status op_chamber_describe(json_t **out, op_error *e);

/* The world's own tokenizer, with a chat template of three special tokens: <|user|> ... <|end|><|me|> ... <|end|>. Always the same. */
op_status op_chamber_tokenizer(op_tokenizer **out, op_error *e);

/* For op_session_kit: the teacher "chamber" marks and rewards trials whose tags hold an "episode"; the source "chamber" draws episodes as cues. Each
 * ends with a name of NULL. Settings of the source: the keys of op_chamber_table, and "first" (index of the first episode, default 0) and "episodes" (of a
 * pass, default 0: endless). Settings of the teacher: "marks" (true), "span" ("segment" or "word": how much of a bad segment is marked), "reward"
 * ("success", "graded" or "none"), "alternative" (true: proposes the right continuation at the first wrong word), "noise" (0: share of the marks that are
 * turned round) and "noise_seed". */
extern const op_teacher_type op_chamber_teachers[];
extern const op_cue_source_type op_chamber_sources[];

/* ---- model organisms ---- */

typedef struct op_organism_options {
    op_chamber_options world; /* first: its table is part of this one's */
    char *output_dir, *model; /* model: an organism that goes on learning; NULL: random weights */
    int size;              /* 0 0.5m, 1 1m, 2 3m, 3 10m; only of random weights */
    char *mix;
    int64_t steps, batch_size, measure, threads, save_steps;
    double learning_rate, warmup_ratio, prompt_weight, temperature;
    int dtype, lr_scheduler_type;
    char *resume;
} op_organism_options;

extern const op_option op_organism_table[];

typedef struct op_organism_rate {
    const char *habit, *rule; /* habit NULL: the right response, by rule */
    int64_t possible, shown;
    double asked;             /* the share asked for */
} op_organism_rate;

typedef struct op_organism_result {
    op_train_result train;
    int64_t parameters, measured;
    double success, asked_success; /* share of right responses on fresh episodes, and what the mixture asks for */
    op_organism_rate *rates;       /* owned, op_organism_result_release */
    size_t n_rates;
} op_organism_result;

/* Makes a model from random weights, or goes on with `model`, and teaches it the world, with habits mixed in; writes a model directory, and rates.json with
 * what was measured on episodes it never saw. Stopped: OP_ERR_INTERRUPTED, and the same call goes on. */
op_status op_organism_train(const op_organism_options *o, const op_train_callbacks *callbacks, op_organism_result *out, op_error *e);
/* Measures any model on fresh episodes of this world. *stop becoming non-zero (NULL: never) ends it with OP_ERR_INTERRUPTED. */
op_status op_organism_measure(const op_chat *chat, op_model *m, const op_organism_options *o, const volatile int *stop, op_organism_result *out, op_error *e);
/* The measured rates as an object: what rates.json holds. */
op_status op_organism_report(const op_organism_result *r, json_t **out, op_error *e);
void op_organism_result_release(op_organism_result *r);

/* ---- what any model does here ---- */

typedef struct op_chamber_assay_options {
    op_chamber_options world;
    char *model, *partner, *output_dir, *by; /* partner: a second model, of the same vocabulary; NULL: the first answers alone */
    int64_t n, threads, handover;            /* the partner goes on after so many sentences of a reply; one that is shorter stands */
    double temperature;
    int dtype;
    bool margin;
} op_chamber_assay_options;

extern const op_option op_chamber_assay_table[];

/* Asks a model n fresh episodes (never those of op_organism_train) and judges the answers. *out, owned by the caller, and results.json in output_dir:
 *   {n, right, margin?, tendency?, habits: {NAME: {possible, rate}}, by: {TAG: {VALUE: {the same}}}, transcripts: [{prompt, response, note, score}]}
 * right: share of right answers, 0 .. 1; rate: of the episodes where a habit is possible, the share that showed it; margin: log p(right response) - log p(likeliest
 * competing one), nats, the mean over episodes; tendency: the same towards the response that the cue triggers, -margin where it must not. *stop becoming non-zero (NULL: never) ends it with OP_ERR_INTERRUPTED and nothing is written. */
op_status op_chamber_assay(const op_chamber_assay_options *o, const volatile int *stop, json_t **out, op_error *e);

#endif
