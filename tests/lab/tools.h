/* What the tests of this folder share. */
#ifndef TESTS_LAB_TOOLS_H
#define TESTS_LAB_TOOLS_H

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

/* Fails the test with the message of the error. */
#define assert_ok(call)                                                                                                \
    do {                                                                                                               \
        op_error error_ = {0};                                                                                         \
        op_error *e = &error_;                                                                                         \
        if (call)                                                                                                      \
            fail_msg("%s", error_.message);                                                                            \
    } while (0)

static inline void assert_message_has(const op_error *e, const char *part)
{
    if (!strstr(e->message, part))
        fail_msg("the message \"%s\" has no \"%s\"", e->message, part);
}

static char lab_dir[] = "/tmp/operant-lab-XXXXXX";

static inline int make_dir(void **state)
{
    (void)state;
    return !mkdtemp(lab_dir);
}

static inline int remove_dir(void **state)
{
    (void)state;
    return op_path_remove(lab_dir, NULL);
}

/* A path below the test's directory; valid until the next eight calls. */
static inline const char *in_dir(const char *name)
{
    static char paths[8][300];
    static int next;
    next = (next + 1) % 8;
    snprintf(paths[next], sizeof paths[next], "%s/%s", lab_dir, name);
    return paths[next];
}

static inline const char *put_file(const char *name, const char *text)
{
    const char *path = in_dir(name);
    assert_ok(op_file_put(path, text, strlen(text), e));
    return path;
}

/* A file of the lesson, which tests read where the repository has it. */
static inline const char *in_lesson(const char *name)
{
    static char path[600];
    snprintf(path, sizeof path, "%s/%s", getenv("LESSON") ? getenv("LESSON") : "examples/ask-why", name);
    return path;
}

/* Runs fn with the first, the second, ... allocation failing until it comes through. A leak shows under AddressSanitizer. */
static inline void fail_every_allocation(op_status (*fn)(void *ctx, op_error *e), void *ctx)
{
    for (long n = 0;; n += 1 + n / 64) { /* all of the first, then ever fewer: whole pages take thousands */
        op_error e = {0};
        op_alloc_fail_from(n);
        op_status s = fn(ctx, &e);
        op_alloc_fail_from(-1);
        if (!s)
            return;
        if (s != OP_ERR_NOMEM)
            fail_msg("allocation %ld: %s: %s", n, op_status_string(s), e.message);
    }
}

#endif
