#include <operant/config.h>

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/utf8.h"
#include "io/yaml_doc.h"

/* Words of a "a|b|c" list: the next one from *rest, its length in *n; NULL at the end. */
static const char *next_word(const char **rest, size_t *n)
{
    const char *word = *rest;
    if (!word || !*word)
        return NULL;
    *n = strcspn(word, "|");
    *rest = word[*n] ? word + *n + 1 : word + *n;
    return word;
}

static int find_word(const char *list, const char *word, size_t n)
{
    size_t len;
    int i = 0;
    for (const char *w; (w = next_word(&list, &len)); i++)
        if (len == n && !memcmp(w, word, n))
            return i;
    return -1;
}

static int name_length(const op_option *o)
{
    return (int)strcspn(o->key, "|");
}

enum { WORD_MAX = 64 };

/* Edits (insert, delete, replace, swap neighbours) from a to b; words longer than WORD_MAX are far from all others. */
static int distance(const char *a, size_t n, const char *b, size_t m)
{
    if (n > WORD_MAX || m > WORD_MAX)
        return 2 * WORD_MAX;
    int d[WORD_MAX + 1][WORD_MAX + 1];
    for (size_t i = 0; i <= n; i++) {
        for (size_t j = 0; j <= m; j++) {
            if (!i || !j) {
                d[i][j] = (int)(i + j);
                continue;
            }
            int best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            best = d[i - 1][j] + 1 < best ? d[i - 1][j] + 1 : best;
            best = d[i][j - 1] + 1 < best ? d[i][j - 1] + 1 : best;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    }
    return d[n][m];
}

/* Near: at most a third of the longer word's letters change, and at least one change is always near enough. */
static bool is_near(int edits, size_t n, size_t m)
{
    size_t longer = n > m ? n : m;
    return edits <= 1 || (size_t)edits * 3 <= longer;
}

bool op_config_is_among(const char *word, const char *const *words)
{
    while (*words && strcmp(*words, word) != 0)
        words++;
    return *words;
}

const char *op_config_nearest(const char *word, const char *const *words)
{
    const char *best = NULL;
    int best_edits = 2 * WORD_MAX;
    for (; *words; words++) {
        int edits = distance(word, strlen(word), *words, strlen(*words));
        if (edits < best_edits && is_near(edits, strlen(word), strlen(*words))) {
            best = *words;
            best_edits = edits;
        }
    }
    return best;
}

/* Where a value came from, for messages and to see the same setting given twice. */
typedef struct source {
    const char *name; /* file; NULL: a key=value word */
    int *seen;        /* [rows of the table] line of each setting so far, 0: none; NULL for words */
    op_error *e;
} source;

static op_status complain(const source *src, int line, op_status code, const char *text)
{
    if (src->name)
        return op_error_set(src->e, code, "%s: line %d: %s", src->name, line, text);
    return op_error_set(src->e, code, "%s", text);
}

static op_status bad_value(const source *src, int line, const op_option *o, const char *found, const char *expected)
{
    char text[OP_ERROR_MAX];
    snprintf(text, sizeof text, "key \"%.*s\": found \"%.100s\", expected %s", name_length(o), o->key, found, expected);
    return complain(src, line, OP_ERR_ARG, text);
}

static op_status unknown_key(const source *src, int line, const op_option *table, const char *key)
{
    char text[OP_ERROR_MAX];
    const char *best = NULL;
    size_t best_n = 0;
    int best_edits = 2 * WORD_MAX;
    for (const op_option *o = table; o->key; o++) {
        const char *rest = o->key;
        size_t n;
        for (const char *w; (w = next_word(&rest, &n));) {
            int edits = distance(key, strlen(key), w, n);
            if (edits < best_edits && is_near(edits, strlen(key), n)) {
                best = w;
                best_n = n;
                best_edits = edits;
            }
        }
    }
    if (best)
        snprintf(text, sizeof text, "unknown key \"%.100s\", did you mean \"%.*s\"", key, (int)best_n, best);
    else
        snprintf(text, sizeof text, "unknown key \"%.100s\"", key);
    return complain(src, line, OP_ERR_ARG, text);
}

static const op_option *find_option(const op_option *table, const char *key)
{
    for (const op_option *o = table; o->key; o++)
        if (find_word(o->key, key, strlen(key)) >= 0)
            return o;
    return NULL;
}

static bool parse_bool(const char *s, bool *out)
{
    int i = find_word("true|yes|on|1|false|no|off|0", s, strlen(s));
    *out = i < 4;
    return i >= 0;
}

/* Decimal or exponent notation, or inf; not hexadecimal, not nan. */
static bool parse_float(const char *s, double *out)
{
    const char *digits = s + strspn(s, "+-");
    bool infinite = find_word("inf|.inf", digits, strlen(digits)) >= 0;
    if (!infinite && (!*s || s[strspn(s, "0123456789+-.eE")]))
        return false;
    char *end;
    *out = infinite ? (*s == '-' ? -INFINITY : INFINITY) : strtod(s, &end);
    return infinite ? digits - s <= 1 : !*end;
}

static bool parse_int(const char *s, int64_t *out)
{
    if (!*s || s[strspn(s, "0123456789+-")])
        return false;
    char *end;
    errno = 0;
    *out = strtoll(s, &end, 10);
    return !*end && !errno;
}

/* "1 to 1048576": of an integer in full, of a number as short as it goes. */
static void range_text(const op_option *o, char room[80])
{
    snprintf(room, 80, o->type == OP_OPTION_INT ? "%.0f to %.0f" : "%g to %g", o->min, o->max);
}

static op_status check_range(const source *src, int line, const op_option *o, const char *s, double v)
{
    if ((o->min == 0 && o->max == 0) || (v >= o->min && v <= o->max))
        return OP_OK;
    char expected[80];
    range_text(o, expected);
    return bad_value(src, line, o, s, expected);
}

static op_status set_text(char **field, const char *s, const source *src)
{
    char *copy = s ? op_strdup(s) : NULL;
    if (s && !copy)
        return op_error_set(src->e, OP_ERR_NOMEM, "out of memory");
    op_free(*field);
    *field = copy;
    return OP_OK;
}

/* Sets a field from its text; NULL is YAML's null: unset. */
static op_status set_value(void *settings, const op_option *o, const char *s, const source *src, int line)
{
    char *field = (char *)settings + o->offset;
    op_status status = OP_OK;
    if (o->type == OP_OPTION_STRING || o->type == OP_OPTION_LIST)
        return s && !op_utf8_valid(s) ? bad_value(src, line, o, "other bytes", "UTF-8") : set_text((char **)field, s, src);
    if (!s)
        s = "null";
    switch (o->type) {
    case OP_OPTION_INT: {
        int64_t v;
        if (!parse_int(s, &v))
            return bad_value(src, line, o, s, "an integer");
        status = check_range(src, line, o, s, (double)v);
        if (!status)
            memcpy(field, &v, sizeof v);
        return status;
    }
    case OP_OPTION_FLOAT: {
        double v;
        if (!parse_float(s, &v))
            return bad_value(src, line, o, s, "a number");
        status = check_range(src, line, o, s, v);
        if (!status)
            memcpy(field, &v, sizeof v);
        return status;
    }
    case OP_OPTION_BOOL: {
        bool v;
        if (!parse_bool(s, &v))
            return bad_value(src, line, o, s, "true or false");
        memcpy(field, &v, sizeof v);
        return OP_OK;
    }
    default: {
        int v = find_word(o->choices, s, strlen(s));
        char expected[OP_ERROR_MAX];
        snprintf(expected, sizeof expected, "one of %s", o->choices);
        if (v < 0)
            return bad_value(src, line, o, s, expected);
        memcpy(field, &v, sizeof v);
        return OP_OK;
    }
    }
}

op_status op_config_init(void *settings, const op_option *table, op_error *e)
{
    source src = {.e = e};
    for (const op_option *o = table; o->key; o++) {
        char *field = (char *)settings + o->offset;
        if (o->type == OP_OPTION_STRING || o->type == OP_OPTION_LIST)
            memcpy(field, &(char *){NULL}, sizeof(char *));
    }
    for (const op_option *o = table; o->key; o++) {
        const char *zero = o->type == OP_OPTION_CHOICE || o->type == OP_OPTION_STRING || o->type == OP_OPTION_LIST ? NULL : "0";
        if (o->type == OP_OPTION_CHOICE && !o->fallback) {
            memcpy((char *)settings + o->offset, &(int){0}, sizeof(int));
            continue;
        }
        op_status s = set_value(settings, o, o->fallback ? o->fallback : zero, &src, 0);
        if (s) {
            op_config_release(settings, table);
            return s;
        }
    }
    return OP_OK;
}

void op_config_release(void *settings, const op_option *table)
{
    source src = {0};
    for (const op_option *o = table; o->key; o++)
        if (o->type == OP_OPTION_STRING || o->type == OP_OPTION_LIST)
            set_text((char **)((char *)settings + o->offset), NULL, &src);
}

static const char *scalar(const yaml_node_t *node)
{
    return (const char *)node->data.scalar.value;
}

static bool is_null(const yaml_node_t *node)
{
    return node->type == YAML_SCALAR_NODE && node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (!*scalar(node) || find_word("null|~|Null|NULL", scalar(node), node->data.scalar.length) >= 0);
}

static bool has_zero_byte(const yaml_node_t *node)
{
    return strlen(scalar(node)) != node->data.scalar.length;
}

static op_status join_list(yaml_document_t *doc, const yaml_node_t *node, const op_option *o, const source *src, op_buf *out)
{
    for (yaml_node_item_t *i = node->data.sequence.items.start; i < node->data.sequence.items.top; i++) {
        yaml_node_t *item = yaml_document_get_node(doc, *i);
        if (item->type != YAML_SCALAR_NODE || has_zero_byte(item))
            return bad_value(src, op_yaml_line(item), o, "something nested", "plain words");
        if (!*scalar(item) || strchr(scalar(item), ','))
            return bad_value(src, op_yaml_line(item), o, scalar(item), "words without commas");
        if ((out->len && op_buf_puts(out, ",")) || op_buf_puts(out, scalar(item)))
            return op_error_set(src->e, OP_ERR_NOMEM, "%s: out of memory", src->name);
    }
    return op_buf_add(out, "", 0) ? op_error_set(src->e, OP_ERR_NOMEM, "%s: out of memory", src->name) : OP_OK;
}

static op_status set_node(void *settings, const op_option *o, yaml_document_t *doc, const yaml_node_t *node, const source *src)
{
    int line = op_yaml_line(node);
    if (node->type == YAML_SCALAR_NODE) {
        if (has_zero_byte(node))
            return bad_value(src, line, o, scalar(node), "text without a 0 byte");
        return set_value(settings, o, is_null(node) ? NULL : scalar(node), src, line);
    }
    if (node->type == YAML_MAPPING_NODE || o->type != OP_OPTION_LIST)
        return bad_value(src, line, o, node->type == YAML_MAPPING_NODE ? "a mapping" : "a sequence",
                         o->type == OP_OPTION_LIST ? "a list of words" : "one value");
    op_buf joined;
    op_buf_init(&joined, OP_YAML_BYTES_MAX);
    op_status s = join_list(doc, node, o, src, &joined);
    if (!s)
        s = set_value(settings, o, joined.data, src, line);
    op_buf_release(&joined);
    return s;
}

/* Is there a setting below "prefix."? */
static bool is_group(const op_option *table, const char *prefix)
{
    size_t n = strlen(prefix), len;
    for (const op_option *o = table; o->key; o++) {
        const char *rest = o->key;
        for (const char *w; (w = next_word(&rest, &len));)
            if (len > n && !memcmp(w, prefix, n) && w[n] == '.')
                return true;
    }
    return false;
}

/* Walks a mapping; `prefix` holds the dotted path so far ("lora.") and is restored. */
static op_status load_mapping(void *settings, const op_option *table, yaml_document_t *doc, const yaml_node_t *map,
                              op_buf *prefix, const source *src)
{
    op_status s = OP_OK;
    size_t before = prefix->len;
    for (yaml_node_pair_t *p = map->data.mapping.pairs.start; !s && p < map->data.mapping.pairs.top; p++) {
        yaml_node_t *key = yaml_document_get_node(doc, p->key), *value = yaml_document_get_node(doc, p->value);
        int line = op_yaml_line(key);
        prefix->len = before;
        if (op_buf_puts(prefix, scalar(key)))
            return op_error_set(src->e, OP_ERR_NOMEM, "%s: out of memory", src->name);
        const op_option *o = find_option(table, prefix->data);
        if (o && src->seen[o - table]) {
            char text[OP_ERROR_MAX];
            snprintf(text, sizeof text, "key \"%s\" is set on line %d already", prefix->data, src->seen[o - table]);
            s = complain(src, line, OP_ERR_ARG, text);
        } else if (o) {
            src->seen[o - table] = line;
            s = set_node(settings, o, doc, value, src);
        } else if (!is_group(table, prefix->data)) {
            s = unknown_key(src, line, table, prefix->data);
        } else if (value->type == YAML_MAPPING_NODE) {
            s = op_buf_puts(prefix, ".") ? op_error_set(src->e, OP_ERR_NOMEM, "%s: out of memory", src->name)
                                         : load_mapping(settings, table, doc, value, prefix, src);
        } else if (!is_null(value)) {
            char text[OP_ERROR_MAX];
            snprintf(text, sizeof text, "key \"%.100s\": found a single value, expected a mapping", prefix->data);
            s = complain(src, line, OP_ERR_ARG, text);
        }
    }
    prefix->len = before;
    return s;
}

op_status op_config_parse(void *settings, const op_option *table, const char *yaml, size_t n, const char *name,
                          op_error *e)
{
    yaml_document_t doc;
    op_status s = op_yaml_load(&doc, yaml, n, name, e);
    if (s)
        return s;
    size_t rows = 0;
    while (table[rows].key)
        rows++;
    op_buf prefix;
    op_buf_init(&prefix, OP_YAML_BYTES_MAX);
    source src = {.name = name, .seen = op_alloc_zero(rows, sizeof(int)), .e = e};
    yaml_node_t *root = yaml_document_get_root_node(&doc);
    if (!src.seen)
        s = op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
    else if (root && root->type == YAML_MAPPING_NODE)
        s = load_mapping(settings, table, &doc, root, &prefix, &src);
    else if (root && !is_null(root))
        s = complain(&src, op_yaml_line(root), OP_ERR_FORMAT, "found no mapping, expected \"key: value\" lines");
    op_free(src.seen);
    op_buf_release(&prefix);
    yaml_document_delete(&doc);
    return s;
}

op_status op_config_load(void *settings, const op_option *table, const char *path, op_error *e)
{
    op_buf bytes;
    op_buf_init(&bytes, OP_YAML_BYTES_MAX);
    op_status s = op_file_read(path, &bytes, e);
    if (!s)
        s = op_config_parse(settings, table, bytes.data, bytes.len, path, e);
    op_buf_release(&bytes);
    return s;
}

op_status op_config_set(void *settings, const op_option *table, const char *assignment, op_error *e)
{
    source src = {.e = e};
    const char *equals = strchr(assignment, '=');
    if (!equals)
        return op_error_set(e, OP_ERR_ARG, "found \"%.100s\", expected key=value", assignment);
    char *key = op_strndup(assignment, (size_t)(equals - assignment));
    if (!key)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory");
    const op_option *o = find_option(table, key);
    const char *value = equals + 1;
    op_status s = o ? set_value(settings, o, strcmp(value, "null") ? value : NULL, &src, 0)
                    : unknown_key(&src, 0, table, key);
    op_free(key);
    return s;
}

/* The text of a value, in scratch where it has to be made; NULL: unset. 17 digits bring every double back. */
static const char *value_text(const void *settings, const op_option *o, char scratch[OP_ERROR_MAX])
{
    const char *field = (const char *)settings + o->offset;
    switch (o->type) {
    case OP_OPTION_INT: {
        int64_t v;
        memcpy(&v, field, sizeof v);
        snprintf(scratch, OP_ERROR_MAX, "%" PRId64, v);
        return scratch;
    }
    case OP_OPTION_FLOAT: {
        double v;
        memcpy(&v, field, sizeof v);
        for (int digits = 6; digits <= 17; digits++) {
            snprintf(scratch, OP_ERROR_MAX, "%.*g", digits, v);
            if (strtod(scratch, NULL) == v)
                break;
        }
        if (isinf(v)) /* as YAML writes it */
            strcpy(scratch, v < 0 ? "-.inf" : ".inf");
        return scratch;
    }
    case OP_OPTION_BOOL: return *(const bool *)field ? "true" : "false";
    case OP_OPTION_CHOICE: {
        int i = *(const int *)(const void *)field;
        const char *rest = o->choices, *w;
        size_t n = 0;
        while ((w = next_word(&rest, &n)) && i--)
            ;
        snprintf(scratch, OP_ERROR_MAX, "%.*s", w ? (int)n : 0, w ? w : "");
        return scratch;
    }
    default: return *(char *const *)(const void *)field;
    }
}

static int append(void *out, unsigned char *bytes, size_t n)
{
    return op_buf_add(out, bytes, n) == OP_OK;
}

static int add_scalar(yaml_document_t *doc, const char *text, size_t n, yaml_scalar_style_t style)
{
    return yaml_document_add_scalar(doc, NULL, (const yaml_char_t *)text, (int)n, style);
}

op_status op_config_write(const void *settings, const op_option *table, op_buf *out)
{
    yaml_document_t doc;
    yaml_emitter_t emitter;
    if (!yaml_document_initialize(&doc, NULL, NULL, NULL, 1, 1))
        return OP_ERR_NOMEM;
    int map = yaml_document_add_mapping(&doc, NULL, YAML_BLOCK_MAPPING_STYLE);
    bool ok = map != 0;
    for (const op_option *o = table; ok && o->key; o++) {
        char scratch[OP_ERROR_MAX];
        const char *text = value_text(settings, o, scratch);
        bool quoted = text && (o->type == OP_OPTION_STRING || o->type == OP_OPTION_LIST);
        if (!text)
            text = "null";
        int key = add_scalar(&doc, o->key, (size_t)name_length(o), YAML_PLAIN_SCALAR_STYLE);
        int value = add_scalar(&doc, text, strlen(text), quoted ? YAML_DOUBLE_QUOTED_SCALAR_STYLE : YAML_PLAIN_SCALAR_STYLE);
        ok = key && value && yaml_document_append_mapping_pair(&doc, map, key, value);
    }
    if (!ok || !yaml_emitter_initialize(&emitter)) {
        yaml_document_delete(&doc);
        return OP_ERR_NOMEM;
    }
    yaml_emitter_set_output(&emitter, append, out);
    yaml_emitter_set_unicode(&emitter, 1);
    yaml_emitter_set_width(&emitter, -1);
    ok = yaml_emitter_dump(&emitter, &doc); /* deletes doc, also when it fails */
    ok = yaml_emitter_flush(&emitter) && ok;
    yaml_emitter_delete(&emitter);
    return ok ? OP_OK : OP_ERR_NOMEM;
}

static op_status help_row(const op_option *o, op_buf *out)
{
    static const char *const kinds[] = {"integer", "number", "true|false", "text", NULL, "word,word,..."};
    op_status s = OP_OK;
    const char *rest = o->key, *comma = "  ";
    size_t n;
    for (const char *w; !s && (w = next_word(&rest, &n)); comma = ", ")
        s = op_buf_printf(out, "%s%.*s", comma, (int)n, w);
    if (!s)
        s = op_buf_printf(out, "=%s\n      %s", o->type == OP_OPTION_CHOICE ? o->choices : kinds[o->type], o->help);
    bool number = o->type == OP_OPTION_INT || o->type == OP_OPTION_FLOAT;
    char range[80];
    range_text(o, range);
    if (!s && number && (o->min != 0 || o->max != 0))
        s = op_buf_printf(out, "; %s", range);
    if (!s && (o->fallback || number))
        s = op_buf_printf(out, "; default %s", o->fallback ? o->fallback : "0");
    return s ? s : op_buf_puts(out, "\n");
}

op_status op_config_help(const op_option *table, op_buf *out)
{
    op_status s = OP_OK;
    for (const op_option *o = table; !s && o->key; o++)
        s = help_row(o, out);
    return s;
}
