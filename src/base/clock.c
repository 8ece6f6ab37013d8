#include <operant/clock.h>

#include <sys/resource.h>
#include <time.h>

double op_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double op_peak_rss_mb(void)
{
    struct rusage use;
    return getrusage(RUSAGE_SELF, &use) ? 0 : (double)use.ru_maxrss / 1024;
}
