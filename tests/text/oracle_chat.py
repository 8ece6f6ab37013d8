#!/usr/bin/env python3
"""Compares op_chat_encode with transformers' apply_chat_template: the same ids, for every dialogue both can render.

  oracle_chat.py TOOL MODEL_DIR...

Where a reply begins with what would merge with the header before it, operant cuts and transformers does not: such
dialogues are left out here and tested in test_chat.c.
"""
import importlib.util
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

os.environ["TOKENIZERS_PARALLELISM"] = "false"
from transformers import PreTrainedTokenizerFast

tool, dirs = sys.argv[1], sys.argv[2:]
source = (pathlib.Path(__file__).parent / "oracle_templates.py").read_text(encoding="utf-8")
space = {}
exec(re.search(r"^SYSTEM, USER.*?^\]$", source, re.S | re.M).group(0), space)
failures = 0
for d in dirs:
    t = PreTrainedTokenizerFast.from_pretrained(d)
    if not t.chat_template:
        continue
    cases = list(itertools.product(space["CHATS"], (None, space["TOOLS"]), (False, True)))
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as f:
        for messages, tools, generate in cases:
            f.write(json.dumps(dict({"messages": messages, "generate": generate}, **({"tools": tools} if tools else {}))) + "\n")
        f.flush()
        lines = subprocess.run([tool, "chat", d, f.name], capture_output=True, text=True).stdout.split("\n")
    differ = errors = ours_only = 0
    for (messages, tools, generate), line in zip(cases, lines):
        try:
            want = t.apply_chat_template(messages, tools=tools, add_generation_prompt=generate, tokenize=True, return_dict=False, date_string="26 Jul 2024")
        except Exception:
            want = None
        if line.startswith("error"):
            errors += want is None
            ours_only += want is not None
            if want is not None:
                print("  %s: %s" % ([m["role"] for m in messages], line))
            continue
        if want != [int(x.split(":")[0]) for x in line.split()]:
            differ += 1
            print("  %s differs" % [m["role"] for m in messages])
    print("%-60s %d of %d differ, %d errors here alone, %d in both" % (d, differ, len(cases), ours_only, errors), flush=True)
    failures += differ > 0
sys.exit(failures > 0)
