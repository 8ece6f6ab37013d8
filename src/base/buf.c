#include <operant/buf.h>

#include <stdio.h>
#include <string.h>

#include "base/mem.h"

void op_buf_init(op_buf *b, size_t max)
{
    *b = (op_buf){.max = max};
}

static op_status reserve(op_buf *b, size_t more)
{
    if (more > b->max || b->len > b->max - more)
        return OP_ERR_NOMEM;
    size_t need = b->len + more + 1;
    if (need <= b->cap)
        return OP_OK;
    size_t cap = b->cap ? b->cap : 64;
    while (cap < need)
        cap *= 2;
    char *data = op_realloc(b->data, cap);
    if (!data)
        return OP_ERR_NOMEM;
    b->data = data;
    b->cap = cap;
    return OP_OK;
}

op_status op_buf_add(op_buf *b, const void *bytes, size_t n)
{
    op_status s = reserve(b, n);
    if (s)
        return s;
    if (n)
        memcpy(b->data + b->len, bytes, n);
    b->len += n;
    b->data[b->len] = 0;
    return OP_OK;
}

op_status op_buf_puts(op_buf *b, const char *text)
{
    return op_buf_add(b, text, strlen(text));
}

op_status op_buf_printf(op_buf *b, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0)
        return OP_ERR_ARG;
    op_status s = reserve(b, (size_t)n);
    if (s)
        return s;
    va_start(args, format);
    vsnprintf(b->data + b->len, (size_t)n + 1, format, args);
    va_end(args);
    b->len += (size_t)n;
    return OP_OK;
}

void op_buf_clear(op_buf *b)
{
    b->len = 0;
    if (b->data)
        b->data[0] = 0;
}

void op_buf_release(op_buf *b)
{
    op_free(b->data);
    *b = (op_buf){.max = b->max};
}

char *op_buf_take(op_buf *b)
{
    if (!b->data && reserve(b, 0))
        return NULL;
    char *data = b->data;
    data[b->len] = 0;
    *b = (op_buf){.max = b->max};
    return data;
}
