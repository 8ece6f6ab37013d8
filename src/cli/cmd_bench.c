/* operant bench: how fast this machine trains and generates, beside its own matrix-product peak. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <operant/clock.h>
#include <operant/env.h>
#include <operant/generate.h>
#include <operant/train.h>

#include "cli/cli.h"

typedef struct options {
    char *model;
    int64_t batch, length, steps, lora_r, threads, block_tokens;
    int dtype, what;
} options;

#define AT(field) offsetof(options, field)
static const op_option table[] = {
    {"model", OP_OPTION_STRING, AT(model), "models/SmolLM2-135M-Instruct.Q4_1.gguf", 0, 0, NULL, "model directory or .gguf file"},
    {"what", OP_OPTION_CHOICE, AT(what), "all", 0, 0, "all|train|lora|prefill|generate", "which measurements; all: every one but lora"},
    {"batch", OP_OPTION_INT, AT(batch), "8", 1, 4096, NULL, "sequences of a training step"},
    {"length", OP_OPTION_INT, AT(length), "256", 2, 1 << 20, NULL, "tokens of a sequence"},
    {"steps", OP_OPTION_INT, AT(steps), "3", 1, 1000, NULL, "measured repetitions, after one that is not; the median counts"},
    {"lora.r", OP_OPTION_INT, AT(lora_r), "16", 1, 512, NULL, "rank for what=lora"},
    {"block_tokens", OP_OPTION_INT, AT(block_tokens), "512", 1, 1 << 24, NULL, "tokens of a micro-batch"},
    {"dtype", OP_OPTION_CHOICE, AT(dtype), "auto", 0, 0, "auto|f32|bf16", "type of activations and products"},
    {"threads", OP_OPTION_INT, AT(threads), "0", 0, 4096, NULL, "0: one a core"},
    {0}};

enum { PREFILL = 500, PROMPT = 32, NEW = 64 }; /* tokens */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int64_t n)
{
    qsort(x, (size_t)n, sizeof *x, by_value);
    return x[n / 2];
}

/* Floating-point operations of training on one token: three products of 2 N K for each matrix (two for the base of an adapter), the
 * output layer included; attention over the mean length besides. */
static double flop_per_token(const op_model_config *c, int64_t count, int64_t length, bool lora)
{
    double matrices = (double)count - (c->tied ? 0 : (double)c->vocab * c->width);
    double attention = (double)c->layers * 2 * c->heads * c->head_dim * (double)length; /* forward: q k and p v over length/2 keys */
    return (lora ? 4 : 6) * matrices + 3 * attention;
}

static op_status open_model(op_model **m, const options *o, op_trainable trainable, op_error *e)
{
    op_model_options how = {.act = op_subject_dtype(o->dtype, NULL), .trainable = trainable,
                            .lora = {.rank = (int32_t)o->lora_r, .alpha = 2 * (float)o->lora_r, .targets = OP_LORA_ALL}};
    return op_model_open(m, o->model, &how, e);
}

static op_status bench_train(const options *o, bool lora, json_t *out, op_error *e)
{
    op_model *m;
    op_learner *l;
    op_status s = open_model(&m, o, lora ? OP_TRAIN_ADAPTER : OP_TRAIN_ALL, e);
    if (s)
        return s;
    op_learner_options how = {.objective = op_objective_weighted(), .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .max_grad_norm = 1,
                              .block_tokens = (int32_t)o->block_tokens};
    if ((s = op_learner_new(&l, m, &how, e))) {
        op_model_free(m);
        return s;
    }
    const op_model_config *c = op_model_get_config(m);
    size_t T = (size_t)(o->batch * o->length);
    int32_t *ids = malloc(T * sizeof *ids);
    float *weights = malloc(T * sizeof *weights);
    op_item *items = calloc((size_t)o->batch, sizeof *items);
    double *seconds = calloc((size_t)o->steps, sizeof *seconds);
    s = ids && weights && items && seconds ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory");
    for (size_t t = 0; t < T && !s; t++) {
        ids[t] = (int32_t)(t * 7919 % (size_t)c->vocab);
        weights[t] = 1;
    }
    for (int64_t i = 0; i < o->batch && !s; i++)
        items[i] = (op_item){.ids = ids + i * o->length, .weights = weights + i * o->length, .n = (int32_t)o->length};
    op_step_stats stats;
    if (!s)
        s = op_learner_step(l, items, (size_t)o->batch, 1e-6, &stats, e);
    for (int64_t i = 0; i < o->steps && !s; i++) {
        if (cli_stop) {
            s = op_error_set(e, OP_ERR_INTERRUPTED, "interrupted");
            break;
        }
        double start = op_seconds();
        s = op_learner_step(l, items, (size_t)o->batch, 1e-6, &stats, e);
        seconds[i] = op_seconds() - start;
        cli_progress(false, "%s step %lld/%lld: %.0f tokens/s", lora ? "lora" : "train", (long long)i + 1, (long long)o->steps, (double)T / seconds[i]);
    }
    double rate = s ? 0 : (double)T / median(seconds, o->steps);
    json_object_set_new(out, "tokens_per_s", json_real(rate));
    json_object_set_new(out, "gflops", json_real(rate * flop_per_token(c, op_model_count(m), o->length, lora) * 1e-9));
    json_object_set_new(out, "peak_rss_mb", json_real(op_peak_rss_mb()));
    free(ids);
    free(weights);
    free(items);
    free(seconds);
    op_learner_free(l);
    op_model_free(m);
    return s;
}

static op_status timed_generate(op_model *m, int32_t n, int32_t prompt, int32_t tokens, double *seconds, op_error *e)
{
    op_request *r = calloc((size_t)n, sizeof *r);
    int32_t *ids = malloc((size_t)n * (size_t)prompt * sizeof *ids);
    if (!r || !ids) {
        free(r);
        free(ids);
        return op_error_set(e, OP_ERR_NOMEM, "out of memory");
    }
    for (int32_t i = 0; i < n * prompt; i++)
        ids[i] = (int32_t)(i * 7919LL % op_model_get_config(m)->vocab);
    for (int32_t i = 0; i < n; i++)
        r[i] = (op_request){.prompt = ids + i * prompt, .n_prompt = prompt, .adapter = -1, .share = -1,
                            .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .max_tokens = tokens, .seed = (uint64_t)i}};
    double start = op_seconds();
    op_status s = op_generate(m, r, (size_t)n, &(op_generate_options){.ignore_eos = true, .interrupt = &cli_stop}, e);
    *seconds = op_seconds() - start;
    for (int32_t i = 0; i < n; i++)
        op_request_release(&r[i]);
    free(r);
    free(ids);
    return s;
}

/* The median time of a generation, after one that is not counted. */
static op_status measure(op_model *m, const options *o, int32_t n, int32_t prompt, int32_t tokens, double *seconds, op_error *e)
{
    double *all = calloc((size_t)o->steps, sizeof *all);
    op_status s = all ? timed_generate(m, n, prompt, 1, seconds, e) : op_error_set(e, OP_ERR_NOMEM, "out of memory");
    for (int64_t i = 0; i < o->steps && !s; i++)
        s = timed_generate(m, n, prompt, tokens, &all[i], e);
    if (!s)
        *seconds = median(all, o->steps);
    free(all);
    return s;
}

static op_status bench_prefill(const options *o, json_t *out, op_error *e)
{
    op_model *m;
    double seconds;
    op_status s = open_model(&m, o, OP_TRAIN_NONE, e);
    if (s)
        return s;
    if (!(s = measure(m, o, 1, PREFILL, 1, &seconds, e)))
        json_object_set_new(out, "tokens_per_s", json_real(PREFILL / seconds));
    op_model_free(m);
    return s;
}

/* Tokens a second of new text; the time to read the prompts is taken off. */
static op_status bench_generate(const options *o, json_t *out, op_error *e)
{
    static const int32_t sizes[] = {1, 32};
    op_model *m;
    op_status s = open_model(&m, o, OP_TRAIN_NONE, e);
    if (s)
        return s;
    for (int i = 0; i < 2 && !s; i++) {
        double start, whole;
        char key[32];
        snprintf(key, sizeof key, "batch%d_tokens_per_s", sizes[i]);
        if ((s = measure(m, o, sizes[i], PROMPT, 1, &start, e)) || (s = measure(m, o, sizes[i], PROMPT, 1 + NEW, &whole, e)))
            break;
        double rate = (double)NEW * sizes[i] / (whole - start);
        json_object_set_new(out, key, json_real(rate));
        cli_progress(false, "generate, %d at once: %.0f tokens/s", sizes[i], rate);
    }
    op_model_free(m);
    return s;
}

/* Runs one measurement in a child, so that its peak memory is its own. */
static json_t *in_child(const options *o, const char *what)
{
    int ends[2];
    fflush(NULL);
    if (pipe(ends))
        return NULL;
    pid_t child = fork();
    if (child == 0) {
        op_error e = {0};
        json_t *out = json_object();
        op_status s = !strcmp(what, "train")     ? bench_train(o, false, out, &e)
                      : !strcmp(what, "lora")    ? bench_train(o, true, out, &e)
                      : !strcmp(what, "prefill") ? bench_prefill(o, out, &e)
                                                 : bench_generate(o, out, &e);
        if (s)
            cli_fail(&e);
        else
            json_dumpfd(out, ends[1], JSON_COMPACT);
        _exit(s ? 1 : 0);
    }
    close(ends[1]);
    json_t *result = json_loadfd(ends[0], 0, NULL);
    close(ends[0]);
    waitpid(child, NULL, 0);
    return result;
}

/* The peak needs threads, and a process that forks must not have any: it is measured in a child too. */
static double peak_in_child(op_dtype act)
{
    int ends[2];
    double peak = 0;
    fflush(NULL);
    if (pipe(ends))
        return 0;
    pid_t child = fork();
    if (child == 0) {
        double p = op_env_peak(act, 1);
        _exit(write(ends[1], &p, sizeof p) != sizeof p);
    }
    close(ends[1]);
    if (child < 0 || read(ends[0], &peak, sizeof peak) != sizeof peak)
        peak = 0;
    close(ends[0]);
    waitpid(child, NULL, 0);
    return peak;
}

/* Each number once more under its whole name: "train.tokens_per_s" beside {"train": {"tokens_per_s"}}. */
static void add_whole_names(json_t *all)
{
    const char *group, *key;
    json_t *part, *v, *flat = json_object();
    json_object_foreach(all, group, part) json_object_foreach(part, key, v)
    {
        char name[128];
        snprintf(name, sizeof name, "%s.%s", group, key);
        json_object_set(flat, name, v);
    }
    json_object_update(all, flat);
    json_decref(flat);
}

static int run(const cli_command *c, int argc, char **argv)
{
    enum { ALL, TRAIN, LORA, PREFILL_ONLY, GENERATE };
    static const char *const parts[] = {"", "train", "lora", "prefill", "generate"};
    options o;
    cli_args a = cli_parse(c, &o, argc, argv);
    if (a.n_words) {
        op_config_release(&o, c->table);
        return cli_usage_error(c, "unexpected argument \"%s\"", a.words[0]);
    }
    if (o.threads)
        op_env_threads((int)o.threads);
    bool bf16 = op_subject_dtype(o.dtype, NULL) == OP_BF16, failed = false;
    double peak_bf16 = peak_in_child(OP_BF16), peak_f32 = peak_in_child(OP_F32), peak = bf16 ? peak_bf16 : peak_f32;
    json_t *all = json_pack("{s{sf sf}}", "peak", "bf16_gflops", peak_bf16, "f32_gflops", peak_f32);
    for (int i = TRAIN; i <= GENERATE && !cli_stop; i++) {
        if (o.what == ALL ? i == LORA : o.what != i)
            continue;
        json_t *part = in_child(&o, parts[i]);
        failed = failed || !part;
        json_t *rate = json_object_get(part, "gflops");
        if (rate && peak > 0)
            json_object_set_new(part, "share_of_peak", json_real(json_real_value(rate) / peak));
        if (part)
            json_object_set_new(all, parts[i], part);
    }
    add_whole_names(all);
    if (a.json) {
        json_object_set_new(all, "dtype", json_string(bf16 ? "bf16" : "f32"));
        json_object_set_new(all, "products", json_string(op_env_products()));
        cli_print_json(all);
    } else {
        const char *name;
        json_t *v;
        printf("%s products by oneDNN (%s)\n", bf16 ? "bf16" : "f32", op_env_products());
        json_object_foreach(all, name, v) if (json_is_number(v)) printf("%-32s %10.4g\n", name, json_number_value(v));
    }
    json_decref(all);
    op_config_release(&o, c->table);
    return cli_stop ? 130 : failed;
}

const cli_command cli_bench = {
    "bench", "measure training and generation beside the machine's peak", "[model=MODEL] [--json]",
    "Training is full fine-tuning with AdamW on batch x length tokens (what=lora: of an adapter); share_of_peak is its arithmetic (products and\n"
    "attention) by the best matrix-product rate of this machine, measured in the same run. Prefill reads one prompt of 500 tokens; generation\n"
    "makes 64 new tokens after prompts of 32, one alone and 32 at once. Each measurement runs in a process of its own.\n\n"
    "examples:\n  operant bench\n  operant bench --json what=train dtype=f32 batch=8 length=256",
    table, run, NULL};
