/* operant: the program. Each verb is one cmd_*.c. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <operant/log.h>

#include "cli/cli.h"

static const cli_command *const commands[] = {&cli_train, &cli_teach, &cli_chat, &cli_assay, &cli_trials, &cli_chamber, &cli_lab, &cli_vector, &cli_generate, &cli_score, &cli_preprocess, &cli_export, &cli_merge, &cli_reverse,
                                              &cli_inspect, &cli_env, &cli_bench};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void interrupt(int signal)
{
    (void)signal;
    if (cli_stop)
        _exit(130);
    cli_stop = 1;
    ssize_t ignored = write(STDERR_FILENO, cli_stop_words, strlen(cli_stop_words));
    (void)ignored;
}

static void print_log(void *ctx, op_log_level level, const char *message)
{
    (void)ctx;
    if (level >= OP_LOG_INFO)
        fprintf(stderr, "%s%s\n", level == OP_LOG_WARN ? "warning: " : level == OP_LOG_ERROR ? "error: " : "", message);
}

static void usage(FILE *out)
{
    fputs("operant " OPERANT_VERSION ": trains, corrects and guards language models with the methods of operant conditioning\n\n"
          "usage: operant VERB [--config FILE.yaml] [key=value ...] [--json] [--help]\n\n", out);
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-11s %s\n", commands[i]->name, commands[i]->summary);
    fputs("\nexamples:\n"
          "  operant train --config examples/ask-why/train.yaml model=models/SmolLM2-135M-Instruct.Q4_1.gguf\n"
          "  operant chat model=runs/ask-why\n"
          "  operant VERB --help\n", out);
}

/* libgomp's threads spin for long while they wait for one another; beside any other busy process that makes products ten times slower.
 * It reads its settings before main, so the program starts itself once more with a short spin: by its own path, from which the process has its name. */
static void spin_less(char **argv)
{
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY"))
        return;
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path);
    if (n < 0 || n == sizeof path || setenv("GOMP_SPINCOUNT", "10000", 1))
        return;
    path[n] = 0;
    execv(path, argv);
}

int main(int argc, char **argv)
{
    spin_less(argv);
    atexit(cli_check_stdout);
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || (argc == 2 && !strcmp(argv[1], "help"))) {
        usage(argc < 2 ? stderr : stdout);
        return argc < 2 ? 2 : 0;
    }
    if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "version")) {
        puts("operant " OPERANT_VERSION);
        return 0;
    }
    struct sigaction action = {.sa_handler = interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL); /* what mpirun passes on, and a batch system sends before time is up */
    op_log_set(print_log, NULL);
    bool help = !strcmp(argv[1], "help");
    const char *verb = argv[1 + help], *names[N_COMMANDS + 1] = {0};
    for (int i = 0; i < N_COMMANDS; i++) {
        names[i] = commands[i]->name;
        if (strcmp(verb, names[i]))
            continue;
        char word[] = "--help", *words[] = {word};
        return help ? commands[i]->run(commands[i], 1, words) : commands[i]->run(commands[i], argc - 2, argv + 2);
    }
    const char *near = op_config_nearest(verb, names);
    fprintf(stderr, "operant: unknown verb \"%s\"%s%s%s\ntry: operant --help\n", verb, near ? ", did you mean \"" : "", near ? near : "",
            near ? "\"?" : "");
    return 2;
}
