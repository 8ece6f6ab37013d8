#include <string.h>

#include "io/tensors.h"

op_status op_index_init(op_index *x, size_t most)
{
    *x = (op_index){.room = 2};
    if (most >= UINT32_MAX)
        return OP_ERR_NOMEM;
    while (x->room < 2 * most)
        x->room *= 2;
    x->names = op_alloc_zero(x->room, sizeof *x->names);
    x->places = op_alloc_array(x->room, sizeof *x->places);
    if (x->names && x->places)
        return OP_OK;
    op_index_release(x);
    return OP_ERR_NOMEM;
}

/* The slot of a name, or the free slot where it would go. FNV-1a, linear probing. */
static size_t slot_of(const op_index *x, const char *name)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (const char *p = name; *p; p++)
        h = (h ^ (unsigned char)*p) * 0x100000001b3u;
    size_t i = (h ^ h >> 32) & (x->room - 1);
    while (x->names[i] && strcmp(x->names[i], name))
        i = (i + 1) & (x->room - 1);
    return i;
}

bool op_index_add(op_index *x, const char *name, uint32_t place)
{
    size_t i = slot_of(x, name);
    if (x->names[i])
        return false;
    x->names[i] = name;
    x->places[i] = place;
    x->n++;
    return true;
}

int64_t op_index_find(const op_index *x, const char *name)
{
    if (!x->n)
        return -1;
    size_t i = slot_of(x, name);
    return x->names[i] ? (int64_t)x->places[i] : -1;
}

void op_index_release(op_index *x)
{
    op_free(x->names);
    op_free(x->places);
    *x = (op_index){0};
}
