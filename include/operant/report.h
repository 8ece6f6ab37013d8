/* operant/report.h: report.html of an assay: one file that needs no script, no network and no other file.
 *
 * In this order: what was taught and measured, in words; each aim, met or missed; plots (SVG) of the rates before and after with their
 * intervals, of what the replies did, and of the loss in training; tables; transcripts (the surest right and the surest wrong reply of each
 * class); settings, hashes, versions and the command that measures again. Light and dark after the reader's settings. */
#ifndef OPERANT_REPORT_H
#define OPERANT_REPORT_H

#include <operant/assay.h>
#include <operant/status.h>

/* Appends the page. `metrics` is the path of the training run's metrics.jsonl, or NULL. Every text is escaped. */
op_status op_report_html(const op_assay_results *r, const char *metrics, op_buf *out, op_error *e);
/* Writes it to a file, atomically. */
op_status op_report_write(const op_assay_results *r, const char *metrics, const char *path, op_error *e);

#endif
