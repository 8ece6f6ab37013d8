/* io/file.h: files as bytes: read, mapped, and written so that a name either holds the whole new content or is untouched.
 *
 * Errors are OP_ERR_IO and name the file, what was tried and the operating system's reason. */
#ifndef OP_IO_FILE_H
#define OP_IO_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <operant/buf.h>
#include <operant/file.h>
#include <operant/status.h>

/* A read-only map of a whole regular file. data is never NULL after success, even of an empty file. */
typedef struct op_map {
    const unsigned char *data;
    size_t size;
} op_map;

op_status op_map_open(op_map *m, const char *path, op_error *e); /* on failure *m is empty */
void op_map_close(op_map *m);                                    /* an empty map is fine */
op_status op_file_hash(const char *path, char *hash, op_error *e); /* hash[65]: SHA-256 of its bytes, as op_hash */

/* Appends the file's bytes to *out, which must be initialised: its maximum is the limit. */
op_status op_file_read(const char *path, op_buf *out, op_error *e);

/* A file in the making: bytes go to a temporary name in the same directory. Commit makes them durable and moves them to
 * `path`; abort, or a commit that fails, leaves nothing behind and `path` as it was. After a failed write only abort is
 * of use. Both end the file's life; abort after either is harmless. */
typedef struct op_file {
    void *stream; /* FILE */
    char *path, *temp;
    uint64_t size; /* bytes written so far */
} op_file;

op_status op_file_create(op_file *f, const char *path, op_error *e); /* on failure *f is empty */
op_status op_file_write(op_file *f, const void *bytes, size_t n, op_error *e);
op_status op_file_zeros(op_file *f, size_t n, op_error *e);
op_status op_file_commit(op_file *f, op_error *e);
void op_file_abort(op_file *f);

#endif
