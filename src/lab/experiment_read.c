/* The experiment file: YAML to a checked `spec`. */
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "lab/experiment_parts.h"
#include "lab/parts.h"
#include "lab/view.h"
#include "lab/yaml_get.h"

/* The first failure sticks. */
typedef struct reader {
    yaml_document_t doc;
    const char *name;
    op_status status;
    op_error *e;
} reader;

static void complain(reader *r, const yaml_node_t *node, const char *what, const char *expected)
{
    if (!r->status)
        r->status = op_error_set(r->e, OP_ERR_FORMAT, "%s: line %d: %.80s: expected %s", r->name, op_yaml_line(node), what, expected);
}

/* The value of a key, whatever it is; NULL: it is not there. */
static const yaml_node_t *find(reader *r, const yaml_node_t *map, const char *key)
{
    const yaml_node_t *value = NULL;
    for (const yaml_node_pair_t *p = map->data.mapping.pairs.start; p < map->data.mapping.pairs.top; p++)
        if (!strcmp(op_yaml_text(yaml_document_get_node(&r->doc, p->key)), key))
            value = yaml_document_get_node(&r->doc, p->value);
    return value;
}

/* The value of a key; NULL when it is not there (an error if `required`) or not of this type. */
static const yaml_node_t *get(reader *r, const yaml_node_t *map, const char *key, yaml_node_type_t type, bool required)
{
    const yaml_node_t *node = NULL;
    if (r->status || (!required && !find(r, map, key)))
        return NULL;
    r->status = op_yaml_get(&r->doc, map, key, type, &node, r->name, r->e);
    return r->status ? NULL : node;
}

static void put(reader *r, json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, value) && !r->status)
        r->status = op_error_set(r->e, OP_ERR_NOMEM, "%s: out of memory", r->name);
}

static void append(reader *r, json_t *list, json_t *value)
{
    if (json_array_append_new(list, value) && !r->status)
        r->status = op_error_set(r->e, OP_ERR_NOMEM, "%s: out of memory", r->name);
}

static void check_keys(reader *r, const yaml_node_t *map, const char *const *keys)
{
    if (!r->status)
        r->status = op_yaml_check_keys(&r->doc, map, keys, r->name, r->e);
}

/* object.key = the text there, or `fallback` (NULL: required). */
static const char *text(reader *r, json_t *object, const yaml_node_t *map, const char *key, const char *fallback)
{
    const yaml_node_t *node = get(r, map, key, YAML_SCALAR_NODE, !fallback);
    put(r, object, key, json_string(node ? op_yaml_text(node) : fallback ? fallback : ""));
    return op_view_string(object, key);
}

/* A list of texts. */
static json_t *texts(reader *r, const yaml_node_t *list, const char *what)
{
    json_t *out = json_array();
    for (const yaml_node_item_t *i = list->data.sequence.items.start; i < list->data.sequence.items.top; i++) {
        const yaml_node_t *node = yaml_document_get_node(&r->doc, *i);
        if (node->type == YAML_SCALAR_NODE)
            append(r, out, json_string(op_yaml_text(node)));
        else
            complain(r, node, what, "words");
    }
    return out;
}

/* Letters, digits, - and _, the first a letter: these become names of files and of variables. */
static bool is_name(const char *s, const char *also)
{
    size_t n = strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_");
    while (s[n] && strchr(also, s[n]))
        n += 1 + strspn(s + n + 1, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_");
    return isalpha((unsigned char)*s) && !s[n] && n <= 60;
}

static void name_of(reader *r, json_t *object, const yaml_node_t *map, const char *key)
{
    const char *name = text(r, object, map, key, NULL);
    const yaml_node_t *node = r->status ? NULL : get(r, map, key, YAML_SCALAR_NODE, true);
    if (node && !is_name(name, ""))
        complain(r, node, key, "a letter, then letters, digits, - and _, at most 60");
}

static bool number_of(const char *s, double *out)
{
    char *end;
    *out = strtod(s, &end);
    return end != s && !*end && isfinite(*out);
}

static int64_t integer(reader *r, const yaml_node_t *node, int64_t low, int64_t high, const char *what)
{
    double x = 0;
    if (node->type != YAML_SCALAR_NODE || !number_of(op_yaml_text(node), &x) || x != floor(x) || x < (double)low || x > (double)high) {
        char expected[80];
        snprintf(expected, sizeof expected, "a whole number from %lld to %lld", (long long)low, (long long)high);
        complain(r, node, what, expected);
        return low;
    }
    return (int64_t)x;
}

/* A mapping of texts. */
static json_t *settings(reader *r, const yaml_node_t *map)
{
    json_t *out = json_object();
    for (const yaml_node_pair_t *p = map ? map->data.mapping.pairs.start : NULL; map && p < map->data.mapping.pairs.top; p++) {
        const yaml_node_t *key = yaml_document_get_node(&r->doc, p->key), *value = yaml_document_get_node(&r->doc, p->value);
        if (value->type != YAML_SCALAR_NODE)
            complain(r, value, op_yaml_text(key), "a text or a number (lists and mappings belong into a file that a command reads)");
        else if (!is_name(op_yaml_text(key), "."))
            complain(r, key, op_yaml_text(key), "a name of letters, digits, - _ and .");
        else
            put(r, out, op_yaml_text(key), json_string(op_yaml_text(value)));
    }
    return out;
}

static void put_settings(reader *r, json_t *object, const yaml_node_t *map)
{
    put(r, object, "vars", settings(r, get(r, map, "vars", YAML_MAPPING_NODE, false)));
    put(r, object, "set", settings(r, get(r, map, "set", YAML_MAPPING_NODE, false)));
}

/* ---- commands ---- */

/* "operant train 'a b'" -> its words; quotes of either kind hold blanks together. */
static json_t *split(reader *r, const yaml_node_t *node)
{
    json_t *words = json_array();
    const char *s = op_yaml_text(node);
    char *word = op_alloc(strlen(s) + 1);
    if (!word && !r->status)
        r->status = op_error_set(r->e, OP_ERR_NOMEM, "%s: out of memory", r->name);
    while (word && *(s += strspn(s, " \t\n\r"))) {
        size_t n = 0;
        char quote = 0;
        for (; *s && (quote || !strchr(" \t\n\r", *s)); s++) {
            if (quote ? *s == quote : *s == '"' || *s == '\'')
                quote = quote ? 0 : *s;
            else
                word[n++] = *s;
        }
        word[n] = 0;
        if (quote)
            complain(r, node, "command", "the quote to be closed");
        append(r, words, json_string(word));
    }
    op_free(word);
    return words;
}

static json_t *commands(reader *r, const yaml_node_t *list, bool programs)
{
    json_t *out = json_array();
    for (const yaml_node_item_t *i = list ? list->data.sequence.items.start : NULL; list && i < list->data.sequence.items.top; i++) {
        const yaml_node_t *node = yaml_document_get_node(&r->doc, *i);
        json_t *words = NULL;
        if (node->type == YAML_SCALAR_NODE) {
            words = split(r, node);
        } else if (node->type == YAML_SEQUENCE_NODE) {
            words = texts(r, node, "command");
        }
        const char *first = json_string_value(json_array_get(words, 0));
        if (!first)
            complain(r, node, "command", "a text or a list of words");
        else if (strcmp(first, "operant") != 0 && !programs)
            complain(r, node, first, "\"operant\" (or allow_programs: true)");
        append(r, out, words);
    }
    return out;
}

/* The commands under a key, if it is there. */
static bool put_commands(reader *r, json_t *object, const yaml_node_t *map, const char *key, bool programs)
{
    const yaml_node_t *list = get(r, map, key, YAML_SEQUENCE_NODE, false);
    if (list)
        put(r, object, key, commands(r, list, programs));
    return list;
}

/* ---- the lists ---- */

typedef void (*read_entry)(reader *r, json_t *spec, json_t *entry, const yaml_node_t *map);

/* spec.key = a list of mappings, each read by fn; names must differ. */
static void entries(reader *r, json_t *spec, const yaml_node_t *root, const char *key, size_t low, size_t high, read_entry fn)
{
    const yaml_node_t *list = get(r, root, key, YAML_SEQUENCE_NODE, low > 0);
    json_t *out = json_array();
    for (const yaml_node_item_t *i = list ? list->data.sequence.items.start : NULL; list && i < list->data.sequence.items.top && !r->status; i++) {
        const yaml_node_t *map = yaml_document_get_node(&r->doc, *i);
        if (map->type != YAML_MAPPING_NODE) {
            complain(r, map, key, "a list of mappings");
            break;
        }
        json_t *entry = json_object();
        fn(r, spec, entry, map);
        const char *name = op_view_string(entry, "name");
        if (*name && op_list_find(out, "name", name))
            complain(r, map, name, "a name that no other has");
        append(r, out, entry);
    }
    size_t n = json_array_size(out);
    if (list && (n < low || n > high)) {
        char expected[60];
        snprintf(expected, sizeof expected, "%zu to %zu entries, found %zu", low, high, n);
        complain(r, list, key, expected);
    }
    put(r, spec, key, out);
}

static void read_arm(reader *r, json_t *spec, json_t *entry, const yaml_node_t *map)
{
    static const char *const keys[] = {"name", "says", "vars", "set", "prepare", "run", NULL};
    bool programs = json_is_true(op_view(spec, "allow_programs"));
    check_keys(r, map, keys);
    name_of(r, entry, map, "name");
    text(r, entry, map, "says", "");
    put_settings(r, entry, map);
    put_commands(r, entry, map, "prepare", programs);
    put_commands(r, entry, map, "run", programs);
}

static void choice(reader *r, json_t *entry, const yaml_node_t *map, const char *key, const char *one, const char *two, const char *fallback)
{
    const char *word = text(r, entry, map, key, fallback);
    const yaml_node_t *node = r->status ? NULL : get(r, map, key, YAML_SCALAR_NODE, false);
    char expected[60];
    snprintf(expected, sizeof expected, "%s or %s", one, two);
    if (node && strcmp(word, one) != 0 && strcmp(word, two) != 0)
        complain(r, node, key, expected);
}

/* object.key = a path, or a list of them. */
static void paths(reader *r, json_t *object, const yaml_node_t *map, const char *key)
{
    const yaml_node_t *node = r->status ? NULL : find(r, map, key);
    if (!node || node->type != YAML_SEQUENCE_NODE) {
        text(r, object, map, key, NULL);
        return;
    }
    if (node->data.sequence.items.start == node->data.sequence.items.top)
        complain(r, node, key, "a path, or a list of them");
    put(r, object, key, texts(r, node, key));
}

static void read_measure(reader *r, json_t *spec, json_t *entry, const yaml_node_t *map)
{
    (void)spec;
    static const char *const keys[] = {"name", "says", "path", "minus", "unit", "better", "missing", NULL};
    check_keys(r, map, keys);
    name_of(r, entry, map, "name");
    paths(r, entry, map, "path");
    if (find(r, map, "minus"))
        paths(r, entry, map, "minus");
    text(r, entry, map, "says", op_view_string(entry, "name"));
    text(r, entry, map, "unit", "");
    choice(r, entry, map, "better", "higher", "lower", "higher");
    const yaml_node_t *missing = get(r, map, "missing", YAML_SCALAR_NODE, false);
    double x = NAN;
    if (missing && !number_of(op_yaml_text(missing), &x))
        complain(r, missing, "missing", "the number that stands for a figure that is not there");
    put(r, entry, "missing", op_json_number(x));
}

static void known(reader *r, const json_t *list, const yaml_node_t *map, const char *key)
{
    const yaml_node_t *node = get(r, map, key, YAML_SCALAR_NODE, true);
    if (node && !op_list_find(list, "name", op_yaml_text(node)))
        complain(r, node, op_yaml_text(node), !strcmp(key, "measure") ? "the name of a measure" : "the name of an arm");
}

static void read_claim(reader *r, json_t *spec, json_t *entry, const yaml_node_t *map)
{
    static const char *const keys[] = {"says", "measure", "arm", "against", "direction", NULL};
    check_keys(r, map, keys);
    text(r, entry, map, "says", NULL);
    text(r, entry, map, "measure", NULL);
    text(r, entry, map, "arm", NULL);
    known(r, op_view(spec, "measures"), map, "measure");
    known(r, op_view(spec, "arms"), map, "arm");
    double constant;
    if (number_of(text(r, entry, map, "against", NULL), &constant))
        put(r, entry, "against", json_real(constant));
    else
        known(r, op_view(spec, "arms"), map, "against");
    choice(r, entry, map, "direction", "more", "less", NULL);
    put(r, entry, "sign", json_integer(!strcmp(op_view_string(entry, "direction"), "less") ? -1 : 1));
}

static void read_curve(reader *r, json_t *spec, json_t *entry, const yaml_node_t *map)
{
    (void)spec;
    static const char *const keys[] = {"name", "says", "path", "x", "y", "x_says", "y_says", NULL};
    check_keys(r, map, keys);
    name_of(r, entry, map, "name");
    text(r, entry, map, "path", NULL);
    text(r, entry, map, "x", NULL);
    text(r, entry, map, "y", NULL);
    text(r, entry, map, "says", op_view_string(entry, "name"));
    text(r, entry, map, "x_says", op_view_string(entry, "x"));
    text(r, entry, map, "y_says", op_view_string(entry, "y"));
}

static json_t *read_seeds(reader *r, const yaml_node_t *map, bool required)
{
    json_t *out = json_array();
    const yaml_node_t *node = NULL;
    for (const yaml_node_pair_t *p = map->data.mapping.pairs.start; p < map->data.mapping.pairs.top; p++)
        if (!strcmp(op_yaml_text(yaml_document_get_node(&r->doc, p->key)), "seeds"))
            node = yaml_document_get_node(&r->doc, p->value);
    if (!node && required)
        complain(r, map, "seeds", "a number of seeds or a list of them");
    if (node && node->type == YAML_SEQUENCE_NODE) {
        for (const yaml_node_item_t *i = node->data.sequence.items.start; i < node->data.sequence.items.top; i++) {
            const yaml_node_t *seed = yaml_document_get_node(&r->doc, *i);
            int64_t value = integer(r, seed, 0, 1 << 30, "seeds");
            for (size_t k = 0; k < json_array_size(out); k++)
                if (json_integer_value(json_array_get(out, k)) == value)
                    complain(r, seed, "seeds", "every seed once");
            append(r, out, json_integer(value));
        }
        if (!json_array_size(out) || json_array_size(out) > OP_SEEDS_MAX)
            complain(r, node, "seeds", "1 to 100 seeds");
    } else if (node) {
        int64_t n = integer(r, node, 1, OP_SEEDS_MAX, "seeds");
        for (int64_t i = 1; i <= n; i++)
            append(r, out, json_integer(i));
    }
    return out;
}

/* compute: {name: path} as a list, and inputs: [path]. */
static void read_compute(reader *r, json_t *spec, const yaml_node_t *root)
{
    json_t *map = settings(r, get(r, root, "compute", YAML_MAPPING_NODE, false)), *list = json_array(), *path;
    const char *name;
    json_object_foreach(map, name, path)
        append(r, list, json_pack("{ss sO}", "name", name, "path", path));
    json_decref(map);
    put(r, spec, "compute", list);
    const yaml_node_t *inputs = get(r, root, "inputs", YAML_SEQUENCE_NODE, false);
    json_t *paths = json_array();
    for (const yaml_node_item_t *i = inputs ? inputs->data.sequence.items.start : NULL; inputs && i < inputs->data.sequence.items.top; i++) {
        const yaml_node_t *node = yaml_document_get_node(&r->doc, *i);
        if (node->type == YAML_SCALAR_NODE)
            append(r, paths, json_string(op_yaml_text(node)));
        else
            complain(r, node, "inputs", "paths");
    }
    put(r, spec, "inputs", paths);
}

/* What the smallest version changes overrides the file and its arms. */
static void read_small(reader *r, json_t *spec, const yaml_node_t *root, bool small)
{
    static const char *const keys[] = {"seeds", "vars", "set", NULL};
    const yaml_node_t *map = get(r, root, "small", YAML_MAPPING_NODE, small);
    json_t *over = json_object(), *seeds;
    if (map) {
        check_keys(r, map, keys);
        put_settings(r, over, map);
        seeds = read_seeds(r, map, false);
        if (small && json_array_size(seeds))
            put(r, spec, "seeds", json_incref(seeds));
        json_decref(seeds);
    }
    if (small && map) {
        put(r, spec, "small", json_incref(over));
        put(r, spec, "name", json_sprintf("%s-small", op_view_string(spec, "name")));
    }
    json_decref(over);
}

static void read_root(reader *r, json_t *spec, const yaml_node_t *root, bool small)
{
    static const char *const keys[] = {"name", "question", "subject", "seeds", "threads", "allow_programs", "vars", "set", "inputs", "templates", "prepare", "run", "arms",
                                       "measures", "claims", "compute", "curves", "small", NULL};
    check_keys(r, root, keys);
    name_of(r, spec, root, "name");
    text(r, spec, root, "question", NULL);
    text(r, spec, root, "subject", "");
    put(r, spec, "seeds", read_seeds(r, root, true));
    const yaml_node_t *threads = get(r, root, "threads", YAML_SCALAR_NODE, false);
    put(r, spec, "threads", json_integer(threads ? integer(r, threads, 1, 1024, "threads") : 1));
    json_t *words = json_object();
    bool programs = !strcmp(text(r, words, root, "allow_programs", "false"), "true");
    json_decref(words);
    put(r, spec, "allow_programs", json_boolean(programs));
    put_settings(r, spec, root);
    put(r, spec, "templates", settings(r, get(r, root, "templates", YAML_MAPPING_NODE, false)));
    read_compute(r, spec, root);
    bool run = put_commands(r, spec, root, "run", programs);
    put_commands(r, spec, root, "prepare", programs);
    entries(r, spec, root, "arms", 1, OP_ARMS_MAX, read_arm);
    entries(r, spec, root, "measures", 1, 64, read_measure);
    entries(r, spec, root, "claims", 0, OP_CLAIMS_MAX, read_claim);
    entries(r, spec, root, "curves", 0, 16, read_curve);
    size_t i;
    json_t *arm;
    json_array_foreach(op_view(spec, "arms") ? json_object_get(spec, "arms") : NULL, i, arm)
        if (!run && !json_array_size(json_object_get(arm, "run")))
            complain(r, root, "run", "commands, of the file or of each arm");
    read_small(r, spec, root, small);
}

/* Every command and file of every arm can be made: a variable that nobody set is found now, not after an hour. */
static op_status check_commands(const op_experiment *x, op_error *e)
{
    size_t i;
    json_t *arm;
    op_status status = OP_OK;
    int64_t seed = json_integer_value(json_array_get(json_object_get(x->spec, "seeds"), 0));
    json_array_foreach(json_object_get(x->spec, "arms"), i, arm)
        for (int k = 0; !status && k < 3; k++) {
            json_t *made = NULL;
            status = k == 2 ? op_cell_files(x, arm, seed, &made, e) : op_cell_commands(x, arm, seed, k ? "run" : "prepare", &made, e);
            json_decref(made);
        }
    return status ? op_error_prefix(e, "%s", x->path) : OP_OK;
}

op_status op_experiment_read(op_experiment **out, const char *path, bool small, op_error *e)
{
    *out = NULL;
    reader r = {.name = path, .e = e};
    op_experiment *x = op_alloc_zero(1, sizeof *x);
    json_t *spec = json_object();
    op_status status = x && spec && (x->path = op_strdup(path)) ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", path);
    if (!status) {
        x->small = small;
        status = op_file_hash(path, x->hash, e);
    }
    if (!status && !(status = op_yaml_open(&r.doc, path, e))) {
        read_root(&r, spec, yaml_document_get_root_node(&r.doc), small);
        yaml_document_delete(&r.doc);
        status = r.status;
    }
    if (x)
        x->spec = spec;
    else
        json_decref(spec);
    if (!status)
        status = check_commands(x, e);
    if (status)
        op_experiment_free(x);
    else
        *out = x;
    return status;
}

void op_experiment_free(op_experiment *x)
{
    if (!x)
        return;
    json_decref(x->spec);
    op_free(x->path);
    op_free(x);
}

const char *op_experiment_name(const op_experiment *x)
{
    return op_view_string(x->spec, "name");
}

const char *op_experiment_question(const op_experiment *x)
{
    return op_view_string(x->spec, "question");
}

size_t op_experiment_cells(const op_experiment *x)
{
    return json_array_size(op_view(x->spec, "arms")) * json_array_size(op_view(x->spec, "seeds"));
}
