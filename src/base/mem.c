#include "base/mem.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static atomic_long fail_from = -1;
static atomic_long count;

static int may_allocate(void)
{
    long n = atomic_fetch_add(&count, 1);
    long limit = atomic_load(&fail_from);
    return limit < 0 || n < limit;
}

void op_alloc_fail_from(long n)
{
    atomic_store(&count, 0);
    atomic_store(&fail_from, n);
}

long op_alloc_count(void)
{
    return atomic_load(&count);
}

void *op_alloc(size_t bytes)
{
    return may_allocate() ? malloc(bytes ? bytes : 1) : NULL;
}

void *op_alloc_zero(size_t n, size_t size)
{
    return may_allocate() ? calloc(n ? n : 1, size ? size : 1) : NULL;
}

void *op_alloc_array(size_t n, size_t size)
{
    size_t bytes;
    return __builtin_mul_overflow(n, size, &bytes) ? NULL : op_alloc(bytes);
}

void *op_realloc(void *p, size_t bytes)
{
    return may_allocate() ? realloc(p, bytes ? bytes : 1) : NULL;
}

void op_free(void *p)
{
    free(p);
}

char *op_strndup(const char *s, size_t n)
{
    char *copy = op_alloc(n + 1);
    if (!copy)
        return NULL;
    memcpy(copy, s, n);
    copy[n] = 0;
    return copy;
}

bool op_grow(void *array, size_t n, size_t *cap, size_t size)
{
    enum { FIRST = 16 };
    void **at = array;
    if (n < *cap)
        return true;
    size_t to = *cap ? 2 * *cap : FIRST;
    void *more = to <= SIZE_MAX / size ? op_realloc(*at, to * size) : NULL;
    if (!more)
        return false;
    *at = more;
    *cap = to;
    return true;
}

char *op_strdup(const char *s)
{
    return op_strndup(s, strlen(s));
}

enum { ALIGN = 64, HUGE_BYTES = 2 << 20, SHARED_BYTES = 128 << 10, REGION_BYTES = 32 << 20 };

/* Blocks of less than a huge page, and not small, stand one behind the other in regions of huge pages: matrices are read row after row, where small
 * pages cost. Places are not used twice; a region goes back when its last block has, and the pages of a block at once. */
typedef struct region {
    size_t used, live; /* bytes, blocks */
} region;

/* What stands before an aligned block, ALIGN bytes that keep its alignment. */
typedef struct block {
    void *map; /* of a block that was mapped by itself */
    region *in; /* of a block in a region; neither: malloc's */
    size_t bytes;
} block;

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static void *remember(void *p, block b)
{
    memcpy((char *)p - ALIGN, &b, sizeof b);
    return p;
}

/* A mapped block is zero without being written, and a page of it becomes memory when the first thread that needs it touches it. Whole huge pages where
 * there are some; the rest of the last one stays small pages, so that it takes no memory that nobody asked for. */
static void *map_block(size_t bytes)
{
    size_t room = bytes + HUGE_BYTES + ALIGN;
    char *map = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    char *p = (char *)round_up((uintptr_t)map + ALIGN, HUGE_BYTES);
    madvise(p, bytes / HUGE_BYTES * HUGE_BYTES, MADV_HUGEPAGE);
    return remember(p, (block){.map = map, .bytes = room});
}

static pthread_mutex_t regions = PTHREAD_MUTEX_INITIALIZER;
static region *newest; /* the region that has room, or NULL */

static void *share_block(size_t bytes)
{
    size_t room = ALIGN + round_up(bytes, ALIGN);
    void *p = NULL;
    pthread_mutex_lock(&regions);
    if (!newest || REGION_BYTES - newest->used < room) {
        region *fresh = map_block(REGION_BYTES);
        if (fresh)
            fresh->used = ALIGN;
        newest = fresh;
    }
    if (newest) {
        p = remember((char *)newest + newest->used + ALIGN, (block){.in = newest, .bytes = bytes});
        newest->used += room;
        newest->live++;
    }
    pthread_mutex_unlock(&regions);
    return p;
}

static void unshare_block(char *p, block b)
{
    enum { PAGE = 4096 };
    char *begin = (char *)round_up((uintptr_t)p, PAGE), *end = p + b.bytes - (uintptr_t)(p + b.bytes) % PAGE;
    pthread_mutex_lock(&regions);
    bool last = --b.in->live == 0;
    if (last && b.in == newest)
        newest = NULL;
    pthread_mutex_unlock(&regions);
    if (last)
        op_free_aligned(b.in);
    else if (begin < end)
        madvise(begin, (size_t)(end - begin), MADV_DONTNEED);
}

#ifdef __SANITIZE_ADDRESS__
static const bool may_share = false; /* it watches malloc's blocks alone */
#else
static const bool may_share = true;
#endif

void *op_alloc_aligned(size_t bytes)
{
    if (!may_allocate() || bytes > SIZE_MAX - 2 * HUGE_BYTES)
        return NULL;
    if (bytes >= HUGE_BYTES)
        return map_block(bytes);
    if (bytes >= SHARED_BYTES && may_share)
        return share_block(bytes);
    size_t room = ALIGN + round_up(bytes, ALIGN);
    char *p = aligned_alloc(ALIGN, room);
    if (!p)
        return NULL;
    memset(p, 0, room);
    return remember(p + ALIGN, (block){0});
}

void op_free_aligned(void *p)
{
    if (!p)
        return;
    block b;
    memcpy(&b, (char *)p - ALIGN, sizeof b);
    if (b.map)
        munmap(b.map, b.bytes);
    else if (b.in)
        unshare_block(p, b);
    else
        free((char *)p - ALIGN);
}

struct op_arena_chunk {
    op_arena_chunk *next;
    size_t size, used;
    unsigned char *data;
};

void op_arena_init(op_arena *a)
{
    *a = (op_arena){0};
}

static op_arena_chunk *chunk_new(size_t bytes)
{
    op_arena_chunk *c = op_alloc(sizeof *c);
    if (!c)
        return NULL;
    *c = (op_arena_chunk){.size = bytes, .data = op_alloc_aligned(bytes)};
    if (!c->data) {
        op_free(c);
        return NULL;
    }
    return c;
}

void *op_arena_alloc(op_arena *a, size_t bytes)
{
    if (bytes > SIZE_MAX / 2)
        return NULL;
    bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    op_arena_chunk *c = a->chunks;
    if (!c || c->size - c->used < bytes) {
        size_t size = bytes > (1u << 20) ? bytes : (1u << 20);
        c = chunk_new(size);
        if (!c)
            return NULL;
        c->next = a->chunks;
        a->chunks = c;
    }
    void *p = c->data + c->used;
    c->used += bytes;
    a->used += bytes;
    if (a->used > a->peak)
        a->peak = a->used;
    return p;
}

static void chunks_free(op_arena_chunk *c)
{
    while (c) {
        op_arena_chunk *next = c->next;
        op_free_aligned(c->data);
        op_free(c);
        c = next;
    }
}

void op_arena_reset(op_arena *a)
{
    if (a->chunks && a->chunks->next) {
        chunks_free(a->chunks);
        a->chunks = chunk_new(a->peak); /* NULL is fine: the next allocation tries again */
    } else if (a->chunks) {
        a->chunks->used = 0;
    }
    a->used = 0;
}

void op_arena_release(op_arena *a)
{
    chunks_free(a->chunks);
    *a = (op_arena){0};
}
