#include "train/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/zip.h"
#include "train/learner.h"

enum { FORMAT = 1, FILES = 3 };

static const char *const file_names[FILES] = {"values.safetensors", "adam_m.safetensors", "adam_v.safetensors"};
#define STATE "state.json"
#define HALF_WRITTEN ".saving"
#define HALF_REMOVED ".removing"

static float *array_of(const op_learner *l, int file)
{
    return file == 0 ? l->params.values : file == 1 ? l->m : l->v;
}

static op_status no_memory(op_error *e, const char *path)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for checkpoint \"%s\"", path);
}

/* ---- names ---- */

/* The step of a checkpoint's name, or -1. */
static int64_t step_of(const char *name)
{
    long long step;
    int end = 0;
    return sscanf(name, "step-%lld%n", &step, &end) == 1 && end >= 13 && !name[end] ? (int64_t)step : -1;
}

/* Calls fn for every entry of a directory; a missing directory has none. */
static op_status each_entry(const char *dir, op_status (*fn)(void *ctx, const char *name, op_error *e), void *ctx, op_error *e)
{
    DIR *d = opendir(dir);
    if (!d)
        return errno == ENOENT ? OP_OK : op_error_set(e, OP_ERR_IO, "cannot list \"%s\": %s", dir, strerror(errno));
    op_status status = OP_OK;
    for (struct dirent *x; !status && (x = readdir(d));)
        status = fn(ctx, x->d_name, e);
    closedir(d);
    return status;
}

typedef struct extremes {
    int64_t oldest, newest, count;
} extremes;

static op_status see(void *ctx, const char *name, op_error *e)
{
    (void)e;
    extremes *x = ctx;
    int64_t step = step_of(name);
    if (step < 0)
        return OP_OK;
    if (!x->count || step < x->oldest)
        x->oldest = step;
    if (!x->count || step > x->newest)
        x->newest = step;
    x->count++;
    return OP_OK;
}

static char *path_of(const char *dir, int64_t step)
{
    char name[32];
    snprintf(name, sizeof name, "step-%08lld", (long long)step);
    return op_path_join(dir, name);
}

op_status op_checkpoint_newest(const char *dir, char **path, op_error *e)
{
    *path = NULL;
    extremes x = {0};
    op_status status = each_entry(dir, see, &x, e);
    if (status || !x.count)
        return status;
    *path = path_of(dir, x.newest);
    return *path ? OP_OK : no_memory(e, dir);
}

static op_status remove_in(const char *dir, const char *name, op_error *e)
{
    char *path = op_path_join(dir, name);
    op_status status = path ? op_path_remove(path, e) : no_memory(e, dir);
    op_free(path);
    return status;
}

/* Under its name a checkpoint is complete to the last, so it loses the name before its files. One that is not there is fine. */
static op_status remove_step(const char *dir, int64_t step, op_error *e)
{
    char *path = path_of(dir, step), *doomed = op_path_join(dir, HALF_REMOVED);
    op_status status = path && doomed ? op_path_remove(doomed, e) : no_memory(e, dir);
    if (!status && op_path_exists(path)) {
        status = op_path_rename(path, doomed, e);
        if (!status)
            status = op_path_remove(doomed, e);
    }
    op_free(path);
    op_free(doomed);
    return status;
}

op_status op_checkpoint_forget(const char *dir, int64_t after, op_error *e)
{
    op_status status = remove_in(dir, HALF_WRITTEN, e);
    if (!status)
        status = remove_in(dir, HALF_REMOVED, e);
    for (bool more = true; !status && more;) { /* newest first, so that what a kill leaves is a beginning of the run */
        extremes x = {0};
        status = each_entry(dir, see, &x, e);
        more = !status && x.count && x.newest > after;
        if (more)
            status = remove_step(dir, x.newest, e);
    }
    return status;
}

static op_status keep_newest(const char *dir, int32_t keep, op_error *e)
{
    op_status status = OP_OK;
    for (bool more = keep > 0; !status && more;) {
        extremes x = {0};
        status = each_entry(dir, see, &x, e);
        more = !status && x.count > keep;
        if (more)
            status = remove_step(dir, x.oldest, e);
    }
    return status;
}

/* ---- writing ---- */

/* The parameter table as tensors over `array`. */
static op_tensor_out *tensors_over(const op_params *p, const float *array)
{
    op_tensor_out *tensors = op_alloc_zero(p->n_table, sizeof *tensors);
    for (size_t i = 0; tensors && i < p->n_table; i++) {
        const op_param *x = &p->table[i];
        tensors[i] = (op_tensor_out){.name = x->name, .dtype = OP_F32, .rank = x->cols > 1 ? 2 : 1, .shape = {x->rows, x->cols},
                                     .data = array + x->offset};
    }
    return tensors;
}

/* Size and CRC-32 of a file, read in parts: a map of it would count as memory of the run. */
static op_status sum_of(const char *path, json_t **out, op_error *e)
{
    unsigned char part[1 << 16];
    FILE *f = fopen(path, "rbe");
    if (!f)
        return op_error_set(e, OP_ERR_IO, "cannot open \"%s\": %s", path, strerror(errno));
    json_int_t bytes = 0;
    uint32_t crc = 0;
    for (size_t n; (n = fread(part, 1, sizeof part, f)); bytes += (json_int_t)n)
        crc = op_crc32(crc, part, n);
    bool failed = ferror(f);
    fclose(f);
    if (failed)
        return op_error_set(e, OP_ERR_IO, "cannot read \"%s\"", path);
    *out = json_pack("{sIsI}", "bytes", bytes, "crc32", (json_int_t)crc);
    return *out ? OP_OK : no_memory(e, path);
}

/* Takes `tensors` over, which is NULL when memory is out. */
static op_status write_tensors(const char *dir, const char *name, op_tensor_out *tensors, size_t n, json_t *files, op_error *e)
{
    char *path = op_path_join(dir, name);
    json_t *sum = NULL;
    op_status status = path && tensors ? op_safetensors_write(path, tensors, n, NULL, 0, e) : no_memory(e, dir);
    if (!status)
        status = sum_of(path, &sum, e);
    if (!status && json_object_set_new(files, name, sum))
        status = no_memory(e, dir);
    op_free(tensors);
    op_free(path);
    return status;
}

static op_status write_moments8(const char *dir, int file, const op_learner *l, json_t *files, op_error *e)
{
    op_tensor_out *tensors = op_alloc_zero(2 * l->params.n_table, sizeof *tensors);
    size_t n = tensors ? op_moments_tensors(&l->moments, &l->params, file == 2, tensors) : 0;
    return write_tensors(dir, file_names[file], tensors, n, files, e);
}

/* Of the moments each rank has only its share: they are brought together for the time of writing, so that a file does not tell how many ranks there were. */
static op_status write_array(const char *dir, int file, op_learner *l, json_t *files, op_error *e)
{
    const float *array = array_of(l, file);
    float *whole = NULL;
    op_status status = OP_OK;
    if (file > 0 && l->moments.of)
        return write_moments8(dir, file, l, files, e);
    if (file > 0 && l->shard.own < l->params.n) {
        whole = op_alloc_aligned(l->params.n * sizeof *whole);
        status = whole ? op_shard_collect(&l->shard, array, whole, e) : no_memory(e, dir);
        array = whole;
    }
    if (!status)
        status = write_tensors(dir, file_names[file], tensors_over(&l->params, array), l->params.n_table, files, e);
    op_free_aligned(whole);
    return status;
}

/* What a rank that does not write does meanwhile. */
static op_status give_arrays(op_learner *l, op_error *e)
{
    op_status status = OP_OK;
    for (int i = 1; !status && i < FILES; i++)
        status = op_shard_collect(&l->shard, array_of(l, i), NULL, e);
    return status;
}

/* NULL for one that never was: packed with o*, its key is left out. */
static json_t *pack_evaluation(const op_evaluation *x)
{
    return isfinite(x->loss) ? json_pack("{sf sI}", "loss", x->loss, "tokens", (json_int_t)x->tokens) : NULL;
}

static void unpack_evaluation(json_t *root, const char *key, op_evaluation *x)
{
    json_t *value = json_object_get(root, key), *loss = json_object_get(value, "loss");
    *x = (op_evaluation){.loss = NAN, .perplexity = NAN};
    if (json_is_number(loss))
        *x = (op_evaluation){json_number_value(loss), exp(json_number_value(loss)), json_integer_value(json_object_get(value, "tokens"))};
}

static op_status write_state(const char *dir, const op_learner *l, const op_run_state *state, json_t *identity, json_t *files, op_error *e)
{
    char *path = op_path_join(dir, STATE);
    json_t *root = json_pack("{si ss sI sI sI sI so* so* sO* sO sO}", "format", FORMAT, "version", OPERANT_VERSION, "step", (json_int_t)state->step,
                             "updates", (json_int_t)l->steps, "position", (json_int_t)state->position, "tokens", (json_int_t)state->tokens,
                             "first", pack_evaluation(&state->first), "last", pack_evaluation(&state->last), "extra", state->extra, "identity",
                             identity, "files", files);
    op_status status = path && root ? op_json_write(path, root, e) : no_memory(e, dir);
    json_decref(root);
    op_free(path);
    return status;
}

static op_status write_directory(const char *dir, op_learner *l, const op_run_state *state, json_t *identity, op_error *e)
{
    json_t *files = json_object();
    op_status status = files ? op_dir_make(dir, e) : no_memory(e, dir);
    for (int i = 0; !status && i < FILES; i++)
        status = write_array(dir, i, l, files, e);
    if (!status)
        status = write_state(dir, l, state, identity, files, e);
    json_decref(files);
    return status;
}

op_status op_checkpoint_save(const char *dir, op_learner *l, const op_run_state *state, json_t *identity, int32_t keep,
                             op_error *e)
{
    if (op_parallel_rank(l->shard.parallel) > 0)
        return give_arrays(l, e);
    char *half = op_path_join(dir, HALF_WRITTEN), *path = path_of(dir, state->step);
    op_status status = half && path ? op_path_remove(half, e) : no_memory(e, dir);
    if (!status)
        status = write_directory(half, l, state, identity, e);
    if (!status)
        status = remove_step(dir, state->step, e);
    if (!status)
        status = op_path_rename(half, path, e);
    if (!status)
        status = keep_newest(dir, keep, e);
    op_free(half);
    op_free(path);
    return status;
}

/* ---- reading ---- */

static op_status check_identity(const char *path, json_t *was, json_t *is, op_error *e)
{
    const char *key;
    json_t *value;
    for (int pass = 0; pass < 2; pass++) { /* keys of either side */
        json_object_foreach(pass ? is : was, key, value) {
            const char *then = json_string_value(json_object_get(was, key)), *now = json_string_value(json_object_get(is, key));
            if (!then || !now || strcmp(then, now))
                return op_error_set(e, OP_ERR_MISMATCH,
                                    "checkpoint \"%s\" was made with %s \"%.70s\", now it is \"%.70s\": restore it, or start afresh with resume=none",
                                    path, key, then ? then : "", now ? now : "");
        }
    }
    return OP_OK;
}

static op_status check_file(const char *dir, const char *name, json_t *files, op_error *e)
{
    char *path = op_path_join(dir, name);
    if (!path)
        return no_memory(e, dir);
    op_status status = OP_OK;
    json_t *then = json_object_get(files, name), *now = NULL;
    if (!then || !op_path_exists(path))
        status = op_error_set(e, OP_ERR_FORMAT, "checkpoint \"%s\" lacks \"%s\"", dir, name);
    if (!status)
        status = sum_of(path, &now, e);
    if (!status && !json_equal(then, now))
        status = op_error_set(e, OP_ERR_FORMAT, "checkpoint \"%s\": the bytes of \"%s\" are not those that were written", dir, name);
    json_decref(now);
    op_free(path);
    return status;
}

/* Reads of a parameter what is kept here: the whole of its value, of its moments those that this rank owns. NULL: only checks that it is there. */
static op_status read_tensor(const op_tensors *file, const op_param *x, const op_shard *shard, float *out, const char *path, op_error *e)
{
    const op_tensor *t = op_tensors_find(file, x->name);
    if (!t || t->dtype != OP_F32 || t->count != (int64_t)x->n)
        return op_error_set(e, OP_ERR_MISMATCH, "\"%s\": found %s \"%s\", expected %zu floats", path,
                            t ? "another shape or type of" : "no", x->name, x->n);
    if (!shard)
        return out ? op_tensor_read_f32(t, 0, t->count, out + x->offset, e) : OP_OK;
    op_status status = OP_OK;
    for (size_t c = 0; out && !status && c < shard->n_chunks; c++) {
        op_span own = op_shard_span(shard, c);
        size_t first = own.first > x->offset ? own.first : x->offset, end = own.first + own.n;
        end = end < x->offset + x->n ? end : x->offset + x->n;
        if (first < end)
            status = op_tensor_read_f32(t, (int64_t)(first - x->offset), (int64_t)(end - first), out + own.local + (first - own.first), e);
    }
    return status;
}

/* Reads every parameter of one file into its array; with `dry`, only checks that they are there. */
static op_status read_array(const char *dir, int file, op_learner *l, bool dry, op_error *e)
{
    char *path = op_path_join(dir, file_names[file]);
    op_tensors *tensors = NULL;
    bool codes = file > 0 && l->moments.of;
    op_status status = !path ? no_memory(e, dir)
                       : codes ? op_moments_read(&l->moments, &l->params, file == 2, path, dry, e)
                               : op_tensors_open(&tensors, path, e);
    for (size_t i = 0; !status && !codes && i < l->params.n_table; i++) {
        const op_param *x = &l->params.table[i];
        status = read_tensor(tensors, x, file ? &l->shard : NULL, dry ? NULL : array_of(l, file), path, e);
    }
    op_tensors_close(tensors);
    op_free(path);
    return status;
}

static op_status read_state(const char *dir, op_run_state *state, json_t **root, op_error *e)
{
    char *path = op_path_join(dir, STATE);
    if (!path)
        return no_memory(e, dir);
    int64_t format = 0;
    op_status status = op_path_exists(path) ? op_json_read(root, path, e)
                                            : op_error_set(e, OP_ERR_FORMAT, "\"%s\" is no checkpoint: it lacks " STATE, dir);
    if (!status)
        status = op_json_get_int(*root, "format", true, FORMAT, FORMAT, &format, path, e);
    if (!status)
        status = op_json_get_int(*root, "step", true, 0, INT64_MAX, &state->step, path, e);
    if (!status)
        status = op_json_get_int(*root, "position", true, 0, INT64_MAX, &state->position, path, e);
    if (!status)
        status = op_json_get_int(*root, "tokens", true, 0, INT64_MAX, &state->tokens, path, e);
    op_free(path);
    return status;
}

op_status op_checkpoint_load(const char *path, op_learner *l, op_run_state *state, json_t *identity, op_error *e)
{
    json_t *root = NULL, *was = NULL, *files = NULL;
    op_run_state read = {0};
    int64_t updates = 0;
    op_status status = read_state(path, &read, &root, e);
    if (!status)
        status = op_json_get_int(root, "updates", true, 0, INT64_MAX, &updates, path, e);
    if (!status)
        status = op_json_get_object(root, "identity", true, &was, path, e);
    if (!status)
        status = op_json_get_object(root, "files", true, &files, path, e);
    if (!status)
        status = check_identity(path, was, identity, e);
    for (int i = 0; !status && i < FILES; i++)
        status = check_file(path, file_names[i], files, e);
    for (int i = 0; !status && i < 2 * FILES; i++)
        status = read_array(path, i % FILES, l, i < FILES, e);
    if (!status) {
        *state = read;
        unpack_evaluation(root, "first", &state->first);
        unpack_evaluation(root, "last", &state->last);
        state->extra = json_incref(json_object_get(root, "extra"));
        l->steps = updates;
        status = op_model_updated(l->model, e);
    }
    json_decref(root);
    return status;
}
