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


def _chain_matmul(*matrices: Tensor) -> Bound:
    return functional.multi_dot, (matrices,), {}


# Functionals of this name that take torch's arguments.
_SAME_ARGUMENTS = (
    functional.addbmm,
    functional.addmm,
    functional.addmv,
    functional.addr,
    functional.baddbmm,
    functional.bilinear,
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
    functional.einsum,
    functional.gru,
    functional.gru_cell,
    functional.inner,
    functional.linear,
    functional.lstm,
    functional.lstm_cell,
    functional.multi_head_attention_forward,
    functional.outer,
    functional.rnn_relu,
    functional.rnn_relu_cell,
    functional.rnn_tanh,
    functional.rnn_tanh_cell,
    functional.scaled_dot_product_attention,
    functional.tensordot,
)

PRODUCTS: dict[str, Bind] = {
    "matmul": _matmul,
    "mm": _mm,
    "bmm": _bmm,
    "mv": _mv,
    "dot": _dot,
    "vdot": _dot,
    "ger": direct(functional.outer),
    "chain_matmul": _chain_matmul,
    "linalg_multi_dot": direct(functional.multi_dot),
    "linalg_vecdot": direct(functional.vecdot),
    **{function.__name__: direct(function) for function in _SAME_ARGUMENTS},
}
