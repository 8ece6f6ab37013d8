/* Several ranks beside one: this program starts itself under mpirun (--rank CASE DIR). */
#include "tools.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

#include <operant/buf.h>
#include <operant/clock.h>

#include "io/json.h"
#include "ops/ops.h"
#include "train/parallel.h"

/* 2.4 million parameters: three chunks of gradients, of which the last is cut short. */
static op_model *wide_model(op_trainable what)
{
    op_model_config c = tiny_config();
    c.width = 256, c.layers = 3, c.heads = 4, c.kv_heads = 2, c.head_dim = 64, c.ffn = 768;
    op_model_options o = {.act = OP_F32, .trainable = what, .seed = 5, .lora = {.rank = 4, .alpha = 8, .targets = OP_LORA_Q | OP_LORA_DOWN}};
    op_model *m = NULL;
    assert_ok(op_model_new(&m, &c, &o, e));
    return m;
}

/* ---- a rank ---- */

enum { SLOW = 400 }; /* steps of a run that does not end by itself while a test looks */

static volatile int stop;

static void raise_stop(int signal)
{
    (void)signal;
    stop = 1;
}

static bool is(const char *what, const char *name)
{
    return !strcmp(what, name);
}

static void put_pid(const char *dir, int rank)
{
    char path[256], text[32];
    snprintf(path, sizeof path, "%s/pid-%d", dir, rank);
    snprintf(text, sizeof text, "%d", (int)getpid());
    assert_ok(op_file_put(path, text, strlen(text), e));
}

static op_status fail_here(void *ctx, int32_t layer, const op_batch *b, float *resid)
{
    (void)ctx, (void)layer, (void)b, (void)resid;
    return OP_ERR_IO;
}

/* One process's part of a run; alone it is the whole. */
static op_status learn(op_parallel *p, const char *what, const char *dir, op_error *e)
{
    int rank = op_parallel_rank(p);
    bool slow = is(what, "slow");
    op_train_options o = {
        .learner = {.objective = op_objective_weighted(), .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01, .max_grad_norm = 1,
                    .block_tokens = 64, .share_min = 3, .seed = 9, .parallel = p},
        .schedule = {.type = OP_SCHEDULE_COSINE, .lr = 1e-3, .total = slow ? SLOW : 12, .warmup = 4},
        .dir = dir, .seed = 9, .sequences = 8, .eval_steps = slow ? SLOW : 4, .save_steps = 2, .save_keep = 2, .log_steps = 1, .callbacks.stop = &stop};
    op_model *m = wide_model(is(what, "adapter") ? OP_TRAIN_ADAPTER : OP_TRAIN_ALL);
    items set = random_items(24, 3, true, is(what, "other-data") ? 2 + (uint64_t)rank : 2), held = random_items(7, 1, false, 3);
    op_train_result result;
    bool fails = is(what, "fails");
    put_pid(dir, rank);
    op_status status = fails && rank == 1 ? op_model_set_taps(m, &(op_tap){.forward = fail_here}, 1) : OP_OK;
    if (!status)
        status = op_train_run(m, &o, set.x, set.n, held.x, fails ? 0 : held.n, &result, e); /* no evaluation: the first step is to fail */
    items_free(&set);
    items_free(&held);
    op_model_free(m);
    return status;
}

/* Whether good answers beat bad ones: slopes that need every log p of the step. Loss and norm of each step go into DIR/steps. */
static op_status prefer(op_parallel *p, const char *dir, op_error *e)
{
    enum { PAIRS = 6, STEPS = 4 };
    op_pair pairs[PAIRS];
    for (int i = 0; i < PAIRS; i++)
        pairs[i] = (op_pair){2 * i, 2 * i + 1};
    op_preference how = {.type = OP_PREFERENCE_DPO, .beta = 0.3, .pairs = pairs, .n_pairs = PAIRS, .n_items = 2 * PAIRS};
    op_learner_options o = {.objective = op_objective_preference(&how), .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .block_tokens = 48, .share_min = 3,
                            .seed = 9, .parallel = p};
    op_model *m = wide_model(OP_TRAIN_ALL);
    items set = random_items(2 * PAIRS, 3, false, 4);
    op_learner *l = NULL;
    char lines[1024], path[256];
    size_t n = 0;
    op_status status = op_learner_new(&l, m, &o, e);
    for (int i = 0; !status && i < STEPS; i++) {
        op_step_stats s;
        status = op_learner_step(l, set.x, set.n, 1e-3, &s, e);
        n += (size_t)snprintf(lines + n, sizeof lines - n, "%.17g %.17g\n", s.loss, s.grad_norm);
    }
    snprintf(path, sizeof path, "%s/steps", dir);
    if (!status && op_parallel_rank(p) == 0)
        status = op_file_put(path, lines, n, e);
    op_learner_free(l);
    items_free(&set);
    op_model_free(m);
    return status;
}

static int be_a_rank(const char *what, const char *dir)
{
    struct sigaction action = {.sa_handler = raise_stop};
    sigaction(SIGUSR1, &action, NULL);
    op_threads_set(1);
    op_parallel *p = NULL;
    op_error e = {0};
    op_status status = op_parallel_start(&p, getenv("OPERANT_MPI"), &e);
    if (!status)
        status = is(what, "prefer") ? prefer(p, dir, &e) : learn(p, what, dir, &e);
    if (!status || status == OP_ERR_INTERRUPTED) {
        op_parallel_end(p);
        return status ? 130 : 0;
    }
    fprintf(stderr, "rank %d: %s\n", op_parallel_rank(p), e.message);
    op_parallel_abort(p, 1);
    return 1;
}

/* ---- a job ---- */

static char self[4096];

static bool can_run(void)
{
    const char *module = getenv("OPERANT_MPI");
    bool can = module && !access(module, R_OK) && system("command -v mpirun >/dev/null") == 0;
    if (!can)
        printf("skip: no mpirun, or operant was built without Open MPI\n");
    return can;
}

/* Starts `ranks` processes; what they say goes to DIR/said. */
static pid_t start(int ranks, const char *what, const char *dir)
{
    char n[16], said[256];
    snprintf(n, sizeof n, "%d", ranks);
    snprintf(said, sizeof said, "%s/said", dir);
    pid_t pid = fork();
    if (!pid) {
        int fd = open(said, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        dup2(fd, STDOUT_FILENO);
        dup2(fd, STDERR_FILENO);
        setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
        setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
        setenv("ASAN_OPTIONS", "detect_leaks=0", 1); /* Open MPI's own */
        execlp("mpirun", "mpirun", "-n", n, "--oversubscribe", "--bind-to", "none", self, "--rank", what, dir, (char *)NULL);
        _exit(127);
    }
    assert_true(pid > 0);
    return pid;
}

static char *text_of(const char *dir, const char *name)
{
    char *path = op_path_join(dir, name);
    op_buf b;
    op_buf_init(&b, 1 << 24);
    assert_ok(op_file_read(path, &b, e));
    assert_false(op_buf_add(&b, "", 1));
    op_free(path);
    return op_buf_take(&b);
}

/* Waits for the job and returns its exit status; -1: a signal ended it, or it did not end in three minutes. */
static int end_of(pid_t pid)
{
    int status;
    for (double begin = op_seconds(); waitpid(pid, &status, WNOHANG) != pid; usleep(20000))
        if (op_seconds() - begin > 180) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            return -1;
        }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); /* as a shell tells it */
}

/* Runs to the end, as one process without mpirun or as several. */
static void run(int ranks, const char *what, const char *dir)
{
    if (ranks == 1) {
        op_threads_set(1);
        assert_ok(is(what, "prefer") ? prefer(NULL, dir, e) : learn(NULL, what, dir, e));
        return;
    }
    int status = end_of(start(ranks, what, dir));
    char *said = text_of(dir, "said");
    if (status)
        fail_msg("exit status %d: %s", status, said);
    op_free(said);
}

/* ---- comparing runs ---- */

enum { LINES_MAX = 64 };

/* Values of `key` in metrics.jsonl, in order; returns how many. */
static int values_of(const char *dir, const char *key, double out[LINES_MAX])
{
    char *text = text_of(dir, "metrics.jsonl"), *rest = text;
    int n = 0;
    for (char *line; (line = strsep(&rest, "\n")) && *line;) {
        json_t *j = json_loads(line, 0, NULL);
        json_t *x = json_object_get(j, key);
        if (x)
            out[n++] = json_number_value(x);
        json_decref(j);
    }
    op_free(text);
    return n;
}

/* The curves of both runs have equal length and differ by no more than `tolerance`, relatively. */
static void assert_same_curve(const char *a, const char *b, const char *key, double tolerance)
{
    double x[LINES_MAX], y[LINES_MAX];
    int n = values_of(a, key, x);
    assert_true(n > 1);
    assert_int_equal(values_of(b, key, y), n);
    double worst = 0;
    for (int i = 0; i < n; i++)
        worst = fmax(worst, fabs(x[i] - y[i]) / fmax(fabs(x[i]), 1e-3));
    print_message("%s: the curves differ by %.1e at most\n", key, worst);
    if (worst > tolerance)
        fail_msg("%s differs by %g, relatively; allowed is %g", key, worst, tolerance);
}

static void assert_same_bytes(const char *a, const char *b, const char *name)
{
    char *x = op_path_join(a, name), *y = op_path_join(b, name);
    op_buf p, q;
    op_buf_init(&p, 1 << 28);
    op_buf_init(&q, 1 << 28);
    assert_ok(op_file_read(x, &p, e));
    assert_ok(op_file_read(y, &q, e));
    assert_int_equal(p.len, q.len);
    assert_memory_equal(p.data, q.data, p.len);
    op_buf_release(&p);
    op_buf_release(&q);
    op_free(x);
    op_free(y);
}

/* Sums are added in another order, which AdamW enlarges where a gradient is nearly 0. */
#define LOSS_TOLERANCE 1e-5
#define NORM_TOLERANCE 1e-5

static void two_and_three_ranks_have_the_loss_curve_of_one(void **state)
{
    (void)state;
    if (!can_run())
        skip();
    static const char *const cases[] = {"full", "adapter"};
    for (int i = 0; i < 2; i++) {
        char *one = temp_dir();
        run(1, cases[i], one);
        for (int ranks = 2; ranks <= 3; ranks++) {
            char *several = temp_dir();
            run(ranks, cases[i], several);
            assert_same_curve(one, several, "loss", LOSS_TOLERANCE);
            assert_same_curve(one, several, "eval_loss", LOSS_TOLERANCE);
            assert_same_curve(one, several, "grad_norm", NORM_TOLERANCE);
            remove_dir(several);
        }
        remove_dir(one);
    }
}

static void two_ranks_weigh_pairs_of_answers_that_lie_on_both_as_one_does(void **state)
{
    (void)state;
    if (!can_run())
        skip();
    char *one = temp_dir(), *two = temp_dir();
    run(1, "prefer", one);
    run(2, "prefer", two);
    char *a = text_of(one, "steps"), *b = text_of(two, "steps");
    char *x = a, *y = b;
    for (int i = 0; i < 8; i++) {
        double u = strtod(x, &x), v = strtod(y, &y);
        assert_true(u > 0);
        if (fabs(u - v) > 1e-3 * u)
            fail_msg("number %d: one rank has %.9g, two have %.9g", i, u, v);
    }
    op_free(a);
    op_free(b);
    remove_dir(one);
    remove_dir(two);
}

static const char *const arrays[] = {"checkpoints/step-00000012/values.safetensors", "checkpoints/step-00000012/adam_m.safetensors",
                                     "checkpoints/step-00000012/adam_v.safetensors"};

static void two_ranks_give_the_same_bits_every_time(void **state)
{
    (void)state;
    if (!can_run())
        skip();
    char *first = temp_dir(), *second = temp_dir();
    run(2, "full", first);
    run(2, "full", second);
    for (int i = 0; i < 3; i++)
        assert_same_bytes(first, second, arrays[i]);
    remove_dir(first);
    remove_dir(second);
}

static pid_t pid_of(const char *dir, int rank)
{
    char name[32];
    snprintf(name, sizeof name, "pid-%d", rank);
    char *text = text_of(dir, name);
    pid_t pid = (pid_t)atoi(text);
    op_free(text);
    return pid;
}

static void wait_for(const char *dir, const char *name)
{
    char *path = op_path_join(dir, name);
    for (double begin = op_seconds(); !op_path_exists(path); usleep(5000))
        if (op_seconds() - begin > 180) {
            char *said = text_of(dir, "said");
            fail_msg("\"%s\" did not appear: %s", name, said);
        }
    op_free(path);
}

/* The step of the newest checkpoint. */
static int newest(const char *dir)
{
    char *path = op_path_join(dir, "checkpoints"), command[512];
    snprintf(command, sizeof command, "ls %s | grep -o '[1-9][0-9]*$' | tail -1", path);
    FILE *f = popen(command, "r");
    int step = -1;
    assert_int_equal(fscanf(f, "%d", &step), 1);
    pclose(f);
    op_free(path);
    return step;
}

static void the_death_of_a_rank_ends_the_job_and_another_number_of_ranks_goes_on(void **state)
{
    (void)state;
    if (!can_run())
        skip();
    char *dir = temp_dir();
    for (int ranks = 3; ranks >= 2; ranks--) {
        pid_t job = start(ranks, "slow", dir);
        char step[64];
        snprintf(step, sizeof step, "checkpoints/step-%08d", ranks == 3 ? 4 : newest(dir) + 4);
        wait_for(dir, step);
        assert_int_equal(kill(pid_of(dir, 1), SIGKILL), 0);
        assert_true(end_of(job) > 0);
        char *said = text_of(dir, "said");
        if (!strstr(said, "rank 1") || !strstr(said, "signal 9"))
            fail_msg("the job said: %s", said);
        op_free(said);
    }
    int left = newest(dir);
    stop = 1; /* one rank goes on from there, and stops at once */
    op_error e;
    op_threads_set(1);
    assert_int_equal(learn(NULL, "slow", dir, &e), OP_ERR_INTERRUPTED);
    stop = 0;
    char expected[64];
    snprintf(expected, sizeof expected, "stopped after step %d of", left);
    assert_non_null(strstr(e.message, expected));
    remove_dir(dir);
}

/* Half on three ranks, half on one: as if all of it had been on one. */
static void a_run_that_changes_the_number_of_ranks_has_the_curve_of_one_that_does_not(void **state)
{
    (void)state;
    if (!can_run())
        skip();
    char *one = temp_dir(), *mixed = temp_dir();
    run(1, "full", one);
    run(3, "full", mixed);
    char command[512];
    snprintf(command, sizeof command, "rm -r %s/checkpoints/step-00000012", mixed); /* leaves step 10 */
    assert_int_equal(system(command), 0);
    run(1, "full", mixed);
    assert_same_curve(one, mixed, "loss", LOSS_TOLERANCE);
    assert_same_curve(one, mixed, "grad_norm", NORM_TOLERANCE);
    remove_dir(one);
    remove_dir(mixed);
}

static void a_signal_to_mpirun_stops_all_ranks_after_the_same_step_with_a_checkpoint(void **state)
{
    (void)state;
    if (!can_run())
        skip();
    char *dir = temp_dir();
    pid_t job = start(2, "slow", dir);
    wait_for(dir, "checkpoints/step-00000002");
    assert_int_equal(kill(job, SIGUSR1), 0);
    assert_int_equal(end_of(job), 130);
    char *text = text_of(dir, "metrics.jsonl");
    int lines = 0;
    for (const char *s = text; (s = strstr(s, "\"lr\"")); s++)
        lines++;
    assert_int_equal(newest(dir), lines);
    op_free(text);
    remove_dir(dir);
}

static void ranks_with_other_data_are_refused(void **state)
{
    (void)state;
    if (!can_run())
        skip();
    char *dir = temp_dir();
    int status = end_of(start(2, "other-data", dir));
    char *said = text_of(dir, "said");
    if (status <= 0 || !strstr(said, "rank 1 and rank 0 differ in their settings, data or model"))
        fail_msg("exit status %d; the job said: %s", status, said);
    op_free(said);
    remove_dir(dir);
}

/* Its gradients were to be reduced, and none of them is there yet. */
static void a_rank_that_fails_in_a_step_says_why_and_ends_the_job(void **state)
{
    (void)state;
    if (!can_run())
        skip();
    char *dir = temp_dir();
    assert_true(end_of(start(2, "fails", dir)) > 0);
    char *said = text_of(dir, "said");
    if (!strstr(said, "rank 1: the forward pass failed"))
        fail_msg("the job said: %s", said);
    op_free(said);
    remove_dir(dir);
}

static void a_missing_module_is_an_error_that_names_it(void **state)
{
    (void)state;
    op_parallel *p;
    op_error e;
    assert_int_equal(op_parallel_start(&p, "/nowhere/operant-mpi.so", &e), OP_ERR_UNSUPPORTED);
    assert_non_null(strstr(e.message, "/nowhere/operant-mpi.so"));
    assert_null(p);
}

static void one_process_owns_everything_and_waits_for_nobody(void **state)
{
    (void)state;
    op_shard s;
    float x[] = {1, 2, 3};
    assert_ok(op_shard_init(&s, NULL, 3, e));
    op_span all = op_shard_span(&s, 0);
    assert_true(s.n_chunks == 1 && s.own == 3 && all.first == 0 && all.n == 3 && all.local == 0);
    op_shard_reduce_begin(&s, x);
    op_shard_ready(&s, 1);
    op_shard_end(&s);
    op_parallel_sum(NULL, x, 3);
    assert_true(x[0] == 1 && x[1] == 2 && x[2] == 3);
    assert_true(op_parallel_total(NULL, 0.5) == 0.5);
    assert_true(op_parallel_any(NULL, true) && !op_parallel_any(NULL, false));
    assert_int_equal(op_parallel_threads(NULL, 3), 3);
    op_shard_release(&s);
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "--rank"))
        return be_a_rank(argv[2], argv[3]);
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_process_owns_everything_and_waits_for_nobody),
        cmocka_unit_test(a_missing_module_is_an_error_that_names_it),
        cmocka_unit_test(two_and_three_ranks_have_the_loss_curve_of_one),
        cmocka_unit_test(two_ranks_weigh_pairs_of_answers_that_lie_on_both_as_one_does),
        cmocka_unit_test(two_ranks_give_the_same_bits_every_time),
        cmocka_unit_test(the_death_of_a_rank_ends_the_job_and_another_number_of_ranks_goes_on),
        cmocka_unit_test(a_run_that_changes_the_number_of_ranks_has_the_curve_of_one_that_does_not),
        cmocka_unit_test(a_signal_to_mpirun_stops_all_ranks_after_the_same_step_with_a_checkpoint),
        cmocka_unit_test(ranks_with_other_data_are_refused),
        cmocka_unit_test(a_rank_that_fails_in_a_step_says_why_and_ends_the_job),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
