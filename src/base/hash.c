#define OPENSSL_SUPPRESS_DEPRECATED /* the newer interface allocates, and a hash must not fail */
#include "base/hash.h"

#include <stdio.h>

#include <openssl/crypto.h>
#include <openssl/sha.h>

_Static_assert(sizeof(SHA256_CTX) <= sizeof(op_hasher), "op_hasher has room for OpenSSL's state");

static SHA256_CTX *state_of(op_hasher *h)
{
    return (SHA256_CTX *)(void *)h;
}

void op_hash(const void *bytes, size_t n, char hex[OP_HASH_HEX])
{
    op_hasher h;
    op_hash_begin(&h);
    op_hash_add(&h, bytes, n);
    op_hash_end(&h, hex);
}

void op_hash_begin(op_hasher *h)
{
    SHA256_Init(state_of(h));
}

void op_hash_add(op_hasher *h, const void *bytes, size_t n)
{
    SHA256_Update(state_of(h), bytes, n);
}

void op_hash_end(op_hasher *h, char hex[OP_HASH_HEX])
{
    unsigned char digest[SHA256_DIGEST_LENGTH];
    SHA256_Final(digest, state_of(h));
    for (int i = 0; i < SHA256_DIGEST_LENGTH; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

const char *op_hash_version(void)
{
    return OpenSSL_version(OPENSSL_VERSION_STRING);
}
