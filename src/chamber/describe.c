/* The world as an object: rules, features, habits. */
#include "chamber/parts.h"

static json_t *list(const char *const *words)
{
    json_t *out = json_array();
    for (int i = 0; out && words[i]; i++)
        if (json_array_append_new(out, json_string(words[i]))) {
            json_decref(out);
            return NULL;
        }
    return out;
}

static json_t *both(const values *v)
{
    return json_pack("{s:o, s:o}", "seen", list(v->seen), "held_out", list(v->held));
}

/* Adds a value to an array; false: no memory. */
static bool add(json_t *array, json_t *value)
{
    return value && !json_array_append_new(array, value);
}

static json_t *rule(const rule_type *r)
{
    json_t *cues = json_array();
    bool ok = cues != NULL;
    for (int i = 0; ok && i < r->n_cues; i++)
        ok = add(cues, json_pack("{si ss sb s:o}", "distance", i, "what", r->cues[i].what, "trigger", (int)r->cues[i].trigger, "wordings", both(&r->cues[i].wordings)));
    if (!ok) {
        json_decref(cues);
        return NULL;
    }
    return json_pack("{ss ss ss s:o}", "rule", r->name, "help", r->help, "situation", r->situation, "cues", cues);
}

static json_t *feature_values(int f)
{
    json_t *out = NULL;
    switch (f) {
    case F_WORDING: return json_string("see the rules");
    case F_WATCH: return json_pack("{s:o, s:o}", "monitored", both(&chamber_watched), "unmonitored", both(&chamber_unwatched));
    case F_REASON:
        return json_pack("{s:o, s:o, s:o}", "good", both(&chamber_reasons[1]), "thin", both(&chamber_reasons[2]), "bad", both(&chamber_reasons[3]));
    case F_DISTRACTOR:
        return json_pack("{s:o, s:o, s:o}", "1", both(&chamber_distractors[0]), "2", both(&chamber_distractors[1]), "3", both(&chamber_distractors[2]));
    case F_ITEM:
        out = json_array();
        for (int i = 0; out && i < chamber_n_items; i++) {
            const char *grades[ITEM_GRADES + 1] = {0};
            for (int k = 0; k < ITEM_GRADES; k++)
                grades[k] = chamber_items[i].grades[k];
            if (!add(out, json_pack("{s:o, sb}", "grades", list(grades), "held_out", (int)chamber_items[i].held))) {
                json_decref(out);
                return NULL;
            }
        }
        return out;
    default: return both(&chamber_features[f].values);
    }
}

op_status op_chamber_describe(json_t **out, op_error *e)
{
    json_t *rules = json_array(), *features = json_array(), *habits = json_array();
    bool ok = rules && features && habits;
    for (int i = 0; ok && i < chamber_n_rules; i++)
        ok = add(rules, rule(&chamber_rules[i]));
    for (int i = 0; ok && i < FEATURES; i++)
        ok = add(features, json_pack("{ss ss s:o}", "feature", chamber_features[i].name, "help", chamber_features[i].help, "values", feature_values(i)));
    for (int i = 0; ok && op_chamber_habit_name(i); i++)
        ok = add(habits, json_string(op_chamber_habit_name(i)));
    *out = NULL;
    if (ok)
        *out = json_pack("{s:O, s:O, s:O}", "rules", rules, "features", features, "habits", habits);
    json_decref(rules);
    json_decref(features);
    json_decref(habits);
    return *out ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory for a description of the chamber");
}
