/* Runs the text layer for oracle.py, which compares what it prints with the reference libraries.
 *
 *   oracle_tool encode MODEL FILE...   FILE holds JSON lines {"text": ...}: one line of ids per line, then of offsets
 *   oracle_tool decode MODEL FILE      JSON lines {"ids": [...]}: a JSON string per line
 *   oracle_tool speed MODEL FILE       MB/s of encoding FILE line by line, and tokens
 *   oracle_tool save MODEL DIR         writes tokenizer.json and its neighbours
 *   oracle_tool gguf MODEL FILE        writes a GGUF file with the tokenizer alone
 *   oracle_tool render - FILE          JSON lines {"template", "vars"}: a JSON string, or {"error": ...}, per line
 *   oracle_tool chat MODEL FILE        JSON lines {"messages", "tools"?, "generate"?}: id:turn of every token, per line
 *   oracle_tool examples MODEL FILE    lines of a data set: every token with its weight */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <operant/clock.h>
#include <operant/dataset.h>
#include <operant/jsonl.h>
#include <operant/tokenizer.h>

#include "base/mem.h"
#include "io/file.h"
#include "text/gguf_out.h"

typedef struct context {
    op_tokenizer *t;
    op_tokens tokens;
    op_buf text;
    op_template *tmpl;
    unsigned flags;
} context;

static void die(const op_error *e)
{
    fprintf(stderr, "%s\n", e->message);
    exit(1);
}

static void print_string(const char *s, size_t n)
{
    json_t *value = json_stringn(s, n);
    json_dumpf(value, stdout, JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII);
    putchar('\n');
    json_decref(value);
}

static op_status encode_line(void *ctx, json_t *object, int line, op_error *e)
{
    (void)line;
    context *c = ctx;
    const json_t *text = json_object_get(object, "text");
    op_tokens_clear(&c->tokens);
    op_status s = op_tokenizer_encode(c->t, json_string_value(text), json_string_length(text), c->flags, &c->tokens, e);
    if (s)
        return s;
    for (size_t i = 0; i < c->tokens.n; i++)
        printf("%d ", c->tokens.ids[i]);
    putchar('\n');
    for (size_t i = 0; i < c->tokens.n; i++)
        printf("%u %u ", c->tokens.begin[i], c->tokens.end[i]);
    putchar('\n');
    return OP_OK;
}

static op_status decode_line(void *ctx, json_t *object, int line, op_error *e)
{
    (void)line, (void)e;
    context *c = ctx;
    const json_t *ids = json_object_get(object, "ids"), *id;
    size_t i;
    op_tokens_clear(&c->tokens);
    int32_t *list = op_alloc_array(json_array_size(ids) + 1, sizeof *list);
    json_array_foreach(ids, i, id)
        list[i] = (int32_t)json_integer_value(id);
    op_buf_clear(&c->text);
    op_status s = op_tokenizer_decode(c->t, list, i, c->flags, &c->text);
    op_free(list);
    print_string(c->text.data ? c->text.data : "", c->text.len);
    return s;
}

static op_status render_line(void *ctx, json_t *object, int line, op_error *e)
{
    (void)line;
    context *c = ctx;
    op_buf_clear(&c->text);
    const json_t *source = json_object_get(object, "template");
    op_template *own = NULL;
    op_status s = op_template_parse(&own, json_string_value(source), json_string_length(source), e);
    if (!s)
        s = op_template_render(own, json_object_get(object, "vars"), &c->text, e);
    op_template_free(own);
    if (s) {
        json_t *error = json_pack("{s:s}", "error", e->message);
        json_dumpf(error, stdout, JSON_COMPACT | JSON_ENSURE_ASCII);
        putchar('\n');
        json_decref(error);
    } else {
        print_string(c->text.data ? c->text.data : "", c->text.len);
    }
    return OP_OK;
}

static op_status chat_line(void *ctx, json_t *object, int line, op_error *e)
{
    (void)line;
    context *c = ctx;
    op_chat chat = {.tokenizer = c->t, .tmpl = c->tmpl, .special_in_content = true}; /* as transformers has it */
    op_turns turns = {0};
    op_tokens_clear(&c->tokens);
    op_buf_clear(&c->text);
    op_status s = op_chat_encode(&chat, json_object_get(object, "messages"), json_object_get(object, "tools"),
                                 json_is_true(json_object_get(object, "generate")), &c->tokens, &turns, &c->text, e);
    if (s) {
        printf("error: %s\n", e->message);
    } else {
        for (size_t i = 0; i < c->tokens.n; i++)
            printf("%d:%d ", c->tokens.ids[i], turns.turn[i]);
        putchar('\n');
    }
    op_turns_release(&turns);
    return OP_OK;
}

static op_status example_line(void *ctx, json_t *object, int line, op_error *e)
{
    context *c = ctx;
    op_chat chat = {.tokenizer = c->t, .tmpl = c->tmpl};
    op_example x;
    char name[32];
    snprintf(name, sizeof name, "line %d", line);
    if (op_example_from_json(&x, object, &chat, NULL, name, e)) {
        printf("error: %s\n", e->message);
        return OP_OK;
    }
    for (int32_t i = 0; i < x.n; i++) {
        size_t n;
        const char *bytes = op_tokenizer_bytes(c->t, x.ids[i], &n);
        printf("%.*s{%g} ", (int)n, bytes, (double)x.weights[i]);
    }
    putchar('\n');
    op_example_release(&x);
    return OP_OK;
}

static void speed(context *c, const char *path)
{
    op_error e;
    op_buf file;
    op_buf_init(&file, 1 << 30);
    if (op_file_read(path, &file, &e))
        die(&e);
    double best = 1e9;
    for (int round = 0; round < 5; round++) {
        double start = op_seconds();
        op_tokens_clear(&c->tokens);
        for (char *line = file.data, *end; line < file.data + file.len; line = end + 1) {
            end = memchr(line, '\n', (size_t)(file.data + file.len - line));
            end = end ? end : file.data + file.len;
            if (op_tokenizer_encode(c->t, line, (size_t)(end - line), c->flags, &c->tokens, &e))
                die(&e);
        }
        double time = op_seconds() - start;
        best = time < best ? time : best;
    }
    printf("%.2f %zu\n", (double)file.len / 1e6 / best, c->tokens.n);
    op_buf_release(&file);
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: oracle_tool encode|decode|speed|render|chat MODEL FILE\n");
        return 2;
    }
    op_error e = {0};
    context c = {.flags = OP_ENCODE_SPECIAL};
    op_buf_init(&c.text, 1 << 28);
    op_status s = OP_OK;
    double start = op_seconds();
    if (strcmp(argv[1], "render") == 0) {
        s = op_json_lines(argv[3], render_line, &c, &e);
        if (s)
            die(&e);
        op_buf_release(&c.text);
        return 0;
    }
    if ((s = op_tokenizer_open(&c.t, argv[2], &e)))
        die(&e);
    fprintf(stderr, "opened in %.3f s\n", op_seconds() - start);
    if (strcmp(argv[1], "encode") == 0) {
        s = op_json_lines(argv[3], encode_line, &c, &e);
    } else if (strcmp(argv[1], "decode") == 0) {
        c.flags = OP_DECODE_ALL;
        s = op_json_lines(argv[3], decode_line, &c, &e);
    } else if (strcmp(argv[1], "chat") == 0 || strcmp(argv[1], "examples") == 0) {
        const char *source = op_tokenizer_chat_template(c.t);
        if (!source || op_template_parse(&c.tmpl, source, strlen(source), &e))
            die(&e);
        s = op_json_lines(argv[3], argv[1][0] == 'c' ? chat_line : example_line, &c, &e);
        op_template_free(c.tmpl);
    } else if (strcmp(argv[1], "save") == 0) {
        s = op_tokenizer_save(c.t, argv[3], &e);
    } else if (strcmp(argv[1], "gguf") == 0) {
        op_gguf_writer *w = op_gguf_writer_new();
        s = op_tokenizer_put_gguf(c.t, w, op_tokenizer_vocab_size(c.t) + 3, &e);
        s = s ? s : op_gguf_save(w, argv[3], &e);
        op_gguf_writer_free(w);
    } else if (strcmp(argv[1], "speed") == 0) {
        speed(&c, argv[3]);
    }
    if (s)
        die(&e);
    op_tokens_release(&c.tokens);
    op_buf_release(&c.text);
    op_tokenizer_free(c.t);
    return 0;
}
