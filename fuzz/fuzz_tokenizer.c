/* A tokenizer.json, or a GGUF file if it begins with "GGUF", then "<|>" and a text. What opens must encode the text within its
 * bounds, decode what it encoded, and give the same text at once and as a stream. */
#include <stdlib.h>
#include <string.h>

#include <operant/tokenizer.h>

#include "io/tensors.h"

static void encode_and_decode(const op_tokenizer *t, const char *text, size_t n)
{
    op_error e = {0};
    for (unsigned flags = 0; flags < 16; flags++) {
        op_tokens tokens = {0};
        op_buf whole, stream;
        op_buf_init(&whole, 1 << 24);
        op_buf_init(&stream, 1 << 24);
        if (op_tokenizer_encode(t, text, n, flags, &tokens, &e) && (!*e.message || tokens.n))
            abort();
        op_decoder d = {.tokenizer = t};
        for (size_t i = 0; i < tokens.n; i++) {
            if (tokens.ids[i] < 0 || tokens.ids[i] >= op_tokenizer_vocab_size(t) || tokens.begin[i] > tokens.end[i] || tokens.end[i] > n)
                abort();
            op_decoder_push(&d, tokens.ids[i], &stream);
        }
        op_decoder_finish(&d, &stream);
        op_tokenizer_decode(t, tokens.ids, tokens.n, OP_DECODE_ALL, &whole);
        op_buf_release(&whole);
        op_buf_release(&stream);
        op_tokens_release(&tokens);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    op_error e = {0};
    op_tokenizer *t = NULL;
    op_status s;
    const uint8_t *cut = memmem(data, n, "<|>", 3);
    size_t head = cut ? (size_t)(cut - data) : n;
    char *copy = malloc(n ? n : 1), *text = malloc(n - head + 1);
    memcpy(copy, data, head);
    memcpy(text, data + head, n - head);
    if (head >= 4 && memcmp(data, "GGUF", 4) == 0) {
        op_tensors *g;
        s = op_tensors_parse(&g, (const unsigned char *)copy, head, "x.gguf", &e);
        s = s ? s : op_tokenizer_from_gguf(&t, g, &e);
        op_tensors_close(g);
    } else {
        s = op_tokenizer_from_json(&t, copy, head, "x.json", &e);
    }
    if (s ? !*e.message || t : !t)
        abort();
    free(copy);
    if (t)
        encode_and_decode(t, text, n - head);
    op_tokenizer_free(t);
    free(text);
    return 0;
}
