/* vectors/merge.h: what the files of the merge share.
 *
 * merge_config.c reads the YAML, merge_plan.c turns it into a list of jobs (one output tensor each, with its inputs and parameters), merge_run.c streams the
 * jobs into a directory, merge_pass.c runs a function over the elements of a job's inputs, and the formulas stand in merge_<family>.c.
 *
 * Arithmetic is that of mergekit on torch: tensors have a type (float32, bfloat16 or float16), every operation is computed in float and its result
 * rounded to the type; sums along an axis are rounded once at their end. `x` below is a float that holds such a rounded number. */
#ifndef OP_VECTORS_MERGE_H
#define OP_VECTORS_MERGE_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <operant/merge.h>

#include "base/mem.h"
#include "io/yaml_doc.h"
#include "vectors/tensors.h"

enum {
    OP_MERGE_INPUTS_MAX = 64,
    OP_MERGE_WORKERS = 16, /* parts that a pass is cut into, whatever the number of threads: what they gather does not depend on it */
    OP_MERGE_TILE = 4096,  /* elements that a function is given at a time, or whole rows */
    OP_MERGE_LANE = 256,   /* elements that a formula works on at a time, in arrays on the stack */
};

/* ---- parameters and methods ---- */

typedef enum op_merge_param {
    P_WEIGHT, P_NORMALIZE, P_T, P_ROW_WISE, P_FLATTEN, P_NORMALIZE_WEIGHTS, P_EPS, P_MAX_ITER, P_TOL, P_INT8_MASK, P_RESCALE, P_LAMBDA, P_DENSITY,
    P_GAMMA, P_EPSILON, P_SELECT_TOPK, P_FILTER_WISE, P_SCALE, P_R, P_ALPHA,
    P_COUNT
} op_merge_param;

extern const char *const op_merge_param_names[P_COUNT + 1]; /* ends with NULL */

typedef enum op_merge_kind { OP_KIND_FLOAT, OP_KIND_INT, OP_KIND_BOOL } op_merge_kind;
typedef enum op_merge_scope { OP_SCOPE_END, OP_SCOPE_SHARED, OP_SCOPE_INPUT, OP_SCOPE_NON_BASE } op_merge_scope;

/* Fallbacks: a parameter without one must be given. */
#define OP_MERGE_REQUIRED NAN

typedef struct op_merge_spec {
    op_merge_param param;
    op_merge_scope scope; /* OP_SCOPE_END ends a list */
    op_merge_kind kind;
    double fallback;
} op_merge_spec;

typedef enum op_merge_base { OP_BASE_IGNORED, OP_BASE_OPTIONAL, OP_BASE_REQUIRED } op_merge_base;

struct op_merge_job;
struct op_merge_tile;

/* What is done with a tile; `out` of it is filled by a method's formula. Runs on several threads; only OP_ERR_NOMEM can happen. */
typedef op_status (*op_merge_fn)(void *ctx, const struct op_merge_tile *t);

typedef struct op_merge_method {
    const char *name;
    op_merge_base base;
    int min_inputs, max_inputs; /* with the base; max 0: any number */
    int min_others, max_others; /* without it */
    op_merge_spec params[8];
    op_status (*start)(struct op_merge_job *j, op_error *e); /* gathers what the formula needs of the whole tensor into j->state; NULL: nothing */
    op_merge_fn formula;                                     /* ctx: the job */
    int variant;                                             /* of a family */
    bool floats; /* the result is float32 whatever the type, as a float mask makes it in mergekit */
} op_merge_method;

const op_merge_method *op_merge_method_find(const char *name); /* NULL: none */
extern const char *const op_merge_method_names[];              /* ends with NULL */

/* ---- the configuration ---- */

typedef struct op_merge_source {
    int model;           /* index into models */
    int64_t first, end;  /* layers first .. end-1; end -1: all */
    const yaml_node_t *parameters; /* NULL: none */
} op_merge_source;

typedef struct op_merge_slice {
    op_merge_source *sources;
    int n;
    int base; /* -1: none */
    const yaml_node_t *parameters;
    int line;
} op_merge_slice;

/* Where the embedding of a token comes from (tokenizer: {tokens: ...}). */
typedef struct op_merge_token {
    const char *text;
    int model;      /* -1: zeros; -2: as it is found */
    int64_t id;     /* of the model's; -1: by `other`, or by the text itself */
    const char *other;
    bool force;
    int line;
} op_merge_token;

typedef enum op_merge_vocabulary { OP_VOCABULARY_COPY, OP_VOCABULARY_BASE, OP_VOCABULARY_UNION, OP_VOCABULARY_MODEL } op_merge_vocabulary;

typedef struct op_merge_config {
    yaml_document_t doc;
    bool loaded;
    const char *name;  /* borrowed */
    op_arena arena;
    const op_merge_method *method;
    char **models;     /* [n_models] paths, each once, in the order in which they are named; the base first */
    int n_models;
    op_merge_slice *slices;
    int n_slices;
    bool whole;        /* written as models: one slice of all layers */
    int base;          /* -1: none */
    const yaml_node_t *module, *parameters;
    op_dtype dtype, out_dtype; /* OP_DTYPE_COUNT: as they are */
    op_merge_vocabulary vocabulary;
    int vocabulary_model;
    op_merge_token *tokens;
    int n_tokens;
    int64_t pad_to;
    const char *chat_template; /* NULL: as copied */
} op_merge_config;

/* On failure *c is released. */
op_status op_merge_config_read(op_merge_config *c, const char *yaml, size_t n, const char *name, op_error *e);
void op_merge_config_release(op_merge_config *c);

/* The value of a parameter for a tensor at t (0: first layer, 1: last), looked for in scopes[0], [1], ... (NULL: none there), the first that has one. */
op_status op_merge_resolve(const op_merge_config *c, const op_merge_spec *spec, const yaml_node_t *const *scopes, int n_scopes, const char *tensor, double t,
                           double *out, op_error *e);

/* ---- models and their words ---- */

typedef struct op_merge_words op_merge_words;

typedef struct op_merge_model {
    const char *path;
    op_weights *weights;
    int layers;
} op_merge_model;

/* ---- jobs ---- */

typedef struct op_merge_input {
    const op_merge_model *model;
    int index;                      /* of the model */
    const op_weights_tensor *tensor;
    float *held;                    /* all elements, where they are not those of the file; while the job runs */
    double p[P_COUNT];
} op_merge_input;

typedef struct op_merge_job {
    const char *name;
    const op_merge_method *method;
    int rank;
    int64_t shape[OP_TENSOR_RANK_MAX], count;
    int64_t row, rows;  /* elements of the last dimension, and how many of those */
    op_merge_input *in; /* [n] */
    int n, base;        /* base: -1: none */
    int words_base;     /* the input that base_model names, also where the method makes no use of it; -1: none */
    double p[P_COUNT];
    op_dtype type, out; /* of the arithmetic, of the file */
    bool vocabulary;    /* rows are tokens */
    uint64_t seed, stream;
    int line;           /* of its slice in the YAML */
    /* while it runs */
    int64_t tile;       /* elements of a tile: whole rows where `by_rows` is called for */
    bool checked, large; /* inputs are known to be finite; so large that pages are given back behind a pass */
    const op_merge_words *words;
    float *scratch;
    op_arena *arena;    /* emptied after the job */
    void *state;        /* of the method, in the arena */
    float *kept;        /* [count] for methods that keep a vector; freed after the job */
} op_merge_job;

typedef struct op_merge_tile {
    const op_merge_job *job;
    int worker;
    int64_t first; /* of the tensor's elements */
    int n;
    const float *x[OP_MERGE_INPUTS_MAX]; /* [n] of each input, in the job's type */
    float *out;                          /* [n]; NULL in a pass that only looks */
} op_merge_tile;

typedef struct op_merge_plan {
    op_merge_model *models;
    int n_models;
    op_merge_job *jobs;
    size_t n_jobs, room;
    int layers;
    op_arena arena;
    op_merge_words *words;
} op_merge_plan;

op_status op_merge_plan_make(op_merge_plan *p, const op_merge_config *c, uint64_t seed, op_error *e); /* on failure *p is released */
void op_merge_plan_release(op_merge_plan *p);

/* ---- passes ---- */

/* Calls fn for every tile. */
op_status op_merge_pass(op_merge_job *j, op_merge_fn fn, void *ctx, op_error *e);
/* The same for the tiles from .. to-1, with `out` for the elements of the first and on. */
op_status op_merge_tiles(op_merge_job *j, int64_t from, int64_t to, op_merge_fn fn, void *ctx, float *out, op_error *e);
int64_t op_merge_tile_count(const op_merge_job *j);
void op_merge_by_rows(op_merge_job *j); /* a tile is whole rows from now on */
/* What one tile of a job holds (fn is called once). */
op_status op_merge_one(op_merge_job *j, int64_t tile, op_merge_fn fn, void *ctx, op_error *e);
op_status op_merge_job_start(op_merge_job *j, op_error *e);
void op_merge_job_end(op_merge_job *j);
/* Tells the kernel that pages of plain inputs are not needed for now. */
void op_merge_drop(const op_merge_job *j, int64_t first, int64_t n);

/* sums[k] += what a tile has of the k-th quantity. */
typedef void (*op_merge_sum_fn)(void *ctx, const op_merge_tile *t, double *sums);
op_status op_merge_sums(op_merge_job *j, op_merge_sum_fn fn, void *ctx, double *sums, int n, op_error *e);

/* Memory of the job's arena. */
void *op_merge_state(op_merge_job *j, size_t n, size_t size, op_error *e);

/* ---- order ---- */

/* Elements by (key, index); those of a cut are the ones before it. */
typedef struct op_merge_cut {
    uint32_t key;
    int64_t index;
} op_merge_cut;

/* Fills key[n] of stream s for a tile. */
typedef void (*op_merge_key_fn)(void *ctx, const op_merge_tile *t, int s, uint32_t *key);

typedef struct op_merge_rank {
    int stream;
    int64_t rank;    /* 0 .. count-1 */
    bool descending; /* the largest key has rank 0; equal keys still in the order of their indices */
    bool key_only;   /* where it stands does not matter */
    op_merge_cut at; /* out: the element of that rank; its index is 0 where no equal key comes before it, or where the key is 0 */
} op_merge_rank;

/* Exact, in two passes over all streams together, and one more where equal keys must be told apart. */
op_status op_merge_select(op_merge_job *j, op_merge_key_fn fn, void *ctx, int streams, op_merge_rank *ranks, int n_ranks, op_error *e);

/* ---- tokens ---- */

bool op_merge_is_vocabulary(const char *name);
/* Aligns the vocabularies of the models as the configuration says; *out NULL: nothing to do. */
op_status op_merge_words_make(op_merge_words **out, const op_merge_config *c, const op_merge_plan *p, op_error *e);
void op_merge_words_free(op_merge_words *w);
int64_t op_merge_words_count(const op_merge_words *w); /* rows of the result */
/* Fills held[] of all inputs of a job over tokens. */
op_status op_merge_words_hold(const op_merge_words *w, op_merge_job *j, op_error *e);
/* Tokenizer files and the vocabulary of the result, into a directory that has those of the base model. */
op_status op_merge_words_write(const op_merge_words *w, const char *dir, op_error *e);
op_status op_merge_template_write(const op_merge_config *c, const op_merge_plan *p, const char *dir, op_error *e);

/* ---- numbers of a type ---- */

static inline uint32_t op_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static inline float op_unbits(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

/* To bfloat16, nearest even; of finite numbers. */
static inline float op_round_bf16(float x)
{
    uint32_t u = op_bits(x);
    return op_unbits((u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u);
}

/* To float16, nearest even. Below 2^-14 its numbers are the multiples of 2^-24, which are those that a float near 0.75 has room for. */
static inline float op_round_f16(float x)
{
    uint32_t u = op_bits(x), sign = u & 0x80000000u, a = u & 0x7fffffffu;
    float normal = op_unbits((a + 0xfffu + ((a >> 13) & 1u)) & 0xffffe000u);
    float small = (op_unbits(a) + 0.75f) - 0.75f;
    float y = a < 0x38800000u ? small : a >= 0x477ff000u ? INFINITY : normal;
    return op_unbits(op_bits(y) | sign);
}

static inline float op_round(op_dtype type, float x)
{
    return type == OP_BF16 ? op_round_bf16(x) : type == OP_F16 ? op_round_f16(x) : x;
}

static inline void op_round_all(op_dtype type, float *x, int n)
{
    if (type == OP_BF16) {
#pragma omp simd
        for (int i = 0; i < n; i++)
            x[i] = op_round_bf16(x[i]);
    } else if (type == OP_F16) {
#pragma omp simd
        for (int i = 0; i < n; i++)
            x[i] = op_round_f16(x[i]);
    }
}

static inline int op_lane(int n, int from)
{
    return n - from < OP_MERGE_LANE ? n - from : OP_MERGE_LANE;
}

/* d = a - b */
static inline void op_lane_minus(op_dtype type, const float *a, const float *b, float *d, int n)
{
#pragma omp simd
    for (int i = 0; i < n; i++)
        d[i] = a[i] - b[i];
    op_round_all(type, d, n);
}

/* x *= s */
static inline void op_lane_scale(op_dtype type, float s, float *x, int n)
{
#pragma omp simd
    for (int i = 0; i < n; i++)
        x[i] *= s;
    op_round_all(type, x, n);
}

/* x /= s */
static inline void op_lane_divide(op_dtype type, float s, float *x, int n)
{
#pragma omp simd
    for (int i = 0; i < n; i++)
        x[i] /= s;
    op_round_all(type, x, n);
}

/* y += x */
static inline void op_lane_add(op_dtype type, const float *x, float *y, int n)
{
#pragma omp simd
    for (int i = 0; i < n; i++)
        y[i] += x[i];
    op_round_all(type, y, n);
}

/* y = a x */
static inline void op_lane_times(op_dtype type, float a, const float *x, float *y, int n)
{
#pragma omp simd
    for (int i = 0; i < n; i++)
        y[i] = a * x[i];
    op_round_all(type, y, n);
}

static inline double op_lane_dot(const float *a, const float *b, int n)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

/* A sum of products each of which has the type. */
static inline double op_lane_dot_rounded(op_dtype type, const float *a, const float *b, int n)
{
    float p[OP_MERGE_LANE];
    double sum = 0;
#pragma omp simd
    for (int i = 0; i < n; i++)
        p[i] = a[i] * b[i];
    op_round_all(type, p, n);
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++)
        sum += p[i];
    return sum;
}

/* The methods, one table a file. */
extern const op_merge_method op_merge_elementwise[], op_merge_task[], op_merge_sphere[], op_merge_agreement[], op_merge_averages[];

#endif
