/* operant train with a protocol file: stages of trials instead of a data set (operant/session.h). */
#include <math.h>
#include <string.h>

#include <operant/buf.h>
#include <operant/chamber.h>
#include <operant/report.h>
#include <operant/session.h>

#include "cli/cli.h"
#include "cli/protocol.h"

enum { WORDS_MAX = 64 };

static void show_round(void *ctx, const op_session_progress *p)
{
    (void)ctx;
    char eta[32], success[24] = "", kl[24] = "";
    if (isfinite(p->success))
        snprintf(success, sizeof success, "  success %.0f%%", 100 * p->success);
    if (isfinite(p->lesson.kl))
        snprintf(kl, sizeof kl, "  kl %.4f", p->lesson.kl);
    cli_progress(p->round == p->rounds, "%s: round %lld/%lld%s  reward %.3f%s  %lld trials  ETA %s", p->stage, (long long)p->round, (long long)p->rounds,
                 success, p->reward, kl, (long long)p->trials, cli_eta(p->eta_s, eta));
}

const char *cli_protocol_file(int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        bool named = !strcmp(argv[i], "--config") && i + 1 < argc;
        const char *path = named ? argv[i + 1] : argv[i];
        if ((named || strstr(argv[i], ".yaml") == argv[i] + strlen(argv[i]) - 5) && !strchr(path, '=') && op_is_protocol(path))
            return path;
    }
    return NULL;
}

/* The command line again, quoted for a shell where that is needed. */
static op_status add_word(op_buf *out, const char *word)
{
    if (*word && !word[strspn(word, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+=./:,@%")])
        return op_buf_printf(out, " %s", word);
    op_status s = op_buf_puts(out, " '");
    for (; !s && *word; word++)
        s = *word == '\'' ? op_buf_puts(out, "'\\''") : op_buf_add(out, word, 1);
    return s ? s : op_buf_puts(out, "'");
}

static op_status report(const char *dir, int argc, char **argv, op_error *e)
{
    op_buf command;
    op_buf_init(&command, 1 << 20);
    op_status s = op_buf_puts(&command, "operant train");
    for (int i = 0; !s && i < argc; i++)
        s = add_word(&command, argv[i]);
    s = s ? op_error_set(e, s, "the command does not fit into memory") : op_protocol_report_write(dir, command.data, e);
    op_buf_release(&command);
    return s;
}

int cli_protocol_run(const cli_command *c, const char *file, int argc, char **argv)
{
    const char *words[WORDS_MAX] = {0};
    char room[WORDS_MAX][1024];
    size_t n = 0;
    bool json = false;
    for (int i = 0; i < argc; i++) {
        const char *w = argv[i], *key = w + (strncmp(w, "--", 2) ? 0 : 2);
        if (!strcmp(w, "--json"))
            json = true;
        else if (!strcmp(w, file) || (!strcmp(w, "--config") && i + 1 < argc && argv[i + 1] == file))
            continue;
        else if (n == WORDS_MAX)
            return cli_usage_error(c, "more than %d settings", WORDS_MAX);
        else if (strchr(key, '='))
            words[n++] = key;
        else if (key != w && i + 1 < argc && snprintf(room[n], sizeof room[n], "%s=%s", key, argv[++i]) < (int)sizeof room[n])
            words[n] = room[n], n++;
        else
            return cli_usage_error(c, "unexpected argument \"%s\"", w);
    }
    const op_session_kit kit = {.methods = op_methods, .teachers = op_chamber_teachers, .sources = op_chamber_sources};
    const op_session_callbacks callbacks = {.progress = show_round, .stop = &cli_stop};
    op_session_result r;
    op_error e = {0};
    op_status status = op_session_run(file, &kit, words, n, &callbacks, &r, &e);
    if (!status)
        status = report(r.output_dir, argc, argv, &e);
    else if (status == OP_ERR_INTERRUPTED && *r.output_dir)
        report(r.output_dir, argc, argv, NULL); /* of what there is; that it was stopped is the news */
    if (!status && json) {
        json_t *j = json_pack("{ss sI sI sI so so so}", "output_dir", r.output_dir, "rounds", (json_int_t)r.rounds, "trials", (json_int_t)r.trials, "tokens",
                              (json_int_t)r.tokens, "success", isfinite(r.success) ? json_real(r.success) : json_null(), "seconds", json_real(r.seconds),
                              "model_share", json_real(r.model_share));
        cli_print_json(j);
        json_decref(j);
    } else if (!status) {
        printf("trained: %s (%lld rounds, %lld trials, %.0f%% of the time in the model)\n", r.output_dir, (long long)r.rounds, (long long)r.trials,
               100 * r.model_share);
        printf("report: %s/report.html\n", r.output_dir);
    }
    if (status == OP_ERR_INTERRUPTED)
        fprintf(stderr, "stopped; the same command goes on from the checkpoint in \"%s\"\n", r.output_dir);
    return status ? cli_fail(&e) : 0;
}
