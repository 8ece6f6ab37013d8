#include "lab/page.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char style[] =
    ":root{color-scheme:light dark;--paper:#fff;--ink:#1c2024;--soft:#5b6570;--rule:#dde2e7;--card:#f5f7f9;"
    "--accent:#1f62c4;--past:#8a94a0;--asks:#5b8fe0;--answers:#b4bfc9;--declines:#e3a052;--silent:#fff;--held:#b3470f;--good:#1b7a45;--miss:#b3261e}"
    "@media(prefers-color-scheme:dark){:root{--paper:#15181c;--ink:#e6e9ec;--soft:#9aa5b1;--rule:#30373f;--card:#1d2228;"
    "--accent:#7db1ff;--past:#8a94a0;--asks:#3c6fc0;--answers:#4d5965;--declines:#a8692a;--silent:#15181c;--held:#f0a267;--good:#6fcf97;--miss:#ff8a80}}"
    "@media print{:root{color-scheme:light;--paper:#fff;--ink:#000;--soft:#444;--rule:#ccc;--card:#fff;--accent:#1f62c4;--past:#777;--asks:#8fb2ea;"
    "--answers:#d5dbe0;--declines:#eec08a;--silent:#fff;--held:#b3470f;--good:#1b7a45;--miss:#b3261e}}"
    "*{box-sizing:border-box}"
    "body{margin:0 auto;padding:2rem 1.25rem 4rem;max-width:52rem;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}"
    "h1{font-size:1.9rem;line-height:1.2;margin:0 0 1rem}h2{font-size:1.3rem;margin:2.6rem 0 .6rem}h3{font-size:1.05rem;margin:1.8rem 0 .5rem}"
    ".claim{font-size:1.12rem}.note{color:var(--soft);font-size:.92rem}"
    ".scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}"
    "th,td{padding:.35rem .6rem;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}"
    "th:first-child,td:first-child{text-align:left;white-space:normal;padding-left:0;min-width:9rem}th{color:var(--soft);font-weight:600;white-space:normal;vertical-align:bottom}"
    ".met{color:var(--good);font-weight:600}.missed{color:var(--miss);font-weight:600}"
    "figure{margin:1rem 0;overflow-x:auto}figcaption{color:var(--soft);font-size:.92rem}svg{display:block;width:100%;min-width:32rem;height:auto}"
    "svg text{fill:var(--ink);font:12px system-ui,sans-serif}svg .tick{fill:var(--soft);font-size:11px}svg .inside{font-size:11px}"
    ".grid{stroke:var(--rule)}.before-line{stroke:var(--past);stroke-width:2}.after-line{stroke:var(--accent);stroke-width:3}"
    ".before{fill:var(--paper);stroke:var(--past);stroke-width:2}.after{fill:var(--accent);stroke:var(--accent)}"
    ".asks{fill:var(--asks)}.answers{fill:var(--answers)}.declines{fill:var(--declines)}.silent{fill:var(--silent);stroke:var(--past);stroke-dasharray:3 2}"
    "polyline{fill:none}.loss-raw{stroke:var(--past);opacity:.45}.loss{stroke:var(--accent);stroke-width:2}.held{stroke:var(--held);stroke-width:2}.held-dot{fill:var(--held)}"
    ".open{font-weight:600}.warning{color:var(--miss)}.zero{stroke:var(--ink)}.mean{stroke:var(--accent);stroke-width:3}"
    ".seed{fill:var(--ink);fill-opacity:.55}.pair{stroke:var(--past);opacity:.4}.thin{opacity:.3}.bold{stroke-width:2.5}.dash{stroke-dasharray:6 3}"
    ".c0{stroke:var(--accent)}.c1{stroke:var(--held)}.c2{stroke:var(--good)}.c3{stroke:#9061d6}.c4{stroke:#b98a1b}.c5{stroke:#1b9aa0}.c6{stroke:#cf4b8c}.c7{stroke:var(--past)}"
    ".talk{border:1px solid var(--rule);background:var(--card);border-radius:8px;padding:.7rem 1rem;margin:.7rem 0}"
    ".talk p{margin:.35rem 0;white-space:pre-wrap;overflow-wrap:anywhere}.who{color:var(--soft);font-size:.82rem;font-weight:600;display:block}"
    ".reply{border-left:3px solid var(--past);padding-left:.7rem}.reply.now{border-color:var(--accent)}"
    "code,pre{font:.86rem/1.5 ui-monospace,monospace;overflow-wrap:anywhere}pre{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:.7rem 1rem;white-space:pre-wrap}"
    "td code{white-space:normal}.wide td{white-space:normal;text-align:left}"
    "mark{color:inherit;border-bottom:2px solid;border-radius:3px}mark.up{background:rgba(27,122,69,.22);border-color:var(--good)}"
    "mark.down{background:rgba(179,38,30,.22);border-color:var(--miss)}"
    "@media(max-width:40rem){th,td{padding:.3rem .35rem}th:first-child,td:first-child{min-width:7rem}}"
    "@media print{body{max-width:none;padding:0;font-size:11pt}h2{break-after:avoid}figure,.talk,tr{break-inside:avoid}}";

void op_page_begin(op_page *p, const char *kind, const char *heading)
{
    op_page_put(p, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"/><title>");
    op_page_text(p, heading);
    op_page_put(p, " · %s</title>\n<style>", kind);
    if (!p->status)
        p->status = op_buf_puts(p->out, style);
    op_page_put(p, "</style></head><body>\n");
    op_page_element(p, "h1", heading);
    op_page_put(p, "\n");
}

void op_page_end(op_page *p)
{
    op_page_put(p, "</body></html>\n");
}

void op_page_put(op_page *p, const char *format, ...)
{
    if (p->status)
        return;
    char text[2048];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    p->status = n < 0 || (size_t)n >= sizeof text ? OP_ERR_ARG : op_buf_add(p->out, text, (size_t)n);
}

void op_page_text(op_page *p, const char *text)
{
    static const char *const entities[][2] = {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}, {"'", "&#39;"}};
    while (!p->status && *text) {
        size_t plain = 0;
        while (text[plain] && !strchr("&<>\"'", text[plain]) && ((unsigned char)text[plain] >= ' ' || text[plain] == '\n' || text[plain] == '\t'))
            plain++;
        p->status = op_buf_add(p->out, text, plain);
        text += plain;
        if (!*text)
            break;
        for (size_t i = 0; i < sizeof entities / sizeof *entities && !p->status; i++)
            if (*text == *entities[i][0])
                p->status = op_buf_puts(p->out, entities[i][1]);
        text++;
    }
}

void op_page_element(op_page *p, const char *tag, const char *text)
{
    op_page_put(p, "<%s>", tag);
    op_page_text(p, text);
    op_page_put(p, "</%.*s>", (int)strcspn(tag, " "), tag);
}
