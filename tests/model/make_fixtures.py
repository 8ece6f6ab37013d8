#!/usr/bin/env python3
"""Makes tests/model/fixtures/: a tiny random model of each family, as transformers saves it, and what PyTorch computes with it.

expected.safetensors holds: ids [T], lengths [S] (packed sequences), weight [T] (signed), logits [T, V] of each sequence by itself,
logp [T], attention [T, 23]: what each token pays to the tokens of its sequence in the last layer (mean over the heads), and for the loss
-sum_t weight_t log p_t the gradient of every parameter, under its name with the prefix "grad:".
Needs torch, transformers, safetensors. Run from the repository's root; the files are committed, so the tests need none of that."""
import json, pathlib, shutil, sys
import torch
from safetensors.torch import save_file
from transformers import (GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
                          Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

small = dict(vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, initializer_range=0.4,
             attn_implementation="eager")
models = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**small, tie_word_embeddings=True, rms_norm_eps=1e-5)),
    "llama3": lambda: LlamaForCausalLM(LlamaConfig(**small, tie_word_embeddings=False, rope_parameters=dict(
        rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=16))),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**small, sliding_window=5, head_dim=4)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**small, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**small, head_dim=8, tie_word_embeddings=False)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=16, n_layer=2, n_head=4, n_positions=64,
                                               bos_token_id=1, eos_token_id=2, initializer_range=0.4, resid_pdrop=0,
                                               embd_pdrop=0, attn_pdrop=0, attn_implementation="eager")),
}
root = pathlib.Path("tests/model/fixtures")
shutil.rmtree(root, ignore_errors=True)
for name, make in models.items():
    torch.manual_seed(7)
    model = make().float().eval()
    with torch.no_grad():  # norms and biases that are not 1 and 0
        for n, p in model.named_parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
    out = root / name
    model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    lengths = [11, 1, 23, 6]
    ids = torch.randint(0, 61, (sum(lengths),))
    weight = torch.randn(len(ids)).round(decimals=2)
    logits, logp, attention, at, loss = [], [], [], 0, 0
    for n in lengths:
        x = ids[at:at + n]
        result = model(x[None], output_attentions=True)
        y = result.logits[0]
        attention.append(torch.nn.functional.pad(result.attentions[-1][0].mean(0), (0, max(lengths) - n)))
        lp = torch.zeros(n)
        if n > 1:
            picked = torch.log_softmax(y[:-1], -1).gather(1, x[1:, None])[:, 0]
            lp = torch.cat([torch.zeros(1), picked])
            loss = loss - (weight[at + 1:at + n] * picked).sum()
        logits.append(y)
        logp.append(lp)
        at += n
    loss.backward()
    expected = {"ids": ids.int(), "lengths": torch.tensor(lengths).int(), "weight": weight,
                "logits": torch.cat(logits).detach().contiguous(), "logp": torch.cat(logp).detach().contiguous(),
                "attention": torch.cat(attention).detach().contiguous()}
    for n, p in model.named_parameters():
        expected["grad:" + n] = p.grad.contiguous()
    save_file(expected, out / "expected.safetensors")
    print(name, sum(p.numel() for p in model.parameters()), "parameters, loss", float(loss))
