#include "lab/page.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

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
