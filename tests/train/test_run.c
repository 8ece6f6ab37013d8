#include "tools.h"

#include <signal.h>
#include <sys/inotify.h>
#include <sys/wait.h>

#include <operant/buf.h>
#include <operant/clock.h>

#include "ops/ops.h"
#include "train/checkpoint.h"

enum { STEPS = 24 };

static char self[4096]; /* path of this program */
static bool low;        /* moments in 8 bits and gradients in bf16, for every weight; else an adapter with dropout */

static op_train_options usual(const char *dir)
{
    return (op_train_options){
        .learner = {.objective = op_objective_weighted(), .optim = low ? OP_OPTIM_ADAMW_8BIT : OP_OPTIM_ADAMW, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01,
                    .max_grad_norm = 1, .block_tokens = 48, .share_min = 3, .seed = 9},
        .schedule = {.type = OP_SCHEDULE_COSINE, .lr = 3e-3, .total = STEPS, .warmup = 4},
        .dir = dir, .config = "seed: 9\n", .seed = 9, .sequences = 4, .eval_steps = 8, .save_steps = 3, .save_keep = 2, .log_steps = 2};
}

static op_model *model(void)
{
    return low ? low_model(OP_BF16) : tiny_model(OP_TRAIN_ADAPTER, 0.2f);
}

/* One process's share of a run; every process makes the same model and data. Dropout is on, so that its counters matter. */
static op_status run(const op_train_options *o, op_train_result *result, op_error *e)
{
    op_threads_set(1);
    op_model *m = model();
    items set = random_items(11, 3, true, 2), held = random_items(3, 1, false, 3);
    op_status status = op_train_run(m, o, set.x, set.n, held.x, held.n, result, e);
    items_free(&set);
    items_free(&held);
    op_model_free(m);
    return status;
}

static void run_to_end(const op_train_options *o)
{
    op_train_result result;
    assert_ok(run(o, &result, e));
    assert_int_equal(result.step, o->schedule.total);
}

static int child(const char *dir)
{
    op_train_options o = usual(dir);
    op_train_result result;
    return run(&o, &result, NULL) ? 1 : 0;
}

static char *path_in(const char *dir, const char *name)
{
    char *path = op_path_join(dir, name);
    assert_non_null(path);
    return path;
}

static char *bytes_of(const char *dir, const char *name, size_t *n)
{
    char *path = path_in(dir, name);
    op_buf b;
    op_buf_init(&b, 1 << 24);
    assert_ok(op_file_read(path, &b, e));
    op_free(path);
    *n = b.len;
    return op_buf_take(&b);
}

static const char *const arrays[] = {"checkpoints/step-00000024/values.safetensors", "checkpoints/step-00000024/adam_m.safetensors",
                                     "checkpoints/step-00000024/adam_v.safetensors"};

/* The last checkpoints of two finished runs hold the same bits. */
static void assert_same_end(const char *a, const char *b)
{
    for (int i = 0; i < 3; i++) {
        size_t n, m;
        char *x = bytes_of(a, arrays[i], &n), *y = bytes_of(b, arrays[i], &m);
        assert_int_equal(n, m);
        assert_memory_equal(x, y, n);
        op_free(x);
        op_free(y);
    }
}

/* Steps of metrics.jsonl are in order, and each kind of line is there once. */
static void assert_metrics_are_whole(const char *dir)
{
    size_t n;
    char *text = bytes_of(dir, "metrics.jsonl", &n), *rest = text;
    int losses = 0, evaluations = 0;
    for (char *line; (line = strsep(&rest, "\n")) && *line;) {
        int step;
        assert_int_equal(sscanf(line, "{\"step\":%d", &step), 1);
        if (strstr(line, "eval_loss"))
            assert_int_equal(step, 8 * evaluations++);
        else
            assert_int_equal(step, 2 * ++losses);
    }
    assert_int_equal(losses, STEPS / 2);
    assert_int_equal(evaluations, 1 + STEPS / 8);
    op_free(text);
}

static void a_run_leaves_its_directory_complete(void **state)
{
    (void)state;
    char *dir = temp_dir();
    op_train_options o = usual(dir);
    op_train_result result;
    assert_ok(run(&o, &result, e));
    assert_int_equal(result.step, STEPS);
    assert_true(result.last.loss < result.first.loss + 1);
    assert_true(result.tokens > 0 && result.tokens_per_s > 0 && result.peak_rss_mb > 0);
    static const char *const there[] = {"config.yaml", "env.json", "metrics.jsonl", "events.out.tfevents.operant",
                                        "checkpoints/step-00000021/state.json", "checkpoints/step-00000024/state.json"};
    for (size_t i = 0; i < sizeof there / sizeof *there; i++) {
        char *path = path_in(dir, there[i]);
        assert_true(op_path_exists(path));
        op_free(path);
    }
    char *old = path_in(dir, "checkpoints/step-00000018"); /* two are kept */
    assert_false(op_path_exists(old));
    op_free(old);
    assert_metrics_are_whole(dir);
    remove_dir(dir);
}

/* The flag is raised by the progress callback, as a signal handler would. */
typedef struct stopper {
    volatile int flag;
    int64_t at;
} stopper;

static void stop_at(void *ctx, const op_train_progress *p)
{
    stopper *s = ctx;
    s->flag = p->step >= s->at;
}

static void a_stopped_run_finishes_its_step_and_resumes_to_the_same_bits(void **state)
{
    (void)state;
    char *whole = temp_dir(), *parts = temp_dir();
    op_train_options o = usual(whole);
    run_to_end(&o);
    o.dir = parts;
    for (int64_t at = 5; at < STEPS; at += 6) {
        stopper s = {.at = at};
        o.callbacks = (op_train_callbacks){&s, stop_at, &s.flag};
        op_train_result result;
        op_error e;
        assert_int_equal(run(&o, &result, &e), OP_ERR_INTERRUPTED);
        assert_int_equal(result.step, at);
    }
    o.callbacks = (op_train_callbacks){0};
    run_to_end(&o);
    assert_same_end(whole, parts);
    assert_metrics_are_whole(parts);
    remove_dir(whole);
    remove_dir(parts);
}

static pid_t start(const char *dir)
{
    pid_t pid = fork();
    if (!pid) {
        execl(self, self, low ? "--low" : "--child", dir, (char *)NULL);
        _exit(127);
    }
    assert_true(pid > 0);
    return pid;
}

/* Waits for the child; true if it came to its end. */
static bool ended(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status))
        assert_int_equal(WEXITSTATUS(status), 0);
    return WIFEXITED(status);
}

static void kill_often(int times)
{
    char *whole = temp_dir(), *killed = temp_dir();
    double begin = op_seconds();
    assert_true(ended(start(whole)));
    double lasts = op_seconds() - begin;
    uint64_t draw = (uint64_t)getpid();
    int kills = 0, finished = 0;
    while (kills < times) {
        pid_t pid = start(killed);
        usleep((useconds_t)(1e6 * lasts * op_rng_uniform(draw, OP_STREAM_TEST, (uint64_t)(kills + finished))));
        kill(pid, SIGKILL);
        if (ended(pid)) {
            assert_same_end(whole, killed);
            remove_dir(killed);
            killed = temp_dir();
            finished++;
        } else {
            kills++;
        }
    }
    assert_true(ended(start(killed)));
    assert_same_end(whole, killed);
    assert_metrics_are_whole(killed);
    remove_dir(whole);
    remove_dir(killed);
}

static void a_run_killed_at_twenty_random_moments_ends_in_the_same_bits(void **state)
{
    (void)state;
    kill_often(20);
}

static void so_does_one_with_moments_of_8_bits_and_gradients_in_bf16(void **state)
{
    (void)state;
    low = true;
    kill_often(10);
    low = false;
}

static void a_checkpoint_of_another_optimiser_or_type_of_gradients_is_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        op_optim optim;
        op_dtype grads;
        const char *says;
    } cases[] = {{OP_OPTIM_ADAMW, OP_BF16, "was made with optim \"adamw_8bit\", now it is \"adamw\""},
                 {OP_OPTIM_ADAMW_8BIT, OP_F32, "was made with grad_dtype \"bf16\", now it is \"f32\""}};
    char *dir = temp_dir();
    low = true;
    op_train_options o = usual(dir);
    run_to_end(&o);
    low = false;
    items set = random_items(11, 3, true, 2), held = random_items(3, 1, false, 3);
    for (int i = 0; i < 2; i++) {
        op_model *m = low_model(cases[i].grads);
        op_train_result result;
        op_error e;
        o.learner.optim = cases[i].optim;
        assert_int_equal(op_train_run(m, &o, set.x, set.n, held.x, held.n, &result, &e), OP_ERR_MISMATCH);
        if (!strstr(e.message, cases[i].says))
            fail_msg("%s", e.message);
        op_model_free(m);
    }
    items_free(&set);
    items_free(&held);
    remove_dir(dir);
}

static void a_half_written_checkpoint_is_never_taken(void **state)
{
    (void)state;
    char *dir = temp_dir();
    op_train_options o = usual(dir);
    run_to_end(&o);
    char *last = path_in(dir, "checkpoints/step-00000024"), *half = path_in(dir, "checkpoints/.saving");
    assert_ok(op_path_rename(last, half, e));
    op_train_result result;
    assert_ok(run(&o, &result, e));
    assert_int_equal(result.resumed_from, 21);
    assert_true(op_path_exists(last));
    assert_false(op_path_exists(half));
    op_free(last);
    op_free(half);
    remove_dir(dir);
}

static op_status resume_with(const char *dir, void (*damage)(const char *dir), op_error *e)
{
    op_train_options o = usual(dir);
    op_train_result result;
    damage(dir);
    return run(&o, &result, e);
}

static void flip_a_byte(const char *dir)
{
    char *path = path_in(dir, arrays[1]);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, -5, SEEK_END);
    int c = fgetc(f);
    fseek(f, -5, SEEK_END);
    fputc(c ^ 1, f);
    fclose(f);
    op_free(path);
}

static void cut_the_state(const char *dir)
{
    char *path = path_in(dir, "checkpoints/step-00000024/state.json");
    assert_int_equal(truncate(path, 40), 0);
    op_free(path);
}

static void lose_the_optimiser(const char *dir)
{
    char *path = path_in(dir, arrays[2]);
    assert_ok(op_path_remove(path, e));
    op_free(path);
}

static void a_damaged_checkpoint_is_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        void (*damage)(const char *);
        const char *says;
    } cases[] = {{flip_a_byte, "the bytes of \"adam_m.safetensors\" are not those that were written"},
                 {lose_the_optimiser, "lacks \"adam_v.safetensors\""},
                 {cut_the_state, "state.json"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *dir = temp_dir();
        op_train_options o = usual(dir);
        run_to_end(&o);
        op_error e;
        assert_int_equal(resume_with(dir, cases[i].damage, &e), OP_ERR_FORMAT);
        if (!strstr(e.message, cases[i].says))
            fail_msg("%s", e.message);
        remove_dir(dir);
    }
}

static void a_checkpoint_of_other_settings_is_refused_and_the_message_names_the_setting(void **state)
{
    (void)state;
    char *dir = temp_dir();
    op_train_options o = usual(dir);
    o.identity = json_pack("{ssss}", "seed", "9", "learning_rate", "0.003");
    run_to_end(&o);
    json_object_set_new(o.identity, "learning_rate", json_string("0.004"));
    op_train_result result;
    op_error e;
    assert_int_equal(run(&o, &result, &e), OP_ERR_MISMATCH);
    assert_non_null(strstr(e.message, "learning_rate \"0.003\", now it is \"0.004\""));
    o.resume = "none";
    run_to_end(&o);
    json_decref(o.identity);
    remove_dir(dir);
}

static void a_checkpoint_of_other_data_is_refused(void **state)
{
    (void)state;
    char *dir = temp_dir();
    op_train_options o = usual(dir);
    run_to_end(&o);
    op_model *m = tiny_model(OP_TRAIN_ADAPTER, 0.2f);
    items set = random_items(11, 3, true, 2);
    float *weights = (float *)(uintptr_t)set.x[4].weights;
    weights[set.x[4].n - 1] = 0.5f;
    op_train_result result;
    op_error e;
    assert_int_equal(op_train_run(m, &o, set.x, set.n, NULL, 0, &result, &e), OP_ERR_MISMATCH);
    assert_non_null(strstr(e.message, "the training data with hash"));
    items_free(&set);
    op_model_free(m);
    remove_dir(dir);
}

static void a_checkpoint_of_other_held_out_data_is_refused(void **state)
{
    (void)state;
    char *dir = temp_dir();
    op_train_options o = usual(dir);
    run_to_end(&o);
    op_model *m = tiny_model(OP_TRAIN_ADAPTER, 0.2f);
    items set = random_items(11, 3, true, 2), held = random_items(3, 1, false, 4);
    op_train_result result;
    op_error e;
    assert_int_equal(op_train_run(m, &o, set.x, set.n, held.x, held.n, &result, &e), OP_ERR_MISMATCH);
    assert_non_null(strstr(e.message, "the held-out data with hash"));
    items_free(&set);
    items_free(&held);
    op_model_free(m);
    remove_dir(dir);
}

/* Watches the directory: an entry that is no longer complete must not be seen under a checkpoint's name. */
static void a_checkpoint_loses_its_name_before_its_files(void **state)
{
    (void)state;
    char *dir = temp_dir();
    op_train_options o = usual(dir);
    run_to_end(&o);
    char *checkpoints = path_in(dir, "checkpoints"), *left = path_in(dir, "checkpoints/.removing/state.json");
    char *last = path_in(dir, "checkpoints/step-00000024"), *before = path_in(dir, "checkpoints/step-00000021");
    int all = inotify_init1(IN_NONBLOCK), inner = inotify_init1(IN_NONBLOCK);
    assert_true(inotify_add_watch(all, checkpoints, IN_MOVED_FROM | IN_DELETE) >= 0);
    assert_true(inotify_add_watch(inner, last, IN_DELETE | IN_MOVE_SELF) >= 0);
    assert_ok(op_checkpoint_forget(checkpoints, 21, e));
    char bytes[4096];
    assert_true(read(inner, bytes, sizeof bytes) > 0);
    struct inotify_event event;
    memcpy(&event, bytes, sizeof event);
    assert_true(event.mask & IN_MOVE_SELF);
    ssize_t n = read(all, bytes, sizeof bytes);
    assert_true(n > 0);
    memcpy(&event, bytes, sizeof event);
    assert_true(event.mask & IN_MOVED_FROM);
    assert_string_equal(bytes + sizeof event, "step-00000024");
    close(all);
    close(inner);
    assert_false(op_path_exists(last));
    assert_true(op_path_exists(before));

    char *doomed = path_in(dir, "checkpoints/.removing"); /* what a kill in between leaves */
    assert_ok(op_path_rename(before, doomed, e));
    assert_true(op_path_exists(left));
    assert_ok(op_checkpoint_forget(checkpoints, 21, e));
    assert_false(op_path_exists(doomed));
    op_free(checkpoints);
    op_free(left);
    op_free(last);
    op_free(before);
    op_free(doomed);
    remove_dir(dir);
}

static void going_on_from_a_directory_of_a_similar_name_saves_into_its_own(void **state)
{
    (void)state;
    char *dir = temp_dir();
    op_train_options o = usual(dir);
    run_to_end(&o);
    char *own = path_in(dir, "checkpoints"), *old = path_in(dir, "checkpoints-old"), *from = path_in(dir, "checkpoints-old/step-00000021");
    char *saved = path_in(dir, "checkpoints/step-00000021/state.json");
    assert_ok(op_path_rename(own, old, e));
    const int stop = 1;
    o.resume = from;
    o.callbacks.stop = &stop;
    op_train_result result;
    op_error e;
    assert_int_equal(run(&o, &result, &e), OP_ERR_INTERRUPTED);
    assert_true(op_path_exists(saved));
    op_free(own);
    op_free(old);
    op_free(from);
    op_free(saved);
    remove_dir(dir);
}

static void env_json_tells_the_sizes_of_model_and_data(void **state)
{
    (void)state;
    char *dir = temp_dir();
    op_train_options o = usual(dir);
    o.schedule.total = 1;
    o.facts = json_pack("{ss}", "form", "messages");
    run_to_end(&o);
    json_decref(o.facts);
    size_t n;
    char *text = bytes_of(dir, "env.json", &n);
    json_t *env = json_loadb(text, n, 0, NULL);
    int steps, learned, held;
    json_int_t tokens, trained, parameters;
    const char *form, *family;
    assert_int_equal(json_unpack(env, "{si ss s{si sI sI} s{si} s{ss sI}}", "steps", &steps, "form", &form, "data", "items", &learned, "tokens", &tokens,
                                 "trained_tokens", &trained, "held_out", "items", &held, "model", "family", &family, "parameters", &parameters), 0);
    assert_int_equal(steps, 1);
    assert_int_equal(learned, 11);
    assert_int_equal(held, 3);
    assert_string_equal(form, "messages");
    assert_string_equal(family, "llama");
    assert_true(tokens > trained && trained > 11 && parameters > 100);
    json_decref(env);
    op_free(text);
    remove_dir(dir);
}

static void a_run_can_go_on_from_a_checkpoint_given_by_path(void **state)
{
    (void)state;
    char *first = temp_dir(), *second = temp_dir();
    op_train_options o = usual(first);
    run_to_end(&o);
    char *path = path_in(first, "checkpoints/step-00000021");
    o.dir = second;
    o.resume = path;
    op_train_result result;
    assert_ok(run(&o, &result, e));
    assert_int_equal(result.resumed_from, 21);
    assert_same_end(first, second);
    o.resume = "/nowhere";
    op_error e;
    assert_int_equal(run(&o, &result, &e), OP_ERR_FORMAT);
    assert_string_equal(e.message, "\"/nowhere\" is no checkpoint: it lacks state.json");
    op_free(path);
    remove_dir(first);
    remove_dir(second);
}

static void fail_every_allocation(void)
{
    char *dir = temp_dir();
    op_train_options o = usual(dir);
    o.schedule.total = 1;
    o.resume = "none";
    o.learner.block_tokens = 4096;
    items set = random_items(3, 1, false, 2), held = random_items(2, 1, false, 3);
    op_train_result result;
    op_error e;
    long failures = 0;
    for (;; failures++) {
        op_model *m = low ? low_model(OP_BF16) : tiny_model(OP_TRAIN_ADAPTER, 0);
        op_alloc_fail_from(failures);
        op_status status = op_train_run(m, &o, set.x, set.n, held.x, held.n, &result, &e);
        op_alloc_fail_from(-1);
        op_model_free(m);
        if (!status)
            break;
        if (status != OP_ERR_NOMEM)
            fail_msg("allocation %ld: %s", failures, e.message);
    }
    assert_true(failures > 50);
    items_free(&set);
    items_free(&held);
    remove_dir(dir);
}

static void every_failed_allocation_of_a_run_comes_back_as_an_error(void **state)
{
    (void)state;
    fail_every_allocation();
    low = true;
    fail_every_allocation();
    low = false;
}

int main(int argc, char **argv)
{
    low = argc == 3 && !strcmp(argv[1], "--low");
    if (low || (argc == 3 && !strcmp(argv[1], "--child")))
        return child(argv[2]);
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_run_killed_at_twenty_random_moments_ends_in_the_same_bits),
        cmocka_unit_test(so_does_one_with_moments_of_8_bits_and_gradients_in_bf16),
        cmocka_unit_test(a_checkpoint_of_another_optimiser_or_type_of_gradients_is_refused_by_name),
        cmocka_unit_test(a_run_leaves_its_directory_complete),
        cmocka_unit_test(a_stopped_run_finishes_its_step_and_resumes_to_the_same_bits),
        cmocka_unit_test(a_half_written_checkpoint_is_never_taken),
        cmocka_unit_test(a_damaged_checkpoint_is_refused_by_name),
        cmocka_unit_test(a_checkpoint_of_other_settings_is_refused_and_the_message_names_the_setting),
        cmocka_unit_test(a_checkpoint_of_other_data_is_refused),
        cmocka_unit_test(a_checkpoint_of_other_held_out_data_is_refused),
        cmocka_unit_test(a_checkpoint_loses_its_name_before_its_files),
        cmocka_unit_test(going_on_from_a_directory_of_a_similar_name_saves_into_its_own),
        cmocka_unit_test(env_json_tells_the_sizes_of_model_and_data),
        cmocka_unit_test(a_run_can_go_on_from_a_checkpoint_given_by_path),
        cmocka_unit_test(every_failed_allocation_of_a_run_comes_back_as_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
