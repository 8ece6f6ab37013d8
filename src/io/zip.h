/* io/zip.h: what is used of zlib: gzipped bytes and CRC-32. */
#ifndef OP_IO_ZIP_H
#define OP_IO_ZIP_H

#include <stddef.h>
#include <stdint.h>

#include <operant/buf.h>
#include <operant/status.h>

/* Appends what gzip members, one after the other, unpack to; `path` is named in errors. Unpacking to more than the buffer's maximum is OP_ERR_FORMAT. */
op_status op_gunzip(const unsigned char *data, size_t size, op_buf *out, const char *path, op_error *e);

/* The CRC-32 (IEEE 802.3) of bytes that follow those whose CRC-32 is `crc`; 0: none do. */
uint32_t op_crc32(uint32_t crc, const void *bytes, size_t n);

const char *op_zip_version(void); /* of zlib */

#endif
