#include <operant/chat.h>

#include <string.h>

#include "base/mem.h"
#include "text/tokenizer_impl.h"

#define DATE "26 Jul 2024"
#define TEXT_MAX ((size_t)1 << 28)

void op_turns_release(op_turns *t)
{
    op_free(t->turn);
    *t = (op_turns){0};
}

/* The words of one assistant turn and the token that ends it: bytes begin..end-1 of the rendered text. */
typedef struct reply {
    size_t begin, end;
    int32_t turn;
} reply;

/* What a template wrote, and where in it stand characters of a message that begin what looks like a special token. */
typedef struct rendered {
    char *data;
    size_t len;
    op_buf buf;
    uint32_t *plain;
    size_t n_plain, cap;
} rendered;

typedef struct chat_job {
    const op_chat *c;
    json_t *messages, *tools; /* owned: with a mark before each such character */
    char mark[5];             /* a private-use character that occurs in no message; empty: nothing is marked */
    bool generation_prompt;
    op_error *e;
    rendered whole, prompt, partial;
    op_tokens tokens; /* working memory */
    reply *replies;
    size_t n_replies;
} chat_job;

static op_status put_token(json_t *vars, const char *name, const op_tokenizer *t, int32_t id)
{
    size_t n;
    const char *bytes = op_tokenizer_bytes(t, id, &n);
    return id < 0 || json_object_set_new(vars, name, json_stringn(bytes, n)) == 0 ? OP_OK : OP_ERR_NOMEM;
}

static bool has_role(const json_t *message, const char *role)
{
    const char *its = json_string_value(json_object_get(message, "role"));
    return its && strcmp(its, role) == 0;
}

/* ---- words that look like special tokens ---- */

/* A template joins its own special tokens with the messages' words, and afterwards nobody can tell them apart. So every character of
 * a message that begins a special token's text (or, at the end of a string, a part of one) is marked before the template runs; the
 * marks are taken out of what it wrote, and their places given to the tokenizer. */

#define MARK_FIRST 0xf0000u

static bool contains(const json_t *v, const char *part)
{
    const char *key;
    json_t *item;
    size_t i;
    if (json_is_string(v))
        return strstr(json_string_value(v), part) != NULL;
    json_array_foreach(v, i, item)
        if (contains(item, part))
            return true;
    json_object_foreach((json_t *)v, key, item)
        if (strstr(key, part) || contains(item, part))
            return true;
    return false;
}

static size_t count_specials(const op_tokenizer *t, const char *s, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += op_tokenizer_begins_special(t, s + i, n - i);
    return count;
}

static bool has_specials(const op_tokenizer *t, const json_t *v)
{
    const char *key;
    json_t *item;
    size_t i;
    if (json_is_string(v))
        return count_specials(t, json_string_value(v), json_string_length(v)) > 0;
    json_array_foreach(v, i, item)
        if (has_specials(t, item))
            return true;
    json_object_foreach((json_t *)v, key, item)
        if (count_specials(t, key, strlen(key)) || has_specials(t, item))
            return true;
    return false;
}

/* s[n] with its marks, as a new string (op_free); NULL when memory is out. */
static char *marked(const chat_job *x, const char *s, size_t n, size_t *length)
{
    size_t m = strlen(x->mark), at = 0;
    char *out = op_alloc(n + m * count_specials(x->c->tokenizer, s, n) + 1);
    for (size_t i = 0; out && i < n; i++) {
        if (op_tokenizer_begins_special(x->c->tokenizer, s + i, n - i)) {
            memcpy(out + at, x->mark, m);
            at += m;
        }
        out[at++] = s[i];
    }
    if (out)
        out[at] = 0;
    *length = at;
    return out;
}

/* A copy with marks; NULL when memory is out. */
static json_t *mark_value(const chat_job *x, json_t *v)
{
    const char *key;
    json_t *item, *out;
    size_t i, n;
    if (json_is_string(v)) {
        char *text = marked(x, json_string_value(v), json_string_length(v), &n);
        out = text ? json_stringn(text, n) : NULL;
        op_free(text);
        return out;
    }
    if (json_is_array(v)) {
        out = json_array();
        json_array_foreach(v, i, item)
            if (out && json_array_append_new(out, mark_value(x, item)))
                json_decref(out), out = NULL;
        return out;
    }
    if (!json_is_object(v))
        return json_incref(v);
    out = json_object();
    json_object_foreach(v, key, item) {
        char *name = out ? marked(x, key, strlen(key), &n) : NULL;
        if (out && (!name || json_object_set_new(out, name, mark_value(x, item))))
            json_decref(out), out = NULL;
        op_free(name);
    }
    return out;
}

static op_status mark_specials(chat_job *x)
{
    const op_tokenizer *t = x->c->tokenizer;
    if (x->c->special_in_content || !(has_specials(t, x->messages) || has_specials(t, x->tools))) {
        json_incref(x->messages);
        json_incref(x->tools);
        return OP_OK;
    }
    uint32_t c = MARK_FIRST;
    do {
        memcpy(x->mark, (char[]){(char)(0xf0 | c >> 18), (char)(0x80 | (c >> 12 & 63)), (char)(0x80 | (c >> 6 & 63)), (char)(0x80 | (c & 63)), 0}, 5);
        c++;
    } while (contains(x->messages, x->mark) || contains(x->tools, x->mark));
    bool tools = x->tools != NULL;
    x->messages = mark_value(x, x->messages);
    x->tools = tools ? mark_value(x, x->tools) : NULL;
    return x->messages && (x->tools || !tools) ? OP_OK : op_error_set(x->e, OP_ERR_NOMEM, "out of memory while rendering a chat");
}

/* Takes the marks out of what was rendered and notes where they stood. */
static op_status unmark(const chat_job *x, rendered *r)
{
    r->data = r->buf.data;
    r->len = r->buf.len;
    r->n_plain = 0;
    if (!*x->mark || !r->len)
        return OP_OK;
    size_t m = strlen(x->mark), to = 0;
    for (size_t from = 0; from < r->buf.len; from++) {
        if (r->buf.len - from < m || memcmp(r->data + from, x->mark, m) != 0) {
            r->data[to++] = r->data[from];
            continue;
        }
        if (r->n_plain == r->cap) {
            size_t cap = r->cap ? 2 * r->cap : 64;
            uint32_t *plain = op_realloc(r->plain, cap * sizeof *plain);
            if (!plain)
                return op_error_set(x->e, OP_ERR_NOMEM, "out of memory while rendering a chat");
            r->plain = plain;
            r->cap = cap;
        }
        r->plain[r->n_plain++] = (uint32_t)to;
        from += m - 1;
    }
    r->data[to] = 0;
    r->len = to;
    return OP_OK;
}

/* Are these n bytes the words of a message that look like the template's? */
static bool is_said(const rendered *r, size_t at, size_t n)
{
    for (size_t i = 0; i < r->n_plain; i++)
        if (r->plain[i] >= at && r->plain[i] < at + n)
            return true;
    return false;
}

static op_status encode(const chat_job *x, const rendered *r, size_t begin, size_t end, unsigned place, op_tokens *out)
{
    op_plain plain = {r->plain, r->n_plain, (uint32_t)begin};
    return op_tokenizer_encode_plain(x->c->tokenizer, r->data + begin, end - begin, OP_ENCODE_SPECIAL | place, plain, out, x->e);
}

/* ---- rendering ---- */

/* Renders the first n messages. If `other` is not NULL: all of them, with `other` in place of message n, and if `alone` without
 * what follows it up to the next user's. */
static op_status render(const chat_job *x, size_t n, json_t *other, bool alone, bool generation_prompt, rendered *out)
{
    const op_tokenizer *t = x->c->tokenizer;
    json_t *vars = json_object(), *some = json_array();
    op_status s = vars && some ? OP_OK : OP_ERR_NOMEM;
    for (size_t i = 0; !s && i < (other ? json_array_size(x->messages) : n); i++) {
        json_t *message = other && i == n ? other : json_array_get(x->messages, i);
        alone = alone && !(i > n && has_role(message, "user"));
        if (!alone || i <= n)
            s = json_array_append(some, message) ? OP_ERR_NOMEM : OP_OK;
    }
    if (!s && (json_object_set(vars, "messages", some) || json_object_set(vars, "tools", x->tools ? x->tools : json_null()) ||
               json_object_set(vars, "documents", json_null()) ||
               json_object_set_new(vars, "add_generation_prompt", json_boolean(generation_prompt)) ||
               json_object_set_new(vars, "date_string", json_string(x->c->date ? x->c->date : DATE)) ||
               put_token(vars, "bos_token", t, t->bos) || put_token(vars, "eos_token", t, t->eos) ||
               put_token(vars, "pad_token", t, t->pad) || put_token(vars, "unk_token", t, t->unk)))
        s = OP_ERR_NOMEM;
    op_buf_clear(&out->buf);
    if (s)
        op_error_set(x->e, s, "out of memory while rendering a chat");
    else
        s = op_template_render(x->c->tmpl, vars, &out->buf, x->e);
    s = s ? s : unmark(x, out);
    json_decref(some);
    json_decref(vars);
    return s;
}

static bool starts_with(const rendered *a, const rendered *b)
{
    return a->len >= b->len && (b->len == 0 || memcmp(a->data, b->data, b->len) == 0);
}

/* A private-use character that no template writes. */
#define MARKER "\xee\x80\x80"

/* Where the whole text parts from one in which message i says something else. */
static op_status find_by_change(chat_job *x, size_t i, size_t *begin)
{
    json_t *other = json_pack("{s:s,s:s}", "role", "assistant", "content", MARKER);
    op_status s = other ? render(x, i, other, false, x->generation_prompt, &x->partial)
                        : op_error_set(x->e, OP_ERR_NOMEM, "out of memory while rendering a chat");
    if (s && s != OP_ERR_NOMEM) /* tool results must follow a call, say: without them */
        s = render(x, i, other, true, x->generation_prompt, &x->partial);
    json_decref(other);
    if (s)
        return s;
    size_t at = 0;
    while (at < x->whole.len && at < x->partial.len && x->whole.data[at] == x->partial.data[at])
        at++;
    while (at && ((unsigned char)x->whole.data[at] & 0xc0) == 0x80)
        at--;
    *begin = at;
    if (!x->partial.len || !memmem(x->partial.data, x->partial.len, MARKER, 3))
        return op_error_set(x->e, OP_ERR_UNSUPPORTED, "chat template: it does not show the reply in message %zu", i);
    return OP_OK;
}

/* Where the words of reply i begin in the whole text, found at or after `from`. */
static op_status find_begin(chat_job *x, size_t i, size_t from, size_t *begin)
{
    op_status s = render(x, i, NULL, false, true, &x->prompt);
    if (s == OP_ERR_NOMEM)
        return s;
    if (s) { /* a template may refuse a dialogue that begins with a reply */
        op_buf_clear(&x->prompt.buf);
        x->prompt.len = 0;
        return find_by_change(x, i, begin);
    }
    if (starts_with(&x->whole, &x->prompt) && x->prompt.len >= from) {
        *begin = x->prompt.len;
        return OP_OK;
    }
    s = render(x, i, NULL, false, false, &x->partial);
    if (s)
        return s;
    if (x->prompt.len > x->partial.len && starts_with(&x->prompt, &x->partial)) {
        size_t n = x->prompt.len - x->partial.len; /* the header */
        const char *header = x->prompt.data + x->partial.len, *hit = x->whole.data + from, *end = x->whole.data + x->whole.len;
        for (; (hit = memmem(hit, (size_t)(end - hit), header, n)); hit++)
            if (!is_said(&x->whole, (size_t)(hit - x->whole.data), n)) {
                *begin = (size_t)(hit - x->whole.data) + n;
                return OP_OK;
            }
    }
    return find_by_change(x, i, begin);
}

/* The last special token from byte `begin` to the end, and where it ends after `begin`; -1 if there is none. */
static op_status last_special(chat_job *x, const rendered *r, size_t begin, int32_t *id, size_t *end)
{
    *id = -1;
    op_tokens_clear(&x->tokens);
    op_status s = encode(x, r, begin, r->len, OP_ENCODE_CONTINUE, &x->tokens);
    for (size_t k = x->tokens.n; !s && *id < 0 && k-- > 0;)
        if (op_tokenizer_is_special(x->c->tokenizer, x->tokens.ids[k])) {
            *id = x->tokens.ids[k];
            *end = x->tokens.end[k];
        }
    return s;
}

/* Where the reply that begins at `begin` ends: after the token that closes it. */
static op_status find_end(chat_job *x, size_t i, size_t begin, size_t *end)
{
    int32_t id;
    size_t at = 0;
    op_status s = render(x, i + 1, NULL, false, false, &x->partial);
    if (s)
        return s;
    if (starts_with(&x->whole, &x->partial) && x->partial.len >= begin) {
        s = last_special(x, &x->partial, begin, &id, &at);
        *end = id < 0 ? x->partial.len : begin + at;
        return s;
    }
    /* The template writes this turn otherwise than at the end of a dialogue: the first token of that kind ends it. */
    size_t skip = starts_with(&x->partial, &x->prompt) ? x->prompt.len : 0;
    s = last_special(x, &x->partial, skip, &id, &at);
    *end = x->whole.len;
    if (s || id < 0)
        return s;
    op_tokens_clear(&x->tokens);
    s = encode(x, &x->whole, begin, x->whole.len, OP_ENCODE_CONTINUE, &x->tokens);
    for (size_t k = 0; !s && k < x->tokens.n; k++)
        if (x->tokens.ids[k] == id) {
            *end = begin + x->tokens.end[k];
            break;
        }
    return s;
}

static op_status find_replies(chat_job *x)
{
    size_t n = json_array_size(x->messages), from = 0;
    op_status s = OP_OK;
    x->replies = op_alloc_array(n + 1, sizeof *x->replies);
    if (!x->replies)
        return op_error_set(x->e, OP_ERR_NOMEM, "out of memory while rendering a chat");
    for (size_t i = 0; !s && i < n; i++) {
        if (!has_role(json_array_get(x->messages, i), "assistant"))
            continue;
        reply r = {.turn = (int32_t)i};
        s = find_begin(x, i, from, &r.begin);
        s = s ? s : find_end(x, i, r.begin, &r.end);
        if (!s)
            x->replies[x->n_replies++] = r;
        from = r.end;
    }
    return s;
}

static op_status turns_reserve(op_turns *t, size_t n)
{
    if (n <= t->cap)
        return OP_OK;
    size_t cap = t->cap ? t->cap : 256;
    while (cap < n)
        cap *= 2;
    int32_t *turn = op_realloc(t->turn, cap * sizeof *turn);
    if (!turn)
        return OP_ERR_NOMEM;
    t->turn = turn;
    t->cap = cap;
    return OP_OK;
}

/* Encodes bytes begin..end-1 of the whole text and says whose they are. */
static op_status encode_piece(chat_job *x, size_t begin, size_t end, int32_t turn, op_tokens *out, op_turns *turns)
{
    const op_tokenizer *t = x->c->tokenizer;
    size_t first = out->n;
    if (begin >= end)
        return OP_OK;
    bool after_token = first && begin && t->special[out->ids[first - 1]];
    unsigned place = !begin ? 0 : after_token ? OP_ENCODE_AFTER_TOKEN : OP_ENCODE_CONTINUE;
    op_status s = encode(x, &x->whole, begin, end, place, out);
    if (!s && turns && turns_reserve(turns, out->n))
        s = op_error_set(x->e, OP_ERR_NOMEM, "out of memory while encoding a chat");
    for (size_t i = first; !s && i < out->n; i++) {
        out->begin[i] += (uint32_t)begin;
        out->end[i] += (uint32_t)begin;
        if (turns)
            turns->turn[turns->n++] = turn;
    }
    return s;
}

op_status op_chat_encode(const op_chat *c, json_t *messages, json_t *tools, bool add_generation_prompt, op_tokens *out,
                         op_turns *turns, op_buf *text, op_error *e)
{
    chat_job x = {.c = c, .messages = messages, .tools = tools, .generation_prompt = add_generation_prompt, .e = e};
    size_t first = out->n, first_turn = turns ? turns->n : 0, at = 0;
    if (!c->tmpl)
        return op_error_set(e, OP_ERR_ARG, "the model has no chat template");
    if (!json_is_array(messages))
        return op_error_set(e, OP_ERR_ARG, "messages are not a list");
    rendered *const all[] = {&x.whole, &x.prompt, &x.partial};
    for (int i = 0; i < 3; i++)
        op_buf_init(&all[i]->buf, TEXT_MAX);
    op_status s = mark_specials(&x);
    s = s ? s : render(&x, json_array_size(messages), NULL, false, add_generation_prompt, &x.whole);
    s = s ? s : find_replies(&x);
    for (size_t i = 0; !s && i < x.n_replies; i++) {
        s = encode_piece(&x, at, x.replies[i].begin, -1, out, turns);
        s = s ? s : encode_piece(&x, x.replies[i].begin, x.replies[i].end, x.replies[i].turn, out, turns);
        at = x.replies[i].end;
    }
    s = s ? s : encode_piece(&x, at, x.whole.len, -1, out, turns);
    if (!s && text && op_buf_add(text, x.whole.data, x.whole.len))
        s = op_error_set(e, OP_ERR_NOMEM, "out of memory while encoding a chat");
    if (s) {
        out->n = first;
        if (turns)
            turns->n = first_turn;
    }
    for (int i = 0; i < 3; i++) {
        op_buf_release(&all[i]->buf);
        op_free(all[i]->plain);
    }
    json_decref(x.messages);
    json_decref(x.tools);
    op_tokens_release(&x.tokens);
    op_free(x.replies);
    return s;
}
