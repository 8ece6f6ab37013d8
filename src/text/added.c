/* Added tokens: the trie that finds them, and what looks like a special one. */
#include <string.h>

#include "base/mem.h"
#include "text/tokenizer_impl.h"

static op_status new_node(op_trie *t, unsigned char byte)
{
    if (t->n == t->cap) {
        size_t cap = t->cap ? 2 * t->cap : 64;
        op_trie_node *nodes = op_realloc(t->nodes, cap * sizeof *nodes);
        if (!nodes)
            return OP_ERR_NOMEM;
        t->nodes = nodes;
        t->cap = cap;
    }
    t->nodes[t->n++] = (op_trie_node){.child = -1, .sibling = -1, .added = -1, .byte = byte};
    return OP_OK;
}

op_status op_trie_add(op_trie *t, const char *content, size_t n, int32_t added)
{
    if (!n)
        return OP_OK;
    if (!t->n && new_node(t, 0))
        return OP_ERR_NOMEM;
    t->first[(unsigned char)content[0]] = true;
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char byte = (unsigned char)content[i];
        int32_t child = t->nodes[at].child;
        while (child >= 0 && t->nodes[child].byte != byte)
            child = t->nodes[child].sibling;
        if (child < 0) {
            child = (int32_t)t->n;
            if (new_node(t, byte))
                return OP_ERR_NOMEM;
            t->nodes[child].sibling = t->nodes[at].child;
            t->nodes[at].child = child;
        }
        at = (size_t)child;
    }
    t->nodes[at].added = added;
    return OP_OK;
}

void op_trie_release(op_trie *t)
{
    op_free(t->nodes);
    *t = (op_trie){0};
}

bool op_tokenizer_begins_special(const op_tokenizer *t, const char *s, size_t n)
{
    if (!n || (!t->raw.first[(unsigned char)s[0]] && !t->normalized.first[(unsigned char)s[0]]))
        return false;
    for (size_t i = 0; i < t->n_added; i++) {
        size_t length;
        const char *text = op_strings_get(&t->texts, t->added[i].id, &length);
        if (t->added[i].special && length && memcmp(s, text, length < n ? length : n) == 0)
            return true;
    }
    return false;
}
