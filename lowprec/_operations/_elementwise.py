"""Which functional computes an operation that ``elementwise`` governs."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional
from ._names import words
from ._products import Bind, Bound, direct

# Each element of a result depends on one element of each operand.
POINTWISE = words(
    """acos acosh add addcdiv addcmul asin asinh atan atan2 atanh ceil celu clamp
    clamp_max clamp_min copysign cos cosh deg2rad digamma div elu erf erfc erfinv exp
    exp2 expm1 float_power floor floor_divide fmax fmin fmod frac gelu hardshrink
    hardsigmoid hardswish hypot i0 ldexp leaky_relu lerp lgamma log log10 log1p log2
    logaddexp logaddexp2 logit log_sigmoid maximum minimum mish mul nan_to_num pow
    rad2deg reciprocal remainder round rsqrt rsub selu sigmoid silu sin sinc sinh
    softplus softshrink softsign sqrt square sub tan tanh tanhshrink xlogy"""
)
# Elements of the first operand, each any number of times.
SELECTIONS = words(
    """as_strided broadcast_to expand expand_as expand_copy gather getitem index_select
    pad repeat repeat_interleave take take_along_dim tile unfold"""
)
# Operations that may round and have no functional: emulated by none of the tables.
_OTHERS = words(
    """_weight_norm arange cumprod dist gaussian_nll_loss gumbel_softmax
    linspace logcumsumexp logspace lp_pool1d lp_pool2d nanmean nansum
    poisson_nll_loss rrelu soft_margin_loss std_mean var_mean"""
)
# Only the functions of torch.nn.functional have the functional's arguments.
_LAYERS = words(
    """batch_norm embedding embedding_bag group_norm instance_norm layer_norm
    rms_norm"""
)


def _canonical(name: str) -> Callable[..., Any]:
    """Return the function that methods and operators of a name stand for."""
    if name == "log_sigmoid":
        return F.logsigmoid
    function: Callable[..., Any] = getattr(torch, name, None) or getattr(F, name)
    return function


def _pointwise(function: Callable[..., Any]) -> Bind:
    def bind(*args: Any, **kwargs: Any) -> Bound:
        return functional.pointwise, (function, *args), kwargs

    return bind


def _where(first: Tensor, second: Tensor, third: Any) -> Bound:
    # The method's own tensor is the second argument of the function.
    condition, chosen = (
        (first, second) if first.dtype == torch.bool else (second, first)
    )
    return functional.pointwise, (torch.where, condition, chosen, third), {}


def _gated(input: Tensor, dim: int = -1) -> Bound:
    return functional.pointwise, (_gate, *input.chunk(2, dim)), {}


def _gate(value: Tensor, gate: Tensor) -> Tensor:
    return value * gate.sigmoid()


def _softmax(function: Callable[..., Any]) -> Bind:
    def bind(
        input: Tensor,
        dim: int | None = None,
        dtype: torch.dtype | None = None,
        _stacklevel: int = 3,
    ) -> Bound:
        return function, (input, dim, dtype), {}

    return bind


def _reduction(function: Callable[..., Any]) -> Bind:
    def bind(*args: Any, **kwargs: Any) -> Bound:
        renamed = {"axis": "dim", "keepdims": "keepdim"}
        return function, args, {renamed.get(k, k): v for k, v in kwargs.items()}

    return bind


def _variance(function: Callable[..., Any]) -> Bind:
    def bind(
        input: Tensor,
        dim: Any = None,
        unbiased: bool | None = None,
        keepdim: bool = False,
        *,
        correction: float | None = None,
        axis: Any = None,
    ) -> Bound:
        if isinstance(dim, bool):  # var(x, unbiased)
            dim, unbiased = None, dim
        if unbiased is not None:
            correction = int(unbiased)
        options = {
            "correction": 1 if correction is None else correction,
            "keepdim": keepdim,
        }
        return function, (input, dim if axis is None else axis), options

    return bind


def _vector_norm(
    x: Tensor,
    ord: float = 2,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Bound:
    return functional.norm, (x, ord, dim, keepdim), {"dtype": dtype}


def _max_pooling(function: Callable[..., Any]) -> Bind:
    def bind(*args: Any, **kwargs: Any) -> Bound:
        # The only other way to ask for indices is another function.
        return function, args, {**kwargs, "return_indices": True}

    return bind


def _extremum(function: Callable[..., Any]) -> Bind:
    def bind(input: Tensor, *args: Any, **kwargs: Any) -> Bound:
        if args and isinstance(args[0], Tensor):  # max(x, y)
            of_two = torch.maximum if function is torch.max else torch.minimum
            return functional.pointwise, (of_two, input, *args), kwargs
        return functional.extremum, (function, input, *args), kwargs

    return bind


def _norm(
    A: Tensor,
    ord: Any = None,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Bound | None:
    of_vectors = isinstance(dim, int) or (dim is None and A.dim() == 1)
    if ord is not None and not of_vectors:
        return None
    order = 2 if ord is None else ord
    return functional.norm, (A, order, dim, keepdim), {"dtype": dtype}


def _loss(function: Callable[..., Any]) -> Bind:
    def bind(
        input: Tensor,
        target: Tensor,
        *,
        size_average: bool | None = None,
        reduce: bool | None = None,
        **options: Any,
    ) -> Bound | None:
        if size_average is not None or reduce is not None:  # deprecated
            return None
        given = {name: value for name, value in options.items() if value is not None}
        return function, (input, target), given

    return bind


_SAME_ARGUMENTS = (
    functional.adaptive_avg_pool1d,
    functional.adaptive_avg_pool2d,
    functional.adaptive_avg_pool3d,
    functional.adaptive_max_pool1d,
    functional.adaptive_max_pool2d,
    functional.adaptive_max_pool3d,
    functional.alpha_dropout,
    functional.avg_pool1d,
    functional.avg_pool2d,
    functional.avg_pool3d,
    functional.batch_norm,
    functional.cosine_similarity,
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.embedding,
    functional.embedding_bag,
    functional.feature_alpha_dropout,
    functional.group_norm,
    functional.instance_norm,
    functional.interpolate,
    functional.layer_norm,
    functional.local_response_norm,
    functional.max_pool1d,
    functional.max_pool2d,
    functional.max_pool3d,
    functional.normalize,
    functional.pairwise_distance,
    functional.prelu,
    functional.rms_norm,
)
_REDUCTIONS = (
    functional.cumsum,
    functional.logsumexp,
    functional.mean,
    functional.norm,
    functional.prod,
    functional.sum,
)
_LOSSES = (
    functional.binary_cross_entropy,
    functional.binary_cross_entropy_with_logits,
    functional.cross_entropy,
    functional.huber_loss,
    functional.kl_div,
    functional.l1_loss,
    functional.mse_loss,
    functional.nll_loss,
    functional.smooth_l1_loss,
)

BINDINGS: dict[str, Bind] = {
    **{name: _pointwise(_canonical(name)) for name in POINTWISE},
    "where": _where,
    "glu": _gated,
    "log_softmax": _softmax(functional.log_softmax),
    "softmax": _softmax(functional.softmax),
    "softmin": _softmax(functional.softmin),
    "std": _variance(functional.std),
    "var": _variance(functional.var),
    **{
        name: _extremum(getattr(torch, name))
        for name in ("amax", "amin", "max", "min", "median")
    },
    "linalg_norm": _norm,
    "linalg_vector_norm": _vector_norm,
    "max_pool1d_with_indices": _max_pooling(functional.max_pool1d),
    "max_pool2d_with_indices": _max_pooling(functional.max_pool2d),
    "max_pool3d_with_indices": _max_pooling(functional.max_pool3d),
    **{function.__name__: direct(function) for function in _SAME_ARGUMENTS},
    **{function.__name__: _reduction(function) for function in _REDUCTIONS},
    **{function.__name__: _loss(function) for function in _LOSSES},
}


def is_elementwise(name: str) -> bool:
    """Whether ``elementwise`` of a precision is about the operation."""
    return name in BINDINGS or name in SELECTIONS or name in _OTHERS


def binds(name: str, func: Any) -> bool:
    """Whether a functional computes a function of torch."""
    if name in _LAYERS and not isinstance(func, FunctionType):
        return False
    return name in BINDINGS or name in SELECTIONS


def bound(
    name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Bound | None:
    """Return the functional for a call and its arguments."""
    if name in SELECTIONS:
        return functional.selection, (func, *args), kwargs
    return BINDINGS[name](*args, **kwargs)
