#include "text/normalize.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "base/mem.h"
#include "text/unicode.h"

void op_normal_release(op_normal *x)
{
    op_free(x->bytes);
    op_free(x->from);
    op_free(x->to);
    *x = (op_normal){0};
}

static op_status reserve(op_normal *x, size_t more)
{
    size_t need = x->n + more, cap = x->cap ? x->cap : 64;
    if (need <= x->cap)
        return OP_OK;
    if (need > UINT32_MAX)
        return OP_ERR_NOMEM;
    while (cap < need)
        cap *= 2;
    char *bytes = op_realloc(x->bytes, cap);
    x->bytes = bytes ? bytes : x->bytes;
    uint32_t *from = bytes ? op_realloc(x->from, cap * sizeof *from) : NULL;
    x->from = from ? from : x->from;
    uint32_t *to = from ? op_realloc(x->to, cap * sizeof *to) : NULL;
    x->to = to ? to : x->to;
    if (!to)
        return OP_ERR_NOMEM;
    x->cap = cap;
    return OP_OK;
}

/* Appends bytes that all come from source bytes from..to-1. */
static op_status add(op_normal *x, const char *bytes, size_t n, uint32_t from, uint32_t to)
{
    if (reserve(x, n))
        return OP_ERR_NOMEM;
    memcpy(x->bytes + x->n, bytes, n);
    for (size_t i = 0; i < n; i++, x->n++) {
        x->from[x->n] = from;
        x->to[x->n] = to;
    }
    return OP_OK;
}

/* Appends bytes i..j-1 of another piece with their places. */
static op_status copy(op_normal *x, const op_normal *y, size_t i, size_t j)
{
    if (i == j)
        return OP_OK;
    if (reserve(x, j - i))
        return OP_ERR_NOMEM;
    memcpy(x->bytes + x->n, y->bytes + i, j - i);
    memcpy(x->from + x->n, y->from + i, (j - i) * sizeof *x->from);
    memcpy(x->to + x->n, y->to + i, (j - i) * sizeof *x->to);
    x->n += j - i;
    return OP_OK;
}

op_status op_normal_set(op_normal *out, const char *s, size_t n, uint32_t base)
{
    out->n = 0;
    if (reserve(out, n))
        return OP_ERR_NOMEM;
    memcpy(out->bytes, s, n);
    for (size_t i = 0; i < n; i++) {
        out->from[i] = base + (uint32_t)i;
        out->to[i] = base + (uint32_t)i + 1;
    }
    out->n = n;
    return OP_OK;
}

static size_t nfc_quick(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n) {
        if ((unsigned char)s[i] < 0x80)
            i++;
        else if (op_class(op_utf8_get(s + i)) & (OP_NFC_JOINS | OP_NFC_CHANGES))
            break;
        else
            i += op_utf8_length((unsigned char)s[i]);
    }
    return i;
}

#define SEGMENT 32 /* code points that a run of combining marks is composed within; longer runs go to the heap */

/* Composes bytes i..j-1 (one base character and its marks) into *out. */
static op_status nfc_segment(op_normal *out, const op_normal *x, size_t i, size_t j)
{
    size_t cap = 4 * (j - i) + 16; /* a code point of b bytes becomes at most 4b of them under NFD */
    utf8proc_int32_t stack[SEGMENT * 4], *points = stack;
    if (cap > sizeof stack / sizeof *stack && !(points = op_alloc_array(cap, sizeof *points)))
        return OP_ERR_NOMEM;
    utf8proc_ssize_t n = utf8proc_decompose((const utf8proc_uint8_t *)x->bytes + i, (utf8proc_ssize_t)(j - i), points,
                                            (utf8proc_ssize_t)cap, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    op_status s = n < 0 || n > (utf8proc_ssize_t)cap ? OP_ERR_NOMEM : OP_OK;
    if (!s)
        n = utf8proc_normalize_utf32(points, n, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    size_t first = out->n;
    for (utf8proc_ssize_t k = 0; !s && k < n; k++) {
        char bytes[4];
        unsigned length = op_utf8_put((uint32_t)points[k], bytes);
        s = add(out, bytes, length, x->from[i], x->to[j - 1]);
    }
    if (!s && out->n - first == j - i && memcmp(out->bytes + first, x->bytes + i, j - i) == 0) {
        out->n = first; /* nothing changed: every byte keeps its own place */
        s = copy(out, x, i, j);
    }
    if (points != stack)
        op_free(points);
    return s;
}

static op_status nfc(op_normal *out, const op_normal *x)
{
    size_t i = 0;
    while (i < x->n) {
        size_t stop = i + nfc_quick(x->bytes + i, x->n - i);
        /* The base is the character before the first one that matters, if that one joins it. A mark that only utf8proc
         * knows (its Unicode is newer than the reference's here) is none: it would be moved. */
        size_t base = stop;
        if (stop < x->n && stop > i && (op_class(op_utf8_get(x->bytes + stop)) & OP_NFC_JOINS)) {
            size_t before = op_utf8_back(x->bytes, stop);
            if (!utf8proc_get_property((utf8proc_int32_t)op_utf8_get(x->bytes + before))->combining_class)
                base = before;
        }
        if (copy(out, x, i, base))
            return OP_ERR_NOMEM;
        if (stop == x->n)
            break;
        size_t end = stop + op_utf8_length((unsigned char)x->bytes[stop]);
        while (end < x->n && (op_class(op_utf8_get(x->bytes + end)) & OP_NFC_JOINS))
            end += op_utf8_length((unsigned char)x->bytes[end]);
        if (nfc_segment(out, x, base, end))
            return OP_ERR_NOMEM;
        i = end;
    }
    return OP_OK;
}

static op_status replace(op_normal *out, const op_normal *x, const char *pattern, const char *content)
{
    size_t n = strlen(pattern), m = strlen(content), kept = 0;
    for (size_t i = 0; i + n <= x->n;) {
        const char *hit = memchr(x->bytes + i, pattern[0], x->n - i);
        if (!hit)
            break;
        i = (size_t)(hit - x->bytes);
        if (i + n > x->n || memcmp(hit, pattern, n) != 0) {
            i++;
            continue;
        }
        if (copy(out, x, kept, i) || add(out, content, m, x->from[i], x->to[i + n - 1]))
            return OP_ERR_NOMEM;
        kept = i += n;
    }
    return copy(out, x, kept, x->n);
}

static bool starts_with(const char *s, size_t n, const char *prefix)
{
    size_t m = strlen(prefix);
    return n >= m && memcmp(s, prefix, m) == 0;
}

static bool prepends(const op_normal_step *step, const char *s, size_t n, op_place place)
{
    return n && place != OP_PLACE_CONTINUES && (place == OP_PLACE_START || !step->first_only) &&
           (step->kind == OP_NORMAL_PREPEND || !starts_with(s, n, step->content));
}

bool op_normal_is_identity(const op_normal_step *steps, int n_steps, const char *s, size_t n, op_place place)
{
    for (int k = 0; k < n_steps; k++) {
        const op_normal_step *p = &steps[k];
        bool same = p->kind == OP_NORMAL_NFC       ? nfc_quick(s, n) == n
                    : p->kind == OP_NORMAL_REPLACE ? !memmem(s, n, p->pattern, strlen(p->pattern))
                                                   : !prepends(p, s, n, place);
        if (!same)
            return false;
    }
    return true;
}

op_status op_normal_apply(op_normal *x, op_normal *scratch, const op_normal_step *steps, int n_steps, op_place place)
{
    for (int k = 0; k < n_steps; k++) {
        const op_normal_step *p = &steps[k];
        scratch->n = 0;
        op_status s = OP_OK;
        if (p->kind == OP_NORMAL_NFC)
            s = nfc(scratch, x);
        else if (p->kind == OP_NORMAL_REPLACE)
            s = replace(scratch, x, p->pattern, p->content);
        else if (prepends(p, x->bytes, x->n, place))
            /* as the reference has it, what is prepended comes from the first character */
            s = add(scratch, p->content, strlen(p->content), x->from[0], x->to[op_utf8_length((unsigned char)x->bytes[0]) - 1]) ||
                        copy(scratch, x, 0, x->n)
                    ? OP_ERR_NOMEM
                    : OP_OK;
        else
            continue;
        if (s)
            return s;
        op_normal swap = *x;
        *x = *scratch;
        *scratch = swap;
    }
    return OP_OK;
}
