/* operant inspect: describes a model file or directory. */
#include <stdlib.h>
#include <string.h>

#include <operant/file.h>
#include <operant/tensors.h>

#include "cli/cli.h"

static json_t *describe_tensors(const op_tensors *t)
{
    json_t *list = json_array();
    for (size_t i = 0; i < op_tensors_count(t); i++) {
        const op_tensor *x = op_tensors_at(t, i);
        json_t *shape = json_array();
        for (int r = 0; r < x->rank; r++)
            json_array_append_new(shape, json_integer(x->shape[r]));
        json_array_append_new(list, json_pack("{ss ss so sI}", "name", x->name, "dtype", op_dtype_name(x->dtype), "shape", shape, "bytes",
                                              (json_int_t)x->bytes));
    }
    return list;
}

/* The whole file as one object: format, totals, metadata, tensors. */
static json_t *describe(const op_tensors *t, const char *path)
{
    int64_t bytes = 0, count = 0, by_type[OP_DTYPE_COUNT] = {0};
    for (size_t i = 0; i < op_tensors_count(t); i++) {
        const op_tensor *x = op_tensors_at(t, i);
        bytes += (int64_t)x->bytes;
        count += x->count;
        by_type[x->dtype]++;
    }
    json_t *types = json_object();
    for (int i = 0; i < OP_DTYPE_COUNT; i++)
        if (by_type[i])
            json_object_set_new(types, op_dtype_name((op_dtype)i), json_integer(by_type[i]));
    return json_pack("{ss ss sI sI sI so so so}", "path", path, "format", op_tensors_get_format(t) == OP_GGUF ? "gguf" : "safetensors", "tensors",
                     (json_int_t)op_tensors_count(t), "elements", (json_int_t)count, "bytes", (json_int_t)bytes, "types", types, "metadata",
                     op_tensors_meta_json(t, 8), "table", describe_tensors(t));
}

static void print_value(const char *key, const json_t *v)
{
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    if (text)
        printf("  %-42s %.120s%s\n", key, text, strlen(text) > 120 ? "..." : "");
    free(text);
}

static void print_description(const json_t *j)
{
    const char *key;
    json_t *v;
    size_t i;
    printf("%s: %s, %lld tensors, %.1f million elements, %.1f MB\n", json_string_value(json_object_get(j, "path")),
           json_string_value(json_object_get(j, "format")), (long long)json_integer_value(json_object_get(j, "tensors")),
           (double)json_integer_value(json_object_get(j, "elements")) / 1e6, (double)json_integer_value(json_object_get(j, "bytes")) / 1e6);
    puts("metadata");
    json_object_foreach(json_object_get(j, "metadata"), key, v)
        print_value(key, v);
    puts("tensors of each type");
    json_object_foreach(json_object_get(j, "types"), key, v)
        print_value(key, v);
    puts("tensors");
    json_array_foreach(json_object_get(j, "table"), i, v)
    {
        char *shape = json_dumps(json_object_get(v, "shape"), JSON_COMPACT);
        printf("  %-64s %-5s %-14s %12lld\n", json_string_value(json_object_get(v, "name")), json_string_value(json_object_get(v, "dtype")), shape,
               (long long)json_integer_value(json_object_get(v, "bytes")));
        free(shape);
    }
}

/* Where the tensors of a directory are: the model's own, or an adapter's. */
static char *tensors_of(const char *path)
{
    char *adapter = op_path_is_dir(path) ? op_path_join(path, "adapter_model.safetensors") : NULL;
    if (adapter && op_path_exists(adapter))
        return adapter;
    free(adapter);
    return strdup(path);
}

static int run(const cli_command *c, int argc, char **argv)
{
    cli_args a = cli_parse(c, NULL, argc, argv);
    if (a.n_words != 1)
        return cli_usage_error(c, "one file or directory is needed%s", "");
    op_error e = {0};
    op_tensors *t;
    char *path = tensors_of(a.words[0]);
    op_status s = op_tensors_open(&t, path, &e);
    json_t *j = s ? NULL : describe(t, path);
    if (!s && a.json)
        json_dumpf(j, stdout, JSON_INDENT(1));
    else if (!s)
        print_description(j);
    op_tokenizer *tok = NULL;
    op_error ignored;
    if (!s && !a.json && !op_tokenizer_open(&tok, a.words[0], &ignored))
        printf("tokenizer: %d tokens, bos %d, eos %d, pad %d, %s\n", op_tokenizer_vocab_size(tok), op_tokenizer_bos(tok), op_tokenizer_eos(tok),
               op_tokenizer_pad(tok), op_tokenizer_chat_template(tok) ? "with a chat template" : "no chat template");
    op_tokenizer_free(tok);
    json_decref(j);
    if (!s)
        op_tensors_close(t);
    free(path);
    return s ? cli_fail(&e) : 0;
}

const cli_command cli_inspect = {
    "inspect", "describe a model file or directory", "PATH [--json]",
    "Format, metadata, every tensor with type, shape and bytes, and the tokenizer: for .safetensors, sharded directories, .gguf and adapters.\n\n"
    "example:\n  operant inspect models/SmolLM2-135M-Instruct.Q4_1.gguf", NULL, run};
