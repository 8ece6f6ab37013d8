#include "base/hash.h"

#include <sodium.h>

void op_hash(const void *bytes, size_t n, char hex[OP_HASH_HEX])
{
    unsigned char digest[crypto_hash_sha256_BYTES];
    crypto_hash_sha256(digest, bytes, n);
    sodium_bin2hex(hex, OP_HASH_HEX, digest, sizeof digest);
}
