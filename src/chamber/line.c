/* An episode with a reply as a line of training data. */
#include "chamber/parts.h"

static op_status add_marks(json_t *line, const op_chamber_verdict *v)
{
    json_t *marks = json_array();
    op_status s = !marks || json_object_set_new(line, "marks", marks) ? OP_ERR_NOMEM : OP_OK;
    for (int32_t i = 0; i < v->n && !s; i++) {
        json_t *mark = json_pack("{si si sf ss}", "start", (int)v->marks[i].start, "end", (int)v->marks[i].end, "value", v->marks[i].value, "by", "chamber");
        if (!mark || json_array_append_new(marks, mark))
            s = OP_ERR_NOMEM;
    }
    return s;
}

op_status op_chamber_line(const op_chamber_episode *x, const op_chamber_reply *r, json_t **out, op_error *e)
{
    op_chamber_verdict v;
    *out = NULL;
    op_status s = op_chamber_judge(x, r->text, &v, e);
    if (s)
        return s;
    json_t *tags = json_copy(x->tags);
    json_t *line = json_pack("{s:o, s:[{ss ss}], ss, s:o}", "id", json_sprintf("chamber-%llu", (unsigned long long)x->index), "messages", "role", "user",
                             "content", x->prompt, "response", r->text, "tags", tags);
    s = !line || json_object_set_new(tags, "habit", json_string(r->habit ? r->habit : "right")) ? OP_ERR_NOMEM : add_marks(line, &v);
    op_chamber_verdict_release(&v);
    if (s) {
        json_decref(line);
        return op_error_set(e, s, "out of memory for a line of the chamber");
    }
    *out = line;
    return OP_OK;
}
