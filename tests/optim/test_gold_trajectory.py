"""Whole trajectories of an independent implementation, reproduced bit for bit."""

import json
import math
from pathlib import Path

import pytest
import torch

import lowprec as lp
from lowprec.measure import NormalizedTrace

GOLD = json.loads((Path(__file__).parents[1] / "data" / "gold_dev.json").read_text())
MASK = 2**64 - 1


def splitmix64(seed, i):
    z = (seed + (i + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def data_set(n, seed):
    """S1 of the specification: ten classes on a circle, two features and a one."""
    rows, labels = [], []
    for i in range(n):
        label = splitmix64(1000 * seed, i) % 10
        angle = 2 * math.pi * label / 10
        centre = [round(48 * math.cos(angle)) / 64, round(48 * math.sin(angle)) / 64]
        for j in range(2):
            z = splitmix64(1000 * seed + 1 + j, i)
            centre[j] += (sum((z >> (8 * b)) & 255 for b in range(4)) - 510) / 256
        rows.append([*centre, 1.0])
        labels.append(label)
    x = lp.round(torch.tensor(rows, dtype=torch.float64), "bfloat16")
    return x, torch.nn.functional.one_hot(torch.tensor(labels), 10).double()


def low_precision_gradient(w, x, y, accumulator):
    """Section 4.1 of the specification, steps 1 to 6."""
    rounded = lp.round(w, "bfloat16")
    logits = lp.matmul(x, rounded, accumulator=accumulator)
    shifted = (logits - logits.amax(dim=1, keepdim=True)).exp()
    p = lp.round(shifted / shifted.sum(dim=1, keepdim=True), "bfloat16")
    error = lp.round(p - y, "bfloat16")
    total = lp.matmul(x.T.contiguous(), error, accumulator=accumulator)
    return lp.round(total / len(x), "bfloat16")


@pytest.mark.parametrize("gold", GOLD["traj"], ids=lambda gold: gold["mode"])
def test_trajectories_are_bit_exact(gold):
    """G3: 60 steps of logistic regression with fused updates."""
    x, y = data_set(gold["n"], gold["data_seed"])
    accumulator = lp.Format(precision=gold["t_acc"], emax=127)
    update = lp.Format(precision=gold["t_upd"], emax=127)
    w = torch.nn.Parameter(torch.zeros(3, 10, dtype=torch.float64))
    optimizer = lp.optim.NormalizedSGD(
        [w], gold["eta"], param_format=update, direction_format="bfloat16"
    )
    trace = NormalizedTrace(steps=gold["K"])
    for k in range(gold["K"]):
        before = w.detach().clone()
        w.grad = low_precision_gradient(before, x, y, accumulator)
        exact = x.T @ (torch.softmax(x @ before, dim=1) - y) / len(x)
        optimizer.step()
        used = lp.optim.normalized_direction(w.grad, "bfloat16")
        trace.record(k, before, used, exact, w, optimizer.effective_lr[0])
    expected = [float.fromhex(value) for value in gold["W"]]
    assert w.flatten().tolist() == expected
    moments = trace.moments()
    bound = 2 * update.unit_roundoff * (w.detach().norm().item() + gold["eta"])
    largest = moments.S
    assert largest <= bound
    assert (largest > 0) == (gold["t_upd"] == 8)  # 24 bits hold these steps exactly
    assert moments.V_r > 0
