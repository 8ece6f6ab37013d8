/* base/hash.h: SHA-256 (OpenSSL's, which uses the processor's instructions for it), as 64 lower-case hexadecimal digits. */
#ifndef OP_BASE_HASH_H
#define OP_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

#define OP_HASH_HEX 65 /* 64 digits and the final 0 */

void op_hash(const void *bytes, size_t n, char hex[OP_HASH_HEX]);

/* The same over bytes that come in parts: the hash is that of all of them in a row. */
typedef struct op_hasher {
    uint64_t state[16];
} op_hasher;

void op_hash_begin(op_hasher *h);
void op_hash_add(op_hasher *h, const void *bytes, size_t n);
void op_hash_end(op_hasher *h, char hex[OP_HASH_HEX]); /* begin again before more */

const char *op_hash_version(void); /* of OpenSSL */

#endif
