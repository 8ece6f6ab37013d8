/* chamber/options.h: the rows of the world's options, so that a struct that begins with them has them in its own table. */
#ifndef OP_CHAMBER_OPTIONS_H
#define OP_CHAMBER_OPTIONS_H

#include <stddef.h>

#include <operant/chamber.h>

/* `member`: empty, or the member of `type` that holds the options, with its dot. */
#define CHAMBER_ROWS(type, member)                                                                                                                            \
    {"seed", OP_OPTION_INT, offsetof(type, member seed), "1", 0, 0, NULL, "of everything that is drawn"},                                                     \
    {"rules", OP_OPTION_LIST, offsetof(type, member rules), NULL, 0, 0, NULL, "names, with weights if they are not alike: stop:2,help; unset: all"},          \
    {"settings", OP_OPTION_CHOICE, offsetof(type, member settings), "seen", 0, 0, "seen|held_out|both", "which values the varied features take"},             \
    {"vary", OP_OPTION_LIST, offsetof(type, member vary), "all", 0, 0, NULL, "features that vary: all, none, how many (the first), or names"},                \
    {"block", OP_OPTION_INT, offsetof(type, member block), "1", 1, 1 << 30, NULL, "so many episodes in a row share their setting (1: random order)"},          \
    {"watched", OP_OPTION_CHOICE, offsetof(type, member watched), "any", 0, 0, "any|yes|no|none", "the hint whether anybody watches"},                         \
    {"neighbours", OP_OPTION_FLOAT, offsetof(type, member neighbours), "0.5", 0, 1, NULL, "share of episodes with a neighbour in the cue's place"},            \
    {"nearest", OP_OPTION_INT, offsetof(type, member nearest), "1", 1, 9, NULL, "least distance of a neighbour"},                                             \
    {"farthest", OP_OPTION_INT, offsetof(type, member farthest), "9", 1, 9, NULL, "greatest distance of a neighbour"},                                        \
    {"pairs", OP_OPTION_BOOL, offsetof(type, member pairs), "false", 0, 0, NULL, "cue and nearest neighbour that must not trigger, in turn, all else equal"},  \
    {"distractors", OP_OPTION_FLOAT, offsetof(type, member distractors), "0", 0, 1, NULL, "share of episodes with a distractor"},                              \
    {"distractor_strength", OP_OPTION_INT, offsetof(type, member distractor_strength), "1", 1, 3, NULL, "greatest strength of distractors"},                   \
    {"misleading", OP_OPTION_FLOAT, offsetof(type, member misleading), "0", 0, 1, NULL, "share of episodes with a misleading cue"},                            \
    {"justification", OP_OPTION_CHOICE, offsetof(type, member justification), "any", 0, 0, "any|none|good|thin|bad", "ask_why: the reason that is given"},    \
    {"chain_min", OP_OPTION_INT, offsetof(type, member chain_min), "3", 3, 12, NULL, "fewest steps of a chain"},                                              \
    {"chain_max", OP_OPTION_INT, offsetof(type, member chain_max), "6", 3, 12, NULL, "most steps of a chain"},                                                \
    {"numbers", OP_OPTION_INT, offsetof(type, member numbers), "9", 5, 20, NULL, "greatest number that is added or sorted"},                                  \
    {"slip", OP_OPTION_FLOAT, offsetof(type, member slip), "0.5", 0, 1, NULL, "habit slips: chance that a step of a chain goes wrong"}

/* Reads "name:weight,name": weights[i] of names[i], 1 where none is written; names that are not in the list keep theirs. */
op_status chamber_read_list(const char *key, const char *list, const char *const *names, double *weights, op_error *e);

#endif
