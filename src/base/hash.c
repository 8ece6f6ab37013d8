#include "base/hash.h"

#include <sodium.h>

_Static_assert(sizeof(crypto_hash_sha256_state) <= sizeof(op_hasher), "op_hasher has room for libsodium's state");

static void put_hex(const unsigned char digest[crypto_hash_sha256_BYTES], char hex[OP_HASH_HEX])
{
    sodium_bin2hex(hex, OP_HASH_HEX, digest, crypto_hash_sha256_BYTES);
}

void op_hash(const void *bytes, size_t n, char hex[OP_HASH_HEX])
{
    unsigned char digest[crypto_hash_sha256_BYTES];
    crypto_hash_sha256(digest, bytes, n);
    put_hex(digest, hex);
}

void op_hash_begin(op_hasher *h)
{
    crypto_hash_sha256_init((crypto_hash_sha256_state *)(void *)h);
}

void op_hash_add(op_hasher *h, const void *bytes, size_t n)
{
    crypto_hash_sha256_update((crypto_hash_sha256_state *)(void *)h, bytes, n);
}

void op_hash_end(op_hasher *h, char hex[OP_HASH_HEX])
{
    unsigned char digest[crypto_hash_sha256_BYTES];
    crypto_hash_sha256_final((crypto_hash_sha256_state *)(void *)h, digest);
    put_hex(digest, hex);
}

const char *op_hash_version(void)
{
    return sodium_version_string();
}
