/* operant/chat.h: chat templates (the subset of Jinja that the supported families use) and chats as token ids. */
#ifndef OPERANT_CHAT_H
#define OPERANT_CHAT_H

#include <stdbool.h>

#include <jansson.h>

#include <operant/buf.h>
#include <operant/status.h>
#include <operant/tokenizer.h>

typedef struct op_template op_template;

/* Parses template source; a construct outside the subset is an error that names it and its line. */
op_status op_template_parse(op_template **out, const char *source, size_t n, op_error *e);
void op_template_free(op_template *t);

/* Renders with the variables of the JSON object `vars` (messages, tools, add_generation_prompt, bos_token, ...).
 * Time-dependent functions (strftime_now) use the variable "date_string" if given, else the system's date. */
op_status op_template_render(const op_template *t, json_t *vars, op_buf *out, op_error *e);

/* A model's chat format: its tokenizer and its parsed template. Borrowed pointers. */
typedef struct op_chat {
    const op_tokenizer *tokenizer;
    const op_template *tmpl;
    const char *date; /* what templates that print a date show; NULL: "26 Jul 2024" (the default of Llama's own), so that the
                         ids of a data set do not depend on the day */
    bool special_in_content; /* default false: see op_chat_encode */
} op_chat;

/* Appends the ids of `messages` (a JSON array of {"role","content",...}) to *out. The text is encoded in pieces cut where an assistant
 * turn's words begin and after the token that ends it, so that training sees exactly the ids that generation starts from:
 * the prompt of a reply is always op_chat_encode(..., messages before it, true). turn[i] for each appended token is the index of the assistant message whose reply (words and
 * end-of-turn token) it belongs to, or -1 for context (header tokens such as "<|im_start|>assistant\n" are context). `turn` is a caller-owned growable array or NULL.
 * Byte offsets in *out refer to the rendered text, which is appended to *text when text is not NULL. `tools` may be NULL.
 * The variables that the template sees are those of transformers, with documents = none. Where a template writes a turn
 * differently once more turns follow (Qwen3 drops thoughts), the reply is found by the header that the generation prompt adds.
 * Special tokens come from the template alone: what a message or a tool says, "<|im_end|>" say, is encoded as the plain text that it
 * is, in training as in talking, so that nobody can end a turn or begin one by writing it. Added tokens that are not special (Qwen3's
 * "<think>") are tokens wherever they stand. With special_in_content the whole rendered text is searched, as transformers does; the
 * ids are the same for messages without such words. What a template makes of a role is the template's.
 * On an error *out, *turns and *text are as they were. */
typedef struct op_turns {
    int32_t *turn;
    size_t n, cap;
} op_turns;
void op_turns_release(op_turns *t);
op_status op_chat_encode(const op_chat *c, json_t *messages, json_t *tools, bool add_generation_prompt, op_tokens *out,
                         op_turns *turns, op_buf *text, op_error *e);

#endif
