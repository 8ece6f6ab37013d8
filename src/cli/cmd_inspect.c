/* operant inspect: describes a model file, a model directory, an adapter or a run directory. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include <operant/file.h>
#include <operant/tensors.h>

#include "cli/cli.h"

static json_t *list_tensors(const op_tensors *t)
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

static void describe_tensors(json_t *out, const op_tensors *t)
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
    json_object_set_new(out, "format", json_string(op_tensors_get_format(t) == OP_GGUF ? "gguf" : "safetensors"));
    json_object_set_new(out, "elements", json_integer(count));
    json_object_set_new(out, "bytes", json_integer(bytes));
    json_object_set_new(out, "types", types);
    json_object_set_new(out, "metadata", op_tensors_meta_json(t, 8));
    json_object_set_new(out, "tensors", list_tensors(t));
}

/* Puts the JSON file dir/name, if there is one, under `key`. */
static void add_json_file(json_t *out, const char *key, const char *dir, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    json_t *j = json_load_file(path, 0, NULL);
    if (j)
        json_object_set_new(out, key, j);
}

static json_t *list_checkpoints(const char *dir)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/checkpoints", dir);
    json_t *list = json_array();
    struct dirent **names;
    int n = scandir(path, &names, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        if (!strncmp(names[i]->d_name, "step-", 5))
            json_array_append_new(list, json_string(names[i]->d_name));
        free(names[i]);
    }
    if (n >= 0)
        free(names);
    return list;
}

/* The last line of metrics.jsonl: how far the run is. */
static json_t *last_metrics(const char *dir)
{
    char path[4096], *line = NULL;
    size_t room = 0;
    json_t *last = NULL;
    snprintf(path, sizeof path, "%s/metrics.jsonl", dir);
    FILE *f = fopen(path, "r");
    while (f && getline(&line, &room, f) > 0) {
        json_t *j = json_loads(line, 0, NULL);
        if (j) {
            json_decref(last);
            last = j;
        }
    }
    if (f)
        fclose(f);
    free(line);
    return last;
}

static void describe_dir(json_t *out, const char *dir)
{
    char path[4096];
    add_json_file(out, "config", dir, "config.json");
    add_json_file(out, "adapter", dir, "adapter_config.json");
    snprintf(path, sizeof path, "%s/config.yaml", dir);
    if (!op_path_exists(path))
        return;
    json_t *run = json_pack("{so}", "checkpoints", list_checkpoints(dir)), *metrics = last_metrics(dir);
    add_json_file(run, "env", dir, "env.json");
    if (metrics)
        json_object_set_new(run, "last_metrics", metrics);
    json_object_set_new(out, "run", run);
}

static void describe_tokenizer(json_t *out, const char *path)
{
    op_tokenizer *t;
    if (op_tokenizer_open(&t, path, NULL))
        return;
    json_object_set_new(out, "tokenizer", json_pack("{si si si si si sb}", "tokens", op_tokenizer_vocab_size(t), "bos", op_tokenizer_bos(t), "eos",
                                                    op_tokenizer_eos(t), "pad", op_tokenizer_pad(t), "unk", op_tokenizer_unk(t), "chat_template",
                                                    op_tokenizer_chat_template(t) != NULL));
    op_tokenizer_free(t);
}

static void print_object(const char *title, const json_t *object)
{
    const char *key;
    json_t *v;
    if (!object)
        return;
    puts(title);
    json_object_foreach((json_t *)object, key, v)
    {
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(9));
        if (text)
            printf("  %-42s %.120s%s\n", key, text, strlen(text) > 120 ? "..." : "");
        free(text);
    }
}

static void print_description(const json_t *j)
{
    size_t i;
    json_t *v, *tensors = json_object_get(j, "tensors");
    printf("%s: %s", json_string_value(json_object_get(j, "path")), json_string_value(json_object_get(j, "format")));
    if (tensors)
        printf(", %zu tensors, %.1f million elements, %.1f MB", json_array_size(tensors), (double)json_integer_value(json_object_get(j, "elements")) / 1e6,
               (double)json_integer_value(json_object_get(j, "bytes")) / 1e6);
    putchar('\n');
    static const char *const parts[] = {"metadata", "config", "adapter", "run", "tokenizer", "types"};
    for (int k = 0; k < 6; k++)
        print_object(parts[k], json_object_get(j, parts[k]));
    if (tensors)
        puts("tensors");
    json_array_foreach(tensors, i, v)
    {
        char *shape = json_dumps(json_object_get(v, "shape"), JSON_COMPACT);
        printf("  %-64s %-5s %-14s %12lld\n", json_string_value(json_object_get(v, "name")), json_string_value(json_object_get(v, "dtype")),
               shape ? shape : "", (long long)json_integer_value(json_object_get(v, "bytes")));
        free(shape);
    }
}

static int run(const cli_command *c, int argc, char **argv)
{
    cli_args a = cli_parse(c, NULL, argc, argv);
    if (a.n_words != 1)
        return cli_usage_error(c, "one file or directory is needed");
    const char *path = a.words[0];
    op_error e = {0};
    op_tensors *t = NULL;
    json_t *out = json_pack("{ss ss}", "path", path, "format", "run directory, no result yet");
    if (op_path_is_dir(path))
        describe_dir(out, path);
    op_status s = op_tensors_open(&t, path, &e);
    if (!s)
        describe_tensors(out, t);
    else if (json_object_get(out, "run"))
        s = OP_OK; /* still training: there are no weights yet */
    if (!s)
        describe_tokenizer(out, path);
    if (!s && a.json)
        cli_print_json(out);
    else if (!s)
        print_description(out);
    json_decref(out);
    op_tensors_close(t);
    return s ? cli_fail(&e) : 0;
}

const cli_command cli_inspect = {
    "inspect", "describe a model file or directory", "PATH [--json]",
    "Format, metadata, configuration, tokenizer, and every tensor with type, shape and bytes: for .safetensors, sharded directories, .gguf,\n"
    "adapters, and run directories with their checkpoints and latest metrics.\n\n"
    "examples:\n  operant inspect models/SmolLM2-135M-Instruct.Q4_1.gguf\n  operant inspect runs/ask-why --json",
    NULL, run, NULL};
