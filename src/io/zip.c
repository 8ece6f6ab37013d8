#include "io/zip.h"

#include <zlib.h>

#include "base/mem.h"

static void *zalloc(void *ctx, unsigned n, unsigned size)
{
    (void)ctx;
    return op_alloc_zero(n, size);
}

static void zfree(void *ctx, void *p)
{
    (void)ctx;
    op_free(p);
}

op_status op_gunzip(const unsigned char *data, size_t size, op_buf *out, const char *path, op_error *e)
{
    enum { GZIP = 16 + MAX_WBITS, PART = 1 << 30 };
    z_stream z = {.zalloc = zalloc, .zfree = zfree};
    if (inflateInit2(&z, GZIP) != Z_OK)
        return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", path);
    op_status s = OP_OK;
    size_t at = 0;
    int code = Z_OK;
    do {
        char chunk[1 << 14];
        z.next_in = (unsigned char *)(uintptr_t)data + at;
        z.avail_in = (unsigned)(size - at < PART ? size - at : PART);
        z.next_out = (unsigned char *)chunk;
        z.avail_out = sizeof chunk;
        if (code == Z_STREAM_END)
            inflateReset(&z);
        code = inflate(&z, Z_NO_FLUSH);
        size_t produced = sizeof chunk - z.avail_out;
        at = (size_t)(z.next_in - data);
        if (code == Z_MEM_ERROR)
            s = op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", path);
        else if (code != Z_OK && code != Z_STREAM_END)
            s = op_error_set(e, OP_ERR_FORMAT, "%s: offset %zu: broken gzip data: %s", path, at,
                             code == Z_BUF_ERROR ? "it ends too early" : z.msg ? z.msg : "no reason given");
        else if (out->len + produced > out->max)
            s = op_error_set(e, OP_ERR_FORMAT, "%s: unpacks to more than %zu bytes", path, out->max);
        else if (op_buf_add(out, chunk, produced))
            s = op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", path);
    } while (!s && (code != Z_STREAM_END || at < size));
    inflateEnd(&z);
    return s;
}

uint32_t op_crc32(uint32_t crc, const void *bytes, size_t n)
{
    return (uint32_t)crc32_z(crc, bytes, n);
}

const char *op_zip_version(void)
{
    return zlibVersion();
}
