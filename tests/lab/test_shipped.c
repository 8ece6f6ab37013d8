/* A shipped experiment (the file EXPERIMENT) in its smallest version, run by the program itself. Where NEEDS names them, OPERANT_MODEL stands for the real model
 * and OPERANT_DATA for other people's data. */
#include <sys/wait.h>

#include <jansson.h>

#include <operant/file.h>

#include "tools.h"

static json_t *analysis;

/* A working directory in which the model, the data and the examples lie where a clone has them. */
static int stand_in_clone(void)
{
    const char *model = getenv("OPERANT_MODEL"), *data = getenv("OPERANT_DATA");
    char examples[1024];
    int folder = (int)(strrchr(getenv("EXPERIMENT"), '/') - getenv("EXPERIMENT"));
    snprintf(examples, sizeof examples, "%.*s/../examples", folder, getenv("EXPERIMENT"));
    if (op_dir_make(in_dir("clone/models"), NULL) || op_dir_make(in_dir("shared"), NULL))
        return -1;
    if (model && symlink(model, in_dir("clone/models/SmolLM2-135M-Instruct.Q4_1.gguf")))
        return -1;
    if (data && symlink(data, in_dir("shared/data")))
        return -1;
    if (symlink(examples, in_dir("clone/examples")))
        return -1;
    return chdir(in_dir("clone"));
}

/* operant lab run, in a directory of its own; what it says is read as JSON. */
static int run_smallest(void **state)
{
    if (make_dir(state) || stand_in_clone())
        return -1;
    char command[2048];
    snprintf(command, sizeof command, "%s lab run %s small=true jobs=1 results=%s work=%s --json >%s 2>%s", getenv("OPERANT"), getenv("EXPERIMENT"), in_dir("results"),
             in_dir("work"), in_dir("analysis.json"), in_dir("messages"));
    int status = system(command);
    analysis = json_load_file(in_dir("analysis.json"), 0, NULL);
    if (status || !analysis) {
        op_buf text;
        op_buf_init(&text, 1 << 20);
        if (!op_file_read(in_dir("messages"), &text, NULL))
            fputs(text.data, stderr);
        op_buf_release(&text);
        return -1;
    }
    return 0;
}

static int forget(void **state)
{
    json_decref(analysis);
    return remove_dir(state);
}

static void every_cell_of_the_smallest_version_ends(void **state)
{
    (void)state;
    json_t *cells = json_object_get(analysis, "cells");
    assert_true(json_integer_value(json_object_get(cells, "expected")) > 0);
    assert_int_equal(json_integer_value(json_object_get(cells, "finished")), json_integer_value(json_object_get(cells, "expected")));
    assert_int_equal(json_array_size(json_object_get(cells, "stale")), 0);
}

static void every_arm_leaves_a_figure_for_every_measure(void **state)
{
    (void)state;
    size_t i, k;
    json_t *arm, *measure;
    json_array_foreach(json_object_get(analysis, "arms"), i, arm)
        json_array_foreach(json_object_get(arm, "measures"), k, measure)
            if (!json_is_number(json_object_get(measure, "mean")))
                fail_msg("arm %s, measure %s: no figure", json_string_value(json_object_get(arm, "name")), json_string_value(json_object_get(measure, "name")));
}

static void every_claim_was_registered_and_has_its_pairs(void **state)
{
    (void)state;
    size_t i;
    json_t *claim;
    assert_true(json_array_size(json_object_get(analysis, "claims")) > 0);
    json_array_foreach(json_object_get(analysis, "claims"), i, claim) {
        assert_true(json_is_true(json_object_get(claim, "registered")));
        assert_int_equal(json_integer_value(json_object_get(claim, "n")), json_array_size(json_object_get(analysis, "seeds")));
    }
}

static void the_report_is_drawn(void **state)
{
    (void)state;
    char report[256];
    snprintf(report, sizeof report, "results/%s/report.html", json_string_value(json_object_get(analysis, "name")));
    assert_true(op_path_exists(in_dir(report)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_cell_of_the_smallest_version_ends),
        cmocka_unit_test(every_arm_leaves_a_figure_for_every_measure),
        cmocka_unit_test(every_claim_was_registered_and_has_its_pairs),
        cmocka_unit_test(the_report_is_drawn),
    };
    if (!getenv("OPERANT") || !getenv("EXPERIMENT")) {
        puts("skipped: OPERANT and EXPERIMENT name the program and the file");
        return 77;
    }
    const char *needs = getenv("NEEDS") ? getenv("NEEDS") : "";
    if (strstr(needs, "model") && (!getenv("OPERANT_MODEL") || !op_path_exists(getenv("OPERANT_MODEL")))) {
        puts("skipped: the real model is not there (OPERANT_MODEL)");
        return 77;
    }
    if (strstr(needs, "data") && (!getenv("OPERANT_DATA") || !op_path_exists(getenv("OPERANT_DATA")))) {
        puts("skipped: other people's data are not there (OPERANT_DATA)");
        return 77;
    }
    return cmocka_run_group_tests(tests, run_smallest, forget);
}
