/* io/utf8.h: is it UTF-8? */
#ifndef OP_IO_UTF8_H
#define OP_IO_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* The bytes of the code point at s, which has n > 0 bytes left; 0 if it is not well-formed (Unicode 15, table 3-7). */
static inline size_t op_utf8_length(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    if (*p < 0x80)
        return 1;
    size_t length = *p < 0xc2 ? 0 : *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : *p < 0xf5 ? 4 : 0;
    if (!length || length > n)
        return 0;
    for (size_t i = 1; i < length; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    int overlong = (*p == 0xe0 && p[1] < 0xa0) || (*p == 0xf0 && p[1] < 0x90);
    int beyond = (*p == 0xed && p[1] > 0x9f) || (*p == 0xf4 && p[1] > 0x8f); /* surrogates, above U+10FFFF */
    return overlong || beyond ? 0 : length;
}

static inline bool op_utf8_valid(const char *s)
{
    for (size_t left = strlen(s), n; left; s += n, left -= n) {
        n = op_utf8_length(s, left);
        if (!n)
            return false;
    }
    return true;
}

#endif
