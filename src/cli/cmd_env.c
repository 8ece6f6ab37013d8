/* operant env: what this program was built with and what the machine offers. */
#include <string.h>
#include <unistd.h>

#include <operant/env.h>

#include "cli/cli.h"

#ifdef __clang__
#define COMPILER __VERSION__ /* says "Clang" itself */
#else
#define COMPILER "gcc " __VERSION__
#endif

static void cpu_features(char *out, size_t room)
{
    static const char *const wanted[] = {"avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"};
    char line[8192];
    FILE *f = fopen("/proc/cpuinfo", "r");
    size_t n = 0;
    out[0] = 0;
    while (f && fgets(line, sizeof line, f)) {
        if (strncmp(line, "flags", 5))
            continue;
        for (char *word = strtok(line, " \t\n"); word; word = strtok(NULL, " \t\n"))
            for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
                if (!strcmp(word, wanted[i]) && n < room)
                    n += (size_t)snprintf(out + n, room - n, "%s%s", n ? " " : "", word);
        break;
    }
    if (f)
        fclose(f);
}

static int run(const cli_command *c, int argc, char **argv)
{
    cli_args a = cli_parse(c, NULL, argc, argv);
    char features[256];
    cpu_features(features, sizeof features);
    json_t *j = json_pack("{ss ss ss ss ss ss ss sb si sI}", "operant", OPERANT_VERSION, "compiler", COMPILER, "libraries", OPERANT_LIBRARIES, "onednn",
                          op_env_onednn(), "processor", features, "simd", op_env_simd(), "products", op_env_products(), "bf16",
                          op_env_native_bf16(), "threads", op_env_threads(0), "memory_mb",
                          (json_int_t)(sysconf(_SC_PHYS_PAGES) / 1024 * (sysconf(_SC_PAGESIZE) / 1024)));
    if (!j)
        return 1;
    if (a.json) {
        cli_print_json(j);
    } else {
        const char *key;
        json_t *v;
        json_object_foreach(j, key, v)
        {
            if (json_is_string(v))
                printf("%-10s %s\n", key, json_string_value(v));
            else if (json_is_boolean(v))
                printf("%-10s %s\n", key, json_is_true(v) ? "native" : "emulated: dtype=auto takes f32");
            else
                printf("%-10s %lld\n", key, (long long)json_integer_value(v));
        }
    }
    json_decref(j);
    return 0;
}

const cli_command cli_env = {
    "env", "versions, processor features, threads, libraries", "[--json]",
    "What to say in a report about speed or a fault.\n\nexample:\n  operant env", NULL, run, NULL};
