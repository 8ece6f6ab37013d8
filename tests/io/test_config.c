#include "tools.h"

#include <math.h>

#include <operant/config.h>

#include "base/rng.h"

typedef struct settings {
    int64_t steps;
    double lr;
    bool bf16;
    char *model;
    int kind;
    char *targets;
    int64_t rank;
} settings;

static const op_option table[] = {
    {"max_steps|steps", OP_OPTION_INT, offsetof(settings, steps), "10", 1, 1000, NULL, "optimiser steps"},
    {"learning_rate|lr", OP_OPTION_FLOAT, offsetof(settings, lr), "2e-4", 0, INFINITY, NULL, "peak step size"},
    {"bf16", OP_OPTION_BOOL, offsetof(settings, bf16), "yes", 0, 0, NULL, "compute in bf16"},
    {"model", OP_OPTION_STRING, offsetof(settings, model), NULL, 0, 0, NULL, "path of the model"},
    {"schedule", OP_OPTION_CHOICE, offsetof(settings, kind), "linear", 0, 0, "none|linear|cosine", "shape of the schedule"},
    {"lora.targets", OP_OPTION_LIST, offsetof(settings, targets), "q,k", 0, 0, NULL, "adapted products"},
    {"lora.r", OP_OPTION_INT, offsetof(settings, rank), "16", 0, 0, NULL, "rank"},
    {0},
};

static op_status parse(settings *s, const char *yaml, op_error *e)
{
    assert_int_equal(op_config_init(s, table, NULL), OP_OK);
    return op_config_parse(s, table, yaml, strlen(yaml), "t.yaml", e);
}

static void refused(const char *yaml, const char *message)
{
    settings s;
    op_error e = {0};
    assert_true(parse(&s, yaml, &e) < 0);
    assert_message_has(&e, message);
    op_config_release(&s, table);
}

static void settings_begin_with_the_defaults_of_their_table(void **state)
{
    (void)state;
    settings s;
    op_error e;
    assert_int_equal(parse(&s, "", &e), OP_OK);
    assert_int_equal(s.steps, 10);
    assert_true(s.lr == 2e-4);
    assert_true(s.bf16);
    assert_null(s.model);
    assert_int_equal(s.kind, 1);
    assert_string_equal(s.targets, "q,k");
    assert_int_equal(s.rank, 16);
    op_config_release(&s, table);
    assert_null(s.targets);
}

static void yaml_sets_fields_by_name_alias_dots_and_nesting(void **state)
{
    (void)state;
    settings s;
    op_error e;
    const char *yaml = "steps: 7\nlr: inf\nbf16: off\nmodel: 'a: \"b\"'\nschedule: cosine\nlora:\n  r: -3\n  targets: [x, y]\n";
    assert_int_equal(parse(&s, yaml, &e), OP_OK);
    assert_int_equal(s.steps, 7);
    assert_true(isinf(s.lr));
    assert_false(s.bf16);
    assert_string_equal(s.model, "a: \"b\"");
    assert_int_equal(s.kind, 2);
    assert_string_equal(s.targets, "x,y");
    assert_int_equal(s.rank, -3);
    op_config_release(&s, table);
    assert_int_equal(parse(&s, "lora.r: 4\nlora: {targets: \"a,b\"}\nmodel: null\n", &e), OP_OK);
    assert_int_equal(s.rank, 4);
    assert_string_equal(s.targets, "a,b");
    op_config_release(&s, table);
    assert_int_equal(parse(&s, "model: 'null'\nlora:\n  targets: ~\n", &e), OP_OK);
    assert_string_equal(s.model, "null");
    assert_null(s.targets);
    op_config_release(&s, table);
}

static void an_unknown_key_is_an_error_that_names_the_nearest(void **state)
{
    (void)state;
    refused("\nlearnin_rate: 1\n", "t.yaml: line 2: unknown key \"learnin_rate\", did you mean \"learning_rate\"");
    refused("lora: {R: 1}\n", "unknown key \"lora.R\", did you mean \"lora.r\"");
    refused("lorra:\n  r: 1\n", "unknown key \"lorra\"");
    refused("quite_different: 1\n", "unknown key \"quite_different\"");
    refused("? [a]\n: 1\n", "a key that is no plain word");
}

static void a_bad_value_is_an_error_with_line_key_found_and_expected(void **state)
{
    (void)state;
    refused("bf16: on\nsteps: many\n", "t.yaml: line 2: key \"max_steps\": found \"many\", expected an integer");
    refused("steps: 1001\n", "found \"1001\", expected 1 to 1000");
    refused("steps: 1.5\n", "expected an integer");
    refused("steps: 99999999999999999999\n", "expected an integer");
    refused("steps: null\n", "found \"null\", expected an integer");
    refused("lr: fast\n", "expected a number");
    refused("lr: nan\n", "expected a number");
    refused("lr: 0x10\n", "expected a number");
    refused("lr: 1e-4e\n", "expected a number");
    refused("lr: -1\n", "expected 0 to inf");
    refused("bf16: maybe\n", "expected true or false");
    refused("schedule: lin\n", "expected one of none|linear|cosine");
    refused("schedule: [linear]\n", "found \"a sequence\", expected one value");
    refused("model: {a: b}\n", "found \"a mapping\", expected one value");
    refused("lora:\n  targets: [a, [b]]\n", "expected plain words");
    refused("lora:\n  targets: ['a,b']\n", "expected words without commas");
    refused("lora: 3\n", "key \"lora\": found a single value, expected a mapping");
    refused("model: \"a\\0b\"\n", "without a 0 byte");
}

static void a_key_set_twice_is_an_error_also_through_an_alias(void **state)
{
    (void)state;
    refused("steps: 1\nsteps: 2\n", "line 2: key \"steps\" stands on line 1 already");
    refused("lr: 1\nbf16: on\nlearning_rate: 2\n", "line 3: key \"learning_rate\" is set on line 1 already");
    refused("lora.r: 1\nlora: {r: 2}\n", "line 2: key \"lora.r\" is set on line 1 already");
}

static void surprising_yaml_is_an_error(void **state)
{
    (void)state;
    refused("steps: &x 1\n", "line 1: found an anchor");
    refused("model: &x a\nlora: *x\n", "line 1: found an anchor");
    refused("model: *x\n", "line 1: found an alias");
    refused("steps: !!int 1\n", "line 1: found a tag");
    refused("steps: 1\n---\nsteps: 2\n", "line 2: found a second document");
    refused("- 1\n", "line 1: found no mapping");
    refused("steps: [1\n", "line 2");
    refused("\tsteps: 1\n", "line 1");
    refused("model: \"\xff\"\n", "UTF-8");
    char deep[200] = "model: ";
    memset(deep + 7, '[', 40);
    refused(deep, "nested deeper than 32");
    settings s;
    op_error e;
    char *large = calloc(1, OP_ERROR_MAX << 12);
    memset(large, '#', (OP_ERROR_MAX << 12) - 1);
    assert_int_equal(parse(&s, large, &e), OP_ERR_FORMAT);
    assert_message_has(&e, "expected at most 1048576");
    free(large);
    op_config_release(&s, table);
}

static void words_of_the_command_line_set_fields(void **state)
{
    (void)state;
    settings s;
    op_error e;
    assert_int_equal(op_config_init(&s, table, &e), OP_OK);
    assert_int_equal(op_config_set(&s, table, "lr=2e-3", &e), OP_OK);
    assert_true(s.lr == 2e-3);
    assert_int_equal(op_config_set(&s, table, "model=a=b", &e), OP_OK);
    assert_string_equal(s.model, "a=b");
    assert_int_equal(op_config_set(&s, table, "model=", &e), OP_OK);
    assert_string_equal(s.model, "");
    assert_int_equal(op_config_set(&s, table, "model=null", &e), OP_OK);
    assert_null(s.model);
    assert_int_equal(op_config_set(&s, table, "lora.r", &e), OP_ERR_ARG);
    assert_message_has(&e, "found \"lora.r\", expected key=value");
    assert_int_equal(op_config_set(&s, table, "modle=x", &e), OP_ERR_ARG);
    assert_string_equal(e.message, "unknown key \"modle\", did you mean \"model\"");
    assert_int_equal(op_config_set(&s, table, "steps=0", &e), OP_ERR_ARG);
    assert_string_equal(e.message, "key \"max_steps\": found \"0\", expected 1 to 1000");
    assert_int_equal(op_config_set(&s, table, "model=\xc3(", &e), OP_ERR_ARG);
    assert_message_has(&e, "expected UTF-8");
    op_config_release(&s, table);
}

static void a_failed_setting_leaves_the_old_value(void **state)
{
    (void)state;
    settings s;
    assert_int_equal(op_config_init(&s, table, NULL), OP_OK);
    assert_int_equal(op_config_set(&s, table, "steps=0", NULL), OP_ERR_ARG);
    assert_int_equal(op_config_set(&s, table, "schedule=x", NULL), OP_ERR_ARG);
    assert_int_equal(s.steps, 10);
    assert_int_equal(s.kind, 1);
    op_config_release(&s, table);
}

static void the_nearest_word_allows_few_edits_and_swaps(void **state)
{
    (void)state;
    const char *const words[] = {"train", "chat", "assay", "export", NULL};
    assert_string_equal(op_config_nearest("trian", words), "train");
    assert_string_equal(op_config_nearest("essay", words), "assay");
    assert_string_equal(op_config_nearest("exprot", words), "export");
    assert_string_equal(op_config_nearest("chat", words), "chat");
    assert_null(op_config_nearest("quantise", words));
    char longest[300] = {0};
    memset(longest, 'x', sizeof longest - 1);
    assert_null(op_config_nearest(longest, words));
}

static void help_shows_every_key_with_alias_default_range_and_choices(void **state)
{
    (void)state;
    op_buf b;
    op_buf_init(&b, 4096);
    assert_int_equal(op_config_help(table, &b), OP_OK);
    assert_non_null(strstr(b.data, "  max_steps, steps=integer\n      optimiser steps; 1 to 1000; default 10\n"));
    assert_non_null(strstr(b.data, "  schedule=none|linear|cosine\n      shape of the schedule; default linear\n"));
    assert_non_null(strstr(b.data, "  model=text\n      path of the model\n"));
    const op_option large[] = {{"n", OP_OPTION_INT, 0, "1", 1, 1 << 20, NULL, "whole"}, {"x", OP_OPTION_FLOAT, 8, "1", 0, 1e6, NULL, "real"}, {0}};
    assert_int_equal(op_config_help(large, &b), OP_OK);
    assert_non_null(strstr(b.data, "whole; 1 to 1048576; default 1\n"));
    assert_non_null(strstr(b.data, "real; 0 to 1e+06; default 1\n"));
    op_buf_release(&b);
}

/* A random option table over 16-byte slots, and settings that are written and read back. */
enum { ROWS = 12, SLOT = 16 };

typedef struct random_table {
    op_option rows[ROWS + 1];
    char keys[ROWS][48];
} random_table;

static uint64_t draw(uint64_t round, uint64_t *at, uint64_t below)
{
    return op_rng_below(11, OP_STREAM_TEST + (round << 32), (*at)++, below);
}

static void random_text(uint64_t round, uint64_t *at, char out[64])
{
    static const char *const pieces[] = {
        "a", "Z9", " ", "\"", "'", "\\", "\n", "\t", "#", ": ", "- ", "null", "~", "\xc3\xa9", "\xf0\x9f\x98\x80",
        "\xe2\x80\xa8", "\xc2\x85", "\x01", "\x7f", "\xef\xbb\xbf", "{", "]", "%", "@", "`", "\r", ",", "=",
    };
    *out = 0;
    for (uint64_t n = draw(round, at, 12); n; n--)
        strcat(out, pieces[draw(round, at, sizeof pieces / sizeof *pieces)]);
}

static void make_random_table(uint64_t round, uint64_t *at, random_table *t)
{
    memset(t, 0, sizeof *t);
    int n = 1 + (int)draw(round, at, ROWS);
    for (int i = 0; i < n; i++) {
        op_option *o = &t->rows[i];
        const char *group = draw(round, at, 2) ? "" : draw(round, at, 2) ? "g." : "g.h.";
        snprintf(t->keys[i], sizeof t->keys[i], "%skey_%d%s%d", group, i, draw(round, at, 2) ? "|alias_" : "|other.", i);
        o->key = t->keys[i];
        o->type = (op_option_type)draw(round, at, 6);
        o->offset = (size_t)i * SLOT;
        o->help = "a field";
        if (o->type == OP_OPTION_CHOICE)
            o->choices = "one|two|three";
        if (o->type == OP_OPTION_INT) {
            o->min = -1e18;
            o->max = 1e18;
        }
    }
}

static void set_randomly(uint64_t round, uint64_t *at, const op_option *o, unsigned char *field)
{
    int64_t i = (int64_t)draw(round, at, (uint64_t)1e18) - (int64_t)draw(round, at, (uint64_t)1e18);
    double d;
    uint64_t bits = op_rng_u64(12, OP_STREAM_TEST + (round << 32), (*at)++);
    int c = (int)draw(round, at, 3);
    char text[64];
    switch (o->type) {
    case OP_OPTION_INT: memcpy(field, &i, sizeof i); break;
    case OP_OPTION_FLOAT:
        memcpy(&d, &bits, sizeof d);
        d = isnan(d) ? INFINITY : draw(round, at, 4) ? d : (double)i / 1000;
        memcpy(field, &d, sizeof d);
        break;
    case OP_OPTION_BOOL: memcpy(field, &(bool){bits & 1}, sizeof(bool)); break;
    case OP_OPTION_CHOICE: memcpy(field, &c, sizeof c); break;
    default:
        random_text(round, at, text);
        char *copy = draw(round, at, 5) ? op_strdup(text) : NULL;
        op_free(*(char **)(void *)field);
        memcpy(field, &copy, sizeof copy);
    }
}

static void whatever_is_written_is_read_back_equal_for_random_tables(void **state)
{
    (void)state;
    for (uint64_t round = 0; round < 500; round++) {
        uint64_t at = 0;
        random_table t;
        _Alignas(16) unsigned char a[ROWS * SLOT] = {0}, b[ROWS * SLOT] = {0};
        op_error e;
        op_buf yaml;
        op_buf_init(&yaml, 1 << 16);
        make_random_table(round, &at, &t);
        assert_int_equal(op_config_init(a, t.rows, &e), OP_OK);
        assert_int_equal(op_config_init(b, t.rows, &e), OP_OK);
        for (op_option *o = t.rows; o->key; o++)
            set_randomly(round, &at, o, a + o->offset);
        assert_int_equal(op_config_write(a, t.rows, &yaml), OP_OK);
        if (op_config_parse(b, t.rows, yaml.data, yaml.len, "t.yaml", &e))
            fail_msg("round %d: %s in\n%s", (int)round, e.message, yaml.data);
        for (op_option *o = t.rows; o->key; o++) {
            if (o->type != OP_OPTION_STRING && o->type != OP_OPTION_LIST) {
                assert_memory_equal(a + o->offset, b + o->offset, SLOT);
                continue;
            }
            char *x, *y;
            memcpy(&x, a + o->offset, sizeof x);
            memcpy(&y, b + o->offset, sizeof y);
            if (!x != !y || (x && strcmp(x, y)))
                fail_msg("round %d: \"%s\" became \"%s\" through\n%s", (int)round, x ? x : "null", y ? y : "null", yaml.data);
        }
        op_config_release(a, t.rows);
        op_config_release(b, t.rows);
        op_buf_release(&yaml);
    }
}

/* libyaml has no hook for its allocations: those that fail here are our own. */
static op_status load_and_write(void *ctx, op_error *e)
{
    settings s;
    op_buf out;
    op_buf_init(&out, 4096);
    op_status status = op_config_init(&s, table, e);
    if (status)
        return status;
    status = op_config_load(&s, table, ctx, e);
    if (!status)
        status = op_config_set(&s, table, "model=y", e);
    if (!status)
        status = op_config_write(&s, table, &out);
    if (!status)
        status = op_config_help(table, &out);
    op_buf_release(&out);
    op_config_release(&s, table);
    return status;
}

static void every_failing_allocation_is_reported(void **state)
{
    (void)state;
    const char text[] = "model: x\nlora:\n  targets: [a, b, c]\n  r: 3\n";
    char path[256];
    strcpy(path, put_file("a.yaml", text, sizeof text - 1));
    assert_true(fail_every_allocation(load_and_write, path) > 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(settings_begin_with_the_defaults_of_their_table),
        cmocka_unit_test(yaml_sets_fields_by_name_alias_dots_and_nesting),
        cmocka_unit_test(an_unknown_key_is_an_error_that_names_the_nearest),
        cmocka_unit_test(a_bad_value_is_an_error_with_line_key_found_and_expected),
        cmocka_unit_test(a_key_set_twice_is_an_error_also_through_an_alias),
        cmocka_unit_test(surprising_yaml_is_an_error),
        cmocka_unit_test(words_of_the_command_line_set_fields),
        cmocka_unit_test(a_failed_setting_leaves_the_old_value),
        cmocka_unit_test(the_nearest_word_allows_few_edits_and_swaps),
        cmocka_unit_test(help_shows_every_key_with_alias_default_range_and_choices),
        cmocka_unit_test(whatever_is_written_is_read_back_equal_for_random_tables),
        cmocka_unit_test(every_failing_allocation_is_reported),
    };
    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
