"""Which functional of `lowprec.functional` computes a product of matrices of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import functional

Bound = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
Bind = Callable[..., Bound | None]


def direct(function: Callable[..., Any]) -> Bind:
    """Bind a functional that takes torch's own arguments."""

    def bind(*args: Any, **kwargs: Any) -> Bound:
        return function, args, kwargs

    return bind


def _matmul(input: Tensor, other: Tensor) -> Bound:
    return functional.matmul, (input, other), {}


def _mm(input: Tensor, mat2: Tensor) -> Bound | None:
    fits = input.dim() == mat2.dim() == 2
    return (functional.matmul, (input, mat2), {}) if fits else None


def _bmm(input: Tensor, mat2: Tensor) -> Bound | None:
    fits = input.dim() == mat2.dim() == 3 and input.shape[0] == mat2.shape[0]
    return (functional.matmul, (input, mat2), {}) if fits else None


def _mv(input: Tensor, vec: Tensor) -> Bound | None:
    fits = input.dim() == 2 and vec.dim() == 1
    return (functional.matmul, (input, vec), {}) if fits else None


def _dot(input: Tensor, tensor: Tensor) -> Bound | None:
    fits = input.dim() == tensor.dim() == 1
    return (functional.matmul, (input, tensor), {}) if fits else None


def _addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Bound | None:
    # Only the form that is a linear layer; scaled ones have further roundings.
    plain = beta == 1 and alpha == 1 and input.dim() == 1
    if not plain or mat1.dim() != 2 or mat2.dim() != 2:
        return None
    return functional.linear, (mat1, mat2.mT, input), {}


PRODUCTS: dict[str, Bind] = {
    "linear": direct(functional.linear),
    "matmul": _matmul,
    "mm": _mm,
    "bmm": _bmm,
    "mv": _mv,
    "dot": _dot,
    "addmm": _addmm,
    "conv1d": direct(functional.conv1d),
    "conv2d": direct(functional.conv2d),
    "conv3d": direct(functional.conv3d),
}
