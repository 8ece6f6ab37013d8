/* A verb of the program, as a user calls it. */
#ifndef TESTS_VERB_H
#define TESTS_VERB_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char shown[1 << 16]; /* what the last call printed, on stdout and on stderr */

/* Runs $OPERANT VERB WORDS in `folder` and keeps what it prints; gives its exit status. */
static inline int call_verb(const char *folder, const char *verb, const char *words)
{
    char command[2048];
    snprintf(command, sizeof command, "cd %s && %s %s %s 2>&1", folder, getenv("OPERANT"), verb, words);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    size_t n = fread(shown, 1, sizeof shown - 1, f);
    shown[n] = 0;
    return pclose(f) / 256;
}

static inline void assert_shows(const char *part)
{
    if (!strstr(shown, part))
        fail_msg("'%s' is not in:\n%s", part, shown);
}

#endif
