/* The world's options, and opening it. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "chamber/parts.h"

const op_option op_chamber_table[] = {OP_CHAMBER_ROWS(op_chamber_options, ), {0}};

const char *op_chamber_rule_name(int rule)
{
    return rule >= 0 && rule < chamber_n_rules ? chamber_rules[rule].name : NULL;
}

const char *op_chamber_rule_help(int rule)
{
    return rule >= 0 && rule < chamber_n_rules ? chamber_rules[rule].help : NULL;
}

int op_chamber_rule_distances(int rule)
{
    return chamber_rules[rule].n_cues;
}

static op_status unknown(const char *key, const char *word, const char *const *names, op_error *e)
{
    const char *near = op_config_nearest(word, names);
    return op_error_set(e, OP_ERR_ARG, "key \"%s\": unknown name \"%s\"%s%s%s", key, word, near ? ", did you mean \"" : "", near ? near : "", near ? "\"?" : "");
}

op_status chamber_read_list(const char *key, const char *list, const char *const *names, double *weights, op_error *e)
{
    while (list && *list) {
        list += strspn(list, ", ");
        size_t n = strcspn(list, ", ");
        char word[64] = "", *end = NULL;
        if (!n)
            break;
        if (n >= sizeof word)
            return op_error_set(e, OP_ERR_ARG, "key \"%s\": \"%.20s...\" is no name", key, list);
        memcpy(word, list, n);
        list += n;
        char *colon = strchr(word, ':');
        if (colon)
            *colon = 0;
        double weight = colon ? strtod(colon + 1, &end) : 1;
        if (colon && (*end || end == colon + 1 || !(weight >= 0) || weight > 1e6))
            return op_error_set(e, OP_ERR_ARG, "key \"%s\": found \"%s\" after \"%s:\", expected a number from 0", key, colon + 1, word);
        int i = 0;
        while (names[i] && strcmp(names[i], word))
            i++;
        if (!names[i])
            return unknown(key, word, names, e);
        weights[i] = weight;
    }
    return OP_OK;
}

static op_status read_rules(op_chamber *c, op_error *e)
{
    const char *names[32] = {0};
    for (int i = 0; i < chamber_n_rules; i++) {
        names[i] = chamber_rules[i].name;
        c->weights[i] = !c->o.rules;
    }
    op_status s = chamber_read_list("rules", c->o.rules, names, c->weights, e);
    double sum = 0;
    for (int i = 0; i < chamber_n_rules; i++)
        sum += c->weights[i];
    if (!s && !(sum > 0))
        s = op_error_set(e, OP_ERR_ARG, "key \"rules\": found none, expected one or more with a weight above 0");
    for (int i = 0; i < chamber_n_rules; i++)
        c->weights[i] /= sum;
    return s;
}

static op_status read_vary(op_chamber *c, op_error *e)
{
    const char *names[FEATURES + 1] = {0}, *list = c->o.vary;
    double chosen[FEATURES] = {0};
    for (int i = 0; i < FEATURES; i++)
        names[i] = chamber_features[i].name;
    char *end;
    long number = list ? strtol(list, &end, 10) : FEATURES;
    op_status s = OP_OK;
    if (!list || !strcmp(list, "all"))
        number = FEATURES;
    else if (!strcmp(list, "none"))
        number = 0;
    else if (*end || end == list) {
        number = 0;
        s = chamber_read_list("vary", list, names, chosen, e);
    } else if (number < 0 || number > FEATURES)
        return op_error_set(e, OP_ERR_ARG, "key \"vary\": found %ld, expected 0..%d", number, FEATURES);
    for (int i = 0; i < FEATURES; i++)
        c->varies[i] = i < number || chosen[i] > 0;
    return s;
}

/* Every option that is not a default as a word "key=value", in one line. */
static op_status write_spec(op_chamber *c, op_error *e)
{
    op_chamber_options plain;
    op_status s = op_config_init(&plain, op_chamber_table, e);
    op_buf spec, one, two;
    op_buf_init(&spec, 1 << 12);
    op_buf_init(&one, 1 << 12);
    op_buf_init(&two, 1 << 12);
    for (const op_option *row = op_chamber_table; !s && row->key; row++) {
        const op_option alone[] = {*row, {0}};
        op_buf_clear(&one);
        op_buf_clear(&two);
        s = op_config_write(&c->o, alone, &one);
        s = s ? s : op_config_write(&plain, alone, &two);
        if (s || !strcmp(one.data, two.data))
            continue;
        s = op_buf_add(&spec, row->key, strcspn(row->key, "|"));
        s = s ? s : op_buf_puts(&spec, "=");
        for (const char *v = strchr(one.data, ':') + 1; !s && *v && *v != '\n'; v++)
            if (*v != ' ' && *v != '"')
                s = op_buf_add(&spec, v, 1);
        s = s ? s : op_buf_puts(&spec, " ");
    }
    c->spec = s ? NULL : spec.data ? op_buf_take(&spec) : op_strdup("");
    op_buf_release(&spec);
    op_buf_release(&one);
    op_buf_release(&two);
    op_config_release(&plain, op_chamber_table);
    return c->spec ? OP_OK : op_error_set(e, OP_ERR_NOMEM, "out of memory for the chamber");
}

op_status op_chamber_open(op_chamber **out, const op_chamber_options *o, op_error *e)
{
    *out = NULL;
    if (o->chain_min > o->chain_max)
        return op_error_set(e, OP_ERR_ARG, "chain_min is %lld, expected at most chain_max, %lld", (long long)o->chain_min, (long long)o->chain_max);
    if (o->nearest > o->farthest)
        return op_error_set(e, OP_ERR_ARG, "nearest is %lld, expected at most farthest, %lld", (long long)o->nearest, (long long)o->farthest);
    op_chamber *c = op_alloc_zero(1, sizeof *c);
    if (c) {
        c->o = *o;
        c->o.rules = o->rules ? op_strdup(o->rules) : NULL;
        c->o.vary = o->vary ? op_strdup(o->vary) : NULL;
        c->weights = op_alloc_zero((size_t)chamber_n_rules, sizeof *c->weights);
    }
    if (!c || !c->weights || !c->o.rules != !o->rules || !c->o.vary != !o->vary) {
        op_chamber_close(c);
        return op_error_set(e, OP_ERR_NOMEM, "out of memory for the chamber");
    }
    op_status s = read_rules(c, e);
    s = s ? s : read_vary(c, e);
    s = s ? s : write_spec(c, e);
    if (s)
        op_chamber_close(c);
    else
        *out = c;
    return s;
}

void op_chamber_close(op_chamber *c)
{
    if (!c)
        return;
    op_free(c->o.rules);
    op_free(c->o.vary);
    op_free(c->weights);
    op_free(c->spec);
    op_free(c);
}
