/* chamber/answers.h: a model answers fresh episodes, and each answer is judged. */
#ifndef OP_CHAMBER_ANSWERS_H
#define OP_CHAMBER_ANSWERS_H

#include <operant/chamber.h>
#include <operant/chat.h>
#include <operant/generate.h>

#define CHAMBER_FRESH ((uint64_t)1 << 40) /* far behind those that teach */

/* What is handed out; valid during the call. */
typedef struct chamber_answer {
    const op_chamber_episode *episode;
    const op_tokens *prompt;  /* through the chat template */
    const op_request *request;
    const char *text;         /* the answer without special tokens */
    const op_chamber_verdict *verdict;
} chamber_answer;

typedef struct chamber_asking {
    const op_chat *chat;
    op_model *model;
    int32_t adapter;          /* -1: none */
    op_model *partner;        /* goes on with a reply of which `handover` tokens that end in . ? or ! were said; NULL: none. Of the same vocabulary */
    int32_t partner_adapter;
    int64_t handover;
    const op_chamber_options *world;
    double temperature;
    const volatile int *stop; /* NULL: never */
    void *ctx;
    op_status (*heard)(void *ctx, const chamber_answer *a, op_error *e);
} chamber_asking;

/* Asks episodes CHAMBER_FRESH .. + n - 1 of the world. What is drawn depends on the world's seed and the episode's index alone. */
op_status chamber_ask(const chamber_asking *q, int64_t n, op_error *e);

#endif
