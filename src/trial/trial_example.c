/* A trial as an example for supervised training with signed weights. */
#include <string.h>

#include <operant/trial.h>

#include "base/mem.h"

op_status op_trial_example(op_example *out, const json_t *line, const op_chat *chat, const char *name, op_error *e)
{
    op_trial t;
    *out = (op_example){0};
    op_status s = op_trial_from_json(&t, line, chat->tokenizer, chat, name, e);
    if (s)
        return s;
    size_t n = (size_t)t.n_prompt + (size_t)t.n_response;
    out->ids = op_alloc_array(n, sizeof *out->ids);
    out->weights = op_alloc_zero(n, sizeof *out->weights);
    if (out->ids && out->weights) {
        out->n = (int32_t)n;
        memcpy(out->ids, t.prompt, (size_t)t.n_prompt * sizeof *out->ids);
        memcpy(out->ids + t.n_prompt, t.response, (size_t)t.n_response * sizeof *out->ids);
        op_trial_token_marks(&t, out->weights + t.n_prompt);
        for (size_t i = (size_t)t.n_prompt; t.has_reward && i < n; i++)
            out->weights[i] += (float)t.reward;
    } else {
        op_example_release(out);
        s = op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
    }
    op_trial_release(&t);
    return s;
}
