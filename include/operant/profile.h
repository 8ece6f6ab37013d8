/* operant/profile.h: where the time goes, by operation.
 *
 * While a profile is on, the next model that is opened computes through a copy of its backend's table whose every function also counts its
 * calls and their time, and the bytes and floating-point operations that its formula says. With the profile off nobody sees that
 * table, so it costs nothing; on, it costs two readings of the clock a call.
 *
 * Bytes are what an operation must move at least, each operand once: one whose operands are still in a cache can pass the memory's bandwidth.
 * Operations are those of the mathematics, products as 2 M N K; exp and the like count as one. Of one thread, as all of the model's calls. */
#ifndef OPERANT_PROFILE_H
#define OPERANT_PROFILE_H

#include <stddef.h>
#include <stdint.h>

typedef struct op_profile_line {
    const char *op; /* its name in the backend's table: "matmul" */
    int32_t N, K;   /* the weight matrix [N, K] of a product; 0, 0: no product with one */
    int64_t calls;
    double seconds, bytes, flop; /* of all calls together */
} op_profile_line;

enum { OP_PROFILE_LINES = 128 }; /* kept; what is beyond goes to one line "others" */

/* From now on the first backend that a model asks for is profiled, until op_profile_stop; that backend's models must be freed before. */
void op_profile_start(void);
void op_profile_stop(void);
/* Forgets what was counted. */
void op_profile_clear(void);
/* What was counted since, in the order of the first calls; *lines is valid until the next operation. Returns how many. */
size_t op_profile_read(const op_profile_line **lines);

#endif
