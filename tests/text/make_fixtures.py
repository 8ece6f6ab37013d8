#!/usr/bin/env python3
"""Makes the files in fixtures/: a tiny tokenizer of every kind, what the reference makes of hard strings, and templates.

Needs PyPI `tokenizers`, `transformers` and `jinja2`. The words that the tokenizers learn from are written here; the
strings and templates are those of oracle.py and oracle_templates.py.
"""
import json
import pathlib
import random
import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

here = pathlib.Path(__file__).parent
out = here / "fixtures"
out.mkdir(exist_ok=True)

TEXT = [
    "The teacher asks why the student wants to know, and the student says why.",
    "We'll see what they've learned; it's not the words but the reason that I'd look at.",
    "In 2024 there were 365 and 1 days, 12 months, 52 weeks. Prices: 1,299.50 and 3.14159.",
    "def ask(why):\n    return why if why else 'because'\n\n\tif x == 10:\n        print(ask(x))\n",
    "HTTPServer, camelCase, snake_case, XMLHttpRequest. YOU'RE SHOUTING! don't, DON'T, can't.",
    "Der Schüler fragt, warum die Lehrerin das wissen möchte. Où est la bibliothèque? ¿Por qué?",
    "なぜ知りたいのですか。理由を教えてください。 为什么你想知道？请告诉我原因。 왜 알고 싶으세요?",
    "لماذا تريد أن تعرف؟ Зачем тебе это знать? Γιατί θέλεις να ξέρεις; למה אתה רוצה לדעת",
    "smile 🙂🙂 and wave 👋🏽 and family 👩‍👩‍👧   spaces    here\n\n\nand lines\r\n",
] * 3


def source_of(script, name):
    """The literal lists of the oracle scripts, without running them."""
    text = (here / script).read_text(encoding="utf-8")
    return re.search(r"^%s = .*?^[\]\"].*?$" % name, text, re.S | re.M).group(0)


space = {}
exec(source_of("oracle.py", "HARD"), space)
HARD = space["HARD"]
exec("import random\n" + re.search(r"^def random_string.*?\n\n\n", (here / "oracle.py").read_text(), re.S | re.M).group(0), space)

GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
TAIL = r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
LLAMA3 = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}""" + TAIL
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_level(pre, normalizer=None, size=400, **options):
    t = Tokenizer(models.BPE(**options))
    t.pre_tokenizer = pre
    if normalizer:
        t.normalizer = normalizer
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return t


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def special(t, *names):
    t.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    return t


def sentencepiece(metaspace):
    """As Llama-2's: byte tokens, then pieces; merges learned on words that begin with U+2581."""
    teacher = Tokenizer(models.BPE())
    teacher.pre_tokenizer = pre_tokenizers.Metaspace()
    teacher.train_from_iterator(TEXT[:6] * 3, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    learned = json.loads(teacher.to_str())["model"]
    names = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % b for b in range(256)]
    vocab = {n: i for i, n in enumerate(names)}
    for piece in sorted(learned["vocab"], key=learned["vocab"].get):
        vocab.setdefault(piece, len(vocab))
    t = Tokenizer(models.BPE(vocab, [tuple(m) for m in learned["merges"]], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if metaspace:
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special(t, "<unk>", "<s>", "</s>")
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return t


def without_merges(t):
    """A few words that no merges lead to, which ignore_merges finds all the same."""
    j = json.loads(t.to_str())
    for word in ("Ġzebra", "Ġqqq"):
        j["model"]["vocab"][word] = len(j["model"]["vocab"]) + len(j["added_tokens"])
    return Tokenizer.from_str(json.dumps(j))


plain = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
smollm = special(byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])),
                 "<|endoftext|>", "<|im_start|>", "<|im_end|>")
qwen2 = special(byte_level(split(QWEN2), normalizers.NFC()), "<|endoftext|>", "<|im_start|>", "<|im_end|>")
qwen2.add_tokens([AddedToken(n, normalized=False) for n in ("<think>", "</think>", "<tool_call>", "</tool_call>")])
llama3 = special(without_merges(byte_level(split(LLAMA3), ignore_merges=True)), "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
llama3.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
    single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", llama3.token_to_id("<|begin_of_text|>"))])])
odd = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), normalizers.NFC(), 300)
odd.add_tokens([AddedToken("why", single_word=True), AddedToken("<mask>", lstrip=True, normalized=False), AddedToken("[x]", rstrip=True, normalized=True),
                AddedToken("é", normalized=True), AddedToken("[x][y]", normalized=False), AddedToken("12", normalized=False)])

KINDS = {"gpt2": plain, "smollm": smollm, "qwen2": qwen2, "llama3": llama3, "tekken": special(byte_level(split(TEKKEN)), "<s>", "</s>"),
         "llama2": sentencepiece(False), "metaspace": sentencepiece(True), "added": odd}

MORE = ["why ask why, whyever", "a <mask>  b <mask>", "[x]  y [x]\n[x][y]", "é e\u0301 é12 1 2 12", " <mask>why[x] why", "<s>a</s> b", "zebra qqq a zebra"] + TEXT[:9]
r = random.Random(3)
strings = HARD + MORE + [space["random_string"](r) for _ in range(25)]

with open(out / "encodings.jsonl", "w", encoding="utf-8") as f:
    for kind, t in KINDS.items():
        j = json.loads(t.to_str())
        (out / (kind + ".json")).write_text(json.dumps(j, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
        for s in strings:
            ids = t.encode(s, add_special_tokens=False).ids
            plain_ids = None
            t.encode_special_tokens = True
            plain_ids = t.encode(s, add_special_tokens=False).ids
            t.encode_special_tokens = False
            line = {"kind": kind, "text": s, "ids": ids, "decoded": t.decode(ids, skip_special_tokens=False)}
            if plain_ids != ids:
                line["plain"] = plain_ids
            affixed = t.encode(s).ids
            if affixed != ids:
                line["affixed"] = affixed
            f.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")

# Pre-tokenizers that no family has, which run in PCRE2.
CUTS = [r"\w+|[^\w\s]+", r"\p{L}+|\p{N}|\s+", r"[aeiou]+", r"(?=[A-Z])", r"(?<=\p{Ll})(?=\p{Lu})|x*", r"^\s*|[,.]$", r"(?i:the|why)|\d{2,3}|.",
        r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+", r"\p{Han}+|\p{Hiragana}|\p{Lu}\p{M}*|\W",
        r"\h+|[\h_-]{3}", r"[\w.-]+@|\S+?(?=s)", r"a|e|"]
STEPS = [[{"Regex": c}, "Isolated", False] for c in CUTS]
STEPS += [[{"Regex": "[aeiou]+"}, "Removed", True], [{"Regex": r"\s+"}, "Removed", False], [{"String": "why"}, "Isolated", False], [{"String": "."}, "Removed", False]]
with open(out / "cuts.jsonl", "w", encoding="utf-8") as f:
    j = json.loads(plain.to_str())
    for pattern, behavior, invert in STEPS:
        step = {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}
        j["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [step, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}
        t = Tokenizer.from_str(json.dumps(j))
        for s in TEXT[1:3] + TEXT[4:5] + TEXT[6:7] + [TEXT[8], "", " x\n y,\nwhy.", "cafe\u0301_9"]:
            f.write(json.dumps({"step": step, "text": s, "ids": t.encode(s).ids}, ensure_ascii=False, separators=(",", ":")) + "\n")

from transformers.utils.chat_template_utils import _compile_jinja_template

for name in ("V", "SNIPPETS", "LAYOUT"):
    exec(source_of("oracle_templates.py", name), space)
(out / "variables.json").write_text(json.dumps(space["V"], ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
with open(out / "templates.jsonl", "w", encoding="utf-8") as f:
    for template in space["SNIPPETS"] + space["LAYOUT"]:
        try:
            want = {"want": _compile_jinja_template(template).render(**space["V"])}
        except Exception as error:
            want = {"error": type(error).__name__}
        f.write(json.dumps(dict(template=template, **want), ensure_ascii=False) + "\n")
