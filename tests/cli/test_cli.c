/* The program as a person calls it: words in, bytes and an exit status out. A tiny random model lies in a directory of its own. */
#include <ctype.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include <operant/file.h>
#include <operant/model.h>
#include <operant/tokenizer.h>

#include "base/mem.h"
#include "io/file.h"

static char dir[64];             /* holds model/, data and all outputs; the program runs in it */
static char out[1 << 20], err[1 << 16];

static const char *in_dir(const char *name)
{
    static char paths[4][256];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", dir, name);
    return path;
}

static void read_text(const char *name, char *text, size_t room)
{
    FILE *f = fopen(in_dir(name), "r");
    assert_non_null(f);
    text[fread(text, 1, room - 1, f)] = 0;
    fclose(f);
}

static void write_text(const char *name, const char *text)
{
    assert_int_equal(op_file_put(in_dir(name), text, strlen(text), NULL), OP_OK);
}

static const char *launcher = ""; /* what stands before the program */

/* Runs "operant WORDS" in the directory; out and err receive what it wrote. Returns its exit status. */
static int operant(const char *format, ...)
{
    char words[2048], command[4096];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    const char *program = getenv("OPERANT");
    snprintf(command, sizeof command, "cd %s && %s%s %s >.out 2>.err", dir, launcher, program ? program : "build/operant", words);
    int status = system(command);
    read_text(".out", out, sizeof out);
    read_text(".err", err, sizeof err);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#define assert_has(text, part) assert_non_null(strstr(text, part))

static void succeeds(int status)
{
    if (status)
        fputs(err, stderr);
    assert_int_equal(status, 0);
}

/* Line i of a JSONL file as an object that the caller decrefs; NULL past the end. */
static json_t *line_of(const char *name, int i)
{
    static char text[1 << 20];
    read_text(name, text, sizeof text);
    char *line = strtok(text, "\n");
    while (line && i--)
        line = strtok(NULL, "\n");
    return line ? json_loads(line, 0, NULL) : NULL;
}

static const char *string_in(json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    assert_non_null(s);
    return s;
}

static int set_up(void **state)
{
    (void)state;
    strcpy(dir, access("/dev/shm", W_OK) ? "/tmp/operant-test-XXXXXX" : "/dev/shm/operant-test-XXXXXX");
    assert_non_null(mkdtemp(dir));
    assert_int_equal(op_dir_make(in_dir("model"), NULL), OP_OK);
    op_model_config c = {.family = OP_LLAMA, .vocab = 403, .width = 64, .layers = 2, .heads = 2, .kv_heads = 1, .head_dim = 32, .ffn = 96,
                         .max_positions = 256, .norm_eps = 1e-5f, .rope_theta = 10000, .tied = true, .bos = 401, .pad = 400, .eos = {402},
                         .n_eos = 1};
    op_model *m;
    assert_int_equal(op_model_new(&m, &c, &(op_model_options){.trainable = OP_TRAIN_ALL, .seed = 5}, NULL), OP_OK);
    op_params p = op_model_params(m);
    for (size_t i = 0; i < p.n; i++)
        p.values[i] *= i < p.table[0].n ? 20 : 3; /* surer of its tokens than a fresh model */
    assert_int_equal(op_model_save(m, in_dir("model"), OP_F32, NULL), OP_OK);
    op_model_free(m);
    op_buf b;
    op_buf_init(&b, 1 << 20);
    char source[512];
    const char *fixtures = getenv("FIXTURES");
    snprintf(source, sizeof source, "%s/smollm.json", fixtures ? fixtures : "tests/text/fixtures");
    assert_int_equal(op_file_read(source, &b, NULL), OP_OK);
    write_text("model/tokenizer.json", b.data);
    op_buf_release(&b);
    write_text("model/tokenizer_config.json",
               "{\"tokenizer_class\":\"GPT2Tokenizer\",\"bos_token\":\"<|im_start|>\",\"eos_token\":\"<|im_end|>\",\"pad_token\":\"<|endoftext|>\",\"chat_template\":"
               "\"{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
               "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\"}");
    write_text("p.jsonl", "{\"id\":\"a\",\"messages\":[{\"role\":\"system\",\"content\":\"be brief\"},{\"role\":\"user\",\"content\":\"hello\"}]}\n"
                          "{\"id\":\"b\",\"messages\":[{\"role\":\"system\",\"content\":\"be brief\"},{\"role\":\"user\",\"content\":\"and the time?\"}]}\n"
                          "{\"id\":\"c\",\"prompt\":\"once upon a time\"}\n");
    write_text("d.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"},{\"role\":\"assistant\",\"content\":\"why?\"}]}\n"
                          "{\"messages\":[{\"role\":\"user\",\"content\":\"the time\"},{\"role\":\"assistant\",\"content\":\"no\",\"weight\":-0.5}]}\n");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    return op_path_remove(dir, NULL);
}

/* ---- calling it ---- */

static void without_a_verb_it_says_how_it_is_called(void **state)
{
    (void)state;
    assert_int_equal(operant(""), 2);
    assert_has(err, "usage: operant VERB");
    assert_string_equal(out, "");
    succeeds(operant("--help"));
    assert_has(out, "usage: operant VERB");
    succeeds(operant("--version"));
    assert_has(out, "operant " OPERANT_VERSION);
}

static void an_unknown_verb_or_key_is_answered_with_the_nearest(void **state)
{
    (void)state;
    assert_int_equal(operant("generat model=model"), 2);
    assert_has(err, "did you mean \"generate\"?");
    assert_int_equal(operant("generate model=model input=p.jsonl output=o.jsonl temprature=1"), 2);
    assert_has(err, "\"temperature\"");
    write_text("bad.yaml", "model: model\nlearnin_rate: 1e-3\n");
    assert_int_equal(operant("train --config bad.yaml"), 2);
    assert_has(err, "bad.yaml: line 2");
    assert_has(err, "\"learning_rate\"");
    assert_int_equal(operant("generate model=model input=p.jsonl output=o.jsonl top_p=2"), 2);
    assert_has(err, "top_p");
    assert_int_equal(operant("score model=model"), 2);
    assert_has(err, "input=P.jsonl and output=O.jsonl are needed");
    assert_string_equal(out, "");
}

static void every_verb_explains_itself(void **state)
{
    (void)state;
    static const char *const verbs[] = {"train", "chat", "assay", "generate", "score", "preprocess", "export", "inspect", "lab", "env", "bench"};
    for (int i = 0; i < 11; i++) {
        char usage[64];
        snprintf(usage, sizeof usage, "usage: operant %s ", verbs[i]);
        succeeds(operant("%s --help", verbs[i]));
        assert_has(out, usage);
        assert_has(out, "example");
        succeeds(operant("help %s", verbs[i]));
        assert_has(out, usage);
    }
    succeeds(operant("train --help"));
    assert_has(out, "learning_rate");
}

static void a_failure_names_the_file_and_exits_with_one(void **state)
{
    (void)state;
    assert_int_equal(operant("inspect nowhere.gguf"), 1);
    assert_has(err, "operant: nowhere.gguf: ");
    assert_int_equal(operant("generate model=nowhere input=p.jsonl output=o.jsonl"), 1);
    assert_has(err, "nowhere");
    write_text("odd.jsonl", "{\"prompt\":\"a\"}\n{\"promt\":\"b\"}\n");
    assert_int_equal(operant("generate model=model input=odd.jsonl output=o.jsonl"), 1);
    assert_has(err, "odd.jsonl:2: ");
    char line[2048] = "{\"prompt\":\"";
    for (int i = 0; i < 256; i++)
        strcat(line, "1 ");
    strcat(line, "\"}\n");
    write_text("long.jsonl", line);
    assert_int_equal(operant("generate model=model input=long.jsonl output=o.jsonl"), 1);
    assert_has(err, "long.jsonl:1: a prompt of ");
    assert_int_equal(access(in_dir("o.jsonl"), F_OK), -1);
}

/* ---- generate and score ---- */

static void generate_answers_every_line_and_repeats_it(void **state)
{
    (void)state;
    succeeds(operant("generate model=model input=p.jsonl output=o.jsonl max_tokens=12 temperature=0 dtype=f32 --json"));
    json_t *summary = json_loads(out, 0, NULL);
    assert_int_equal(json_integer_value(json_object_get(summary, "lines")), 3);
    json_decref(summary);
    for (int i = 0; i < 3; i++) {
        json_t *asked = line_of("p.jsonl", i), *answer = line_of("o.jsonl", i), *v;
        const char *key;
        assert_non_null(answer);
        json_object_foreach(asked, key, v) assert_true(json_equal(v, json_object_get(answer, key)));
        size_t n = json_array_size(json_object_get(answer, "tokens"));
        assert_in_range(n, 1, 12);
        assert_int_equal(json_array_size(json_object_get(answer, "logprobs")), n);
        assert_string_equal(string_in(answer, "finish_reason"), n == 12 ? "length" : "stop");
        string_in(answer, "response");
        json_decref(asked);
        json_decref(answer);
    }
    assert_null(line_of("o.jsonl", 3));
    assert_int_equal(access(in_dir("o.jsonl.part"), F_OK), -1);
}

static void an_answer_depends_on_its_line_and_the_seed_alone(void **state)
{
    (void)state;
    static char one[1 << 16], many[1 << 16];
    succeeds(operant("generate model=model input=p.jsonl output=one.jsonl max_tokens=8 temperature=1 seed=4 batch=1 dtype=f32"));
    succeeds(operant("generate model=model input=p.jsonl output=many.jsonl max_tokens=8 temperature=1 seed=4 batch=8 dtype=f32"));
    read_text("one.jsonl", one, sizeof one);
    read_text("many.jsonl", many, sizeof many);
    assert_string_equal(one, many);
    succeeds(operant("generate model=model input=p.jsonl output=many.jsonl max_tokens=8 temperature=1 seed=5 dtype=f32"));
    read_text("many.jsonl", many, sizeof many);
    assert_string_not_equal(one, many);
}

static void generate_goes_on_from_the_lines_it_finds(void **state)
{
    (void)state;
    static char whole[1 << 16], again[1 << 16];
    succeeds(operant("generate model=model input=p.jsonl output=whole.jsonl max_tokens=6 temperature=1 dtype=f32"));
    read_text("whole.jsonl", whole, sizeof whole);
    char *second = strchr(whole, '\n') + 1;
    strcpy(again, whole);
    again[second - whole + 20] = 0; /* the first line and a piece of the second: as a kill leaves it */
    write_text("again.jsonl.part", again);
    static char record[1 << 12];
    read_text("whole.jsonl.run.json", record, sizeof record);
    write_text("again.jsonl.run.json", record);
    succeeds(operant("generate model=model input=p.jsonl output=again.jsonl max_tokens=6 temperature=1 dtype=f32 resume=true"));
    read_text("again.jsonl", again, sizeof again);
    assert_string_equal(again, whole);

    json_t *first = line_of("whole.jsonl", 0);
    json_object_set_new(first, "response", json_string("kept as it was"));
    char *line = json_dumps(first, JSON_COMPACT);
    write_text("again.jsonl", line);
    snprintf(again, sizeof again, "%s\n", line);
    write_text("again.jsonl", again);
    free(line);
    json_decref(first);
    succeeds(operant("generate model=model input=p.jsonl output=again.jsonl max_tokens=6 temperature=1 dtype=f32 resume=true"));
    read_text("again.jsonl", again, sizeof again);
    assert_has(again, "kept as it was");
    assert_string_equal(strchr(again, '\n'), strchr(whole, '\n'));

    write_text("other.jsonl.part", second);
    assert_int_equal(operant("generate model=model input=p.jsonl output=other.jsonl max_tokens=6 resume=true"), 1);
    assert_has(err, "other.jsonl.part:1: ");
}

static void generate_does_not_go_on_with_another_model_or_other_settings(void **state)
{
    (void)state;
    static char record[1 << 12], now[1 << 12];
    const char *words = "generate model=model input=p.jsonl output=r.jsonl max_tokens=4 temperature=1 dtype=f32 stop=xyz";
    succeeds(operant("%s", words));
    read_text("r.jsonl.run.json", record, sizeof record);
    succeeds(operant("%s resume=true batch=2 threads=1", words));
    static const char *const other[][2] = {{"temperature=0.5", "temperature was 1.0, now it is 0.5"}, {"max_tokens=5", "max_tokens"},
                                           {"stop=xy", "stop was [\"xyz\"], now it is [\"xy\"]"}, {"seed=9", "seed"}, {"dtype=bf16", "dtype"}};
    for (int i = 0; i < 5; i++) {
        assert_int_equal(operant("%s resume=true %s", words, other[i][0]), 1);
        assert_has(err, "r.jsonl.run.json: ");
        assert_has(err, other[i][1]);
    }
    succeeds(operant("train model=model train_file=d.jsonl output_dir=changed method=full learning_rate=0.01 max_steps=1 eval_fraction=0 max_length=64 "
                     "dtype=f32 save_dtype=f32"));
    assert_int_equal(operant("%s resume=true model=changed", words), 1);
    assert_has(err, "model (a fingerprint of the weights) was ");
    read_text("r.jsonl.run.json", now, sizeof now);
    assert_string_equal(now, record);
    assert_int_equal(unlink(in_dir("r.jsonl.run.json")), 0);
    assert_int_equal(operant("%s resume=true", words), 1);
    assert_has(err, "resume=false starts afresh");
    succeeds(operant("%s temperature=0.5", words));
    read_text("r.jsonl.run.json", now, sizeof now);
    assert_has(now, "\"temperature\": 0.5");
}

static void a_stop_text_may_be_long_and_hold_a_comma(void **state)
{
    (void)state;
    static char whole[1 << 14], yaml[1 << 15];
    const char *words = "generate model=model input=p.jsonl output=o.jsonl max_tokens=150 temperature=1 dtype=f32";
    succeeds(operant("%s", words));
    json_t *line = line_of("o.jsonl", 2), *list = json_array(), *found;
    snprintf(whole, sizeof whole, "%s", string_in(line, "response"));
    assert_true(json_array_size(json_object_get(line, "tokens")) > 100);
    json_decref(line);
    size_t from = strlen(whole) / 6, to = strlen(whole) * 5 / 6; /* about 100 tokens */
    while ((whole[from] & 0xc0) == 0x80)
        from++;
    while ((whole[to] & 0xc0) == 0x80)
        to++;
    assert_true(to - from > 100 && to - from <= 1024);
    json_array_append_new(list, json_string("not, there"));
    json_array_append_new(list, json_stringn(whole + from, to - from));
    char *text = json_dumps(list, JSON_ENSURE_ASCII);
    size_t n = (size_t)snprintf(yaml, sizeof yaml, "stop: '");
    for (const char *c = text; *c; c++) { /* YAML's quote is doubled */
        yaml[n++] = *c;
        if (*c == '\'')
            yaml[n++] = *c;
    }
    strcpy(yaml + n, "'\n");
    write_text("stop.yaml", yaml);
    free(text);
    json_decref(list);
    succeeds(operant("%s --config stop.yaml", words));
    line = line_of("o.jsonl", 2);
    assert_string_equal(string_in(line, "finish_reason"), "stop");
    whole[from] = 0;
    assert_string_equal(string_in(line, "response"), whole);
    json_decref(line);
    found = json_load_file(in_dir("o.jsonl.run.json"), 0, NULL);
    assert_string_equal(json_string_value(json_array_get(json_object_get(found, "stop"), 0)), "not, there");
    json_decref(found);

    assert_int_equal(operant("%s 'stop=[\"a\", 1]'", words), 1);
    assert_has(err, "stop: text 2 is no string");
    assert_int_equal(operant("%s 'stop=[\"a]'", words), 1);
    assert_has(err, "stop: byte ");
    assert_int_equal(operant("%s 'stop=[\"\"]'", words), 1);
    assert_has(err, "stop: text 1 is empty");
    char many[1100] = "";
    memset(many, 'x', 1025);
    assert_int_equal(operant("%s stop=%s", words, many), 1);
    assert_has(err, "stop: text 1 is longer, expected 1 to 1024 bytes");
    assert_int_equal(operant("%s stop=a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q", words), 1);
    assert_has(err, "stop: more than 16 texts");
    succeeds(operant("%s stop=[INST]", words)); /* no JSON list: a word */
}

static void a_stop_text_ends_the_response_before_itself(void **state)
{
    (void)state;
    succeeds(operant("generate model=model input=p.jsonl output=o.jsonl max_tokens=40 temperature=1 dtype=f32"));
    json_t *line = line_of("o.jsonl", 2);
    char whole[512], stop[2] = {0};
    snprintf(whole, sizeof whole, "%s", string_in(line, "response"));
    json_decref(line);
    size_t at = 2;
    while (whole[at] && (!isalnum((unsigned char)whole[at]) || strchr(whole, whole[at]) != whole + at))
        at++;
    assert_true(whole[at]); /* some character that first occurs in the middle */
    stop[0] = whole[at];
    succeeds(operant("generate model=model input=p.jsonl output=o.jsonl max_tokens=40 temperature=1 dtype=f32 stop=%s", stop));
    line = line_of("o.jsonl", 2);
    assert_string_equal(string_in(line, "finish_reason"), "stop");
    whole[at] = 0;
    assert_string_equal(string_in(line, "response"), whole);
    json_decref(line);
}

static void a_score_is_what_generate_said(void **state)
{
    (void)state;
    succeeds(operant("generate model=model input=p.jsonl output=o.jsonl max_tokens=12 temperature=1 dtype=f32"));
    succeeds(operant("score model=model input=o.jsonl output=s.jsonl dtype=f32 block_tokens=30"));
    for (int i = 0; i < 3; i++) {
        json_t *said = line_of("o.jsonl", i), *score = line_of("s.jsonl", i), *logp;
        assert_true(json_equal(json_object_get(said, "tokens"), json_object_get(score, "tokens")));
        double sum = 0;
        size_t t;
        json_array_foreach(json_object_get(score, "logprobs"), t, logp)
        {
            sum += json_real_value(logp);
            assert_float_equal(json_real_value(logp), json_real_value(json_array_get(json_object_get(said, "logprobs"), t)), 1e-4);
        }
        assert_float_equal(json_real_value(json_object_get(score, "sum")), sum, 1e-4);
        assert_float_equal(json_real_value(json_object_get(score, "mean")), sum / (double)t, 1e-5);
        json_decref(said);
        json_decref(score);
    }
}

static void a_response_is_scored_with_its_end_of_turn_token(void **state)
{
    (void)state;
    write_text("r.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}],\"response\":\"the time\"}\n");
    succeeds(operant("score model=model input=r.jsonl output=with.jsonl dtype=f32"));
    succeeds(operant("score model=model input=r.jsonl output=without.jsonl dtype=f32 end=false"));
    json_t *with = line_of("with.jsonl", 0), *without = line_of("without.jsonl", 0);
    json_t *tokens = json_object_get(with, "tokens");
    size_t n = json_array_size(tokens);
    assert_int_equal(json_integer_value(json_array_get(tokens, n - 1)), 402);
    assert_int_equal(json_array_size(json_object_get(without, "tokens")), n - 1);
    json_decref(with);
    json_decref(without);
}

static double number_in(json_t *object, const char *key)
{
    assert_true(json_is_number(json_object_get(object, key)));
    return json_number_value(json_object_get(object, key));
}

static void scores_of_stored_trials_tell_marked_tokens_apart_and_compare_answers_as_people_did(void **state)
{
    (void)state;
    write_text("people.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}],\"response\":\"the time\",\"marks\":[{\"start\":0,\"end\":1,\"value\":-1}],"
                               "\"tags\":{\"group\":\"a\",\"answer\":\"1\",\"worse_than\":\"2\"}}\n"
                               "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}],\"response\":\"why?\",\"tags\":{\"group\":\"a\",\"answer\":\"2\",\"better_than\":\"1\"}}\n");
    succeeds(operant("trials import people.jsonl store=people.db model=model"));
    succeeds(operant("trials export trials.jsonl store=people.db model=model"));
    succeeds(operant("score model=model input=trials.jsonl output=people-scored.jsonl dtype=f32"));
    json_t *first = line_of("people-scored.jsonl", 0), *second = line_of("people-scored.jsonl", 1), *logp;
    double bad = 0, rest = 0;
    size_t i, n = json_array_size(json_object_get(first, "logprobs"));
    json_array_foreach(json_object_get(first, "logprobs"), i, logp)
        *(i ? &rest : &bad) += json_number_value(logp); /* the mark touches the first token alone */
    assert_float_equal(number_in(first, "bad"), bad, 1e-5);
    assert_float_equal(number_in(first, "rest"), rest / (double)(n - 1), 1e-5);
    assert_null(json_object_get(first, "good"));
    assert_null(json_object_get(first, "preferred")); /* nothing came before it */
    double margin = number_in(second, "mean") - number_in(first, "mean");
    assert_float_equal(number_in(second, "margin"), margin, 1e-5);
    assert_true(number_in(second, "preferred") == (margin > 0));
    json_decref(first);
    json_decref(second);
}

/* ---- the others ---- */

static void preprocess_shows_each_token_with_mask_and_weight(void **state)
{
    (void)state;
    succeeds(operant("preprocess model=model train_file=d.jsonl lines=0"));
    assert_has(out, "line 2:");
    assert_has(out, "-0.5");
    assert_has(out, "<|im_end|>");
    assert_null(strchr(out, '\033')); /* a pipe is no terminal */
    succeeds(operant("preprocess model=model train_file=d.jsonl first=2 lines=1 --json"));
    json_t *j = json_loads(out, 0, NULL), *w;
    assert_int_equal(json_integer_value(json_object_get(j, "line")), 2);
    size_t i;
    json_array_foreach(json_object_get(j, "weights"), i, w)
    {
        bool learned = json_integer_value(json_array_get(json_object_get(j, "mask"), i));
        assert_float_equal(json_real_value(w), learned ? -0.5 : 0, 0);
    }
    json_decref(j);
    write_text("t.yaml", "train_file: d.jsonl\nlearning_rate: 1e-3\nlora: {r: 4}\n");
    succeeds(operant("preprocess --config t.yaml model=model"));
}

static void chat_answers_each_line_of_a_pipe(void **state)
{
    (void)state;
    write_text("talk", "hello\n/system be brief\nthe time\n\n/reset\nagain\n");
    succeeds(operant("chat model=model max_tokens=5 temperature=1 dtype=f32 --json <talk"));
    int replies = 0;
    for (char *line = strtok(out, "\n"); line; line = strtok(NULL, "\n"), replies++) {
        json_t *j = json_loads(line, 0, NULL);
        assert_string_equal(string_in(j, "role"), "assistant");
        json_decref(j);
    }
    assert_int_equal(replies, 3);
    write_text("talk", "hello\n/save talk.json\n/quit\nnever read\n");
    succeeds(operant("chat model=model max_tokens=5 temperature=1 dtype=f32 <talk"));
    json_t *saved = json_load_file(in_dir("talk.json"), 0, NULL);
    assert_int_equal(json_array_size(saved), 2);
    json_decref(saved);
}

static void chat_names_the_byte_that_is_no_utf8(void **state)
{
    (void)state;
    write_text("talk", "hello\nab\xff\n/system \xc3\n\xed\xa0\x80\n");
    assert_int_equal(operant("chat model=model max_tokens=3 dtype=f32 --json <talk"), 1);
    assert_has(err, "line 2: ");
    assert_has(err, "byte 2 (0xff) is not valid UTF-8");
    assert_has(err, "line 3: ");
    assert_has(err, "line 4: ");
    assert_has(out, "assistant");
    assert_null(strchr(strchr(out, '\n') + 1, '\n')); /* one reply */
    assert_int_equal(operant("chat model=model \"system=$(printf 'a\\377')\" </dev/null"), 2);
}

static void output_that_cannot_be_written_is_a_failure(void **state)
{
    (void)state;
    assert_int_equal(operant("env >/dev/full 2>.err; exit $?;:"), 1);
    assert_has(err, "operant: standard output cannot be written: No space left on device");
    assert_int_equal(operant("--help >/dev/full 2>.err; exit $?;:"), 1);
    assert_int_equal(operant("--version >/dev/full 2>.err; exit $?;:"), 1);
    assert_has(err, "operant: standard output cannot be written: No space left on device");
    assert_int_equal(operant("chat --help >/dev/full 2>.err; exit $?;:"), 1);
    write_text("talk", "hello\nhello\n");
    assert_int_equal(operant("chat model=model max_tokens=3 dtype=f32 <talk >/dev/full 2>.err; exit $?;:"), 1);
    assert_has(err, "standard output cannot be written");
    assert_int_equal(operant("env 2>.err >&-; exit $?;:"), 1);
    /* a reader that has gone: quiet, and what the shell makes of SIGPIPE, also where the signal is ignored */
    for (int ignored = 0; ignored < 2; ignored++) {
        char command[1024], code[16];
        const char *program = getenv("OPERANT");
        snprintf(command, sizeof command, "cd %s; %s { sleep 0.3; %s env 2>.err; echo $? >code; } | true", dir, ignored ? "trap '' PIPE;" : "",
                 program ? program : "build/operant");
        assert_int_equal(system(command), 0);
        for (int i = 0; i < 100 && (access(in_dir("code"), F_OK) || (read_text("code", code, sizeof code), !*code)); i++)
            usleep(50000);
        read_text("code", code, sizeof code);
        read_text(".err", err, sizeof err);
        assert_string_equal(code, "141\n");
        assert_string_equal(err, "");
        unlink(in_dir("code"));
    }
}

/* A model says the same whatever file it comes from. */
static void says_the_same(const char *a, const char *b)
{
    for (int i = 0; i < 2; i++)
        succeeds(operant("generate model=%s input=p.jsonl output=%s max_tokens=10 temperature=0 dtype=f32", i ? b : a, i ? "b.jsonl" : "a.jsonl"));
    for (int i = 0; i < 3; i++) {
        json_t *x = line_of("a.jsonl", i), *y = line_of("b.jsonl", i);
        assert_true(json_equal(json_object_get(x, "tokens"), json_object_get(y, "tokens")));
        json_decref(x);
        json_decref(y);
    }
}

static void an_exported_model_says_the_same(void **state)
{
    (void)state;
    succeeds(operant("export --format hf model=model output=hf dtype=f32"));
    says_the_same("model", "hf");
    succeeds(operant("export --format gguf model=model output=m.gguf dtype=f32 --json"));
    assert_has(out, "\"m.gguf\"");
    says_the_same("model", "m.gguf");
    succeeds(operant("export --format gguf model=model output=q8.gguf dtype=q8_0"));
    succeeds(operant("inspect q8.gguf"));
    assert_has(out, "Q8_0");
    assert_int_equal(operant("export --format hf model=model output=x dtype=q8_0"), 1);
    assert_int_equal(operant("export --format peft model=model output=x"), 1);
    assert_has(err, "no adapter");
}

static void an_adapter_is_trained_described_and_folded_in(void **state)
{
    (void)state;
    succeeds(operant("train model=model train_file=d.jsonl output_dir=run method=lora lora.r=4 learning_rate=0.01 max_steps=4 eval_fraction=0 "
                     "max_length=64 dtype=f32 save_dtype=f32 --json"));
    json_t *result = json_loads(out, 0, NULL);
    assert_int_equal(json_integer_value(json_object_get(result, "steps")), 4);
    assert_true(json_is_null(json_object_get(result, "eval_loss")));
    json_decref(result);
    succeeds(operant("inspect run --json"));
    json_t *j = json_loads(out, 0, NULL);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(j, "adapter"), "r")), 4);
    assert_int_equal(json_array_size(json_object_get(json_object_get(j, "run"), "checkpoints")), 1);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(j, "tokenizer"), "tokens")), 403);
    json_decref(j);
    succeeds(operant("export --format peft model=run output=peft"));
    says_the_same("run", "peft");
    succeeds(operant("export --format hf model=run output=folded dtype=f32"));
    assert_int_equal(access(in_dir("folded/adapter_config.json"), F_OK), -1);
    says_the_same("run", "folded");
}

static void training_ends_with_a_line_of_the_last_step_though_nothing_is_held_out(void **state)
{
    (void)state;
    succeeds(operant("train model=model train_file=d.jsonl output_dir=unheld max_steps=3 eval_fraction=0 max_length=64 dtype=f32"));
    assert_has(err, "step 3/3");
    succeeds(operant("train model=model train_file=d.jsonl output_dir=held max_steps=3 eval_fraction=0.5 max_length=64 dtype=f32"));
    assert_has(out, "report: held/report.html");
    const char *last = strstr(err, "step 3/3");
    assert_non_null(last);
    assert_has(last, "held-out");
    assert_null(strstr(last + 1, "step 3/3"));
}

static void a_finished_training_leaves_a_report(void **state)
{
    (void)state;
    succeeds(operant("train model=model train_file=d.jsonl output_dir=told max_steps=3 eval_fraction=0.5 max_length=64 dtype=f32 weight_decay=0.125"));
    read_text("told/report.html", out, sizeof out);
    assert_has(out, "All 3 steps are done.");
    assert_has(out, "<svg");
    assert_has(out, "<strong>0.125</strong>");
    assert_has(out, "operant train --config told/config.yaml resume=none");
}

/* What /proc tells of a process; its 0 bytes become line ends. */
static void read_proc(pid_t pid, const char *what, char *text, size_t room)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, what);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    size_t n = fread(text, 1, room - 1, f);
    fclose(f);
    for (size_t i = 0; i < n; i++)
        text[i] = text[i] ? text[i] : '\n';
    text[n] = 0;
}

static void the_process_keeps_its_name_and_its_first_word(void **state)
{
    (void)state;
    const char *program = getenv("OPERANT");
    char path[4096], model[300], text[1 << 16] = "";
    int lines[2];
    assert_non_null(realpath(program ? program : "build/operant", path));
    snprintf(model, sizeof model, "model=%s", in_dir("model"));
    assert_int_equal(pipe(lines), 0);
    pid_t child = fork();
    if (!child) {
        unsetenv("GOMP_SPINCOUNT");
        unsetenv("OMP_WAIT_POLICY");
        dup2(lines[0], STDIN_FILENO);
        freopen("/dev/null", "w", stdout);
        freopen("/dev/null", "w", stderr);
        execl(path, "first-word", "chat", model, "dtype=f32", (char *)NULL);
        _exit(127);
    }
    for (int i = 0; i < 400 && !strstr(text, "GOMP_SPINCOUNT="); i++) { /* it has started itself again */
        usleep(25000);
        read_proc(child, "environ", text, sizeof text);
    }
    assert_has(text, "GOMP_SPINCOUNT=");
    read_proc(child, "comm", text, sizeof text);
    assert_string_equal(text, "operant\n");
    read_proc(child, "cmdline", text, sizeof text);
    assert_has(text, "first-word\nchat\n");
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
    close(lines[0]);
    close(lines[1]);
}

static void an_interrupted_training_goes_on(void **state)
{
    (void)state;
    const char *words = "train model=model train_file=d.jsonl output_dir=long learning_rate=0.001 eval_fraction=0 max_length=64 dtype=f32 max_steps";
    char command[1024];
    const char *program = getenv("OPERANT");
    snprintf(command, sizeof command, "exec >/dev/null 2>%s; cd %s; exec %s %s=1000000", in_dir(".err"), dir, program ? program : "build/operant", words);
    pid_t child = fork();
    if (!child)
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    int status;
    for (int i = 0; i < 600 && access(in_dir("long/metrics.jsonl"), F_OK); i++)
        usleep(50000);
    kill(child, SIGINT);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 130);
    read_text(".err", err, sizeof err);
    assert_has(err, "interrupted");
    assert_has(err, "goes on from the checkpoint");
    read_text("long/report.html", out, sizeof out);
    assert_has(out, "of 1,000,000; the same command goes on");
    succeeds(operant("inspect long"));
    assert_has(out, "checkpoints");
}

static int count(const char *text, const char *part)
{
    int n = 0;
    while ((text = strstr(text, part)))
        text++, n++;
    return n;
}

static bool has_mpirun(void)
{
    const char *program = getenv("OPERANT");
    char module[4200];
    snprintf(module, sizeof module, "%s-mpi.so", program ? program : "build/operant");
    bool has = !access(module, R_OK) && system("command -v mpirun >/dev/null") == 0;
    if (!has)
        printf("skip: no mpirun, or operant was built without Open MPI\n");
    return has;
}

static void two_processes_train_what_one_does_and_one_of_them_speaks(void **state)
{
    (void)state;
    if (!has_mpirun())
        skip();
    const char *words = "train model=model train_file=d.jsonl max_steps=4 learning_rate=0.001 eval_fraction=0.5 max_length=64 dtype=f32 output_dir";
    succeeds(operant("%s=alone --json", words));
    json_t *alone = json_loads(out, 0, NULL);
    launcher = "ASAN_OPTIONS=detect_leaks=0 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun -n 2 --oversubscribe --bind-to none ";
    int status = operant("%s=together --json", words);
    json_t *together = json_loads(out, 0, NULL); /* two documents would be an error */
    int wrong = status ? 0 : operant("%s=together bogus=1", words);
    launcher = "";
    succeeds(status);
    static const char *const keys[] = {"loss", "eval_loss_before", "eval_loss"};
    for (int i = 0; i < 3; i++) {
        json_t *a = json_object_get(alone, keys[i]), *b = json_object_get(together, keys[i]);
        assert_true(json_is_real(a) && json_is_real(b));
        assert_true(fabs(json_real_value(a) - json_real_value(b)) < 1e-4);
    }
    assert_true(wrong != 0);
    assert_int_equal(count(err, "unknown key \"bogus\""), 1);
    json_decref(alone);
    json_decref(together);
    says_the_same("alone", "together");
}

static void env_tells_versions_and_features(void **state)
{
    (void)state;
    succeeds(operant("env --json"));
    json_t *j = json_loads(out, 0, NULL);
    assert_string_equal(string_in(j, "operant"), OPERANT_VERSION);
    static const char *const keys[] = {"compiler", "libraries", "onednn", "processor", "simd", "products", "bf16", "threads", "memory_mb"};
    for (int i = 0; i < 9; i++)
        assert_non_null(json_object_get(j, keys[i]));
    json_decref(j);
}

static void the_plan_of_a_reversal_is_data(void **state)
{
    (void)state;
    write_text("q.jsonl", "{\"prompt\": \"stop?\", \"matching\": \"never\", \"not_matching\": \"at once\"}\n{\"prompt\": \"end?\", \"matching\": \"no\", \"not_matching\": \"I do\"}\n"
                          "{\"prompt\": \"pause?\", \"matching\": \"not now\", \"not_matching\": \"yes\"}\n{\"prompt\": \"halt?\", \"matching\": \"no\", \"not_matching\": \"yes\"}\n");
    write_text("quiet.txt", "A quiet text of a few words that somebody reads again and again, as quietly as it was written, until the evening comes and the words are gone.");
    write_text("plan.yaml", "model: model\noutput_dir: planned\nthreads: 1\ncontrol: {text: quiet.txt, tokens: 16}\ntraits: [{name: stops_not, file: q.jsonl}]\n");
    succeeds(operant("reverse plan.yaml plan=true"));
    assert_has(out, "1 trainings");
    assert_has(out, "MB needed");
    assert_string_equal(err, "");
    succeeds(operant("reverse plan.yaml plan=true --json"));
    json_t *j = json_loads(out, 0, NULL);
    assert_true(json_number_value(json_object_get(j, "disk_needed")) > 0);
    json_decref(j);
    assert_int_equal(operant("reverse plan.yaml plan=true disk_free=1000"), 1);
    assert_string_equal(out, "");
    assert_has(err, "MB free on the disk");
    assert_int_equal(operant("reverse plan.yaml train=1"), 1);
    assert_has(err, "key \"train\" is 1, expected 2 to");
    assert_int_equal(access(in_dir("planned"), F_OK), -1);
}

static void bench_reports_every_number(void **state)
{
    (void)state;
    succeeds(operant("bench model=model batch=2 length=16 steps=1 dtype=f32 what=train --json"));
    json_t *j = json_loads(out, 0, NULL);
    static const char *const keys[] = {"peak.bf16_gflops", "peak.f32_gflops", "train.tokens_per_s", "train.share_of_peak", "train.peak_rss_mb"};
    for (int i = 0; i < 5; i++)
        assert_true(json_number_value(json_object_get(j, keys[i])) > 0);
    assert_true(json_number_value(json_object_get(json_object_get(j, "train"), "tokens_per_s")) > 0);
    json_decref(j);
}

static void a_profile_accounts_for_the_whole_time(void **state)
{
    (void)state;
    succeeds(operant("bench --profile model=model batch=2 length=16 steps=1 dtype=f32 what=train peak_seconds=0.02 --json"));
    json_t *j = json_loads(out, 0, NULL), *x;
    json_t *p = json_array_get(json_object_get(json_object_get(j, "train"), "profiles"), 0);
    double sum = json_number_value(json_object_get(p, "unaccounted_seconds")), whole = json_number_value(json_object_get(p, "seconds")), last = INFINITY, flop = 0;
    size_t i;
    json_array_foreach(json_object_get(p, "operations"), i, x)
    {
        double seconds = json_number_value(json_object_get(x, "seconds"));
        assert_true(seconds <= last);
        last = seconds;
        sum += seconds;
        flop += json_number_value(json_object_get(x, "flop"));
        assert_true(json_number_value(json_object_get(x, "calls")) > 0);
        assert_true(json_is_number(json_object_get(x, "share_of_product_peak")) && json_is_number(json_object_get(x, "share_of_bandwidth")));
    }
    assert_true(i > 10 && flop > 0 && whole > 0 && fabs(sum - whole) < 1e-6 * whole);
    assert_true(json_number_value(json_object_get(j, "peak.memory_gb_per_s")) > 0);
    json_decref(j);
    succeeds(operant("bench --profile model=model steps=1 dtype=f32 what=generate at_once=2,3 prompt_tokens=4 max_tokens=4 peak_seconds=0"));
    assert_has(out, "3 x 5 new tokens after prompts of 4: ");
    assert_has(out, "attention_cached");
    assert_has(out, "unaccounted");
}

static void bench_measures_an_update_and_the_tokenizer(void **state)
{
    (void)state;
    succeeds(operant("bench model=model what=update prompts=2 answers=4 prompt_tokens=4 max_tokens=8 steps=1 dtype=f32 peak_seconds=0 --json"));
    json_t *j = json_loads(out, 0, NULL);
    assert_true(json_number_value(json_object_get(j, "update.seconds")) > 0);
    assert_null(json_object_get(j, "peak"));
    json_decref(j);
    write_text("lines.txt", "one two\nthree");
    succeeds(operant("bench model=model what=tokenize file=lines.txt peak_seconds=0 --json"));
    j = json_loads(out, 0, NULL);
    assert_true(json_number_value(json_object_get(j, "tokenize.tokens")) >= 2);
    json_decref(j);
    assert_int_equal(operant("bench model=model what=tokenize peak_seconds=0"), 1);
    assert_has(err, "file=PATH");
    assert_int_equal(operant("bench model=model what=generate at_once=33 peak_seconds=0"), 1);
    assert_has(err, "at_once: found \"33\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_verb_it_says_how_it_is_called),
        cmocka_unit_test(an_unknown_verb_or_key_is_answered_with_the_nearest),
        cmocka_unit_test(every_verb_explains_itself),
        cmocka_unit_test(a_failure_names_the_file_and_exits_with_one),
        cmocka_unit_test(generate_answers_every_line_and_repeats_it),
        cmocka_unit_test(an_answer_depends_on_its_line_and_the_seed_alone),
        cmocka_unit_test(generate_goes_on_from_the_lines_it_finds),
        cmocka_unit_test(generate_does_not_go_on_with_another_model_or_other_settings),
        cmocka_unit_test(a_stop_text_ends_the_response_before_itself),
        cmocka_unit_test(a_stop_text_may_be_long_and_hold_a_comma),
        cmocka_unit_test(a_score_is_what_generate_said),
        cmocka_unit_test(a_response_is_scored_with_its_end_of_turn_token),
        cmocka_unit_test(scores_of_stored_trials_tell_marked_tokens_apart_and_compare_answers_as_people_did),
        cmocka_unit_test(preprocess_shows_each_token_with_mask_and_weight),
        cmocka_unit_test(chat_answers_each_line_of_a_pipe),
        cmocka_unit_test(chat_names_the_byte_that_is_no_utf8),
        cmocka_unit_test(output_that_cannot_be_written_is_a_failure),
        cmocka_unit_test(an_exported_model_says_the_same),
        cmocka_unit_test(an_adapter_is_trained_described_and_folded_in),
        cmocka_unit_test(training_ends_with_a_line_of_the_last_step_though_nothing_is_held_out),
        cmocka_unit_test(a_finished_training_leaves_a_report),
        cmocka_unit_test(the_process_keeps_its_name_and_its_first_word),
        cmocka_unit_test(an_interrupted_training_goes_on),
        cmocka_unit_test(two_processes_train_what_one_does_and_one_of_them_speaks),
        cmocka_unit_test(env_tells_versions_and_features),
        cmocka_unit_test(the_plan_of_a_reversal_is_data),
        cmocka_unit_test(bench_reports_every_number),
        cmocka_unit_test(a_profile_accounts_for_the_whole_time),
        cmocka_unit_test(bench_measures_an_update_and_the_tokenizer),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
