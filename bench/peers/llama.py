#!/usr/bin/env python3
"""llama.cpp's side of bench/run, through llama-cpp-python's plain C calls: as peers.py, on a GGUF file.

usage: llama.py generate|prefill|first-token|versions --model FILE.gguf [--batch N] [--prompt TOKENS] [--new TOKENS] [--steps N]"""
import argparse, json, os, resource, statistics, time

import llama_cpp as c

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("work", choices=["generate", "prefill", "first-token", "versions"])
p.add_argument("--model")
for option, default in {"batch": 1, "prompt": 32, "new": 64, "steps": 3, "threads": 0}.items():
    p.add_argument(f"--{option}", type=int, default=default)
a = p.parse_args()


class Llama:
    """A context of a.batch sequences, and a sampler that draws at temperature 1, as operant and transformers do here."""

    def __init__(self):
        c.llama_backend_init()
        how = c.llama_model_default_params()
        how.n_gpu_layers = 0
        self.model = c.llama_model_load_from_file(a.model.encode(), how)
        if not self.model:
            raise SystemExit(f"{a.model}: llama.cpp cannot load it")
        context = c.llama_context_default_params()
        context.n_seq_max = a.batch
        context.n_ctx = a.batch * -(-(a.prompt + a.new + 1) // 256) * 256
        context.n_batch = max(512, a.batch * a.prompt)
        context.n_threads = context.n_threads_batch = a.threads or len(os.sched_getaffinity(0))
        self.context = c.llama_init_from_model(self.model, context)
        self.vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        self.batch = c.llama_batch_init(context.n_batch, 0, 1)
        self.sampler = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
        c.llama_sampler_chain_add(self.sampler, c.llama_sampler_init_temp(1.0))
        c.llama_sampler_chain_add(self.sampler, c.llama_sampler_init_dist(1))

    def decode(self, rows):
        """rows: (token, position, sequence, whether its logits are wanted). The drawn token of each row that wants one."""
        b = self.batch
        b.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, position, 1, wanted
            b.seq_id[i][0] = sequence
        if c.llama_decode(self.context, b):
            raise SystemExit("llama_decode failed")
        return [c.llama_sampler_sample(self.sampler, self.context, i) for i, row in enumerate(rows) if row[3]]

    def prompts(self):
        c.llama_memory_clear(c.llama_get_memory(self.context), True)
        return self.decode([((s * a.prompt + t) * 7919 % self.vocab, t, s, t == a.prompt - 1) for s in range(a.batch) for t in range(a.prompt)])


def median(work):
    return statistics.median(work() for _ in range(a.steps))


def main():
    if a.work == "versions":
        return {"llama-cpp-python": c.__version__, "llama.cpp for": c.llama_print_system_info().decode().strip()}
    llama = Llama()
    drawn = llama.prompts()
    if a.work == "first-token":
        return {"at": time.time()}

    def prompt_time():
        start = time.perf_counter()
        llama.prompts()
        return time.perf_counter() - start

    def new_time():
        tokens = llama.prompts()
        start = time.perf_counter()
        for t in range(a.new):
            tokens = llama.decode([(token, a.prompt + t, s, True) for s, token in enumerate(tokens)])
        return time.perf_counter() - start

    if a.work == "prefill":
        return {"tokens_per_s": a.prompt / median(prompt_time)}
    return {"tokens_per_s": a.batch * a.new / median(new_time)}


result = main()
print(json.dumps(result | {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
