/* Rows of a .csv file: each has the keys of the first, all of them texts, and begins behind the one before. */
#include <stdint.h>
#include <stdlib.h>

#include "io/csv.h"

typedef struct seen {
    size_t keys;
    int line;
} seen;

static op_status read_row(void *ctx, json_t *row, int line, op_error *e)
{
    (void)e;
    seen *s = ctx;
    const char *key;
    json_t *value;
    if (line <= s->line || (s->keys && json_object_size(row) != s->keys))
        abort();
    json_object_foreach(row, key, value)
        if (!*key || !json_is_string(value))
            abort();
    *s = (seen){json_object_size(row), line};
    return OP_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    op_error e = {0};
    seen s = {0, 1};
    if (op_csv_parse((const char *)data, n, "x.csv", read_row, &s, &e) && !*e.message)
        abort();
    return 0;
}
