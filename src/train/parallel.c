#include "train/parallel.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <operant/log.h>

#include "base/hash.h"
#include "base/mem.h"
#include "train/transport.h"

enum {
    CHUNK = 1 << 20,   /* parameters reduced at a time: 4 MiB, so that what is left when the backward pass ends is little */
    ALIGNED = 1 << 12, /* parameters: pieces start at multiples of this */
    SLOTS = 4,         /* chunks on their way at a time: one is added up while others travel */
    RANKS_MAX = 1024,
};

typedef enum kind { REDUCE, SHARE, SUM, GATHER } kind;

/* A transfer under way. */
typedef struct slot {
    int request; /* -1: free */
    size_t chunk;
    int send_n[RANKS_MAX], send_at[RANKS_MAX], receive_n[RANKS_MAX], receive_at[RANKS_MAX];
    float *received; /* [size, piece] of a reduction */
} slot;

/* What the thread is to carry: one thing at a time, in `items` parts, of which the first `allowed` may start. */
typedef struct task {
    kind kind;
    op_shard *shard;
    void *array;
    size_t n; /* elements of a sum, bytes of each rank of a gathering */
    size_t items, allowed, started, finished;
} task;

struct op_parallel {
    const op_transport *transport;
    int rank, size;
    pthread_t thread;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t work, done;
    enum { STARTING, RUNNING, FAILED } state;
    bool quit, given_up, parked; /* parked: given up, and the thread has let go of all buffers */
    int abort_code; /* -1: none */
    task task;
    slot slots[SLOTS]; /* the thread's own */
};

/* ---- the thread: every call of the transport is made here ---- */

static size_t chunk_of(const task *t, size_t item)
{
    return t->items - 1 - item;
}

static op_span span_of(const op_shard *s, size_t chunk, int rank)
{
    size_t start = chunk * s->chunk, end = start + s->chunk < s->n ? start + s->chunk : s->n;
    size_t first = start + (size_t)rank * s->piece;
    size_t left = first < end ? end - first : 0;
    return (op_span){.first = first, .n = left < s->piece ? left : s->piece, .local = chunk * s->piece};
}

static int start_reduce(op_parallel *p, const task *t, slot *x)
{
    const op_shard *s = t->shard;
    const float *from = (const float *)t->array + x->chunk * s->chunk;
    int mine = (int)(span_of(s, x->chunk, p->rank).n * sizeof(float));
    for (int r = 0; r < p->size; r++) {
        x->send_n[r] = (int)(span_of(s, x->chunk, r).n * sizeof(float));
        x->receive_n[r] = mine;
        x->send_at[r] = x->receive_at[r] = (int)((size_t)r * s->piece * sizeof(float));
    }
    return p->transport->exchange(from, x->send_n, x->send_at, x->received, x->receive_n, x->receive_at);
}

static void finish_reduce(const op_parallel *p, const task *t, const slot *x)
{
    const op_shard *s = t->shard;
    op_span mine = span_of(s, x->chunk, p->rank);
    float *sum = (float *)t->array + mine.first;
    memcpy(sum, x->received, mine.n * sizeof *sum);
    for (int r = 1; r < p->size; r++) {
        const float *one = x->received + (size_t)r * s->piece;
        for (size_t i = 0; i < mine.n; i++)
            sum[i] += one[i];
    }
}

static int start_share(op_parallel *p, const task *t, slot *x)
{
    const op_shard *s = t->shard;
    for (int r = 0; r < p->size; r++) {
        x->send_n[r] = (int)(span_of(s, x->chunk, r).n * sizeof(float));
        x->send_at[r] = (int)((size_t)r * s->piece * sizeof(float));
    }
    return p->transport->share((float *)t->array + x->chunk * s->chunk, x->send_n, x->send_at);
}

static int start_gather(op_parallel *p, const task *t, slot *x)
{
    for (int r = 0; r < p->size; r++) {
        x->send_n[r] = (int)t->n;
        x->send_at[r] = r * (int)t->n;
    }
    return p->transport->share(t->array, x->send_n, x->send_at);
}

static void start_item(op_parallel *p, const task *t, size_t item, slot *x)
{
    x->chunk = chunk_of(t, item);
    switch (t->kind) {
    case REDUCE: x->request = start_reduce(p, t, x); break;
    case SHARE: x->request = start_share(p, t, x); break;
    case SUM: x->request = p->transport->sum(t->array, (int)t->n); break;
    case GATHER: x->request = start_gather(p, t, x); break;
    }
}

static slot *free_slot(op_parallel *p)
{
    for (int i = 0; i < SLOTS; i++)
        if (p->slots[i].request < 0)
            return &p->slots[i];
    return NULL;
}

static bool busy(const op_parallel *p)
{
    for (int i = 0; i < SLOTS; i++)
        if (p->slots[i].request >= 0)
            return true;
    return false;
}

static size_t finish_items(op_parallel *p, const task *t)
{
    size_t n = 0;
    for (int i = 0; i < SLOTS; i++) {
        slot *x = &p->slots[i];
        if (x->request < 0 || !p->transport->done(x->request))
            continue;
        if (t->kind == REDUCE)
            finish_reduce(p, t, x);
        x->request = -1;
        n++;
    }
    return n;
}

/* Messages move while the transport is asked for them. Asking all the time would take a processor from those who compute. */
static void rest(int idle)
{
    if (idle < 64)
        sched_yield();
    else
        nanosleep(&(struct timespec){.tv_nsec = idle < 1000 ? 20000 : 100000}, NULL);
}

static void carry(op_parallel *p)
{
    int idle = 0;
    for (bool more = true; more;) {
        pthread_mutex_lock(&p->lock);
        while (!p->quit && p->abort_code < 0 && (p->given_up || (!busy(p) && p->task.started == p->task.allowed))) {
            p->parked = p->given_up;
            pthread_cond_signal(&p->done);
            pthread_cond_wait(&p->work, &p->lock);
        }
        int code = p->abort_code;
        more = !p->quit;
        task t = p->task;
        pthread_mutex_unlock(&p->lock);
        if (code >= 0)
            p->transport->abort(code);
        size_t started = 0;
        for (slot *x; more && t.started + started < t.allowed && (x = free_slot(p)); started++)
            start_item(p, &t, t.started + started, x);
        size_t finished = finish_items(p, &t);
        pthread_mutex_lock(&p->lock);
        p->task.started += started;
        p->task.finished += finished;
        if (finished)
            pthread_cond_signal(&p->done);
        pthread_mutex_unlock(&p->lock);
        idle = started + finished ? 0 : idle + 1;
        if (idle)
            rest(idle);
    }
}

static void *serve(void *ctx)
{
    op_parallel *p = ctx;
    bool failed = p->transport->start(&p->rank, &p->size) != 0 || p->size > RANKS_MAX;
    pthread_mutex_lock(&p->lock);
    p->state = failed ? FAILED : RUNNING;
    pthread_cond_signal(&p->done);
    pthread_mutex_unlock(&p->lock);
    if (failed)
        return NULL;
    carry(p);
    p->transport->finish();
    return NULL;
}

/* ---- tasks ---- */

static void begin(op_parallel *p, task t)
{
    pthread_mutex_lock(&p->lock);
    p->task = t;
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
}

static void wait_for_all(op_parallel *p)
{
    pthread_mutex_lock(&p->lock);
    p->task.allowed = p->task.items;
    pthread_cond_signal(&p->work);
    while (p->task.finished < p->task.items)
        pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

static void run(op_parallel *p, task t)
{
    t.items = t.allowed = 1;
    begin(p, t);
    wait_for_all(p);
}

void op_parallel_sum(op_parallel *p, float *x, size_t n)
{
    if (p)
        run(p, (task){.kind = SUM, .array = x, .n = n});
}

/* all[rank] is this rank's, `size` bytes each. */
static void gather(op_parallel *p, void *all, size_t size)
{
    run(p, (task){.kind = GATHER, .array = all, .n = size});
}

double op_parallel_total(op_parallel *p, double mine)
{
    double all[RANKS_MAX], total = 0;
    if (!p)
        return mine;
    all[p->rank] = mine;
    gather(p, all, sizeof *all);
    for (int r = 0; r < p->size; r++)
        total += all[r];
    return total;
}

bool op_parallel_any(op_parallel *p, bool mine)
{
    return op_parallel_total(p, mine) != 0;
}

typedef char fingerprint[OP_HASH_HEX];

static void gather_hashes(op_parallel *p, const char *text, fingerprint all[RANKS_MAX])
{
    op_hash(text, strlen(text), all[p->rank]);
    gather(p, all, sizeof *all);
}

op_status op_parallel_same(op_parallel *p, const char *text, const char *what, op_error *e)
{
    fingerprint all[RANKS_MAX];
    if (!p)
        return OP_OK;
    gather_hashes(p, text, all);
    for (int r = 1; r < p->size; r++)
        if (strcmp(all[r], all[0]))
            return op_error_set(e, OP_ERR_MISMATCH, "rank %d and rank 0 differ in %s", r, what);
    return OP_OK;
}

/* ---- shards ---- */

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

op_status op_shard_init(op_shard *s, op_parallel *p, size_t n, op_error *e)
{
    *s = (op_shard){.parallel = p, .n = n, .piece = n, .chunk = n, .n_chunks = 1, .own = n};
    if (!p)
        return OP_OK;
    size_t size = (size_t)p->size, most = n < CHUNK ? n : CHUNK;
    s->piece = round_up((most + size - 1) / size, ALIGNED);
    s->chunk = s->piece * size;
    s->n_chunks = (n + s->chunk - 1) / s->chunk;
    s->own = (s->n_chunks - 1) * s->piece + op_shard_span(s, s->n_chunks - 1).n;
    for (int i = 0; i < SLOTS; i++)
        if (!(p->slots[i].received = op_alloc_aligned(s->chunk * sizeof(float)))) {
            op_shard_release(s);
            return op_error_set(e, OP_ERR_NOMEM, "out of memory for the gradients of other ranks");
        }
    return OP_OK;
}

void op_shard_release(op_shard *s)
{
    op_parallel *p = s->parallel;
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->given_up = p->given_up || p->task.finished < p->task.items;
    pthread_cond_signal(&p->work); /* the thread may be waiting for more of it */
    while (p->given_up && !p->parked)
        pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < SLOTS; i++) {
        op_free_aligned(p->slots[i].received);
        p->slots[i].received = NULL;
    }
    *s = (op_shard){0};
}

op_span op_shard_span(const op_shard *s, size_t chunk)
{
    return span_of(s, chunk, op_parallel_rank(s->parallel));
}

static void shard_begin(op_shard *s, kind what, float *array)
{
    if (s->parallel)
        begin(s->parallel, (task){.kind = what, .shard = s, .array = array, .items = s->n_chunks});
}

void op_shard_reduce_begin(op_shard *s, float *grads)
{
    shard_begin(s, REDUCE, grads);
}

void op_shard_share_begin(op_shard *s, float *values)
{
    shard_begin(s, SHARE, values);
}

void op_shard_ready(op_shard *s, size_t first)
{
    op_parallel *p = s->parallel;
    if (!p)
        return;
    size_t complete = s->n_chunks - (first + s->chunk - 1) / s->chunk;
    pthread_mutex_lock(&p->lock);
    if (complete > p->task.allowed)
        p->task.allowed = complete;
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
}

void op_shard_end(op_shard *s)
{
    if (s->parallel)
        wait_for_all(s->parallel);
}

op_status op_shard_collect(op_shard *s, const float *local, float *whole, op_error *e)
{
    float *room = whole || !s->parallel ? NULL : op_alloc_aligned(s->chunk * sizeof *room);
    if (!whole && s->parallel && !room)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for the optimiser state of other ranks");
    for (size_t c = 0; c < s->n_chunks; c++) {
        size_t start = c * s->chunk, n = s->n - start < s->chunk ? s->n - start : s->chunk;
        op_span mine = op_shard_span(s, c);
        op_shard one = {.parallel = s->parallel, .n = n, .piece = s->piece, .chunk = s->chunk, .n_chunks = 1};
        float *to = whole ? whole + start : room;
        if (to)
            memcpy(to + (mine.first - start), local + mine.local, mine.n * sizeof *to);
        op_shard_share_begin(&one, to);
        op_shard_end(&one);
    }
    op_free_aligned(room);
    return OP_OK;
}

/* ---- life ---- */

int op_parallel_rank(const op_parallel *p)
{
    return p ? p->rank : 0;
}

int op_parallel_size(const op_parallel *p)
{
    return p ? p->size : 1;
}

static op_status open_module(const op_transport **out, const char *path, op_error *e)
{
    /* Message-passing libraries look up their own plugins' symbols: they must be visible, and stay loaded to the end. */
    void *module = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (!module)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "cannot open the module for several processes: %s", dlerror());
    const op_transport *t = dlsym(module, OP_TRANSPORT_SYMBOL);
    if (!t || t->version != OP_TRANSPORT_VERSION)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "module \"%s\" belongs to another build of operant", path);
    *out = t;
    return OP_OK;
}

static void forget(op_parallel *p)
{
    pthread_join(p->thread, NULL);
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->done);
    pthread_mutex_destroy(&p->lock);
    op_free(p);
}

op_status op_parallel_start(op_parallel **out, const char *module, op_error *e)
{
    *out = NULL;
    const op_transport *transport = NULL;
    op_status status = open_module(&transport, module, e);
    if (status)
        return status;
    op_parallel *p = op_alloc_zero(1, sizeof *p);
    if (!p)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for the other ranks");
    p->transport = transport;
    p->abort_code = -1;
    for (int i = 0; i < SLOTS; i++)
        p->slots[i].request = -1;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->done, NULL);
    if (pthread_create(&p->thread, NULL, serve, p)) {
        op_free(p);
        return op_error_set(e, OP_ERR_NOMEM, "cannot start the thread for the other ranks");
    }
    pthread_mutex_lock(&p->lock);
    while (p->state == STARTING)
        pthread_cond_wait(&p->done, &p->lock);
    bool failed = p->state == FAILED;
    pthread_mutex_unlock(&p->lock);
    if (failed) {
        forget(p);
        return op_error_set(e, OP_ERR_UNSUPPORTED, "module \"%s\" cannot join a job of up to %d ranks", module, RANKS_MAX);
    }
    *out = p;
    return OP_OK;
}

static void tell(op_parallel *p, bool quit, int abort_code)
{
    pthread_mutex_lock(&p->lock);
    p->quit = quit;
    p->abort_code = abort_code;
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
}

void op_parallel_end(op_parallel *p)
{
    if (!p)
        return;
    if (p->given_up)
        op_parallel_abort(p, 1);
    char all[RANKS_MAX] = {0};
    gather(p, all, 1); /* the transport might wait without rest */
    tell(p, true, -1);
    forget(p);
}

void op_parallel_abort(op_parallel *p, int code)
{
    if (!p)
        return;
    tell(p, false, code);
    forget(p);
}

/* ---- processors ---- */

int op_parallel_threads(op_parallel *p, int asked)
{
    if (!p || asked > 0)
        return asked;
    cpu_set_t may;
    char text[256 + 2 * sizeof may + 1] = "";
    fingerprint all[RANKS_MAX];
    CPU_ZERO(&may);
    sched_getaffinity(0, sizeof may, &may);
    gethostname(text, 255);
    size_t n = strlen(text);
    for (size_t i = 0; i < sizeof may; i++)
        n += (size_t)snprintf(text + n, 3, "%02x", ((const unsigned char *)&may)[i]);
    gather_hashes(p, text, all);
    int sharing = 0, processors = CPU_COUNT(&may), there = (int)sysconf(_SC_NPROCESSORS_ONLN);
    for (int r = 0; r < p->size; r++)
        sharing += !strcmp(all[r], all[p->rank]);
    if (p->rank == 0 && processors == 1 && there > p->size)
        op_log(OP_LOG_WARN, "each rank may use 1 of %d processors; mpirun --bind-to none lets them share all", there);
    return processors > sharing ? processors / sharing : 1;
}
