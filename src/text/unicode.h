/* text/unicode.h: UTF-8, and the character classes that the reference tokenizers use (see tools/make-unicode-table). */
#ifndef OP_TEXT_UNICODE_H
#define OP_TEXT_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    OP_LETTER = 1 << 0,      /* \p{L} */
    OP_NUMBER = 1 << 1,      /* \p{N} */
    OP_SPACE = 1 << 2,       /* \s */
    OP_UPPER = 1 << 3,       /* [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] */
    OP_LOWER = 1 << 4,       /* [\p{Ll}\p{Lm}\p{Lo}\p{M}] */
    OP_DIGIT = 1 << 5,       /* what the Digits pre-tokenizer splits off */
    OP_WORD = 1 << 6,        /* \w */
    OP_NFC_JOINS = 1 << 7,   /* may move or combine with the character before it under NFC */
    OP_NFC_CHANGES = 1 << 8, /* is something else under NFC even alone */
};

#define OP_UNICODE_BLOCK 128
extern const uint8_t op_unicode_index[0x110000 / OP_UNICODE_BLOCK];
extern const uint16_t op_unicode_bits[];

/* Class bits of a code point below 0x110000. Block 0 comes first, so that ASCII needs no index. */
static inline unsigned op_class(uint32_t c)
{
    return op_unicode_bits[c < 128 ? c : op_unicode_index[c / OP_UNICODE_BLOCK] * OP_UNICODE_BLOCK + c % OP_UNICODE_BLOCK];
}

/* Bytes of the character that starts with `lead`, in valid UTF-8. */
static inline unsigned op_utf8_length(unsigned char lead)
{
    return lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

/* The character at s[0], in valid UTF-8. */
static inline uint32_t op_utf8_get(const char *s)
{
    const unsigned char *p = (const unsigned char *)s;
    if (p[0] < 0x80)
        return p[0];
    if (p[0] < 0xe0)
        return (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
    if (p[0] < 0xf0)
        return (p[0] & 0xfu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
    return (p[0] & 7u) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
}

/* Start of the character that ends before `end` (> 0), in valid UTF-8. */
static inline size_t op_utf8_back(const char *s, size_t end)
{
    do
        end--;
    while (end && ((unsigned char)s[end] & 0xc0) == 0x80);
    return end;
}

/* Writes c as UTF-8 into out[4]; returns the number of bytes. */
unsigned op_utf8_put(uint32_t c, char out[4]);

/* Length of the longest prefix of s[n] that is valid UTF-8 (RFC 3629: no surrogates, shortest forms only). */
size_t op_utf8_valid(const char *s, size_t n);

/* Whether byte b may be byte number i (from 1) of a character whose first bytes are head[0..i-1]; i = 0 asks whether b may
 * start one. Used to cut invalid bytes the way everybody does: the longest prefix of a character is one U+FFFD. */
bool op_utf8_accepts(const unsigned char *head, int i, unsigned char b);

#endif
