/* Model descriptions: from config.json, from GGUF metadata, and to config.json. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "io/json.h"
#include "model/parts.h"

static const char *const family_names[OP_FAMILY_COUNT] = {"llama", "mistral", "qwen2", "qwen3", "gpt2"};
static const char *const architectures[OP_FAMILY_COUNT] = {"LlamaForCausalLM", "MistralForCausalLM",
                                                           "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GPT2LMHeadModel"};

const char *op_family_name(op_family f)
{
    return f < OP_FAMILY_COUNT ? family_names[f] : "unknown";
}

op_status op_model_config_check(const op_model_config *c, op_error *e)
{
    const struct {
        const char *name;
        int32_t value, max;
    } sizes[] = {{"vocabulary", c->vocab, 1 << 22}, {"width", c->width, 1 << 16},    {"layers", c->layers, 1024},
                 {"heads", c->heads, 4096},         {"kv heads", c->kv_heads, 4096}, {"head dimension", c->head_dim, 1024},
                 {"ffn width", c->ffn, 1 << 20},    {"positions", c->max_positions, 1 << 24}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i].value < 1 || sizes[i].value > sizes[i].max)
            return op_error_set(e, OP_ERR_FORMAT, "model configuration: %s is %d, expected 1..%d", sizes[i].name,
                                sizes[i].value, sizes[i].max);
    if (c->heads % c->kv_heads)
        return op_error_set(e, OP_ERR_FORMAT, "model configuration: %d heads are no multiple of %d kv heads", c->heads,
                            c->kv_heads);
    if (c->family == OP_GPT2 && (c->kv_heads != c->heads || c->heads * c->head_dim != c->width))
        return op_error_set(e, OP_ERR_FORMAT, "model configuration: %d heads (%d for keys) of %d make no gpt2 of width %d", c->heads,
                            c->kv_heads, c->head_dim, c->width);
    if (c->head_dim % 2)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "model configuration: head dimension %d is odd", c->head_dim);
    if (!(c->norm_eps > 0 && c->norm_eps < 1))
        return op_error_set(e, OP_ERR_FORMAT, "model configuration: norm epsilon is %g, expected 0..1", (double)c->norm_eps);
    if (c->family != OP_GPT2 && !(c->rope_theta > 0 && isfinite(c->rope_theta)))
        return op_error_set(e, OP_ERR_FORMAT, "model configuration: rope theta is %g, expected a positive number",
                            c->rope_theta);
    if (c->rope_scaling != OP_ROPE_PLAIN && !(c->rope_factor >= 1))
        return op_error_set(e, OP_ERR_FORMAT, "model configuration: rope factor is %g, expected 1 or more", c->rope_factor);
    if (c->rope_scaling == OP_ROPE_LLAMA3 &&
        !(c->rope_low_freq > 0 && c->rope_high_freq > c->rope_low_freq && c->rope_original_positions > 0))
        return op_error_set(e, OP_ERR_FORMAT, "model configuration: llama3 rope scaling with factors %g and %g over %d positions",
                            c->rope_low_freq, c->rope_high_freq, c->rope_original_positions);
    return OP_OK;
}

static op_status get_size(const json_t *j, const char *key, bool required, int32_t *out, const char *name, op_error *e)
{
    int64_t v = *out;
    op_status s = op_json_get_int(j, key, required, 0, INT32_MAX, &v, name, e);
    *out = (int32_t)v;
    return s;
}

static op_status get_id(const json_t *j, const char *key, int32_t *out, const char *name, op_error *e)
{
    int64_t v = -1;
    op_status s = op_json_get_int(j, key, false, -1, INT32_MAX, &v, name, e);
    *out = (int32_t)v;
    return s;
}

static op_status get_eos(op_model_config *c, const json_t *j, const char *name, op_error *e)
{
    const json_t *v = json_object_get(j, "eos_token_id");
    if (!json_is_array(v)) {
        int32_t id;
        op_status s = get_id(j, "eos_token_id", &id, name, e);
        if (!s && id >= 0)
            c->eos[c->n_eos++] = id;
        return s;
    }
    size_t i;
    const json_t *item;
    json_array_foreach(v, i, item)
    {
        if (!json_is_integer(item) || c->n_eos == 8)
            return op_error_set(e, OP_ERR_FORMAT, "%s: key \"eos_token_id\": expected at most 8 integers", name);
        c->eos[c->n_eos++] = (int32_t)json_integer_value(item);
    }
    return OP_OK;
}

static op_status get_rope(op_model_config *c, const json_t *j, const char *name, op_error *e)
{
    const json_t *r = json_object_get(j, "rope_parameters");
    if (!json_is_object(r))
        r = json_object_get(j, "rope_scaling");
    c->rope_theta = 10000;
    op_status s = op_json_get_float(j, "rope_theta", false, &c->rope_theta, name, e);
    if (s || !json_is_object(r))
        return s;
    if ((s = op_json_get_float(r, "rope_theta", false, &c->rope_theta, name, e)))
        return s;
    const char *type = "default";
    if ((s = op_json_get_string(r, "type", false, &type, name, e)) ||
        (s = op_json_get_string(r, "rope_type", false, &type, name, e)))
        return s;
    if (!strcmp(type, "default"))
        return OP_OK;
    if (!strcmp(type, "linear")) {
        c->rope_scaling = OP_ROPE_LINEAR;
        return op_json_get_float(r, "factor", true, &c->rope_factor, name, e);
    }
    if (!strcmp(type, "llama3")) {
        c->rope_scaling = OP_ROPE_LLAMA3;
        if ((s = op_json_get_float(r, "factor", true, &c->rope_factor, name, e)) ||
            (s = op_json_get_float(r, "low_freq_factor", true, &c->rope_low_freq, name, e)) ||
            (s = op_json_get_float(r, "high_freq_factor", true, &c->rope_high_freq, name, e)))
            return s;
        return get_size(r, "original_max_position_embeddings", true, &c->rope_original_positions, name, e);
    }
    return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: rope scaling \"%s\", expected default, linear or llama3", name, type);
}

static op_status refuse(const json_t *j, const char *key, const char *expected, const char *name, op_error *e)
{
    const json_t *v = json_object_get(j, key);
    bool fine = !v || json_is_null(v) || json_is_false(v);
    return fine ? OP_OK : op_error_set(e, OP_ERR_UNSUPPORTED, "%s: key \"%s\" is set, expected %s", name, key, expected);
}

static op_status gpt2_from_json(op_model_config *c, const json_t *j, const char *name, op_error *e)
{
    op_status s;
    double eps = 1e-5;
    c->max_positions = 1024;
    c->tied = c->qkv_bias = c->out_bias = true;
    if ((s = get_size(j, "n_embd", true, &c->width, name, e)) || (s = get_size(j, "n_layer", true, &c->layers, name, e)) ||
        (s = get_size(j, "n_head", true, &c->heads, name, e)) || (s = get_size(j, "n_inner", false, &c->ffn, name, e)) ||
        (s = get_size(j, "n_positions", false, &c->max_positions, name, e)) ||
        (s = op_json_get_float(j, "layer_norm_epsilon", false, &eps, name, e)) ||
        (s = refuse(j, "scale_attn_by_inverse_layer_idx", "false", name, e)) ||
        (s = op_json_get_bool(j, "tie_word_embeddings", false, &c->tied, name, e)))
        return s;
    if (!c->ffn)
        c->ffn = 4 * c->width;
    c->kv_heads = c->heads;
    c->head_dim = c->heads ? c->width / c->heads : 0;
    c->norm_eps = (float)eps;
    const char *act = "gelu_new";
    if ((s = op_json_get_string(j, "activation_function", false, &act, name, e)))
        return s;
    if (strcmp(act, "gelu_new") && strcmp(act, "gelu_pytorch_tanh"))
        return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: activation \"%s\", expected gelu_new", name, act);
    return OP_OK;
}

static op_status llama_from_json(op_model_config *c, const json_t *j, const char *name, op_error *e)
{
    op_status s;
    double eps = 1e-6;
    c->max_positions = 2048;
    if ((s = get_size(j, "hidden_size", true, &c->width, name, e)) ||
        (s = get_size(j, "num_hidden_layers", true, &c->layers, name, e)) ||
        (s = get_size(j, "num_attention_heads", true, &c->heads, name, e)) ||
        (s = get_size(j, "intermediate_size", true, &c->ffn, name, e)) ||
        (s = get_size(j, "max_position_embeddings", false, &c->max_positions, name, e)) ||
        (s = op_json_get_float(j, "rms_norm_eps", false, &eps, name, e)) ||
        (s = op_json_get_bool(j, "tie_word_embeddings", false, &c->tied, name, e)) ||
        (s = refuse(j, "mlp_bias", "false", name, e)) || (s = get_rope(c, j, name, e)))
        return s;
    c->norm_eps = (float)eps;
    c->kv_heads = c->heads;
    c->head_dim = c->family == OP_QWEN3 ? 128 : c->heads ? c->width / c->heads : 0;
    if ((s = get_size(j, "num_key_value_heads", false, &c->kv_heads, name, e)) ||
        (s = get_size(j, "head_dim", false, &c->head_dim, name, e)))
        return s;
    const char *act = "silu";
    if ((s = op_json_get_string(j, "hidden_act", false, &act, name, e)))
        return s;
    if (strcmp(act, "silu"))
        return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: hidden_act \"%s\", expected silu", name, act);
    bool windowed = c->family == OP_MISTRAL; /* Qwen's window is off unless use_sliding_window */
    if ((s = op_json_get_bool(j, "use_sliding_window", false, &windowed, name, e)))
        return s;
    if (windowed && c->family != OP_MISTRAL)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: key \"use_sliding_window\" is true, expected false for %s", name,
                            op_family_name(c->family));
    if (windowed && (s = get_size(j, "sliding_window", false, &c->window, name, e)))
        return s;
    c->qkv_bias = c->family == OP_QWEN2;
    c->qk_norm = c->family == OP_QWEN3;
    if (c->family != OP_QWEN2)
        return refuse(j, "attention_bias", "false", name, e);
    return OP_OK;
}

op_status op_model_config_from_json(op_model_config *c, const json_t *j, const char *name, op_error *e)
{
    *c = (op_model_config){.bos = -1, .pad = -1, .family = OP_FAMILY_COUNT};
    const char *type;
    op_status s = op_json_get_string(j, "model_type", true, &type, name, e);
    if (s)
        return s;
    for (int f = 0; f < OP_FAMILY_COUNT; f++)
        if (!strcmp(type, family_names[f]))
            c->family = (op_family)f;
    if (c->family == OP_FAMILY_COUNT)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "%s: model_type \"%s\", expected llama, mistral, qwen2, qwen3 or gpt2",
                            name, type);
    if ((s = get_size(j, "vocab_size", true, &c->vocab, name, e)) || (s = get_id(j, "bos_token_id", &c->bos, name, e)) ||
        (s = get_id(j, "pad_token_id", &c->pad, name, e)) || (s = get_eos(c, j, name, e)))
        return s;
    s = c->family == OP_GPT2 ? gpt2_from_json(c, j, name, e) : llama_from_json(c, j, name, e);
    return s ? s : op_model_config_check(c, e);
}

static int64_t gguf_int(const op_tensors *t, const char *arch, const char *key, int64_t fallback)
{
    char full[128];
    snprintf(full, sizeof full, "%s.%s", arch, key);
    int64_t v = op_tensors_meta_int(t, full, fallback);
    return v > INT32_MAX || v < -1 ? -1 : v;
}

static double gguf_float(const op_tensors *t, const char *arch, const char *key, double fallback)
{
    char full[128];
    snprintf(full, sizeof full, "%s.%s", arch, key);
    return op_tensors_meta_float(t, full, fallback);
}

op_status op_model_config_from_gguf(op_model_config *c, const op_tensors *t, op_error *e)
{
    *c = (op_model_config){.bos = -1, .pad = -1, .family = OP_FAMILY_COUNT};
    const char *arch = op_tensors_meta_string(t, "general.architecture", NULL);
    if (!arch)
        return op_error_set(e, OP_ERR_FORMAT, "key \"general.architecture\" is missing");
    for (int f = 0; f < OP_FAMILY_COUNT; f++)
        if (!strcmp(arch, family_names[f]))
            c->family = (op_family)f;
    if (c->family == OP_FAMILY_COUNT)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "architecture \"%s\", expected llama, qwen2, qwen3 or gpt2", arch);
    const op_tensor *embed = op_tensors_find(t, "token_embd.weight");
    if (!embed || embed->rank != 2)
        return op_error_set(e, OP_ERR_FORMAT, "tensor \"token_embd.weight\" is missing or not a matrix");
    c->vocab = embed->shape[0] > INT32_MAX ? -1 : (int32_t)embed->shape[0];
    c->width = (int32_t)gguf_int(t, arch, "embedding_length", -1);
    c->layers = (int32_t)gguf_int(t, arch, "block_count", -1);
    c->ffn = (int32_t)gguf_int(t, arch, "feed_forward_length", -1);
    c->heads = (int32_t)gguf_int(t, arch, "attention.head_count", -1);
    c->kv_heads = (int32_t)gguf_int(t, arch, "attention.head_count_kv", c->heads);
    c->max_positions = (int32_t)gguf_int(t, arch, "context_length", 2048);
    c->head_dim = (int32_t)gguf_int(t, arch, "attention.key_length", c->heads > 0 ? c->width / c->heads : -1);
    c->window = (int32_t)gguf_int(t, arch, "attention.sliding_window", 0);
    bool gpt2 = c->family == OP_GPT2;
    c->norm_eps = (float)gguf_float(t, arch, gpt2 ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon", 1e-5);
    c->rope_theta = gguf_float(t, arch, "rope.freq_base", 10000);
    if (gguf_int(t, arch, "rope.dimension_count", c->head_dim) != c->head_dim && !gpt2)
        return op_error_set(e, OP_ERR_UNSUPPORTED, "key \"%s.rope.dimension_count\" is not the head dimension %d", arch, c->head_dim);
    char scaling[128];
    snprintf(scaling, sizeof scaling, "%s.rope.scaling.type", arch);
    const char *type = op_tensors_meta_string(t, scaling, NULL);
    if (type && strcmp(type, "none") && strcmp(type, "linear"))
        return op_error_set(e, OP_ERR_UNSUPPORTED, "key \"%s\" is \"%s\", expected none or linear", scaling, type);
    if (type && !strcmp(type, "linear")) {
        c->rope_scaling = OP_ROPE_LINEAR;
        c->rope_factor = gguf_float(t, arch, "rope.scaling.factor", 1);
    }
    c->tied = !op_tensors_find(t, "output.weight");
    c->qkv_bias = gpt2 || op_tensors_find(t, "blk.0.attn_q.bias");
    c->out_bias = gpt2;
    c->qk_norm = op_tensors_find(t, "blk.0.attn_q_norm.weight");
    c->bos = (int32_t)op_tensors_meta_int(t, "tokenizer.ggml.bos_token_id", -1);
    c->pad = (int32_t)op_tensors_meta_int(t, "tokenizer.ggml.padding_token_id", -1);
    int64_t eos = op_tensors_meta_int(t, "tokenizer.ggml.eos_token_id", -1);
    if (eos >= 0)
        c->eos[c->n_eos++] = (int32_t)eos;
    int64_t eot = op_tensors_meta_int(t, "tokenizer.ggml.eot_token_id", -1);
    if (eot >= 0 && eot != eos)
        c->eos[c->n_eos++] = (int32_t)eot;
    op_status s = op_model_config_check(c, e);
    if (!s && !gpt2)
        s = op_rope_from_gguf(c, t, e);
    return s;
}

/* Typed strictly: transformers refuses an integer where it wants a float. */
json_t *op_model_config_to_json(const op_model_config *c, op_dtype dtype)
{
    const char *type = dtype == OP_F32 ? "float32" : dtype == OP_F16 ? "float16" : "bfloat16";
    json_t *j = json_pack("{s[s]ssss ss si}", "architectures", architectures[c->family], "model_type", family_names[c->family],
                          "dtype", type, "torch_dtype", type, "vocab_size", c->vocab);
    json_t *eos = c->n_eos == 1 ? json_integer(c->eos[0]) : c->n_eos ? json_array() : json_null();
    for (int32_t i = 0; c->n_eos > 1 && i < c->n_eos; i++)
        json_array_append_new(eos, json_integer(c->eos[i]));
    json_object_set_new(j, "bos_token_id", c->bos >= 0 ? json_integer(c->bos) : json_null());
    json_object_set_new(j, "eos_token_id", eos);
    json_object_set_new(j, "pad_token_id", c->pad >= 0 ? json_integer(c->pad) : json_null());
    json_object_set_new(j, "initializer_range", json_real(0.02));
    json_object_set_new(j, "tie_word_embeddings", json_boolean(c->tied));
    json_object_set_new(j, "use_cache", json_true());
    if (c->family == OP_GPT2) {
        json_t *more = json_pack("{si si si si si ss sf}", "n_embd", c->width, "n_layer", c->layers, "n_head", c->heads,
                                 "n_inner", c->ffn, "n_positions", c->max_positions, "activation_function", "gelu_new",
                                 "layer_norm_epsilon", (double)c->norm_eps);
        json_object_update(j, more);
        json_decref(more);
        return j;
    }
    json_t *more = json_pack("{si si si si si si ss si sf sb sb sf}", "hidden_size", c->width, "intermediate_size", c->ffn,
                             "num_hidden_layers", c->layers, "num_attention_heads", c->heads, "num_key_value_heads",
                             c->kv_heads, "head_dim", c->head_dim, "hidden_act", "silu", "max_position_embeddings",
                             c->max_positions, "rms_norm_eps", (double)c->norm_eps, "attention_bias",
                             c->qkv_bias && c->family != OP_QWEN2, "mlp_bias", 0, "rope_theta", c->rope_theta);
    json_object_update(j, more);
    json_decref(more);
    json_t *rope = json_pack("{sf ss}", "rope_theta", c->rope_theta, "rope_type",
                             c->rope_scaling == OP_ROPE_LLAMA3 ? "llama3"
                             : c->rope_scaling == OP_ROPE_LINEAR ? "linear" : "default");
    if (c->rope_scaling != OP_ROPE_PLAIN)
        json_object_set_new(rope, "factor", json_real(c->rope_factor));
    if (c->rope_scaling == OP_ROPE_LLAMA3) {
        json_object_set_new(rope, "low_freq_factor", json_real(c->rope_low_freq));
        json_object_set_new(rope, "high_freq_factor", json_real(c->rope_high_freq));
        json_object_set_new(rope, "original_max_position_embeddings", json_integer(c->rope_original_positions));
    }
    json_object_set_new(j, "rope_parameters", rope);
    if (c->rope_scaling != OP_ROPE_PLAIN) /* what older loaders read */
        json_object_set(j, "rope_scaling", rope);
    if (c->family == OP_MISTRAL)
        json_object_set_new(j, "sliding_window", c->window ? json_integer(c->window) : json_null());
    if (c->family == OP_QWEN2 || c->family == OP_QWEN3)
        json_object_set_new(j, "use_sliding_window", json_false());
    return j;
}
