/* The store, the same tests on SQLite and on a PostgreSQL server of the test's own. */
#include "trial_tools.h"

#include <glob.h>
#include <pwd.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include <sqlite3.h>

#include <operant/store.h>

static char url[256];
static op_store *store;

static void put_random(op_trial *t, uint64_t seed)
{
    random_trial(t, seed);
    json_object_set_new(t->tags, "seed", json_integer((json_int_t)seed));
}

static void a_stored_trial_comes_back_as_it_was(void **state)
{
    (void)state;
    int64_t before = 0;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        op_trial t, back;
        put_random(&t, seed);
        if (before && seed % 3 == 0) {
            t.redo_of = before;
            t.redo_at = t.n_response;
        }
        assert_ok(op_store_add(store, &t, NULL, e));
        assert_true(t.id > before);
        before = t.id;
        assert_ok(op_store_get(store, t.id, &back, e));
        assert_int_equal(back.id, t.id);
        assert_same_trial(&t, &back);
        op_trial_release(&back);
        op_trial_release(&t);
    }
}

static void a_key_stores_a_trial_once(void **state)
{
    (void)state;
    op_trial t, again, other;
    op_store_stats first, second;
    put_random(&t, 7);
    put_random(&again, 7);
    put_random(&other, 8);
    assert_ok(op_store_add(store, &t, "round 1, request 4", e));
    assert_ok(op_store_get_stats(store, &first, e));
    assert_ok(op_store_add(store, &again, "round 1, request 4", e));
    assert_int_equal(again.id, t.id);
    assert_ok(op_store_get_stats(store, &second, e));
    assert_memory_equal(&first, &second, sizeof first);
    assert_int_equal(op_store_add(store, &other, "round 1, request 4", e), OP_ERR_MISMATCH);
    assert_says("stored with other tokens");
    assert_int_equal(other.id, 0);
    op_trial_release(&t);
    op_trial_release(&again);
    op_trial_release(&other);
}

static void plain(op_trial *t)
{
    op_trial_init(t);
    t->prompt = op_alloc_zero(1, 4);
    t->n_prompt = 1;
    t->response = op_alloc_zero(5, 4);
    t->n_response = 5;
}

static void feedback_is_added_once_and_nothing_is_written_over(void **state)
{
    (void)state;
    op_trial t, back;
    int32_t five = 5;
    plain(&t);
    assert_ok(op_store_add(store, &t, NULL, e));
    assert_ok(op_trial_add_mark(&t, 0, 2, -1, NULL, "wrong", e));
    assert_ok(op_trial_add_alternative(&t, 1, &five, 1, -2, false, "model", e));
    t.by = op_strdup("ann");
    for (int i = 0; i < 2; i++) {
        assert_ok(op_store_feedback(store, &t, e));
        assert_ok(op_store_get(store, t.id, &back, e));
        assert_same_trial(&t, &back);
        op_trial_release(&back);
    }
    /* another teacher: its marks bear its name, the trial remains ann's */
    op_free(t.by);
    t.by = op_strdup("bob");
    t.marks[0].start = 3;
    t.marks[0].end = 4;
    t.alternatives[0].picked = true;
    t.has_reward = true;
    t.reward = 0.25;
    assert_ok(op_store_feedback(store, &t, e));
    t.reward = 0.75;
    assert_ok(op_store_feedback(store, &t, e));
    assert_ok(op_store_get(store, t.id, &back, e));
    assert_string_equal(back.by, "ann");
    assert_int_equal(back.n_marks, 2);
    assert_null(back.marks[0].by);
    assert_string_equal(back.marks[1].by, "bob");
    assert_int_equal(back.n_alternatives, 1);
    assert_true(back.alternatives[0].picked);
    assert_true(back.has_reward && back.reward == 0.75);
    op_trial_release(&back);
    /* ann may not contradict her first mark */
    op_free(t.by);
    t.by = op_strdup("ann");
    t.marks[0] = (op_mark){.start = 1, .end = 3, .value = 1, .by = t.marks[0].by, .note = t.marks[0].note};
    t.has_reward = false;
    assert_int_equal(op_store_feedback(store, &t, e), OP_ERR_ARG);
    assert_says("token 1 is marked good and bad");
    assert_ok(op_store_get(store, t.id, &back, e));
    assert_int_equal(back.n_marks, 2);
    op_trial_release(&back);
    op_trial_release(&t);
}

/* Runs SQL on the file itself, behind the store's back. */
static void spoil(const char *sql, int64_t id)
{
    sqlite3 *file;
    char text[300];
    snprintf(text, sizeof text, sql, (long long)id);
    assert_int_equal(sqlite3_open(url, &file), SQLITE_OK);
    assert_int_equal(sqlite3_exec(file, text, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(file);
}

static void a_stored_row_that_no_trial_can_have_is_an_error(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {{"UPDATE trials SET finish = 3 WHERE id = %lld", "stored reason to finish is 3, expected 0..2"},
                                           {"UPDATE trials SET finish = -1 WHERE id = %lld", "stored reason to finish is -1"},
                                           {"UPDATE trials SET forced = 4294967297 WHERE id = %lld", "stored number of forced tokens is 4294967297, expected 0..5"},
                                           {"UPDATE trials SET redo_at = 4294967296 WHERE id = %lld", "stored token to redo from is 4294967296"},
                                           {"UPDATE trials SET top_k = 4294967300 WHERE id = %lld", "stored top_k is 4294967300"},
                                           {"UPDATE trials SET tags = x'7b7d' WHERE id = %lld", "stored tags: found no text"},
                                           {"UPDATE trials SET messages = x'5b5d' WHERE id = %lld", "stored messages: found no text"},
                                           {"UPDATE trials SET prompt = x'ffffffff' WHERE id = %lld", "token 0 of the prompt is -1"},
                                           {"UPDATE trials SET response = x'000000' WHERE id = %lld", "a stored row of 3 bytes"},
                                           {"UPDATE marks SET from_token = 4294967296 WHERE trial = %lld", "stored beginning of a mark is 4294967296"},
                                           {"UPDATE marks SET to_token = 6 WHERE trial = %lld", "a mark on tokens 0..6"},
                                           {"INSERT INTO marks (trial, from_token, to_token, value) VALUES (%lld, 1, 2, 1)", "marked good and bad"},
                                           {"UPDATE alternatives SET at_token = -1 WHERE trial = %lld", "stored place of an alternative is -1"}};
    if (!strncmp(url, "postgresql:", 11))
        return; /* the same code, and a server keeps to the types of its columns */
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        op_trial t, back;
        int32_t five = 5;
        plain(&t);
        assert_ok(op_trial_add_mark(&t, 0, 2, -1, NULL, "wrong", e));
        assert_ok(op_trial_add_alternative(&t, 1, &five, 1, -2, false, "model", e));
        assert_ok(op_store_add(store, &t, NULL, e));
        spoil(wrong[i][0], t.id);
        assert_true(op_store_get(store, t.id, &back, e) != OP_OK);
        assert_says(wrong[i][1]);
        assert_null(back.prompt);
        spoil("DELETE FROM marks WHERE trial = %lld", t.id);
        spoil("DELETE FROM alternatives WHERE trial = %lld", t.id);
        spoil("DELETE FROM tags WHERE trial = %lld", t.id);
        spoil("DELETE FROM trials WHERE id = %lld", t.id);
        op_trial_release(&t);
    }
    /* bytes where text belongs: nobody's name */
    op_trial t, back;
    plain(&t);
    assert_ok(op_trial_add_mark(&t, 0, 2, -1, "ann", "wrong", e));
    assert_ok(op_store_add(store, &t, NULL, e));
    spoil("UPDATE marks SET teacher = x'616e6e', note = x'61' WHERE trial = %lld", t.id);
    spoil("UPDATE trials SET policy = x'61' WHERE id = %lld", t.id);
    assert_ok(op_store_get(store, t.id, &back, e));
    assert_true(!back.marks[0].by && !back.marks[0].note && !back.policy[0]);
    op_trial_release(&back);
    op_trial_release(&t);
}

static void marks_of_nobody_become_those_of_who_judges_first_and_bind_it(void **state)
{
    (void)state;
    op_trial t, back;
    plain(&t);
    assert_ok(op_trial_add_mark(&t, 0, 2, -1, NULL, NULL, e));
    assert_ok(op_store_add(store, &t, NULL, e));
    t.marks[0].value = 1;
    t.by = op_strdup("ann");
    assert_int_equal(op_store_feedback(store, &t, e), OP_ERR_ARG);
    assert_says("token 0 is marked good and bad");
    assert_ok(op_store_get(store, t.id, &back, e)); /* what is stored can be read */
    assert_int_equal(back.n_marks, 1);
    op_trial_release(&back);
    op_trial_release(&t);
}

static op_status count(void *ctx, const op_trial *t, op_error *err)
{
    (void)t;
    (void)err;
    ++*(int *)ctx;
    return OP_OK;
}

static int found(op_store_query q)
{
    int n = 0;
    assert_ok(op_store_each(store, &q, count, &n, e));
    return n;
}

static void a_query_finds_what_it_asks_for(void **state)
{
    (void)state;
    op_trial t;
    op_store_stats stats;
    assert_ok(op_store_get_stats(store, &stats, e));
    int64_t all = stats.trials, last = 0;
    assert_ok(op_store_begin(store, e));
    for (int i = 0; i < 300; i++) {
        plain(&t);
        json_object_set_new(t.tags, "arm", json_string("q"));
        json_object_set_new(t.tags, "step", json_integer(i % 100));
        if (i % 3 == 0)
            assert_ok(op_trial_add_mark(&t, 0, 1, 1, "zoe", NULL, e));
        assert_ok(op_store_add(store, &t, NULL, e));
        last = i == 99 ? t.id : last;
        op_trial_release(&t);
    }
    assert_ok(op_store_commit(store, e));
    assert_int_equal(found((op_store_query){0}), all + 300);
    assert_int_equal(found((op_store_query){.tag = "arm", .value = "q"}), 300);
    assert_int_equal(found((op_store_query){.tag = "step", .value = "7"}), 3);
    assert_int_equal(found((op_store_query){.tag = "arm", .judged = 1}), 100);
    assert_int_equal(found((op_store_query){.tag = "arm", .judged = -1}), 200);
    assert_int_equal(found((op_store_query){.by = "zoe"}), 100);
    assert_int_equal(found((op_store_query){.tag = "arm", .after = last}), 200);
    assert_int_equal(found((op_store_query){.tag = "arm", .limit = 260}), 260);
    assert_int_equal(found((op_store_query){.tag = "nothing"}), 0);
    assert_int_equal(op_store_get(store, 1 << 30, &t, e), OP_ERR_ARG);
    assert_says("there is no trial");
}

typedef struct scores {
    int64_t ids[8];
    double score[8];
    int64_t redo_of[8];
    int n;
} scores;

static op_status note_score(void *ctx, const op_store_score *x, op_error *err)
{
    (void)err;
    scores *y = ctx;
    y->ids[y->n] = x->id;
    y->score[y->n] = x->score;
    y->redo_of[y->n++] = x->redo_of;
    return OP_OK;
}

static void a_run_finds_its_own_trials_by_their_keys_and_what_they_are_worth(void **state)
{
    (void)state;
    static const char *const keys[] = {"0123ab/1/1", "0123ab/1/2", "0123abc/1/1", "0123a", "%123ab/1/1", NULL};
    op_trial t[6];
    for (int i = 0; i < 6; i++) {
        plain(&t[i]);
        if (i == 0)
            assert_ok(op_trial_add_mark(&t[i], 0, 2, -0.5, NULL, NULL, e));
        if (i == 1) {
            assert_ok(op_trial_add_mark(&t[i], 0, 2, -0.5, NULL, NULL, e));
            t[i].has_reward = true;
            t[i].reward = 0.25;
            t[i].redo_of = t[0].id;
        }
        assert_ok(op_store_add(store, &t[i], keys[i], e));
    }
    t[1].reward = 0.75; /* the last one counts */
    assert_ok(op_store_feedback(store, &t[1], e));
    assert_int_equal(found((op_store_query){.key_prefix = "0123ab/"}), 2);
    assert_int_equal(found((op_store_query){.key_prefix = "0123ab"}), 3);
    assert_int_equal(found((op_store_query){.key_prefix = "%123ab/"}), 1);
    assert_int_equal(found((op_store_query){.key_prefix = "nobody"}), 0);
    scores x = {0};
    assert_ok(op_store_each_score(store, &(op_store_query){.key_prefix = "0123ab"}, note_score, &x, e));
    assert_int_equal(x.n, 3);
    assert_true(x.ids[0] == t[0].id && x.score[0] == -0.2 && !x.redo_of[0]);
    assert_true(x.ids[1] == t[1].id && x.score[1] == 0.75 && x.redo_of[1] == t[0].id);
    assert_true(x.ids[2] == t[2].id && isnan(x.score[2]));
    x.n = 0;
    assert_ok(op_store_each_score(store, &(op_store_query){.limit = 5}, note_score, &x, e));
    assert_int_equal(x.n, 5);
    for (int i = 0; i < 6; i++)
        op_trial_release(&t[i]);
}

static void looking_for_a_store_makes_none(void **state)
{
    (void)state;
    op_store *none, *there;
    assert_ok(op_store_find(&none, in_dir("nothing.db"), e));
    assert_null(none);
    assert_false(op_path_exists(in_dir("nothing.db")));
    assert_ok(op_store_find(&there, url, e));
    assert_non_null(there);
    op_store_close(there);
}

static void a_rollback_leaves_nothing_and_a_failed_write_spoils_no_transaction(void **state)
{
    (void)state;
    op_store_stats before, after;
    op_trial t, bad;
    plain(&t);
    plain(&bad);
    assert_ok(op_trial_add_mark(&bad, 0, 1, 1, NULL, NULL, e));
    bad.redo_of = 1 << 30; /* not there */
    assert_ok(op_store_get_stats(store, &before, e));
    assert_ok(op_store_begin(store, e));
    assert_ok(op_store_add(store, &t, NULL, e));
    op_store_rollback(store);
    assert_ok(op_store_get_stats(store, &after, e));
    assert_memory_equal(&before, &after, sizeof before);
    assert_ok(op_store_begin(store, e));
    assert_int_equal(op_store_add(store, &bad, NULL, e), OP_ERR_IO);
    assert_ok(op_store_add(store, &t, NULL, e));
    assert_ok(op_store_commit(store, e));
    assert_ok(op_store_get_stats(store, &after, e));
    assert_true(after.trials == before.trials + 1 && after.marks == before.marks);
    op_trial_release(&t);
    op_trial_release(&bad);
}

static op_status open_add_get(void *ctx)
{
    op_store *s;
    op_trial copy, back;
    op_status status = op_trial_copy(&copy, ctx, e);
    if (status)
        return status;
    status = op_store_open(&s, url, e);
    if (!status) {
        status = op_store_add(s, &copy, NULL, e);
        if (!status && !(status = op_store_get(s, copy.id, &back, e)))
            op_trial_release(&back);
        op_store_close(s);
    }
    op_trial_release(&copy);
    return status;
}

static void every_failed_allocation_of_ours_comes_back_and_leaks_nothing(void **state)
{
    (void)state;
    op_trial t;
    put_random(&t, 21);
    t.messages = t.messages ? t.messages : parse("[{\"role\":\"user\",\"content\":\"x\"}]");
    fail_every_allocation(open_add_get, &t);
    op_trial_release(&t);
}

/* ---- several writers, killed at any moment ---- */

enum { WRITERS = 4, KILLS = 24, MAX_TRIALS = 4000 };

typedef struct told {
    int writer, trial, stage;
} told;

/* Trial i of writer w, whole and then with a reward; both told once they are acknowledged. */
static void write_trials(int w, int first, int out)
{
    op_store *s;
    if (op_store_open(&s, url, e))
        _exit(1);
    for (int i = first; i < MAX_TRIALS; i++) {
        op_trial t;
        char key[64];
        told word = {w, i, 1};
        put_random(&t, 1000000u + (uint64_t)(w * MAX_TRIALS + i));
        snprintf(key, sizeof key, "writer %d trial %d", w, i);
        json_object_set_new(t.tags, "crash", json_true());
        t.has_reward = false;
        if (op_store_add(s, &t, key, e) || write(out, &word, sizeof word) != sizeof word)
            _exit(1);
        t.has_reward = true;
        t.reward = 0.5;
        word.stage = 2;
        if (op_store_feedback(s, &t, e) || write(out, &word, sizeof word) != sizeof word)
            _exit(1);
        op_trial_release(&t);
    }
    _exit(0);
}

static pid_t start_writer(int w, int first, int out)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        write_trials(w, first, out);
    }
    return pid;
}

typedef struct tally {
    unsigned char (*stage)[MAX_TRIALS];
    unsigned char (*seen)[MAX_TRIALS];
} tally;

static op_status check_whole(void *ctx, const op_trial *t, op_error *err)
{
    (void)err;
    tally *y = ctx;
    op_trial want;
    int64_t seed = json_integer_value(json_object_get(t->tags, "seed")), which = seed - 1000000;
    int w = (int)(which / MAX_TRIALS), i = (int)(which % MAX_TRIALS);
    put_random(&want, (uint64_t)seed);
    json_object_set_new(want.tags, "crash", json_true());
    want.has_reward = t->has_reward;
    want.reward = 0.5;
    assert_same_trial(&want, t);
    assert_true(t->has_reward || y->stage[w][i] < 2);
    assert_int_equal(y->seen[w][i]++, 0);
    op_trial_release(&want);
    return OP_OK;
}

static void killed_writers_lose_nothing_acknowledged_and_leave_nothing_half(void **state)
{
    (void)state;
    static unsigned char stage[WRITERS][MAX_TRIALS], seen[WRITERS][MAX_TRIALS];
    pid_t pids[WRITERS];
    int next[WRITERS] = {0}, line[2], acknowledged = 0;
    uint64_t c = 0, seed = (uint64_t)getpid();
    told word;
    memset(stage, 0, sizeof stage);
    memset(seen, 0, sizeof seen);
    assert_int_equal(pipe(line), 0);
    op_store_close(store); /* no connection may cross a fork */
    store = NULL;
    for (int w = 0; w < WRITERS; w++)
        pids[w] = start_writer(w, 0, line[1]);
    for (int k = 0; k < KILLS + WRITERS; k++) {
        struct timespec pause = {.tv_nsec = (long)(1000000 * (10 + draw(seed, &c, 120)))};
        int w = k < KILLS ? (int)draw(seed, &c, WRITERS) : k - KILLS, status;
        nanosleep(&pause, NULL);
        kill(pids[w], SIGKILL);
        waitpid(pids[w], &status, 0);
        assert_true(WIFSIGNALED(status)); /* it had not failed by itself */
        struct timespec none = {0};
        fd_set ready;
        for (;;) {
            FD_ZERO(&ready);
            FD_SET(line[0], &ready);
            if (pselect(line[0] + 1, &ready, NULL, NULL, &none, NULL) < 1)
                break;
            assert_int_equal(read(line[0], &word, sizeof word), sizeof word);
            stage[word.writer][word.trial] = (unsigned char)word.stage;
            next[word.writer] = word.trial + (word.stage == 2);
            acknowledged++;
        }
        if (k < KILLS)
            pids[w] = start_writer(w, next[w], line[1]); /* the trial that was under way comes again under its key */
    }
    while (close(line[1]), read(line[0], &word, sizeof word) == sizeof word) {
        stage[word.writer][word.trial] = (unsigned char)word.stage;
        acknowledged++;
    }
    close(line[0]);
    assert_ok(op_store_open(&store, url, e));
    tally y = {stage, seen};
    assert_ok(op_store_each(store, &(op_store_query){.tag = "crash"}, check_whole, &y, e));
    for (int w = 0; w < WRITERS; w++)
        for (int i = 0; i < MAX_TRIALS; i++)
            assert_true(!stage[w][i] || seen[w][i]);
    assert_true(acknowledged > 2 * WRITERS);
    print_message("%d writes acknowledged by %d writers through %d kills\n", acknowledged, WRITERS, KILLS + WRITERS);
}

static void a_store_of_another_version_is_refused(void **state)
{
    (void)state;
    op_store *other;
    if (strncmp(url, "postgresql:", 11) == 0) {
        assert_int_equal(op_store_open(&other, "postgresql://operant@/postgres?host=/nowhere/at/all", e), OP_ERR_IO);
        assert_says("postgresql: ");
        return;
    }
    const char *path = in_dir("no.db");
    assert_ok(op_file_put(path, "this is no database, but long enough to be taken for one.......................................................", 110, e));
    assert_int_equal(op_store_open(&other, path, e), OP_ERR_FORMAT);
    assert_says("no.db: ");
    assert_int_equal(op_store_open(&other, in_dir("not/there.db"), e), OP_ERR_IO);
}

static int open_store(void **state)
{
    (void)state;
    if (op_store_open(&store, url, e))
        return print_error("%s\n", e->message), -1;
    return 0;
}

static int close_store(void **state)
{
    (void)state;
    op_store_close(store);
    store = NULL;
    return 0;
}

/* ---- a server of our own: as an unprivileged user, on a socket in a directory of its own ---- */

static pid_t server;
static char home[64];

static pid_t start_as(const struct passwd *user, const char *const *argv)
{
    pid_t pid = fork();
    if (pid)
        return pid;
    FILE *quiet = freopen(in_dir("server.log"), "a", stdout);
    if (!quiet || dup2(fileno(stdout), STDERR_FILENO) < 0 || chdir(home) || (user && (setgid(user->pw_gid) || setuid(user->pw_uid))))
        _exit(1);
    prctl(PR_SET_PDEATHSIG, SIGQUIT);
    execv(argv[0], (char *const *)(uintptr_t)argv);
    _exit(1);
}

/* NULL: it runs; else why not. */
static const char *start_server(void)
{
    glob_t found;
    char initdb[256], postgres[256], data[128], sockets[128];
    int status;
    const struct passwd *user = geteuid() ? NULL : getpwnam("nobody");
    if (!geteuid() && !user)
        return "there is no user \"nobody\" to run a server as";
    int none = glob("/usr/lib/postgresql/*/bin/initdb", 0, NULL, &found);
    if (!none)
        snprintf(initdb, sizeof initdb, "%s", found.gl_pathv[found.gl_pathc - 1]);
    globfree(&found);
    if (none)
        return "no PostgreSQL server under /usr/lib/postgresql (Debian's package postgresql)";
    snprintf(postgres, sizeof postgres, "%.*spostgres", (int)(strlen(initdb) - strlen("initdb")), initdb);
    strcpy(home, "/tmp/operant-pg-XXXXXX");
    if (!mkdtemp(home) || (user && chown(home, user->pw_uid, user->pw_gid)))
        return "no temporary directory for the server";
    snprintf(data, sizeof data, "%s/data", home);
    snprintf(sockets, sizeof sockets, "unix_socket_directories=%s", home);
    const char *make[] = {initdb, "-D", data, "-A", "trust", "-U", "operant", "-E", "UTF8", "--locale=C", "--no-sync", NULL};
    pid_t pid = start_as(user, make);
    if (pid < 0 || waitpid(pid, &status, 0) < 0 || status)
        return "initdb failed";
    const char *serve[] = {postgres, "-D", data, "-c", sockets, "-c", "listen_addresses=", "-c", "fsync=off", NULL};
    server = start_as(user, serve);
    snprintf(url, sizeof url, "postgresql://operant@/postgres?host=%s", home);
    for (int i = 0; i < 200; i++) {
        op_store *s;
        if (!op_store_open(&s, url, e)) {
            op_store_close(s);
            return NULL;
        }
        usleep(100000);
    }
    return "the server did not start";
}

static void stop_server(void)
{
    if (server > 0) {
        kill(server, SIGINT);
        waitpid(server, NULL, 0);
    }
    if (home[0])
        op_path_remove(home, NULL);
}

static void skipped(void **state)
{
    (void)state;
    skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stored_trial_comes_back_as_it_was),
        cmocka_unit_test(a_key_stores_a_trial_once),
        cmocka_unit_test(feedback_is_added_once_and_nothing_is_written_over),
        cmocka_unit_test(a_stored_row_that_no_trial_can_have_is_an_error),
        cmocka_unit_test(marks_of_nobody_become_those_of_who_judges_first_and_bind_it),
        cmocka_unit_test(a_query_finds_what_it_asks_for),
        cmocka_unit_test(a_run_finds_its_own_trials_by_their_keys_and_what_they_are_worth),
        cmocka_unit_test(looking_for_a_store_makes_none),
        cmocka_unit_test(a_rollback_leaves_nothing_and_a_failed_write_spoils_no_transaction),
        cmocka_unit_test(killed_writers_lose_nothing_acknowledged_and_leave_nothing_half),
        cmocka_unit_test(a_store_of_another_version_is_refused),
        cmocka_unit_test(every_failed_allocation_of_ours_comes_back_and_leaks_nothing),
    };
    const struct CMUnitTest no_server[] = {cmocka_unit_test_prestate(skipped, NULL)};
    open_words(NULL);
    snprintf(url, sizeof url, "%s", in_dir("trials.db"));
    int failed = cmocka_run_group_tests_name("sqlite", tests, open_store, close_store);
    const char *why = start_server();
    if (why)
        printf("skip: the store on PostgreSQL (%s)\n", why);
    failed += why ? cmocka_run_group_tests_name("postgresql", no_server, NULL, NULL) : cmocka_run_group_tests_name("postgresql", tests, open_store, close_store);
    stop_server();
    close_words(NULL);
    return failed;
}
