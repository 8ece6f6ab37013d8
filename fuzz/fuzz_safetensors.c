/* The bytes of a .safetensors file. */
#include "fuzz_tensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    parse_and_read(data, n, "x.safetensors");
    return 0;
}
