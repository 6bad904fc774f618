"""Checked conversion of the numbers and tensors that formulas take."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

# What a formula takes and returns: floats in, float out; any tensor in, tensor out.
Real: TypeAlias = float | Tensor

# "corrected" is the formula that holds; "as_printed" is the one in the paper.
Form: TypeAlias = Literal["corrected", "as_printed"]


def positive(name: str, value: Any) -> Tensor:
    """Return ``value`` in binary64 after checking that it is positive and finite.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    tensor = _binary64(name, value)
    if not bool(((tensor > 0) & torch.isfinite(tensor)).all()):
        raise ValueError(f"{name} must be positive and finite, got {_shown(value)}")
    return tensor


def nonnegative(name: str, value: Any) -> Tensor:
    """Return ``value`` in binary64 after checking that it is >= 0; +inf is allowed.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    tensor = _binary64(name, value)
    if not bool((tensor >= 0).all()):
        raise ValueError(
            f"{name} must be nonnegative (+inf is allowed, NaN is not), "
            f"got {_shown(value)}"
        )
    return tensor


def finite(name: str, value: Any) -> Tensor:
    """Return ``value`` in binary64 after checking that it is finite.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    tensor = _binary64(name, value)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, got {_shown(value)}")
    return tensor


def count(name: str, value: Any) -> Tensor:
    """Return a number of steps, or a tensor of them, in binary64.

    Raises:
        ValueError: unless every entry is a whole number >= 1.
    """
    tensor = _binary64(name, value)
    if not bool(((tensor >= 1) & (tensor == tensor.floor())).all()):
        raise ValueError(
            f"{name} counts steps: it must be a whole number >= 1, got {_shown(value)}"
        )
    return tensor


def check_form(form: str) -> bool:
    """Return whether ``form`` asks for the corrected formula.

    Raises:
        ValueError: if it is neither of the two forms.
    """
    if form not in ("corrected", "as_printed"):
        raise ValueError(f"form must be 'corrected' or 'as_printed', got {form!r}")
    return form == "corrected"


def plain(result: Tensor, *inputs: Any) -> Any:
    """Return a Python number if no input was a tensor or an array."""
    if any(isinstance(value, (Tensor, np.ndarray)) for value in inputs):
        return result
    return result.item()


def every(flag: bool | Tensor) -> bool:
    """Return whether a flag, or each entry of a tensor of flags, is set."""
    return flag if isinstance(flag, bool) else bool(flag.all())


def some(flag: bool | Tensor) -> bool:
    """Return whether a flag, or any entry of a tensor of flags, is set."""
    return flag if isinstance(flag, bool) else bool(flag.any())


def shown(value: Real) -> str:
    """Format a number with six digits; a tensor by its range."""
    if not isinstance(value, Tensor):
        return f"{value:.6g}"
    if value.numel() == 1:
        return f"{value.item():.6g}"
    if value.numel() == 0:
        return "empty"
    return f"{value.min().item():.6g} ... {value.max().item():.6g}"


def _binary64(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a number or a tensor, got {type(value).__name__}"
        ) from error


def _shown(value: Any) -> str:
    if isinstance(value, Tensor) and value.numel() > 1:
        return f"a tensor with entries {shown(value.detach())}"
    return repr(value)
