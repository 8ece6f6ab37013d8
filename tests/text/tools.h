/* What the tests of text share: fixtures, a directory of their own, failing allocations. */
#ifndef OP_TESTS_TEXT_TOOLS_H
#define OP_TESTS_TEXT_TOOLS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <operant/dataset.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"

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

/* dir/name; good until the fourth call from now. */
static inline const char *path_in(const char *dir, const char *name)
{
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", dir, name);
    return path;
}

static inline const char *fixture(const char *name)
{
    const char *dir = getenv("FIXTURES");
    return path_in(dir ? dir : "tests/text/fixtures", name);
}

static inline const char *put_file(const char *name, const char *text)
{
    const char *path = path_in(test_dir, name);
    FILE *f = fopen(path, "wb");
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    fclose(f);
    return path;
}

static inline void check(op_status s, const op_error *e)
{
    if (s)
        fail_msg("%s", e->message);
}

static inline void assert_message_has(const op_error *e, const char *part)
{
    if (!strstr(e->message, part))
        fail_msg("'%s' does not say '%s'", e->message, part);
}

static inline op_tokenizer *open_kind(const char *kind)
{
    char name[64];
    op_error e;
    op_tokenizer *t;
    snprintf(name, sizeof name, "%s.json", kind);
    check(op_tokenizer_open(&t, fixture(name), &e), &e);
    return t;
}

static inline op_template *parse_template(const char *source)
{
    op_error e;
    op_template *t;
    check(op_template_parse(&t, source, strlen(source), &e), &e);
    return t;
}

static inline json_t *parse_json(const char *text)
{
    op_error e;
    json_t *v;
    check(op_json_parse(&v, text, strlen(text), "test", &e), &e);
    return v;
}

/* Runs `job` with every allocation failing in turn, from the first on, until it succeeds; job returns its status and
 * must free what it made. */
static inline void fail_every_allocation(op_status (*job)(void *ctx, op_error *e), void *ctx)
{
    for (long n = 0;; n++) {
        op_error e = {0};
        op_alloc_fail_from(n);
        op_status s = job(ctx, &e);
        op_alloc_fail_from(-1);
        if (s == OP_OK) {
            assert_true(n > 3);
            return;
        }
        if (s != OP_ERR_NOMEM)
            fail_msg("allocation %ld: status %d, %s", n, s, e.message);
        assert_true(n < 20000);
    }
}

#define CHATML                                                                                                                  \
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"                    \
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

#endif
