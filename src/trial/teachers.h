/* trial/teachers.h: how each type of teacher is opened (its file says what its settings are). */
#ifndef OP_TRIAL_TEACHERS_H
#define OP_TRIAL_TEACHERS_H

#include <operant/teacher.h>

op_status op_teacher_rules_open(op_teacher **out, const json_t *settings, const op_classroom *room, op_error *e);
op_status op_teacher_reference_open(op_teacher **out, const json_t *settings, const op_classroom *room, op_error *e);
op_status op_teacher_judge_open(op_teacher **out, const json_t *settings, const op_classroom *room, op_error *e);
op_status op_teacher_marker_open(op_teacher **out, const json_t *settings, const op_classroom *room, op_error *e);
op_status op_teacher_program_open(op_teacher **out, const json_t *settings, const op_classroom *room, op_error *e);
op_status op_teacher_several_open(op_teacher **out, const json_t *settings, const op_classroom *room, op_error *e);

/* A judge with its area under the ROC curve, which is told (else NAN) also where it is too small and OP_ERR_MISMATCH refuses it. */
op_status op_teacher_judge_examined(op_teacher **out, const json_t *settings, const op_classroom *room, double *auroc, op_error *e);
/* The hash of the weights that a judge of these settings teaches with. */
op_status op_judge_weights(const json_t *settings, const char *dir, char hex[65], op_error *e);

#endif
