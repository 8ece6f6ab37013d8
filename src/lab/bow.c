#include "lab/bow.h"

#include <ctype.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/mem.h"

enum { PLACES = 1 << 18 };

struct op_bow {
    float count[OP_BOW_CLASSES][PLACES];
    double total[OP_BOW_CLASSES], texts[OP_BOW_CLASSES];
    size_t distinct; /* features seen at all */
};

static bool in_word(char c)
{
    return isalnum((unsigned char)c) || c == '\'' || (c & 0x80);
}

/* FNV-1a of the next word in lower case; 0 at the end of the text. */
static uint64_t next_word(const char **at)
{
    while (**at && !in_word(**at))
        (*at)++;
    if (!**at)
        return 0;
    uint64_t h = 14695981039346656037u;
    for (; in_word(**at); (*at)++)
        h = (h ^ (uint64_t)tolower((unsigned char)**at)) * 1099511628211u;
    return h;
}

typedef void (*feature_fn)(void *ctx, uint32_t place);

/* Every word, and every pair of neighbours. */
static void each_feature(const char *text, feature_fn fn, void *ctx)
{
    uint64_t before = 0, word;
    while ((word = next_word(&text))) {
        fn(ctx, (uint32_t)((word * 0x9e3779b97f4a7c15u) >> 46));
        if (before)
            fn(ctx, (uint32_t)(((before * 31 + word) * 0x9e3779b97f4a7c15u) >> 46));
        before = word;
    }
}

op_status op_bow_new(op_bow **out, op_error *e)
{
    *out = op_alloc_zero(1, sizeof **out);
    return *out ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory for the bag of words");
}

void op_bow_free(op_bow *b)
{
    op_free(b);
}

void op_bow_clear(op_bow *b)
{
    memset(b, 0, sizeof *b);
}

typedef struct lesson {
    op_bow *b;
    int class;
} lesson;

static void learn_feature(void *ctx, uint32_t place)
{
    lesson *l = ctx;
    float seen = 0;
    for (int c = 0; c < OP_BOW_CLASSES; c++)
        seen += l->b->count[c][place];
    l->b->distinct += seen == 0;
    l->b->count[l->class][place]++;
    l->b->total[l->class]++;
}

void op_bow_learn(op_bow *b, const char *text, int class)
{
    b->texts[class]++;
    each_feature(text, learn_feature, &(lesson){b, class});
}

typedef struct verdict {
    const op_bow *b;
    double score[OP_BOW_CLASSES];
} verdict;

static void weigh_feature(void *ctx, uint32_t place)
{
    verdict *v = ctx;
    for (int c = 0; c < OP_BOW_CLASSES; c++)
        v->score[c] += log((v->b->count[c][place] + 1) / (v->b->total[c] + (double)v->b->distinct));
}

int op_bow_classify(const op_bow *b, const char *text)
{
    verdict v = {.b = b};
    for (int c = 0; c < OP_BOW_CLASSES; c++)
        v.score[c] = log(b->texts[c] + 1);
    if (b->distinct)
        each_feature(text, weigh_feature, &v);
    int best = 0;
    for (int c = 1; c < OP_BOW_CLASSES; c++)
        best = v.score[c] > v.score[best] ? c : best;
    return best;
}
