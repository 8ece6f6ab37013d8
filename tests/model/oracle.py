#!/usr/bin/env python3
"""Compares operant with PyTorch on a real model: logits, log-probabilities, the last layer's attention and the gradient of every parameter.

usage: oracle.py DUMP MODEL.gguf [f32|bf16]      DUMP: the program built from tests/model/dump.c
Needs torch, transformers, gguf, safetensors. PyTorch computes in double precision from the same
float weights (in f32 its own rounding reaches 4e-4 here). f32 must agree to max|a-b| <= 1e-4 max|b| for each tensor; bf16 is reported."""
import os, subprocess, sys, tempfile
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

dump, path, dtype = sys.argv[1], sys.argv[2], (sys.argv[3:] or ["f32"])[0]
torch.manual_seed(1)
if os.path.isdir(path):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
else:
    model = AutoModelForCausalLM.from_pretrained(os.path.dirname(path) or ".", gguf_file=os.path.basename(path), dtype=torch.float32,
                                                 attn_implementation="eager")
model = model.double().eval()
lengths = [50, 7, 90]
ids = torch.randint(3, model.config.vocab_size, (sum(lengths),))
weight = torch.randn(len(ids)).round(decimals=2)
with tempfile.TemporaryDirectory() as d:
    save_file({"ids": ids.int(), "lengths": torch.tensor(lengths).int(), "weight": weight}, d + "/in")
    subprocess.run([dump, path, d + "/in", d + "/out", dtype], check=True)
    ours = load_file(d + "/out")
logits, logp, attention, loss, at = [], [], [], 0, 0
for n in lengths:
    result = model(ids[None, at:at + n], output_attentions=True)
    y = result.logits[0]
    attention.append(torch.nn.functional.pad(result.attentions[-1][0].mean(0), (0, max(lengths) - n)))
    lp = torch.log_softmax(y[:-1], -1).gather(1, ids[at + 1:at + n, None])[:, 0]
    loss = loss - (weight[at + 1:at + n] * lp).sum()
    logits.append(y)
    logp.append(torch.cat([torch.zeros(1, dtype=torch.double), lp]))
    at += n
loss.backward()
theirs = {"logits": torch.cat(logits).detach(), "logp": torch.cat(logp).detach(), "attention": torch.cat(attention).detach()}
theirs |= {"grad:" + n: p.grad for n, p in model.named_parameters()}
worst = []
for name, b in theirs.items():
    a = ours[name]
    worst.append((((a - b).abs().max() / b.abs().max()).item(), ((a - b).norm() / b.norm()).item(), name))
worst.sort(reverse=True)
for most, norm, name in worst[:5]:
    print(f"max|a-b|/max|b| {most:.2e}  |a-b|/|b| {norm:.2e}  {name}")
print(f"mean |log p difference| {(ours['logp'] - theirs['logp']).abs().mean():.2e} over {len(ids)} tokens, {len(worst)} tensors")
if dtype == "f32" and not worst[0][0] <= 1e-4:
    sys.exit("f32 differs by more than 1e-4")
