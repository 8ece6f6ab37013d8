/* How far a vector can be taken before the control text suffers. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "lab/parts.h"
#include "lab/reverse_parts.h"
#include "lab/view.h"

/* One trait's arm, or all vectors with a common factor. */
typedef struct search {
    reverse_run *r;
    const reverse_term *terms; /* at scale 1 */
    size_t n;
    ptrdiff_t probe;           /* measured at every scale; -1: none */
    const char *what;
    double perplexity;         /* of the base */
    json_t *curve;             /* points by scale */
} search;

static op_status start(search *s, op_error *e)
{
    json_t *base;
    s->curve = json_array();
    op_status status = s->curve ? reverse_measure_control(s->r, NULL, 0, true, &base, e) : reverse_no_memory(e);
    if (!status) {
        s->perplexity = op_view_number(base, "perplexity");
        json_decref(base);
    }
    return status;
}

static op_status keep_point(search *s, double scale, double perplexity, const json_t *summary, op_error *e)
{
    size_t at = 0;
    while (at < json_array_size(s->curve) && op_view_number(json_array_get(s->curve, at), "scale") < scale)
        at++;
    json_t *point = json_pack("{sf so so}", "scale", scale, "perplexity", op_json_number(perplexity), "rise", op_json_number(perplexity / s->perplexity - 1));
    bool ok = point;
    if (summary) /* of a probe that could be measured */
        ok = ok && !json_object_update_new(point, json_pack("{so so so so}", "margin", op_json_number(op_view_number(summary, "margin")), "low",
                                                            op_json_number(op_view_number(summary, "low")), "high", op_json_number(op_view_number(summary, "high")), "rate",
                                                            op_json_number(op_view_number(summary, "rate"))));
    if (ok)
        return json_array_insert_new(s->curve, at, point) ? reverse_no_memory(e) : OP_OK;
    json_decref(point);
    return reverse_no_memory(e);
}

/* Measures at a scale; *within: the control keeps to the budget. */
static op_status look(search *s, double scale, bool *within, op_error *e)
{
    enum { TERMS_MAX = 64 };
    reverse_term terms[TERMS_MAX];
    const op_reverse *x = s->r->x;
    json_t *control = NULL, *measured = NULL, *summary = NULL;
    for (size_t i = 0; i < s->n; i++)
        terms[i] = (reverse_term){s->terms[i].v, scale * s->terms[i].scale};
    op_status status = reverse_say(s->r, e, "round %lld: %s at %.3g", (long long)s->r->round, s->what, scale);
    if (!status)
        status = reverse_measure_control(s->r, terms, s->n, true, &control, e);
    double perplexity = op_view_number(control, "perplexity");
    *within = perplexity / s->perplexity - 1 <= x->budget; /* not where it is no number */
    if (!status && s->probe >= 0 && isfinite(perplexity))
        status = reverse_measure_probe(s->r, terms, s->n, (size_t)s->probe, REVERSE_TEXT, x->n_search, &measured, e);
    if (!status && measured && !(summary = reverse_summary(&x->probes[s->probe], measured, NULL)))
        status = reverse_no_memory(e);
    if (!status)
        status = keep_point(s, scale, perplexity, summary, e);
    json_decref(control);
    json_decref(measured);
    json_decref(summary);
    return status;
}

/* Halves what lies between a scale within the budget and one beyond it. */
static op_status close_in(search *s, double *low, double high, int64_t times, op_error *e)
{
    op_status status = OP_OK;
    for (int64_t i = 0; i < times && !status; i++) {
        double middle = (*low + high) / 2;
        bool within;
        status = look(s, middle, &within, e);
        if (within)
            *low = middle;
        else
            high = middle;
    }
    return status;
}

static bool has_point(const json_t *curve, double scale)
{
    size_t i;
    json_t *point;
    json_array_foreach((json_t *)curve, i, point)
        if (op_view_number(point, "scale") == scale)
            return true;
    return false;
}

op_status reverse_search_arm(reverse_run *r, size_t k, reverse_arm arm, double also, json_t **out, op_error *e)
{
    const op_reverse *x = r->x;
    char what[120];
    snprintf(what, sizeof what, "%.60s: %s", x->probes[k].name, reverse_arm_name(arm));
    const reverse_term term = {reverse_vector_of(r, k, arm), reverse_arm_sign(arm)};
    search s = {.r = r, .terms = &term, .n = 1, .probe = (ptrdiff_t)k, .what = what};
    double low = 0, high = NAN;
    op_status status = start(&s, e);
    for (double scale = x->from; !status && isnan(high) && low < x->to; scale = fmin(2 * scale, x->to)) {
        bool within;
        status = look(&s, scale, &within, e);
        if (within)
            low = scale;
        else
            high = scale;
    }
    if (!status && isfinite(high))
        status = close_in(&s, &low, high, x->refine, e);
    bool ignored;
    if (!status && also > 0 && !has_point(s.curve, also))
        status = look(&s, also, &ignored, e);
    *out = status ? NULL : json_pack("{ss si sf sO}", "arm", reverse_arm_name(arm), "sign", reverse_arm_sign(arm), "scale", low, "curve", s.curve);
    json_decref(s.curve);
    return status || *out ? status : reverse_no_memory(e);
}

op_status reverse_search_joint(reverse_run *r, const reverse_term *terms, size_t n, json_t **out, op_error *e)
{
    search s = {.r = r, .terms = terms, .n = n, .probe = -1, .what = "all traits"};
    double low = 0;
    bool within = false;
    op_status status = start(&s, e);
    if (!status)
        status = look(&s, 1, &within, e);
    if (within)
        low = 1;
    else if (!status)
        status = close_in(&s, &low, 1, r->x->refine + 1, e);
    *out = status ? NULL : json_pack("{sf sO}", "factor", low, "curve", s.curve);
    json_decref(s.curve);
    return status || *out ? status : reverse_no_memory(e);
}
