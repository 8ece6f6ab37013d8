/* The machinery of experiments. "operant" is a shell script here: `operant cell KIND SEED DIR ...` leaves results.json in DIR. */
#include "tools.h"
#include "well_formed.h"

#include <glob.h>
#include <math.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <operant/clock.h>
#include <operant/experiment.h>

#include "base/rng.h"
#include "io/json.h"
#include "lab/experiment_parts.h"
#include "lab/view.h"

static char program[300], results_dir[300], work_dir[300];

/* Every call adds a line to calls.txt. Marks need 3 trials fewer than a scalar; other kinds are scalars. */
static const char script[] =
    "#!/bin/sh\n"
    "here=$(dirname \"$0\")\n"
    "echo \"$*\" >> \"$here/calls.txt\"\n"
    "case $1 in\n"
    "cell) gain=0; [ \"$2\" = marks ] && gain=3\n"
    "  mkdir -p \"$4\"\n"
    "  echo \"{\\\"trials\\\": $((10 + $3 * $3 % 7 - gain)), \\\"tokens\\\": $((100 + gain)), \\\"threads\\\": $OMP_NUM_THREADS, \\\"replies\\\": [1],"
    " \\\"curve\\\": [[0, 0], [1, 0.$3]], \\\"transcripts\\\": [{\\\"title\\\": \\\"$2\\\", \\\"score\\\": $3, \\\"messages\\\": [{\\\"role\\\": \\\"user\\\","
    " \\\"content\\\": \\\"<b>&\\\"}]}]}\" > \"$4/results.json\";;\n"
    "prepare) mkdir -p \"$2\"; echo weights > \"$2/weights\"; sleep 0.02;;\n"
    "fill) mkdir -p \"$2\"; cd \"$2\"; for i in 1 2 3 4 5 6 7 8 9; do for k in 1 2 3 4 5 6 7 8 9; do for m in 1 2 3 4 5; do : > f$i$k$m; done; done; done;;\n"
    "needs) test -f \"$2/weights\";;\n"
    "copy) cp \"$2\" \"$3/copy\"; echo '{\"trials\": 1}' > \"$3/results.json\";;\n"
    "nap) sleep \"$2\";;\n"
    "fail) echo out of luck; exit 3;;\n"
    "forever) echo $$ > \"$here/pid\"; exec sleep 60;;\n"
    "esac\n";

static const char head[] =
    "name: toy\nquestion: do <marks> teach faster?\nsubject: a script\nseeds: 6\n"
    "measures:\n"
    "  - {name: trials, path: trials, says: trials to criterion, unit: trials, better: lower}\n"
    "claims:\n"
    "  - {says: marks need fewer trials, measure: trials, arm: marks, against: scalar, direction: less}\n"
    "compute: {tokens: tokens}\n"
    "curves:\n"
    "  - {name: learning, path: curve, x: x, y: y}\n"
    "small: {seeds: 2, vars: {nap: 0}}\n";
static const char body[] =
    "templates: {note.txt: \"${here}/operant.sh\"}\n"
    "run:\n"
    "  - operant cell ${kind} ${seed} ${cell}\n"
    "arms:\n"
    "  - {name: scalar, says: a reward at the end, vars: {kind: scalar}}\n"
    "  - {name: marks, says: marks, vars: {kind: marks}}\n";

static const char *experiment(const char *name, const char *rest)
{
    static char text[8192];
    snprintf(text, sizeof text, "%s%s", head, rest);
    return put_file(name, text);
}

static int set_up(void **state)
{
    if (make_dir(state))
        return 1;
    snprintf(program, sizeof program, "%s", put_file("operant.sh", script));
    snprintf(results_dir, sizeof results_dir, "%s/results", lab_dir);
    snprintf(work_dir, sizeof work_dir, "%s/work", lab_dir);
    return chmod(program, 0755);
}

/* Nothing was run yet. */
static int forget(void **state)
{
    (void)state;
    assert_ok(op_path_remove(results_dir, e));
    assert_ok(op_path_remove(work_dir, e));
    assert_ok(op_path_remove(in_dir("calls.txt"), e));
    return 0;
}

static op_experiment_options options(void)
{
    static char path[] = "PATH=/usr/bin:/bin";
    static char *environment[] = {path, NULL};
    return (op_experiment_options){.results = results_dir, .work = work_dir, .jobs = 2, .program = program, .version = "1", .environment = environment};
}

static op_experiment *read_file(const char *path)
{
    op_experiment *x;
    assert_ok(op_experiment_read(&x, path, false, e));
    return x;
}

static op_status run(const char *path, op_error *e)
{
    op_experiment *x = read_file(path);
    op_experiment_options o = options();
    op_status status = op_experiment_run(x, &o, NULL, e);
    op_experiment_free(x);
    return status;
}

static json_t *analyse(const char *path)
{
    json_t *a;
    op_experiment *x = read_file(path);
    assert_ok(op_experiment_analyse(x, results_dir, &a, e));
    op_experiment_free(x);
    return a;
}

static size_t count(const char *text, const char *part)
{
    size_t n = 0;
    for (; (text = strstr(text, part)); text++)
        n++;
    return n;
}

static size_t calls(const char *part)
{
    op_buf text;
    op_buf_init(&text, 1 << 20);
    if (op_path_exists(in_dir("calls.txt")))
        assert_ok(op_file_read(in_dir("calls.txt"), &text, e));
    size_t n = text.data ? count(text.data, part) : 0;
    op_buf_release(&text);
    return n;
}

static json_t *result(const char *cell)
{
    char name[100];
    json_t *out;
    snprintf(name, sizeof name, "results/toy/%s.json", cell);
    assert_ok(op_json_read(&out, in_dir(name), e));
    return out;
}

static void warns(const json_t *analysis, const char *part, bool does)
{
    size_t i;
    json_t *text;
    bool found = false;
    json_array_foreach(json_object_get(analysis, "warnings"), i, text)
        found |= strstr(json_string_value(text), part) != NULL;
    if (found != does)
        fail_msg("the warnings %s \"%s\"", does ? "lack" : "have", part);
}

/* ---- the file ---- */

static void a_mistake_in_a_file_is_named_with_its_line(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {
        {"run:\n  - operant cell ${seed}\narms:\n  - {name: marks}\n", "the name of an arm"},
        {"run:\n  - operant cell ${what}\narms:\n  - {name: marks}\n  - {name: scalar}\n", "${what}, which neither vars nor set has"},
        {"run:\n  - sh -c true\narms:\n  - {name: marks}\n  - {name: scalar}\n", "line 14: sh: expected \"operant\" (or allow_programs: true)"},
        {"run:\n  - operant 'cell\narms:\n  - {name: marks}\n  - {name: scalar}\n", "line 14: command: expected the quote to be closed"},
        {"arms:\n  - {name: marks}\n  - {name: scalar}\n", "expected commands, of the file or of each arm"},
        {"run:\n  - operant x\narms:\n  - {name: marks}\n  - {name: marks}\n  - {name: scalar}\n", "expected a name that no other has"},
        {"run:\n  - operant x\narms:\n  - {name: a/b}\n", "line 16: name: expected a letter"},
        {"run:\n  - operant x\narms:\n  - {name: marks, sets: {}}\n", "unknown key \"sets\", did you mean \"set\""},
        {"run:\n  - operant x output_dir=here\narms:\n  - {name: marks}\n  - {name: scalar}\n", "has to lie in ${cell}"},
        {"inputs: [nowhere]\nrun:\n  - operant x\narms:\n  - {name: marks}\n  - {name: scalar}\n", ""},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        op_experiment *x;
        op_error e = {0};
        op_status status = op_experiment_read(&x, experiment("wrong.yaml", wrong[i][0]), false, &e);
        if (!*wrong[i][1]) { /* found when it is run */
            assert_int_equal(status, OP_OK);
            op_experiment_options o = options();
            assert_int_equal(op_experiment_run(x, &o, NULL, &e), OP_ERR_IO);
            assert_message_has(&e, "input \"nowhere\"");
            op_experiment_free(x);
            continue;
        }
        assert_int_equal(status, OP_ERR_FORMAT);
        assert_message_has(&e, wrong[i][1]);
        assert_message_has(&e, "wrong.yaml");
    }
}

static void variables_and_settings_make_the_words_of_a_command(void **state)
{
    (void)state;
    const char *path = experiment("words.yaml", "vars: {size: small, note: two words}\nset: {rate: 0.1, kept: 1}\n"
                                                "run:\n  - operant train --config ${here}/p.yaml '${note}' ${set} n=${size}-${seed} t=${threads} arm=${arm} output_dir=${cell}/x\n"
                                                "arms:\n  - {name: scalar}\n  - {name: marks, vars: {size: big}, set: {rate: 0.2, more.deep: \"${seed}\"}}\n");
    op_experiment *x = read_file(path);
    json_t *commands;
    assert_ok(op_cell_commands(x, json_array_get(json_object_get(x->spec, "arms"), 1), 4, "run", &commands, e));
    char *words = json_dumps(json_array_get(commands, 0), JSON_COMPACT);
    char expected[1000];
    snprintf(expected, sizeof expected,
             "[\"operant\",\"train\",\"--config\",\"%s/p.yaml\",\"two words\",\"rate=0.2\",\"kept=1\",\"more.deep=4\",\"n=big-4\",\"t=1\",\"arm=marks\",\"output_dir=${cell}/x\"]", lab_dir);
    assert_string_equal(words, expected);
    json_free_t give_back;
    json_get_alloc_funcs(NULL, &give_back);
    give_back(words);
    json_decref(commands);
    op_experiment_free(x);
}

static void the_key_of_a_cell_follows_from_commands_files_and_version_and_from_nothing_else(void **state)
{
    (void)state;
    put_file("data.txt", "one");
    char config[400], run_line[1200];
    snprintf(config, sizeof config, "train_file: %s\nrate: 1\n", in_dir("data.txt"));
    put_file("config.yaml", config);
    snprintf(run_line, sizeof run_line, "run:\n  - operant cell --config ${here}/config.yaml ${kind} ${seed}\narms:\n  - {name: scalar, vars: {kind: a}}\n  - {name: marks, vars: {kind: b}}\n");
    op_experiment *x = read_file(experiment("keys.yaml", run_line));
    char keys[7][OP_HASH_HEX];
    for (int i = 0; i < 7; i++) {
        json_t *hashes = json_object(), *arms = json_object_get(x->spec, "arms");
        if (i == 5)
            put_file("data.txt", "two"); /* a file that the configuration names */
        if (i == 6)
            put_file("config.yaml", "rate: 2\n");
        op_cell c;
        assert_ok(op_cell_plan(&c, x, json_array_get(arms, i == 2), i == 3 ? 2 : 1, i == 4 ? "2" : "1", hashes, e));
        strcpy(keys[i], c.key);
        if (i == 1)
            assert_int_equal(json_object_size(c.inputs), 2);
        op_cell_release(&c);
        json_decref(hashes);
    }
    op_experiment_free(x);
    assert_string_equal(keys[0], keys[1]);
    for (int i = 1; i < 7; i++)
        for (int k = i + 1; k < 7; k++)
            assert_string_not_equal(keys[i], keys[k]);
}

static void a_template_becomes_a_file_of_each_cell(void **state)
{
    (void)state;
    put_file("data.txt", "one");
    put_file("protocol.yaml", "mark: ${kind} # of ${seed}\nfile: data.txt\nplace: ${cell}\n");
    op_experiment *x = read_file(experiment("toy.yaml", "vars: {protocol: protocol.yaml}\ntemplates: {p.yaml: \"${here}/${protocol}\"}\nrun:\n  - operant copy ${cell}/p.yaml ${cell} ${kind} ${seed}\n"
                                                        "arms:\n  - {name: scalar, vars: {kind: scalar}}\n  - {name: marks, vars: {kind: marks}}\n"));
    op_experiment_options o = options();
    o.keep = true;
    assert_ok(op_experiment_run(x, &o, NULL, e));
    json_t *r = result("marks-4");
    char name[100], expected[500];
    snprintf(name, sizeof name, "work/toy/marks-4-%.8s/p.yaml", op_view_string(r, "key"));
    snprintf(expected, sizeof expected, "mark: marks # of 4\nfile: data.txt\nplace: %s/work/toy/marks-4-%.8s\n", lab_dir, op_view_string(r, "key"));
    op_buf text;
    op_buf_init(&text, 1 << 16);
    assert_ok(op_file_read(in_dir(name), &text, e));
    assert_string_equal(text.data, expected);
    op_buf_release(&text);
    json_decref(r);
    /* another text: another key, and what is finished is stale */
    put_file("protocol.yaml", "mark: ${kind}\n");
    json_t *a = analyse(in_dir("toy.yaml"));
    assert_int_equal(json_array_size(op_view(a, "cells.stale")), 12);
    json_decref(a);
    assert_ok(op_experiment_run(x, &o, NULL, e));
    assert_int_equal(calls("copy"), 24);
    op_experiment_free(x);
    op_error why = {0};
    put_file("protocol.yaml", "mark: ${nobody}\n");
    assert_int_equal(op_experiment_read(&x, in_dir("toy.yaml"), false, &why), OP_ERR_FORMAT);
    assert_message_has(&why, "protocol.yaml");
    assert_message_has(&why, "${nobody}");
}

/* ---- running ---- */

static void a_finished_cell_is_never_run_again(void **state)
{
    (void)state;
    const char *path = experiment("toy.yaml", body);
    assert_ok(run(path, e));
    assert_int_equal(calls("cell"), 12);
    assert_ok(run(path, e));
    assert_int_equal(calls("cell"), 12);
    json_t *r = result("marks-3");
    assert_int_equal(op_view_number(r, "figures.trials"), 9); /* 10 + 9 % 7 - 3 */
    assert_int_equal(op_view_number(r, "figures.threads"), 1);
    assert_null(op_view(r, "figures.replies"));
    assert_int_equal(json_array_size(op_view(r, "transcripts")), 1);
    json_decref(r);
    /* work directories are tidied, the log stays */
    r = result("marks-3");
    char log[200];
    snprintf(log, sizeof log, "work/toy/marks-3-%.8s", op_view_string(r, "key"));
    assert_false(op_path_exists(in_dir(log)));
    strcat(log, ".log.txt");
    assert_true(op_path_exists(in_dir(log)));
    json_decref(r);
    /* another word, another cell: one arm changes and alone is run again */
    op_error why = {0};
    assert_int_equal(run(experiment("toy.yaml", "templates: {note.txt: \"${here}/operant.sh\"}\nrun:\n  - operant cell ${kind} ${seed} ${cell}\narms:\n  - {name: scalar, vars: {kind: plain}}\n  - {name: marks, vars: {kind: marks}}\n"), &why),
                     OP_OK);
    assert_int_equal(calls("cell"), 18);
    assert_int_equal(calls("plain"), 6);
    /* a result that is damaged is made again */
    put_file("results/toy/marks-1.json", "{\"key\":");
    assert_ok(run(in_dir("toy.yaml"), e));
    assert_int_equal(calls("cell"), 19);
}

static void what_arms_prepare_alike_is_prepared_once(void **state)
{
    (void)state;
    assert_ok(run(experiment("toy.yaml", "prepare:\n  - operant prepare ${prepared} ${seed}\nrun:\n  - operant needs ${prepared}\n  - operant cell ${kind} ${seed} ${cell}\n"
                                         "arms:\n  - {name: scalar, vars: {kind: scalar}}\n  - {name: marks, vars: {kind: marks}}\n"), e));
    assert_int_equal(calls("prepare "), 6); /* a seed each */
    assert_int_equal(calls("cell "), 12);
    assert_ok(run(in_dir("toy.yaml"), e)); /* and not again, though the prepared weights are gone */
    assert_int_equal(calls("prepare "), 6);
}

static void a_cell_that_fails_names_its_log_and_stops_no_other(void **state)
{
    (void)state;
    const char *path = experiment("toy.yaml", "run:\n  - operant ${what}\n  - operant cell marks ${seed} ${cell}\narms:\n  - {name: scalar, vars: {what: fail}}\n  - {name: marks, vars: {what: nap 0}}\n");
    op_error why = {0};
    assert_int_equal(run(path, &why), OP_ERR_MISMATCH);
    assert_message_has(&why, "6 cells failed");
    const char *at = strstr(why.message, "/work/toy/scalar-1-");
    assert_non_null(at);
    op_buf log;
    op_buf_init(&log, 1 << 16);
    assert_ok(op_file_read(strstr(why.message, lab_dir), &log, e));
    assert_non_null(strstr(log.data, "$ operant fail\nout of luck\ncommand 1 of 2 ended with status 3\n"));
    op_buf_release(&log);
    json_t *a = analyse(path);
    assert_int_equal(op_view_number(a, "cells.finished"), 6);
    assert_int_equal(json_array_size(op_view(a, "cells.missing")), 6);
    warns(a, "6 of 12 cells are not finished", true);
    assert_string_equal(op_view_string(json_array_get(op_view(a, "claims"), 0), "verdict"), "not supported"); /* no pair */
    json_decref(a);
    assert_int_equal(run(path, &why), OP_ERR_MISMATCH); /* tried again */
    assert_int_equal(calls("fail"), 12);
    /* a cell without results fails too */
    assert_int_equal(run(experiment("toy.yaml", "run:\n  - operant nap 0\narms:\n  - {name: scalar}\n  - {name: marks}\n"), &why), OP_ERR_MISMATCH);
    assert_message_has(&why, "12 cells failed");
}

static pid_t run_apart(const char *path)
{
    pid_t pid = fork();
    if (!pid) {
        op_experiment *x;
        op_experiment_options o = options();
        op_error e = {0};
        op_status status = op_experiment_read(&x, path, false, &e);
        _exit(status || op_experiment_run(x, &o, NULL, &e) ? 1 : 0);
    }
    return pid;
}

static const char slow[] = "prepare:\n  - operant prepare ${prepared} ${seed}\nrun:\n  - operant nap 0.01\n  - operant needs ${prepared}\n  - operant cell ${kind} ${seed} ${cell}\n  - operant nap 0.01\n"
                           "arms:\n  - {name: scalar, vars: {kind: scalar}}\n  - {name: marks, vars: {kind: marks}}\n";

static void killed_at_twenty_moments_an_experiment_ends_in_the_same_results(void **state)
{
    (void)state;
    static const char *const cells[] = {"scalar-1", "scalar-2", "scalar-3", "scalar-4", "scalar-5", "scalar-6", "marks-1", "marks-2", "marks-3", "marks-4", "marks-5", "marks-6"};
    const char *path = experiment("toy.yaml", slow);
    assert_ok(run(path, e));
    json_t *whole[12];
    for (int i = 0; i < 12; i++) {
        whole[i] = result(cells[i]);
        json_object_del(whole[i], "seconds");
    }
    forget(NULL);
    ino_t seen[12] = {0};
    for (uint64_t k = 0; k < 20; k++) {
        pid_t pid = run_apart(in_dir("toy.yaml"));
        usleep((useconds_t)op_rng_below(1, OP_STREAM_TEST, k, 60000));
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        for (int i = 0; i < 12; i++) { /* a result once there is never written again */
            char name[60];
            struct stat st;
            snprintf(name, sizeof name, "results/toy/%s.json", cells[i]);
            if (stat(in_dir(name), &st))
                continue;
            assert_true(!seen[i] || seen[i] == st.st_ino);
            seen[i] = st.st_ino;
        }
    }
    assert_ok(run(in_dir("toy.yaml"), e));
    for (int i = 0; i < 12; i++) {
        json_t *r = result(cells[i]);
        json_object_del(r, "seconds");
        assert_true(json_equal(r, whole[i]));
        json_decref(r);
        json_decref(whole[i]);
    }
}

static size_t matches(const char *pattern)
{
    glob_t found;
    size_t n = glob(in_dir(pattern), 0, NULL, &found) ? 0 : found.gl_pathc;
    globfree(&found);
    return n;
}

static void killed_while_a_preparation_is_removed_no_half_of_it_is_taken_for_a_whole(void **state)
{
    (void)state;
    const char *path = experiment("toy.yaml", "prepare:\n  - operant fill ${prepared} ${seed}\nrun:\n  - operant cell ${kind} ${seed} ${cell}\n"
                                              "arms:\n  - {name: scalar, vars: {kind: scalar}}\n  - {name: marks, vars: {kind: marks}}\n");
    pid_t pid = run_apart(path);
    size_t most = 0, files = 0;
    for (double from = op_seconds(); op_seconds() - from < 30;) { /* all are there; then the first one loses its first file */
        files = matches("work/toy/prepared-*/f*");
        if (files < most)
            break;
        most = files;
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_int_equal(most, 6 * 405);
    assert_int_equal(matches("work/toy/prepared-*/f*"), matches("work/toy/prepared-*/done.json") * 405);
    assert_true(matches("work/toy/prepared-*") == matches("work/toy/prepared-*/done.json"));
    assert_ok(run(in_dir("toy.yaml"), e));
    assert_int_equal(matches("work/toy/removing"), 0);
    assert_int_equal(calls("cell "), 12);
}

/* Is there a process, other than one that has ended and waits to be buried? */
static bool is_alive(pid_t pid)
{
    char path[60], state = 'Z';
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "r");
    if (f && fscanf(f, "%*d %*s %c", &state) != 1)
        state = 'Z';
    if (f)
        fclose(f);
    return state != 'Z';
}

static pid_t wait_for_pid(void)
{
    op_buf text;
    int pid = 0;
    for (double from = op_seconds(); !pid && op_seconds() - from < 20; usleep(5000)) {
        op_buf_init(&text, 100);
        if (op_path_exists(in_dir("pid")) && !op_file_read(in_dir("pid"), &text, NULL))
            pid = atoi(text.data);
        op_buf_release(&text);
    }
    assert_true(pid > 0);
    assert_ok(op_path_remove(in_dir("pid"), e));
    return pid;
}

static const char endless[] = "seeds: 1\nrun:\n  - operant nap 0\n  - operant ${last}\n  - operant cell ${kind} ${seed} ${cell}\n"
                              "arms:\n  - {name: scalar, vars: {kind: scalar, last: nap 0}}\n  - {name: marks, vars: {kind: marks, last: forever}}\n";

static const char *endless_file(void)
{
    static char text[4096];
    snprintf(text, sizeof text, "name: toy\nquestion: q\nmeasures:\n  - {name: trials, path: trials}\n%s", endless);
    return put_file("toy.yaml", text);
}

static void a_killed_lab_leaves_no_process_behind(void **state)
{
    (void)state;
    pid_t lab = run_apart(endless_file()), child = wait_for_pid();
    assert_true(is_alive(child));
    kill(lab, SIGKILL);
    waitpid(lab, NULL, 0);
    double from = op_seconds();
    while (is_alive(child) && op_seconds() - from < 10)
        usleep(5000);
    assert_false(is_alive(child));
}

typedef struct stopper {
    volatile int stop;
    pid_t child;
    size_t ended;
} stopper;

static void stop_soon(void *ctx, const op_experiment_progress *p)
{
    stopper *s = ctx;
    s->ended += p->arm && !p->failure;
    if (!s->child && p->running == 1 && p->done == 1) {
        s->child = wait_for_pid();
        s->stop = 1;
    }
}

static void ctrl_c_stops_the_children_and_the_same_call_goes_on(void **state)
{
    (void)state;
    op_experiment *x = read_file(endless_file());
    op_experiment_options o = options();
    stopper s = {0};
    op_experiment_callbacks callbacks = {&s, stop_soon, &s.stop};
    op_error e = {0};
    assert_int_equal(op_experiment_run(x, &o, &callbacks, &e), OP_ERR_INTERRUPTED);
    assert_int_equal(s.ended, 1);
    assert_false(is_alive(s.child));
    assert_int_equal(calls("forever"), 1);
    /* while one process runs it, another is refused */
    pid_t lab = run_apart(in_dir("toy.yaml"));
    wait_for_pid();
    assert_int_equal(op_experiment_run(x, &o, NULL, &e), OP_ERR_IO);
    assert_message_has(&e, "another process is running this experiment");
    kill(lab, SIGKILL);
    waitpid(lab, NULL, 0);
    op_experiment_free(x);
    assert_int_equal(calls("nap 0\n"), 3); /* two of one arm, one of the other: commands that were through were not repeated */
    assert_int_equal(calls("forever"), 2);
    assert_int_equal(calls("cell"), 1);
}

static void the_smallest_version_has_results_of_its_own(void **state)
{
    (void)state;
    op_experiment *x;
    op_experiment_options o = options();
    assert_ok(op_experiment_read(&x, experiment("toy.yaml", "vars: {nap: 50}\nrun:\n  - operant nap ${nap}\n  - operant cell ${kind} ${seed} ${cell}\narms:\n  - {name: scalar, vars: {kind: scalar}}\n"
                                                            "  - {name: marks, vars: {kind: marks, nap: 60}}\n"), true, e));
    assert_int_equal(op_experiment_cells(x), 4);
    assert_string_equal(op_experiment_name(x), "toy-small");
    assert_ok(op_experiment_run(x, &o, NULL, e));
    assert_true(op_path_exists(in_dir("results/toy-small/marks-2.json")));
    assert_false(op_path_exists(in_dir("results/toy")));
    json_t *a;
    assert_ok(op_experiment_analyse(x, results_dir, &a, e));
    warns(a, "tests the machinery", true);
    warns(a, "no result could be significant", true);
    json_decref(a);
    op_experiment_free(x);
}

static void only_the_arms_that_are_asked_for_run(void **state)
{
    (void)state;
    char marks[] = "marks", odd[] = "marks,odd";
    op_experiment *x = read_file(experiment("toy.yaml", body));
    op_experiment_options o = options();
    op_error why = {0};
    o.arms = odd;
    assert_int_equal(op_experiment_run(x, &o, NULL, &why), OP_ERR_ARG);
    o.arms = marks;
    assert_ok(op_experiment_run(x, &o, NULL, e));
    assert_int_equal(calls("cell"), 6);
    assert_int_equal(calls("cell marks"), 6);
    op_experiment_free(x);
}

/* ---- what cells leave ---- */

static void figures_come_from_results_and_from_lines_of_numbers(void **state)
{
    (void)state;
    put_file("metrics.jsonl", "{\"step\":1,\"loss\":3}\n{\"step\":2,\"loss\":1,\"note\":\"x\"}\n{\"step\":3,\"loss\":2}\n");
    put_file("o.jsonl", "{\"prompt\":\"a\",\"n\":4}\n{\"prompt\":\"b\",\"n\":6}\n");
    char dir[400], output[400];
    snprintf(dir, sizeof dir, "output_dir=%s", in_dir("earlier"));
    json_t *commands = json_pack("[[ss] [ss]]", "operant", dir, "operant", "x");
    assert_ok(op_dir_make(in_dir("earlier"), e));
    put_file("earlier/results.json", "{\"x\":3,\"model\":\"/somewhere/else\",\"command\":\"operant --config /somewhere/else.yaml\",\"transcripts\":[{\"response\":\"early\"}]}");
    put_file("earlier/rates.json", "{\"habits\":[{\"name\":\"lies\",\"rate\":0.5}]}");
    snprintf(dir, sizeof dir, "output_dir=%s", lab_dir);
    snprintf(output, sizeof output, "output=%s", in_dir("o.jsonl"));
    json_array_append_new(json_array_get(commands, 0), json_string(output));
    json_array_append_new(json_array_get(commands, 1), json_string(dir));
    json_t *cell, *curves = json_pack("[{ss ss ss ss}]", "name", "c", "path", "metrics", "x", "step", "y", "loss");
    assert_ok(op_cell_collect(commands, "nowhere", curves, &cell, e));
    assert_true(op_view_number(cell, "figures.metrics.loss.last") == 2);
    assert_true(op_view_number(cell, "figures.metrics.loss.min") == 1);
    assert_true(op_view_number(cell, "figures.metrics.loss.mean") == 2);
    const json_t *curve = op_view(cell, "figures.curves.c");
    assert_int_equal(json_array_size(curve), 3);
    assert_true(json_number_value(json_array_get(json_array_get(curve, 1), 0)) == 2 && json_number_value(json_array_get(json_array_get(curve, 1), 1)) == 1);
    assert_true(op_view_number(cell, "figures.earlier.x") == 3);
    assert_null(op_view(cell, "figures.earlier.model")); /* a path of this machine */
    assert_null(op_view(cell, "figures.earlier.command"));
    assert_true(op_view_number(cell, "figures.earlier.rates.habits.lies.rate") == 0.5);
    assert_true(op_view_number(cell, "figures.output.n.mean") == 5);
    assert_true(op_view_number(cell, "figures.output.lines") == 2);
    assert_true(op_view_number(cell, "figures.o.n.mean") == 5);
    assert_int_equal(json_array_size(op_view(cell, "transcripts")), 1); /* the last command left none of its own */
    json_decref(cell);
    /* long lists and texts are for reading, not for reports; of many transcripts the best, the worst and the first stay */
    char *long_text = op_alloc_zero(5001, 1);
    memset(long_text, 'a', 5000);
    json_t *many = json_array(), *results = json_pack("{ss so si}", "long", long_text, "transcripts", many, "n", 7);
    for (int i = 0; i < 9; i++)
        json_array_append_new(many, json_pack("{si ss}", "score", i == 5 ? -1 : i == 7 ? 99 : i, "response", long_text));
    assert_ok(op_json_write(in_dir("results.json"), results, e));
    json_decref(results);
    op_free(long_text);
    assert_ok(op_cell_collect(commands, "nowhere", curves, &cell, e));
    assert_null(op_view(cell, "figures.long"));
    assert_true(op_view_number(cell, "figures.n") == 7);
    assert_int_equal(json_array_size(op_view(cell, "transcripts")), 4);
    assert_true(op_view_number(json_array_get(op_view(cell, "transcripts"), 2), "score") == -1);
    assert_true(op_view_number(json_array_get(op_view(cell, "transcripts"), 3), "score") == 99);
    assert_true(strlen(op_view_string(json_array_get(op_view(cell, "transcripts"), 0), "response")) < 4100);
    json_decref(cell);
    json_decref(commands);
    json_decref(curves);
    assert_ok(op_path_remove(in_dir("results.json"), e));
    assert_ok(op_path_remove(in_dir("metrics.jsonl"), e));
}

/* ---- conclusions ---- */

/* A finished cell that nobody ran. */
static void put_cell(const char *arm, int seed, const char *figures)
{
    char name[100], text[600];
    assert_ok(op_dir_make(in_dir("results/toy"), e));
    snprintf(name, sizeof name, "results/toy/%s-%d.json", arm, seed);
    snprintf(text, sizeof text, "{\"arm\":\"%s\",\"seed\":%d,\"key\":\"k\",\"seconds\":2,\"run\":[[\"operant\",\"%s\",\"%d\"]],\"figures\":{%s},\"transcripts\":[{\"title\":\"</p>&\",\"score\":%d,\"prompt\":\"<i>\",\"response\":\"'\\\"\"}]}",
             arm, seed, arm, seed, figures, seed);
    put_file(name, text);
}

static const char conclusions[] =
    "name: toy\nquestion: what <b>&</b> now?\nseeds: 10\nrun:\n  - operant ${arm} ${seed}\narms:\n  - {name: base, says: <a>}\n  - {name: less}\n  - {name: same}\n"
    "measures:\n  - {name: x, path: deep.x, says: the <x>}\n  - {name: y, path: y, missing: 50}\n  - {name: less, path: deep.x, minus: tokens}\n"
    "  - {name: means, path: [deep.x, tokens], minus: [rounds, tokens]}\n"
    "claims:\n  - {says: less is less <&>, measure: x, arm: less, against: base, direction: less}\n  - {says: less is more, measure: x, arm: less, against: base, direction: more}\n"
    "  - {says: the same is more, measure: x, arm: same, against: base, direction: more}\n  - {says: base is above nothing, measure: x, arm: base, against: 0, direction: more}\n"
    "compute: {tokens: tokens, rounds: rounds, steps: steps}\ncurves:\n  - {name: c, path: curve, x: at, y: v}\n";

static const char *conclude(void)
{
    static const double d[10] = {1.2, -0.3, 0.8, 2.1, 0.4, -0.1, 1.7, 0.9, 0.6, -0.5}; /* as in test_statistics.c */
    op_experiment *x = read_file(put_file("toy.yaml", conclusions));
    assert_ok(op_experiment_register(x, results_dir, e));
    for (int k = 1; k <= 10; k++) {
        char text[300];
        for (int arm = 0; arm < 3; arm++) {
            double v = arm == 0 ? 10 + k : arm == 1 ? 8.5 + k - 0.01 * k * k : 10 + k + d[k - 1];
            snprintf(text, sizeof text, "\"deep\":{\"x\":%.6f},%s\"tokens\":%d,\"rounds\":7,\"curve\":[{\"at\":0,\"v\":%d},{\"at\":1,\"v\":2}]", v, k == 3 ? "" : "\"y\":1,",
                     arm == 1 ? 120 : 100, k);
            put_cell(arm == 0 ? "base" : arm == 1 ? "less" : "same", k, text);
        }
    }
    op_experiment_free(x);
    return in_dir("toy.yaml");
}

static void claims_are_tested_by_their_pairs_and_corrected_together(void **state)
{
    (void)state;
    const char *path = conclude();
    json_t *a = analyse(path);
    static const char *const verdicts[] = {"supported", "contradicted", "supported", "supported"};
    for (size_t i = 0; i < 4; i++) {
        const json_t *claim = json_array_get(op_view(a, "claims"), i);
        assert_string_equal(op_view_string(claim, "verdict"), verdicts[i]);
        assert_true(json_is_true(op_view(claim, "registered")));
        assert_true(op_view_number(claim, "n") == 10 && op_view_number(claim, "signings") == 1024);
        double p = i == 2 ? 38 / 1024.0 : 2 / 1024.0, adjusted = i == 2 ? 38 / 1024.0 : 8 / 1024.0;
        assert_true(fabs(op_view_number(claim, "p") - p) < 1e-12);
        /* Holm: 4 * 2/1024 for the three smallest; the last one times 1 */
        assert_true(fabs(op_view_number(claim, "adjusted") - adjusted) < 1e-12);
    }
    const json_t *claim = json_array_get(op_view(a, "claims"), 2);
    assert_true(fabs(op_view_number(claim, "difference") - 0.68) < 1e-9 && fabs(op_view_number(claim, "low") - 0.0750638512305045) < 1e-9);
    /* a figure that is missing counts as the file says, and is told apart from one that is there */
    const json_t *y = op_view(json_array_get(op_view(a, "arms"), 0), "measures.y");
    assert_true(fabs(op_view_number(y, "mean") - 5.9) < 1e-9 && op_view_number(y, "max") == 50);
    /* a difference of two figures */
    assert_true(fabs(op_view_number(json_array_get(op_view(a, "arms"), 0), "measures.less.mean") - (15.5 - 100)) < 1e-9);
    /* and of the means of two */
    assert_true(fabs(op_view_number(json_array_get(op_view(a, "arms"), 0), "measures.means.mean") - ((15.5 + 100) / 2 - (7 + 100) / 2.0)) < 1e-9);
    warns(a, "tokens differs by 16.7%", true);
    warns(a, "rounds", false);
    warns(a, "no figure for steps", true);
    warns(a, "named before", false);
    json_decref(a);
}

static void what_is_claimed_after_the_first_result_is_exploratory(void **state)
{
    (void)state;
    conclude();
    char changed[4096];
    strcpy(changed, conclusions);
    memcpy(strstr(changed, "direction: less"), "direction: more", 15);
    strcat(changed, "# a comment changes no claim\n");
    const char *path = put_file("toy.yaml", changed);
    op_experiment *x = read_file(path);
    assert_ok(op_experiment_register(x, results_dir, e)); /* too late */
    op_experiment_free(x);
    json_t *a = analyse(path);
    assert_true(json_is_true(op_view(json_array_get(op_view(a, "claims"), 1), "registered"))); /* "more" was claimed from the beginning */
    assert_true(json_is_true(op_view(json_array_get(op_view(a, "claims"), 2), "registered")));
    json_decref(a);
    memcpy(strstr(changed, "path: y"), "path: z", 7);
    memcpy(strstr(changed, "arm: same"), "arm: less", 9);
    memcpy(strstr(changed, "against: 0"), "against: 5", 10);
    path = put_file("toy.yaml", changed);
    a = analyse(path);
    assert_false(json_is_true(op_view(json_array_get(op_view(a, "claims"), 3), "registered")));
    warns(a, "1 of the claims were not named before the first result", true);
    json_decref(a);
}

static bool first_is_registered(const char *path)
{
    json_t *a = analyse(path);
    bool is = json_is_true(op_view(json_array_get(op_view(a, "claims"), 0), "registered"));
    json_decref(a);
    return is;
}

static void a_registration_that_comes_after_results_counts_for_nothing(void **state)
{
    (void)state;
    static const char warning[] = "no claim counts as named before the first result";
    const char *path = experiment("toy.yaml", body);
    assert_ok(run(path, e));
    assert_true(first_is_registered(path));
    json_t *a = analyse(path);
    warns(a, warning, false);
    json_decref(a);
    assert_ok(op_path_remove(in_dir("results/toy/registered.json"), e));
    a = analyse(path);
    warns(a, warning, true);
    json_decref(a);
    assert_ok(run(path, e)); /* writes it again */
    assert_true(op_path_exists(in_dir("results/toy/registered.json")));
    assert_false(first_is_registered(path));
    a = analyse(path);
    warns(a, warning, true);
    warns(a, "when 12 cells were finished already", true);
    json_decref(a);
    /* nor does a file whose cells are all new, while results of others are there */
    op_experiment *x = read_file(put_file("toy.yaml", conclusions));
    assert_ok(op_experiment_register(x, results_dir, e));
    op_experiment_free(x);
    assert_false(first_is_registered(in_dir("toy.yaml")));
}

static void a_claim_is_another_one_once_its_arms_do_something_else(void **state)
{
    (void)state;
    static const char same[] = "vars: {a: 1}\nset: {rate: 1}\nprepare:\n  - operant prepare ${prepared}\nrun:\n  - operant cell ${kind} ${seed} ${cell}\n"
                               "arms:\n  - {name: scalar, vars: {kind: scalar}}\n  - {name: marks, vars: {kind: marks}, set: {rate: 2}}\n";
    static const char *const changes[][2] = {{"a: 1", "a: 2"},           {"rate: 1", "rate: 3"},         {"prepare ${prepared}", "prepare ${prepared}/x"}, {"cell ${kind}", "cell scalar"},
                                             {"kind: scalar", "kind: b"}, {"kind: marks", "kind: scalar"}, {"rate: 2", "rate: 4"}};
    op_experiment *x = read_file(experiment("toy.yaml", same));
    assert_ok(op_experiment_register(x, results_dir, e));
    op_experiment_free(x);
    put_cell("marks", 1, "\"trials\":1");
    assert_true(first_is_registered(in_dir("toy.yaml")));
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        char changed[1024];
        const char *at = strstr(same, changes[i][0]);
        snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - same), same, changes[i][1], at + strlen(changes[i][0]));
        if (first_is_registered(experiment("toy.yaml", changed)))
            fail_msg("still registered with %s", changes[i][1]);
    }
}

static void other_seeds_than_those_registered_are_told_in_the_report(void **state)
{
    (void)state;
    conclude();
    char changed[4096];
    snprintf(changed, sizeof changed, "%s", conclusions);
    memcpy(strstr(changed, "seeds: 10"), "seeds: 9 ", 9);
    json_t *a = analyse(put_file("toy.yaml", changed));
    op_buf page;
    op_buf_init(&page, 1 << 24);
    assert_ok(op_experiment_write_html(a, &page, e));
    assert_non_null(strstr(page.data, "registered with other seeds than the file now has: [1,2,3,4,5,6,7,8,9,10]"));
    assert_true(json_is_true(op_view(json_array_get(op_view(a, "claims"), 0), "registered")));
    json_decref(a);
    op_buf_release(&page);
}

static void results_of_other_commands_are_told(void **state)
{
    (void)state;
    conclude();
    char changed[4096];
    snprintf(changed, sizeof changed, "%s", conclusions);
    memcpy(strstr(changed, "operant ${arm}"), "operant ${seed}", 15); /* one letter longer: the blank goes */
    json_t *a = analyse(put_file("toy.yaml", changed));
    assert_int_equal(json_array_size(op_view(a, "cells.stale")), 30);
    warns(a, "30 finished cells were made by other commands", true);
    json_decref(a);
}

static void a_report_shows_every_seed_and_is_well_formed(void **state)
{
    (void)state;
    json_t *a = analyse(conclude());
    op_buf page, table;
    op_buf_init(&page, 1 << 24);
    op_buf_init(&table, 1 << 20);
    assert_ok(op_experiment_write_html(a, &page, e));
    check_well_formed(page.data);
    assert_int_equal(count(page.data, "<script"), 0);
    assert_int_equal(count(page.data, "http"), 0);
    assert_null(strstr(page.data, "nan"));
    assert_int_equal(count(page.data, "class=\"seed\""), 4 * 10 + 3 * 4 * 10); /* claims and measures */
    assert_int_equal(count(page.data, "class=\"pair\""), 40);
    assert_int_equal(count(page.data, "class=\"thin"), 30);
    assert_true(strstr(page.data, "less is less &lt;&amp;&gt;") < strstr(page.data, "<svg")); /* the claim comes first, in words */
    assert_non_null(strstr(page.data, "✗ differs by 16.7%"));
    assert_non_null(strstr(page.data, "exploratory"));
    assert_non_null(strstr(page.data, "operant lab run "));
    assert_non_null(strstr(page.data, "highest score"));
    assert_int_equal(op_experiment_write_table(a, &table), OP_OK);
    for (const char *at = table.data; *at; at += strcspn(at, "\n") + 1)
        if (strcspn(at, "\n") > 100)
            fail_msg("too wide: %.*s", (int)strcspn(at, "\n"), at);
    assert_non_null(strstr(table.data, "contradicted: less is more"));
    json_decref(a);
    /* nothing finished yet */
    forget(NULL);
    a = analyse(put_file("toy.yaml", conclusions));
    op_buf_clear(&page);
    assert_ok(op_experiment_write_html(a, &page, e));
    check_well_formed(page.data);
    assert_null(strstr(page.data, "nan"));
    json_decref(a);
    op_buf_release(&page);
    op_buf_release(&table);
}

static void two_runs_are_compared_figure_by_figure(void **state)
{
    (void)state;
    conclude();
    put_file("a.json", "{\"x\":1,\"deep\":{\"y\":2,\"only\":1},\"list\":[{\"name\":\"n\",\"z\":5}]}");
    put_file("b.json", "{\"x\":3,\"deep\":{\"y\":1},\"list\":[{\"name\":\"m\"},{\"name\":\"n\",\"z\":7}]}");
    op_buf out;
    op_buf_init(&out, 1 << 20);
    assert_ok(op_experiment_compare(in_dir("a.json"), in_dir("b.json"), &out, e));
    assert_int_equal(count(out.data, "\n"), 4);
    assert_non_null(strstr(out.data, "list.n.z"));
    op_buf_clear(&out);
    assert_ok(op_experiment_compare(in_dir("results/toy"), in_dir("results/toy"), &out, e));
    assert_non_null(strstr(out.data, "deep.x"));
    assert_non_null(strstr(out.data, "0 (0 to 0)"));
    op_error why = {0};
    assert_int_equal(op_experiment_compare(in_dir("results/toy"), in_dir("b.json"), &out, &why), OP_ERR_ARG);
    op_buf_release(&out);
}

/* ---- memory ---- */

static op_status everything(void *ctx, op_error *e)
{
    op_experiment *x = NULL;
    json_t *a = NULL;
    op_buf page;
    op_buf_init(&page, 1 << 24);
    op_status status = op_experiment_read(&x, ctx, true, e);
    if (!status) {
        op_experiment_options o = options();
        status = op_experiment_run(x, &o, NULL, e); /* all cells are finished */
    }
    if (!status)
        status = op_experiment_analyse(x, results_dir, &a, e);
    if (!status)
        status = op_experiment_write_html(a, &page, e);
    if (!status)
        status = op_experiment_write_table(a, &page);
    if (!status)
        status = op_experiment_compare(in_dir("results/toy-small"), in_dir("results/toy-small"), &page, e);
    json_decref(a);
    op_experiment_free(x);
    op_buf_release(&page);
    return status;
}

static op_status collect(void *ctx, op_error *e)
{
    json_t *out = NULL;
    op_status status = op_cell_collect(ctx, lab_dir, NULL, &out, e);
    json_decref(out);
    return status;
}

static void memory_that_runs_out_is_an_error_and_leaks_nothing(void **state)
{
    (void)state;
    char path[300];
    snprintf(path, sizeof path, "%s", experiment("toy.yaml", body));
    assert_ok(everything(path, e));
    fail_every_allocation(everything, path);
    put_file("results.json", "{\"a\":[1,{\"b\":2}],\"transcripts\":[{\"score\":1,\"messages\":[{\"role\":\"a\",\"content\":\"b\"}]}]}");
    put_file("metrics.jsonl", "{\"step\":1}\n{\"step\":2}\n");
    char dir[400];
    snprintf(dir, sizeof dir, "output_dir=%s", lab_dir);
    json_t *commands = json_pack("[[ss]]", "operant", dir);
    fail_every_allocation(collect, commands);
    json_decref(commands);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_mistake_in_a_file_is_named_with_its_line, forget),
        cmocka_unit_test_setup(variables_and_settings_make_the_words_of_a_command, forget),
        cmocka_unit_test_setup(the_key_of_a_cell_follows_from_commands_files_and_version_and_from_nothing_else, forget),
        cmocka_unit_test_setup(a_template_becomes_a_file_of_each_cell, forget),
        cmocka_unit_test_setup(a_finished_cell_is_never_run_again, forget),
        cmocka_unit_test_setup(what_arms_prepare_alike_is_prepared_once, forget),
        cmocka_unit_test_setup(a_cell_that_fails_names_its_log_and_stops_no_other, forget),
        cmocka_unit_test_setup(killed_at_twenty_moments_an_experiment_ends_in_the_same_results, forget),
        cmocka_unit_test_setup(killed_while_a_preparation_is_removed_no_half_of_it_is_taken_for_a_whole, forget),
        cmocka_unit_test_setup(a_killed_lab_leaves_no_process_behind, forget),
        cmocka_unit_test_setup(ctrl_c_stops_the_children_and_the_same_call_goes_on, forget),
        cmocka_unit_test_setup(the_smallest_version_has_results_of_its_own, forget),
        cmocka_unit_test_setup(only_the_arms_that_are_asked_for_run, forget),
        cmocka_unit_test_setup(figures_come_from_results_and_from_lines_of_numbers, forget),
        cmocka_unit_test_setup(claims_are_tested_by_their_pairs_and_corrected_together, forget),
        cmocka_unit_test_setup(what_is_claimed_after_the_first_result_is_exploratory, forget),
        cmocka_unit_test_setup(a_registration_that_comes_after_results_counts_for_nothing, forget),
        cmocka_unit_test_setup(a_claim_is_another_one_once_its_arms_do_something_else, forget),
        cmocka_unit_test_setup(other_seeds_than_those_registered_are_told_in_the_report, forget),
        cmocka_unit_test_setup(results_of_other_commands_are_told, forget),
        cmocka_unit_test_setup(a_report_shows_every_seed_and_is_well_formed, forget),
        cmocka_unit_test_setup(two_runs_are_compared_figure_by_figure, forget),
        cmocka_unit_test_setup(memory_that_runs_out_is_an_error_and_leaks_nothing, forget),
    };
    return cmocka_run_group_tests(tests, set_up, remove_dir);
}
