/* The right answer is known: a tag of the trial holds it. A trial without the tag is left alone.
 *
 * Settings: {"type": "reference", ...}
 *     tag          the tag with the right answer, a text or a whole number; default "reference"
 *     match        exact (default): the response is the answer; prefix: it begins with it; first_line: its first line is it; contains: it has it somewhere
 *     ignore_case  of the letters a to z; default false
 *     right, wrong rewards; default 1 and 0
 *     mark_wrong   mark of the first token that differs, -1 .. 1; default -1; 0: none
 *     mark_right   mark of the tokens before it, of all of a right response; default 0
 *     alternative  propose the right continuation at the first token that differs; default true
 * Blanks around response and answer do not count. With contains there is no first token that differs, so neither mark nor alternative. */
#include "trial/teachers.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "io/json.h"
#include "trial/settings.h"
#include "trial/trial_parts.h"

static const char name[] = "reference";

enum { EXACT, PREFIX, FIRST_LINE, CONTAINS };
#define MATCHES "exact|prefix|first_line|contains"

typedef struct reference {
    char *tag;
    const op_tokenizer *tokenizer;
    int match;
    bool ignore_case, alternative;
    double right, wrong, mark_right, mark_wrong;
} reference;

static op_status no_memory(op_error *e)
{
    return op_error_set(e, OP_ERR_NOMEM, "%s: out of memory", name);
}

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static size_t leading_blanks(const char *text, size_t n)
{
    size_t i = 0;
    while (i < n && is_blank(text[i]))
        i++;
    return i;
}

static size_t without_trailing_blanks(const char *text, size_t n)
{
    while (n && is_blank(text[n - 1]))
        n--;
    return n;
}

static bool same(const reference *r, char a, char b)
{
    return a == b || (r->ignore_case && isascii(a) && isascii(b) && tolower((unsigned char)a) == tolower((unsigned char)b));
}

/* Bytes that a and b have in common at the beginning, whole characters only. */
static size_t common(const reference *r, const char *a, size_t n, const char *b, size_t m)
{
    size_t i = 0;
    while (i < n && i < m && same(r, a[i], b[i]))
        i++;
    while (i && i < n && ((unsigned char)a[i] & 0xc0) == 0x80)
        i--;
    return i;
}

/* Does text[n] count as target[m]? *differs is where it parts from it. */
static bool is_right(const reference *r, const char *text, size_t n, const char *target, size_t m, size_t *differs)
{
    *differs = common(r, text, n, target, m);
    if (r->match == PREFIX)
        return *differs == m;
    if (r->match == CONTAINS) {
        size_t lead = leading_blanks(target, m);
        for (size_t i = 0; i + (m - lead) <= n; i++)
            if (common(r, text + i, n - i, target + lead, m - lead) == m - lead)
                return true;
        return false;
    }
    const char *line_end = r->match == FIRST_LINE && n > *differs ? memchr(text + *differs, '\n', n - *differs) : NULL;
    return *differs == m && without_trailing_blanks(text, line_end ? (size_t)(line_end - text) : n) <= m;
}

/* The token to put right when the words part at byte `differs`, and how many of the words' bytes come before it. */
static op_status find_token(const reference *r, const op_trial *t, const op_buf *words, size_t differs, int32_t *at, size_t *kept, op_error *e)
{
    int32_t n = t->n_response, place = op_code_points(words->data, differs);
    int32_t *begin = op_alloc_array((size_t)n + 1, 2 * sizeof *begin);
    if (!begin)
        return no_memory(e);
    int32_t *end = begin + n + 1;
    op_status s = op_trial_offsets(t, r->tokenizer, begin, end, e);
    int32_t i = 0;
    while (!s && i < n && end[i] <= place && !(differs == words->len && begin[i] == end[i] && begin[i] == place))
        i++;
    while (!s && i > 0 && i < n && end[i - 1] > begin[i]) /* the tokens before it begin the same character */
        i--;
    *at = i;
    int32_t first = i < n ? begin[i] : place;
    *kept = 0;
    for (int32_t left = first; *kept < words->len && (left > 0 || ((unsigned char)words->data[*kept] & 0xc0) == 0x80); (*kept)++)
        left -= ((unsigned char)words->data[*kept] & 0xc0) != 0x80;
    op_free(begin);
    return s;
}

static op_status propose(const reference *r, op_trial *t, int32_t at, const char *rest, size_t n, op_error *e)
{
    op_tokens ids;
    op_tokens_init(&ids);
    op_status s = op_tokenizer_encode(r->tokenizer, rest, n, OP_ENCODE_CONTINUE, &ids, e);
    int32_t last = t->n_response ? t->response[t->n_response - 1] : -1;
    int32_t stop = last >= 0 && op_tokenizer_is_special(r->tokenizer, last) ? last : op_tokenizer_eos(r->tokenizer);
    int32_t count = (int32_t)ids.n, *all = s ? NULL : op_alloc_array(ids.n + 1, sizeof *all);
    if (!s && !all)
        s = no_memory(e);
    if (all && count)
        memcpy(all, ids.ids, ids.n * sizeof *all);
    if (all && r->match != PREFIX && stop >= 0)
        all[count++] = stop;
    if (!s && count)
        s = op_trial_add_alternative(t, at, all, count, NAN, true, name, e);
    op_free(all);
    op_tokens_release(&ids);
    return s;
}

static op_status correct(const reference *r, op_trial *t, const op_buf *words, size_t differs, const char *target, size_t m, op_error *e)
{
    int32_t at = 0;
    size_t kept = 0;
    op_status s = find_token(r, t, words, differs, &at, &kept, e);
    if (!s && at < t->n_response && r->mark_wrong != 0)
        s = op_trial_add_mark(t, at, at + 1, r->mark_wrong, name, NULL, e);
    if (!s && at > 0 && r->mark_right != 0)
        s = op_trial_add_mark(t, 0, at, r->mark_right, name, NULL, e);
    if (!s && r->alternative)
        s = propose(r, t, at, target + (kept < m ? kept : m), kept < m ? m - kept : 0, e);
    return s;
}

static op_status compare(const reference *r, op_trial *t, const op_buf *words, const char *target, size_t m, op_error *e)
{
    size_t differs;
    const char *text = words->data ? words->data : "";
    bool right = is_right(r, text, words->len, target, m, &differs);
    op_status s = OP_OK;
    if (!right && r->match != CONTAINS)
        s = correct(r, t, words, differs, target, m, e);
    else if (right && r->mark_right != 0 && t->n_response)
        s = op_trial_add_mark(t, 0, t->n_response, r->mark_right, name, NULL, e);
    return s ? s : op_teacher_reward(t, right ? r->right : r->wrong, name, e);
}

static op_status teach_one(const reference *r, op_trial *t, const char *answer, op_error *e)
{
    op_buf words, target;
    op_buf_init(&words, OP_TRIAL_TEXT_MAX);
    op_buf_init(&target, OP_TRIAL_TEXT_MAX);
    size_t n = strlen(answer), lead = leading_blanks(answer, n);
    n = without_trailing_blanks(answer, n);
    op_status s = OP_OK;
    if (n <= lead)
        s = op_error_set(e, OP_ERR_FORMAT, "tag \"%s\" is empty", r->tag);
    /* the answer takes over the blanks that the response begins with */
    else if (op_trial_view(t, r->tokenizer, 0, t->n_response, &words) ||
             op_buf_add(&target, words.data, leading_blanks(words.data, words.len)) || op_buf_add(&target, answer + lead, n - lead))
        s = no_memory(e);
    else
        s = compare(r, t, &words, target.data, target.len, e);
    op_buf_release(&words);
    op_buf_release(&target);
    return s;
}

static op_status teach(op_teacher *teacher, op_trial *const *trials, size_t n, op_error *e)
{
    const reference *r = teacher->ctx;
    for (size_t i = 0; i < n; i++) {
        json_t *tag = json_object_get(trials[i]->tags, r->tag);
        char digits[32];
        snprintf(digits, sizeof digits, "%lld", (long long)json_integer_value(tag));
        const char *answer = json_is_integer(tag) ? digits : json_string_value(tag);
        op_status s = OP_OK;
        if (answer)
            s = teach_one(r, trials[i], answer, e);
        else if (tag)
            s = op_error_set(e, OP_ERR_FORMAT, "tag \"%s\": found %s, expected a string or a whole number", r->tag, op_json_kind(tag));
        if (s) {
            op_error_prefix(e, "%s: trial %lld", name, (long long)trials[i]->id);
            return s;
        }
    }
    return OP_OK;
}

static void free_reference(op_teacher *t)
{
    op_free(((reference *)t->ctx)->tag);
}

op_status op_teacher_reference_open(op_teacher **out, const json_t *settings, const op_classroom *room, op_error *e)
{
    static const char *const keys[] = {"type", "tag", "match", "ignore_case", "right", "wrong", "mark_right", "mark_wrong", "alternative", NULL};
    const char *tag = "reference";
    op_teacher *t;
    op_status s = op_teacher_new(&t, name, sizeof(reference), e);
    if (s)
        return s;
    reference *r = t->ctx;
    *r = (reference){.tokenizer = room->chat->tokenizer, .right = 1, .mark_wrong = -1, .alternative = true};
    t->teach = teach;
    t->free = free_reference;
    s = op_settings_check(settings, keys, name, e);
    s = s ? s : op_json_get_string(settings, "tag", false, &tag, name, e);
    s = s ? s : op_settings_choice(settings, "match", MATCHES, &r->match, name, e);
    s = s ? s : op_json_get_bool(settings, "ignore_case", false, &r->ignore_case, name, e);
    s = s ? s : op_json_get_bool(settings, "alternative", false, &r->alternative, name, e);
    s = s ? s : op_settings_number(settings, "right", -1e6, 1e6, &r->right, name, e);
    s = s ? s : op_settings_number(settings, "wrong", -1e6, 1e6, &r->wrong, name, e);
    s = s ? s : op_settings_number(settings, "mark_right", -1, 1, &r->mark_right, name, e);
    s = s ? s : op_settings_number(settings, "mark_wrong", -1, 1, &r->mark_wrong, name, e);
    if (!s && !(r->tag = op_strdup(tag)))
        s = no_memory(e);
    if (s) {
        op_teacher_close(t);
        return s;
    }
    *out = t;
    return OP_OK;
}
