/* trial/import_parts.h: what the forms of operant/import.h share. */
#ifndef OP_TRIAL_IMPORT_PARTS_H
#define OP_TRIAL_IMPORT_PARTS_H

#include <operant/import.h>

/* One line on its way to trials. */
typedef struct op_importer {
    json_t *line;
    const op_chat *chat;
    const op_import_options *o;
    const char *name, *group;
    op_error *e;
    op_trial *trials; /* [n] */
    size_t n, cap;
} op_importer;

typedef op_status (*op_import_form)(op_importer *m);

op_status op_import_preference(op_importer *m);
op_status op_import_unpaired(op_importer *m);
op_status op_import_stepwise(op_importer *m);
op_status op_import_evals(op_importer *m);
op_status op_import_fine_grained(op_importer *m);
op_status op_import_prm800k(op_importer *m);
op_status op_import_label_studio(op_importer *m);

op_status op_import_fail(const op_importer *m, op_status s, const char *what);
/* A new trial, the last one of m->trials, from messages or a plain prompt (the other NULL). `answer` NULL: it has no others beside it, and no such tags. */
op_status op_import_add(op_importer *m, json_t *messages, const json_t *prompt, const json_t *response, const char *answer);
op_status op_import_tag(const op_importer *m, op_trial *t, const char *key, json_t *value); /* value is taken */
op_status op_import_by(const op_importer *m, op_trial *t, const char *by);
/* People held trial a of this line better than trial b. */
op_status op_import_prefer(const op_importer *m, size_t a, size_t b);
/* A mark on code points of `text`, the response as given. */
op_status op_import_mark(const op_importer *m, op_trial *t, const json_t *text, int64_t from, int64_t to, double value, const char *by, const char *note);
/* Trial `later` of this line redoes trial `first` from the first token that differs. */
void op_import_redo(op_importer *m, size_t later, size_t first);

/* "user" says `text`, a string: a new list of one message. */
op_status op_import_question(const op_importer *m, json_t *text, json_t **out);

#endif
