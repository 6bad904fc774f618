"""A small classifier, plain or converted, with batches and the loss of one."""

import torch

import lowprec as lp

STOCHASTIC = lp.Rounding("bfloat16", "stochastic")
PRECISION = {"input": "e4m3fn", "weight": "bfloat16", "grad_output": "e5m2"}


def network(dropout=0.3, converted=False, norm=True):
    torch.manual_seed(3)
    layers = [torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Dropout(dropout)]
    if norm:
        layers.append(torch.nn.BatchNorm1d(16))
    model = torch.nn.Sequential(*layers, torch.nn.Linear(16, 3))
    if converted:
        precision = lp.Precision(**{**PRECISION, "weight": STOCHASTIC})
        lp.nn.convert_(model, lp.Policy({"0": precision, str(len(layers)): precision}))
    return model


def batches(count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(9)
    for _ in range(count):
        x = torch.randn(12, 6, generator=generator, dtype=dtype)
        yield x, torch.randint(0, 3, (12,), generator=generator)


def loss_of(x, y):
    return lambda m, cast: torch.nn.functional.cross_entropy(m(cast(x)), y)
