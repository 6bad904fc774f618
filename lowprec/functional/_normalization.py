"""Layer, RMS, group, batch and instance normalization.

All are one formula, z = (x - mean) / sqrt(variance + eps) over what shares statistics,
then an affine map whose parameters belong to some dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._parts import check_same
from ._wide import Wide, wide_for


def _mean(wide: Wide, x: Tensor, dims: Sequence[int]) -> Tensor:
    count = math.prod([x.shape[dim] for dim in dims])
    return wide.sum(x, dims, keepdim=True) / count


def _standardized(
    wide: Wide, x: Tensor, dims: Sequence[int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return z, the means, and the variances, whose divisor is the count."""
    mean = _mean(wide, x, dims)
    centred = x - wide.expand(mean, x.shape)
    variance = _mean(wide, centred * centred, dims)
    scale = 1 / (variance + eps).sqrt()
    return centred * wide.expand(scale, x.shape), mean, variance


def _affine(
    wide: Wide,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    shape: Sequence[int],
) -> Tensor:
    """Return x weight + bias; the parameters have the dimensions of ``shape``."""
    if weight is not None:
        factor = wide.enter_weight(weight).reshape(shape)
        x = x * wide.expand(factor, x.shape)
    if bias is not None:
        x = x + wide.expand(wide.enter_bias(bias).reshape(shape), x.shape)
    return x


def _check_parameters(
    input: Tensor, shape: Sequence[int], **parameters: Tensor | None
) -> None:
    check_carrier(input, "input")
    for name, parameter in parameters.items():
        if parameter is None:
            continue
        check_same(name, parameter, input, "input")
        if tuple(parameter.shape) != tuple(shape):
            raise ValueError(
                f"{name} must have shape {tuple(shape)} for input "
                f"{tuple(input.shape)}, got {tuple(parameter.shape)}"
            )


def _last_dims(input: Tensor, normalized_shape: Sequence[int]) -> list[int]:
    shape = tuple(normalized_shape)
    if not shape or tuple(input.shape[-len(shape) :]) != shape:
        raise ValueError(
            f"normalized_shape must be the last sizes of the input, got {shape} for "
            f"input {tuple(input.shape)}"
        )
    return list(range(input.dim() - len(shape), input.dim()))


@overridable
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Normalise over the last dimensions in emulated arithmetic, forward and backward.

    With n elements per example, mu = acc(x) / n, c = x - mu, v = acc(c^2) / n,
    g' = fl_weight(g): y = fl(c / sqrt(v + eps) g' + b), fl of ``elementwise``. The
    gradients are those of the chain rule at dy' = fl(dy), each of its sums being that
    of ``grad_accumulator``: over the n elements for dx = fl(...), over the examples
    for dg = fl_grad_weight(...) and db = fl_grad_weight(acc(dy')).

    Contract:
        One fused operation: everything but the sums is computed in float64, and the
        result and the gradients are rounded once. The sums are those of
        ``accumulator`` and ``grad_accumulator``, terms in row-major order, and
        float64's where these are None. ``elementwise=None`` leaves the whole
        operation to torch.

    Args:
        input: float32 or float64 tensor [..., *normalized_shape].
        normalized_shape: the last sizes of the input.
        weight: tensor of this shape and of the input's dtype, or None.
        bias: tensor of this shape and of the input's dtype, or None.
        eps: added to the variance.
        precision: its ``elementwise``, ``weight``, ``grad_weight`` and accumulators.
        generator: source of the seed of stochastic roundings; nothing is drawn where
            nothing is stochastic.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: if the tensors are not float32 or float64 of one dtype, or
            ``precision`` is not a `Precision`.
        ValueError: if shapes do not match, or the carrier cannot hold the values.
        NotImplementedError: for accumulators that `lowprec.sum` does not take.
        RuntimeError: from torch, if the gradient is differentiated again.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        >>> layer_norm(x, [4], precision=Precision(elementwise="e4m3fn"))
        tensor([[-1.3750, -0.4375,  0.4375,  1.3750]])

    References:
        Ba, Kiros and Hinton 2016, Layer normalization, equation 4.
    """
    precision = as_precision(precision)
    if precision.elementwise is None:
        return torch.nn.functional.layer_norm(
            input, list(normalized_shape), weight, bias, eps
        )
    dims = _last_dims(input, normalized_shape)
    _check_parameters(input, normalized_shape, weight=weight, bias=bias)
    wide = wide_for(precision, input.dtype, generator, seed)
    z, _, _ = _standardized(wide, wide.enter(input), dims, eps)
    return wide.leave(_affine(wide, z, weight, bias, normalized_shape))


@overridable
def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Divide by the root mean square over the last dimensions in emulated arithmetic.

    With n elements per example: y = fl(x / sqrt(acc(x^2) / n + eps) fl_weight(g)).

    Contract:
        As `layer_norm`.

    Args:
        input: float32 or float64 tensor [..., *normalized_shape].
        normalized_shape: the last sizes of the input.
        weight: tensor of this shape and of the input's dtype, or None.
        eps: added to the mean square; None means the carrier's machine epsilon.
        precision: its ``elementwise``, ``weight``, ``grad_weight`` and accumulators.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: as `layer_norm`.
        ValueError: as `layer_norm`.
        NotImplementedError: as `layer_norm`.
        RuntimeError: as `layer_norm`.

    Example:
        >>> rms_norm(torch.ones(2), [2], precision=Precision(elementwise="e4m3fn"))
        tensor([1., 1.])

    References:
        Zhang and Sennrich 2019, Root mean square layer normalization, equation 4.
    """
    precision = as_precision(precision)
    if precision.elementwise is None:
        return torch.nn.functional.rms_norm(input, list(normalized_shape), weight, eps)
    dims = _last_dims(input, normalized_shape)
    _check_parameters(input, normalized_shape, weight=weight)
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    wide = wide_for(precision, input.dtype, generator, seed)
    x = wide.enter(input)
    scale = 1 / (_mean(wide, x * x, dims) + eps).sqrt()
    z = x * wide.expand(scale, x.shape)
    return wide.leave(_affine(wide, z, weight, None, normalized_shape))


@overridable
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Normalise over groups of channels in emulated arithmetic, forward and backward.

    The formulas are those of `layer_norm`; each group of channels of an example has
    its statistics, each channel its weight and bias.

    Contract:
        As `layer_norm`.

    Args:
        input: float32 or float64 tensor [N, C, *].
        num_groups: how many groups; divides C.
        weight: tensor [C] of the same dtype, or None.
        bias: tensor [C] of the same dtype, or None.
        eps: added to the variance.
        precision: its ``elementwise``, ``weight``, ``grad_weight`` and accumulators.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: as `layer_norm`.
        ValueError: as `layer_norm`.
        NotImplementedError: as `layer_norm`.
        RuntimeError: as `layer_norm`.

    Example:
        >>> x = torch.tensor([[1.0, 3.0, 5.0, 9.0]])
        >>> group_norm(x, 2, precision=Precision(elementwise="e4m3fn"))
        tensor([[-1.,  1., -1.,  1.]])

    References:
        Wu and He 2018, Group normalization, equations 1 and 2.
    """
    precision = as_precision(precision)
    if precision.elementwise is None:
        return torch.nn.functional.group_norm(input, num_groups, weight, bias, eps)
    if input.dim() < 2 or num_groups < 1 or input.shape[1] % num_groups:
        raise ValueError(
            f"input must be [N, C, *] with C a multiple of num_groups, got "
            f"{tuple(input.shape)} and {num_groups}"
        )
    channels = input.shape[1]
    _check_parameters(input, (channels,), weight=weight, bias=bias)
    wide = wide_for(precision, input.dtype, generator, seed)
    x = wide.enter(input).unflatten(1, (num_groups, channels // num_groups))
    z, _, _ = _standardized(wide, x, list(range(2, x.dim())), eps)
    shape = (channels, *[1] * (input.dim() - 2))
    return wide.leave(_affine(wide, z.flatten(1, 2), weight, bias, shape))


def _update(
    wide: Wide, running: Tensor | None, statistic: Tensor, momentum: float
) -> None:
    """Move a running statistic towards the value of this call, and round it."""
    if running is None:
        return
    with torch.no_grad():
        value = (1 - momentum) * running.double() + momentum * statistic.detach()
        running.copy_(wide.leave(value))


def _by_running_statistics(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    eps: float,
    shape: Sequence[int],
) -> Tensor:
    if mean is None or variance is None:
        raise ValueError(
            "running_mean and running_var are needed where no statistics of the input "
            "are used"
        )
    centred = x - mean.detach().double().reshape(shape)
    return centred * (1 / (variance.detach().double() + eps).sqrt()).reshape(shape)


def _unbiased(variance: Tensor, count: int) -> Tensor:
    return variance * (count / (count - 1))


@overridable
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Normalise every channel over the batch in emulated arithmetic.

    The formulas are those of `layer_norm`; each channel has its statistics, over
    examples and positions, its weight and its bias. With momentum p and n elements per
    channel the running mean becomes fl((1 - p) mean + p mu), the running variance
    fl((1 - p) variance + p v n / (n - 1)).

    Contract:
        As `layer_norm`. The running statistics are changed in place when training, and
        are used as they are, without gradients, when not; their rounding is
        ``elementwise``, after the float64 value of the whole update.

    Args:
        input: float32 or float64 tensor [N, C, *].
        running_mean: tensor [C] of the same dtype, or None when training.
        running_var: tensor [C] of the same dtype, or None when training.
        weight: tensor [C] of the same dtype, or None.
        bias: tensor [C] of the same dtype, or None.
        training: use the statistics of the input, and update the running ones.
        momentum: share of the input in the update.
        eps: added to the variance.
        precision: its ``elementwise``, ``weight``, ``grad_weight`` and accumulators.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: as `layer_norm`.
        ValueError: as `layer_norm`, or for training on one element per channel.
        NotImplementedError: as `layer_norm`.
        RuntimeError: as `layer_norm`.

    Example:
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> mean, variance = torch.zeros(1), torch.ones(1)
        >>> low = Precision(elementwise="e4m3fn")
        >>> batch_norm(x, mean, variance, training=True, precision=low)
        tensor([[-1.],
                [ 1.]])
        >>> mean, variance  # 0.2 and 1.1 in e4m3fn
        (tensor([0.2031]), tensor([1.1250]))

    References:
        Ioffe and Szegedy 2015, Batch normalization, algorithms 1 and 2.
    """
    precision = as_precision(precision)
    if precision.elementwise is None:
        return torch.nn.functional.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
    _check_channels(input, running_mean, running_var, weight, bias)
    dims = [0, *range(2, input.dim())]
    shape = (input.shape[1], *[1] * (input.dim() - 2))
    count = math.prod([input.shape[dim] for dim in dims])
    wide = wide_for(precision, input.dtype, generator, seed)
    x = wide.enter(input)
    if training:
        _check_count(count, input)
        z, mean, variance = _standardized(wide, x, dims, eps)
        _update(wide, running_mean, mean.flatten(), momentum)
        _update(wide, running_var, _unbiased(variance.flatten(), count), momentum)
    else:
        z = _by_running_statistics(x, running_mean, running_var, eps, shape)
    return wide.leave(_affine(wide, z, weight, bias, shape))


def _check_channels(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> None:
    if input.dim() < 2:
        raise ValueError(f"input must be [N, C, *], got {tuple(input.shape)}")
    _check_parameters(
        input,
        (input.shape[1],),
        running_mean=running_mean,
        running_var=running_var,
        weight=weight,
        bias=bias,
    )


def _check_count(count: int, input: Tensor) -> None:
    if count < 2:
        raise ValueError(
            "statistics need more than one element per channel, got input of shape "
            f"{tuple(input.shape)}"
        )


@overridable
def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Normalise every channel of every example in emulated arithmetic.

    The formulas are those of `batch_norm`; each channel of each example has its
    statistics, over positions. Running statistics take acc(statistic) / N, the mean
    over the examples.

    Contract:
        As `batch_norm`.

    Args:
        input: float32 or float64 tensor [N, C, *] with at least one *.
        running_mean: tensor [C] of the same dtype, or None.
        running_var: tensor [C] of the same dtype, or None.
        weight: tensor [C] of the same dtype, or None.
        bias: tensor [C] of the same dtype, or None.
        use_input_stats: use the statistics of the input, and update the running ones.
        momentum: share of the input in the update.
        eps: added to the variance.
        precision: its ``elementwise``, ``weight``, ``grad_weight`` and accumulators.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor of the input's shape.

    Raises:
        TypeError: as `layer_norm`.
        ValueError: as `batch_norm`.
        NotImplementedError: as `layer_norm`.
        RuntimeError: as `layer_norm`.

    Example:
        >>> x = torch.tensor([[[1.0, 3.0], [5.0, 9.0]]])
        >>> instance_norm(x, precision=Precision(elementwise="e4m3fn"))
        tensor([[[-1.,  1.],
                 [-1.,  1.]]])

    References:
        Ulyanov, Vedaldi and Lempitsky 2016, Instance normalization, equation 2.
    """
    precision = as_precision(precision)
    if precision.elementwise is None:
        return torch.nn.functional.instance_norm(
            input,
            running_mean,
            running_var,
            weight,
            bias,
            use_input_stats,
            momentum,
            eps,
        )
    _check_channels(input, running_mean, running_var, weight, bias)
    dims = list(range(2, input.dim()))
    shape = (input.shape[1], *[1] * len(dims))
    count = math.prod(input.shape[2:])
    wide = wide_for(precision, input.dtype, generator, seed)
    x = wide.enter(input)
    if use_input_stats:
        _check_count(count, input)
        z, mean, variance = _standardized(wide, x, dims, eps)
        for running, statistic in (
            (running_mean, mean),
            (running_var, _unbiased(variance, count)),
        ):
            if running is not None:
                rows = statistic.detach().reshape(input.shape[:2])
                _update(wide, running, _mean(wide, rows, [0])[0], momentum)
    else:
        z = _by_running_statistics(x, running_mean, running_var, eps, shape)
    return wide.leave(_affine(wide, z, weight, bias, shape))
