/* base/hash.h: SHA-256 (libsodium), as 64 lower-case hexadecimal digits. */
#ifndef OP_BASE_HASH_H
#define OP_BASE_HASH_H

#include <stddef.h>

#define OP_HASH_HEX 65 /* 64 digits and the final 0 */

void op_hash(const void *bytes, size_t n, char hex[OP_HASH_HEX]);

#endif
