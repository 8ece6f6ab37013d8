/* SHA-256 is libsodium's; where the processor has instructions for it, whole blocks go through these, five times as fast, into libsodium's own state. */
#include "base/hash.h"

#include <sodium.h>
#include <stdatomic.h>
#include <stdbool.h>
#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#endif

_Static_assert(sizeof(crypto_hash_sha256_state) <= sizeof(op_hasher), "op_hasher has room for libsodium's state");

enum { BLOCK = 64 };

#ifdef __x86_64__
/* FIPS 180-4, section 4.2.2 */
static const uint32_t constants[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74,
    0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d,
    0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e,
    0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5,
    0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

/* Asked once: in a virtual machine the question takes microseconds. */
static bool has_instructions(void)
{
    enum { UNKNOWN, NO, YES };
    static atomic_int known = UNKNOWN;
    unsigned a, b, c, d;
    if (atomic_load_explicit(&known, memory_order_relaxed) == UNKNOWN)
        atomic_store(&known, __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1) && __builtin_cpu_supports("sse4.1") ? YES : NO);
    return atomic_load_explicit(&known, memory_order_relaxed) == YES;
}

/* The instructions keep the state's words a..h as abef and cdgh, and do two rounds at a time; four words of the schedule are one vector. */
__attribute__((target("sha,sse4.1"))) static void compress(uint32_t state[8], const unsigned char *bytes, size_t blocks)
{
    const __m128i swap = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
    __m128i abcd = _mm_loadu_si128((const __m128i *)state), efgh = _mm_loadu_si128((const __m128i *)(state + 4));
    __m128i cdab = _mm_shuffle_epi32(abcd, 0xb1), hgfe = _mm_shuffle_epi32(efgh, 0x1b);
    __m128i abef = _mm_alignr_epi8(cdab, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, cdab, 0xf0);
    for (; blocks; blocks--, bytes += BLOCK) {
        __m128i w[4], before_abef = abef, before_cdgh = cdgh;
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            __m128i *now = &w[i % 4], last = w[(i + 3) % 4];
            if (i < 4)
                *now = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(bytes + 16 * i)), swap);
            else
                *now = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(*now, w[(i + 1) % 4]), _mm_alignr_epi8(last, w[(i + 2) % 4], 4)), last);
            __m128i sum = _mm_add_epi32(*now, _mm_load_si128((const __m128i *)(constants + 4 * i)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
        }
        abef = _mm_add_epi32(abef, before_abef);
        cdgh = _mm_add_epi32(cdgh, before_cdgh);
    }
    __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128((__m128i *)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}
#else
static bool has_instructions(void)
{
    return false;
}

static void compress(uint32_t state[8], const unsigned char *bytes, size_t blocks)
{
    (void)state, (void)bytes, (void)blocks;
}
#endif

static void put_hex(const unsigned char digest[crypto_hash_sha256_BYTES], char hex[OP_HASH_HEX])
{
    sodium_bin2hex(hex, OP_HASH_HEX, digest, crypto_hash_sha256_BYTES);
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
    crypto_hash_sha256_init((crypto_hash_sha256_state *)(void *)h);
}

void op_hash_add(op_hasher *h, const void *bytes, size_t n)
{
    crypto_hash_sha256_state *state = (crypto_hash_sha256_state *)(void *)h;
    const unsigned char *p = bytes;
    if (n >= BLOCK && has_instructions()) {
        size_t held = state->count / 8 % BLOCK, fill = held ? BLOCK - held : 0;
        if (fill)
            crypto_hash_sha256_update(state, p, fill);
        size_t blocks = (n - fill) / BLOCK;
        compress(state->state, p + fill, blocks);
        state->count += (uint64_t)blocks * BLOCK * 8; /* bits */
        p += fill + blocks * BLOCK;
        n -= fill + blocks * BLOCK;
    }
    crypto_hash_sha256_update(state, p, n);
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
