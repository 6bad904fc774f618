"""What a run was: model, optimizer and precisions as text."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from ..precision import Policy, Precision, as_policy


def describe(
    model: torch.nn.Module,
    optimizer: Optimizer,
    policy: Policy | Precision | None = None,
) -> dict[str, str]:
    """Return configuration text by name.

    Args:
        model: the model.
        optimizer: its optimizer.
        policy: its precisions; None reads those of converted modules.

    Returns:
        Text by name; of several lines where there is much to say.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    result = {
        "model": f"{type(model).__name__}, {trained:,} trained parameters in "
        f"{', '.join(dtypes) or 'no dtype'}",
        "optimizer": f"{type(optimizer).__name__}: {_options(optimizer)}",
    }
    if policy is not None:
        given = as_policy(policy)
        result |= {f"precision of {name!r}": str(one) for name, one in given.rules}
        result |= {
            f"precision of {name}()": str(one) for name, one in given.operations.items()
        }
    else:
        groups: dict[Precision, list[str]] = {}
        for name, module in model.named_modules():
            precision: Any = getattr(module, "precision", None)
            if isinstance(precision, Precision):
                groups.setdefault(precision, []).append(name or "(model)")
        for precision, names in groups.items():
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            where = ", ".join(names[:6]) + more
            result[f"precision of {where}"] = str(precision)
    result["structure of the model"] = f"{model}\n"
    return result


def _options(optimizer: Optimizer) -> str:
    texts = [
        ", ".join(
            f"{key}={value!r}"
            for key, value in group.items()
            if key != "params" and value is not None and value is not False
        )
        for group in optimizer.param_groups
    ]
    return "; ".join(dict.fromkeys(texts))
