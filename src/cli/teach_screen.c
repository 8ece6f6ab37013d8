/* The terminal of `operant teach`: keys in, one trial drawn as tokens with their marks below them. */
#include <errno.h>
#include <locale.h>
#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>
#include <wchar.h>

#include "cli/teach.h"

static struct termios before;
static bool is_raw, colour;
static volatile sig_atomic_t resized;
static struct sigaction old_resize;

static void on_resize(int signal)
{
    (void)signal;
    resized = 1;
}

static void put(const char *bytes, size_t n)
{
    while (n) {
        ssize_t k = write(STDOUT_FILENO, bytes, n);
        if (k < 0 && errno != EINTR)
            return;
        bytes += k > 0 ? k : 0;
        n -= k > 0 ? (size_t)k : 0;
    }
}

op_status teach_screen_open(op_error *e)
{
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
        return op_error_set(e, OP_ERR_UNSUPPORTED,
                            "operant teach is for a person at a terminal, and %s is none; a program teaches through \"type: program\" in a protocol, and feedback in "
                            "files through operant trials import", isatty(STDIN_FILENO) ? "standard output" : "standard input");
    if (tcgetattr(STDIN_FILENO, &before))
        return op_error_set(e, OP_ERR_IO, "terminal: %s", strerror(errno));
    struct termios raw = before;
    raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO | IEXTEN);
    raw.c_iflag &= ~(tcflag_t)(ICRNL | IXON);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    raw.c_cc[VSUSP] = _POSIX_VDISABLE; /* stopped, it would leave the terminal raw */
    raw.c_cc[VQUIT] = _POSIX_VDISABLE;
    setlocale(LC_CTYPE, "C.UTF-8");    /* for the widths of characters */
    struct sigaction action = {.sa_handler = on_resize};
    sigaction(SIGWINCH, &action, &old_resize);
    colour = cli_colour(stdout);
    is_raw = !tcsetattr(STDIN_FILENO, TCSAFLUSH, &raw);
    put("\033[?1049h", 8);
    return OP_OK;
}

void teach_screen_close(void)
{
    if (!is_raw)
        return;
    put("\033[?1049l", 8);
    tcsetattr(STDIN_FILENO, TCSAFLUSH, &before);
    sigaction(SIGWINCH, &old_resize, NULL);
    is_raw = false;
}

/* ---- keys ---- */

/* The next byte, -1 if none comes within `ms` (negative: ever), -2 at the end of the input. */
static int next_byte(int ms)
{
    unsigned char b;
    struct pollfd f = {.fd = STDIN_FILENO, .events = POLLIN};
    int n = poll(&f, 1, ms);
    if (n <= 0)
        return -1;
    ssize_t k = read(STDIN_FILENO, &b, 1);
    return k == 1 ? b : k < 0 && errno == EINTR ? -1 : -2;
}

static int escape_sequence(void)
{
    int b = next_byte(50);
    if (b != '[' && b != 'O')
        return TEACH_ESCAPE;
    int first = b = next_byte(50);
    while ((b >= '0' && b <= '9') || b == ';')
        b = next_byte(50);
    switch (b) {
    case 'A': return TEACH_UP;
    case 'B': return TEACH_DOWN;
    case 'C': return TEACH_RIGHT;
    case 'D': return TEACH_LEFT;
    case 'H': return TEACH_HOME;
    case 'F': return TEACH_END;
    case '~': return first == '1' || first == '7' ? TEACH_HOME : first == '4' || first == '8' ? TEACH_END : TEACH_ESCAPE;
    default: return TEACH_ESCAPE;
    }
}

int teach_screen_key(void)
{
    for (;;) {
        if (cli_stop)
            return TEACH_STOPPED;
        if (resized) {
            resized = 0;
            return TEACH_RESIZED;
        }
        int b = next_byte(500); /* a signal that comes just before the wait is seen soon after */
        if (b == -2)
            return TEACH_STOPPED;
        if (b >= 0)
            return b == 27 ? escape_sequence() : b;
    }
}

/* ---- drawing ---- */

typedef struct page {
    op_buf out, marks; /* marks: the line below the one that is being written */
    int rows, columns; /* of the terminal */
    int row, column;
    bool any_mark;
} page;

static void style(page *p, const char *code)
{
    if (colour)
        op_buf_printf(&p->out, "\033[%sm", code);
}

static void new_line(page *p)
{
    op_buf_puts(&p->out, "\033[K\r\n");
    p->row++;
    p->column = 0;
}

/* One character, as it may be shown: its length in bytes, 0 at the end; a control character or a broken one becomes '?'. */
static size_t character(const char *s, size_t n, const char **show, size_t *len, int *width)
{
    wchar_t c;
    mbstate_t fresh = {0};
    size_t k = n ? mbrtowc(&c, s, n, &fresh) : 0;
    *show = s;
    *len = k;
    *width = k && k < (size_t)-2 ? wcwidth(c) : -1;
    if (n && *width < 0) {
        *show = "?";
        *len = 1;
        *width = 1;
        k = k && k < (size_t)-2 ? k : 1;
    }
    return k;
}

/* Text that wraps, at most to row `last`. */
static void put_text(page *p, const char *text, int last)
{
    size_t n = strlen(text), len, k;
    const char *show;
    int width;
    for (; (k = character(text, n, &show, &len, &width)); text += k, n -= k) {
        if (*text == '\n' || p->column + width > p->columns) {
            if (p->row >= last)
                return;
            new_line(p);
            if (*text == '\n')
                continue;
        }
        op_buf_add(&p->out, show, len);
        p->column += width;
    }
}

/* What stands for a token: its words, visible whatever they are. */
static void token_text(const op_tokenizer *k, int32_t id, op_buf *out)
{
    size_t n;
    const char *bytes = op_tokenizer_bytes(k, id, &n);
    mbstate_t state = {0};
    op_buf_clear(out);
    for (size_t i = 0; i < n;) {
        wchar_t c;
        size_t len = mbrtowc(&c, bytes + i, n - i, &state);
        if (len == 0 || len >= (size_t)-2) {
            op_buf_printf(out, "<%02X>", (unsigned char)bytes[i++]);
            memset(&state, 0, sizeof state);
        } else {
            if (bytes[i] == '\n')
                op_buf_puts(out, "\u21b5");
            else if (bytes[i] == '\t')
                op_buf_puts(out, "\u21e5");
            else
                op_buf_add(out, bytes + i, len);
            i += len;
        }
    }
    if (!out->len)
        op_buf_puts(out, "\u2205");
}

static void end_marked_line(page *p)
{
    op_buf_puts(&p->out, "\033[K\r\n");
    if (p->marks.len)
        op_buf_add(&p->out, p->marks.data, p->marks.len);
    op_buf_clear(&p->marks);
    new_line(p);
    p->row++;
}

/* A token in its line, and below it its mark: + or -, = where an alternative was taken, ^ the cursor, _ the span. */
static void put_token(page *p, const teach_view *v, int32_t i, float mark, op_buf *text)
{
    const teach_desk *d = v->desk;
    bool here = i == v->cursor, in_span = v->anchor >= 0 && i >= (v->anchor < v->cursor ? v->anchor : v->cursor) && i <= (v->anchor > v->cursor ? v->anchor : v->cursor);
    char below = here ? '^' : in_span ? '_' : mark > 0 ? '+' : mark < 0 ? '-' : teach_desk_alternative(d, i) ? '=' : i < d->trial.n_forced ? '.' : ' ';
    if (i < d->trial.n_response)
        token_text(v->tokenizer, d->trial.response[i], text);
    else
        op_buf_clear(text), op_buf_puts(text, " ");
    style(p, mark > 0 ? "32" : mark < 0 ? "31" : "0");
    if (here || in_span)
        style(p, "7");
    const char *s = text->data, *show;
    size_t n = text->len, len, k;
    int width;
    for (bool first = true; (k = character(s, n, &show, &len, &width)); s += k, n -= k, first = false) {
        if (p->column + width > p->columns)
            end_marked_line(p);
        op_buf_add(&p->out, show, len);
        for (int w = 0; w < width; w++) /* the cursor's own mark stands behind it */
            op_buf_printf(&p->marks, "%c", here && !first && w == width - 1 && n == k ? (mark > 0 ? '+' : mark < 0 ? '-' : '^') : below);
        p->column += width;
    }
    style(p, "0");
    if (i < d->trial.n_response && text->len >= 3 && !memcmp(text->data + text->len - 3, "\u21b5", 3))
        end_marked_line(p);
}

static void put_response(page *p, const teach_view *v, const float *mark, int last)
{
    op_buf text;
    op_buf_init(&text, 1 << 20);
    /* scrolls by whole trials of rows: begins so far back that the cursor is in the upper two thirds */
    int room = (last - p->row) / 2 * p->columns, used = 0;
    int32_t from = v->cursor;
    while (from > 0 && used < room * 2 / 3) {
        token_text(v->tokenizer, v->desk->trial.response[--from], &text);
        used += text.len ? (int)text.len : 1;
        if (strstr(text.data, "\u21b5"))
            used += p->columns;
    }
    if (from)
        op_buf_puts(&p->out, "\u2026"), op_buf_puts(&p->marks, " "), p->column++;
    for (int32_t i = from; i <= v->desk->trial.n_response && p->row + 1 < last; i++)
        put_token(p, v, i, i < v->desk->trial.n_response ? mark[i] : 0, &text);
    end_marked_line(p);
    op_buf_release(&text);
}

static void put_top(page *p, const teach_view *v, int last)
{
    op_buf text, line;
    op_buf_init(&text, 1 << 16);
    op_buf_init(&line, 1 << 16);
    for (int i = 0; i < v->n_top; i++) {
        token_text(v->tokenizer, v->top[i].id, &text);
        op_buf_clear(&line);
        op_buf_printf(&line, "%s%d '%s' %.3f  ", i == 9 && !v->all_ten ? "a " : "", (i + 1) % 10, text.data, exp((double)v->top[i].logprob));
        if (p->column && p->column + (int)line.len > p->columns && p->row < last)
            new_line(p);
        put_text(p, line.data, last);
    }
    op_buf_release(&text);
    op_buf_release(&line);
}

static const char help[] = "left, right, up, down, home, end  move over the tokens\n"
                           "+ - 0      mark good, mark bad, take the mark away; v begins a span that moving extends\n"
                           "1-9        take one of the model's likeliest tokens as right here; a, then 1-9 and 0: all ten\n"
                           "t          type the right continuation from here\n"
                           "r          the model tries again from here (from what was taken or typed here); accepts what was said so far\n"
                           "g b n      the whole response is good (1), bad (-1), so-so (0)\n"
                           "Enter      accept and go on    s skip    u undo    q leave (the draft stays)\n";

static const char *question(const op_trial *t)
{
    for (size_t i = json_array_size(t->messages); i-- > 0;) {
        json_t *m = json_array_get(t->messages, i);
        const char *role = json_string_value(json_object_get(m, "role")), *content = json_string_value(json_object_get(m, "content"));
        if (role && content && !strcmp(role, "user"))
            return content;
    }
    return NULL;
}

static void put_prompt(page *p, const teach_view *v, int last)
{
    const op_trial *t = &v->desk->trial;
    op_buf text;
    op_buf_init(&text, 1 << 24);
    if (!question(t))
        op_tokenizer_decode(v->tokenizer, t->prompt, (size_t)t->n_prompt, OP_DECODE_ALL, &text);
    style(p, "2");
    put_text(p, question(t) ? question(t) : text.data ? text.data : "", last);
    style(p, "0");
    new_line(p);
    op_buf_release(&text);
}

static void put_status(page *p, const teach_view *v)
{
    const op_trial *t = &v->desk->trial;
    const teach_action *reward = teach_desk_reward(v->desk);
    char *tags = json_object_size(t->tags) ? json_dumps(t->tags, JSON_COMPACT) : NULL;
    char line[400];
    snprintf(line, sizeof line, "trial %lld  %ld of %ld%s  token %d of %d%s%s  ", (long long)t->id, v->place, v->of, t->redo_of ? "  (again)" : "", v->cursor,
             t->n_response, reward ? reward->value > 0 ? "  GOOD" : reward->value < 0 ? "  BAD" : "  SO-SO" : "", v->desk->n_actions ? "  (draft)" : "");
    style(p, "1");
    put_text(p, line, p->row);
    style(p, "0");
    put_text(p, tags ? tags : "", p->row);
    free(tags);
    new_line(p);
}

void teach_screen_draw(const teach_view *v)
{
    struct winsize size = {0};
    page p = {.rows = 24, .columns = 80};
    if (!ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) && size.ws_row && size.ws_col) {
        p.rows = size.ws_row;
        p.columns = size.ws_col;
    }
    op_buf_init(&p.out, 1 << 24);
    op_buf_init(&p.marks, 1 << 20);
    float *mark = calloc((size_t)v->desk->trial.n_response + 1, sizeof *mark);
    if (mark)
        teach_desk_marks(v->desk, mark);
    op_buf_puts(&p.out, "\033[?25l\033[H");
    put_status(&p, v);
    if (v->help) {
        put_text(&p, help, p.rows - 2);
        new_line(&p);
    } else {
        put_prompt(&p, v, p.row + (p.rows > 20 ? 4 : 1));
        if (mark)
            put_response(&p, v, mark, p.rows > 12 ? p.rows - 5 : p.rows - 1);
        if (p.rows > 12)
            put_top(&p, v, p.rows - 3);
        new_line(&p);
    }
    if (p.row < p.rows) {
        char line[1200];
        snprintf(line, sizeof line, "%s%s", v->typing ? "> " : v->message, v->typing ? v->typing : "");
        put_text(&p, line, p.row);
    }
    op_buf_puts(&p.out, "\033[K\033[J");
    put(p.out.data ? p.out.data : "", p.out.len);
    free(mark);
    op_buf_release(&p.out);
    op_buf_release(&p.marks);
}
