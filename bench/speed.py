#!/usr/bin/env python3
"""Measures operant beside its peers, row by row, and writes what it found (called by bench/run, explained in docs/speed.md).

Each row is one kind of work; its sides run in turn, --repeats times, each in a process of its own. A side that is missing or fails is a printed
reason. Results are merged into --out, so that rows can be measured one by one; --tables only writes the tables of docs/speed.md anew."""
import argparse, datetime, glob, json, os, pathlib, re, statistics, subprocess, sys, tempfile, threading, time

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
DOCS = ROOT / "docs" / "speed.md"


class Failed(Exception):
    pass


def as_anywhere(a, command):
    """The command as it would be written on another machine: no path of this one."""
    words = " ".join(command).replace(f"{ROOT}/", "")
    for path, name in ((a.peers, "python"), (a.llama, "python"), (a.data, "DATA"), (a.scratch, "SCRATCH")):
        words = words.replace(str(path), name) if path and os.path.isabs(str(path)) else words
    return words


# ---- sides: something that gives {"value", "peak_rss_mb", ...} when it is run ----

def process(command, timeout, environment={}):
    """Runs it; its result is the JSON object that stdout is, or that its last line is."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=os.environ | environment)
    except subprocess.TimeoutExpired:
        raise Failed(f"took more than {timeout} s")
    except OSError as e:
        raise Failed(str(e))
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or [""]
        raise Failed(f"exit status {done.returncode}: {lines[-1].strip()[:200]}")
    for text in (done.stdout, done.stdout.strip().rpartition("\n")[2]):
        try:
            return json.loads(text)
        except ValueError:
            pass
    raise Failed(f"no result in {done.stdout[-100:]!r}")


def bench(a, what, *settings, key="tokens_per_s"):
    """`operant bench`."""
    command = [a.operant, "bench", "--json", f"model={a.model}", f"what={what}", f"steps={a.steps}", f"peak_seconds={0.2 if a.quick else 1}", *settings]

    def run():
        found = process(command, a.timeout)
        part, first = found[what], key.removesuffix("tokens_per_s")  # generation has its numbers as batch32_...
        return {"value": part[key], "share_of_peak": part.get(f"{first}share_of_peak", part.get("share_of_peak")), "peak": found.get("peak")} | {
            k: part[k] for k in ("peak_rss_mb", "tokens") if k in part}

    return "operant", command, run


def script(a, name, python, file, what, model, *options, key="tokens_per_s"):
    command = [python, str(HERE / "peers" / file), what, "--model", model, "--steps", str(a.steps), *options]

    def run():
        found = process(command, a.timeout, {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
        return {"value": found[key]} | {k: found[k] for k in ("peak_rss_mb", "tokens") if k in found}

    return name, command, run


def torch(a, name, what, *options, model=None, key="tokens_per_s"):
    return script(a, name, a.peers, "peers.py", what, model or f"{a.scratch}/model", *options, key=key)


def llama(a, what, *options, key="tokens_per_s"):
    return script(a, "llama.cpp", a.llama, "llama.py", what, a.model, *options, key=key)


def moment(a, name, command, line):
    """Seconds from starting `command` to the first line of its stderr that begins with `line`; then it is ended."""

    def run():
        start = time.time()
        p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        limit = threading.Timer(a.timeout, p.kill)
        limit.start()
        seconds, last = None, ""
        for text in p.stderr:
            if text.startswith(line):
                seconds = time.time() - start
                p.kill()
                break
            last = text.strip() or last
        limit.cancel()
        p.stderr.close()
        p.wait()
        if seconds is None:
            raise Failed(f"exit status {p.returncode}: {last[:200]}")
        return {"value": seconds}

    return name, command, run


def since_start(side):
    """A script that tells the moment at which it was done."""
    name, command, run = side

    def timed():
        start = time.time()
        found = run()
        return found | {"value": found["value"] - start}

    return name, command, timed


# ---- rows ----

def train_sides(a, dtype, batch, length, variants):
    if a.quick:
        batch, length = 1, length // 4
    shape = ["--batch", str(batch), "--length", str(length)]
    sides = [bench(a, "train", f"dtype={dtype}", f"batch={batch}", f"length={length}")]
    for variant in variants.split(","):
        compiled, _, kind = variant.rpartition(" ")
        sides.append(torch(a, f"torch {variant}", "train", "--dtype", kind, *shape, *(["--compile"] if compiled else [])))
    return sides


def new_tokens(a):
    return 4 if a.quick else 64


def decode_sides(a, n, *kinds):
    """operant with its weights kept in each of these ways; the first is the one that counts."""
    sides = []
    for kind in kinds:
        _, command, run = bench(a, "generate", f"at_once={n}", f"max_tokens={new_tokens(a)}", f"weights={kind}", key=f"batch{n}_tokens_per_s")
        sides.append((f"operant {kind}", command, run))
    return sides + [make(a, "generate", "--batch", str(n), "--new", str(new_tokens(a))) for make in (transformers, llama)]


def transformers(a, what, *options):
    return torch(a, "transformers bf16", what, *options)


def small_sides(a):
    shape = (1, 64) if a.quick else (8, 256)
    return [bench(a, "train", "dtype=bf16", "optim=adamw_8bit", "grad_dtype=bf16", f"batch={shape[0]}", f"length={shape[1]}", key="peak_rss_mb"),
            torch(a, "torch bf16", "train", "--dtype", "bf16", "--batch", str(shape[0]), "--length", str(shape[1]), key="peak_rss_mb")]


def lora_sides(a):
    shape = (1, 64) if a.quick else (8, 256)
    return [bench(a, "lora", "dtype=bf16", f"batch={shape[0]}", f"length={shape[1]}")] + [
        torch(a, f"PEFT {dtype}", "train", "--lora", "16", "--dtype", dtype, "--batch", str(shape[0]), "--length", str(shape[1])) for dtype in ("autocast", "bf16")]


def update_sides(a):
    prompts, answers, new = (2, 4, 8) if a.quick else (8, 8, 64)
    return [bench(a, "update", f"prompts={prompts}", f"answers={answers}", f"max_tokens={new}", "dtype=bf16", key="seconds")] + [
        torch(a, f"TRL {dtype}", "update", "--dtype", dtype, "--batch", str(prompts), "--answers", str(answers), "--new", str(new), key="seconds")
        for dtype in ("autocast", "bf16")]


def first_step_sides(a):
    """From the command to the end of a step on one sequence of 16 tokens, as small as a step can be: what is measured is the way there."""
    data = f"{a.scratch}/one.jsonl"
    with open(data, "w") as f:
        f.write(json.dumps({"text": "one two three four five six seven eight nine ten eleven twelve thirteen"}) + "\n")
    folder = tempfile.mkdtemp(dir=a.scratch)
    command = [a.operant, "train", f"model={a.model}", f"train_file={data}", f"output_dir={folder}", "eval_fraction=0", "max_steps=1", "batch_size=1",
               "resume=none", "max_length=16"]
    return [moment(a, "operant", command, "step 1/"),
            since_start(torch(a, "transformers f32", "first-step", "--dtype", "f32", "--batch", "1", "--length", "16", key="at"))]


def first_token_sides(a):
    prompt = f"{a.scratch}/prompt.jsonl"
    with open(prompt, "w") as f:
        f.write(json.dumps({"prompt": "The quick brown fox jumps over the lazy dog, and " * 3}) + "\n")
    command = [a.operant, "generate", f"model={a.model}", f"input={prompt}", f"output={a.scratch}/answer.jsonl", "max_tokens=2", "resume=false"]
    return [moment(a, "operant", command, "0/1"), since_start(transformers_first(a)), since_start(llama(a, "first-token", key="at"))]


def transformers_first(a):
    return torch(a, "transformers bf16", "first-token", "--batch", "1", key="at")


def organism_sides(a):
    model = f"{a.scratch}/organism"
    if not os.path.exists(f"{model}/config.json"):
        process([a.peers, str(HERE / "peers" / "peers.py"), "organism", "--model", model], a.timeout)
    batch = 4 if a.quick else 64
    shape, sides = ["--batch", str(batch), "--length", "128"], []
    for dtype in ("f32", "bf16"):
        name, command, run = bench(a, "train", f"model={model}", f"batch={batch}", "length=128", f"dtype={dtype}", f"block_tokens={8192 if dtype == 'bf16' else 2048}")
        sides.append((f"operant {dtype}", command, run))
    return sides + [torch(a, f"torch {v}", "train", "--dtype", v.split()[-1], *shape, *(["--compile"] if "compiled" in v else []), model=model)
                    for v in ("f32", "autocast", "bf16", "compiled f32", "compiled bf16")]


def tokenize_sides(a):
    text = a.data and f"{a.data}/wikitext-2/valid.txt"
    if not text or not os.path.exists(text):
        raise Failed(f"{text or 'wikitext-2/valid.txt'} is not there (--data DIRECTORY, or OPERANT_DATA)")
    return [bench(a, "tokenize", f"file={text}", "threads=1", "peak_seconds=0"), torch(a, "tokenizers", "tokenize", "--file", text)]


RATE, SECONDS, MEMORY = "tokens/s", "s", "MB"
# id: (what is measured, unit, the goal of the issue "As fast as the processor allows", sides)
ROWS = {
    "train": ("full fine-tuning step, 8 x 256, bf16 with f32 master weights", RATE, "AMX: >= 3x autocast, >= 2x the best compiled; >= 55% of the peak; <= 2,800 MB",
              lambda a: train_sides(a, "bf16", 8, 256, "f32,autocast,bf16,compiled autocast,compiled bf16")),
    "train-f32": ("the same in f32", RATE, ">= 1.3x; >= 70% of the peak", lambda a: train_sides(a, "f32", 8, 256, "f32,compiled f32")),
    "train-small": ("the same with bf16 gradients and 8-bit moments", MEMORY, "<= 1,800 MB", small_sides),
    "lora": ("LoRA r=16 step, 8 x 256, bf16", RATE, ">= 4x PEFT autocast; <= 900 MB", lora_sides),
    "length-1024": ("full fine-tuning step, 2 x 1,024, bf16", RATE, "the ratios of 8 x 256", lambda a: train_sides(a, "bf16", 2, 1024, "autocast,bf16")),
    "length-4096": ("full fine-tuning step, 1 x 4,096, bf16", RATE, "the ratios of 8 x 256; memory linear", lambda a: train_sides(a, "bf16", 1, 4096, "autocast,bf16")),
    "decode-32": ("generation, 32 at once, all log-probabilities recorded", RATE, ">= 5x transformers, >= 5x llama.cpp", lambda a: decode_sides(a, 32, "exact", "quantised")),
    "decode-1": ("generation, one text", RATE, ">= 1.3x llama.cpp", lambda a: decode_sides(a, 1, "quantised", "exact")),
    "prefill": ("reading a prompt of 500 tokens", RATE, ">= 5x llama.cpp, >= 1.5x transformers",
                lambda a: [bench(a, "prefill")] + [make(a, "prefill", "--prompt", "500") for make in (transformers, llama)]),
    "update": ("one on-policy update, 8 prompts x 8 answers x 64 tokens", SECONDS, ">= 10x TRL", update_sides),
    "first-step": ("from the command to the first training step", SECONDS, "<= 1 s", first_step_sides),
    "first-token": ("from the command to the first generated token", SECONDS, "<= 0.3 s", first_token_sides),
    "organism": ("training step of a model of a million parameters, 64 x 128", RATE, ">= 5x eager, >= 2x compiled", organism_sides),
    "tokenize": ("tokenizing wikitext-2, one core", RATE, ">= 3x", tokenize_sides),
}


def chosen(only):
    words = [w for w in only.split(",") if w]
    for w in words:
        if not any(row == w or row.startswith(w + "-") for row in ROWS):
            sys.exit(f"bench/run: no row {w!r}; there are: {', '.join(ROWS)}")
    return [row for row in ROWS if not words or any(row == w or row.startswith(w + "-") for w in words)]


# ---- measuring ----

def measure(a, row):
    title, unit, goal, sides = ROWS[row]
    result = {"title": title, "unit": unit, "goal": goal, "date": f"{datetime.date.today()}", "steps": a.steps, "sides": {}}
    try:
        sides = sides(a)
    except Failed as e:
        return result | {"reason": str(e)}
    for name, command, _ in sides:
        result["sides"][name] = {"command": as_anywhere(a, command), "values": []}
    for repeat in range(a.repeats):
        for name, _, run in sides:
            side = result["sides"][name]
            if "reason" in side:
                continue
            print(f"  {row}: {name}, {repeat + 1} of {a.repeats}", file=sys.stderr, flush=True)
            try:
                found = run()
            except Failed as e:
                side["reason"] = str(e)
                print(f"  {row}: {name}: {e}", file=sys.stderr, flush=True)
                continue
            side["values"].append(found.pop("value"))
            side.update({k: v for k, v in found.items() if v is not None})
    for side in result["sides"].values():
        if side["values"]:
            side["median"] = statistics.median(side["values"])
            side["spread"] = (max(side["values"]) - min(side["values"])) / side["median"]
    tokens = {name: side["tokens"] for name, side in result["sides"].items() if "tokens" in side}
    if len(set(tokens.values())) > 1:
        result["reason"] = f"the sides did not do the same work: {tokens} tokens"
    return result


def machine(a):
    """What the figures depend on, and a name for it."""
    env = process([a.operant, "env", "--json"], 60)
    with open("/proc/cpuinfo") as f:
        names = re.findall(r"^model name\s*: (.*)$", f.read(), re.M)
    env["cpu"] = names[0] if names else "unknown"
    for name, python, file in (("peers", a.peers, "peers.py"), ("llama", a.llama, "llama.py")):
        try:
            env[name] = process([python, str(HERE / "peers" / file), "versions"], 120)
            env[name].pop("peak_rss_mb", None)
        except Failed as e:
            env[name] = {"missing": str(e)}
    vendor = re.sub(r"[^a-z0-9]+", "-", env["cpu"].lower().split("@")[0]).strip("-")
    return env, f"{vendor}-{env['products'].removeprefix('avx512_core_')}-{env['threads']}core"


def ratio(row, ours, theirs):
    better = theirs / ours if row["unit"] in (SECONDS, MEMORY) else ours / theirs
    return f"{better:.2f}x"


def number(x):
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def lines(name, row):
    """A row's lines of the table: one for each side."""
    first = next(iter(row["sides"].values()), {})
    out = []
    for side_name, side in row["sides"].items():
        if "median" not in side:
            out.append([name, side_name, "", "", "", "", side.get("reason", "not measured")])
            continue
        versus = "" if side_name.startswith("operant") or "median" not in first else ratio(row, first["median"], side["median"])
        out.append([name, side_name, f"{number(side['median'])} {row['unit']}", f"{100 * side['spread']:.0f}%" if len(side["values"]) > 1 else "", versus,
                    f"{100 * side['share_of_peak']:.0f}%" if "share_of_peak" in side else "",
                    f"{side['peak_rss_mb']:,.0f} MB" if side.get("peak_rss_mb") else ""])
    if "reason" in row:
        out.append([name, "", "", "", "", "", row["reason"]])
    return out


HEAD = ["row", "side", "median", "spread", "operant is", "of the product peak", "peak memory"]


def tables():
    """Markdown of all results."""
    out = []
    for path in sorted(glob.glob(str(HERE / "results" / "*.json"))):
        with open(path) as f:
            found = json.load(f)
        if "rows" not in found:
            continue
        m = found["machine"]
        peaks = [side["peak"] for row in found["rows"].values() for side in row["sides"].values() if side.get("peak")]
        best = {k: max(p.get(k, 0) for p in peaks) for k in ("bf16_gflops", "f32_gflops")} if peaks else {}
        limits = ", ".join(f"{k.split('_')[0]} {v:,.0f} GFLOP/s" for k, v in best.items())
        versions = ", ".join(f"{k} {v}" for k, v in (m.get("peers", {}) | m.get("llama", {})).items() if k not in ("missing", "llama.cpp for"))
        out += [f"### {pathlib.Path(path).stem}", "", f"{m['cpu']}, {m['threads']} threads, products by oneDNN {m['onednn']} ({m['products']}); product peaks: {limits}. "
                f"Peers: {versions}.", "", "| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
        for name in sorted(found["rows"], key=lambda r: list(ROWS).index(r) if r in ROWS else len(ROWS)):
            row = found["rows"][name]
            for i, cells in enumerate(lines(name, row)):
                out.append("| " + " | ".join(cell.replace("|", "/") for cell in ([cells[0] if i == 0 else ""] + cells[1:])) + " |")
            out.append(f"| | *goal: {row['goal']}* | | | | | measured {row['date']} |")
        out.append("")
    return "\n".join(out)


def write_tables():
    text = DOCS.read_text()
    begin, end = "<!-- bench/run --tables writes what stands between these lines -->\n", "<!-- until here -->"
    if begin not in text or end not in text:
        sys.exit(f"{DOCS}: the markers of the tables are missing")
    DOCS.write_text(text[:text.index(begin) + len(begin)] + "\n" + tables() + "\n" + text[text.index(end):])
    print(f"wrote the tables of {DOCS.relative_to(ROOT)}", file=sys.stderr)


def main():
    p = argparse.ArgumentParser(prog="bench/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                epilog="rows:\n" + "\n".join(f"  {k:<12} {v[0]}; {v[2]}" for k, v in ROWS.items()))
    p.add_argument("--only", default="", help="rows, with commas between them; \"decode\" means all that begin so")
    p.add_argument("--repeats", type=int, default=0, help="how often each side runs (3; with --quick 1)")
    p.add_argument("--steps", type=int, default=0, help="repetitions within a run (3; with --quick 1)")
    p.add_argument("--quick", action="store_true", help="smaller work, as short as possible: shows that everything runs; the results go to the scratch directory")
    p.add_argument("--timeout", type=float, default=1800, help="seconds for one run of one side")
    p.add_argument("--machine", help="name of the results file; by default from the processor")
    p.add_argument("--out", help="results file")
    p.add_argument("--scratch", default="build/bench", help="directory for the exported model and the like")
    p.add_argument("--data", default=os.environ.get("OPERANT_DATA") or "../shared/data", help="directory with wikitext-2/valid.txt")
    p.add_argument("--tables", action="store_true", help="only write the tables of docs/speed.md from bench/results")
    p.add_argument("--operant", default="build/operant")
    p.add_argument("--model", default="models/SmolLM2-135M-Instruct.Q4_1.gguf")
    p.add_argument("--peers", default="python3")
    p.add_argument("--llama", default="python3")
    a = p.parse_args()
    os.chdir(ROOT)
    if a.tables:
        return write_tables()
    rows = chosen(a.only)
    a.repeats = a.repeats or (1 if a.quick else 3)
    a.steps = a.steps or (1 if a.quick else 3)
    a.operant = os.path.abspath(a.operant)
    os.makedirs(a.scratch, exist_ok=True)
    if not os.path.exists(f"{a.scratch}/model/config.json"):
        subprocess.run([a.operant, "export", "--format", "hf", f"model={a.model}", f"output={a.scratch}/model"], check=True, stdout=subprocess.DEVNULL)
    facts, name = machine(a)
    out = pathlib.Path(a.out or (f"{a.scratch}/quick.json" if a.quick else f"bench/results/{a.machine or name}.json"))
    found = json.loads(out.read_text()) if out.exists() else {}
    found = {"machine": facts, "rows": found.get("rows", {})}
    for row in rows:
        found["rows"][row] = measure(a, row)
        for cells in lines(row, found["rows"][row]):
            print("  ".join(f"{cell:<{w}}" for cell, w in zip(cells, (12, 24, 16, 5, 8, 5, 0))).rstrip(), flush=True)
        out.write_text(json.dumps(found, indent=1) + "\n")  # after each row: a run that is stopped keeps what it had
    print(f"wrote {out}", file=sys.stderr)
    if not a.quick and not a.out:
        write_tables()


main()
