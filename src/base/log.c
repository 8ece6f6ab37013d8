#include <operant/log.h>

#include <stdarg.h>
#include <stdio.h>

static op_log_fn log_fn;
static void *log_ctx;

void op_log_set(op_log_fn fn, void *ctx)
{
    log_fn = fn;
    log_ctx = ctx;
}

void op_log(op_log_level level, const char *format, ...)
{
    if (!log_fn)
        return;
    char message[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    log_fn(log_ctx, level, message);
}
