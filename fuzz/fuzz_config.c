/* A YAML file of settings; if it begins with '=', a key=value word. What loads must survive being written and read again. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <operant/config.h>

typedef struct settings {
    int64_t steps, rank;
    double rate;
    bool bf16;
    char *model, *targets;
    int kind;
} settings;

static const op_option table[] = {
    {"max_steps|steps", OP_OPTION_INT, offsetof(settings, steps), "10", 1, 1e6, NULL, "steps"},
    {"learning_rate|lr", OP_OPTION_FLOAT, offsetof(settings, rate), "2e-4", 0, 0, NULL, "rate"},
    {"bf16", OP_OPTION_BOOL, offsetof(settings, bf16), "yes", 0, 0, NULL, "bf16"},
    {"model", OP_OPTION_STRING, offsetof(settings, model), NULL, 0, 0, NULL, "path"},
    {"schedule", OP_OPTION_CHOICE, offsetof(settings, kind), "linear", 0, 0, "none|linear|cosine", "schedule"},
    {"lora.targets", OP_OPTION_LIST, offsetof(settings, targets), "q,k", 0, 0, NULL, "targets"},
    {"lora.r", OP_OPTION_INT, offsetof(settings, rank), "16", 0, 0, NULL, "rank"},
    {0},
};

static void write_and_read_again(const settings *s)
{
    settings again;
    op_buf a, b;
    op_error e;
    op_buf_init(&a, 1 << 26);
    op_buf_init(&b, 1 << 26);
    if (op_config_init(&again, table, &e) || op_config_write(s, table, &a))
        abort();
    /* Escapes can make it longer than what may be read. */
    if (a.len < 1 << 20 && (op_config_parse(&again, table, a.data, a.len, "again", &e) || op_config_write(&again, table, &b) ||
                            a.len != b.len || memcmp(a.data, b.data, a.len)))
        abort();
    op_config_release(&again, table);
    op_buf_release(&a);
    op_buf_release(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    settings s;
    op_error e = {0};
    char *text = malloc(n + 1);
    memcpy(text, data, n);
    text[n] = 0;
    if (op_config_init(&s, table, &e))
        abort();
    op_status status = *text == '=' ? op_config_set(&s, table, text + 1, &e) : op_config_parse(&s, table, text, n, "x.yaml", &e);
    if (status && !*e.message)
        abort();
    write_and_read_again(&s);
    op_config_release(&s, table);
    free(text);
    return 0;
}
