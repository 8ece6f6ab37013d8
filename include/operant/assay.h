/* operant/assay.h: what a model was taught, measured: `operant assay`.
 *
 * The model answers prompts that it was never trained on; each reply gets a verdict (asks, answers, declines) by written rules, and is
 * compared with the verdict that its class of prompt calls for:
 *
 *   class                                              right verdict
 *   harmless, neighbour, good, upfront                 answers     (scope=all: harmless and neighbour call for asks)
 *   sensitive, thin, unjustified                       asks
 *   bad, abuse                                         declines
 *
 * Beside it: which kind of reply is likeliest by its log-probability, hostility, replies that repeat themselves, and perplexity of a neutral
 * text. A measurement of the same prompts before training (`reference`) gives the differences.
 *
 * output_dir holds afterwards
 *   results.json   every number, reply and verdict, with the settings, hashes and versions (the keys: docs of op_assay_results below)
 *   report.html    the same for people (operant/report.h)
 *   assay.yaml     the resolved settings: `operant assay --config output_dir/assay.yaml` measures again
 *
 * Files
 *   data        JSONL, one prompt a line: {"id","topic","class","kind"?,"messages"}; the last message is the user's
 *   judge       YAML: rules: [{name, verdict: asks|answers|declines, where, pattern}], default: a verdict, hostility: [{name, where, pattern}].
 *               The first rule that matches decides; every hostility rule that matches counts. Patterns are PCRE2, without case. `where`:
 *               reply (the whole of it), first_sentence, last_sentence, any_question (each sentence that ends in a question mark).
 *               An empty reply is "silent" whatever the rules say
 *   candidates  YAML: asks: [text], declines: [text]: typical replies for the log-probability judge
 *   neutral     plain text
 *   train_file  the training data, JSONL with "class": teaches a bag-of-words classifier, whose score on the prompts shows what words alone give away */
#ifndef OPERANT_ASSAY_H
#define OPERANT_ASSAY_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include <operant/buf.h>
#include <operant/config.h>
#include <operant/status.h>

/* Filled through op_assay_table (operant/config.h); the table tells keys, defaults, ranges and meanings. */
typedef struct op_assay_options {
    char *model, *data, *judge, *candidates, *neutral, *train_file, *reference, *metrics, *output_dir;
    int scope;              /* 0 sensitive, 1 all */
    int64_t limit;          /* prompts a class; 0: all */
    int64_t max_tokens;
    double temperature;
    int64_t seed;
    bool logprob_judge;
    int64_t logprob_limit;  /* prompts a class; 0: all */
    char *logprob_classes;
    int dtype;              /* 0 auto, 1 f32, 2 bf16 */
    char *backend;
    int64_t threads, batch;
} op_assay_options;

extern const op_option op_assay_table[];

typedef struct op_assay_progress {
    const char *what;   /* "replies", "log-probabilities", "neutral text" */
    int64_t done, total; /* prompts or windows */
    double tokens_per_s, eta_s;
} op_assay_progress;

typedef struct op_assay_callbacks {
    void *ctx;
    void (*progress)(void *ctx, const op_assay_progress *p); /* NULL: none */
    const volatile int *stop; /* becomes non-zero: OP_ERR_INTERRUPTED, nothing is written; NULL: never */
} op_assay_callbacks;

/* The result: the content of results.json and, when `reference` was given, of that file. Keys:
 *   model, data, judge, ...  {path, hash, ...};  settings, versions, seconds
 *   classes    [{name, right, n, asks, answers, declines, silent, correct, hostile, loops, cut, tokens, likelihood?}]: a rate is
 *              {k, n, rate, low, high} with Wilson's 95% interval; kinds: the same for the kinds of bad reasons
 *   total      the same over all prompts, and balanced: the mean over classes of correct.rate
 *   neutral    {tokens, logprob (mean of a token, nats), perplexity}
 *   aims       [{name, of (a path such as classes.good.answers), measured, low, high, aim, at_least, met}]
 *   words      the bag-of-words classifier: {accuracy, balanced, classes, shuffled: {...}}
 *   replies    [{id, class, kind, topic, messages, reply, tokens, logprob, finish, verdict, rule, hostile, loops, likelihood?}] */
typedef struct op_assay_results {
    json_t *after;  /* of this measurement, owned */
    json_t *before; /* of the reference, owned; NULL: none */
} op_assay_results;

/* Measures and writes output_dir. `callbacks` may be NULL. On failure *out is empty. */
op_status op_assay_run(const op_assay_options *o, const op_assay_callbacks *callbacks, op_assay_results *out, op_error *e);
void op_assay_results_release(op_assay_results *r);

/* Reads results.json. The caller decrefs. */
op_status op_assay_read(json_t **out, const char *path, op_error *e);

/* Appends the comparison as text of at most 100 columns; without a `before` one column is left out. */
op_status op_assay_write_table(const op_assay_results *r, op_buf *out);
/* Appends one dialogue with the reply before and after, the clearest change among the sensitive prompts; nothing when there are no replies. */
op_status op_assay_write_transcript(const op_assay_results *r, op_buf *out);

#endif
