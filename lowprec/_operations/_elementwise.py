"""Which functional computes an operation that ``elementwise`` governs."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ._products import Bind, Bound, direct

# Each element of a result depends on one element of each operand.
POINTWISE = frozenset(
    """acos acosh add addcdiv addcmul asin asinh atan atan2 atanh ceil celu clamp
    clamp_max clamp_min copysign cos cosh deg2rad digamma div elu erf erfc erfinv exp
    exp2 expm1 float_power floor floor_divide fmod frac gelu hardshrink hardsigmoid
    hardswish hypot i0 ldexp leaky_relu lerp lgamma log log10 log1p log2 logaddexp
    logaddexp2 logit logsigmoid maximum minimum mish mul mvlgamma nan_to_num polygamma
    pow rad2deg reciprocal remainder round rsqrt rsub selu sigmoid silu sin sinc sinh
    softplus softshrink sqrt square sub tan tanh tanhshrink where xlogy""".split()
)
# Elements of the first operand, each any number of times.
SELECTIONS = frozenset(
    """as_strided broadcast_to expand expand_as expand_copy gather getitem index_select
    max_pool1d max_pool2d max_pool3d pad repeat repeat_interleave take take_along_dim
    tile unfold""".split()
)
# Operations that may round and have no functional: emulated by none of the tables.
_OTHERS = frozenset(
    """adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d alpha_dropout
    avg_pool1d avg_pool2d avg_pool3d batch_norm binary_cross_entropy
    binary_cross_entropy_with_logits cosine_similarity cross_entropy cumprod cumsum
    dist dropout1d dropout2d dropout3d embedding_bag feature_alpha_dropout
    gaussian_nll_loss glu gumbel_softmax huber_loss interpolate kl_div l1_loss
    local_response_norm log_softmax logcumsumexp logsumexp lp_pool1d lp_pool2d mean
    mse_loss nanmean nansum nll_loss norm normalize pairwise_distance
    poisson_nll_loss prelu prod rrelu smooth_l1_loss soft_margin_loss softmax softmin
    softsign std std_mean sum tanhshrink var var_mean linalg_vector_norm
    linalg_norm _weight_norm""".split()
)
# Only the functions of torch.nn.functional have the functional's arguments.
_LAYERS = frozenset(
    """batch_norm embedding embedding_bag group_norm instance_norm layer_norm
    rms_norm""".split()
)


def _softmax(function: Any) -> Bind:
    def bind(
        input: Tensor,
        dim: int | None = None,
        dtype: torch.dtype | None = None,
        _stacklevel: int = 3,
    ) -> Bound:
        return function, (input, dim, dtype), {}

    return bind


BINDINGS: dict[str, Bind] = {
    "batch_norm": direct(functional.batch_norm),
    "group_norm": direct(functional.group_norm),
    "instance_norm": direct(functional.instance_norm),
    "layer_norm": direct(functional.layer_norm),
    "rms_norm": direct(functional.rms_norm),
    "log_softmax": _softmax(functional.log_softmax),
    "softmax": _softmax(functional.softmax),
    "softmin": _softmax(functional.softmin),
}


def is_elementwise(name: str) -> bool:
    """Whether ``elementwise`` of a precision is about the operation."""
    return any(name in names for names in (BINDINGS, POINTWISE, SELECTIONS, _OTHERS))


def binds(name: str, func: Any) -> bool:
    """Whether a functional computes a function of torch."""
    if name in _LAYERS and not isinstance(func, FunctionType):
        return False
    return name in BINDINGS
