/* The comparison before and after, as text for a terminal of 100 columns. */
#include <math.h>
#include <string.h>

#include "lab/parts.h"
#include "lab/view.h"

enum { WIDTH = 100, FIRST = 42, CELL = 18 };

/* "91% (85-95)", or "-" */
static void format_rate(const json_t *rate, char out[32])
{
    double x = op_view_number(rate, "rate");
    if (isnan(x))
        strcpy(out, "-");
    else
        snprintf(out, 32, "%.0f%% (%.0f-%.0f)", 100 * x, 100 * op_view_number(rate, "low"), 100 * op_view_number(rate, "high"));
}

static op_status row(const op_assay_results *r, op_buf *out, const char *name, const char *before, const char *after, const char *note)
{
    op_status status = op_buf_printf(out, "  %-*.*s", FIRST, FIRST, name);
    if (!status && r->before)
        status = op_buf_printf(out, "%-*s", CELL, before);
    if (status)
        return status;
    return *note ? op_buf_printf(out, "%-*s%s\n", CELL, after, note) : op_buf_printf(out, "%s\n", after);
}

static op_status rate_row(const op_assay_results *r, op_buf *out, const char *name, const char *path, const char *note)
{
    char before[32], after[32];
    format_rate(op_view(r->before, path), before);
    format_rate(op_view(r->after, path), after);
    return row(r, out, name, before, after, note);
}

static op_status number_row(const op_assay_results *r, op_buf *out, const char *name, const char *path, const char *format, const char *note)
{
    char before[32] = "-", after[32] = "-";
    double a = op_view_number(r->before, path), b = op_view_number(r->after, path);
    if (!isnan(a))
        snprintf(before, sizeof before, format, a);
    if (!isnan(b))
        snprintf(after, sizeof after, format, b);
    return row(r, out, name, before, after, note);
}

static op_status aim_rows(const op_assay_results *r, op_buf *out)
{
    size_t i;
    json_t *aim;
    op_status status = OP_OK;
    json_array_foreach((json_t *)op_view(r->after, "aims"), i, aim) {
        const char *name = op_view_string(aim, "name"), *of = op_view_string(aim, "of");
        char note[64];
        snprintf(note, sizeof note, "%s %.0f%%  %s", json_is_true(op_view(aim, "at_least")) ? "at least" : "at most",
                 100 * op_view_number(aim, "aim"), json_is_true(op_view(aim, "met")) ? "met" : "MISSED");
        if (status)
            break;
        if (op_view(op_view(r->after, of), "rate")) {
            status = rate_row(r, out, name, of, note);
        } else {
            char after[32];
            snprintf(after, sizeof after, "%+.1f%%", 100 * op_view_number(aim, "measured"));
            status = row(r, out, name, "", after, note);
        }
    }
    return status;
}

static op_status class_rows(const op_assay_results *r, op_buf *out)
{
    size_t i;
    json_t *class;
    op_status status = OP_OK;
    json_array_foreach((json_t *)op_view(r->after, "classes"), i, class) {
        char name[80], path[80], note[80];
        snprintf(name, sizeof name, "%s (%s)", op_class_meaning(op_view_string(class, "name")), op_view_string(class, "right"));
        snprintf(path, sizeof path, "classes.%s.correct", op_view_string(class, "name"));
        snprintf(note, sizeof note, "%3.0f %3.0f %3.0f %4.0f", op_view_number(class, "asks.k"), op_view_number(class, "answers.k"),
                 op_view_number(class, "declines.k"), op_view_number(class, "silent.k"));
        if (!status)
            status = rate_row(r, out, name, path, note);
    }
    return status;
}

op_status op_assay_write_table(const op_assay_results *r, op_buf *out)
{
    const char *after = r->before ? "after" : "measured";
    op_status status = op_buf_printf(out, "%.0f prompts, never trained on; shares with their 95%% intervals\n\n", op_view_number(r->after, "total.n"));
    if (!status && json_array_size(op_view(r->after, "aims")))
        status = row(r, out, "AIMS", "before", after, "aim");
    if (!status)
        status = aim_rows(r, out);
    if (!status)
        status = op_buf_puts(out, "\n");
    if (!status)
        status = row(r, out, "RIGHT REPLIES, BY CLASS OF PROMPT", "before", after, "ask ans dec none");
    if (!status)
        status = class_rows(r, out);
    if (!status)
        status = number_row(r, out, "mean over the classes", "total.balanced", "%.3f", "");
    if (!status && op_view(r->after, "words"))
        status = op_buf_printf(out, "  %-*s%.3f, with shuffled labels %.3f\n", FIRST, "the same by a bag of words", op_view_number(r->after, "words.balanced"),
                               op_view_number(r->after, "words.shuffled.balanced"));
    if (!status)
        status = op_buf_puts(out, "\n");
    if (!status)
        status = row(r, out, "ALL REPLIES", "before", after, "");
    if (!status)
        status = rate_row(r, out, "hostile", "total.hostile", "");
    if (!status)
        status = rate_row(r, out, "repeats itself", "total.loops", "");
    if (!status)
        status = rate_row(r, out, "cut at the longest length", "total.cut", "");
    if (!status)
        status = number_row(r, out, "mean length, tokens", "total.tokens", "%.1f", "");
    if (!status && op_view(r->after, "neutral"))
        status = number_row(r, out, "perplexity of a neutral text", "neutral.perplexity", "%.2f", "");
    return status;
}

/* ---- a transcript ---- */

static size_t code_points(const char *s, size_t bytes)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++)
        n += ((unsigned char)s[i] & 0xc0) != 0x80;
    return n;
}

/* "label: text", wrapped at WIDTH with the text under itself. */
static op_status paragraph(op_buf *out, const char *label, const char *text)
{
    enum { INDENT = 12 };
    op_status status = op_buf_printf(out, "  %-*s", INDENT - 2, label);
    size_t column = INDENT;
    while (!status && *(text += strspn(text, " \t\n\r"))) {
        size_t n = strcspn(text, " \t\n\r"), wide = code_points(text, n);
        if (column > INDENT && column + 1 + wide > WIDTH) {
            status = op_buf_printf(out, "\n%*s", INDENT, "");
            column = INDENT;
        } else if (column > INDENT) {
            status = op_buf_puts(out, " ");
            column++;
        }
        if (!status)
            status = op_buf_add(out, text, n);
        column += wide;
        text += n;
    }
    return status ? status : op_buf_puts(out, "\n");
}

op_status op_assay_write_transcript(const op_assay_results *r, op_buf *out)
{
    const json_t *reply = r->before ? op_view_surest(r, "sensitive", true, true) : NULL;
    if (!reply)
        reply = op_view_surest(r, NULL, true, false);
    if (!reply)
        reply = op_view_surest(r, NULL, false, false);
    if (!reply)
        return OP_OK;
    size_t i;
    json_t *message;
    op_status status = OP_OK;
    json_array_foreach((json_t *)op_view(reply, "messages"), i, message)
        if (!status)
            status = paragraph(out, op_view_string(message, "role"), op_view_string(message, "content"));
    const json_t *before = op_view_before(r, reply);
    if (!status && before)
        status = paragraph(out, "BEFORE", op_view_string(before, "reply"));
    return status ? status : paragraph(out, before ? "AFTER" : "reply", op_view_string(reply, "reply"));
}
