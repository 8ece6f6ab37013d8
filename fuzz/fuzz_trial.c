/* Trials as JSON lines, and lines of other people's feedback, read with a small tokenizer; what is read is written, and reads as the same. */
#include <stdlib.h>
#include <string.h>

#include <operant/import.h>
#include <operant/jsonl.h>

static const char tokenizer_json[] =
    "{\"added_tokens\":[{\"id\":3,\"content\":\"<|im_start|>\",\"special\":true},{\"id\":4,\"content\":\"<|im_end|>\",\"special\":true}],"
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"\xc4\xa0\":5,\"\xc3\x83\":6,\"\xc2\xa9\":7,\"q\":8},\"merges\":[\"a b\"]}}";
static const char source[] = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
                             "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

static op_status visit(void *ctx, json_t *line, int number, op_error *e)
{
    (void)number;
    const op_chat *chat = ctx;
    op_trial *trials;
    size_t n;
    const char *form;
    *e->message = 0;
    if (op_import_line(&trials, &n, &form, line, chat, NULL, "line", "g", e)) {
        if (!*e->message || trials)
            abort();
        return OP_OK;
    }
    for (size_t i = 0; i < n; i++) {
        json_t *one, *two;
        op_trial back;
        if (trials[i].redo_of < 0)
            trials[i].redo_of = 1;
        if (op_trial_to_json(&trials[i], chat->tokenizer, &one, e) || op_trial_from_json(&back, one, chat->tokenizer, NULL, "again", e) ||
            op_trial_to_json(&back, chat->tokenizer, &two, e) || !json_equal(one, two))
            abort();
        json_decref(one);
        json_decref(two);
        op_trial_release(&back);
    }
    op_import_release(trials, n);
    return OP_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static op_tokenizer *tokenizer;
    static op_template *tmpl;
    op_error e = {0};
    if (!tokenizer && (op_tokenizer_from_json(&tokenizer, tokenizer_json, sizeof tokenizer_json - 1, "t", &e) ||
                       op_template_parse(&tmpl, source, sizeof source - 1, &e)))
        abort();
    op_chat chat = {.tokenizer = tokenizer, .tmpl = tmpl};
    op_json_lines_parse((const char *)data, n, "x.jsonl", visit, &chat, &e);
    return 0;
}
