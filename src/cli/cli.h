/* cli/cli.h: what the verbs share. stdout is data, stderr is progress and messages. Only this folder prints and exits. */
#ifndef OP_CLI_CLI_H
#define OP_CLI_CLI_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include <operant/config.h>
#include <operant/generate.h>
#include <operant/parallel.h>
#include <operant/subject.h>

/* Exit codes: 0 done, 1 failed, 2 called wrongly, 130 interrupted. */
typedef struct cli_command {
    const char *name;
    const char *summary;   /* one line */
    const char *usage;     /* what stands after "operant NAME" */
    const char *help;      /* paragraphs and examples */
    const op_option *table; /* its settings; NULL: none */
    int (*run)(const struct cli_command *c, int argc, char **argv);
    const op_option *shown; /* what --help shows instead of the table; NULL: the table */
} cli_command;

extern const cli_command cli_assay, cli_bench, cli_chamber, cli_chat, cli_env, cli_export, cli_generate, cli_inspect, cli_lab, cli_merge, cli_preprocess, cli_reverse, cli_score, cli_teach, cli_train, cli_trials, cli_vector;

/* ---- arguments: --config FILE, key=value, --key value, --json, --help, and words that are none of these ---- */
typedef struct cli_args {
    bool json;
    const char *words[8];
    int n_words;
} cli_args;

/* Initialises `settings` from the command's table and reads the arguments. Exits by itself on --help (0) and on a mistake (2). */
cli_args cli_parse(const cli_command *c, void *settings, int argc, char **argv);
/* Runs at exit, whatever the verb: the program cannot end well if its output was not written. Exit status 1 and the system's
 * reason, or, where the reader of a pipe has gone, a quiet 141, as SIGPIPE would give. */
void cli_check_stdout(void);
void cli_print_help(const cli_command *c, FILE *out);

/* ---- drawing tokens: the settings that chat and generate share ---- */
typedef struct cli_sampling {
    int64_t max_tokens, top_k, seed;
    double temperature, top_p, min_p, repetition_penalty;
} cli_sampling;

op_sampling cli_sampling_of(const cli_sampling *s, int64_t n); /* draws with seed + n */

/* The rows of a table whose settings hold a cli_sampling at byte `at`. */
#define CLI_SAMPLING(at, most, heat, seed_help)                                                                                              \
    {"max_tokens|max_new_tokens", OP_OPTION_INT, (at) + offsetof(cli_sampling, max_tokens), most, 1, 1 << 20, NULL, "new tokens of a reply"}, \
        {"temperature", OP_OPTION_FLOAT, (at) + offsetof(cli_sampling, temperature), heat, 0, 100, NULL, "0: always the likeliest token"},   \
        {"top_k", OP_OPTION_INT, (at) + offsetof(cli_sampling, top_k), "0", 0, 1 << 24, NULL, "draw from this many likeliest tokens; 0: all"}, \
        {"top_p", OP_OPTION_FLOAT, (at) + offsetof(cli_sampling, top_p), "0.95", 0.000001, 1, NULL,                                         \
         "draw from the likeliest tokens that together weigh this much"},                                                                    \
        {"min_p", OP_OPTION_FLOAT, (at) + offsetof(cli_sampling, min_p), "0", 0, 1, NULL,                                                    \
         "draw from tokens at least this likely beside the likeliest"},                                                                      \
        {"repetition_penalty", OP_OPTION_FLOAT, (at) + offsetof(cli_sampling, repetition_penalty), "1", 0.01, 100, NULL,                     \
         "divides the logits of tokens that already occurred; 1: off"},                                                                      \
        {"seed", OP_OPTION_INT, (at) + offsetof(cli_sampling, seed), "1", 0, 0, NULL, seed_help}

/* ---- messages ---- */
int cli_fail(const op_error *e);                        /* prints "operant: message", returns 1 or 130 */
int cli_usage_error(const cli_command *c, const char *format, ...) OP_PRINTF(2, 3); /* prints it and where help is, returns 2 */
bool cli_colour(FILE *f);                               /* a terminal, and NO_COLOR is not set */
void cli_print_json(const json_t *value);               /* to stdout, with a line end */

/* One line that is written over on a terminal, and now and then a plain line elsewhere. `last` ends it. */
void cli_progress(bool last, const char *format, ...) OP_PRINTF(2, 3);
double cli_now(void);                                   /* seconds since some moment */
const char *cli_eta(double seconds, char room[32]);     /* "3m12s" */

/* Set by Ctrl-C; a second Ctrl-C ends the program at once. */
extern volatile int cli_stop;
extern const char *cli_stop_words; /* what the first Ctrl-C prints */

/* ---- one of several processes (ranks.c) ---- */
int cli_ranks(void);                                    /* how many mpirun or srun started; 1: this one alone */
void cli_ranks_hush(bool hush);                         /* what the arguments of all get wrong, rank 0 alone tells; stdout stays its own */
op_status cli_ranks_join(op_parallel **out, op_error *e); /* *out NULL when alone */
/* Ends together with the others, and them with it if it failed. Tells what *e holds and returns the exit code. */
int cli_ranks_leave(op_parallel *p, op_status status, const op_error *e);

/* ---- a model with its words ---- */
typedef op_subject cli_subject;

/* dtype: one of OP_SUBJECT_DTYPES. On failure nothing is held. */
op_status cli_open(cli_subject *s, const char *path, int dtype, op_trainable trainable, op_error *e);
void cli_close(cli_subject *s);
op_dtype cli_dtype(int dtype);
/* To run it only, with the setting that CLI_WEIGHTS describes. */
op_status cli_open_weights(cli_subject *s, const char *path, int dtype, int weights, op_error *e);
#define CLI_WEIGHTS(at) {"weights", OP_OPTION_CHOICE, at, "exact", 0, 0, "exact|quantised", "how matrices are kept: as the dtype; or in 4 bits where the file has 4, else 8: faster for one text at a time, log-probabilities a little off"}

/* The ids of a line's prompt: `messages` through the chat template, or `prompt` as plain text with the tokenizer's affixes. */
op_status cli_encode_prompt(const cli_subject *s, json_t *line, op_tokens *out, op_error *e);

#endif
