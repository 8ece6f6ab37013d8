/* The methods that a protocol may name. A new one is a file with an op_method and a line here. */
#include "methods/methods.h"

const op_method *const op_methods[] = {
    &op_method_reward,
    &op_method_imitate,
    &op_method_preference,
    &op_method_marking,
    &op_method_redo,
    &op_method_alternatives,
    &op_method_backtrack,
    &op_method_differential,
    &op_method_generalise,
    &op_method_shaping,
    &op_method_chaining,
    &op_method_stored,
    NULL,
};
