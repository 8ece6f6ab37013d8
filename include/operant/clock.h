/* operant/clock.h: what a measurement needs of the system. */
#ifndef OPERANT_CLOCK_H
#define OPERANT_CLOCK_H

double op_seconds(void);     /* since some moment; never goes back */
double op_peak_rss_mb(void); /* the most memory that this process has held so far, in MiB */

#endif
