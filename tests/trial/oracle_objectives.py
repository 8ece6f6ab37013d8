#!/usr/bin/env python3
"""Losses and gradients of the objectives by plain PyTorch in float64, as a C header: python oracle_objectives.py > objectives_expected.h

The formulas are written from the papers named in operant/objective.h, by autograd, without anything of operant. The inputs are float32 numbers, so
that both sides start from the same ones."""
import math

import torch
import torch.nn.functional as F

LENGTHS = [5, 7, 4, 6, 8, 5]
BETA, CLIP_LOW, CLIP_HIGH, Z = 0.3, 0.2, 0.28, 7.0
PAIRS = [(0, 1), (3, 2), (4, 1)]               # good, bad: item 1 stands in two of them
JUDGED = [(0, True), (1, False), (4, False)]
POINTS = [3, 5]
DESIRABLE, UNDESIRABLE = 1.0, 1.4

torch.manual_seed(3)
T = sum(LENGTHS)
item = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
f32 = lambda x: x.to(torch.float32)
logp = f32(-torch.rand(T) * 3 - 0.01)
reference = f32(logp + 0.7 * torch.randn(T)).clamp(max=-0.001)
behaviour = f32(logp + 0.4 * torch.randn(T)).clamp(max=-0.001)
weight = f32(torch.randn(T))
first = torch.cat([torch.tensor([0]), torch.tensor(LENGTHS).cumsum(0)[:-1]])
weight[first] = 0                               # context
weight[first + 2] = 0
behaviour[::5] = float("nan")                   # typed by somebody
logp[3] = -1e-9                                 # all but certain
logp[first] = 0                                 # what the model says of a token that nothing precedes

w, ref, beh = weight.double(), reference.double(), behaviour.double()
used = w != 0


def per_item(x, i):
    return x[item == i].sum()


def s(lp, i, with_ref, mean):
    r = lp - ref if with_ref else lp
    total = per_item(torch.where(used, w * r, 0.0), i)
    return total / per_item(w.abs(), i) if mean else total


def weighted(lp):
    return -(w * lp)[used].sum() / Z


def policy(lp):
    rho = torch.exp(lp - torch.where(beh.isnan(), lp.detach(), beh))
    return -torch.min(w * rho, w * rho.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH))[used].sum() / Z


def kl(lp):
    x = ref - lp
    return (w * (x.exp() - x - 1))[used].sum() / Z


def unlikelihood(lp):
    bad, edge = w < 0, math.log1p(-1e-6)
    x = lp.clamp(max=edge)
    line = (1 - 1e-6) / 1e-6 * (lp - x.detach())  # on from the edge
    return (w.abs() * torch.where(lp > edge, line - math.log(1e-6), -torch.log(-torch.expm1(x))))[bad].sum() / Z


def preference(kind, with_ref=True, mean=False):
    def loss(lp):
        total = 0
        for good, bad in PAIRS:
            d = s(lp, good, with_ref, mean) - s(lp, bad, with_ref, mean)
            total = total + {"dpo": lambda: -F.logsigmoid(BETA * d), "ipo": lambda: (d - 1 / (2 * BETA)) ** 2,
                             "hinge": lambda: torch.relu(1 - BETA * d)}[kind]()
        return total / Z
    return loss


def kto(points):
    def loss(lp):
        z0 = torch.stack([s(lp, i, True, False) for i in points]).mean().clamp(min=0).detach() if points else 0.0
        total = 0
        for i, desirable in JUDGED:
            r = s(lp, i, True, False)
            v = r - z0 if desirable else z0 - r
            total = total + (DESIRABLE if desirable else UNDESIRABLE) * (1 - torch.sigmoid(BETA * v))
        return total / Z
    return loss


assert torch.stack([s(logp.double(), i, True, False) for i in POINTS]).mean() > 0.1  # or z0 would be 0
CASES = {"weighted": weighted, "policy": policy, "kl": kl, "unlikelihood": unlikelihood, "dpo": preference("dpo"), "ipo": preference("ipo"),
         "hinge": preference("hinge"), "dpo_without_reference": preference("dpo", with_ref=False), "ipo_mean": preference("ipo", mean=True),
         "kto": kto(POINTS), "kto_without_points": kto([])}


def array(kind, name, values, form):
    text = [form(v) for v in values]
    lines = [", ".join(text[i:i + 6]) for i in range(0, len(text), 6)]
    return f"static const {kind} {name}[] = {{\n    " + ",\n    ".join(lines) + ",\n};\n"


def c_float(v):
    return "NAN" if v != v else f"{v:.9g}" + ("f" if "." in f"{v:.9g}" or "e" in f"{v:.9g}" else ".0f")


print("/* Written by oracle_objectives.py: the inputs, and what PyTorch says of them. An expectation is the loss, then the slope of every token. */")
print(f"enum {{ ITEMS = {len(LENGTHS)}, TOKENS = {T} }};")
print(f"static const double beta = {BETA}, clip_low = {CLIP_LOW}, clip_high = {CLIP_HIGH}, normaliser = {Z}, desirable = {DESIRABLE}, undesirable = {UNDESIRABLE};")
print("static const op_pair pairs[] = {" + ", ".join(f"{{{a}, {b}}}" for a, b in PAIRS) + "};")
print("static const op_judged judged[] = {" + ", ".join(f"{{{i}, {str(d).lower()}}}" for i, d in JUDGED) + "};")
print("static const int32_t points[] = {" + ", ".join(map(str, POINTS)) + "};")
print(array("int32_t", "lengths", LENGTHS, str), end="")
for name, x in (("logp", logp), ("weight", weight), ("behaviour", behaviour), ("reference", reference)):
    print(array("float", name, x.tolist(), c_float), end="")
for name, f in CASES.items():
    lp = logp.double().requires_grad_()
    loss = f(lp)
    loss.backward()
    assert torch.isfinite(lp.grad).all() and lp.grad.abs().max() > 1e-3, name
    print(array("double", "expected_" + name, [loss.item()] + lp.grad.tolist(), lambda v: f"{v:.17g}"), end="")

# The exact divergence of whole distributions: near, far and equal ones, one of them all but certain of a token.
V, KL_WEIGHTS = 9, [1.0, 0.25, -0.5, 2.0]
z = f32(2 * torch.randn(len(KL_WEIGHTS), V))
r = f32(z + torch.tensor([[0.01], [3.0], [0.0], [1.0]]) * torch.randn(len(KL_WEIGHTS), V))
z[1, 4] = 40
lz = z.double().requires_grad_()
kls = F.kl_div(F.log_softmax(r.double(), -1), F.log_softmax(lz, -1), reduction="none", log_target=True).sum(-1)
(torch.tensor(KL_WEIGHTS, dtype=torch.float64) * kls).sum().backward()
print(f"enum {{ KL_ROWS = {len(KL_WEIGHTS)}, KL_VOCAB = {V} }};")
print(array("float", "kl_logits", z.flatten().tolist(), c_float) + array("float", "kl_reference", r.flatten().tolist(), c_float), end="")
for name, x in (("kl_weights", torch.tensor(KL_WEIGHTS)), ("expected_full_kl", kls.detach()), ("expected_full_kl_slopes", lz.grad.flatten())):
    print(array("double", name, x.tolist(), lambda v: f"{v:.17g}"), end="")
