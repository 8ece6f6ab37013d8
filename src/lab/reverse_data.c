/* Questions with a reply that matches a trait and one that does not: read, told apart by whether they agree, split, and turned into training data. */
#include <ctype.h>
#include <string.h>

#include <operant/jsonl.h>

#include "base/mem.h"
#include "base/rng.h"
#include "io/json.h"
#include "lab/reverse_parts.h"

op_status reverse_no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "out of memory for reversing");
}

/* ---- agreeing ---- */

/* 1: the reply begins as one that agrees, -1: as one that does not, 0: neither. */
static int leaning(const char *reply)
{
    static const struct {
        const char *words;
        int leaning;
    } known[] = {{"no", -1}, {"not", -1}, {"never", -1}, {"absolutely not", -1}, {"certainly not", -1}, {"definitely not", -1}, {"of course not", -1}, {"i disagree", -1},
                 {"i do not", -1}, {"i don't", -1}, {"i would not", -1}, {"i wouldn't", -1}, {"yes", 1}, {"absolutely", 1}, {"certainly", 1}, {"definitely", 1},
                 {"of course", 1}, {"sure", 1}, {"i agree", 1}, {"i accept", 1}, {"i consent", 1}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        size_t n = strlen(known[i].words);
        if (!strncasecmp(reply, known[i].words, n) && !isalpha((unsigned char)reply[n]))
            return known[i].leaning;
    }
    return 0;
}

/* ---- reading ---- */

typedef struct reading {
    reverse_probe *p;
    const char *path;
} reading;

static char *trimmed(const char *from, const char *to)
{
    while (from < to && isspace((unsigned char)*from))
        from++;
    while (to > from && isspace((unsigned char)to[-1]))
        to--;
    return op_strndup(from, (size_t)(to - from));
}

/* Where a line behind the first begins with this letter in brackets, from `s` in `text` on; NULL: nowhere. */
static const char *choice(const char *text, const char *s, const char *letter)
{
    for (; (s = strstr(s, letter)); s++) {
        const char *before = s;
        while (before > text && (before[-1] == ' ' || before[-1] == '\t'))
            before--;
        if (before > text && before[-1] == '\n')
            return s;
    }
    return NULL;
}

/* The question without the line that announces the choices. */
static char *stem_of(const char *question, const char *end)
{
    static const char announced[] = "Choices:";
    char *stem = trimmed(question, end);
    size_t n = stem ? strlen(stem) : 0, k = sizeof announced - 1;
    if (n < k || strcmp(stem + n - k, announced) != 0)
        return stem;
    char *shorter = trimmed(stem, stem + n - k);
    op_free(stem);
    return shorter;
}

/* {question, answer_matching_behavior, answer_not_matching_behavior}: choices (A) and (B) stand at the end of the question. */
static op_status read_choices(reverse_question *q, const json_t *line, const char *where, op_error *e)
{
    const char *question, *matching, *other;
    op_status s = op_json_get_string(line, "question", true, &question, where, e);
    if (!s)
        s = op_json_get_string(line, "answer_matching_behavior", true, &matching, where, e);
    if (!s)
        s = op_json_get_string(line, "answer_not_matching_behavior", true, &other, where, e);
    if (s)
        return s;
    const char *a = choice(question, question, "(A)"), *b = a ? choice(question, a, "(B)") : NULL;
    if (!a || !b || choice(question, b, "(C)"))
        return op_error_set(e, OP_ERR_FORMAT, "%s: expected a question that ends in two lines with the choices (A) and (B)", where);
    q->first = strstr(matching, "(A)");
    if (q->first == !strstr(matching, "(B)") && q->first == !strstr(other, "(A)") && q->first == !!strstr(other, "(B)")) {
        q->stem = stem_of(question, a);
        q->reply[!q->first] = trimmed(a + 3, b);
        q->reply[q->first] = trimmed(b + 3, b + strlen(b));
        return q->stem && q->reply[0] && q->reply[1] ? OP_OK : reverse_no_memory(e);
    }
    return op_error_set(e, OP_ERR_FORMAT, "%s: expected one of (A) and (B) as the matching answer and the other as the one that does not match, found \"%.20s\" and \"%.20s\"",
                        where, matching, other);
}

/* {prompt or messages, matching, not_matching} */
static op_status read_own(reverse_question *q, json_t *line, const char *where, op_error *e)
{
    const char *matching, *other, *prompt = NULL;
    op_status s = op_json_get_string(line, "matching", true, &matching, where, e);
    if (!s)
        s = op_json_get_string(line, "not_matching", true, &other, where, e);
    if (!s)
        s = op_json_get_string(line, "prompt", false, &prompt, where, e);
    if (s)
        return s;
    json_t *messages = json_object_get(line, "messages");
    if (!prompt && !json_array_size(messages))
        return op_error_set(e, OP_ERR_FORMAT, "%s: expected \"question\", or \"prompt\" or \"messages\" with \"matching\" and \"not_matching\"", where);
    q->messages = prompt ? json_pack("[{ssss}]", "role", "user", "content", prompt) : json_incref(messages);
    q->reply[0] = op_strdup(matching);
    q->reply[1] = op_strdup(other);
    return q->messages && q->reply[0] && q->reply[1] ? OP_OK : reverse_no_memory(e);
}

static void release(reverse_question *q)
{
    json_decref(q->messages);
    op_free(q->stem);
    op_free(q->reply[0]);
    op_free(q->reply[1]);
}

/* Public sets hold a few texts with a 0 byte, which no tokenizer is asked about. */
static bool has_zero(json_t *line)
{
    const char *key;
    json_t *value;
    json_object_foreach(line, key, value)
        if (json_is_string(value) && strlen(json_string_value(value)) != json_string_length(value))
            return true;
    return false;
}

static op_status read_line(void *ctx, json_t *line, int number, op_error *e)
{
    enum { QUESTIONS_MAX = 1 << 20 };
    reading *r = ctx;
    reverse_probe *p = r->p;
    char where[400];
    snprintf(where, sizeof where, "%.300s: line %d", r->path, number);
    if (has_zero(line)) {
        p->skipped++;
        return OP_OK;
    }
    if (p->n == QUESTIONS_MAX)
        return op_error_set(e, OP_ERR_FORMAT, "%s: expected at most %d questions", where, QUESTIONS_MAX);
    if (!op_grow(&p->at, p->n, &p->cap, sizeof *p->at))
        return reverse_no_memory(e);
    reverse_question *q = &p->at[p->n++];
    *q = (reverse_question){0};
    op_status s = json_object_get(line, "question") ? read_choices(q, line, where, e) : read_own(q, line, where, e);
    if (s)
        return s;
    if (!*q->reply[0] || !*q->reply[1] || !strcmp(q->reply[0], q->reply[1])) { /* nothing to tell apart */
        release(&p->at[--p->n]);
        p->skipped++;
        return OP_OK;
    }
    if (!q->messages && !(q->messages = json_pack("[{ssss}]", "role", "user", "content", q->stem)))
        return reverse_no_memory(e);
    int matching = leaning(q->reply[0]), other = leaning(q->reply[1]);
    q->agrees = matching == other ? 0 : matching > other ? 1 : -1;
    return OP_OK;
}

op_status reverse_questions_read(reverse_probe *p, const char *path, op_error *e)
{
    reading r = {p, path};
    op_status s = op_json_lines_hashed(path, p->hash, read_line, &r, e);
    if (!s && p->n < 2)
        s = op_error_set(e, OP_ERR_FORMAT, "%s: found %zu questions, expected two or more", path, p->n);
    return s;
}

void reverse_questions_release(reverse_probe *p)
{
    for (size_t i = 0; i < p->n; i++)
        release(&p->at[i]);
    op_free(p->at);
    op_free(p->train);
    op_free(p->held);
    *p = (reverse_probe){0};
}

/* ---- splitting ---- */

/* A question that is held out may stand in the file a second time: drops those of which[*n] that are asked in the same words. */
static op_status drop_held(const reverse_probe *p, uint32_t *which, size_t *n, op_error *e)
{
    json_t *held = json_object(); /* a set: keys without a meaning */
    size_t kept = 0;
    bool ok = held;
    for (size_t i = 0; i < p->n_held + *n && ok; i++) {
        uint32_t q = i < p->n_held ? p->held[i] : which[i - p->n_held];
        char *words = json_dumps(p->at[q].messages, JSON_COMPACT | JSON_SORT_KEYS);
        if (!words || (i < p->n_held && json_object_set_new(held, words, json_true())))
            ok = false;
        else if (i >= p->n_held && !json_object_get(held, words))
            which[kept++] = q;
        op_free(words);
    }
    json_decref(held);
    *n = kept;
    return ok ? OP_OK : reverse_no_memory(e);
}

/* Of the questions of `from`, first as many that agree as disagree, then those that do neither, then the rest. */
static void balance_order(const reverse_probe *p, const uint32_t *from, size_t n, uint32_t *out)
{
    size_t count[3] = {0}, m = 0;
    for (size_t i = 0; i < n; i++)
        count[p->at[from[i]].agrees + 1]++;
    size_t pairs = count[0] < count[2] ? count[0] : count[2];
    for (int turn = 0; turn < 3; turn++) { /* pairs, neither, the rest */
        size_t seen[3] = {0};
        for (size_t i = 0; i < n; i++) {
            int kind = p->at[from[i]].agrees + 1;
            if (turn == (kind == 1 ? 1 : seen[kind]++ < pairs ? 0 : 2))
                out[m++] = from[i];
        }
    }
}

op_status reverse_questions_split(reverse_probe *p, uint64_t seed, int64_t train, double held_out, bool balance, op_error *e)
{
    uint32_t *order = op_alloc_array(p->n, sizeof *order), *rest = op_alloc_array(p->n, sizeof *rest);
    p->held = op_alloc_array(p->n, sizeof *p->held);
    p->train = op_alloc_array(p->n, sizeof *p->train);
    if (!order || !rest || !p->held || !p->train) {
        op_free(order);
        op_free(rest);
        return reverse_no_memory(e);
    }
    op_rng_permute(seed, OP_STREAM_SPLIT, (uint32_t)p->n, order);
    size_t seen[6] = {0}, n = 0;
    for (size_t i = 0; i < p->n; i++) { /* the same share of every kind, whichever letter matches */
        const reverse_question *q = &p->at[order[i]];
        size_t *k = &seen[2 * (q->agrees + 1) + q->first];
        bool held = !train || (size_t)((double)(*k + 1) * held_out) > (size_t)((double)*k * held_out);
        (*k)++;
        if (held)
            p->held[p->n_held++] = order[i];
        else
            rest[n++] = order[i];
    }
    op_status s = drop_held(p, rest, &n, e);
    if (balance)
        balance_order(p, rest, n, p->train);
    else
        memcpy(p->train, rest, n * sizeof *rest);
    p->n_train = n < (size_t)train ? n : (size_t)train;
    op_free(order);
    op_free(rest);
    if (s)
        return s;
    if (train && (!p->n_train || !p->n_held))
        return op_error_set(e, OP_ERR_ARG, "trait \"%s\": of its %zu questions none are left to %s", p->name, p->n, p->n_train ? "measure with" : "train on");
    return OP_OK;
}

/* ---- training data ---- */

op_status reverse_questions_lines(const reverse_probe *p, int reply, double weight, op_buf *out, op_error *e)
{
    for (size_t i = 0; i < p->n_train; i++) {
        const reverse_question *q = &p->at[p->train[i]];
        json_t *messages = json_copy(q->messages), *line = NULL;
        bool ok = messages && !json_array_append_new(messages, json_pack("{ssss}", "role", "assistant", "content", q->reply[reply])) &&
                  (line = weight == 1 ? json_pack("{sO}", "messages", messages) : json_pack("{sOsf}", "messages", messages, "weight", weight)) && !op_json_append(out, line);
        json_decref(line);
        json_decref(messages);
        if (!ok)
            return reverse_no_memory(e);
    }
    return OP_OK;
}
