/* What the tests of io share besides: counting files, and a full disk. */
#ifndef OP_TESTS_IO_TOOLS_H
#define OP_TESTS_IO_TOOLS_H

#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>

#include "../common.h"

static inline int count_files(void)
{
    DIR *d = opendir(test_dir);
    int n = 0;
    for (struct dirent *x; (x = readdir(d));)
        n += x->d_name[0] != '.';
    closedir(d);
    return n;
}

/* Runs fn while no file may grow past `bytes`: what a full disk looks like. */
static inline op_status run_on_a_full_disk(op_status (*fn)(void *ctx, op_error *e), void *ctx, size_t bytes, op_error *e)
{
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = bytes;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    op_status s = fn(ctx, e);
    setrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, handler);
    return s;
}

#endif
