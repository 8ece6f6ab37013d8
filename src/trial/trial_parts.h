/* trial/trial_parts.h: what the files about trials share. */
#ifndef OP_TRIAL_TRIAL_PARTS_H
#define OP_TRIAL_TRIAL_PARTS_H

#include <operant/trial.h>

#define OP_TRIAL_TEXT_MAX ((size_t)1 << 28)

/* Appends the text of response tokens from .. to-1, as op_trial_text gives it; it may hold 0 bytes. */
op_status op_trial_view(const op_trial *t, const op_tokenizer *k, int32_t from, int32_t to, op_buf *out);
int32_t op_code_points(const char *s, size_t n);

/* Prompt and response from words: `messages` through the chat template, or `prompt` as it is (special tokens written in it count); exactly one of them
 * is given. The response ends with the token that ends a turn (after a plain prompt: with the end token) if `ended`. */
op_status op_trial_encode(op_trial *t, json_t *messages, const json_t *prompt, const json_t *response, bool ended, const op_chat *chat, op_error *e);
/* Only the prompt. */
op_status op_trial_encode_prompt(op_trial *t, json_t *messages, const json_t *prompt, const op_chat *chat, op_error *e);
/* Marks code points from .. to-1 of `text`, of which the response's own text may be a part (a template may trim). */
op_status op_trial_mark_text(op_trial *t, const op_tokenizer *k, const json_t *text, int64_t from, int64_t to, double value, const char *by, const char *note,
                             op_error *e);

#endif
