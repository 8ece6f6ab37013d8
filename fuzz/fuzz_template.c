/* A chat template, then, after a 0 byte, the variables as JSON. */
#include <stdlib.h>
#include <string.h>

#include <operant/chat.h>

#include "io/json.h"

static const char usual[] = "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"\xc3\xa9 u\\n\"},"
                            "{\"role\":\"assistant\",\"content\":\"a\"}],\"tools\":[{\"a\":[1,2.5,null,true]}],\"add_generation_prompt\":true,"
                            "\"bos_token\":\"<s>\",\"n\":3,\"x\":2.5,\"d\":{\"k\":1},\"l\":[3,1,2],\"s\":\"abc\"}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    op_error e = {0};
    op_template *t;
    json_t *vars = NULL;
    op_buf out;
    const uint8_t *zero = memchr(data, 0, n);
    size_t head = zero ? (size_t)(zero - data) : n;
    char *source = malloc(head ? head : 1);
    memcpy(source, data, head);
    op_buf_init(&out, 1 << 20);
    op_status s = op_template_parse(&t, source, head, &e);
    free(source);
    if (s ? !*e.message || t : !t)
        abort();
    if (!zero || op_json_parse(&vars, (const char *)zero + 1, n - head - 1, "vars", &e))
        op_json_parse(&vars, usual, sizeof usual - 1, "vars", &e);
    *e.message = 0;
    if (t && op_template_render(t, vars, &out, &e) && (!*e.message || out.len))
        abort();
    json_decref(vars);
    op_template_free(t);
    op_buf_release(&out);
    return 0;
}
