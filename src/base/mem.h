/* base/mem.h: every allocation of operant goes through here, so that a test can make each of them fail.
 *
 * Lifetimes are three: model, run and step. What lives for a step sits in an op_arena that is reset, never freed. */
#ifndef OP_BASE_MEM_H
#define OP_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <operant/status.h>

/* As malloc, calloc, realloc, free. A size of 0 gives a pointer that may be freed. NULL when memory is out or an
 * injected failure strikes. op_alloc_array checks the multiplication. */
void *op_alloc(size_t bytes);
void *op_alloc_zero(size_t count, size_t size);
void *op_alloc_array(size_t count, size_t size);
void *op_realloc(void *p, size_t bytes);
void op_free(void *p);
char *op_strdup(const char *s);
/* Room for one more behind the n elements of `size` bytes of *array (the address of a pointer), which has room for *cap: doubled when it is full. False, and
 * nothing changed, when memory is out. */
bool op_grow(void *array, size_t n, size_t *cap, size_t size);
char *op_strndup(const char *s, size_t n);

/* 64-byte aligned, zeroed. Blocks from 2 MiB on start at a huge page, and take memory only where they are touched. Freed with op_free_aligned. */
void *op_alloc_aligned(size_t bytes);
void op_free_aligned(void *p);

/* Test hook: the n-th allocation from now (0 = the next) and every later one fail; -1 switches it off.
 * op_alloc_count says how many allocations there have been since the last call of op_alloc_fail_from. */
void op_alloc_fail_from(long n);
long op_alloc_count(void);

/* A bump allocator over chunks. op_arena_alloc returns 64-byte aligned memory that is not cleared. */
typedef struct op_arena_chunk op_arena_chunk;
typedef struct op_arena {
    op_arena_chunk *chunks;
    size_t used, peak; /* bytes handed out now, and at most since init */
} op_arena;

void op_arena_init(op_arena *a);
void *op_arena_alloc(op_arena *a, size_t bytes); /* NULL when memory is out */
void op_arena_reset(op_arena *a);                /* keeps the memory; after growth, merges it into one chunk */
void op_arena_release(op_arena *a);

#endif
