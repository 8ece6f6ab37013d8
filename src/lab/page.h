/* lab/page.h: writing HTML and SVG. The first failure sticks, so that a page is written without a check at every line. */
#ifndef OP_LAB_PAGE_H
#define OP_LAB_PAGE_H

#include <operant/buf.h>
#include <operant/status.h>

typedef struct op_page {
    op_buf *out;
    op_status status;
} op_page;

enum { OP_PAGE_MAX = 1 << 24 }; /* bytes */

/* The head, with the style of all reports (light, dark, print), and the heading; `kind` is markup for the title. And the end. */
void op_page_begin(op_page *p, const char *kind, const char *heading);
void op_page_end(op_page *p);

/* Markup: written as it is. Only numbers and words of this program may be formatted into it. */
void op_page_put(op_page *p, const char *format, ...) OP_PRINTF(2, 3);
/* Text of any origin, for content and for quoted attributes: & < > " ' are escaped, control characters that HTML forbids dropped. */
void op_page_text(op_page *p, const char *text);
/* <tag>text</tag>; `tag` may have attributes. */
void op_page_element(op_page *p, const char *tag, const char *text);

/* ---- plots (plots.c); each is one <svg> of its own ---- */

#include <operant/assay.h>

/* The share of right replies of each class, before and after, with intervals. */
void op_plot_rates(op_page *p, const op_assay_results *r);
/* What the replies of each class did. */
void op_plot_verdicts(op_page *p, const op_assay_results *r);
/* Loss and held-out loss by step, from metrics.jsonl; writes nothing when it has no loss. */
op_status op_plot_loss(op_page *p, const char *metrics, op_error *e);

#endif
