#include "base/mem.h"
#include "ops/cpu/cpu.h"

static struct {
    void *p;
    size_t bytes;
} slots[OP_SCRATCH_COUNT];

void *op_cpu_scratch(op_scratch_slot slot, size_t bytes)
{
    if (slots[slot].p && slots[slot].bytes >= bytes)
        return slots[slot].p;
    op_free_aligned(slots[slot].p);
    slots[slot].p = op_alloc_aligned(bytes);
    slots[slot].bytes = slots[slot].p ? bytes : 0;
    return slots[slot].p;
}

void op_cpu_scratch_release(void)
{
    for (int i = 0; i < OP_SCRATCH_COUNT; i++) {
        op_free_aligned(slots[i].p);
        slots[i].p = NULL;
        slots[i].bytes = 0;
    }
}
