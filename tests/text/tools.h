/* What the tests of text share besides: fixtures, tokenizers, templates, JSON. */
#ifndef OP_TESTS_TEXT_TOOLS_H
#define OP_TESTS_TEXT_TOOLS_H

#include <operant/dataset.h>

#include "../common.h"
#include "io/json.h"

/* dir/name; good until the fourth call from now. */
static inline const char *path_in(const char *dir, const char *name)
{
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", dir, name);
    return path;
}

static inline const char *fixture(const char *name)
{
    const char *dir = getenv("FIXTURES");
    return path_in(dir ? dir : "tests/text/fixtures", name);
}

static inline const char *put_text(const char *name, const char *text)
{
    return put_file(name, text, strlen(text));
}

static inline void check(op_status s, const op_error *e)
{
    if (s)
        fail_msg("%s", e->message);
}

static inline op_tokenizer *open_kind(const char *kind)
{
    char name[64];
    op_error e;
    op_tokenizer *t;
    snprintf(name, sizeof name, "%s.json", kind);
    check(op_tokenizer_open(&t, fixture(name), &e), &e);
    return t;
}

static inline op_template *parse_template(const char *source)
{
    op_error e;
    op_template *t;
    check(op_template_parse(&t, source, strlen(source), &e), &e);
    return t;
}

static inline json_t *parse_json(const char *text)
{
    op_error e;
    json_t *v;
    check(op_json_parse(&v, text, strlen(text), "test", &e), &e);
    return v;
}

#define CHATML                                                                                                                  \
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"                    \
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

#endif
