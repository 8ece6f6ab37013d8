/* methods/methods.h: every method's own declaration. */
#ifndef OP_METHODS_METHODS_H
#define OP_METHODS_METHODS_H

#include <operant/session.h>

extern const op_method op_method_reward, op_method_imitate, op_method_preference, op_method_marking, op_method_redo, op_method_alternatives,
    op_method_backtrack, op_method_differential, op_method_generalise, op_method_shaping, op_method_chaining, op_method_stored;

#endif
