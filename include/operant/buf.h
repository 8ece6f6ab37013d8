/* operant/buf.h: a growable byte buffer with a hard maximum. `data` always ends in a 0 byte that `len` does not count. */
#ifndef OPERANT_BUF_H
#define OPERANT_BUF_H

#include <stdarg.h>
#include <stddef.h>

#include <operant/status.h>

typedef struct op_buf {
    char *data; /* owned; NULL while empty */
    size_t len, cap;
    size_t max; /* bytes; an append past it fails with OP_ERR_NOMEM and changes nothing */
} op_buf;

void op_buf_init(op_buf *b, size_t max);
op_status op_buf_add(op_buf *b, const void *bytes, size_t n);
op_status op_buf_puts(op_buf *b, const char *s);
op_status op_buf_printf(op_buf *b, const char *format, ...) OP_PRINTF(2, 3);
void op_buf_clear(op_buf *b);   /* len = 0, keeps the memory */
void op_buf_release(op_buf *b); /* frees; the buffer may be used again */
char *op_buf_take(op_buf *b);   /* hands the 0-terminated bytes to the caller (op_free); NULL if memory is out */

#endif
