/* operant/log.h: messages of the library. It never writes anywhere itself: it calls one callback per process. */
#ifndef OPERANT_LOG_H
#define OPERANT_LOG_H

#include <operant/status.h>

typedef enum op_log_level { OP_LOG_DEBUG, OP_LOG_INFO, OP_LOG_WARN, OP_LOG_ERROR } op_log_level;

typedef void (*op_log_fn)(void *ctx, op_log_level level, const char *message);

/* Installs the receiver (NULL: silence, the default). Not thread-safe: call it before the first other call. */
void op_log_set(op_log_fn fn, void *ctx);

/* Sends one message, at most 1023 bytes, without a line end. */
void op_log(op_log_level level, const char *format, ...) OP_PRINTF(2, 3);

#endif
