/* operant/report.h: report.html of an assay and of a training run: one file that needs no script, no network and no other file. Light and dark after
 * the reader's settings.
 *
 * Of an assay, in this order: what was taught and measured, in words; each aim, met or missed; plots (SVG) of the rates before and after with their
 * intervals, of what the replies did, and of the loss in training; tables; transcripts (the surest right and the surest wrong reply of each
 * class); settings, hashes, versions and the command that measures again.
 *
 * Of a training run: what was trained on what and how far it came; the plot of loss and held-out loss; the final figures; facts of model and data;
 * the settings that matter; samples of metrics.jsonl; the command that repeats it, versions, hashes and all settings. */
#ifndef OPERANT_REPORT_H
#define OPERANT_REPORT_H

#include <operant/assay.h>
#include <operant/status.h>

/* Appends the page. `metrics` is the path of the training run's metrics.jsonl, or NULL. Every text is escaped. */
op_status op_report_html(const op_assay_results *r, const char *metrics, op_buf *out, op_error *e);
/* Writes it to a file, atomically. */
op_status op_report_write(const op_assay_results *r, const char *metrics, const char *path, op_error *e);

/* The same of the training run in `dir`, which may be under way or stopped: from its config.yaml, env.json and metrics.jsonl (operant/train.h),
 * with the settings of operant/sft.h. */
op_status op_train_report_html(const char *dir, op_buf *out, op_error *e);
/* Writes it to dir/report.html, atomically. */
op_status op_train_report_write(const char *dir, op_error *e);

/* And of a protocol's run (operant/session.h): stages, curves by round (success, reward, losses, entropy, KL, clipping, groups without variance, marks), the
 * best and the worst of its answers in the store and what was done again, coloured by mark, and `command`, which repeats it (NULL: left out). Passwords in
 * URLs are left out. Without the store it says why there are no transcripts, and makes none. */
op_status op_protocol_report_html(const char *dir, const char *command, op_buf *out, op_error *e);
op_status op_protocol_report_write(const char *dir, const char *command, op_error *e);

/* And of vectors against one another: from what op_vector_compare (operant/vector.h) gave. Heat maps of cosines, sign conflicts and the overlap of large elements,
 * the same as tables, and the cosines by layer and by kind of tensor. */
op_status op_vector_report_html(const json_t *comparison, op_buf *out, op_error *e);
op_status op_vector_report_write(const json_t *comparison, const char *path, op_error *e);

#endif
