#include <operant/status.h>

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *op_status_string(op_status status)
{
    switch (status) {
    case OP_OK: return "ok";
    case OP_ERR_NOMEM: return "out of memory";
    case OP_ERR_IO: return "input or output failed";
    case OP_ERR_FORMAT: return "malformed data";
    case OP_ERR_ARG: return "bad argument";
    case OP_ERR_UNSUPPORTED: return "unsupported";
    case OP_ERR_MISMATCH: return "mismatch";
    case OP_ERR_INTERRUPTED: return "interrupted";
    }
    return "unknown status";
}

op_status op_error_set(op_error *e, op_status code, const char *format, ...)
{
    if (e) {
        va_list args;
        va_start(args, format);
        e->code = code;
        vsnprintf(e->message, sizeof e->message, format, args);
        va_end(args);
    }
    return code;
}

op_status op_error_prefix(op_error *e, const char *format, ...)
{
    if (!e)
        return OP_ERR_ARG;
    char old[OP_ERROR_MAX];
    memcpy(old, e->message, sizeof old);
    va_list args;
    va_start(args, format);
    int n = vsnprintf(e->message, sizeof e->message, format, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof e->message)
        snprintf(e->message + n, sizeof e->message - (size_t)n, ": %s", old);
    return e->code;
}
