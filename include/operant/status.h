/* operant/status.h: how every function of operant says what went wrong.
 *
 * A function that can fail returns an op_status: OP_OK (0) or a negative code. The detail goes to an op_error that the
 * caller owns and may leave out (NULL): one line, lower case, no full stop, that names the file, the line, key or
 * offset, what was found and what was expected. The library never prints and never exits. */
#ifndef OPERANT_STATUS_H
#define OPERANT_STATUS_H

#ifdef __GNUC__
#define OP_PRINTF(fmt, first) __attribute__((__format__(__printf__, fmt, first)))
#else
#define OP_PRINTF(fmt, first)
#endif

typedef enum op_status {
    OP_OK = 0,
    OP_ERR_NOMEM = -1,       /* an allocation failed, or a buffer would pass its hard maximum */
    OP_ERR_IO = -2,          /* the operating system refused: open, read, write, map, rename */
    OP_ERR_FORMAT = -3,      /* bytes that break the rules of their format */
    OP_ERR_ARG = -4,         /* an argument or setting that cannot be meant */
    OP_ERR_UNSUPPORTED = -5, /* well-formed, but outside what operant does */
    OP_ERR_MISMATCH = -6,    /* two things that must belong together do not: shapes, hashes, vocabularies */
    OP_ERR_INTERRUPTED = -7, /* the caller's stop flag was raised; the state is consistent and resumable */
} op_status;

#define OP_ERROR_MAX 512

typedef struct op_error {
    op_status code;
    char message[OP_ERROR_MAX];
} op_error;

/* A short name such as "out of memory"; never NULL. */
const char *op_status_string(op_status status);

/* Fills *e (which may be NULL) and returns `code`, so that a failing line reads `return op_error_set(e, ...)`. */
op_status op_error_set(op_error *e, op_status code, const char *format, ...) OP_PRINTF(3, 4);

/* Puts "prefix: " before the message already in *e and returns its code. Used by callers that know the file. */
op_status op_error_prefix(op_error *e, const char *format, ...) OP_PRINTF(2, 3);

#endif
