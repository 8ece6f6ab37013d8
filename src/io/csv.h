/* io/csv.h: comma-separated rows (RFC 4180) as JSON objects of texts, whose keys are the first row. */
#ifndef OP_IO_CSV_H
#define OP_IO_CSV_H

#include <operant/jsonl.h>

/* Calls fn for each row after the first, with the line that it begins in. Blank lines are passed over. OP_ERR_FORMAT names the line: another number of
 * fields than keys, a key twice or empty, more than 4096 fields, a quote that is not closed, has something behind it or stands inside a field without, bytes that are not UTF-8. */
op_status op_csv_parse(const char *bytes, size_t n, const char *name, op_json_line_fn fn, void *ctx, op_error *e);

#endif
