/* Is a page what every browser reads alike? */
#ifndef TESTS_LAB_WELL_FORMED_H
#define TESTS_LAB_WELL_FORMED_H

#include <stdbool.h>

#include "tools.h"

/* Every opened tag is closed in order, attributes are quoted, and each & begins an entity. */
static inline void check_well_formed(const char *page)
{
    char open[64][24];
    int depth = 0;
    assert_memory_equal(page, "<!DOCTYPE html>", 15);
    for (const char *at = page + 15; *at; at++) {
        assert_true(*at == '\n' || *at == '\t' || (unsigned char)*at >= ' ');
        if (*at == '&') {
            size_t n = strspn(at + 1, "abcdefghijklmnopqrstuvwxyz0123456789#");
            assert_true(n && at[1 + n] == ';');
        }
        if (*at != '<')
            continue;
        bool closes = at[1] == '/';
        const char *name = at + 1 + closes;
        size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyz123456");
        assert_true(n && n < sizeof open[0]);
        bool quoted = false;
        const char *end = name + n;
        for (; *end && (quoted || *end != '>'); end++) {
            quoted ^= *end == '"';
            assert_true(*end != '<');
        }
        assert_int_equal(*end, '>');
        if (closes) {
            assert_true(depth > 0);
            depth--;
            if (strlen(open[depth]) != n || memcmp(open[depth], name, n) != 0)
                fail_msg("<%s> is closed by </%.*s>", open[depth], (int)n, name);
        } else if (end[-1] != '/') {
            assert_true(depth < 64);
            memcpy(open[depth], name, n);
            open[depth++][n] = 0;
        }
        at = end;
    }
    assert_int_equal(depth, 0);
}

#endif
