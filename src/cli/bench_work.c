/* What `operant bench` measures. The tokens are made up: how fast they are computed does not depend on which they are. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <operant/clock.h>
#include <operant/generate.h>
#include <operant/profile.h>
#include <operant/train.h>

#include "cli/bench.h"
#include "cli/cli.h"

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int64_t n)
{
    qsort(x, (size_t)n, sizeof *x, by_value);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory");
}

static void put(json_t *out, const char *key, double value)
{
    json_object_set_new(out, key, json_real(value));
}

static void make_up(int32_t *ids, size_t n, int32_t vocab)
{
    for (size_t t = 0; t < n; t++)
        ids[t] = (int32_t)(t * 7919 % (size_t)vocab);
}

/* What was counted since the last op_profile_clear, by `times` repetitions that took `seconds` together. */
static void add_profile(const bench_options *o, json_t *out, const char *work, double seconds, int64_t times)
{
    if (!o->profile)
        return;
    json_t *all = json_object_get(out, "profiles"), *operations = json_array();
    if (!all)
        json_object_set_new(out, "profiles", all = json_array());
    const op_profile_line *lines;
    size_t n = op_profile_read(&lines);
    double k = (double)times;
    for (size_t i = 0; i < n; i++)
        json_array_append_new(operations, json_pack("{ss si si sf sf sf sf}", "op", lines[i].op, "N", lines[i].N, "K", lines[i].K, "calls",
                                                    (double)lines[i].calls / k, "seconds", lines[i].seconds / k, "bytes", lines[i].bytes / k, "flop",
                                                    lines[i].flop / k));
    json_array_append_new(all, json_pack("{ss sf so}", "work", work, "seconds", seconds / k, "operations", operations));
}

static op_status open_model(op_model **m, const bench_options *o, op_trainable trainable, op_error *e)
{
    op_model_options how = {.act = op_subject_dtype(o->dtype, NULL), .trainable = trainable,
                            .weights = trainable == OP_TRAIN_NONE ? (op_weight_form)o->weights : OP_WEIGHTS_EXACT,
                            .grad_dtype = o->grad_dtype && trainable == OP_TRAIN_ALL ? OP_BF16 : OP_F32,
                            .lora = {.rank = (int32_t)o->lora_r, .alpha = 2 * (float)o->lora_r, .targets = OP_LORA_ALL}};
    if (o->profile)
        op_profile_start();
    return op_model_open(m, o->model, &how, e);
}

static op_learner_options learner_options(const bench_options *o, op_objective f)
{
    return (op_learner_options){.objective = f, .optim = (op_optim)o->optim, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .max_grad_norm = 1,
                                .block_tokens = (int32_t)o->block_tokens, .share_min = 16};
}

/* Floating-point operations of the forward pass on one token that sees `keys` keys: two for every weight of a matrix, four for every element
 * of every head and key (q k and p v). With `head` through the output layer too. */
static double forward_flop(const op_model *m, double keys, bool head)
{
    const op_model_config *c = op_model_get_config(m);
    double matrices = (double)op_model_count(m) - (c->tied && head ? 0 : (c->tied || head ? 1 : 2) * (double)c->vocab * c->width);
    return 2 * matrices + 4.0 * c->layers * c->heads * c->head_dim * keys;
}

/* ---- training ---- */

/* Of training on one token: three times the forward pass; a frozen base needs no gradients of its weights, a third of the products. */
static double training_flop(const op_model *m, double keys, bool lora)
{
    return lora ? 2 * forward_flop(m, 0, true) + 3 * (forward_flop(m, keys, true) - forward_flop(m, 0, true)) : 3 * forward_flop(m, keys, true);
}

op_status bench_train(const bench_options *o, bool lora, json_t *out, op_error *e)
{
    op_model *m;
    op_learner *l;
    op_status s = open_model(&m, o, lora ? OP_TRAIN_ADAPTER : OP_TRAIN_ALL, e);
    if (s)
        return s;
    op_learner_options how = learner_options(o, op_objective_weighted());
    how.share_min = 0; /* the made-up sequences may begin alike */
    if ((s = op_learner_new(&l, m, &how, e))) {
        op_model_free(m);
        return s;
    }
    const op_model_config *c = op_model_get_config(m);
    size_t T = (size_t)(o->batch * o->length);
    int32_t *ids = malloc(T * sizeof *ids);
    float *weights = malloc(T * sizeof *weights);
    op_item *items = calloc((size_t)o->batch, sizeof *items);
    double *seconds = calloc((size_t)o->steps, sizeof *seconds), all = 0;
    s = ids && weights && items && seconds ? OP_OK : no_memory(e);
    if (!s)
        make_up(ids, T, c->vocab);
    for (size_t t = 0; t < T && !s; t++)
        weights[t] = 1;
    for (int64_t i = 0; i < o->batch && !s; i++)
        items[i] = (op_item){.ids = ids + i * o->length, .weights = weights + i * o->length, .n = (int32_t)o->length};
    op_step_stats stats;
    if (!s)
        s = op_learner_step(l, items, (size_t)o->batch, 1e-6, &stats, e);
    op_profile_clear();
    for (int64_t i = 0; i < o->steps && !s; i++) {
        if (cli_stop) {
            s = op_error_set(e, OP_ERR_INTERRUPTED, "interrupted");
            break;
        }
        double start = op_seconds();
        s = op_learner_step(l, items, (size_t)o->batch, 1e-6, &stats, e);
        seconds[i] = op_seconds() - start;
        all += seconds[i];
        cli_progress(false, "%s step %lld/%lld: %.0f tokens/s", lora ? "lora" : "train", (long long)i + 1, (long long)o->steps, (double)T / seconds[i]);
    }
    if (!s) {
        char work[96];
        snprintf(work, sizeof work, "a %s step on %lld x %lld tokens", lora ? "LoRA" : "training", (long long)o->batch, (long long)o->length);
        add_profile(o, out, work, all, o->steps);
        double rate = (double)T / median(seconds, o->steps);
        put(out, "tokens_per_s", rate);
        put(out, "gflops", 1e-9 * rate * training_flop(m, 0.5 * (double)o->length, lora));
        put(out, "peak_rss_mb", op_peak_rss_mb());
    }
    free(ids);
    free(weights);
    free(items);
    free(seconds);
    op_learner_free(l);
    op_model_free(m);
    return s;
}

/* ---- generation ---- */

static op_status timed_generate(op_model *m, int32_t n, int32_t prompt, int32_t tokens, double *seconds, op_error *e)
{
    op_request *r = calloc((size_t)n, sizeof *r);
    int32_t *ids = malloc((size_t)n * (size_t)prompt * sizeof *ids);
    if (!r || !ids) {
        free(r);
        free(ids);
        return no_memory(e);
    }
    make_up(ids, (size_t)n * (size_t)prompt, op_model_get_config(m)->vocab);
    for (int32_t i = 0; i < n; i++)
        r[i] = (op_request){.prompt = ids + i * prompt, .n_prompt = prompt, .adapter = -1, .share = -1,
                            .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .max_tokens = tokens, .seed = (uint64_t)i}};
    double start = op_seconds();
    op_status s = op_generate(m, r, (size_t)n, &(op_generate_options){.max_batch = n, .ignore_eos = true, .interrupt = &cli_stop}, e);
    *seconds = op_seconds() - start;
    for (int32_t i = 0; i < n; i++)
        op_request_release(&r[i]);
    free(r);
    free(ids);
    return s;
}

/* The median time of a generation, after one of a token that is not counted; *all: of all counted ones together. */
static op_status measure(op_model *m, const bench_options *o, int32_t n, int32_t prompt, int32_t tokens, double *seconds, double *all, op_error *e)
{
    double *each = calloc((size_t)o->steps, sizeof *each);
    op_status s = each ? timed_generate(m, n, prompt, 1, seconds, e) : no_memory(e);
    op_profile_clear();
    *all = 0;
    for (int64_t i = 0; i < o->steps && !s; i++) {
        s = timed_generate(m, n, prompt, tokens, &each[i], e);
        *all += each[i];
    }
    if (!s)
        *seconds = median(each, o->steps);
    free(each);
    return s;
}

op_status bench_prefill(const bench_options *o, json_t *out, op_error *e)
{
    op_model *m;
    double seconds, all;
    op_status s = open_model(&m, o, OP_TRAIN_NONE, e);
    if (s)
        return s;
    if (!(s = measure(m, o, 1, (int32_t)o->prefill_tokens, 1, &seconds, &all, e))) {
        char work[96];
        snprintf(work, sizeof work, "reading a prompt of %lld tokens", (long long)o->prefill_tokens);
        add_profile(o, out, work, all, o->steps);
        double rate = (double)o->prefill_tokens / seconds;
        put(out, "tokens_per_s", rate);
        put(out, "gflops", 1e-9 * rate * forward_flop(m, 0.5 * (double)o->prefill_tokens, false));
        put(out, "peak_rss_mb", op_peak_rss_mb());
    }
    op_model_free(m);
    return s;
}

/* Tokens a second of new text, n texts at once; the time to read the prompts and draw the first token is taken off. */
static op_status generate_at_once(op_model *m, const bench_options *o, int32_t n, json_t *out, op_error *e)
{
    double start, whole, all;
    char key[32], work[96];
    op_status s = measure(m, o, n, (int32_t)o->prompt_tokens, 1, &start, &all, e);
    if (!s)
        s = measure(m, o, n, (int32_t)o->prompt_tokens, 1 + (int32_t)o->max_tokens, &whole, &all, e);
    if (s)
        return s;
    double rate = (double)(o->max_tokens * n) / (whole - start);
    snprintf(work, sizeof work, "%d x %lld new tokens after prompts of %lld", n, (long long)o->max_tokens + 1, (long long)o->prompt_tokens);
    add_profile(o, out, work, all, o->steps);
    snprintf(key, sizeof key, "batch%d_tokens_per_s", n);
    put(out, key, rate);
    snprintf(key, sizeof key, "batch%d_gflops", n);
    put(out, key, 1e-9 * rate * forward_flop(m, (double)o->prompt_tokens + 0.5 * (double)o->max_tokens, true));
    cli_progress(false, "generate, %d at once: %.0f tokens/s", n, rate);
    return OP_OK;
}

op_status bench_generate(const bench_options *o, json_t *out, op_error *e)
{
    op_model *m;
    op_status s = open_model(&m, o, OP_TRAIN_NONE, e);
    if (s)
        return s;
    char *words = strdup(o->at_once ? o->at_once : "");
    s = words ? OP_OK : no_memory(e);
    for (char *rest = NULL, *w = words ? strtok_r(words, ",", &rest) : NULL; w && !s; w = strtok_r(NULL, ",", &rest)) {
        char *end;
        long n = strtol(w, &end, 10);
        s = *end || n < 1 || n > 32 ? op_error_set(e, OP_ERR_ARG, "at_once: found \"%.20s\", expected 1..32", w) : generate_at_once(m, o, (int32_t)n, out, e);
    }
    if (!s)
        put(out, "peak_rss_mb", op_peak_rss_mb());
    free(words);
    op_model_free(m);
    return s;
}

/* ---- an on-policy update: generate, score, learn ---- */

typedef struct update {
    op_request *requests; /* [n] groups of `answers` that share their prompt */
    op_item *items;       /* [n] */
    int32_t *ids;         /* [n, length] prompt and answer */
    float *weights;       /* [n, length] */
    int32_t n, answers, prompt, length;
} update;

static op_status update_init(update *u, const bench_options *o, int32_t vocab, op_error *e)
{
    *u = (update){.n = (int32_t)(o->prompts * o->answers), .answers = (int32_t)o->answers, .prompt = (int32_t)o->prompt_tokens,
                  .length = (int32_t)(o->prompt_tokens + o->max_tokens)};
    size_t n = (size_t)u->n, all = n * (size_t)u->length;
    u->requests = calloc(n, sizeof *u->requests);
    u->items = calloc(n, sizeof *u->items);
    u->ids = calloc(all, sizeof *u->ids);
    u->weights = calloc(all, sizeof *u->weights);
    if (!u->requests || !u->items || !u->ids || !u->weights)
        return no_memory(e);
    for (int32_t i = 0; i < u->n; i++)
        for (int32_t t = 0; t < u->prompt; t++)
            u->ids[i * u->length + t] = (int32_t)((i / u->answers * u->prompt + t) * 7919LL % vocab);
    return OP_OK;
}

static void update_release(update *u)
{
    free(u->requests);
    free(u->items);
    free(u->ids);
    free(u->weights);
}

/* A rule: the share of even tokens. */
static double reward(const op_request *r)
{
    double even = 0;
    for (int32_t t = 0; t < r->n; t++)
        even += r->tokens[t] % 2 == 0;
    return even / r->n;
}

/* The advantage of an answer within its group (GRPO: 2402.03300) as the weight of its tokens. */
static void judge(update *u)
{
    for (int32_t first = 0; first < u->n; first += u->answers) {
        double sum = 0, squares = 0;
        for (int32_t i = first; i < first + u->answers; i++) {
            double x = reward(&u->requests[i]);
            sum += x;
            squares += x * x;
        }
        double mean = sum / u->answers, deviation = sqrt(fmax(0, squares / u->answers - mean * mean));
        for (int32_t i = first; i < first + u->answers; i++) {
            const op_request *r = &u->requests[i];
            float advantage = (float)((reward(r) - mean) / (deviation + 1e-4));
            memcpy(u->ids + i * u->length + u->prompt, r->tokens, (size_t)r->n * sizeof *r->tokens);
            for (int32_t t = 0; t < r->n; t++)
                u->weights[i * u->length + u->prompt + t] = advantage;
            u->items[i] = (op_item){.ids = u->ids + i * u->length, .weights = u->weights + i * u->length, .n = u->prompt + r->n};
        }
    }
}

static op_status update_once(update *u, op_learner *l, const bench_options *o, uint64_t seed, double *generated, op_error *e)
{
    for (int32_t i = 0; i < u->n; i++) {
        bool leader = i % u->answers == 0;
        u->requests[i] = (op_request){.prompt = u->ids + i * u->length, .n_prompt = u->prompt, .adapter = -1, .share = leader ? -1 : i - i % u->answers,
                                      .share_n = leader ? 0 : u->prompt,
                                      .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .max_tokens = (int32_t)o->max_tokens,
                                                   .seed = seed + (uint64_t)i}};
    }
    double start = op_seconds();
    op_status s = op_generate(op_learner_model(l), u->requests, (size_t)u->n, &(op_generate_options){.ignore_eos = true, .interrupt = &cli_stop}, e);
    *generated = op_seconds() - start;
    op_step_stats stats;
    if (!s) {
        judge(u);
        s = op_learner_step(l, u->items, (size_t)u->n, 1e-6, &stats, e);
    }
    for (int32_t i = 0; i < u->n; i++)
        op_request_release(&u->requests[i]);
    return s;
}

op_status bench_update(const bench_options *o, json_t *out, op_error *e)
{
    op_model *m;
    op_learner *l = NULL;
    update u = {0};
    op_status s = open_model(&m, o, OP_TRAIN_ALL, e);
    if (s)
        return s;
    op_policy policy = {.clip_low = 0.2, .clip_high = 0.2, .fresh = true};
    op_learner_options how = learner_options(o, op_objective_policy(&policy));
    double *seconds = calloc((size_t)o->steps, sizeof *seconds), generated = 0, generating = 0, all = 0;
    s = seconds ? op_learner_new(&l, m, &how, e) : no_memory(e);
    if (!s)
        s = update_init(&u, o, op_model_get_config(m)->vocab, e);
    if (!s)
        s = update_once(&u, l, o, 1, &generated, e);
    op_profile_clear();
    for (int64_t i = 0; i < o->steps && !s; i++) {
        double start = op_seconds();
        s = update_once(&u, l, o, (uint64_t)(i + 2) << 32, &generated, e);
        seconds[i] = op_seconds() - start;
        all += seconds[i];
        generating += generated;
        cli_progress(false, "update %lld/%lld: %.1f s", (long long)i + 1, (long long)o->steps, seconds[i]);
    }
    if (!s) {
        char work[96];
        snprintf(work, sizeof work, "an update from %lld x %lld answers of %lld tokens", (long long)o->prompts, (long long)o->answers, (long long)o->max_tokens);
        add_profile(o, out, work, all, o->steps);
        double typical = median(seconds, o->steps), fresh = (double)(u.n * o->max_tokens), keys = (double)o->prompt_tokens + 0.5 * (double)o->max_tokens;
        put(out, "seconds", typical);
        put(out, "gflops", 1e-9 / typical * fresh * (forward_flop(m, keys, true) + training_flop(m, keys, false)));
        put(out, "share_generating", generating / all);
        put(out, "tokens_per_s", fresh / typical);
        put(out, "peak_rss_mb", op_peak_rss_mb());
    }
    free(seconds);
    update_release(&u);
    op_learner_free(l);
    op_model_free(m);
    return s;
}

/* ---- tokenizing ---- */

static op_status read_file(const char *path, char **text, size_t *n, op_error *e)
{
    FILE *f = path ? fopen(path, "rb") : NULL;
    *text = NULL;
    if (!f)
        return op_error_set(e, OP_ERR_IO, path ? "%s: cannot be read" : "%sgive file=PATH, the text to tokenize", path ? path : "");
    bool fine = !fseek(f, 0, SEEK_END);
    long size = fine ? ftell(f) : -1;
    fine = size > 0 && !fseek(f, 0, SEEK_SET) && (*text = malloc((size_t)size)) && fread(*text, 1, (size_t)size, f) == (size_t)size;
    fclose(f);
    *n = fine ? (size_t)size : 0;
    return fine ? OP_OK : op_error_set(e, OP_ERR_IO, "%s: cannot be read, or is empty", path);
}

/* Each line for itself. */
static op_status encode_lines(const op_tokenizer *t, const char *text, size_t n, op_tokens *tokens, int64_t *count, op_error *e)
{
    op_status s = OP_OK;
    *count = 0;
    for (const char *at = text, *end = text + n; at < end && !s;) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        stop = stop ? stop + 1 : end;
        op_tokens_clear(tokens);
        s = op_tokenizer_encode(t, at, (size_t)(stop - at), OP_ENCODE_PLAIN, tokens, e);
        *count += (int64_t)tokens->n;
        at = stop;
    }
    return s;
}

op_status bench_tokenize(const bench_options *o, json_t *out, op_error *e)
{
    char *text;
    size_t n;
    op_tokenizer *t = NULL;
    op_tokens tokens;
    op_tokens_init(&tokens);
    double *seconds = calloc((size_t)o->steps, sizeof *seconds);
    int64_t count = 0;
    op_status s = read_file(o->file, &text, &n, e);
    if (!s && !seconds)
        s = no_memory(e);
    if (!s)
        s = op_tokenizer_open(&t, o->model, e);
    if (!s)
        s = encode_lines(t, text, n, &tokens, &count, e);
    for (int64_t i = 0; i < o->steps && !s; i++) {
        double start = op_seconds();
        s = encode_lines(t, text, n, &tokens, &count, e);
        seconds[i] = op_seconds() - start;
    }
    if (!s) {
        double typical = median(seconds, o->steps);
        put(out, "tokens_per_s", (double)count / typical);
        put(out, "mb_per_s", 1e-6 * (double)n / typical);
        json_object_set_new(out, "tokens", json_integer(count));
        put(out, "peak_rss_mb", op_peak_rss_mb());
    }
    free(seconds);
    free(text);
    op_tokens_release(&tokens);
    op_tokenizer_free(t);
    return s;
}
