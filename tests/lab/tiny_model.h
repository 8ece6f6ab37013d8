/* A model of two tiny layers with a byte-level tokenizer and a chat template, written into the test's directory. */
#ifndef TESTS_LAB_TINY_MODEL_H
#define TESTS_LAB_TINY_MODEL_H

#include <operant/buf.h>
#include <operant/file.h>
#include <operant/model.h>

#include "tools.h"

/* GPT-2's way to write a byte as a printable character: itself, or 256 and on for those that are blank or control. */
static void put_byte(op_buf *out, int byte)
{
    int code = byte, next = 256;
    for (int b = 0; b <= byte; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        if (!printable && b == byte)
            code = next;
        next += !printable;
    }
    op_buf_printf(out, "\\u%04x", code);
}

static void put_tokenizer(const char *dir)
{
    char name[100];
    op_buf out;
    op_buf_init(&out, 1 << 20);
    op_buf_puts(&out, "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":256,\"content\":\"<|im_start|>\",\"special\":true},{\"id\":257,\"content\":\"<|im_end|>\","
                      "\"special\":true}],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
                      "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{");
    for (int b = 0; b < 256; b++) {
        op_buf_puts(&out, b ? ",\"" : "\"");
        put_byte(&out, b);
        op_buf_printf(&out, "\":%d", b);
    }
    op_buf_puts(&out, ",\"<|im_start|>\":256,\"<|im_end|>\":257},\"merges\":[]}}");
    snprintf(name, sizeof name, "%s/tokenizer.json", dir);
    put_file(name, out.data);
    snprintf(name, sizeof name, "%s/tokenizer_config.json", dir);
    put_file(name, "{\"eos_token\":\"<|im_end|>\",\"chat_template\":\"{% for m in messages %}{{'<|im_start|>' + m['role'] + '\\\\n' + m['content'] + '<|im_end|>' + '\\\\n'}}"
                   "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\\\n' }}{% endif %}\"}");
    op_buf_release(&out);
}

/* `spoil` is added to one of its weights. */
static void put_model(const char *name, float spoil)
{
    const op_model_config c = {.family = OP_LLAMA, .vocab = 258, .width = 32, .layers = 2, .heads = 2, .kv_heads = 1, .head_dim = 16, .ffn = 64, .max_positions = 512,
                               .norm_eps = 1e-5f, .rope_theta = 10000, .tied = true, .bos = -1, .pad = -1, .eos = {257}, .n_eos = 1};
    const op_model_options o = {.act = OP_F32, .trainable = OP_TRAIN_ALL, .seed = 7};
    op_model *m;
    assert_ok(op_dir_make(in_dir(name), e));
    assert_ok(op_model_new(&m, &c, &o, e));
    op_model_params(m).values[100] += spoil;
    assert_ok(op_model_save(m, in_dir(name), OP_F32, e));
    op_model_free(m);
    put_tokenizer(name);
}

#endif
