#!/usr/bin/env python3
"""PyTorch on the work of `operant bench`, each in a process of its own, and the ratios.

usage: peers.py MODEL.gguf [--steps N] [--only NAME,...] [--out FILE.json]
The work: full fine-tuning with AdamW on 8 x 256 tokens (f32, and bf16 autocast), LoRA r=16 under autocast, and generation of 64 tokens from
32-token prompts, batch 1 and 32, with transformers in bf16. Rates are medians; memory is the process's peak."""
import argparse, json, os, resource, statistics, subprocess, sys, time

NAMES = ["train f32", "train bf16 autocast", "lora bf16 autocast", "generate bf16 batch 1", "generate bf16 batch 32"]


def peer(name, model_path, steps):
    import torch
    from transformers import AutoModelForCausalLM
    torch.manual_seed(1)
    dtype = torch.bfloat16 if name.startswith("generate") else torch.float32
    model = AutoModelForCausalLM.from_pretrained(os.path.dirname(model_path) or ".", gguf_file=os.path.basename(model_path), dtype=dtype)
    V = model.config.vocab_size
    if name.startswith("generate"):
        n = int(name.split()[-1])
        ids = torch.arange(n * 32).reshape(n, 32) * 7919 % V
        times = []
        model.eval()
        for _ in range(2):
            start = time.perf_counter()
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, min_new_tokens=64, do_sample=True, pad_token_id=0)
            times.append(time.perf_counter() - start)
        rate = n * 64 / min(times)
    else:
        if name.startswith("lora"):
            from peft import LoraConfig, get_peft_model
            model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
        model.train()
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, weight_decay=0)
        ids = (torch.arange(8 * 256) * 7919 % V).reshape(8, 256)
        times = []
        for _ in range(steps + 1):
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in name):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            times.append(time.perf_counter() - start)
        rate = 8 * 256 / statistics.median(times[1:])
    print(json.dumps({"tokens_per_s": rate, "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def child(command):
    out = subprocess.run(command, capture_output=True, text=True)
    if out.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{out.stderr[-2000:]}")
    return json.loads(out.stdout[out.stdout.index("{"):])


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--only", default="")
    p.add_argument("--peer")
    p.add_argument("--out")
    a = p.parse_args()
    if a.peer:
        return peer(a.peer, a.model, a.steps)
    def operant(what, dtype):
        return child(["build/operant", "bench", "--json", f"model={a.model}", f"what={what}", f"dtype={dtype}", f"steps={a.steps}"])
    rows, result = [], {}
    for name in NAMES:
        if a.only and name not in a.only.split(","):
            continue
        kind, dtype = name.split()[0], name.split()[1]
        ours = operant(kind, dtype)
        theirs = child([sys.executable, __file__, a.model, "--peer", name, "--steps", str(a.steps)])
        key = f"batch{name.split()[-1]}_tokens_per_s" if kind == "generate" else "tokens_per_s"
        mine = ours[kind]
        result[name] = {"operant": mine | {"peak": ours["peak"]}, "pytorch": theirs}
        share = f"{100 * mine['share_of_peak']:.0f}%" if "share_of_peak" in mine else ""
        memory = f"{mine['peak_rss_mb']:.0f} / {theirs['peak_rss_mb']:.0f} MB" if "peak_rss_mb" in mine else ""
        rows.append((name, f"{mine[key]:.0f}", f"{theirs['tokens_per_s']:.0f}", f"{mine[key] / theirs['tokens_per_s']:.2f}x", share, memory))
        print("done:", *rows[-1], file=sys.stderr)
    head = ("work", "operant tok/s", "PyTorch tok/s", "ratio", "share of peak", "memory")
    for row in [head, *rows]:
        print("".join(f"{cell:<24}" if i == 0 else f"{cell:>16}" for i, cell in enumerate(row)))
    if a.out:
        with open(a.out, "w") as f:
            json.dump(result, f, indent=1)


main()
