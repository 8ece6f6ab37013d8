/* What the tests of several folders share: a directory of their own, files in it, messages, and failing allocations. */
#ifndef OP_TESTS_COMMON_H
#define OP_TESTS_COMMON_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <operant/status.h>

#include "base/mem.h"
#include "io/file.h"

static char test_dir[64];

static inline int make_test_dir(void **state)
{
    (void)state;
    strcpy(test_dir, "/tmp/operant-test-XXXXXX");
    return mkdtemp(test_dir) ? 0 : -1;
}

static inline int remove_test_dir(void **state)
{
    (void)state;
    return op_path_remove(test_dir, NULL);
}

/* A path in the test's directory; good until the fourth call from now. */
static inline const char *in_dir(const char *name)
{
    static char paths[4][256];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", test_dir, name);
    return path;
}

static inline const char *put_file(const char *name, const void *bytes, size_t n)
{
    const char *path = in_dir(name);
    FILE *f = fopen(path, "wb"); /* not op_file_put: hundreds of files need not be synced */
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
    return path;
}

static inline void assert_message_has(const op_error *e, const char *part)
{
    if (!strstr(e->message, part))
        fail_msg("the message \"%s\" has no \"%s\"", e->message, part);
}

/* Runs fn with the first, the second, ... allocation failing until it comes through; returns how often it failed. A leak
 * shows under AddressSanitizer. */
static inline long fail_every_allocation(op_status (*fn)(void *ctx, op_error *e), void *ctx)
{
    for (long n = 0; n < 20000; n++) {
        op_error e = {0};
        op_alloc_fail_from(n);
        op_status s = fn(ctx, &e);
        op_alloc_fail_from(-1);
        if (!s)
            return n;
        if (s != OP_ERR_NOMEM)
            fail_msg("allocation %ld: %s: %s", n, op_status_string(s), e.message);
    }
    fail_msg("it fails though memory is there");
    return 0;
}

#endif
