#include <operant/train.h>

#include <math.h>

double op_schedule_lr(const op_schedule *s, int64_t step)
{
    if (step < s->warmup)
        return s->lr * (double)(step + 1) / (double)s->warmup;
    int64_t after = s->total - s->warmup;
    double p = after > 0 ? fmin(1, (double)(step - s->warmup) / (double)after) : 1;
    double shape = 1;
    if (s->type == OP_SCHEDULE_LINEAR) {
        shape = 1 - p;
    } else if (s->type == OP_SCHEDULE_COSINE) {
        shape = (1 + cos(3.14159265358979323846 * p)) / 2;
    } else if (s->type == OP_SCHEDULE_WSD) {
        double decay = s->decay_ratio * (double)s->total;
        double left = (double)(s->total - step);
        shape = left < decay ? fmax(0, left / decay) : 1;
    }
    return s->lr * (s->min_ratio + (1 - s->min_ratio) * shape);
}
