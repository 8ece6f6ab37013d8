/* text/jinja_text.h: strings as Python treats them, and the arguments of what templates call. */
#ifndef OP_TEXT_JINJA_TEXT_H
#define OP_TEXT_JINJA_TEXT_H

#include "text/jinja.h"

typedef enum letter_case { CASE_UPPER, CASE_LOWER, CASE_CAPITALIZE, CASE_TITLE, CASE_JINJA_TITLE } letter_case;

bool op_text_is_space(uint32_t c); /* str.isspace */
text op_text_strip(text t, const text *set, bool left, bool right); /* without characters of `set` (NULL: white space) at its ends */
value op_text_value(text t);
value op_text_change_case(jinja *j, text t, letter_case how);
bool op_text_starts_with(text t, text prefix);
bool op_text_ends_with(text t, text suffix);
value op_text_replace(jinja *j, text t, text old, text new, int64_t limit); /* at most `limit` times; negative: all */
value op_text_split(jinja *j, int line, text t, text by, int64_t limit, bool from_right);
value op_text_split_spaces(jinja *j, text t, int64_t limit);
value op_text_split_lines(jinja *j, text t);
size_t op_text_find_last(text t, text what); /* t.n + 1: not there */
size_t op_text_characters(text t);
value op_text_join(jinja *j, int line, const list *items, text by, const value *attribute); /* attribute of each item, or NULL */
int op_text_find_word(text name, const char *const *names); /* -1: none of them, which end with NULL */

/* Argument number i, or the one called `name` (NULL: has none), or NULL. */
const value *op_jinja_argument(const list *args, const dict *kwargs, size_t i, const char *name);
bool op_jinja_flag(const list *args, const dict *kwargs, size_t i, const char *name); /* absent: false */
int64_t op_jinja_integer(const value *v, int64_t fallback);
value op_jinja_missing(jinja *j, int line, const char *what); /* the error */

/* "a.b.0" or an index: what attribute= of map, join, sort, ... means. What is undefined on the way is *fallback, unless NULL. */
value op_jinja_dotted(jinja *j, int line, value v, value path, const value *fallback);
value op_dict_items(jinja *j, const dict *d, bool keys, bool values); /* a list of keys, values or pairs */

#endif
