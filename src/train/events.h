/* train/events.h: TensorBoard event files, a sequence of records: u64 length, masked crc32c of it, the bytes, masked crc32c of them. */
#ifndef OP_TRAIN_EVENTS_H
#define OP_TRAIN_EVENTS_H

#include <stdint.h>

#include <operant/buf.h>
#include <operant/status.h>

/* CRC-32C (Castagnoli), rotated right by 15 and offset as the format asks. */
uint32_t op_crc32c_masked(const void *bytes, size_t n);

/* Appends the record that opens a file, or one that holds a number. `time` is in seconds since 1970. */
op_status op_event_version(op_buf *out, double time);
op_status op_event_scalar(op_buf *out, double time, int64_t step, const char *tag, float value);

#endif
