#include "train/events.h"

#include <string.h>

static uint32_t crc32c(const unsigned char *p, size_t n)
{
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

uint32_t op_crc32c_masked(const void *bytes, size_t n)
{
    uint32_t crc = crc32c(bytes, n);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

/* A protocol buffer message small enough for one event. */
typedef struct message {
    unsigned char bytes[512];
    size_t n;
} message;

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

static void put_varint(message *m, uint64_t x)
{
    do {
        m->bytes[m->n++] = (unsigned char)((x & 0x7f) | (x > 0x7f ? 0x80 : 0));
        x >>= 7;
    } while (x);
}

static void put_little(message *m, uint64_t x, int n)
{
    for (int i = 0; i < n; i++)
        m->bytes[m->n++] = (unsigned char)(x >> 8 * i);
}

static void put_bytes(message *m, int field, const void *bytes, size_t n)
{
    put_varint(m, (uint64_t)field << 3 | BYTES);
    put_varint(m, n);
    memcpy(m->bytes + m->n, bytes, n);
    m->n += n;
}

static message event_begin(double time)
{
    message m = {.n = 0};
    uint64_t bits;
    memcpy(&bits, &time, 8);
    put_varint(&m, 1 << 3 | FIXED64);
    put_little(&m, bits, 8);
    return m;
}

static op_status add_record(op_buf *out, const message *event)
{
    message head = {.n = 0}, tail = {.n = 0};
    put_little(&head, event->n, 8);
    put_little(&head, op_crc32c_masked(head.bytes, 8), 4);
    put_little(&tail, op_crc32c_masked(event->bytes, event->n), 4);
    op_status status = op_buf_add(out, head.bytes, head.n);
    if (!status)
        status = op_buf_add(out, event->bytes, event->n);
    return status ? status : op_buf_add(out, tail.bytes, tail.n);
}

op_status op_event_version(op_buf *out, double time)
{
    static const char version[] = "brain.Event:2";
    message m = event_begin(time);
    put_bytes(&m, 3, version, sizeof version - 1);
    return add_record(out, &m);
}

op_status op_event_scalar(op_buf *out, double time, int64_t step, const char *tag, float value)
{
    size_t length = strlen(tag);
    if (length > 128)
        return OP_ERR_ARG;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    message scalar = {.n = 0}, summary = {.n = 0}, m = event_begin(time);
    put_bytes(&scalar, 1, tag, length);
    put_varint(&scalar, 2 << 3 | FIXED32);
    put_little(&scalar, bits, 4);
    put_bytes(&summary, 1, scalar.bytes, scalar.n);
    put_varint(&m, 2 << 3 | VARINT);
    put_varint(&m, (uint64_t)step);
    put_bytes(&m, 5, summary.bytes, summary.n);
    return add_record(out, &m);
}
