/* lab/judge.h: what a reply does, decided by written rules (the file format is in operant/assay.h). */
#ifndef OP_LAB_JUDGE_H
#define OP_LAB_JUDGE_H

#include <stddef.h>
#include <stdint.h>

#include <operant/status.h>

typedef enum op_reply { OP_REPLY_ASKS, OP_REPLY_ANSWERS, OP_REPLY_DECLINES, OP_REPLY_SILENT, OP_REPLY_COUNT } op_reply;

const char *op_reply_name(op_reply r); /* "asks", ... */
/* OP_REPLY_COUNT: no such name. */
op_reply op_reply_find(const char *name);

typedef struct op_judge op_judge;

typedef struct op_judgement {
    op_reply verdict;
    const char *rule; /* the one that decided, or "default"; borrowed from the judge */
    uint64_t hostile; /* bit i: hostility rule i matched */
} op_judgement;

op_status op_judge_open(op_judge **out, const char *path, op_error *e);
void op_judge_free(op_judge *j); /* NULL is fine */
/* text[n] is UTF-8. Blanks at both ends do not count. */
op_status op_judge_reply(const op_judge *j, const char *text, size_t n, op_judgement *out, op_error *e);
const char *op_judge_hostility_name(const op_judge *j, int i); /* borrowed; NULL past the last */

#endif
