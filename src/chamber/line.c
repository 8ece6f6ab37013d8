/* An episode with a reply as a line of training data. */
#include <string.h>

#include "chamber/parts.h"
#include "trial/trial_parts.h"

static bool add_mark(json_t *marks, int32_t start, int32_t end, double value)
{
    return !json_array_append_new(marks, json_pack("{si si sf ss}", "start", (int)start, "end", (int)end, "value", value, "by", "chamber"));
}

static op_status judge(json_t *marks, const op_chamber_episode *x, const op_chamber_reply *r, op_error *e)
{
    op_chamber_verdict v;
    op_status s = op_chamber_judge(x, r->text, &v, e);
    if (s)
        return s;
    for (int32_t i = 0; i < v.n && !s; i++)
        s = add_mark(marks, v.marks[i].start, v.marks[i].end, v.marks[i].value) ? OP_OK : OP_ERR_NOMEM;
    op_chamber_verdict_release(&v);
    return s;
}

op_status op_chamber_line(const op_chamber_episode *x, const op_chamber_reply *r, int marks, json_t **out, op_error *e)
{
    json_t *tags = json_copy(x->tags), *list = json_array();
    json_t *line = json_pack("{s:o, s:[{ss ss}], ss, s:o}", "id", json_sprintf("chamber-%llu", (unsigned long long)x->index), "messages", "role", "user",
                             "content", x->prompt, "response", r->text, "tags", tags);
    op_status s = !line || !list || json_object_set_new(tags, "habit", json_string(r->habit ? r->habit : "right")) ? OP_ERR_NOMEM : OP_OK;
    if (!s && marks == OP_CHAMBER_JUDGED)
        s = judge(list, x, r, e);
    if (!s && marks == OP_CHAMBER_AGAINST && !add_mark(list, 0, op_code_points(r->text, strlen(r->text)), -1))
        s = OP_ERR_NOMEM;
    if (!s && marks != OP_CHAMBER_UNMARKED && json_object_set(line, "marks", list))
        s = OP_ERR_NOMEM;
    json_decref(list);
    if (s)
        json_decref(line);
    *out = s ? NULL : line;
    return s == OP_ERR_NOMEM ? op_error_set(e, s, "out of memory for a line of the chamber") : s;
}
