#include "text/unicode.h"

#include <string.h>

unsigned op_utf8_put(uint32_t c, char out[4])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    unsigned n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char lead[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (unsigned i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(lead[n] | c);
    return n;
}

bool op_utf8_accepts(const unsigned char *head, int i, unsigned char b)
{
    if (i == 0)
        return b < 0x80 || (b >= 0xc2 && b <= 0xf4);
    if (i > 1)
        return (b & 0xc0) == 0x80;
    unsigned char low = head[0] == 0xe0 ? 0xa0 : head[0] == 0xf0 ? 0x90 : 0x80;
    unsigned char high = head[0] == 0xed ? 0x9f : head[0] == 0xf4 ? 0x8f : 0xbf;
    return b >= low && b <= high;
}

size_t op_utf8_valid(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    size_t i = 0;
    while (i < n) {
        uint64_t eight;
        if (i + 8 <= n && (memcpy(&eight, p + i, 8), !(eight & 0x8080808080808080u))) {
            i += 8;
            continue;
        }
        if (!op_utf8_accepts(p + i, 0, p[i]))
            return i;
        int length = (int)op_utf8_length(p[i]);
        if ((size_t)length > n - i)
            return i;
        for (int k = 1; k < length; k++)
            if (!op_utf8_accepts(p + i, k, p[i + (size_t)k]))
                return i;
        i += (size_t)length;
    }
    return n;
}
