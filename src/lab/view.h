/* lab/view.h: looking into results.json, for the table and the report. Everything borrowed; absent keys give NULL or NAN. */
#ifndef OP_LAB_VIEW_H
#define OP_LAB_VIEW_H

#include <jansson.h>

#include <operant/assay.h>

/* The value at "a.b.c"; a part of a list of objects is found by its "name". NULL: nothing there, or null. */
const json_t *op_view(const json_t *root, const char *path);
double op_view_number(const json_t *root, const char *path);
const char *op_view_string(const json_t *root, const char *path); /* "" if there is none */

/* The reply to the same prompt before, or NULL. */
const json_t *op_view_before(const op_assay_results *r, const json_t *reply);
/* Is the verdict of a reply (of `results`) the one that its class calls for? */
bool op_view_correct(const json_t *results, const json_t *reply);
/* The surest reply of a class (NULL: any) that is right (and does not repeat itself) or wrong; NULL if there is none. `changed`: only one whose verdict was another before. */
const json_t *op_view_surest(const op_assay_results *r, const char *class, bool correct, bool changed);

#endif
