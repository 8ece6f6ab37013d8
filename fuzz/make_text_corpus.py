#!/usr/bin/env python3
"""Makes the seeds of the tokenizer, template, dataset and trial targets. Run it in this folder."""
import json
import pathlib
import re

fixtures = pathlib.Path("../tests/text/fixtures")


def put(target, name, data):
    folder = pathlib.Path("corpus") / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


MODEL = {"type": "BPE", "unk_token": None, "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġa": 4, "<unk>": 5, "<0x41>": 6, "▁": 7, "▁a": 8}, "merges": ["a b", ["Ġ", "a"]]}
TEXT = "<|>ab a'Ll 12\n <s>é e\u0301 ▁a 日"
for kind in ("gpt2", "smollm", "qwen2", "llama3", "tekken", "llama2", "metaspace", "added"):
    j = json.loads((fixtures / (kind + ".json")).read_text(encoding="utf-8"))
    sp = kind in ("llama2", "metaspace")
    vocab = {"<unk>": 0, "a": 1, "▁": 2, "▁a": 3, "<0x41>": 4} if sp else {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġa": 4}
    j["model"]["vocab"] = vocab
    j["model"]["merges"] = [["▁", "a"]] if sp else ["a b", "Ġ a"]
    j["added_tokens"] = [dict(a, id=9 + i) for i, a in enumerate(j["added_tokens"][:3])]
    for p in [j["post_processor"] or {}] + (j["post_processor"] or {}).get("processors", []):
        for token in p.get("special_tokens", {}).values():
            token["ids"] = [9]
    put("tokenizer", kind, json.dumps(j, ensure_ascii=False, separators=(",", ":")) + TEXT)

for i, line in enumerate((fixtures / "templates.jsonl").read_text(encoding="utf-8").split("\n")):
    if line and i % 3 == 0:
        put("template", "t%02d" % i, json.loads(line)["template"])
put("template", "vars", "{% for m in messages %}{{ m }}{% endfor %}\0" + '{"messages":[1,"a",{"b":null}]}')

test = pathlib.Path("../tests/text/test_dataset.c").read_text(encoding="utf-8")
for i, words in enumerate(re.findall(r'assert_(?:example|refused)\(((?:\s*"(?:[^"\\]|\\.)*")+)', test)):
    parts = re.findall(r'"((?:[^"\\]|\\.)*)"', words)
    put("dataset", "d%02d" % i, "".join(parts).replace('\\"', '"').replace("\\\\", "\\").replace("\\xc3\\xa9", "é") + "\n")

steps = [{"completions": [{"text": "a", "rating": 1}, {"text": "b", "rating": -1}], "chosen_completion": 0}, {"completions": [], "human_completion": {"text": "ab"}}]
label = {"type": "labels", "value": {"start": 1, "end": 2, "text": "b", "labels": ["bad"]}}
TRIALS = [
    {"id": 2, "prompt": "a", "response": "aé", "prompt_tokens": [0], "tokens": [0, 6, 7], "logprobs": [-1, None, -0.5], "sampler": {"temperature": 1, "seed": "9999999999999999999"},
     "forced": 2, "marks": [{"start": 1, "end": 2, "value": -1, "by": "x", "note": "n", "tokens": [2, 3]}], "reward": 0.1, "tags": {"a": 1, "b": True},
     "alternatives": [{"at_token": 1, "ids": [1, 2], "logprob": -1, "picked": True, "by": "model"}], "redo": {"of": 1, "at": 1}, "finish_reason": "length", "by": "y", "time": 5},
    {"messages": [{"role": "user", "content": "a"}], "response": "ab", "marks": [{"start": 0, "end": 1, "value": 1}], "alternatives": [{"at_token": 0, "text": "b"}], "topic": "t"},
    {"prompt": "a", "chosen": "ab", "rejected": "b"},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: ab"},
    {"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "q"}]},
    {"prompt": "a", "completion": "b", "label": True},
    {"prompt": "a", "completions": ["a", "b"], "labels": [True, False]},
    {"question": "a", "answer_matching_behavior": "a", "answer_not_matching_behavior": ["b", "q"]},
    {"question": "a", "passages": [["a", "a\n\nb", "b"]], "prediction 1": "ab", "prediction 2": "b", "preference": [1],
     "feedback": {"errors": [{"start": 1, "end": 2, "error type": "a"}], "corrected-prediction": "aa"}},
    {"question": {"problem": "a", "ground_truth_answer": "b"}, "label": {"steps": steps, "finish_reason": "solution"}, "labeler": "l", "timestamp": "2022-07-17T16:56:51.5"},
    {"data": {"prompt": "a", "response": "ab"}, "annotations": [{"completed_by": 1, "result": [label]}]},
]
for i, line in enumerate(TRIALS):
    put("trial", "t%02d" % i, json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
