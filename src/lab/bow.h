/* lab/bow.h: a classifier that knows nothing but words: what a lesson's surface gives away.
 *
 * Multinomial naive Bayes with add-one smoothing over single words and pairs of neighbouring words, lower-cased, hashed into a fixed number of
 * places (Weinberger et al.: 0902.2206). A text has the class that maximises log p(class) + sum over features log p(feature | class). */
#ifndef OP_LAB_BOW_H
#define OP_LAB_BOW_H

#include <stddef.h>

#include <operant/status.h>

enum { OP_BOW_CLASSES = 3 };

typedef struct op_bow op_bow;

op_status op_bow_new(op_bow **out, op_error *e);
void op_bow_free(op_bow *b); /* NULL is fine */
void op_bow_clear(op_bow *b);
/* Teaches one text (0-terminated UTF-8) of class 0..OP_BOW_CLASSES-1. */
void op_bow_learn(op_bow *b, const char *text, int class);
int op_bow_classify(const op_bow *b, const char *text);

#endif
