/* operant teach as a person uses it: through a pseudo-terminal, key by key. A tiny random model and a store lie in a directory of their own. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <operant/model.h>
#include <operant/store.h>

#include "trial_tools.h"

static char screen[1 << 20]; /* all that was written since the start of the program */
static size_t shown;
static int terminal;
static pid_t program;

static int set_up(void **state)
{
    open_words(state);
    op_model_config c = {.family = OP_LLAMA, .vocab = 416, .width = 32, .layers = 1, .heads = 2, .kv_heads = 1, .head_dim = 16, .ffn = 32,
                         .max_positions = 128, .norm_eps = 1e-5f, .rope_theta = 10000, .tied = true, .bos = 401, .pad = 400, .eos = {402}, .n_eos = 1};
    op_model *m;
    assert_ok(op_dir_make(in_dir("model"), e));
    assert_ok(op_model_new(&m, &c, &(op_model_options){.trainable = OP_TRAIN_ALL, .seed = 3}, e));
    assert_ok(op_model_save(m, in_dir("model"), OP_F32, e));
    op_model_free(m);
    assert_ok(op_tokenizer_save(tokenizer, in_dir("model"), e));
    return 0;
}

static int tear_down(void **state)
{
    return close_words(state);
}

/* A fresh store with these responses. */
static void put_store(const char *const *words, int n)
{
    op_store *s;
    op_path_remove(in_dir("t.db"), e);
    op_path_remove(in_dir("t.db.draft"), e);
    assert_ok(op_store_open(&s, in_dir("t.db"), e));
    for (int i = 0; i < n; i++) {
        op_trial t;
        op_tokens ids;
        op_tokens_init(&ids);
        assert_ok(op_tokenizer_encode(tokenizer, words[i], strlen(words[i]), OP_ENCODE_CONTINUE, &ids, e));
        op_trial_init(&t);
        t.prompt = op_alloc_zero(2, 4);
        t.n_prompt = 2;
        t.messages = parse("[{\"role\":\"user\",\"content\":\"what do you see?\"}]");
        t.response = op_alloc_array(ids.n, 4);
        t.n_response = (int32_t)ids.n;
        memcpy(t.response, ids.ids, ids.n * 4);
        assert_ok(op_store_add(s, &t, NULL, e));
        op_tokens_release(&ids);
        op_trial_release(&t);
    }
    op_store_close(s);
}

static void get(int64_t id, op_trial *t)
{
    op_store *s;
    assert_ok(op_store_open(&s, in_dir("t.db"), e));
    assert_ok(op_store_get(s, id, t, e));
    op_store_close(s);
}

static void start(void)
{
    shown = 0;
    struct winsize size = {.ws_row = 30, .ws_col = 80};
    const char *operant = getenv("OPERANT");
    program = forkpty(&terminal, NULL, NULL, &size);
    assert_true(program >= 0);
    if (!program) {
        signal(SIGHUP, SIG_DFL); /* under nohup it would be ignored for good */
        signal(SIGINT, SIG_DFL);
        setenv("TERM", "xterm", 1);
        setenv("NO_COLOR", "1", 1);
        if (!chdir(dir))
            execl(operant ? operant : "build/operant", "operant", "teach", "store=t.db", "model=model", "by=ann", "max_tokens=4", (char *)NULL);
        _exit(127);
    }
}

static void read_some(int ms)
{
    struct pollfd f = {.fd = terminal, .events = POLLIN};
    if (poll(&f, 1, ms) <= 0)
        return;
    ssize_t n = read(terminal, screen + shown, sizeof screen - 1 - shown);
    if (n <= 0) /* nobody holds the other end any more */
        usleep((unsigned)ms * 1000);
    shown += n > 0 ? (size_t)n : 0;
    screen[shown] = 0;
}

/* Waits until what was written after byte `from` has these words. */
static void sees(size_t from, const char *words)
{
    for (int i = 0; i < 3000; i++) {
        screen[shown] = 0;
        if (strstr(screen + from, words))
            return;
        read_some(20);
    }
    fail_msg("the screen never showed \"%s\" but: %s", words, screen + from);
}

/* Types keys; then the screen shows the words. */
static void types(const char *keys, const char *words)
{
    size_t from = shown;
    assert_int_equal(write(terminal, keys, strlen(keys)), strlen(keys));
    sees(from, words);
}

static int ends(void)
{
    int status;
    for (int i = 0; i < 6000; i++) {
        read_some(10); /* at once, where the program has closed its side and is still leaving */
        usleep(10000);
        if (waitpid(program, &status, WNOHANG) == program) {
            close(terminal);
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
    }
    kill(program, SIGKILL);
    fail_msg("the program does not end");
    return -1;
}

#define RIGHT "\033[C"
#define LEFT "\033[D"

static void marks_an_alternative_and_a_reward_reach_the_store(void **state)
{
    (void)state;
    const char *const words[] = {"one two three", "four five"};
    put_store(words, 2);
    start();
    sees(0, "trial 1  1 of 2");
    sees(0, "what do you see?");
    types(RIGHT, "token 1 of");
    types("-", "(draft)");
    types(RIGHT, "token 2 of");
    types("v", "token 2");
    types(RIGHT, "token 3 of");
    types("+", "token 3 of");
    types("2", "token 3 of");
    types("b", "BAD");
    types("\r", "trial 2  2 of 2");
    types("q", "\033[?1049l");
    assert_int_equal(ends(), 0);
    op_trial t;
    get(1, &t);
    assert_int_equal(t.n_marks, 2);
    assert_true(t.marks[0].start == 1 && t.marks[0].end == 2 && t.marks[0].value == -1);
    assert_true(t.marks[1].start == 2 && t.marks[1].end == 4 && t.marks[1].value == 1);
    assert_string_equal(t.marks[0].by, "ann");
    assert_int_equal(t.n_alternatives, 1);
    assert_true(t.alternatives[0].at == 3 && t.alternatives[0].picked && t.alternatives[0].logprob < 0);
    assert_true(t.has_reward && t.reward == -1);
    assert_string_equal(t.by, "ann");
    op_trial_release(&t);
    get(2, &t);
    assert_true(!t.n_marks && !t.has_reward && !t.by);
    op_trial_release(&t);
    assert_false(op_path_exists(in_dir("t.db.draft")));
}

static void undo_takes_back_one_thing_at_a_time(void **state)
{
    (void)state;
    const char *const words[] = {"one two three"};
    put_store(words, 1);
    start();
    sees(0, "trial 1");
    types("g", "GOOD");
    types("b", "BAD");
    types("u", "GOOD");
    types("u", "token 0");
    types(RIGHT, "token 1 of");
    types("t", "> ");
    types(" sea\x7f\x7ft", ">  st");
    types("\r", "(draft)");
    types("\r", "\033[?1049l"); /* that was the last */
    assert_int_equal(ends(), 0);
    op_trial t;
    get(1, &t);
    assert_false(t.has_reward);
    assert_int_equal(t.n_alternatives, 1);
    op_buf b;
    op_buf_init(&b, 100);
    assert_ok(op_tokenizer_decode(tokenizer, t.alternatives[0].ids, (size_t)t.alternatives[0].n, OP_DECODE_ALL, &b));
    assert_string_equal(b.data, " st");
    assert_string_equal(t.alternatives[0].by, "ann");
    op_buf_release(&b);
    op_trial_release(&t);
}

static void the_model_tries_again_from_the_token_that_was_taken(void **state)
{
    (void)state;
    const char *const words[] = {"one two three"};
    put_store(words, 1);
    start();
    sees(0, "trial 1");
    types(RIGHT, "token 1 of");
    types("-", "(draft)");
    types("a", "which of the ten?");
    types("0", "token 1 of");
    types("r", "trial 2");
    sees(0, "(again)");
    types("g", "GOOD");
    types("\r", "\033[?1049l");
    assert_int_equal(ends(), 0);
    op_trial before, again;
    get(1, &before);
    get(2, &again);
    assert_true(before.n_marks == 1 && before.n_alternatives == 1);
    assert_true(again.redo_of == 1 && again.redo_at == 1 && again.n_forced == 2);
    assert_int_equal(again.response[0], before.response[0]);
    assert_int_equal(again.response[1], before.alternatives[0].ids[0]);
    assert_true(again.n_response > 2 && again.n_response <= 6);
    assert_true(isnan(again.logprobs[1]) && again.logprobs[2] <= 0);
    assert_int_equal(strlen(again.policy), 64);
    assert_true(again.has_reward && again.reward == 1 && again.messages);
    op_trial_release(&before);
    op_trial_release(&again);
}

static void nothing_is_lost_however_the_program_ends(void **state)
{
    (void)state;
    const int signals[] = {SIGINT, SIGKILL, SIGTERM, SIGHUP};
    const char *const words[] = {"one two three", "four five"};
    for (int i = 0; i < 4; i++) {
        put_store(words, 2);
        start();
        sees(0, "trial 1");
        types("\r", "trial 2"); /* nothing said: goes on */
        types(RIGHT, "token 1 of");
        types("-", "(draft)");
        if (signals[i] == SIGINT)
            types("\003", "\033[?1049l"); /* Ctrl-C as the terminal gives it */
        else
            kill(program, signals[i]);
        int status = ends();
        assert_true(i == 0 || i == 2 ? status == 0 : status == 128 + signals[i]);
        assert_true(op_path_exists(in_dir("t.db.draft")));
        start();
        sees(0, "trial 2  1 of 2"); /* the unfinished one comes first */
        sees(0, "the draft was taken up again");
        types("\r", "trial 1  2 of 2");
        types("q", "\033[?1049l");
        assert_int_equal(ends(), 0);
        op_trial t;
        get(2, &t);
        assert_true(t.n_marks == 1 && t.marks[0].start == 1 && t.marks[0].value == -1);
        op_trial_release(&t);
        assert_false(op_path_exists(in_dir("t.db.draft")));
    }
}

static void another_size_is_drawn_at_once_however_small(void **state)
{
    (void)state;
    const char *const words[] = {"one two three\nfour five six seven eight nine ten eleven twelve\n\xe2\x9c\x93 caf\xc3\xa9"};
    put_store(words, 1);
    start();
    sees(0, "trial 1");
    for (unsigned short n = 40; n > 0; n = n > 3 ? n / 2 : n - 1) {
        size_t from = shown;
        assert_int_equal(ioctl(terminal, TIOCSWINSZ, &(struct winsize){.ws_row = n, .ws_col = n}), 0);
        sees(from, "\033[J");
        from = shown;
        types("\033[F", "\033[J"); /* to the end, and back */
        types("\033[H", "\033[J");
    }
    types("?", "\033[J");
    types("x", "\033[J");
    types("q", "\033[?1049l");
    assert_int_equal(ends(), 0);
}

static void a_pipe_is_told_that_it_is_no_terminal(void **state)
{
    (void)state;
    char command[600], text[600] = "";
    const char *operant = getenv("OPERANT");
    snprintf(command, sizeof command, "cd %s && echo g | %s teach store=t.db model=model 2>&1", dir, operant ? operant : "build/operant");
    FILE *p = popen(command, "r");
    assert_non_null(p);
    text[fread(text, 1, sizeof text - 1, p)] = 0;
    assert_int_equal(WEXITSTATUS(pclose(p)), 1);
    assert_non_null(strstr(text, "operant teach is for a person at a terminal, and standard input is none"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(marks_an_alternative_and_a_reward_reach_the_store),
        cmocka_unit_test(undo_takes_back_one_thing_at_a_time),
        cmocka_unit_test(the_model_tries_again_from_the_token_that_was_taken),
        cmocka_unit_test(nothing_is_lost_however_the_program_ends),
        cmocka_unit_test(another_size_is_drawn_at_once_however_small),
        cmocka_unit_test(a_pipe_is_told_that_it_is_no_terminal),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
