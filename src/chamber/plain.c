/* Plain tasks, where lost competence shows. */
#include "chamber/parts.h"

/* Sets {name} to words[order[0]], words[order[1]], ... */
static void set_list(draft *d, const char *name, const char *const *words, const int *order, int n)
{
    op_buf b;
    op_buf_init(&b, 1 << 12);
    for (int i = 0; i < n; i++)
        if (op_buf_printf(&b, "%s%s", i ? ", " : "", words[order[i]]))
            draft_no_memory(d);
    if (!d->status)
        draft_set(d, name, b.data);
    op_buf_release(&b);
}

static void swap(int *order, int at)
{
    int x = order[at];
    order[at] = order[at + 1];
    order[at + 1] = x;
}

void copy_prepare(draft *d)
{
    const char *objects[SEEN_MAX + HELD_MAX];
    uint32_t n_objects = (uint32_t)draft_pool(d, F_OBJECT, objects);
    int n = 2 + (int)draft_below(d, SLOT_LENGTH, 3), order[] = {0, 1, 2, 3};
    const char *words[4];
    draft_permute(d, SLOT_LIST, n_objects, d->order);
    for (int i = 0; i < n; i++)
        words[i] = objects[d->order[i]];
    set_list(d, "list", words, order, n);
    swap(order, (int)draft_below(d, SLOT_ERROR, (uint64_t)n - 1));
    set_list(d, "wrong", words, order, n);
}

void sort_prepare(draft *d)
{
    static const char *const words[] = {"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18", "19", "20"};
    int n = 3 + (int)draft_below(d, SLOT_LENGTH, 3), order[5] = {0};
    draft_permute(d, SLOT_LIST, (uint32_t)d->c->o.numbers, d->order);
    for (int i = 0; i < n; i++)
        order[i] = (int)d->order[i];
    set_list(d, "list", words, order, n);
    for (int i = 0; i < n; i++)
        for (int j = n - 2; j >= i; j--)
            if (order[j] > order[j + 1])
                swap(order, j);
    set_list(d, "order", words, order, n);
    draft_set(d, "least", words[order[0]]);
    swap(order, (int)draft_below(d, SLOT_ERROR, (uint64_t)n - 1));
    set_list(d, "wrong", words, order, n);
}

void lookup_prepare(draft *d)
{
    enum { ROWS = 3 };
    const char *objects[SEEN_MAX + HELD_MAX], *names[SEEN_MAX + HELD_MAX];
    uint32_t n_objects = (uint32_t)draft_pool(d, F_OBJECT, objects), n_names = (uint32_t)draft_pool(d, F_NAME, names), who[64];
    draft_permute(d, SLOT_LIST, n_objects, d->order);
    draft_permute(d, SLOT_ITEMS, n_names, who);
    op_buf b;
    op_buf_init(&b, 1 << 12);
    for (int i = 0; i < ROWS; i++)
        if (op_buf_printf(&b, "%s%s has %s.", i ? " " : "", names[who[i]], objects[d->order[i]]))
            draft_no_memory(d);
    if (!d->status)
        draft_set(d, "table", b.data);
    op_buf_release(&b);
    uint64_t asked = draft_below(d, SLOT_A, ROWS), wrong = (asked + 1 + draft_below(d, SLOT_ERROR, ROWS - 1)) % ROWS;
    draft_set(d, "object", objects[d->order[asked]]);
    draft_set(d, "owner", names[who[asked]]);
    draft_set(d, "wrong", names[who[wrong]]);
}

void sum_prepare(draft *d)
{
    uint64_t most = (uint64_t)d->c->o.numbers;
    int64_t a = 1 + (int64_t)draft_below(d, SLOT_A, most), b = 1 + (int64_t)draft_below(d, SLOT_B, most);
    draft_set_int(d, "a", a);
    draft_set_int(d, "b", b);
    draft_set_int(d, "sum", a + b);
    draft_set_int(d, "wrong", a + b + (draft_below(d, SLOT_ERROR, 2) ? 1 : -1));
}
