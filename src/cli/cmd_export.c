/* operant export: a model for transformers, PEFT or llama.cpp. */
#include <stddef.h>

#include <operant/export.h>

#include "cli/cli.h"

typedef struct options {
    char *model, *output;
    int format, dtype;
} options;

#define AT(field) offsetof(options, field)
static const op_option table[] = {
    {"model", OP_OPTION_STRING, AT(model), NULL, 0, 0, NULL, "model directory, run directory or .gguf file"},
    {"format", OP_OPTION_CHOICE, AT(format), "hf", 0, 0, "hf|peft|gguf", "hf: a directory for transformers; peft: an adapter; gguf: a file for llama.cpp"},
    {"output", OP_OPTION_STRING, AT(output), NULL, 0, 0, NULL, "directory to write, for gguf the file"},
    {"dtype", OP_OPTION_CHOICE, AT(dtype), "bf16", 0, 0, "f32|f16|bf16|q8_0", "type of the matrices; q8_0 for gguf only"},
    {0}};

static int run(const cli_command *c, int argc, char **argv)
{
    static const op_dtype types[] = {OP_F32, OP_F16, OP_BF16, OP_Q8_0};
    options o;
    cli_args a = cli_parse(c, &o, argc, argv);
    op_error e = {0};
    int code;
    if (a.n_words)
        code = cli_usage_error(c, "unexpected argument \"%s\"", a.words[0]);
    else if (!o.model || !o.output)
        code = cli_usage_error(c, "model=MODEL and output=PATH are needed");
    else
        code = op_export(o.model, (op_export_format)o.format, o.output, types[o.dtype], &e) ? cli_fail(&e) : 0;
    if (!code && a.json) {
        json_t *j = json_pack("{ss}", "output", o.output);
        cli_print_json(j);
        json_decref(j);
    } else if (!code) {
        printf("wrote %s\n", o.output);
    }
    op_config_release(&o, c->table);
    return code;
}

const cli_command cli_export = {
    "export", "write a model for transformers, PEFT or llama.cpp", "--format hf|peft|gguf model=MODEL output=PATH",
    "An adapter is folded into the weights for hf and gguf.\n\n"
    "examples:\n"
    "  operant export --format gguf model=runs/ask-why output=ask-why.gguf dtype=q8_0\n"
    "  operant export --format hf model=models/SmolLM2-135M-Instruct.Q4_1.gguf output=smollm2",
    table, run, NULL};
