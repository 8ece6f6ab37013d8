#include "tools.h"

#include "text/gguf_out.h"
#include "text/unicode.h"

static void encode(const op_tokenizer *t, const char *s, size_t n, unsigned flags, op_tokens *out)
{
    op_error e;
    op_tokens_clear(out);
    check(op_tokenizer_encode(t, s, n, flags, out, &e), &e);
}

static void assert_ids(const op_tokens *got, const json_t *want, const char *kind, const char *text)
{
    bool same = got->n == json_array_size(want);
    for (size_t i = 0; same && i < got->n; i++)
        same = got->ids[i] == json_integer_value(json_array_get(want, i));
    if (!same)
        fail_msg("%s: other ids than the reference's for '%s'", kind, text);
}

/* Calls fn for every line of encodings.jsonl with the tokenizer of its kind. */
typedef struct line_walk {
    char kind[16];
    op_tokenizer *t;
    op_tokens tokens;
    op_buf text;
    void (*fn)(struct line_walk *w, const json_t *line, const char *s, size_t n);
    op_tokenizer *(*open)(const char *kind);
    int calls;
} line_walk;

static op_status walk_line(void *ctx, json_t *line, int number, op_error *e)
{
    (void)number, (void)e;
    line_walk *w = ctx;
    const char *kind = json_string_value(json_object_get(line, "kind"));
    if (strcmp(kind, w->kind) != 0) {
        op_tokenizer_free(w->t);
        w->t = w->open(kind);
        strcpy(w->kind, kind);
    }
    const json_t *text = json_object_get(line, "text");
    if (w->t)
        w->fn(w, line, json_string_value(text), json_string_length(text));
    w->calls += w->t != NULL;
    return OP_OK;
}

static int walk(void (*fn)(line_walk *, const json_t *, const char *, size_t), op_tokenizer *(*open)(const char *))
{
    op_error e;
    line_walk w = {.fn = fn, .open = open};
    op_buf_init(&w.text, 1 << 24);
    check(op_json_lines(fixture("encodings.jsonl"), walk_line, &w, &e), &e);
    op_tokenizer_free(w.t);
    op_tokens_release(&w.tokens);
    op_buf_release(&w.text);
    return w.calls;
}

static void check_ids(line_walk *w, const json_t *line, const char *s, size_t n)
{
    const json_t *ids = json_object_get(line, "ids"), *plain = json_object_get(line, "plain"), *affixed = json_object_get(line, "affixed");
    encode(w->t, s, n, OP_ENCODE_SPECIAL, &w->tokens);
    assert_ids(&w->tokens, ids, w->kind, s);
    encode(w->t, s, n, OP_ENCODE_PLAIN, &w->tokens);
    assert_ids(&w->tokens, plain ? plain : ids, w->kind, s);
    encode(w->t, s, n, OP_ENCODE_SPECIAL | OP_ENCODE_AFFIX, &w->tokens);
    assert_ids(&w->tokens, affixed ? affixed : ids, w->kind, s);
}

static void the_ids_of_every_kind_are_those_of_the_reference(void **state)
{
    (void)state;
    assert_true(walk(check_ids, open_kind) > 300);
}

/* A copy of gpt2.json with another pre-tokenizer, whose "Split" is `step`. */
static op_status open_with_step(op_tokenizer **t, const json_t *step, op_error *e)
{
    op_buf file;
    op_buf_init(&file, 1 << 20);
    check(op_file_read(fixture("gpt2.json"), &file, e), e);
    json_t *j = parse_json(file.data);
    json_object_set_new(j, "pre_tokenizer", json_pack("{ss s[O {ss sb sb}]}", "type", "Sequence", "pretokenizers", step, "type", "ByteLevel",
                                                      "add_prefix_space", 0, "use_regex", 0));
    char *text = json_dumps(j, 0);
    op_status s = op_tokenizer_from_json(t, text, strlen(text), "t.json", e);
    op_free(text);
    json_decref(j);
    op_buf_release(&file);
    return s;
}

typedef struct cut_walk {
    json_t *step;
    op_tokenizer *t;
    int n;
} cut_walk;

static op_status check_cut(void *ctx, json_t *line, int number, op_error *e)
{
    cut_walk *w = ctx;
    json_t *step = json_object_get(line, "step"), *text = json_object_get(line, "text");
    (void)number;
    if (!w->step || !json_equal(w->step, step)) {
        op_tokenizer_free(w->t);
        json_decref(w->step);
        w->step = json_incref(step);
        check(open_with_step(&w->t, step, e), e);
    }
    op_tokens got = {0};
    encode(w->t, json_string_value(text), json_string_length(text), OP_ENCODE_PLAIN, &got);
    assert_ids(&got, json_object_get(line, "ids"), json_string_value(json_object_get(json_object_get(step, "pattern"), "Regex")), json_string_value(text));
    op_tokens_release(&got);
    w->n++;
    return OP_OK;
}

static void an_expression_of_no_known_family_cuts_as_the_reference_does(void **state)
{
    (void)state;
    op_error e = {0};
    cut_walk w = {0};
    check(op_json_lines(fixture("cuts.jsonl"), check_cut, &w, &e), &e);
    assert_int_equal(w.n, 128);
    op_tokenizer_free(w.t);
    json_decref(w.step);
}

static json_t *step_of(const char *regex)
{
    return json_pack("{ss s{ss} ss}", "type", "Split", "pattern", "Regex", regex, "behavior", "Isolated");
}

static void an_expression_that_pcre2_reads_otherwise_is_refused(void **state)
{
    (void)state;
    static const char *const bad[][2] = {{"[^(\\s|[.,])]+", "a class within a class"}, {"[a-z&&[^e]]", "&& in a class"}, {"\\bx", "an escape"}, {"[\\W]", "an escape"},
                                         {"(?m:a.b)", "(?m)"}, {"\\p{N}{1,3}+", "{n}+"}, {"a{,3}", "{,n}"}, {"(a", "missing closing parenthesis"},
                                         {"\\p{Nonsense}", "unknown property"}, {"a\\", "a backslash at the end"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        op_error e = {0};
        op_tokenizer *t;
        json_t *step = step_of(bad[i][0]);
        assert_int_equal(open_with_step(&t, step, &e), OP_ERR_UNSUPPORTED);
        assert_null(t);
        assert_message_has(&e, "t.json: the pre-tokenizer's expression '");
        assert_message_has(&e, bad[i][1]);
        json_decref(step);
    }
}

static void an_expression_that_takes_forever_is_an_error(void **state)
{
    (void)state;
    op_error e = {0};
    op_tokenizer *t;
    json_t *step = step_of("(?:a+)+(?:a+)+[bc]");
    check(open_with_step(&t, step, &e), &e);
    op_tokens got = {0};
    char text[4000];
    memset(text, 'a', sizeof text);
    assert_int_equal(op_tokenizer_encode(t, text, sizeof text, OP_ENCODE_PLAIN, &got, &e), OP_ERR_FORMAT);
    assert_message_has(&e, "text to encode: the pre-tokenizer's expression on 'aaaa");
    assert_int_equal(got.n, 0);
    encode(t, "aab", 3, OP_ENCODE_PLAIN, &got);
    op_tokens_release(&got);
    op_tokenizer_free(t);
    json_decref(step);
}

static op_status open_and_cut(void *ctx, op_error *e)
{
    op_tokenizer *t = NULL;
    op_tokens got = {0};
    op_buf *file = ctx;
    op_status s = op_tokenizer_from_json(&t, file->data, file->len, "t.json", e);
    s = s ? s : op_tokenizer_encode(t, "why not", 7, OP_ENCODE_PLAIN, &got, e);
    op_tokens_release(&got);
    op_tokenizer_free(t);
    return s;
}

static void allocations_for_expressions_may_fail(void **state)
{
    (void)state;
    static const char json[] = "{\"added_tokens\":[],\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"w|\\\\w\"},\"behavior\":\"Isolated\"},"
                               "\"model\":{\"type\":\"BPE\",\"vocab\":{\"w\":0,\"h\":1,\"y\":2},\"merges\":[]}}";
    op_buf file;
    op_buf_init(&file, 1 << 12);
    assert_int_equal(op_buf_puts(&file, json), OP_OK);
    assert_true(fail_every_allocation(open_and_cut, &file) > 3);
    op_buf_release(&file);
}

static void check_decoding(line_walk *w, const json_t *line, const char *s, size_t n)
{
    const json_t *want = json_object_get(line, "decoded");
    (void)s, (void)n;
    encode(w->t, s, n, OP_ENCODE_SPECIAL, &w->tokens);
    op_buf_clear(&w->text);
    assert_int_equal(op_tokenizer_decode(w->t, w->tokens.ids, w->tokens.n, OP_DECODE_ALL, &w->text), OP_OK);
    assert_int_equal(w->text.len, json_string_length(want));
    assert_memory_equal(w->text.data ? w->text.data : "", json_string_value(want), w->text.len);
    op_decoder d = {.tokenizer = w->t};
    op_buf stream;
    op_buf_init(&stream, 1 << 24);
    for (size_t i = 0; i < w->tokens.n; i++) {
        assert_int_equal(op_decoder_push(&d, w->tokens.ids[i], &stream), OP_OK);
        assert_int_equal(op_utf8_valid(stream.data, stream.len), stream.len);
    }
    assert_int_equal(op_decoder_finish(&d, &stream), OP_OK);
    assert_int_equal(stream.len, w->text.len);
    assert_memory_equal(stream.data ? stream.data : "", w->text.data ? w->text.data : "", stream.len);
    op_buf_release(&stream);
}

static void decoding_at_once_and_as_a_stream_gives_the_references_text(void **state)
{
    (void)state;
    walk(check_decoding, open_kind);
}

static op_tokenizer *open_plain_kind(const char *kind)
{
    return strcmp(kind, "gpt2") == 0 || strcmp(kind, "smollm") == 0 || strcmp(kind, "tekken") == 0 ? open_kind(kind) : NULL;
}

static void check_offsets(line_walk *w, const json_t *line, const char *s, size_t n)
{
    (void)line;
    uint32_t at = 0;
    encode(w->t, s, n, OP_ENCODE_SPECIAL, &w->tokens);
    for (size_t i = 0; i < w->tokens.n; i++) {
        size_t len;
        const char *bytes = op_tokenizer_bytes(w->t, w->tokens.ids[i], &len);
        assert_int_equal(w->tokens.begin[i], at);
        at = w->tokens.end[i];
        assert_int_equal(at - w->tokens.begin[i], len);
        assert_memory_equal(bytes, s + w->tokens.begin[i], len);
    }
    assert_int_equal(at, n);
}

static void every_byte_belongs_to_one_token_that_holds_it(void **state)
{
    (void)state;
    assert_true(walk(check_offsets, open_plain_kind) > 100);
}

static void offsets_of_normalised_text_point_into_the_source(void **state)
{
    (void)state;
    op_tokenizer *t = open_kind("qwen2");
    op_tokens x = {0};
    const char *s = "ae\xcc\x81z"; /* a, e with a combining acute, z: NFC makes é of two characters */
    encode(t, s, strlen(s), 0, &x);
    assert_int_equal(x.begin[0], 0);
    assert_int_equal(x.end[x.n - 1], 5);
    for (size_t i = 0; i < x.n; i++)
        assert_true(x.begin[i] == 0 || x.begin[i] == 1 || x.begin[i] == 4);
    op_tokens_release(&x);
    op_tokenizer_free(t);
}

static void a_piece_that_continues_gets_no_prefix(void **state)
{
    (void)state;
    op_tokenizer *t = open_kind("llama2");
    op_tokens whole = {0}, parts = {0};
    op_error e;
    const char *s = "ask why he asks";
    encode(t, s, strlen(s), 0, &whole);
    check(op_tokenizer_encode(t, s, 3, 0, &parts, &e), &e);
    check(op_tokenizer_encode(t, s + 3, strlen(s) - 3, OP_ENCODE_CONTINUE, &parts, &e), &e);
    assert_int_equal(whole.n, parts.n);
    assert_memory_equal(whole.ids, parts.ids, whole.n * sizeof *whole.ids);
    op_tokens_release(&whole);
    op_tokens_release(&parts);
    op_tokenizer_free(t);
}

static void text_that_is_no_utf8_is_an_error_that_names_the_byte(void **state)
{
    (void)state;
    op_tokenizer *t = open_kind("gpt2");
    op_tokens x = {0};
    op_error e;
    static const char *const bad[] = {"ab\xff", "ab\xc3", "ab\xe2\x82", "ab\xed\xa0\x80", "ab\xc0\x80", "ab\xf4\x90\x80\x80"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(op_tokenizer_encode(t, bad[i], strlen(bad[i]), 0, &x, &e), OP_ERR_FORMAT);
        assert_message_has(&e, "byte 2");
        assert_int_equal(x.n, 0);
    }
    op_tokens_release(&x);
    op_tokenizer_free(t);
}

static void bytes_that_make_no_character_decode_to_replacement_characters(void **state)
{
    (void)state;
    op_tokenizer *t = open_kind("gpt2");
    op_tokens x = {0};
    op_buf out;
    op_buf_init(&out, 100);
    encode(t, "\xe2\x98\x83", 3, 0, &x); /* three bytes that no merge of this tokenizer joins */
    assert_int_equal(x.n, 3);
    int32_t ids[] = {x.ids[0], x.ids[1], x.ids[0], x.ids[0], x.ids[1], x.ids[2], x.ids[2]};
    assert_int_equal(op_tokenizer_decode(t, ids, 7, 0, &out), OP_OK);
    assert_string_equal(out.data, "\xef\xbf\xbd\xef\xbf\xbd\xe2\x98\x83\xef\xbf\xbd");
    op_buf_release(&out);
    op_tokens_release(&x);
    op_tokenizer_free(t);
}

static void a_word_of_a_million_letters_takes_no_quadratic_time(void **state)
{
    (void)state;
    op_tokenizer *t = open_kind("gpt2");
    op_tokens x = {0};
    size_t n = 1000000;
    char *s = test_malloc(n);
    for (size_t i = 0; i < n; i++)
        s[i] = "thereason"[i % 9];
    encode(t, s, n, 0, &x);
    assert_int_equal(x.end[x.n - 1], n);
    test_free(s);
    op_tokens_release(&x);
    op_tokenizer_free(t);
}

/* ---- writing ---- */

/* The kind by way of a GGUF file; NULL for kinds that GGUF cannot say in full. */
static op_tokenizer *open_through_gguf(const char *kind)
{
    if (strcmp(kind, "added") == 0 || strcmp(kind, "metaspace") == 0)
        return NULL;
    op_error e;
    op_tokenizer *t = open_kind(kind), *again;
    op_gguf_writer *w = op_gguf_writer_new();
    const char *path = path_in(test_dir, "t.gguf");
    check(op_tokenizer_put_gguf(t, w, op_tokenizer_vocab_size(t) + 2, &e), &e);
    check(op_gguf_save(w, path, &e), &e);
    op_gguf_writer_free(w);
    check(op_tokenizer_open(&again, path, &e), &e);
    assert_int_equal(op_tokenizer_vocab_size(again), op_tokenizer_vocab_size(t) + 2);
    op_tokenizer_free(t);
    return again;
}

static op_tokenizer *open_through_gguf_and_json(const char *kind)
{
    op_error e;
    op_tokenizer *t = open_through_gguf(kind), *again;
    if (!t)
        return NULL;
    check(op_tokenizer_save(t, test_dir, &e), &e);
    op_tokenizer_free(t);
    check(op_tokenizer_open(&again, test_dir, &e), &e);
    return again;
}

static void check_special_ids(line_walk *w, const json_t *line, const char *s, size_t n)
{
    encode(w->t, s, n, OP_ENCODE_SPECIAL, &w->tokens);
    assert_ids(&w->tokens, json_object_get(line, "ids"), w->kind, s);
}

static void a_tokenizer_keeps_its_ids_through_gguf(void **state)
{
    (void)state;
    assert_true(walk(check_special_ids, open_through_gguf) > 200);
}

static void a_tokenizer_from_gguf_keeps_its_ids_through_tokenizer_json(void **state)
{
    (void)state;
    assert_true(walk(check_special_ids, open_through_gguf_and_json) > 200);
}

static void a_tokenizer_from_json_is_saved_byte_for_byte_with_its_special_tokens_and_template(void **state)
{
    (void)state;
    op_error e;
    op_buf a, b;
    op_tokenizer *t, *again;
    op_buf_init(&a, 1 << 24);
    op_buf_init(&b, 1 << 24);
    check(op_file_read(fixture("smollm.json"), &a, &e), &e);
    check(op_file_put(path_in(test_dir, "tokenizer.json"), a.data, a.len, &e), &e);
    put_text("tokenizer_config.json", "{\"bos_token\": {\"content\": \"<|im_start|>\"}, \"eos_token\": \"<|im_end|>\", \"pad_token\": null, "
                                      "\"chat_template\": \"old\", \"add_prefix_space\": false}");
    put_text("chat_template.jinja", "the \"template\"\n");
    check(op_tokenizer_open(&t, test_dir, &e), &e);
    assert_string_equal(op_tokenizer_chat_template(t), "the \"template\"\n");
    assert_int_equal(op_tokenizer_bos(t), op_tokenizer_find(t, "<|im_start|>"));
    assert_int_equal(op_tokenizer_eos(t), op_tokenizer_find(t, "<|im_end|>"));
    assert_int_equal(op_tokenizer_pad(t), -1);
    assert_true(op_tokenizer_is_special(t, op_tokenizer_eos(t)));
    assert_false(op_tokenizer_is_special(t, 5));
    assert_int_equal(op_tokenizer_find(t, "the"), -1);
    check(op_tokenizer_save(t, test_dir, &e), &e);
    check(op_file_read(path_in(test_dir, "tokenizer.json"), &b, &e), &e);
    assert_int_equal(a.len, b.len);
    assert_memory_equal(a.data, b.data, a.len);
    assert_int_equal(op_path_remove(path_in(test_dir, "chat_template.jinja"), &e), OP_OK);
    check(op_tokenizer_open(&again, test_dir, &e), &e);
    assert_string_equal(op_tokenizer_chat_template(again), "the \"template\"\n");
    assert_int_equal(op_tokenizer_eos(again), op_tokenizer_eos(t));
    op_tokenizer_free(t);
    op_tokenizer_free(again);
    op_buf_release(&a);
    op_buf_release(&b);
}

/* ---- what is refused ---- */

static void refused(const char *json, op_status status, const char *part)
{
    op_tokenizer *t;
    op_error e;
    assert_int_equal(op_tokenizer_from_json(&t, json, strlen(json), "t.json", &e), status);
    assert_null(t);
    assert_message_has(&e, "t.json");
    assert_message_has(&e, part);
}

#define MODEL "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"

static void what_would_change_the_ids_unnoticed_is_an_error(void **state)
{
    (void)state;
    refused("{\"normalizer\":{\"type\":\"Lowercase\"}," MODEL "}", OP_ERR_UNSUPPORTED, "'Lowercase'");
    refused("{\"pre_tokenizer\":{\"type\":\"Whitespace\"}," MODEL "}", OP_ERR_UNSUPPORTED, "'Whitespace'");
    refused("{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\w+\"},\"behavior\":\"MergedWithNext\"}," MODEL "}",
            OP_ERR_UNSUPPORTED, "another behavior than Isolated and Removed");
    refused("{\"decoder\":{\"type\":\"CTC\"}," MODEL "}", OP_ERR_UNSUPPORTED, "'CTC'");
    refused("{\"post_processor\":{\"type\":\"BertProcessing\"}," MODEL "}", OP_ERR_UNSUPPORTED, "'BertProcessing'");
    refused("{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", OP_ERR_UNSUPPORTED, "'WordPiece'");
    refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"end_of_word_suffix\":\"</w>\"}}", OP_ERR_UNSUPPORTED,
            "end_of_word_suffix");
    refused("{\"model\":{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]}}", OP_ERR_FORMAT, "merge 0 of 'a' and 'b'");
    refused("{\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", OP_ERR_FORMAT, "id 0 belongs to");
    refused("{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", OP_ERR_FORMAT, "'a'");
    refused("{\"model\":{\"vocab\":{\"a\":99999999999},\"merges\":[]}}", OP_ERR_FORMAT, "'a'");
    refused("{\"model\":{\"vocab\":{\"a\":\"0\"},\"merges\":[]}}", OP_ERR_FORMAT, "'a'");
    refused("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"aa\"]}}", OP_ERR_FORMAT, "merge 0");
    refused("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[7]}}", OP_ERR_FORMAT, "merge 0");
    refused("{\"model\":[]}", OP_ERR_FORMAT, "model");
    refused("[]", OP_ERR_FORMAT, "an object");
    refused("{", OP_ERR_FORMAT, "offset");
    refused("{\"added_tokens\":[{\"id\":0}]," MODEL "}", OP_ERR_FORMAT, "content");
}

static const char small[] =
    "{\"added_tokens\":[{\"id\":7,\"content\":\"<s>\",\"special\":true,\"normalized\":true},{\"id\":8,\"content\":\"<t>\"}],"
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}]},"
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true},\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}],"
    "\"special_tokens\":{\"<s>\":{\"ids\":[7]}}},"
    "\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"abab\":3,\"\xc4\xa0\":4,\"\xc4\xa0\x61\":5,\"\xc3\x83\":6},"
    "\"merges\":[\"a b\",[\"ab\",\"ab\"],\"\xc4\xa0 a\"]}}";

static op_status read_small(void *ctx, op_error *e)
{
    (void)ctx;
    op_tokenizer *t;
    op_status s = op_tokenizer_from_json(&t, small, sizeof small - 1, "small", e);
    if (s)
        assert_null(t);
    op_tokenizer_free(t);
    return s;
}

static op_status encode_small(void *ctx, op_error *e)
{
    op_tokens x = {0};
    char text[400];
    memset(text, 'a', sizeof text);
    memcpy(text + 100, "b<s>e\xcc\x81<t> b", 12); /* NFC, added tokens, and a word long enough for the heap */
    op_status s = op_tokenizer_encode(ctx, text, sizeof text, OP_ENCODE_SPECIAL | OP_ENCODE_AFFIX, &x, e);
    if (s)
        assert_int_equal(x.n, 0);
    op_tokens_release(&x);
    return s;
}

static op_status save_small(void *ctx, op_error *e)
{
    return op_tokenizer_save(ctx, test_dir, e);
}

static op_status open_saved(void *ctx, op_error *e)
{
    op_tokenizer *t;
    op_status s = op_tokenizer_open(&t, ctx, e);
    op_tokenizer_free(t);
    return s;
}

static op_status put_small(void *ctx, op_error *e)
{
    op_gguf_writer *w = op_gguf_writer_new();
    if (!w)
        return OP_ERR_NOMEM;
    op_status s = op_tokenizer_put_gguf(ctx, w, 12, e);
    s = s ? s : op_gguf_save(w, path_in(test_dir, "small.gguf"), e);
    op_gguf_writer_free(w);
    return s;
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    op_error e;
    op_tokenizer *t, *from_gguf;
    assert_true(fail_every_allocation(read_small, NULL) > 3);
    check(op_tokenizer_from_json(&t, small, sizeof small - 1, "small", &e), &e);
    assert_true(fail_every_allocation(encode_small, t) > 3);
    assert_true(fail_every_allocation(save_small, t) > 3);
    assert_true(fail_every_allocation(open_saved, test_dir) > 3);
    op_tokenizer *plain;
    static const char no_nfc[] = "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true},"
                                 "\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}}";
    check(op_tokenizer_from_json(&plain, no_nfc, sizeof no_nfc - 1, "plain", &e), &e);
    assert_true(fail_every_allocation(put_small, plain) > 3);
    char path[256];
    strcpy(path, path_in(test_dir, "small.gguf"));
    assert_true(fail_every_allocation(open_saved, path) > 3);
    check(op_tokenizer_open(&from_gguf, path, &e), &e);
    assert_true(fail_every_allocation(save_small, from_gguf) > 3);
    op_tokenizer_free(t);
    op_tokenizer_free(plain);
    op_tokenizer_free(from_gguf);
}

static void the_real_tokenizer_opens_and_encodes(void **state)
{
    (void)state;
    const char *path = getenv("OPERANT_MODEL");
    op_error e;
    op_tokenizer *t;
    op_tokens x = {0};
    if (!path || !op_path_exists(path)) {
        print_message("skipped: OPERANT_MODEL names no model\n");
        skip();
    }
    check(op_tokenizer_open(&t, path, &e), &e);
    const char *s = "Hello world! It's 2024<|im_end|>";
    const int32_t want[] = {19556, 905, 17, 657, 506, 216, 34, 32, 34, 36, 2};
    encode(t, s, strlen(s), OP_ENCODE_SPECIAL, &x);
    assert_int_equal(x.n, 11);
    assert_memory_equal(x.ids, want, sizeof want);
    assert_int_equal(op_tokenizer_eos(t), 2);
    assert_non_null(op_tokenizer_chat_template(t));
    op_tokens_release(&x);
    op_tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_ids_of_every_kind_are_those_of_the_reference),
        cmocka_unit_test(an_expression_of_no_known_family_cuts_as_the_reference_does),
        cmocka_unit_test(an_expression_that_pcre2_reads_otherwise_is_refused),
        cmocka_unit_test(an_expression_that_takes_forever_is_an_error),
        cmocka_unit_test(allocations_for_expressions_may_fail),
        cmocka_unit_test(decoding_at_once_and_as_a_stream_gives_the_references_text),
        cmocka_unit_test(every_byte_belongs_to_one_token_that_holds_it),
        cmocka_unit_test(offsets_of_normalised_text_point_into_the_source),
        cmocka_unit_test(a_piece_that_continues_gets_no_prefix),
        cmocka_unit_test(text_that_is_no_utf8_is_an_error_that_names_the_byte),
        cmocka_unit_test(bytes_that_make_no_character_decode_to_replacement_characters),
        cmocka_unit_test(a_word_of_a_million_letters_takes_no_quadratic_time),
        cmocka_unit_test_setup_teardown(a_tokenizer_keeps_its_ids_through_gguf, make_test_dir, remove_test_dir),
        cmocka_unit_test_setup_teardown(a_tokenizer_from_gguf_keeps_its_ids_through_tokenizer_json, make_test_dir, remove_test_dir),
        cmocka_unit_test_setup_teardown(a_tokenizer_from_json_is_saved_byte_for_byte_with_its_special_tokens_and_template, make_test_dir,
                                        remove_test_dir),
        cmocka_unit_test(what_would_change_the_ids_unnoticed_is_an_error),
        cmocka_unit_test_setup_teardown(every_allocation_may_fail, make_test_dir, remove_test_dir),
        cmocka_unit_test(the_real_tokenizer_opens_and_encodes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
