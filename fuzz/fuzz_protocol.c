/* A protocol file; lines at its head that begin with '=' are words of the command line, key=value. What was resolved must resolve again to the same. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/yaml_json.h"
#include "trial/session_parts.h"

/* In the place of src/trial/trainee.c and lesson.c, which need models. */
op_status op_trainee_check(const op_trainee_options *o, op_error *e)
{
    return o->model && o->output_dir ? OP_OK : op_error_set(e, OP_ERR_ARG, "key \"model\" or \"output_dir\" is not set");
}

op_lesson_options op_lesson_defaults(void)
{
    return (op_lesson_options){.kto_weight = 1, .desirable = 1, .undesirable = 1};
}

typedef struct settings {
    int64_t span;
    bool branch;
    char *text;
} settings;

static const op_option table[] = {
    {"span|width", OP_OPTION_INT, offsetof(settings, span), "1", 0, 100, NULL, "tokens"},
    {"branch", OP_OPTION_BOOL, offsetof(settings, branch), "true", 0, 0, NULL, "or not"},
    {"deep.text", OP_OPTION_STRING, offsetof(settings, text), NULL, 0, 0, NULL, "words"},
    {0},
};

static const op_method plain = {.name = "plain", .help = ""}, rich = {.name = "rich", .help = "", .table = table, .settings_size = sizeof(settings)};
static const op_method *const methods[] = {&plain, &rich, NULL};
static const op_session_kit kit = {.methods = methods};

static void read_again(const op_protocol *p)
{
    op_protocol again;
    op_error e = {0};
    json_t *root = json_deep_copy(p->root);
    if (!root || op_protocol_from_json(&again, root, "again", &kit, NULL, 0, &e) || again.n != p->n || strcmp(again.hash, p->hash) != 0)
        abort();
    for (size_t i = 0; i < p->n; i++)
        if (again.stages[i].stage.rounds != p->stages[i].stage.rounds || strcmp(again.stages[i].stage.name, p->stages[i].stage.name) != 0)
            abort();
    op_protocol_release(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    enum { WORDS = 8 };
    const char *words[WORDS];
    size_t n_words = 0;
    op_error e = {0};
    json_t *root;
    char *text = malloc(n + 1), *at = text;
    memcpy(text, data, n);
    text[n] = 0;
    for (char *end; *at == '=' && n_words < WORDS && (end = strchr(at, '\n')); at = end + 1) {
        *end = 0;
        words[n_words++] = at + 1;
    }
    if (!op_yaml_to_json(&root, at, n - (size_t)(at - text), "x.yaml", &e)) {
        op_protocol p;
        op_status status = op_protocol_from_json(&p, root, "x.yaml", &kit, words, n_words, &e);
        if (status ? !*e.message || e.code != status : !p.n)
            abort();
        if (!status)
            read_again(&p);
        op_protocol_release(&p);
    } else if (!*e.message) {
        abort();
    }
    free(text);
    return 0;
}
