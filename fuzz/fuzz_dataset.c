/* Lines of a data set, read with a small tokenizer and a chat template. */
#include <stdlib.h>
#include <string.h>

#include <operant/dataset.h>

static const char tokenizer_json[] =
    "{\"added_tokens\":[{\"id\":3,\"content\":\"<|im_start|>\",\"special\":true},{\"id\":4,\"content\":\"<|im_end|>\",\"special\":true}],"
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"\xc4\xa0\":5,\"\xc3\x83\":6,\"\xc2\xa9\":7,\"q\":8},\"merges\":[\"a b\"]}}";
static const char source[] = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
                             "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

static op_status read_line(void *ctx, json_t *object, int line, op_error *e)
{
    (void)line;
    static const op_dataset_options options[] = {{0}, {.max_length = 5, .last_turn_only = 1}};
    for (int i = 0; i < 2; i++) {
        op_example x;
        *e->message = 0;
        if (op_example_from_json(&x, object, ctx, &options[i], "line", e)) {
            if (!*e->message || x.ids)
                abort();
            continue;
        }
        bool trained = false;
        for (int32_t k = 0; k < x.n; k++)
            trained |= x.weights[k] != 0;
        if (!trained || x.weights[0] != 0 || (i && x.n > 5))
            abort();
        op_example_release(&x);
    }
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
    op_json_lines_parse((const char *)data, n, "x.jsonl", read_line, &chat, &e);
    return 0;
}
