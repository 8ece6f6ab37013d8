/* Says of any text how it answers an episode, and where it goes wrong.
 *
 * A response is cut into sentences. Going through them, a sentence is right if it is the next that the rule asks for, given what was said before: the one
 * after the last that was right, or the first that is still missing; reasoning may be left out. Anything else is wrong, and what follows is judged as
 * if the wrong one had been a step: after a step that was left out or done wrongly a chain can go on well, so that a mark says where the error was. */
#include <string.h>

#include "base/mem.h"
#include "chamber/parts.h"
#include "trial/trial_parts.h"

typedef struct span {
    const char *text;
    size_t n;
    int32_t start, end; /* code points */
} span;

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

/* The next sentence at or after *at; false: there is none. A sentence ends with . ? or ! before white space, or with its line. */
static bool next_sentence(const char *s, size_t *at, int32_t *at_points, span *out)
{
    size_t i = *at;
    while (is_space(s[i]))
        i++;
    if (!s[i])
        return false;
    size_t end = i;
    while (s[end] && s[end] != '\n') {
        bool last = strchr(".?!", s[end]) && (!s[end + 1] || is_space(s[end + 1]));
        end++;
        if (last)
            break;
    }
    size_t next = end;
    while (is_space(s[end - 1]))
        end--;
    out->text = s + i;
    out->n = end - i;
    out->start = *at_points + op_code_points(s + *at, i - *at);
    out->end = out->start + op_code_points(s + i, end - i);
    *at_points = *at_points + op_code_points(s + *at, next - *at);
    *at = next;
    return true;
}

/* ---- sentences against those of a reply ---- */

static bool says(const span *s, const op_chamber_reply *r, int i)
{
    if (i < 0 || i >= r->n)
        return false;
    const op_chamber_segment *g = &r->segments[i];
    return s->n == (size_t)(g->end - g->start) && !memcmp(s->text, r->text + g->start, s->n);
}

static int find(const span *s, const op_chamber_reply *r)
{
    int i = 0;
    while (i < r->n && !says(s, r, i))
        i++;
    return i < r->n ? i : -1;
}

typedef struct progress {
    const op_chamber_reply *right;
    bool said[OP_CHAMBER_SEGMENTS_MAX]; /* or replaced by a wrong one */
    int last;     /* the latest place, -1: none */
    int replaced; /* place that a sentence that belongs nowhere took, -1: none */
} progress;

/* Place of the sentence if it may come now, or -1. */
static int place(const progress *p, const span *s)
{
    for (int i = p->last + 1; i < p->right->n; i++) { /* past reasoning that is left out */
        if (says(s, p->right, i))
            return i;
        if (p->right->segments[i].action)
            break;
    }
    for (int i = 0; i < p->right->n; i++)
        if (!p->said[i])
            return says(s, p->right, i) ? i : p->replaced >= 0 && says(s, p->right, p->replaced) ? p->replaced : -1;
    return p->replaced >= 0 && says(s, p->right, p->replaced) ? p->replaced : -1;
}

/* The action at i is the right next word, but not all that it closes was done: neither right nor wrong. */
static bool closes_gap(const progress *p, int i)
{
    if (i + 1 < p->right->n)
        return false;
    for (int k = 0; k < i; k++)
        if (!p->said[k] && p->right->segments[k].action)
            return true;
    return false;
}

static void go_wrong(progress *p, const span *s)
{
    int found = find(s, p->right);
    p->replaced = -1;
    if (found >= 0 && !p->said[found]) { /* too early */
        p->said[found] = true;
        p->last = found;
    } else if (found < 0 && p->last + 1 < p->right->n) {
        p->replaced = ++p->last;
        p->said[p->last] = true;
    }
}

/* Where a wrong sentence departs from the one that was due: the bytes they share, back to the beginning of a word. */
static int32_t departs(const progress *p, const span *s, int due)
{
    const op_chamber_segment *g = &p->right->segments[due];
    int32_t same = 0, word = 0;
    while (due < p->right->n && (size_t)same < s->n && same < g->end - g->start && s->text[same] == p->right->text[g->start + same])
        if (s->text[same++] == ' ')
            word = same;
    return word; /* what is shared is ASCII: as many code points */
}

static op_chamber_mark bad_mark(const progress *p, const span *s, int due, int32_t *instead)
{
    int32_t from = departs(p, s, due);
    size_t to = (size_t)from;
    while (to < s->n && !is_space(s->text[to]))
        to++;
    *instead = due < p->right->n ? p->right->segments[due].start + from : op_code_points(p->right->text, strlen(p->right->text));
    return (op_chamber_mark){s->start, s->end, -1, NULL, s->start + from, s->start + from + op_code_points(s->text + from, to - (size_t)from)};
}

/* ---- habits ---- */

static bool is_wrong_action(const op_chamber_episode *x, const span *s)
{
    for (int i = 0; i < x->n_wrong; i++) {
        int k = find(s, &x->wrong[i]);
        if (k >= 0 && x->wrong[i].segments[k].action)
            return true;
    }
    return false;
}

static bool is_chain(const op_chamber_episode *x)
{
    return chamber_rules[x->rule].respond != NULL;
}

static const char *shape_of_chain(const op_chamber_episode *x, const span *said, int n)
{
    const op_chamber_reply *right = &x->right;
    int steps = right->n - 1, strangers = 0, moved = 0, places[OP_CHAMBER_SEGMENTS_MAX + 1];
    bool twice = false, rising = true;
    if (!x->trigger || n < 2 || n > OP_CHAMBER_SEGMENTS_MAX || !says(&said[n - 1], right, steps))
        return "other";
    n--;
    for (int i = 0; i < n; i++) {
        places[i] = find(&said[i], right);
        strangers += places[i] < 0;
        moved += places[i] >= 0 && places[i] != i;
        rising = rising && (i == 0 || places[i] > places[i - 1]);
        for (int k = 0; k < i; k++)
            twice = twice || (places[i] >= 0 && places[k] == places[i]);
    }
    if (strangers)
        return n == steps && !moved ? strangers == 1 ? "wrong_step" : "slips" : "other";
    if (twice)
        return "repeats_step";
    if (n == steps)
        return "swaps_steps";
    return !rising ? "other" : moved ? "skips_step" : "stops_early";
}

static const char *habit_of(const op_chamber_episode *x, const span *said, int n)
{
    const char *best = NULL;
    int most = 0;
    for (int i = 0; i < x->n_wrong; i++) {
        const op_chamber_reply *w = &x->wrong[i];
        int same = 0;
        for (int k = 0; k < n; k++)
            same += says(&said[k], w, k);
        if (same == n && n == w->n)
            return w->habit;
        if (n && !is_chain(x) && says(&said[n - 1], w, w->n - 1) && same >= most) {
            most = same;
            best = w->habit;
        }
    }
    return best ? best : is_chain(x) ? shape_of_chain(x, said, n) : "other";
}

/* ---- judging ---- */

static op_status cut(const char *text, span **out, int *n, op_error *e)
{
    size_t at = 0, cap = 0;
    int32_t points = 0;
    span s;
    *n = 0;
    *out = NULL;
    while (next_sentence(text, &at, &points, &s)) {
        if ((size_t)*n == cap) {
            cap = cap ? 2 * cap : 16;
            span *more = op_realloc(*out, cap * sizeof s);
            if (!more)
                return op_error_set(e, OP_ERR_NOMEM, "out of memory while judging a response");
            *out = more;
        }
        (*out)[(*n)++] = s;
    }
    return OP_OK;
}

static void go_through(const op_chamber_episode *x, const span *said, int n, op_chamber_verdict *out)
{
    progress p = {.right = &x->right, .last = -1, .replaced = -1};
    int good = 0, first_wrong = -1, actions = 0, good_actions = 0;
    bool wrong_action = false;
    for (int i = 0; i < n; i++) {
        int at = place(&p, &said[i]);
        bool closed = at >= 0 && closes_gap(&p, at);
        if (at < 0) {
            wrong_action = wrong_action || is_chain(x) || is_wrong_action(x, &said[i]);
            int32_t instead;
            out->marks[out->n++] = bad_mark(&p, &said[i], p.last + 1, &instead);
            out->instead = first_wrong < 0 ? instead : out->instead;
            first_wrong = first_wrong < 0 ? i : first_wrong;
            go_wrong(&p, &said[i]);
            continue;
        }
        p.said[at] = true;
        p.last = at;
        p.replaced = -1;
        if (closed)
            continue;
        good += first_wrong < 0;
        good_actions += x->right.segments[at].action;
        out->marks[out->n++] = (op_chamber_mark){.start = said[i].start, .end = said[i].end, .value = 1};
    }
    for (int i = 0; i < x->right.n; i++)
        actions += x->right.segments[i].action;
    out->success = !wrong_action && n && n <= x->right.n && good_actions == actions && says(&said[n - 1], &x->right, x->right.n - 1);
    int most = n > x->right.n ? n : x->right.n;
    out->reward = out->success ? 1 : (double)good / most;
    out->habit = out->success ? NULL : habit_of(x, said, n);
    for (int i = 0; i < out->n; i++)
        if (out->marks[i].value < 0)
            out->marks[i].note = out->habit ? out->habit : "reasoning";
}

op_status op_chamber_judge(const op_chamber_episode *x, const char *response, op_chamber_verdict *out, op_error *e)
{
    *out = (op_chamber_verdict){.instead = -1};
    span *said;
    int n;
    op_status s = cut(response, &said, &n, e);
    if (!s && n && !(out->marks = op_alloc_array((size_t)n, sizeof *out->marks)))
        s = op_error_set(e, OP_ERR_NOMEM, "out of memory while judging a response");
    if (!s)
        go_through(x, said, n, out);
    op_free(said);
    return s;
}

void op_chamber_verdict_release(op_chamber_verdict *v)
{
    op_free(v->marks);
    *v = (op_chamber_verdict){0};
}
