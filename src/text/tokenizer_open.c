/* Opens the tokenizer of a model by path, with what the files beside tokenizer.json say. */
#include <string.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "text/tokenizer_impl.h"

#define TEXT_MAX ((size_t)256 << 20)

static int32_t token_id(const op_tokenizer *t, const char *text)
{
    int32_t id = op_tokenizer_find(t, text);
    size_t n = strlen(text);
    for (int32_t i = 0; id < 0 && i < t->texts.n; i++) {
        size_t len;
        const char *other = op_strings_get(&t->texts, i, &len);
        if (len == n && memcmp(other, text, n) == 0)
            id = i;
    }
    return id;
}

/* "bos_token": "<s>" or {"content": "<s>", ...} */
static void read_special(const op_tokenizer *t, const json_t *config, const char *key, int32_t *out)
{
    const json_t *value = json_object_get(config, key);
    const char *text = json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
    if (text)
        *out = token_id(t, text);
}

/* "chat_template": a string, or [{"name": "default", "template": "..."}, ...] */
static op_status read_template(op_tokenizer *t, const json_t *value)
{
    const json_t *item, *chosen = NULL;
    size_t i;
    if (json_is_string(value))
        chosen = value;
    json_array_foreach(value, i, item) {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && strcmp(name, "default") == 0)
            chosen = json_object_get(item, "template");
    }
    if (!json_is_string(chosen))
        return OP_OK;
    op_free(t->chat_template);
    t->chat_template = op_strdup(json_string_value(chosen));
    return t->chat_template ? OP_OK : OP_ERR_NOMEM;
}

typedef op_status (*use_fn)(op_tokenizer *t, json_t *config);

static op_status use_config(op_tokenizer *t, json_t *config)
{
    read_special(t, config, "bos_token", &t->bos);
    read_special(t, config, "eos_token", &t->eos);
    read_special(t, config, "pad_token", &t->pad);
    read_special(t, config, "unk_token", &t->unk);
    return read_template(t, json_object_get(config, "chat_template"));
}

static op_status keep_config(op_tokenizer *t, json_t *config)
{
    t->config = json_incref(config);
    return use_config(t, config);
}

/* Reads dir/file if it is there. */
static op_status use_file(op_tokenizer *t, const char *dir, const char *file, use_fn use, op_error *e)
{
    char *path = op_path_join(dir, file);
    json_t *config = NULL;
    op_status s = path ? OP_OK : OP_ERR_NOMEM;
    if (!s && op_path_exists(path)) {
        s = op_json_read(&config, path, e);
        s = s ? s : use(t, config);
    }
    json_decref(config);
    op_free(path);
    return s;
}

static op_status use_jinja(op_tokenizer *t, const char *dir, op_error *e)
{
    char *path = op_path_join(dir, "chat_template.jinja");
    op_buf text;
    op_buf_init(&text, TEXT_MAX);
    op_status s = path ? OP_OK : OP_ERR_NOMEM;
    if (!s && op_path_exists(path)) {
        s = op_file_read(path, &text, e);
        if (!s) {
            op_free(t->chat_template);
            t->chat_template = op_strndup(text.data ? text.data : "", text.len);
            s = t->chat_template ? OP_OK : OP_ERR_NOMEM;
        }
    }
    op_buf_release(&text);
    op_free(path);
    return s;
}

/* tokenizer.json at `path`, and its neighbours in `dir`. */
static op_status open_json(op_tokenizer **out, const char *path, const char *dir, op_error *e)
{
    op_buf json;
    op_buf_init(&json, TEXT_MAX);
    op_status s = op_file_read(path, &json, e);
    s = s ? s : op_tokenizer_from_json(out, json.data ? json.data : "", json.len, path, e);
    op_buf_release(&json);
    s = s ? s : use_file(*out, dir, "special_tokens_map.json", use_config, e);
    s = s ? s : use_file(*out, dir, "tokenizer_config.json", keep_config, e);
    s = s ? s : use_file(*out, dir, "chat_template.json", use_config, e);
    return s ? s : use_jinja(*out, dir, e);
}

static op_status open_gguf(op_tokenizer **out, const char *path, op_error *e)
{
    op_tensors *g;
    op_status s = op_tensors_open(&g, path, e);
    if (s)
        return s;
    s = op_tokenizer_from_gguf(out, g, e);
    op_tensors_close(g);
    return s ? op_error_prefix(e, "%s", path), s : s;
}

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && strcmp(s + n - m, tail) == 0;
}

op_status op_tokenizer_open(op_tokenizer **out, const char *model_path, op_error *e)
{
    *out = NULL;
    op_status s;
    if (op_path_is_dir(model_path)) {
        char *path = op_path_join(model_path, "tokenizer.json");
        s = path ? open_json(out, path, model_path, e) : OP_ERR_NOMEM;
        op_free(path);
    } else if (ends_with(model_path, ".json")) {
        const char *slash = strrchr(model_path, '/');
        char *dir = slash ? op_strndup(model_path, (size_t)(slash - model_path) + 1) : op_strdup(".");
        s = dir ? open_json(out, model_path, dir, e) : OP_ERR_NOMEM;
        op_free(dir);
    } else {
        s = open_gguf(out, model_path, e);
    }
    if (s) {
        op_tokenizer_free(*out);
        *out = NULL;
        if (s == OP_ERR_NOMEM)
            op_error_set(e, s, "%s: out of memory while opening the tokenizer", model_path);
    }
    return s;
}
