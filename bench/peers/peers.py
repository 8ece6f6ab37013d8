#!/usr/bin/env python3
"""The peers' side of bench/run: the same work as `operant bench`, in PyTorch, transformers, PEFT, TRL and tokenizers. One measurement a process; the last line
of stdout is a JSON object. Rates are medians of --steps repetitions after one that does not count; peak_rss_mb is the process's.

usage: peers.py WORK --model DIRECTORY [options]      (the model in Hugging Face's layout)
  train      a step of AdamW on --batch x --length tokens; --dtype f32, autocast (f32 weights, bf16 products) or bf16 (everything); --compile; --lora RANK
  generate   --new tokens after prompts of --prompt, --batch at once, sampled at temperature 1; reading the prompts is taken off
  prefill    reading one prompt of --prompt tokens
  update     TRL's GRPOTrainer: --batch prompts x --answers answers of --new tokens, a rule as the reward, one step of learning
  tokenize   the lines of --file on one core
  first-step, first-token   the moment ("at", seconds since 1970) at which the first training step was done or the first token was there
  organism   writes a Llama of a million random weights into --model
  versions   what is installed"""
import argparse, json, resource, statistics, time


def clocked(work, steps, warm=1):
    times = []
    for _ in range(steps + warm):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[warm:])


def load(a, dtype=None):
    import torch
    from transformers import AutoModelForCausalLM
    torch.manual_seed(1)
    if a.threads:
        torch.set_num_threads(a.threads)
    return AutoModelForCausalLM.from_pretrained(a.model, dtype=dtype or (torch.bfloat16 if a.dtype == "bf16" else torch.float32))


def made_up(rows, length, vocab):
    import torch
    return (torch.arange(rows * length) * 7919 % vocab).reshape(rows, length)


def trainer(a):
    """A function that does one step."""
    import torch
    model = load(a)
    if a.lora:
        from peft import LoraConfig, get_peft_model
        model = get_peft_model(model, LoraConfig(r=a.lora, lora_alpha=2 * a.lora, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.train()
    forward = torch.compile(model) if a.compile else model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0)
    ids = made_up(a.batch, a.length, model.config.vocab_size)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=a.dtype == "autocast"):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def train(a):
    seconds = clocked(trainer(a), a.steps, 2 if a.compile else 1)  # the first optimiser step of a compiled model compiles too
    return {"tokens_per_s": a.batch * a.length / seconds}


def generator(a):
    import torch
    model = load(a, torch.bfloat16).eval()
    ids = made_up(a.batch, a.prompt, model.config.vocab_size)
    return lambda n: model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n, do_sample=True, top_k=0, pad_token_id=0)


def generate(a):
    run = generator(a)
    start = clocked(lambda: run(1), a.steps)
    whole = clocked(lambda: run(1 + a.new), a.steps, 0)
    return {"tokens_per_s": a.batch * a.new / (whole - start)}


def prefill(a):
    import torch
    model = load(a, torch.bfloat16).eval()
    ids = made_up(1, a.prompt, model.config.vocab_size)
    with torch.inference_mode():
        seconds = clocked(lambda: model(ids, use_cache=True, logits_to_keep=1), a.steps)
    return {"tokens_per_s": a.prompt / seconds}


def update(a):
    import tempfile
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    model = load(a)
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompts = [tokenizer.decode(row) for row in made_up(a.batch, a.prompt, model.config.vocab_size)]
    times = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            times.append(time.perf_counter() - self.start)

    def even(completion_ids, **_):
        return [sum(t % 2 == 0 for t in ids) / len(ids) for ids in completion_ids]

    every = a.batch * a.answers
    micro = min(16, every)
    with tempfile.TemporaryDirectory() as folder:
        how = GRPOConfig(output_dir=folder, use_cpu=True, bf16=a.dtype == "autocast", per_device_train_batch_size=micro, gradient_accumulation_steps=every // micro,
                         num_generations=a.answers, max_completion_length=a.new, generation_kwargs={"min_new_tokens": a.new}, max_steps=a.steps + 1,
                         learning_rate=1e-6, gradient_checkpointing=False, report_to=[], save_strategy="no", logging_steps=1000, beta=0.0, seed=1)
        GRPOTrainer(model=model, reward_funcs=even, args=how, train_dataset=Dataset.from_dict({"prompt": prompts * (a.steps + 1)}),
                    processing_class=tokenizer, callbacks=[Clock()]).train()
    seconds = statistics.median(times[1:])
    return {"seconds": seconds, "tokens_per_s": every * a.new / seconds}


def tokenize(a):
    import os
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(f"{a.model}/tokenizer.json")
    with open(a.file, encoding="utf-8", newline="\n") as f:
        lines = list(f)
    count = 0

    def run():
        nonlocal count
        count = sum(len(tokenizer.encode(line, add_special_tokens=False).ids) for line in lines)

    seconds = clocked(run, a.steps)
    return {"tokens_per_s": count / seconds, "tokens": count}


def first_step(a):
    trainer(a)()
    return {"at": time.time()}


def first_token(a):
    from transformers import AutoTokenizer
    run, tokenizer = generator(a), AutoTokenizer.from_pretrained(a.model)
    tokenizer.decode(run(1)[0])
    return {"at": time.time()}


def organism(a):
    """The shape of `operant chamber train size=1m`, near enough: what counts is that both sides open the same files."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=512, hidden_size=128, intermediate_size=352, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=4,
                                         max_position_embeddings=512, tie_word_embeddings=True))
    model.save_pretrained(a.model)
    return {"parameters": sum(p.numel() for p in model.parameters())}


def versions(_):
    import importlib.metadata
    found = {}
    for name in ("torch", "transformers", "peft", "trl", "tokenizers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


WORKS = {f.__name__.replace("_", "-"): f for f in (train, generate, prefill, update, tokenize, first_step, first_token, organism, versions)}
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("work", choices=WORKS)
p.add_argument("--model")
p.add_argument("--file")
p.add_argument("--dtype", choices=["f32", "autocast", "bf16"], default="autocast")
p.add_argument("--compile", action="store_true")
for option, default in {"lora": 0, "batch": 8, "length": 256, "prompt": 32, "new": 64, "answers": 8, "steps": 3, "threads": 0}.items():
    p.add_argument(f"--{option}", type=int, default=default)
a = p.parse_args()
result = WORKS[a.work](a)
print(json.dumps(result | {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
