#!/usr/bin/env python3
"""operant merge beside mergekit 0.1.5: the same YAML, the same tensors?

usage: compare_mergekit.py OPERANT [--only WORD,WORD] [--dir DIR]      differences of every method over several settings and types; exit 1 if a bar is missed
       compare_mergekit.py OPERANT --time [--runs N] [--dir DIR]  time and memory of task_arithmetic and ties at the size of SmolLM2-135M in float32

Runs in a Python that has mergekit 0.1.5. The models are random: a base and three that differ from it by little. What must hold: `bitwise`: no element differs;
`step`: none by more than one step of bfloat16 (`sorted`: the same, of methods
that sort or select; torch's sorts leave equal elements in any order, so mergekit is given stable ones, which take the first of equals as operant does); `iterated`: `step`, but for one element in a hundred; `tokens`: the same for every word, and
no more than the padding differs; `chance`: the share of elements that keep the base's value, and the mean and size of what was added, agree."""
import argparse, json, logging, os, pathlib, shutil, subprocess, sys, tempfile, time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch, yaml
from safetensors.torch import load_file, save_file

SMALL = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, vocab_size=160)
SMOL = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=49152)


def shapes(c):
    h, f, kv = c["hidden_size"], c["intermediate_size"], c["hidden_size"] // c["num_attention_heads"] * c["num_key_value_heads"]
    out = {"model.embed_tokens.weight": (c["vocab_size"], h), "model.norm.weight": (h,)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        out |= {p + "input_layernorm.weight": (h,), p + "post_attention_layernorm.weight": (h,), p + "self_attn.q_proj.weight": (h, h),
                p + "self_attn.k_proj.weight": (kv, h), p + "self_attn.v_proj.weight": (kv, h), p + "self_attn.o_proj.weight": (h, h),
                p + "mlp.gate_proj.weight": (f, h), p + "mlp.up_proj.weight": (f, h), p + "mlp.down_proj.weight": (h, f)}
    return out


def write_model(path, c, seed, base, dtype, spread=0.003, vocabulary=None, head=False):
    """A base (base None), or the base with noise on it. vocabulary: words for a tokenizer.json of whole words."""
    path.mkdir(parents=True)
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    wanted = shapes(c) | ({"lm_head.weight": (c["vocab_size"], c["hidden_size"])} if head else {})
    for name, shape in wanted.items():
        x = torch.randn(shape, generator=g)
        if base is None or name not in base or base[name].shape != x.shape:
            x = 1 + 0.1 * x if "norm" in name else 0.05 * x
        else:
            x = base[name].float() + spread * x
        tensors[name] = x.to(dtype).contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=10000.0,
                  tie_word_embeddings=not head, bos_token_id=1, eos_token_id=2, torch_dtype=str(dtype)[6:], **c)
    (path / "config.json").write_text(json.dumps(config))
    if vocabulary:
        words = {w: i for i, w in enumerate(vocabulary)}
        tokenizer = dict(version="1.0", truncation=None, padding=None, added_tokens=[], normalizer=None, pre_tokenizer={"type": "Whitespace"}, post_processor=None,
                         decoder=None, model={"type": "WordLevel", "vocab": words, "unk_token": vocabulary[0]})
        (path / "tokenizer.json").write_text(json.dumps(tokenizer))
        (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": vocabulary[0]}))
    return tensors


def models_yaml(method, count=2, base=True, each=None, shared=None, **more):
    """A merge of m1 .. m<count>; `each`: parameters of every model as a list of dicts."""
    each = each or [{}] * count
    y = dict(merge_method=method, models=[dict(model=f"m{i + 1}", **({"parameters": each[i]} if each[i] else {})) for i in range(count)], **more)
    if base:
        y["base_model"] = "base"
    if shared:
        y["parameters"] = shared
    return y


def cases():
    """(name, what must hold, YAML)"""
    w2, w3 = [{"weight": 0.7}, {"weight": 0.45}], [{"weight": 0.5}, {"weight": -0.3}, {"weight": 0.9}]
    gradient = [{"weight": [0, 0.25, 1]}, {"weight": [{"filter": "mlp", "value": [1, 0.5]}, {"filter": "self_attn", "value": 0.3}, {"value": 0.6}]}]
    out = []

    def add(name, bar, y):
        out.append((name, bar, y))

    def dense(w, d, **more):
        return [dict(x, density=d, **more) for x in w]

    add("linear", "bitwise", models_yaml("linear", base=False, each=w2))
    add("linear of 3, not normalized", "bitwise", models_yaml("linear", 3, base=False, each=w3, shared={"normalize": False}))
    add("linear with gradients and filters", "bitwise", models_yaml("linear", base=False, each=gradient))
    for t in (0.3, [0, 0.5, 1]):
        add(f"slerp t={t}", "step", models_yaml("slerp", 1, shared={"t": t}))
    add("slerp far apart", "step", dict(merge_method="slerp", base_model="base", models=[dict(model="far")], parameters={"t": 0.4}))
    for far in (0, 1):
        for shared in ({}, {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}):
            y = models_yaml("nuslerp", base=False, each=w2, shared=shared)
            if far:
                y["models"][1]["model"] = "far"
            add(f"nuslerp{' far' * far} {shared}", "step", y)
        add(f"nuslerp with base{' far' * far}", "step", models_yaml("nuslerp", each=w2))
    add("multislerp", "step", models_yaml("multislerp", 3, base=False, each=[{"weight": 0.5}, {"weight": 0.3}, {"weight": 0.9}]))
    add("multislerp with base", "step", models_yaml("multislerp", 3, each=w3))
    add("multislerp not normalized", "step", models_yaml("multislerp", 2, each=w2, shared={"normalize_weights": False}))
    add("karcher", "iterated", models_yaml("karcher", 3, base=False))
    add("karcher far", "iterated", dict(merge_method="karcher", models=[dict(model=m) for m in ("m1", "m2", "far")], parameters={"max_iter": 20, "tol": 1e-6}))
    add("task_arithmetic", "bitwise", models_yaml("task_arithmetic", each=w2))
    add("task_arithmetic of 3, negative, lambda", "bitwise", models_yaml("task_arithmetic", 3, each=w3, shared={"lambda": 1.3, "normalize": False}))
    add("task_arithmetic normalized", "bitwise", models_yaml("task_arithmetic", 3, each=w3, shared={"normalize": True}))
    add("task_arithmetic with gradients and filters", "bitwise", models_yaml("task_arithmetic", each=gradient, shared={"lambda": [{"filter": "mlp", "value": 0.5}, {"value": 1}]}))
    for d in (0.5, 0.13, 0.001):
        add(f"ties density {d}", "sorted", models_yaml("ties", each=dense(w2, d)))
    add("ties of 3, negative, int8_mask", "sorted", models_yaml("ties", 3, each=dense(w3, 0.4), shared={"int8_mask": True, "normalize": False, "lambda": 0.8}))
    add("ties rescaled", "sorted", models_yaml("ties", 3, each=dense(w3, 0.4), shared={"rescale": True}))
    add("ties dense", "bitwise", models_yaml("ties", 3, each=w3))
    for m in ("breadcrumbs", "breadcrumbs_ties"):
        add(m, "sorted", models_yaml(m, 3, each=dense(w3, 0.6, gamma=0.05)))
        add(f"{m} gamma larger than the rest", "sorted", models_yaml(m, 2, each=dense(w2, 0.9, gamma=0.4)))
        add(f"{m} rescaled", "sorted", models_yaml(m, 2, each=dense(w2, 0.7), shared={"rescale": True, "normalize": True}))
    for m in ("dare_linear", "dare_ties"):
        add(m, "chance", models_yaml(m, 2, each=dense(w2, 0.4)))
        add(f"{m} not rescaled", "chance", models_yaml(m, 2, each=dense(w2, 0.6), shared={"rescale": False}))
        add(f"{m} dense", "bitwise", models_yaml(m, 2, each=w2))
    for m in ("della", "della_linear"):
        add(m, "chance", models_yaml(m, 2, each=dense(w2, 0.5, epsilon=0.2)))
        add(f"{m} sparse", "chance", models_yaml(m, 2, each=dense(w2, 0.2, epsilon=0.1), shared={"rescale": False}))
        add(f"{m} dense", "bitwise", models_yaml(m, 2, each=w2))
    add("sce", "step", models_yaml("sce", 3))
    add("sce of the most varying", "sorted", models_yaml("sce", 3, shared={"select_topk": 0.3}))
    add("sce far", "sorted", dict(merge_method="sce", base_model="base", models=[dict(model=m) for m in ("m1", "far", "m3")], parameters={"select_topk": 0.6}))
    add("model_stock", "step", models_yaml("model_stock", 3))
    add("model_stock by row", "step", models_yaml("model_stock", 2, shared={"filter_wise": True}))
    for t in (0.001, 0.01):
        add(f"nearswap t={t}", "bitwise", models_yaml("nearswap", 1, shared={"t": t}))
    add("arcee_fusion", "fusion", models_yaml("arcee_fusion", 1))
    add("arcee_fusion far", "fusion", dict(merge_method="arcee_fusion", base_model="base", models=[dict(model="far")]))
    add("ram", "bitwise", models_yaml("ram", 3, shared={"epsilon": 0.003}))
    add("ram by default", "bitwise", models_yaml("ram", 2))
    add("ramplus_tl", "bitwise", models_yaml("ramplus_tl", 3, shared={"epsilon": 0.003, "r": 0.2, "alpha": 0.9}))
    add("passthrough of slices", "bitwise", dict(merge_method="passthrough", slices=[dict(sources=[dict(model="m1", layer_range=[0, 3])]),
                                                                                     dict(sources=[dict(model="m2", layer_range=[1, 4])])]))
    add("passthrough scaled", "bitwise", dict(merge_method="passthrough", slices=[dict(sources=[dict(
        model="m1", layer_range=[0, 4], parameters={"scale": [{"filter": "o_proj", "value": 0.0}, {"filter": "down_proj", "value": 0.5}, {"value": 1.0}]})])]))
    add("slices of slerp", "step", dict(merge_method="slerp", base_model="base", slices=[dict(sources=[dict(model="base", layer_range=[0, 4]), dict(model="m2", layer_range=[0, 4])])],
                                        parameters={"t": [{"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}, {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]}, {"value": 0.5}]}))
    add("slices of task_arithmetic", "bitwise", dict(
        merge_method="task_arithmetic", base_model="base", parameters={"lambda": 0.9},
        slices=[dict(sources=[dict(model="base", layer_range=[0, 2]), dict(model="m1", layer_range=[1, 3], parameters={"weight": [0.1, 0.9]})], parameters={"normalize": True}),
                dict(sources=[dict(model="base", layer_range=[3, 4]), dict(model="m2", layer_range=[3, 4], parameters={"weight": 0.5})])]))
    add("module of models", "bitwise", dict(merge_method="task_arithmetic", base_model="base",
                                            modules={"default": dict(models=[dict(model="m1", parameters={"weight": 0.4})], parameters={"lambda": 0.5})}))
    for dtype in ("float32", "bfloat16", "float16"):
        add(f"task_arithmetic in {dtype}", "bitwise", models_yaml("task_arithmetic", each=w2, dtype=dtype))
    add("task_arithmetic, out_dtype bfloat16", "bitwise", models_yaml("task_arithmetic", each=w2, dtype="float32", out_dtype="bfloat16"))
    add("task_arithmetic, out_dtype float16", "bitwise", models_yaml("task_arithmetic", each=w2, out_dtype="float16"))
    add("an own output layer", "bitwise", dict(merge_method="linear", models=[dict(model=m, parameters={"weight": 1}) for m in ("m1", "head")]))
    for source in ("base", "union", "words"):
        add(f"tokenizer_source {source}", "tokens", dict(merge_method="linear", base_model="base", tokenizer_source=source,
                                                         models=[dict(model=m, parameters={"weight": x}) for m, x in (("base", 0.5), ("m1", 0.3), ("words", 0.7))]))
    add("tokenizer with tokens", "tokens", dict(
        merge_method="linear", models=[dict(model=m, parameters={"weight": x}) for m, x in (("m1", 0.3), ("words", 0.7))], base_model="m1",
        tokenizer=dict(source="union", pad_to_multiple_of=32, tokens={
            "<new>": dict(source=dict(kind="model_token", model="m1", token="w7")), "w9": dict(source="words", force=True), "v3": dict(source=dict(kind="zero"))})))
    out[-1][2]["models"][0]["parameters"] = {"weight": 0.3}
    return out


def absolute(y, root):
    """Model names become paths."""
    names = {"base", "m1", "m2", "m3", "far", "head", "words"}
    if isinstance(y, dict):
        return {k: str(root / v) if k in ("model", "base_model", "tokenizer_source", "source") and isinstance(v, str) and v in names and not (k in ("tokenizer_source", "source") and v == "base")
                else absolute(v, root) for k, v in y.items()}
    return [absolute(v, root) for v in y] if isinstance(y, list) else y


def steps(a, b):
    """The largest difference in steps of bfloat16, at the larger number. Where terms cancelled to less than a thousandth of the tensor's size, the noise of float32 is
    all there is, so numbers count as at least that large."""
    least = max(float(b.square().mean().sqrt()) * 2.0 ** -10, 2.0 ** -126) if b.numel() else 1
    size = torch.maximum(a.abs(), b.abs()).clamp(min=least)
    return float(((a - b).abs() / torch.exp2(torch.floor(torch.log2(size)) - 7)).max()) if a.numel() else 0.0


def token_rows(path, tensors):
    """Embeddings by word, as the order of new words is anybody's."""
    words = json.loads((path / "tokenizer.json").read_text())
    ids = dict(words["model"]["vocab"]) | {t["content"]: t["id"] for t in words["added_tokens"]}
    out = dict(tensors)
    for name in list(out):
        if "embed_tokens" in name or "lm_head" in name:
            x = out.pop(name)
            for word, i in ids.items():
                out[f"{name}[{word}]"] = x[i]
            for i in range(len(ids), len(x)):
                out[f"{name}[{i}]"] = x[i]
    return out


def check(bar, ours, theirs, base):
    """(fine, a line of figures)"""
    if ours.keys() != theirs.keys():
        return False, f"names differ: {sorted(ours.keys() ^ theirs.keys())[:4]}"
    total = differ = 0
    worst, most, kept = 0.0, 0.0, [0, 0]
    moments = [[0.0, 0.0], [0.0, 0.0]]
    for name in ours:
        a, b = ours[name], theirs[name]
        if a.dtype != b.dtype or a.shape != b.shape:
            return False, f"{name}: {a.dtype} {tuple(a.shape)}, theirs {b.dtype} {tuple(b.shape)}"
        differ += int((a != b).sum())
        total += a.numel()
        a, b = a.double(), b.double()
        most = max(most, float((a - b).abs().max()))
        worst = max(worst, steps(a, b))
        if bar == "chance" and name in base:
            for i, x in enumerate((a, b)):
                d = x - base[name].double()
                kept[i] += int((d == 0).sum())
                moments[i][0] += float(d.abs().sum())
                moments[i][1] += float(d.square().sum())
    text = f"{differ:>7} of {total} differ, by at most {most:.2g} = {worst:.2g} steps"
    if bar == "bitwise":
        return differ == 0, text
    if bar == "tokens":  # padding is a mean of rows
        return worst <= 1 and differ <= 0.01 * total, text
    if bar in ("step", "sorted"):
        return worst <= 1, text
    if bar == "iterated":  # in half precision every turn rounds, and a sum's last bit can decide which way
        return worst <= 1 or differ <= 0.01 * total, text
    if bar == "fusion":  # what is small noise in a divergence decides about elements at the threshold
        return differ <= total * 0.02, text
    share = [k / total for k in kept]
    ratio = [moments[0][i] / moments[1][i] for i in range(2)]
    return abs(share[0] - share[1]) < 0.01 and all(abs(r - 1) < 0.03 for r in ratio), f"untouched {share[0]:.4f}, theirs {share[1]:.4f}; |d| x{ratio[0]:.4f}, d^2 x{ratio[1]:.4f}"


def stable_sorts():
    sort, argsort = torch.sort, torch.argsort
    torch.sort = lambda x, dim=-1, descending=False: sort(x, dim=dim, descending=descending, stable=True)
    torch.argsort = lambda x, dim=-1, descending=False: argsort(x, dim=dim, descending=descending, stable=True)
    torch.topk = lambda x, k, largest=True: tuple(part[:k] for part in sort(x, descending=largest, stable=True))


def compare(operant, root, only):
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    logging.disable(logging.WARNING)
    stable_sorts()
    bad = ran = 0
    for label, types in {"float32": [torch.float32] * 3, "bfloat16": [torch.bfloat16] * 3, "float16": [torch.float16] * 3,
                         "mixed": [torch.bfloat16, torch.float32, torch.float16]}.items():
        here = root / label
        words = [f"w{i}" for i in range(SMALL["vocab_size"])]
        base = write_model(here / "base", SMALL, 1, None, types[0], vocabulary=words)
        write_model(here / "m1", SMALL, 2, base, types[1], vocabulary=words)
        write_model(here / "m2", SMALL, 3, base, types[2], vocabulary=words)
        write_model(here / "m3", SMALL, 4, base, types[0], spread=0.004, vocabulary=words)
        write_model(here / "far", SMALL, 5, None, types[1], vocabulary=words)
        write_model(here / "head", SMALL, 6, base, types[0], vocabulary=words, head=True)
        write_model(here / "words", SMALL | {"vocab_size": 150}, 7, base, types[2], vocabulary=[f"w{i}" for i in range(100)] + [f"v{i}" for i in range(50)])
        for name, bar, y in cases():
            if only and not any(word in f"{label}: {name}" for word in only.split(",")):
                continue
            y = absolute(y, here)
            config, ours, theirs = here / "merge.yaml", here / "ours", here / "theirs"
            config.write_text(yaml.safe_dump(y, sort_keys=False))
            for path in (ours, theirs):
                shutil.rmtree(path, ignore_errors=True)
            torch.manual_seed(0)
            error = ""
            try:
                run_merge(MergeConfiguration.model_validate(yaml.safe_load(config.read_text())), str(theirs), MergeOptions(quiet=True, copy_tokenizer=False))
            except Exception as e:
                error = f"{type(e).__name__}: {e}"
            done = subprocess.run([operant, "merge", config, ours], capture_output=True, text=True)
            ran += 1
            if error or done.returncode:
                fine, text = bool(error) and done.returncode != 0, f"operant: {done.stderr.strip()[:150] or 'done'}; mergekit: {error[:150] or 'done'}"
            else:
                a, b = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
                if bar == "tokens":
                    a, b = token_rows(ours, a), token_rows(theirs, b)
                fine, text = check(bar, a, b, base)
            bad += not fine
            print(f"{'ok  ' if fine else 'BAD '} {label:9} {bar:8} {name:45} {text}", flush=True)
    print(f"{ran} merges compared, {bad} outside their bar")
    return bad


# A process begins with the peak of the one that it was made from, so a small one makes it.
LAUNCH = """
import os, sys, time
start = time.time()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, u = os.wait4(pid, 0)
print("MEASURED", time.time() - start, u.ru_utime, u.ru_stime, u.ru_maxrss / 1024, status, file=sys.stderr)
"""


def measured(command):
    """(seconds, user and system seconds, peak MB, what it said)"""
    done = subprocess.run([sys.executable, "-S", "-c", LAUNCH, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    *figures, status = next(line.split()[1:] for line in done.stderr.splitlines() if line.startswith("MEASURED"))
    if status != "0":
        sys.exit(f"{command}: {done.stderr[-2000:]}")
    return *map(float, figures), done.stderr


ALONE = """
import sys, time, yaml, torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
import resource
a, t = resource.getrusage(resource.RUSAGE_SELF), time.time()
run_merge(MergeConfiguration.model_validate(yaml.safe_load(open(sys.argv[1]))), sys.argv[2], MergeOptions(quiet=True, copy_tokenizer=False))
b = resource.getrusage(resource.RUSAGE_SELF)
print("ALONE", time.time() - t, b.ru_utime - a.ru_utime, b.ru_stime - a.ru_stime, file=sys.stderr)
"""


def timing(operant, root, runs):
    base = None
    for i, name in enumerate(("base", "m1", "m2")):
        made = write_model(root / name, SMOL, i + 1, base, torch.float32)
        base = base or made
    del base
    (root / "alone.py").write_text(ALONE)
    rows = {}
    for method, more in (("task_arithmetic", {}), ("ties", {"density": 0.5})):
        y = absolute(models_yaml(method, each=[{"weight": 0.6, **more}, {"weight": 0.4, **more}]), root)
        config = root / f"{method}.yaml"
        config.write_text(yaml.safe_dump(y, sort_keys=False))
        for run in range(runs):
            for who, command in (("operant", [operant, "merge", config, root / "out"]), ("mergekit", [sys.executable, root / "alone.py", config, root / "out"])):
                shutil.rmtree(root / "out", ignore_errors=True)
                wall, user, system, memory, text = measured([str(c) for c in command])
                rows.setdefault((method, who), []).append((wall, user, system, memory))
                print(f"{method:16} {who:9} {wall:7.2f} s, user {user:6.2f}, system {system:5.2f}, peak {memory:6.0f} MB", flush=True)
                for line in text.splitlines():
                    if line.startswith("ALONE"):
                        rows.setdefault((method, "no imports"), []).append((*map(float, line.split()[1:]), memory))
                        print(f"{method:16} {'no imports':9} {float(line.split()[1]):7.2f} s, user {float(line.split()[2]):6.2f}, system {float(line.split()[3]):5.2f}")
    for method in ("task_arithmetic", "ties"):
        best = {who: [min(r[k] for r in rows[method, who]) for k in range(4)] for who in ("operant", "mergekit", "no imports")}
        cpu = {who: b[1] + b[2] for who, b in best.items()}
        print(f"{method}: {best['mergekit'][0] / best['operant'][0]:.1f} x the speed with imports, {best['no imports'][0] / best['operant'][0]:.1f} x without; processor time "
              f"{cpu['mergekit'] / cpu['operant']:.1f} x and {cpu['no imports'] / cpu['operant']:.1f} x; memory 1/{best['mergekit'][3] / best['operant'][3]:.1f}")
    return 0


def main():
    a = argparse.ArgumentParser()
    a.add_argument("operant")
    a.add_argument("--only", default="")
    a.add_argument("--dir")
    a.add_argument("--time", action="store_true")
    a.add_argument("--runs", type=int, default=3)
    o = a.parse_args()
    root = pathlib.Path(tempfile.mkdtemp(dir=o.dir))
    try:
        return timing(o.operant, root, o.runs) if o.time else bool(compare(o.operant, root, o.only))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    sys.exit(main())
