#!/usr/bin/env python3
"""What operant writes, in the programs it is written for: transformers, PEFT and llama.cpp must give the log-probabilities that operant gives.

usage: compare.py OPERANT MODEL.gguf DIALOGUES.jsonl     (build/operant, the real model, a few dialogues to train an adapter on)
Needs torch, transformers and peft; llama-cpp-python if it is there. Prints what was compared; what is missing is said and skipped.
Exits 77 when not even transformers is installed."""
import importlib.util, json, os, subprocess, sys, tempfile

for needed in ("torch", "transformers", "peft"):
    if importlib.util.find_spec(needed) is None:
        print(f"skip: {needed} is not installed")
        sys.exit(77)
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

operant, gguf, dialogues = map(os.path.abspath, sys.argv[1:4])
PROMPT, RESPONSE = "The capital of France is", " Paris, and the river that runs through it is called the Seine. Its 20 districts spiral outward."


def run(*words):
    done = subprocess.run([operant, *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"operant {' '.join(words)}:\n{done.stderr}")


def ours(model, folder):
    with open(f"{folder}/in.jsonl", "w") as f:
        f.write(json.dumps({"prompt": PROMPT, "response": RESPONSE}) + "\n")
    run("score", f"model={model}", f"input={folder}/in.jsonl", f"output={folder}/out.jsonl", "dtype=f32")
    with open(f"{folder}/out.jsonl") as f:
        return json.loads(f.readline())


def theirs(model, ids, n):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(ids)[1:, None])[-n:, 0].tolist()


failed = False


def compare(name, a, b, most):
    global failed
    gap = max(abs(x - y) for x, y in zip(a, b, strict=True))
    failed |= not gap <= most
    print(f"{'ok' if gap <= most else 'FAILED'}: {name}: largest difference of a log-probability {gap:.1e} over {len(a)} tokens (at most {most:g})")


with tempfile.TemporaryDirectory() as d:
    run("export", "--format", "hf", f"model={gguf}", f"output={d}/hf", "dtype=f32")
    model = AutoModelForCausalLM.from_pretrained(f"{d}/hf", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(f"{d}/hf")
    mine = ours(gguf, d)
    prompt = tokenizer(PROMPT)["input_ids"]
    ids = prompt + mine["tokens"]
    if tokenizer(RESPONSE, add_special_tokens=False)["input_ids"] != mine["tokens"]:
        sys.exit("FAILED: transformers' tokens of the response differ from operant's")
    compare("transformers, exported directory", mine["logprobs"], theirs(model, ids, len(mine["tokens"])), 1e-3)
    chat = [{"role": "user", "content": "hello there"}]
    if "<|im_start|>user\nhello there" not in tokenizer.apply_chat_template(chat, tokenize=False):
        sys.exit("FAILED: the chat template did not come along")

    with open(dialogues) as f, open(f"{d}/few.jsonl", "w") as g:
        g.writelines(line for _, line in zip(range(8), f))
    run("train", f"model={gguf}", f"train_file={d}/few.jsonl", f"output_dir={d}/lora", "method=lora", "lora.r=4", "max_steps=2", "batch_size=4",
        "learning_rate=1e-2", "eval_fraction=0", "dtype=f32")
    mine = ours(f"{d}/lora", d)
    adapted = PeftModel.from_pretrained(model, f"{d}/lora").eval()
    compare("PEFT, adapter of a LoRA run", mine["logprobs"], theirs(adapted, ids, len(mine["tokens"])), 1e-3)
    run("export", "--format", "hf", f"model={d}/lora", f"output={d}/merged", "dtype=f32")
    merged = AutoModelForCausalLM.from_pretrained(f"{d}/merged", dtype=torch.float32).eval()
    compare("transformers, adapter folded in", mine["logprobs"], theirs(merged, ids, len(mine["tokens"])), 1e-3)

    run("export", "--format", "gguf", f"model={d}/lora", f"output={d}/m.gguf", "dtype=f32")
    if importlib.util.find_spec("llama_cpp") is None:
        print("skip: llama-cpp-python is not installed; the GGUF is checked with operant's own reader only")
    else:
        from llama_cpp import Llama
        llama = Llama(model_path=f"{d}/m.gguf", logits_all=True, n_ctx=256, verbose=False)
        if llama.tokenize((PROMPT + RESPONSE).encode(), add_bos=False) != ids:
            sys.exit("FAILED: llama.cpp's tokens differ")
        llama.eval(ids)
        logp = torch.log_softmax(torch.tensor(llama.scores[:len(ids) - 1]).double(), -1).gather(1, torch.tensor(ids)[1:, None])[-len(mine["tokens"]):, 0]
        llama.close() # at exit it would fail
        compare("llama.cpp, exported GGUF", mine["logprobs"], logp.tolist(), 2e-2)
    compare("operant, exported GGUF", mine["logprobs"], ours(f"{d}/m.gguf", d)["logprobs"], 1e-3)
sys.exit(failed)
