/* chamber/parts.h: what the files of the chamber share.
 *
 * A rule is mostly data: cues with their wordings and distances, and replies as sentences with places for values, "{n} of {b} are done.". A draft is
 * an episode in the making: the values drawn so far, and the texts made of them. The first error is kept in draft.status; after it all is idle. */
#ifndef OP_CHAMBER_PARTS_H
#define OP_CHAMBER_PARTS_H

#include <operant/chamber.h>

/* ---- features: what is irrelevant to every rule ---- */

typedef enum feature {
    F_PLACE, F_TIME, F_NAME, F_ROLE, F_TONE, F_LAYOUT, F_WATCH, F_WORDING, F_OBJECT, F_WORK, F_DISTRACTOR, F_CARRIER, F_REASON, F_ITEM, FEATURES
} feature;

enum { SEEN_MAX = 16, HELD_MAX = 8 };

/* A list of values that are seen, then of those that are held out; each ends with NULL. */
typedef struct values {
    const char *seen[SEEN_MAX + 1], *held[HELD_MAX + 1];
} values;

typedef struct feature_row {
    const char *name, *help;
    values values; /* empty: they depend on the rule or on the draw (wordings, watch, distractors, reasons, items) */
} feature_row;

extern const feature_row chamber_features[FEATURES];
extern const values chamber_watched, chamber_unwatched, chamber_distractors[3], chamber_reasons[4]; /* reasons: none, good, thin, bad */
enum { ITEM_GRADES = 5 };
typedef struct item_family {
    const char *grades[ITEM_GRADES]; /* what is asked for, from sensitive to harmless */
    bool held;
} item_family;
extern const item_family chamber_items[];
extern const int chamber_n_items;
extern const char *const chamber_colours[], *const chamber_verbs[];
enum { N_COLOURS = 6, N_VERBS = 16 };

/* ---- the world opened ---- */

struct op_chamber {
    op_chamber_options o; /* rules and vary are its own */
    double *weights;      /* of the rules, adding up to 1 */
    bool varies[FEATURES];
    char *spec;           /* the options that are not defaults, as words */
};

/* Reads "name:weight,name": weights[i] of names[i], 1 where none is written; names that are not in the list keep theirs. */
op_status chamber_read_list(const char *key, const char *list, const char *const *names, double *weights, op_error *e);

/* ---- drafts ---- */

typedef struct draft draft;

typedef struct cue_row {
    bool trigger;
    const char *what; /* for describe */
    values wordings;
} cue_row;

typedef struct reply_row {
    unsigned kinds;    /* bits: the kinds of episode that this reply belongs to */
    const char *habit; /* NULL: the right one */
    const char *sentences[5]; /* "*" before an action */
} reply_row;

typedef struct rule_type {
    const char *name, *help;
    const char *situation;    /* said before the cue */
    const cue_row *cues;      /* by distance */
    int n_cues;
    const char *misleading[2]; /* what a misleading sign says where the cue does not trigger, and where it does; NULL: none */
    void (*prepare)(draft *d); /* draws the values */
    const reply_row *replies;  /* ends with an empty row; NULL: `respond` writes them */
    void (*respond)(draft *d);
} rule_type;

extern const rule_type chamber_rules[];
extern const int chamber_n_rules;

/* What a number is drawn for; features have the slots from SLOT_FEATURE on. */
enum {
    SLOT_RULE = 1, SLOT_NEIGHBOUR, SLOT_DISTANCE, SLOT_WATCH, SLOT_DISTRACT, SLOT_STRENGTH, SLOT_WHERE, SLOT_MISLEAD, SLOT_LENGTH, SLOT_A, SLOT_B, SLOT_C, SLOT_LIST, SLOT_ITEMS,
    SLOT_ERROR, SLOT_STRANGER, SLOT_MIX, SLOT_NOISE, SLOT_FEATURE = 64, SLOT_STEP = 128,
};

enum { VARS_MAX = 28 };

struct draft {
    const op_chamber *c;
    const rule_type *rule;
    op_chamber_episode *x;
    uint64_t base;  /* the index that draws go by */
    int kind;       /* of the episode: 0 triggered, 1 not; ask_why has five */
    const char *names[VARS_MAX];
    char *texts[VARS_MAX]; /* owned */
    int n_vars;
    int held;       /* features with a held-out value */
    uint32_t order[64]; /* a rule's own list: steps, items, numbers */
    int n;
    char *steps[16], *strangers[16]; /* of a chain: each step and what stands for it where it goes wrong; owned */
    op_chamber_reply *reply; /* being written */
    op_status status;
    op_error *e;
};

uint64_t draft_below(draft *d, int slot, uint64_t n);
double draft_uniform(draft *d, int slot);
void draft_permute(draft *d, int slot, uint32_t n, uint32_t *out); /* n <= 64 */
/* A value of the feature from this list, by the world's settings; notes what is held out. `slot` tells draws of one feature apart. */
const char *draft_value(draft *d, feature f, const values *list, int slot);
/* All values that may be drawn, into out[SEEN_MAX + HELD_MAX]; how many. */
int draft_pool(draft *d, feature f, const char **out);
void draft_object(draft *d); /* sets {object} */
void draft_set(draft *d, const char *name, const char *text); /* text may have places itself */
void draft_set_int(draft *d, const char *name, int64_t x);
const char *draft_get(draft *d, const char *name);
void draft_tag(draft *d, const char *key, json_t *value); /* takes the value */
void draft_expand(draft *d, const char *text, op_buf *out); /* appends, with the places filled */
/* Begins a reply: the right one (NULL), or a competing one; draft_say adds a sentence, "*" before an action. A wrong reply that is equal to the right one is
 * dropped by the next begin. */
void draft_begin(draft *d, const char *habit);
void draft_say(draft *d, const char *sentence);
void draft_end(draft *d); /* of the last reply */
char *draft_text(draft *d, const char *text); /* expanded, the caller's (op_free); NULL once something failed */
op_status draft_no_memory(draft *d);

/* The rules with replies of their own. */
void chain_prepare(draft *d);
void chain_respond(draft *d);
void route_prepare(draft *d);
void route_respond(draft *d);
void copy_prepare(draft *d);
void sort_prepare(draft *d);
void lookup_prepare(draft *d);
void sum_prepare(draft *d);

#endif
