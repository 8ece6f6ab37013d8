/* The world's own tokenizer: byte pairs merged over the world's own words, until every word is one token. */
#include "chamber/merges.h"
#include "chamber/parts.h"

enum { EPISODES = 3000, VOCABULARY_MAX = 1500 };

static const char *const special[] = {"<|user|>", "<|me|>", "<|end|>", "<|pad|>", "<|reset|>"}; /* the last: for methods that take words back */
enum { N_SPECIAL = 5 };

static const char template[] =
    "{% for message in messages %}{{ ('<|me|>' if message['role'] == 'assistant' else '<|user|>') + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|me|>' }}{% endif %}";

static op_status read_world(merges *m, op_error *e)
{
    op_chamber_options o;
    op_chamber *c = NULL;
    op_status s = op_config_init(&o, op_chamber_table, e);
    if (s)
        return s;
    o.settings = OP_CHAMBER_BOTH;
    o.distractors = o.misleading = 0.4;
    o.distractor_strength = 3;
    o.chain_max = 12;
    o.numbers = 20;
    s = op_chamber_open(&c, &o, e);
    for (uint64_t i = 0; i < EPISODES && !s; i++) {
        op_chamber_episode x;
        s = op_chamber_make(c, i, &x, e);
        if (s)
            break;
        s = merges_add(m, x.prompt, e);
        s = s ? s : merges_add(m, x.right.text, e);
        for (int k = 0; k < x.n_wrong && !s; k++)
            s = merges_add(m, x.wrong[k].text, e);
        op_chamber_release(&x);
    }
    op_chamber_close(c);
    op_config_release(&o, op_chamber_table);
    return s;
}

op_status op_chamber_tokenizer(op_tokenizer **out, op_error *e)
{
    *out = NULL;
    merges *m;
    op_status s = merges_new(&m, e);
    if (s)
        return s;
    s = read_world(m, e);
    s = s ? s : merges_learn(m, VOCABULARY_MAX, special, N_SPECIAL, out, e);
    s = s ? s : merges_dress(*out, template, op_tokenizer_find(*out, "<|end|>"), op_tokenizer_find(*out, "<|pad|>"), e);
    if (s) {
        op_tokenizer_free(*out);
        *out = NULL;
    }
    merges_free(m);
    return s;
}
