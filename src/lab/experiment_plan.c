/* The cells of an experiment: their commands, the files these read, and the key that both make. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <operant/jsonl.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "lab/experiment_parts.h"
#include "lab/view.h"
#include "lab/yaml_get.h"

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for the experiment");
}

/* ---- commands ---- */

/* What a name stands for: the smallest version wins over the arm, the arm over the file. */
static const char *lookup(const op_experiment *x, const json_t *arm, const char *group, const char *name)
{
    const json_t *places[] = {x->small ? json_object_get(x->spec, "small") : NULL, arm, x->spec};
    for (size_t i = 0; i < 3; i++) {
        const char *value = json_string_value(json_object_get(json_object_get(places[i], group), name));
        if (value)
            return value;
    }
    return NULL;
}

/* The text of ${name}; NULL: unknown. ${cell} and ${prepared} stay as they are. */
static const char *variable(const op_experiment *x, const json_t *arm, int64_t seed, const char *name, char room[320])
{
    if (!strcmp(name, "cell") || !strcmp(name, "prepared"))
        snprintf(room, 320, "${%s}", name);
    else if (!strcmp(name, "seed"))
        snprintf(room, 320, "%lld", (long long)seed);
    else if (!strcmp(name, "threads"))
        snprintf(room, 320, "%lld", (long long)json_integer_value(json_object_get(x->spec, "threads")));
    else if (!strcmp(name, "arm"))
        return op_view_string(arm, "name");
    else if (!strcmp(name, "here")) {
        const char *slash = strrchr(x->path, '/');
        if (slash && slash - x->path >= 320)
            return NULL;
        snprintf(room, 320, "%.*s", slash ? (int)(slash - x->path) : 1, slash ? x->path : ".");
    } else {
        const char *value = lookup(x, arm, "vars", name);
        return value ? value : lookup(x, arm, "set", name);
    }
    return room;
}

/* Appends `word` with its variables filled in. */
static op_status fill(const op_experiment *x, const json_t *arm, int64_t seed, const char *word, op_buf *out, op_error *e)
{
    op_status status = OP_OK;
    while (*word && !status) {
        const char *mark = strstr(word, "${"), *end = mark ? strchr(mark, '}') : NULL;
        if (!end)
            return op_buf_puts(out, word) ? no_memory(e) : OP_OK;
        char name[80], room[320];
        snprintf(name, sizeof name, "%.*s", (int)(end - mark - 2 > 79 ? 79 : end - mark - 2), mark + 2);
        const char *value = variable(x, arm, seed, name, room);
        if (!value)
            return op_error_set(e, OP_ERR_FORMAT, "arm \"%s\": a command names ${%s}, which neither vars nor set has", op_view_string(arm, "name"), name);
        if (op_buf_add(out, word, (size_t)(mark - word)) || op_buf_puts(out, value))
            status = no_memory(e);
        word = end + 1;
    }
    return status;
}

static op_status add_word(json_t *words, const char *word, op_error *e)
{
    return json_array_append_new(words, json_string(word)) ? no_memory(e) : OP_OK;
}

/* ${set}: every setting of the file and of the arm as a word key=value. */
static op_status add_settings(const op_experiment *x, const json_t *arm, int64_t seed, json_t *words, op_error *e)
{
    const json_t *places[] = {x->spec, arm, x->small ? json_object_get(x->spec, "small") : NULL};
    json_t *merged = json_object(), *value;
    op_status status = merged ? OP_OK : no_memory(e);
    for (size_t i = 0; !status && i < 3; i++)
        if (places[i] && json_object_get(places[i], "set") && json_object_update(merged, json_object_get(places[i], "set")))
            status = no_memory(e);
    const char *key;
    json_object_foreach(merged, key, value) {
        op_buf word;
        op_buf_init(&word, 1 << 16);
        if (!status && op_buf_printf(&word, "%s=", key))
            status = no_memory(e);
        if (!status)
            status = fill(x, arm, seed, json_string_value(value), &word, e);
        if (!status)
            status = add_word(words, word.data, e);
        op_buf_release(&word);
    }
    json_decref(merged);
    return status;
}

static op_status fill_command(const op_experiment *x, const json_t *arm, int64_t seed, const json_t *command, json_t *words, op_error *e)
{
    size_t i;
    json_t *word;
    op_status status = OP_OK;
    json_array_foreach((json_t *)command, i, word) {
        if (status)
            break;
        if (!strcmp(json_string_value(word), "${set}")) {
            status = add_settings(x, arm, seed, words, e);
            continue;
        }
        op_buf out;
        op_buf_init(&out, 1 << 16);
        status = fill(x, arm, seed, json_string_value(word), &out, e);
        if (!status)
            status = add_word(words, out.len ? out.data : "", e);
        op_buf_release(&out);
    }
    return status;
}

/* What a cell writes must be its own: two cells that share a directory would not repeat. */
static op_status check_outputs(const json_t *words, const char *place, op_error *e)
{
    static const char *const outputs[] = {"output_dir=", "output="};
    size_t i;
    json_t *word;
    json_array_foreach((json_t *)words, i, word)
        for (size_t k = 0; k < 2; k++)
            if (!strncmp(json_string_value(word), outputs[k], strlen(outputs[k])) && !strstr(json_string_value(word), place))
                return op_error_set(e, OP_ERR_FORMAT, "\"%.100s\": what a cell writes has to lie in %s", json_string_value(word), place);
    return OP_OK;
}

op_status op_cell_commands(const op_experiment *x, const json_t *arm, int64_t seed, const char *which, json_t **out, op_error *e)
{
    const json_t *commands = json_object_get(arm, which);
    if (!commands)
        commands = json_object_get(x->spec, which);
    *out = json_array();
    op_status status = *out ? OP_OK : no_memory(e);
    size_t i;
    json_t *command;
    json_array_foreach((json_t *)commands, i, command) {
        json_t *words = json_array();
        if (!status && (!words || json_array_append_new(*out, words)))
            status = no_memory(e);
        if (!status)
            status = fill_command(x, arm, seed, command, words, e);
        if (!status)
            status = check_outputs(words, !strcmp(which, "run") ? "${cell}" : "${prepared}", e);
    }
    if (status) {
        json_decref(*out);
        *out = NULL;
    }
    return status;
}

/* ---- files made from templates ---- */

static op_status fill_template(const op_experiment *x, const json_t *arm, int64_t seed, const char *path, op_buf *out, op_error *e)
{
    op_buf name, text;
    op_buf_init(&name, 1 << 16);
    op_buf_init(&text, OP_YAML_BYTES_MAX);
    op_status status = fill(x, arm, seed, path, &name, e);
    if (!status)
        status = op_file_read(name.data ? name.data : "", &text, e);
    if (!status && (status = fill(x, arm, seed, text.data, out, e)))
        op_error_prefix(e, "%.200s", name.data);
    op_buf_release(&name);
    op_buf_release(&text);
    return status;
}

op_status op_cell_files(const op_experiment *x, const json_t *arm, int64_t seed, json_t **out, op_error *e)
{
    const char *name;
    json_t *path;
    *out = json_object();
    op_status status = *out ? OP_OK : no_memory(e);
    json_object_foreach(json_object_get(x->spec, "templates"), name, path) {
        op_buf text;
        op_buf_init(&text, 2 * OP_YAML_BYTES_MAX);
        if (!status)
            status = fill_template(x, arm, seed, json_string_value(path), &text, e);
        if (!status && json_object_set_new(*out, name, json_string(text.data ? text.data : "")))
            status = no_memory(e);
        op_buf_release(&text);
    }
    if (status) {
        json_decref(*out);
        *out = NULL;
    }
    return status;
}

/* ---- inputs ---- */

static bool is_regular(const char *path)
{
    struct stat st;
    return !stat(path, &st) && S_ISREG(st.st_mode);
}

/* A model's directory; other directories are no inputs. */
static bool is_model_dir(const char *path)
{
    bool is = false;
    static const char *const marks[] = {"config.json", "adapter_config.json"};
    for (size_t i = 0; i < 2 && !is; i++) {
        char *mark = op_path_join(path, marks[i]);
        is = mark && is_regular(mark);
        op_free(mark);
    }
    return is;
}

static op_status hash_bytes(op_hasher *h, const char *path, op_error *e)
{
    op_map map;
    op_status status = op_map_open(&map, path, e);
    if (status)
        return status;
    op_hash_add(h, map.data, map.size);
    op_map_close(&map);
    return OP_OK;
}

static op_status hash_dir(op_hasher *h, const char *path, op_error *e)
{
    struct dirent **names;
    int n = scandir(path, &names, NULL, alphasort);
    op_status status = n < 0 ? op_error_set(e, OP_ERR_IO, "%s: cannot read this directory", path) : OP_OK;
    for (int i = 0; i < n; i++) {
        char *file = op_path_join(path, names[i]->d_name);
        if (!status && !file)
            status = no_memory(e);
        if (!status && is_regular(file)) {
            op_hash_add(h, names[i]->d_name, strlen(names[i]->d_name) + 1);
            status = hash_bytes(h, file, e);
        }
        op_free(file);
        free(names[i]);
    }
    if (n >= 0)
        free(names);
    return status;
}

typedef struct finder {
    json_t *hashes, *inputs;
    op_error *e;
} finder;

static op_status add_input(finder *f, const char *path);

/* A YAML file names other files, from where the program runs or from where the file lies; what is neither is no path. */
static op_status add_named_in(finder *f, yaml_document_t *doc, const char *beside)
{
    const char *slash = strrchr(beside, '/');
    op_status status = OP_OK;
    for (const yaml_node_t *node = doc->nodes.start; !status && node < doc->nodes.top; node++) {
        if (node->type != YAML_SCALAR_NODE)
            continue;
        status = add_input(f, op_yaml_text(node));
        op_buf path;
        op_buf_init(&path, 1 << 16);
        if (!status && slash && op_yaml_text(node)[0] != '/')
            status = op_buf_add(&path, beside, (size_t)(slash - beside) + 1) || op_buf_puts(&path, op_yaml_text(node)) ? no_memory(f->e) : add_input(f, path.data);
        op_buf_release(&path);
    }
    return status;
}

static op_status add_named_by(finder *f, const char *path)
{
    yaml_document_t doc;
    op_status status = op_yaml_open(&doc, path, NULL);
    if (status)
        return status == OP_ERR_NOMEM ? no_memory(f->e) : OP_OK; /* the command will say what is wrong with it */
    status = add_named_in(f, &doc, path);
    yaml_document_delete(&doc);
    return status;
}

static op_status add_named_by_files(finder *f, const json_t *files)
{
    const char *name;
    json_t *text;
    op_status status = OP_OK;
    json_object_foreach((json_t *)files, name, text) {
        yaml_document_t doc;
        if (status || op_yaml_load(&doc, json_string_value(text), json_string_length(text), name, NULL))
            continue;
        status = add_named_in(f, &doc, name);
        yaml_document_delete(&doc);
    }
    return status;
}

static op_status add_input(finder *f, const char *path)
{
    if (!*path || strstr(path, "${") || strlen(path) > 4000 || json_object_get(f->inputs, path))
        return OP_OK;
    bool dir = op_path_is_dir(path);
    if (dir ? !is_model_dir(path) : !is_regular(path))
        return OP_OK;
    op_status status = OP_OK;
    if (!json_object_get(f->hashes, path)) {
        char hex[OP_HASH_HEX];
        op_hasher h;
        op_hash_begin(&h);
        status = dir ? hash_dir(&h, path, f->e) : hash_bytes(&h, path, f->e);
        op_hash_end(&h, hex);
        if (!status && json_object_set_new(f->hashes, path, json_string(hex)))
            status = no_memory(f->e);
    }
    if (!status && json_object_set(f->inputs, path, json_object_get(f->hashes, path)))
        status = no_memory(f->e);
    size_t n = strlen(path);
    bool yaml = (n > 5 && !strcmp(path + n - 5, ".yaml")) || (n > 4 && !strcmp(path + n - 4, ".yml"));
    return status || !yaml ? status : add_named_by(f, path);
}

static op_status add_inputs(finder *f, const json_t *commands)
{
    size_t i, k;
    json_t *command, *word;
    op_status status = OP_OK;
    json_array_foreach((json_t *)commands, i, command)
        json_array_foreach(command, k, word) {
            const char *s = json_string_value(word), *value = strchr(s, '=');
            if (!k && !strcmp(s, "operant")) /* this program, not a file of its name; its version is in the key */
                continue;
            if (!status)
                status = add_input(f, s);
            if (!status && value)
                status = add_input(f, value + 1);
        }
    return status;
}

/* ---- keys ---- */

static op_status hash_json(const json_t *value, char hex[OP_HASH_HEX], op_error *e)
{
    op_buf text;
    op_buf_init(&text, OP_JSON_BYTES_MAX);
    op_status status = value && !op_json_append(&text, value) ? OP_OK : no_memory(e);
    if (!status)
        op_hash(text.data, text.len, hex);
    op_buf_release(&text);
    return status;
}

static op_status make_keys(op_cell *c, const op_experiment *x, const char *version, json_t *hashes, op_error *e)
{
    json_t *listed = json_object_get(x->spec, "inputs"), *path, *threads = json_object_get(x->spec, "threads");
    c->inputs = json_object();
    op_status status = c->inputs ? OP_OK : no_memory(e);
    finder f = {hashes, c->inputs, e};
    size_t i;
    json_array_foreach(listed, i, path) {
        if (!status)
            status = add_input(&f, json_string_value(path));
        if (!status && !json_object_get(c->inputs, json_string_value(path)))
            status = op_error_set(e, OP_ERR_IO, "%s: input \"%s\": expected a file or a model's directory", x->path, json_string_value(path));
    }
    if (!status)
        status = add_inputs(&f, c->prepare);
    json_t *what = status ? NULL : json_pack("{ss sO sO sO}", "version", version, "threads", threads, "commands", c->prepare, "inputs", c->inputs);
    if (!status)
        status = hash_json(what, c->prepare_key, e);
    json_decref(what);
    if (!status)
        status = add_inputs(&f, c->run);
    if (!status)
        status = add_named_by_files(&f, c->files);
    what = status ? NULL : json_pack("{ss sO ss sO sO sO}", "version", version, "threads", threads, "prepared", c->prepare_key, "commands", c->run, "files", c->files,
                                     "inputs", c->inputs);
    if (!status)
        status = hash_json(what, c->key, e);
    json_decref(what);
    return status;
}

op_status op_cell_plan(op_cell *out, const op_experiment *x, const json_t *arm, int64_t seed, const char *version, json_t *hashes, op_error *e)
{
    *out = (op_cell){.arm = arm, .seed = seed};
    op_status status = op_cell_commands(x, arm, seed, "prepare", &out->prepare, e);
    if (!status)
        status = op_cell_commands(x, arm, seed, "run", &out->run, e);
    if (!status)
        status = op_cell_files(x, arm, seed, &out->files, e);
    if (!status)
        status = make_keys(out, x, version, hashes, e);
    if (status)
        op_cell_release(out);
    return status;
}

void op_cell_release(op_cell *c)
{
    json_decref(c->prepare);
    json_decref(c->run);
    json_decref(c->files);
    json_decref(c->inputs);
    *c = (op_cell){0};
}

/* ---- files of results ---- */

char *op_experiment_dir(const op_experiment *x, const char *results)
{
    return op_path_join(results, op_view_string(x->spec, "name"));
}

char *op_cell_result_path(const op_experiment *x, const char *results, const json_t *arm, int64_t seed)
{
    char name[120];
    snprintf(name, sizeof name, "%s-%lld.json", op_view_string(arm, "name"), (long long)seed);
    char *dir = op_experiment_dir(x, results), *path = dir ? op_path_join(dir, name) : NULL;
    op_free(dir);
    return path;
}

op_status op_cell_read(const op_experiment *x, const char *results, const json_t *arm, int64_t seed, json_t **out, op_error *e)
{
    *out = NULL;
    char *path = op_cell_result_path(x, results, arm, seed);
    op_status status = !path ? no_memory(e) : op_path_exists(path) ? op_json_read(out, path, e) : OP_OK;
    if (!status && *out && (!json_is_object(json_object_get(*out, "figures")) || !*op_view_string(*out, "key"))) {
        status = op_error_set(e, OP_ERR_FORMAT, "%s: expected a finished cell, with \"key\" and \"figures\"", path);
        json_decref(*out);
        *out = NULL;
    }
    op_free(path);
    return status;
}
