/* Streaming the jobs of a plan into a model directory. */
#include "vectors/merge.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/statvfs.h>

#include <operant/buf.h>
#include <operant/file.h>

#include "io/file.h"
#include "io/json.h"

enum { BLOCK = 1 << 18 }; /* elements of the result that are made at a time */

typedef struct run {
    const op_merge_config *c;
    op_merge_plan *p;
    const op_merge_options *o;
    op_arena arena;
    float *block;         /* elements first .. first+n-1 of the job that is written */
    int64_t first, n;
    size_t done;
} run;

typedef struct output {
    run *r;
    op_merge_job *job;
} output;

static op_status make_block(run *r, op_merge_job *j, int64_t first, op_error *e)
{
    int64_t tiles = op_merge_tile_count(j), from = first / j->tile, step = BLOCK / j->tile > 1 ? BLOCK / j->tile : 1;
    int64_t to = from + step < tiles ? from + step : tiles, end = to * j->tile < j->count ? to * j->tile : j->count;
    r->first = first;
    r->n = end - first;
    op_status s = op_merge_tiles(j, from, to, j->method->formula, j, r->block, e);
    op_merge_drop(j, r->first, r->n);
    return s;
}

static op_status start_job(run *r, op_merge_job *j, op_error *e)
{
    j->arena = &r->arena;
    if (r->o->watch && !r->o->watch(r->o->ctx, r->done, r->p->n_jobs))
        return op_error_set(e, OP_ERR_INTERRUPTED, "interrupted");
    r->first = r->n = 0;
    op_status s = op_merge_job_start(j, e);
    if (s)
        return s;
    size_t room = (size_t)(j->tile > BLOCK ? j->tile : BLOCK);
    r->block = op_alloc_array(room, sizeof *r->block);
    return r->block ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "tensor \"%s\": out of memory", j->name);
}

static void end_job(run *r, op_merge_job *j)
{
    op_merge_job_end(j);
    op_free(r->block);
    r->block = NULL;
    r->done++;
}

/* The source of a tensor that is being written: called in the order of its elements. */
static op_status give(void *ctx, int64_t first, int64_t n, float *out, op_error *e)
{
    const output *x = ctx;
    run *r = x->r;
    op_merge_job *j = x->job;
    op_status s = first ? OP_OK : start_job(r, j, e);
    for (int64_t at = first, part; at < first + n && !s; at += part) {
        if (at >= r->first + r->n && (s = make_block(r, j, at, e)))
            break;
        part = r->first + r->n - at < first + n - at ? r->first + r->n - at : first + n - at;
        memcpy(out + (at - first), r->block + (at - r->first), (size_t)part * sizeof *out);
    }
    if (s || first + n == j->count)
        end_job(r, j);
    return s;
}

static size_t bytes_of(const op_merge_job *j)
{
    return (size_t)j->count * op_dtype_block_bytes(j->out);
}

/* Better said at the start than found out at the end. */
static op_status check_room(const op_merge_plan *p, const char *dir, op_error *e)
{
    uint64_t need = 0;
    struct statvfs fs;
    for (size_t i = 0; i < p->n_jobs; i++)
        need += bytes_of(&p->jobs[i]);
    if (statvfs(dir, &fs) || fs.f_frsize == 0)
        return OP_OK;
    uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
    return need <= room ? OP_OK : op_error_set(e, OP_ERR_IO, "%s: the result takes %llu MiB, but the disk has %llu MiB left", dir, (unsigned long long)(need >> 20),
                                               (unsigned long long)(room >> 20));
}

static op_status write_tensors(run *r, const char *dir, op_error *e)
{
    size_t n = r->p->n_jobs;
    op_tensor_out *out = op_alloc_zero(n, sizeof *out);
    output *sources = op_alloc_zero(n, sizeof *sources);
    op_status s = out && sources ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", dir);
    for (size_t i = 0; i < n && !s; i++) {
        op_merge_job *j = &r->p->jobs[i];
        sources[i] = (output){r, j};
        out[i] = (op_tensor_out){.name = j->name, .dtype = j->out, .rank = j->rank, .source = give, .ctx = &sources[i]};
        memcpy(out[i].shape, j->shape, sizeof out[i].shape);
        if (j->type >= OP_I8)
            out[i].data = j->in[0].tensor->stored->data;
    }
    if (!s)
        s = op_safetensors_write_dir(dir, out, n, NULL, 0, (uint64_t)5 << 30, e);
    if (!s && r->o->watch && !r->o->watch(r->o->ctx, n, n))
        s = op_error_set(e, OP_ERR_INTERRUPTED, "interrupted");
    op_free(sources);
    op_free(out);
    return s;
}

/* ---- config.json ---- */

/* A list with an entry a layer (layer_types) keeps those of the layers that were taken. */
static op_status pick_layers(const op_merge_config *c, json_t *config, const char *key, op_error *e)
{
    json_t *old = json_object_get(config, key), *new = json_array();
    op_status s = new ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory");
    for (int i = 0; i < c->n_slices && !s; i++)
        for (int64_t l = c->slices[i].sources[0].first; l < c->slices[i].sources[0].end && !s; l++)
            if (json_array_append(new, json_array_get(old, (size_t)l)))
                s = json_array_get(old, (size_t)l) ? op_error_set(e, OP_ERR_NOMEM, "out of memory")
                                                    : op_error_set(e, OP_ERR_FORMAT, "config.json: key \"%s\" has no entry for layer %lld", key, (long long)l);
    if (!s && json_object_set(config, key, new))
        s = op_error_set(e, OP_ERR_NOMEM, "out of memory");
    json_decref(new);
    return s;
}

/* Does a model whose output layer is its own take part? */
static bool has_untied(const op_merge_plan *p)
{
    for (int i = 0; i < p->n_models; i++)
        if (op_weights_find(p->models[i].weights, "lm_head.weight"))
            return true;
    return false;
}

static op_status set(json_t *config, const char *key, json_t *value, op_error *e)
{
    return json_object_set_new(config, key, value) ? op_error_set(e, OP_ERR_NOMEM, "out of memory") : OP_OK;
}

/* The configuration of the first model, whose copy lies in `dir`, with the number of layers and tokens of the result. */
static op_status mend_config(const run *r, const char *dir, op_error *e)
{
    char *path = op_path_join(dir, "config.json");
    json_t *j = NULL;
    op_status s = path ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory");
    if (s || !op_path_exists(path)) {
        op_free(path);
        return s;
    }
    s = op_json_read(&j, path, e);
    const char *layers = json_object_get(j, "n_layer") ? "n_layer" : "num_hidden_layers";
    if (!s && json_integer_value(json_object_get(j, layers)) != r->p->layers) {
        if (json_is_array(json_object_get(j, "layer_types")))
            s = pick_layers(r->c, j, "layer_types", e);
        s = s ? s : set(j, layers, json_integer(r->p->layers), e);
    }
    if (!s && r->p->words)
        s = set(j, "vocab_size", json_integer(op_merge_words_count(r->p->words)), e);
    bool head = false;
    for (size_t i = 0; i < r->p->n_jobs; i++)
        head |= !strcmp(r->p->jobs[i].name, "lm_head.weight");
    if (!s && head && r->p->n_models > 1 && json_is_true(json_object_get(j, "tie_word_embeddings")) && has_untied(r->p) &&
        !op_weights_find(r->p->models[0].weights, "lm_head.weight"))
        s = set(j, "tie_word_embeddings", json_false(), e);
    if (!s)
        s = op_json_write(path, j, e);
    json_decref(j);
    op_free(path);
    return s;
}

static op_status write_text(const char *dir, const char *name, const char *text, size_t n, op_error *e)
{
    char *path = op_path_join(dir, name);
    op_status s = path ? op_file_put(path, text, n, e) : op_error_set(e, OP_ERR_NOMEM, "out of memory");
    op_free(path);
    return s;
}

static op_status write_all(run *r, const char *dir, const char *yaml, size_t n, op_error *e)
{
    const char *from = op_weights_base_path(r->p->models[0].weights);
    op_status s = check_room(r->p, dir, e);
    if (!s)
        s = write_tensors(r, dir, e);
    if (!s)
        s = op_weights_write_rest(from, dir, r->p->jobs[0].out, e);
    if (!s && r->p->words)
        s = op_merge_words_write(r->p->words, dir, e);
    if (!s)
        s = op_merge_template_write(r->c, r->p, dir, e);
    if (!s)
        s = mend_config(r, dir, e);
    return s ? s : write_text(dir, "mergekit_config.yml", yaml, n, e);
}

/* The result may not be one of the models, nor lie inside one. */
static op_status check_output(const op_merge_config *c, const char *out, op_error *e)
{
    for (int i = 0; i < c->n_models; i++)
        if (op_path_same(c->models[i], out))
            return op_error_set(e, OP_ERR_ARG, "output \"%s\" is one of the models that are merged", out);
    return OP_OK;
}

op_status op_merge_text(const char *yaml, size_t n, const char *name, const char *out, const op_merge_options *o, op_merge_report *report, op_error *e)
{
    op_merge_config c;
    op_merge_plan p;
    op_dir_out dir = {0};
    op_status s = op_merge_config_read(&c, yaml, n, name, e);
    if (s)
        return s;
    if ((s = check_output(&c, out, e)) || (s = op_merge_plan_make(&p, &c, o->seed, e))) {
        op_merge_config_release(&c);
        return s;
    }
    run r = {.c = &c, .p = &p, .o = o};
    op_arena_init(&r.arena);
    if (!p.n_jobs)
        s = op_error_set(e, OP_ERR_FORMAT, "\"%s\" holds no tensors", p.models[0].path);
    if (!s)
        s = op_dir_out_begin(&dir, out, e);
    if (!s)
        s = write_all(&r, dir.temp, yaml, n, e);
    if (!s)
        s = op_dir_out_commit(&dir, e);
    op_dir_out_abort(&dir);
    if (!s && report) {
        *report = (op_merge_report){.tensors = p.n_jobs, .layers = p.layers};
        snprintf(report->method, sizeof report->method, "%s", c.method->name);
        for (size_t i = 0; i < p.n_jobs; i++)
            report->elements += p.jobs[i].count;
    }
    op_arena_release(&r.arena);
    op_merge_plan_release(&p);
    op_merge_config_release(&c);
    return s;
}

op_status op_merge(const char *config, const char *out, const op_merge_options *o, op_merge_report *report, op_error *e)
{
    op_buf text;
    op_buf_init(&text, OP_YAML_BYTES_MAX);
    op_status s = op_file_read(config, &text, e);
    if (!s)
        s = op_merge_text(text.data, text.len, config, out, o, report, e);
    op_buf_release(&text);
    return s;
}
