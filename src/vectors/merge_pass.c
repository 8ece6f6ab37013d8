/* Running a function over the elements of a job's inputs, tile by tile, on all threads. */
#include <sys/mman.h>
#include <unistd.h>

#include "vectors/merge.h"

/* Elements between two times that pages are given back. */
enum { BLOCK = 1 << 20 };

void op_merge_by_rows(op_merge_job *j)
{
    j->tile = j->row >= OP_MERGE_TILE ? j->row : OP_MERGE_TILE / j->row * j->row;
}

int64_t op_merge_tile_count(const op_merge_job *j)
{
    return (j->count + j->tile - 1) / j->tile;
}

/* The bytes of an input whose elements can be used as they lie in the file. */
static const float *in_place(const op_merge_job *j, const op_merge_input *x)
{
    if (x->held)
        return j->type == OP_F32 ? x->held : NULL;
    bool floats = x->tensor->plain && x->tensor->dtype == OP_F32 && j->type == OP_F32;
    return floats && (uintptr_t)x->tensor->stored->data % sizeof(float) == 0 ? x->tensor->stored->data : NULL;
}

static op_status load(const op_merge_job *j, const op_merge_input *x, int64_t first, int n, float *room, const float **out)
{
    const float *direct = in_place(j, x);
    op_status s = OP_OK;
    *out = direct ? direct + first : room;
    if (direct)
        return OP_OK;
    if (x->held)
        memcpy(room, x->held + first, (size_t)n * sizeof *room);
    else
        s = op_tensor_read_f32(x->tensor->stored, first, n, room, NULL);
    op_round_all(j->type, room, n);
    return s;
}

/* The first element that is infinite or no number, or -1: those have an exponent of all ones. */
static int first_bad(const float *x, int n)
{
    uint32_t bad = 0;
#pragma omp simd reduction(| : bad)
    for (int i = 0; i < n; i++)
        bad |= (op_bits(x[i]) & 0x7f800000u) == 0x7f800000u;
    if (!bad)
        return -1;
    int i = 0;
    while (isfinite(x[i]))
        i++;
    return i;
}

/* What a worker met. */
typedef struct outcome {
    op_status status;
    int input; /* -1: the result */
    int64_t element;
} outcome;

static outcome run_tile(op_merge_job *j, int worker, int64_t tile, int64_t origin, op_merge_fn fn, void *ctx, float *out)
{
    op_merge_tile t = {.job = j, .worker = worker, .first = tile * j->tile};
    t.n = (int)(j->count - t.first < j->tile ? j->count - t.first : j->tile);
    t.out = out ? out + (t.first - origin) : NULL;
    for (int i = 0; i < j->n; i++) {
        op_status s = load(j, &j->in[i], t.first, t.n, j->scratch + ((int64_t)worker * j->n + i) * j->tile, &t.x[i]);
        int bad = s || j->checked ? -1 : first_bad(t.x[i], t.n);
        if (s || bad >= 0)
            return (outcome){s ? s : OP_ERR_FORMAT, i, t.first + bad};
    }
    op_status s = fn(ctx, &t);
    int bad = s || !t.out ? -1 : first_bad(t.out, t.n);
    return bad < 0 ? (outcome){.status = s} : (outcome){OP_ERR_FORMAT, -1, t.first + bad};
}

static op_status failed(const op_merge_job *j, const outcome *o, op_error *e)
{
    if (o->status == OP_ERR_NOMEM)
        return op_error_set(e, OP_ERR_NOMEM, "tensor \"%s\": out of memory", j->name);
    if (o->input < 0)
        return op_error_set(e, OP_ERR_FORMAT, "tensor \"%s\": element %lld of the result is not finite: the method's parameters make too large a number of it", j->name,
                            (long long)o->element);
    const op_merge_input *x = &j->in[o->input];
    return o->status == OP_ERR_FORMAT ? op_error_set(e, OP_ERR_FORMAT, "%s: tensor \"%s\": element %lld is not finite%s", x->model->path, x->tensor->name, (long long)o->element,
                                                     j->type == OP_F16 ? " in float16" : "")
                                      : op_error_set(e, o->status, "%s: tensor \"%s\" cannot be read", x->model->path, x->tensor->name);
}

static bool needs_scratch(const op_merge_job *j)
{
    for (int i = 0; i < j->n; i++)
        if (!in_place(j, &j->in[i]))
            return true;
    return false;
}

op_status op_merge_tiles(op_merge_job *j, int64_t from, int64_t to, op_merge_fn fn, void *ctx, float *out, op_error *e)
{
    outcome met[OP_MERGE_WORKERS] = {0};
    int64_t n = to - from, origin = from * j->tile;
    if (!j->scratch && needs_scratch(j) && !(j->scratch = op_alloc_array((size_t)j->tile * (size_t)j->n * OP_MERGE_WORKERS, sizeof *j->scratch)))
        return op_error_set(e, OP_ERR_NOMEM, "tensor \"%s\": out of memory", j->name);
#pragma omp parallel for schedule(dynamic, 1) if (n > 1)
    for (int w = 0; w < OP_MERGE_WORKERS; w++)
        for (int64_t k = from + n * w / OP_MERGE_WORKERS; k < from + n * (w + 1) / OP_MERGE_WORKERS && !met[w].status; k++)
            met[w] = run_tile(j, w, k, origin, fn, ctx, out);
    for (int w = 0; w < OP_MERGE_WORKERS; w++)
        if (met[w].status)
            return failed(j, &met[w], e);
    return OP_OK;
}

op_status op_merge_pass(op_merge_job *j, op_merge_fn fn, void *ctx, op_error *e)
{
    int64_t tiles = op_merge_tile_count(j), step = j->large ? (BLOCK + j->tile - 1) / j->tile : tiles;
    op_status s = OP_OK;
    for (int64_t k = 0; k < tiles && !s; k += step) {
        int64_t end = k + step < tiles ? k + step : tiles;
        s = op_merge_tiles(j, k, end, fn, ctx, NULL, e);
        if (j->large)
            op_merge_drop(j, k * j->tile, (end - k) * j->tile);
    }
    j->checked |= !s;
    return s;
}

op_status op_merge_one(op_merge_job *j, int64_t tile, op_merge_fn fn, void *ctx, op_error *e)
{
    return op_merge_tiles(j, tile, tile + 1, fn, ctx, NULL, e);
}

void op_merge_drop(const op_merge_job *j, int64_t first, int64_t n)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < j->n; i++) {
        const op_tensor *t = j->in[i].tensor->stored;
        if (!t || !t->count)
            continue;
        /* whole pages only, from the one that holds the first byte; what is needed again is mapped again */
        uintptr_t from = (uintptr_t)t->data + (uintptr_t)((double)t->bytes * (double)first / (double)t->count);
        uintptr_t to = (uintptr_t)t->data + (uintptr_t)((double)t->bytes * (double)(first + n < t->count ? first + n : t->count) / (double)t->count);
        from -= from % page;
        to -= to % page;
        if (to > from)
            madvise((void *)from, to - from, MADV_DONTNEED);
    }
}

/* ---- sums ---- */

typedef struct summing {
    op_merge_sum_fn fn;
    void *ctx;
    double *parts; /* [workers, n] */
    int n;
} summing;

static op_status add_up(void *ctx, const op_merge_tile *t)
{
    summing *s = ctx;
    s->fn(s->ctx, t, s->parts + (ptrdiff_t)t->worker * s->n);
    return OP_OK;
}

op_status op_merge_sums(op_merge_job *j, op_merge_sum_fn fn, void *ctx, double *sums, int n, op_error *e)
{
    summing s = {.fn = fn, .ctx = ctx, .n = n, .parts = op_alloc_zero((size_t)n * OP_MERGE_WORKERS, sizeof *s.parts)};
    op_status status = s.parts ? op_merge_pass(j, add_up, &s, e) : op_error_set(e, OP_ERR_NOMEM, "tensor \"%s\": out of memory", j->name);
    for (int k = 0; k < n; k++) {
        sums[k] = 0;
        for (int w = 0; w < OP_MERGE_WORKERS && !status; w++)
            sums[k] += s.parts[w * n + k];
    }
    op_free(s.parts);
    return status;
}

/* ---- a job's life ---- */

void *op_merge_state(op_merge_job *j, size_t n, size_t size, op_error *e)
{
    void *p = n <= SIZE_MAX / size ? op_arena_alloc(j->arena, n * size) : NULL;
    if (p)
        memset(p, 0, n * size);
    else
        op_error_set(e, OP_ERR_NOMEM, "tensor \"%s\": out of memory", j->name);
    return p;
}

static op_status hold(op_merge_job *j, op_merge_input *x, op_error *e)
{
    if (x->held || x->tensor->plain)
        return OP_OK;
    x->held = op_alloc_array((size_t)x->tensor->count, sizeof *x->held);
    return x->held ? op_weights_read(x->model->weights, x->tensor, x->held, e) : op_error_set(e, OP_ERR_NOMEM, "tensor \"%s\": out of memory", j->name);
}

op_status op_merge_job_start(op_merge_job *j, op_error *e)
{
    enum { LARGE = 64 << 20 };
    op_status s = j->vocabulary && j->words ? op_merge_words_hold(j->words, j, e) : OP_OK;
    size_t bytes = 0;
    for (int i = 0; i < j->n && !s; i++) {
        s = hold(j, &j->in[i], e);
        bytes += j->in[i].held ? 0 : j->in[i].tensor->stored->bytes;
    }
    j->large = bytes > LARGE;
    j->tile = OP_MERGE_TILE;
    return s || !j->method->start ? s : j->method->start(j, e);
}

void op_merge_job_end(op_merge_job *j)
{
    for (int i = 0; i < j->n; i++) {
        op_free(j->in[i].held);
        j->in[i].held = NULL;
    }
    op_free(j->scratch);
    op_free(j->kept);
    j->scratch = j->kept = NULL;
    op_arena_reset(j->arena);
    j->state = NULL;
    op_merge_drop(j, 0, INT64_MAX / 2);
}
