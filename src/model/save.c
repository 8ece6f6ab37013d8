/* Writing a model: a Hugging Face directory, or the tensors and keys of a GGUF file. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "model/gguf_out.h"
#include "model/parts.h"

/* How the elements of a slot lie in the file. */
typedef struct source {
    const op_slot *slot;
    bool transposed;
    int64_t interleave; /* head width whose two halves are interleaved row by row, 0: none */
} source;

/* The row of ours that stands at row r of the file: llama.cpp's row 2i + j of a head is our row j D/2 + i. */
static int64_t interleaved(int64_t r, int64_t D)
{
    int64_t head = r / D, k = r % D;
    return head * D + (k % 2) * (D / 2) + k / 2;
}

static op_status slot_source(void *ctx, int64_t first, int64_t n, float *out, op_error *e)
{
    (void)e;
    const source *s = ctx;
    const op_slot *x = s->slot;
    for (int64_t i = 0; i < n; i++) {
        int64_t k = first + i;
        if (s->transposed)
            out[i] = x->value[(k % x->rows) * x->cols + k / x->rows];
        else if (s->interleave)
            out[i] = x->value[interleaved(k / x->cols, s->interleave) * x->cols + k % x->cols];
        else
            out[i] = x->value[k];
    }
    return OP_OK;
}

static op_tensor_out tensor_out(const op_slot *x, const char *name, op_dtype dtype, source *s)
{
    op_tensor_out t = {.name = name, .dtype = dtype, .rank = x->cols > 1 ? 2 : 1, .shape = {x->rows, x->cols}, .source = slot_source, .ctx = s};
    if (s->transposed) {
        t.shape[0] = x->cols;
        t.shape[1] = x->rows;
    }
    return t;
}

static op_status need_floats(const op_model *m, op_error *e)
{
    return m->floats ? OP_OK : op_error_set(e, OP_ERR_ARG, "saving needs float weights: open the model with dtype f32");
}

static op_status write_json(const char *dir, const char *name, json_t *j, op_error *e)
{
    char *path = op_path_join(dir, name);
    op_status s = path && j ? op_json_write(path, j, e) : op_error_set(e, OP_ERR_NOMEM, "out of memory");
    op_free(path);
    json_decref(j);
    return s;
}

static json_t *generation_config(const op_model_config *c)
{
    json_t *j = json_object();
    json_object_set_new(j, "_from_model_config", json_true());
    if (c->bos >= 0)
        json_object_set_new(j, "bos_token_id", json_integer(c->bos));
    json_t *eos = c->n_eos == 1 ? json_integer(c->eos[0]) : json_array();
    for (int32_t i = 0; c->n_eos != 1 && i < c->n_eos; i++)
        json_array_append_new(eos, json_integer(c->eos[i]));
    json_object_set_new(j, "eos_token_id", eos);
    if (c->pad >= 0)
        json_object_set_new(j, "pad_token_id", json_integer(c->pad));
    return j;
}

op_status op_model_config_save(const op_model_config *c, const char *dir, op_dtype dtype, op_error *e)
{
    op_status s = write_json(dir, "generation_config.json", generation_config(c), e);
    return s ? s : write_json(dir, "config.json", op_model_config_to_json(c, dtype), e);
}

op_status op_model_save(const op_model *m, const char *dir, op_dtype dtype, op_error *e)
{
    op_status s = need_floats(m, e);
    if (s)
        return s;
    op_tensor_out *out = op_alloc_zero(m->n_slots, sizeof *out);
    source *sources = op_alloc_zero(m->n_slots, sizeof *sources);
    if (!out || !sources)
        s = op_error_set(e, OP_ERR_NOMEM, "out of memory");
    char (*names)[128] = s ? NULL : op_alloc_zero(m->n_slots, sizeof *names);
    if (!s && !names)
        s = op_error_set(e, OP_ERR_NOMEM, "out of memory");
    for (size_t i = 0; i < m->n_slots && !s; i++) {
        const op_slot *x = &m->slots[i];
        sources[i] = (source){.slot = x, .transposed = x->transposed};
        snprintf(names[i], sizeof names[i], "%s%s", m->config.family == OP_GPT2 && x->role != OP_ROLE_HEAD ? "transformer." : "", x->name);
        out[i] = tensor_out(x, names[i], dtype, &sources[i]);
    }
    if (!s)
        s = op_safetensors_write_dir(dir, out, m->n_slots, NULL, 0, (uint64_t)5 << 30, e);
    if (!s)
        s = op_model_config_save(&m->config, dir, dtype, e);
    op_free(names);
    op_free(sources);
    op_free(out);
    return s;
}

static void put_int(op_gguf_writer *w, const char *arch, const char *key, int64_t v)
{
    char full[128];
    snprintf(full, sizeof full, "%s.%s", arch, key);
    op_gguf_put_u32(w, full, (uint32_t)v);
}

static void put_float(op_gguf_writer *w, const char *arch, const char *key, double v)
{
    char full[128];
    snprintf(full, sizeof full, "%s.%s", arch, key);
    op_gguf_put_f32(w, full, (float)v);
}

static void put_keys(const op_model *m, op_gguf_writer *w, const char *arch, op_dtype dtype)
{
    const op_model_config *c = &m->config;
    bool gpt2 = c->family == OP_GPT2;
    op_gguf_put_string(w, "general.architecture", arch, strlen(arch));
    /* llama.cpp's LLAMA_FTYPE numbers */
    op_gguf_put_u32(w, "general.file_type", dtype == OP_F32 ? 0 : dtype == OP_F16 ? 1 : dtype == OP_Q8_0 ? 7 : 32);
    op_gguf_put_u32(w, "general.quantization_version", 2);
    put_int(w, arch, "vocab_size", c->vocab);
    put_int(w, arch, "context_length", c->max_positions);
    put_int(w, arch, "embedding_length", c->width);
    put_int(w, arch, "block_count", c->layers);
    put_int(w, arch, "feed_forward_length", c->ffn);
    put_int(w, arch, "attention.head_count", c->heads);
    put_int(w, arch, "attention.head_count_kv", c->kv_heads);
    put_float(w, arch, gpt2 ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon", c->norm_eps);
    if (gpt2)
        return;
    put_int(w, arch, "attention.key_length", c->head_dim);
    put_int(w, arch, "attention.value_length", c->head_dim);
    put_int(w, arch, "rope.dimension_count", c->head_dim);
    put_float(w, arch, "rope.freq_base", c->rope_theta);
    if (c->rope_scaling == OP_ROPE_LINEAR) {
        char key[128];
        snprintf(key, sizeof key, "%s.rope.scaling.type", arch);
        op_gguf_put_string(w, key, "linear", 6);
        put_float(w, arch, "rope.scaling.factor", c->rope_factor);
    }
}

op_status op_model_put_gguf(const op_model *m, op_gguf_writer *w, op_dtype dtype, void **block, op_error *e)
{
    *block = NULL;
    op_status s = need_floats(m, e);
    if (s)
        return s;
    const op_model_config *c = &m->config;
    /* llama.cpp knows Mistral as llama; a sliding window it would ignore, so it is refused rather than lost */
    if (c->window)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "gguf: a sliding window of %d cannot be written for this family", c->window);
    const char *arch = c->family == OP_MISTRAL ? "llama" : op_family_name(c->family);
    bool interleave = !strcmp(arch, "llama");
    size_t half = (size_t)c->head_dim / 2;
    source *sources = op_alloc_zero(1, m->n_slots * sizeof *sources + half * sizeof(float));
    if (!sources)
        return op_error_set(e, OP_ERR_NOMEM, "out of memory");
    *block = sources;
    put_keys(m, w, arch, dtype);
    for (size_t i = 0; i < m->n_slots; i++) {
        const op_slot *x = &m->slots[i];
        bool turned = x->role == OP_ROLE_Q || x->role == OP_ROLE_K || x->role == OP_ROLE_Q_B || x->role == OP_ROLE_K_B;
        sources[i] = (source){.slot = x, .interleave = interleave && turned ? c->head_dim : 0};
        bool vector = x->cols == 1 || x->role == OP_ROLE_POSITION;
        op_tensor_out t = tensor_out(x, x->gguf, vector ? OP_F32 : dtype, &sources[i]);
        op_gguf_add_tensor(w, &t);
    }
    if (c->rope_scaling == OP_ROPE_LLAMA3) {
        float *factors = (float *)(sources + m->n_slots);
        op_model_config plain = *c;
        plain.rope_scaling = OP_ROPE_PLAIN;
        for (size_t i = 0; i < half; i++)
            factors[i] = (float)(op_rope_frequency(&plain, (int32_t)i) / op_rope_frequency(c, (int32_t)i));
        op_tensor_out t = {.name = "rope_freqs.weight", .dtype = OP_F32, .rank = 1, .shape = {(int64_t)half}, .data = factors};
        op_gguf_add_tensor(w, &t);
    }
    return OP_OK;
}
