/* base/rng.h: the one source of randomness, a counter-based generator without state.
 *
 * Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The same (seed,
 * stream, counter) gives the same bits on every machine and for every number of threads. `stream` says what the number
 * is for (see op_stream), so that two uses with one seed never meet. */
#ifndef OP_BASE_RNG_H
#define OP_BASE_RNG_H

#include <stdint.h>

/* What a number is drawn for; a caller that needs many streams adds an index in the upper 32 bits. */
typedef enum op_stream {
    OP_STREAM_INIT = 1,    /* initial weights */
    OP_STREAM_SHUFFLE = 2, /* order of the examples */
    OP_STREAM_DROPOUT = 3,
    OP_STREAM_SAMPLE = 4, /* tokens */
    OP_STREAM_SPLIT = 5,  /* held-out split */
    OP_STREAM_BOOTSTRAP = 6,
    OP_STREAM_ROUNDING = 7, /* of 8-bit moments */
    OP_STREAM_CHAMBER = 40, /* episodes */
    OP_STREAM_MERGE = 41,   /* elements that a merge keeps */
    OP_STREAM_TEST = 99,
} op_stream;

/* Four independent uniform 32-bit words. */
void op_rng_block(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4]);

uint64_t op_rng_u64(uint64_t seed, uint64_t stream, uint64_t counter);

/* Uniform in [0, 1), 53 bits. */
double op_rng_uniform(uint64_t seed, uint64_t stream, uint64_t counter);

/* Standard normal (Box-Muller). */
double op_rng_normal(uint64_t seed, uint64_t stream, uint64_t counter);

/* Uniform in 0..n-1, n >= 1, without bias beyond 2^-64. */
uint64_t op_rng_below(uint64_t seed, uint64_t stream, uint64_t counter, uint64_t n);

/* Fisher-Yates permutation of 0..n-1 into out[n]. */
void op_rng_permute(uint64_t seed, uint64_t stream, uint32_t n, uint32_t *out);

#endif
