#include <operant/assay.h>

#include <math.h>
#include <stddef.h>
#include <string.h>

#include <operant/clock.h>
#include <operant/report.h>

#include "base/hash.h"
#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "lab/parts.h"
#include "ops/ops.h"

#define AT(field) offsetof(op_assay_options, field)

const op_option op_assay_table[] = {
    {"model|model_name_or_path", OP_OPTION_STRING, AT(model), NULL, 0, 0, NULL, "what to measure: a model directory, an adapter directory or a .gguf file"},
    {"data|prompts", OP_OPTION_STRING, AT(data), NULL, 0, 0, NULL, "the prompts: .jsonl with id, class and messages"},
    {"judge", OP_OPTION_STRING, AT(judge), NULL, 0, 0, NULL, "the rules that decide what a reply does: .yaml"},
    {"candidates", OP_OPTION_STRING, AT(candidates), NULL, 0, 0, NULL, "typical asks and declines for the log-probability judge: .yaml"},
    {"neutral", OP_OPTION_STRING, AT(neutral), NULL, 0, 0, NULL, "plain text whose perplexity is measured; unset: none"},
    {"train_file", OP_OPTION_STRING, AT(train_file), NULL, 0, 0, NULL, "the training data, for the bag-of-words classifier; unset: none"},
    {"reference|before", OP_OPTION_STRING, AT(reference), NULL, 0, 0, NULL, "results.json of the same measurement before training; unset: this is the one before"},
    {"metrics", OP_OPTION_STRING, AT(metrics), NULL, 0, 0, NULL, "metrics.jsonl of the training run; unset: the one in the model's directory, if any"},
    {"output_dir|output", OP_OPTION_STRING, AT(output_dir), NULL, 0, 0, NULL, "directory of results.json and report.html; made if it is not there"},
    {"scope", OP_OPTION_CHOICE, AT(scope), "sensitive", 0, 0, "sensitive|all", "all: even harmless questions call for a reason"},
    {"limit", OP_OPTION_INT, AT(limit), "0", 0, 1 << 20, NULL, "prompts of each class, spread evenly; 0: all"},
    {"max_tokens|max_new_tokens", OP_OPTION_INT, AT(max_tokens), "64", 1, 4096, NULL, "longest reply, in tokens"},
    {"temperature", OP_OPTION_FLOAT, AT(temperature), "0", 0, 100, NULL, "0: the likeliest token every time"},
    {"seed", OP_OPTION_INT, AT(seed), "1", 0, 1 << 30, NULL, "of the replies (when temperature is not 0) and of shuffled labels"},
    {"logprob_judge", OP_OPTION_BOOL, AT(logprob_judge), "true", 0, 0, NULL, "compare the log-probabilities of asking, answering and declining too"},
    {"logprob_limit", OP_OPTION_INT, AT(logprob_limit), "30", 0, 1 << 20, NULL, "prompts of each class for it; 0: all"},
    {"logprob_classes", OP_OPTION_LIST, AT(logprob_classes), "neighbour,sensitive,unjustified,thin,good,bad", 0, 0, NULL, "classes for it"},
    {"dtype", OP_OPTION_CHOICE, AT(dtype), "auto", 0, 0, OP_SUBJECT_DTYPES, "of activations and products; auto: bf16 where the processor multiplies it"},
    {"backend", OP_OPTION_STRING, AT(backend), NULL, 0, 0, NULL, "cpu or ref"},
    {"threads", OP_OPTION_INT, AT(threads), "0", 0, 1024, NULL, "0: one a core"},
    {"batch|batch_size", OP_OPTION_INT, AT(batch), "32", 1, 32, NULL, "replies written at once; does not change them"},
    {0},
};

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the assay");
}

/* ---- progress ---- */

void op_lab_begin(op_lab *l)
{
    l->seconds = op_seconds();
}

op_status op_lab_tell(op_lab *l, const char *what, int64_t done, int64_t total, int64_t tokens, op_error *e)
{
    const op_assay_callbacks *c = l->callbacks;
    double seconds = fmax(op_seconds() - l->seconds, 1e-9);
    if (c->progress)
        c->progress(c->ctx, &(op_assay_progress){what, done, total, (double)tokens / seconds,
                                                 done ? seconds / (double)done * (double)(total - done) : NAN});
    return c->stop && *c->stop ? op_error_set(e, OP_ERR_INTERRUPTED, "stopped while measuring %s", what) : OP_OK;
}

/* ---- the subject ---- */

static op_status open_subject(op_subject *s, const op_assay_options *o, op_error *e)
{
    op_model_options how = {.backend = o->backend, .act = op_subject_dtype(o->dtype, o->backend), .trainable = OP_TRAIN_NONE};
    op_status status = op_subject_open(s, o->model, &how, e);
    return !status && !s->tmpl ? op_error_set(e, OP_ERR_UNSUPPORTED, "%s: has no chat template", o->model) : status;
}

/* ---- results.json ---- */

/* A file and its hash, as JSON; null when `path` is NULL. */
static op_status file_json(const char *path, json_t **out, op_error *e)
{
    if (!path) {
        *out = json_null();
        return OP_OK;
    }
    char hash[OP_HASH_HEX];
    op_status status = op_file_hash(path, hash, e);
    if (status)
        return status;
    *out = json_pack("{ss ss}", "path", path, "hash", hash);
    return *out ? OP_OK : no_memory(e);
}

static op_status add_files(const op_assay_options *o, json_t *results, op_error *e)
{
    const struct {
        const char *key, *path;
    } files[] = {{"data", o->data}, {"judge", o->judge}, {"candidates", o->logprob_judge ? o->candidates : NULL}, {"neutral", o->neutral},
                 {"train_file", o->train_file}, {"reference", o->reference}};
    op_status status = OP_OK;
    for (size_t i = 0; !status && i < sizeof files / sizeof *files; i++) {
        json_t *file = NULL;
        status = file_json(files[i].path, &file, e);
        if (!status && json_object_set_new(results, files[i].key, file))
            status = no_memory(e);
    }
    return status;
}

static op_status add_model(const op_lab *l, json_t *results, op_error *e)
{
    char hash[65];
    json_t *adapter = json_null();
    op_status status = op_model_hash(l->subject.model, hash, e);
    if (!status && l->subject.adapter >= 0) {
        char *path = op_path_join(l->o->model, "adapter_model.safetensors");
        status = path ? file_json(path, &adapter, e) : no_memory(e);
        op_free(path);
    }
    if (status)
        return status;
    json_t *model = json_pack("{ss ss so ss sI}", "path", l->o->model, "hash", hash, "adapter", adapter, "family",
                              op_family_name(op_model_get_config(l->subject.model)->family), "parameters",
                              (json_int_t)op_model_count(l->subject.model));
    return json_object_set_new(results, "model", model) ? no_memory(e) : OP_OK;
}

/* The settings that two measurements must share to be compared, and how this one was run. */
static op_status add_settings(const op_lab *l, int threads, json_t *results, op_error *e)
{
    const op_assay_options *o = l->o;
    json_t *settings = json_pack("{sI sI sI sf sI sb sI ss}", "scope", (json_int_t)o->scope, "limit", (json_int_t)o->limit, "max_tokens",
                                 (json_int_t)o->max_tokens, "temperature", o->temperature, "seed", (json_int_t)o->seed, "logprob_judge",
                                 o->logprob_judge, "logprob_limit", (json_int_t)o->logprob_limit, "logprob_classes",
                                 o->logprob_classes ? o->logprob_classes : "");
    json_t *versions = json_pack("{ss ss ss ss si}", "operant", OPERANT_VERSION, "dtype", op_dtype_name(op_model_get_options(l->subject.model)->act), "simd",
                                 op_ops_simd(), "products", op_ops_product_isa(), "threads", threads);
    json_t *command = json_sprintf("operant assay --config %s/assay.yaml", o->output_dir);
    return json_object_set_new(results, "settings", settings) | json_object_set_new(results, "versions", versions) |
                   json_object_set_new(results, "command", command)
               ? no_memory(e) : OP_OK;
}

/* A "before" that measured something else would give differences without a meaning. */
static op_status check_reference(const json_t *results, const json_t *reference, const char *path, op_error *e)
{
    static const char *const files[] = {"data", "judge", "neutral"}, *const settings[] = {"scope", "limit", "max_tokens", "temperature", "seed"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        const json_t *a = json_object_get(json_object_get(results, files[i]), "hash"), *b = json_object_get(json_object_get(reference, files[i]), "hash");
        if (a && b && !json_equal((json_t *)a, (json_t *)b))
            return op_error_set(e, OP_ERR_MISMATCH, "%s: was measured with another \"%s\" (%.12s..., now %.12s...): measure it again", path, files[i],
                                json_string_value(b), json_string_value(a));
    }
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        const json_t *a = json_object_get(json_object_get(results, "settings"), settings[i]);
        const json_t *b = json_object_get(json_object_get(reference, "settings"), settings[i]);
        if (json_number_value(a) != json_number_value(b))
            return op_error_set(e, OP_ERR_MISMATCH, "%s: was measured with %s=%g, now %g: measure it again", path, settings[i], json_number_value(b),
                                json_number_value(a));
    }
    return OP_OK;
}

op_status op_assay_read(json_t **out, const char *path, op_error *e)
{
    op_status status = op_json_read(out, path, e);
    if (status)
        return status;
    if (json_is_array(json_object_get(*out, "classes")) && json_is_array(json_object_get(*out, "replies")))
        return OP_OK;
    json_decref(*out);
    *out = NULL;
    return op_error_set(e, OP_ERR_FORMAT, "%s: expected the results of an assay, with \"classes\" and \"replies\"", path);
}

/* ---- the measurement ---- */

static op_status judge_replies(op_lab *l, json_t *results, op_error *e)
{
    op_status status = OP_OK;
    for (size_t i = 0; !status && i < l->cases.n; i++) {
        op_case *c = &l->cases.at[i];
        status = op_judge_reply(l->judge, c->reply, strlen(c->reply), &c->judgement, e);
    }
    if (!status && !op_lab_summarise(l, results))
        status = no_memory(e);
    return status;
}

static op_status measure_neutral(op_lab *l, json_t *results, op_error *e)
{
    op_neutral n;
    op_status status = op_lab_read_neutral(l, &n, e);
    if (status)
        return status;
    /* "neutral" is a file so far: path and hash */
    json_t *o = json_object_get(results, "neutral");
    return json_object_set_new(o, "tokens", json_integer(n.tokens)) | json_object_set_new(o, "logprob", op_json_number(n.logprob)) |
                   json_object_set_new(o, "perplexity", op_json_number(exp(-n.logprob)))
               ? no_memory(e) : OP_OK;
}

static op_status measure_words(op_lab *l, json_t *results, op_error *e)
{
    json_t *words;
    op_status status = op_lab_words(l, &words, e);
    if (!status && json_object_set_new(results, "words", words))
        status = no_memory(e);
    return status;
}

static op_status measure(op_lab *l, int threads, json_t *results, const json_t *reference, op_error *e)
{
    const op_assay_options *o = l->o;
    double start = op_seconds();
    op_status status = add_files(o, results, e);
    if (!status)
        status = add_settings(l, threads, results, e);
    if (!status && reference)
        status = check_reference(results, reference, o->reference, e);
    if (!status)
        status = add_model(l, results, e);
    if (!status)
        status = op_lab_generate(l, e);
    if (!status && o->logprob_judge)
        status = op_lab_weigh(l, reference, e);
    if (!status)
        status = judge_replies(l, results, e);
    if (!status && o->neutral)
        status = measure_neutral(l, results, e);
    if (!status && o->train_file)
        status = measure_words(l, results, e);
    if (!status && (json_object_set_new(results, "seconds", json_real(op_seconds() - start)) || !op_lab_add_aims(results, reference)))
        status = no_memory(e);
    return status;
}

/* ---- output ---- */

static op_status write_settings(const op_assay_options *o, op_error *e)
{
    op_buf text;
    op_buf_init(&text, 1 << 20);
    char *path = op_path_join(o->output_dir, "assay.yaml");
    op_status status = path && !op_config_write(o, op_assay_table, &text) ? op_file_put(path, text.data, text.len, e) : no_memory(e);
    op_buf_release(&text);
    op_free(path);
    return status;
}

static op_status write_report(const op_assay_options *o, const op_assay_results *r, op_error *e)
{
    char *path = op_path_join(o->output_dir, "report.html"), *found = op_path_join(o->model, "metrics.jsonl");
    const char *metrics = o->metrics ? o->metrics : found && op_path_exists(found) ? found : NULL;
    op_status status = path && found ? op_report_write(r, metrics, path, e) : no_memory(e);
    op_free(path);
    op_free(found);
    return status;
}

static op_status write_all(const op_assay_options *o, const op_assay_results *r, op_error *e)
{
    char *path = op_path_join(o->output_dir, "results.json");
    op_status status = path ? op_dir_make(o->output_dir, e) : no_memory(e);
    if (!status)
        status = op_json_write(path, r->after, e);
    if (!status)
        status = write_settings(o, e);
    if (!status)
        status = write_report(o, r, e);
    op_free(path);
    return status;
}

static op_status check_settings(const op_assay_options *o, op_error *e)
{
    const char *missing = !o->model ? "model" : !o->data ? "data" : !o->judge ? "judge" : !o->output_dir ? "output_dir"
                          : o->logprob_judge && !o->candidates ? "candidates" : NULL;
    return missing ? op_error_set(e, OP_ERR_ARG, "key \"%s\" is not set", missing) : OP_OK;
}

void op_assay_results_release(op_assay_results *r)
{
    json_decref(r->after);
    json_decref(r->before);
    *r = (op_assay_results){0};
}

op_status op_assay_run(const op_assay_options *o, const op_assay_callbacks *callbacks, op_assay_results *out, op_error *e)
{
    static const op_assay_callbacks none = {0};
    *out = (op_assay_results){0};
    op_status status = check_settings(o, e);
    if (status)
        return status;
    op_lab l = {.o = o, .callbacks = callbacks ? callbacks : &none};
    int threads = op_threads_set((int)o->threads);
    if (o->reference)
        status = op_assay_read(&out->before, o->reference, e);
    if (!status)
        status = op_cases_read(&l.cases, o->data, o->scope, o->limit, e);
    if (!status)
        status = op_judge_open(&l.judge, o->judge, e);
    if (!status)
        status = open_subject(&l.subject, o, e);
    if (!status && !(out->after = json_object()))
        status = no_memory(e);
    if (!status)
        status = measure(&l, threads, out->after, out->before, e);
    if (!status)
        status = write_all(o, out, e);
    for (size_t i = 0; l.requests && i < l.cases.n; i++)
        op_request_release(&l.requests[i]);
    op_free(l.requests);
    op_cases_release(&l.cases);
    op_judge_free(l.judge);
    op_subject_close(&l.subject);
    if (status)
        op_assay_results_release(out);
    return status;
}
