/* Writes the files from which transformers makes the same tokenizer. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "io/file.h"
#include "io/json.h"
#include "text/tokenizer_impl.h"

#define META "\xe2\x96\x81"

/* JSON in the making; the first failure is kept. */
typedef struct writer {
    const op_tokenizer *t;
    op_buf out;
    op_status status;
} writer;

static void put(writer *w, const char *s)
{
    w->status = w->status ? w->status : op_buf_puts(&w->out, s);
}

static void put_number(writer *w, int64_t i)
{
    w->status = w->status ? w->status : op_buf_printf(&w->out, "%lld", (long long)i);
}

static void put_string(writer *w, const char *s, size_t n)
{
    char escaped[8];
    put(w, "\"");
    for (size_t i = 0; i < n && !w->status; i++) {
        bool quoted = s[i] == '"' || s[i] == '\\', control = (unsigned char)s[i] < 0x20;
        if (control)
            snprintf(escaped, sizeof escaped, "\\u%04x", (unsigned char)s[i]);
        if (quoted)
            put(w, "\\");
        w->status = w->status ? w->status : op_buf_add(&w->out, control ? escaped : s + i, control ? 6 : 1);
    }
    put(w, "\"");
}

static void put_token(writer *w, int32_t id)
{
    size_t n;
    const char *text = op_strings_get(&w->t->texts, id, &n);
    put_string(w, text, n);
}

static void put_bool(writer *w, const char *key, bool b)
{
    put(w, key);
    put(w, b ? "true" : "false");
}

static void put_added(writer *w)
{
    for (size_t i = 0; i < w->t->n_added; i++) {
        const op_added *a = &w->t->added[i];
        put(w, i ? ",\n    {\"id\": " : "\n    {\"id\": ");
        put_number(w, a->id);
        put(w, ", \"content\": ");
        put_token(w, a->id);
        put_bool(w, ", \"single_word\": ", a->single_word);
        put_bool(w, ", \"lstrip\": ", a->lstrip);
        put_bool(w, ", \"rstrip\": ", a->rstrip);
        put_bool(w, ", \"normalized\": ", a->normalized);
        put_bool(w, ", \"special\": ", a->special);
        put(w, "}");
    }
}

static void put_normalizer(writer *w)
{
    const op_tokenizer *t = w->t;
    put(w, t->n_normal ? "{\"type\": \"Sequence\", \"normalizers\": [" : "null");
    for (int i = 0; i < t->n_normal; i++) {
        const op_normal_step *n = &t->normal[i];
        put(w, i ? ", " : "");
        if (n->kind == OP_NORMAL_NFC) {
            put(w, "{\"type\": \"NFC\"}");
            continue;
        }
        put(w, n->kind == OP_NORMAL_PREPEND ? "{\"type\": \"Prepend\", \"prepend\": " : "{\"type\": \"Replace\", \"pattern\": {\"String\": ");
        if (n->kind == OP_NORMAL_REPLACE) {
            put_string(w, n->pattern, strlen(n->pattern));
            put(w, "}, \"content\": ");
        }
        put_string(w, n->content, strlen(n->content));
        put(w, "}");
    }
    put(w, t->n_normal ? "]}" : "");
}

static void put_byte_level(writer *w, bool prefix, bool use_regex)
{
    put_bool(w, "{\"type\": \"ByteLevel\", \"add_prefix_space\": ", prefix);
    put_bool(w, ", \"trim_offsets\": true, \"use_regex\": ", use_regex);
    put(w, "}");
}

/* Only what comes from GGUF is written, so a prefix is one space before byte-level text. */
static void put_pre_tokenizer(writer *w)
{
    const op_tokenizer *t = w->t;
    if (!t->byte_level) {
        put(w, "null");
        return;
    }
    bool gpt2 = t->split[t->n_split - 1] == OP_SPLIT_GPT2;
    put(w, "{\"type\": \"Sequence\", \"pretokenizers\": [");
    for (int i = 0; i < t->n_split - gpt2; i++) {
        if (t->split[i] == OP_SPLIT_DIGITS) {
            put(w, "{\"type\": \"Digits\", \"individual_digits\": true}, ");
            continue;
        }
        put(w, "{\"type\": \"Split\", \"pattern\": {\"Regex\": ");
        put_string(w, op_split_regex(t->split[i]), strlen(op_split_regex(t->split[i])));
        put(w, "}, \"behavior\": \"Isolated\", \"invert\": false}, ");
    }
    put_byte_level(w, t->n_prefix > 0, gpt2);
    put(w, "]}");
}

static void put_decoder(writer *w)
{
    if (w->t->byte_level) {
        put_byte_level(w, true, true);
        return;
    }
    put(w, "{\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Replace\", \"pattern\": {\"String\": \"" META "\"}, \"content\": \" \"}, "
           "{\"type\": \"ByteFallback\"}, {\"type\": \"Fuse\"}");
    put(w, w->t->strip_space ? ", {\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}]}" : "]}");
}

static void put_affix(writer *w, const int32_t *ids, int n, bool comma_after)
{
    for (int i = 0; i < n; i++) {
        put(w, comma_after ? "" : ", ");
        put(w, "{\"SpecialToken\": {\"id\": ");
        put_token(w, ids[i]);
        put(w, ", \"type_id\": 0}}");
        put(w, comma_after ? ", " : "");
    }
}

static void put_post_processor(writer *w)
{
    const op_tokenizer *t = w->t;
    if (!t->n_before && !t->n_after) {
        if (t->byte_level)
            put_byte_level(w, true, true);
        else
            put(w, "null");
        return;
    }
    put(w, "{\"type\": \"TemplateProcessing\"");
    for (int pair = 0; pair < 2; pair++) {
        put(w, pair ? ", \"pair\": [" : ", \"single\": [");
        put_affix(w, t->before, t->n_before, true);
        put(w, "{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}");
        put_affix(w, t->after, t->n_after, false);
        put(w, pair ? ", {\"Sequence\": {\"id\": \"B\", \"type_id\": 1}}]" : "]");
    }
    put(w, ", \"special_tokens\": {");
    for (int i = 0; i < t->n_before + t->n_after; i++) {
        int32_t id = i < t->n_before ? t->before[i] : t->after[i - t->n_before];
        put(w, i ? ", " : "");
        put_token(w, id);
        put(w, ": {\"id\": ");
        put_token(w, id);
        put(w, ", \"ids\": [");
        put_number(w, id);
        put(w, "], \"tokens\": [");
        put_token(w, id);
        put(w, "]}");
    }
    put(w, "}}");
}

static void put_model(writer *w)
{
    const op_tokenizer *t = w->t;
    put(w, "{\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": ");
    if (t->bpe.unk >= 0)
        put_token(w, t->bpe.unk);
    else
        put(w, "null");
    put(w, ",\n    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null");
    put_bool(w, ",\n    \"fuse_unk\": ", t->bpe.fuse_unk);
    put_bool(w, ",\n    \"byte_fallback\": ", t->bpe.byte_fallback);
    put_bool(w, ",\n    \"ignore_merges\": ", t->bpe.ignore_merges);
    put(w, ",\n    \"vocab\": {");
    for (int32_t i = 0; i < t->texts.n; i++) {
        put(w, i ? ",\n      " : "\n      ");
        put_token(w, i);
        put(w, ": ");
        put_number(w, i);
    }
    put(w, "\n    },\n    \"merges\": [");
    op_merge_slot *list = NULL;
    size_t n = 0;
    w->status = w->status ? w->status : op_bpe_merges(&t->bpe, &list, &n);
    for (size_t i = 0; i < n && !w->status; i++) {
        put(w, i ? ",\n      [" : "\n      [");
        put_token(w, (int32_t)(list[i].pair >> 32));
        put(w, ", ");
        put_token(w, (int32_t)list[i].pair);
        put(w, "]");
    }
    op_free(list);
    put(w, "\n    ]\n  }");
}

static void put_tokenizer(writer *w)
{
    put(w, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": [");
    put_added(w);
    put(w, "\n  ],\n  \"normalizer\": ");
    put_normalizer(w);
    put(w, ",\n  \"pre_tokenizer\": ");
    put_pre_tokenizer(w);
    put(w, ",\n  \"post_processor\": ");
    put_post_processor(w);
    put(w, ",\n  \"decoder\": ");
    put_decoder(w);
    put(w, ",\n  \"model\": ");
    put_model(w);
    put(w, "\n}\n");
}

/* "bos_token": "...", for those there are; each pair ends in a comma and a line end. */
static void put_special(writer *w)
{
    static const char *const keys[] = {"\"bos_token\": ", "\"eos_token\": ", "\"pad_token\": ", "\"unk_token\": "};
    const int32_t ids[] = {w->t->bos, w->t->eos, w->t->pad, w->t->unk};
    for (int i = 0, some = 0; i < 4; i++)
        if (ids[i] >= 0) {
            put(w, some++ ? ",\n  " : "\n  ");
            put(w, keys[i]);
            put_token(w, ids[i]);
        }
}

static void put_map(writer *w)
{
    put(w, "{");
    put_special(w);
    put(w, "\n}\n");
}

static void put_config(writer *w)
{
    put(w, "{");
    put_special(w);
    put(w, w->out.len > 1 ? ",\n  " : "\n  ");
    if (w->t->chat_template) {
        put(w, "\"chat_template\": ");
        put_string(w, w->t->chat_template, strlen(w->t->chat_template));
        put(w, ",\n  ");
    }
    put(w, "\"clean_up_tokenization_spaces\": false,\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\"\n}\n");
}

/* Writes dir/name: what `make` puts, or else bytes[n]. */
static op_status write_file(const op_tokenizer *t, const char *dir, const char *name, void (*make)(writer *), const char *bytes, size_t n,
                            op_error *e)
{
    writer w = {.t = t};
    char *path = op_path_join(dir, name);
    op_buf_init(&w.out, (size_t)1 << 30);
    if (make)
        make(&w);
    op_status s = w.status || !path ? op_error_set(e, OP_ERR_NOMEM, "%s/%s: out of memory", dir, name)
                  : make            ? op_file_put(path, w.out.data, w.out.len, e)
                                    : op_file_put(path, bytes, n, e);
    op_buf_release(&w.out);
    op_free(path);
    return s;
}

/* The tokenizer_config.json there was, with the chat template in it. */
static op_status write_own_config(const op_tokenizer *t, const char *dir, op_error *e)
{
    json_t *config = json_copy(t->config);
    char *path = op_path_join(dir, "tokenizer_config.json");
    op_status s = config && path ? OP_OK : OP_ERR_NOMEM;
    if (!s && t->chat_template && json_object_set_new(config, "chat_template", json_string(t->chat_template)))
        s = OP_ERR_NOMEM;
    s = s ? op_error_set(e, s, "%s: out of memory", dir) : op_json_write(path, config, e);
    json_decref(config);
    op_free(path);
    return s;
}

static op_status check_unique(const op_tokenizer *t, op_error *e)
{
    op_lookup index;
    op_status s = op_lookup_init(&index, t->texts.n);
    if (s)
        return op_error_set(e, s, "out of memory while writing a tokenizer");
    for (int32_t i = 0; !s && i < t->texts.n; i++) {
        size_t n;
        const char *text = op_strings_get(&t->texts, i, &n);
        int32_t other = op_lookup_find(&index, &t->texts, text, n);
        if (other >= 0)
            s = op_error_set(e, OP_ERR_UNSUPPORTED, "tokens %d and %d have the same text '%.*s': tokenizer.json cannot say that", other, i,
                             (int)(n < 64 ? n : 64), text);
        op_lookup_put(&index, &t->texts, i);
    }
    op_lookup_release(&index);
    return s;
}

op_status op_tokenizer_save(const op_tokenizer *t, const char *dir, op_error *e)
{
    op_status s = t->json ? write_file(t, dir, "tokenizer.json", NULL, t->json, t->json_n, e) : check_unique(t, e);
    if (!s && !t->json)
        s = write_file(t, dir, "tokenizer.json", put_tokenizer, NULL, 0, e);
    if (!s)
        s = t->config ? write_own_config(t, dir, e) : write_file(t, dir, "tokenizer_config.json", put_config, NULL, 0, e);
    s = s ? s : write_file(t, dir, "special_tokens_map.json", put_map, NULL, 0, e);
    if (!s && t->chat_template)
        s = write_file(t, dir, "chat_template.jinja", NULL, t->chat_template, strlen(t->chat_template), e);
    return s;
}
