"""`lowprec.round`: rounding of tensors with a straight-through gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import kernels
from ..block_rounding import AnyRounding, BlockRounding, OperandLike, as_any_rounding
from ..formats import BlockFormat
from ..kernels.portable import CARRIERS, max_bits
from ..random import as_seed, split_seed
from ..rounding import (
    Rounding,
    RoundingMode,
    Saturation,
    ScalarRounding,
    ScalarRoundingLike,
    Variant,
    as_scalar_rounding,
)
from ..table_rounding import TableRounding
from ._block import AlongAxis, normalised_axis

# What tensors are rounded by: a block rounding is bound to an axis first.
Bound: TypeAlias = Rounding | TableRounding | AlongAxis

_AnyRounding = TypeVar("_AnyRounding", bound=AnyRounding)

_LARGEST_OFFSET = 2**62
_NO_CHANGES = (None, None, None, None)
# Elements below which a second pass costs less than a Python autograd function.
_SMALL = 8192


def _is_dense(x: Tensor) -> bool:
    # Dynamo knows no layouts; what it compiles was checked or is met by the kernels.
    return torch.compiler.is_compiling() or x.layout == torch.strided


def check_carrier(x: Any, what: str) -> None:
    """Refuse what is not a float32 or float64 tensor.

    Raises:
        TypeError: saying which dtype was given and what to do.
    """
    if x.__class__ is Tensor and x.dtype in CARRIERS and _is_dense(x):
        return
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{what} must be a float32 or float64 tensor, got {type(x).__name__}: "
            "torch.tensor(value, dtype=torch.float64) makes one"
        )
    if not _is_dense(x):
        raise TypeError(
            f"{what} must be a dense tensor, got {x.layout}: use x.to_dense()"
        )
    if x.dtype in CARRIERS:
        return
    name = str(x.dtype).removeprefix("torch.")
    if x.dtype in (torch.float16, torch.bfloat16):
        advice = "a half carrier would round a second time; use x.float()"
    elif x.dtype.is_complex:
        advice = "round torch.view_as_real(x)"
    else:
        advice = "convert it first, for example x.to(torch.float32)"
    raise TypeError(f"{what} must be a float32 or float64 tensor, got {name}: {advice}")


def _refuse_unheld(rounding: ScalarRounding, x: Tensor) -> None:
    """Refuse formats above a carrier's range, where fakes would not."""
    code = rounding.code
    if code[1] > 127:
        max_bits(kernels.RoundingCode(*code), CARRIERS[x.dtype])


def apply(x: Tensor, rounding: Bound, seed: Tensor | None, offset: int) -> Tensor:
    """Round without autograd; ``seed`` is needed by stochastic modes only."""
    if isinstance(rounding, AlongAxis):
        return rounding.apply(x, seed, offset)
    _refuse_unheld(rounding, x)
    if seed is None:
        return kernels.eager_round(x, rounding.code)
    return kernels.eager_round_stochastic(x, rounding.code, seed, offset)


def _gradients(ctx: Any, gradient: Tensor, function: Callable[..., Tensor]) -> Any:
    """Return the gradients of both classes below: that of x, rounded where asked."""
    rounding, seed, offset = ctx.backward_rounding
    if rounding is not None:
        gradient = function(gradient, rounding, seed, offset, None, None)
    return gradient, None, None, None, None, None


class _StraightThrough(torch.autograd.Function):
    """Rounding whose derivative is taken as one; the gradient may be rounded too."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rounding: Bound,
        seed: Tensor | None,
        offset: int,
        backward: Bound | None,
        backward_seed: Tensor | None,
    ) -> Tensor:
        ctx.backward_rounding = (backward, backward_seed, offset)
        return apply(x, rounding, seed, offset)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _gradients(ctx, gradients[0], _straight_through)


class _StraightThroughTransformable(torch.autograd.Function):
    """The same for torch.func and dual tensors, which need setup_context and jvp.

    It is a second class because Dynamo refuses functions with a jvp.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        rounding: Bound,
        seed: Tensor | None,
        offset: int,
        backward: Bound | None,
        backward_seed: Tensor | None,
    ) -> Tensor:
        return apply(x, rounding, seed, offset)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, _, offset, backward, backward_seed = inputs
        ctx.backward_rounding = (backward, backward_seed, offset)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _gradients(ctx, gradients[0], _straight_through_transformable)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0].clone()


# Typed as what they are used as: torch leaves Function.apply untyped.
_straight_through: Callable[..., Tensor] = _StraightThrough.apply
_straight_through_transformable: Callable[..., Tensor] = (
    _StraightThroughTransformable.apply
)
# Where no transform is active, Function.apply passes on to its base class.
_straight_through_plain: Callable[..., Tensor] = super(
    torch.autograd.Function, _StraightThrough
).apply


def transforms_active() -> bool:
    try:
        return bool(torch._C._are_functorch_transforms_active())
    except AttributeError:  # private: without it, torch.func needs the slower class
        return True


def _is_dual(x: Tensor) -> bool:
    """Whether ``x`` carries a tangent of forward-mode differentiation."""
    # Private, and outside of dual levels much cheaper than unpacking.
    if getattr(forward_ad, "_current_level", 0) < 0:
        return False
    return forward_ad.unpack_dual(x).tangent is not None


def refuse_compiled_transforms(name: str) -> None:
    """Refuse to be traced inside a torch.func transform.

    Dynamo would trace forward alone and take its derivative, which is zero.

    Raises:
        NotImplementedError: which makes Dynamo run the eager code, or say so.
    """
    if torch.compiler.is_compiling() and transforms_active():
        raise NotImplementedError(
            f"{name} inside a torch.func transform cannot be compiled: without "
            "fullgraph=True, torch.compile runs this part uncompiled"
        )


def dispatch(
    x: Tensor,
    rounding: Bound,
    seed: Tensor | None,
    offset: int,
    backward: Bound | None,
    backward_seed: Tensor | None,
) -> Tensor:
    """Choose the cheapest autograd path that is right here."""
    arguments = (x, rounding, seed, offset, backward, backward_seed)
    result: Tensor
    if torch.compiler.is_compiling():
        refuse_compiled_transforms("lowprec.round")
        result = _straight_through(*arguments)
    elif transforms_active() or _is_dual(x):
        result = _straight_through_transformable(*arguments)
    elif x.requires_grad and torch.is_grad_enabled():
        result = _straight_through_plain(*arguments)
    else:
        return apply(x, rounding, seed, offset)
    return result


def modified(
    rounding: ScalarRoundingLike,
    mode: RoundingMode | str | None,
    saturation: Saturation | str | None,
    random_bits: int | None,
    variant: Variant | str | None,
) -> ScalarRounding:
    return _changed(
        as_scalar_rounding(rounding), mode, saturation, random_bits, variant
    )


def _changed(rounding: _AnyRounding, *changes: Any) -> _AnyRounding:
    names = ("mode", "saturation", "random_bits", "variant")
    pairs = zip(names, changes, strict=True)
    changed = {name: value for name, value in pairs if value is not None}
    if isinstance(rounding, TableRounding) and "saturation" in changed:
        raise ValueError(
            f"saturation={changed['saturation']!r} does not apply to "
            f"{rounding.format!r}: beyond its ends the ends stand"
        )
    return replace(rounding, **changed) if changed else rounding


# Types distinguish keys, so that True is not taken for 1.
_cached = functools.lru_cache(maxsize=4096, typed=True)(modified)
_cached_name = functools.lru_cache(maxsize=4096)(as_any_rounding)


def chosen(rounding: ScalarRoundingLike, *changes: Any) -> ScalarRounding:
    """Return what `modified` returns, from a cache where there may be one."""
    if torch.compiler.is_compiling():  # Dynamo warns about caches, and needs none
        return modified(rounding, *changes)
    try:
        return _cached(rounding, *changes)
    except TypeError:  # unhashable arguments have errors of their own
        return modified(rounding, *changes)


def _as_rounding(value: OperandLike) -> AnyRounding:
    """Return the rounding meant; names have a cache that is looked up fast."""
    if value.__class__ is str and not torch.compiler.is_compiling():
        return _cached_name(value)
    if isinstance(value, (BlockFormat, BlockRounding, str)):
        return as_any_rounding(value)
    return chosen(value, None, None, None, None)


def _bound(rounding: AnyRounding, axis: int | None, dims: int) -> Bound:
    """Bind a block rounding to its axis; others have none."""
    if isinstance(rounding, BlockRounding):
        return AlongAxis(rounding, normalised_axis(-1 if axis is None else axis, dims))
    if axis is not None:
        raise ValueError(f"axis={axis!r} needs a block format, got {rounding!r}")
    return rounding


def round(
    x: Tensor,
    rounding: OperandLike,
    mode: RoundingMode | str | None = None,
    *,
    axis: int | None = None,
    saturation: Saturation | str | None = None,
    random_bits: int | None = None,
    variant: Variant | str | None = None,
    backward: OperandLike | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    offset: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """Round every element of a tensor to a number format.

    fl(x) = sign(x) (k + up) 2^q with |x| = (k + nu) 2^q, where 2^q is the format's
    quantum at x (max(floor(log2 |x|), emin) - p + 1) and the mode decides ``up`` from
    the discarded fraction nu in [0, 1). Saturation is applied after rounding with an
    exponent that is unbounded above.

    Contract:
        Exact from either carrier: one rounding, by integer operations. NaN stays NaN;
        zeros keep their sign where the format has signed zeros, also results that
        round to zero. Overflow follows ``saturation``; the carrier's largest value
        stands for that of a format that reaches beyond it. Underflow rounds to the
        subnormals, or to zero and the smallest normal where there are none.
        Stochastic modes are a pure function of (seed, row-major element index +
        offset), whatever device, threads, strides or sharding. The gradient is that
        of the identity, rounded to ``backward`` if that is given. Blocks have the
        scales that `ScaleRule` defines; their values q s are exact, beyond the
        carrier's range infinite, and q s t, with a scale t of the tensor, is rounded
        to a float32 carrier once more. `BlockFormat` says what NaN and infinity do.

    Args:
        x: float32 or float64 tensor of any shape and layout.
        rounding: a `Rounding`, or a `Format`, format name or torch dtype, which mean
            nearest-even without saturation; or a `BlockRounding`, or a `BlockFormat`
            or its name, which mean nearest-even with saturation; or a
            `TableRounding`, or a `Posit`, its name, or `Levels`.
        mode: overrides the rounding's mode.
        axis: of block formats, the dimension that is cut into blocks, the last one if
            None.
        saturation: overrides the rounding's saturation.
        random_bits: overrides the rounding's number of random bits.
        variant: overrides the rounding's stochastic variant.
        backward: rounding of the gradient, block formats along the same axis; None
            leaves it unrounded. If stochastic, its seed is the first part of
            `lowprec.random.split_seed`.
        generator: source of the seed of stochastic modes; None means torch's default
            generator, so ``torch.manual_seed`` reproduces a run.
        seed: the seed itself instead, an int or 0-d int64 tensor.
        offset: linear index of the first element, for shards of a larger tensor; from
            0 to 2^62.
        out: tensor of ``x``'s shape and dtype that receives the result; may be ``x``.

    Returns:
        Tensor of ``x``'s shape and dtype; every element is a value of the format.

    Raises:
        TypeError: if ``x`` is not a dense float32 or float64 tensor, or ``offset`` not
            an int.
        ValueError: if a name is unknown, the carrier cannot hold the format's values,
            ``offset`` is out of range, ``out`` does not match, or both ``generator``
            and ``seed`` are given.

    Example:
        >>> x = torch.tensor([1.0, 1.00390625, 3.3])
        >>> round(x, "bfloat16").tolist()
        [1.0, 1.0, 3.296875]
        >>> round(x, "e4m3fn", "stochastic", seed=1).tolist()
        [1.0, 1.0, 3.25]
        >>> round(torch.tensor([0.3, 5.0, 40.0]), "mxfp4").tolist()
        [0.0, 4.0, 32.0]

    References:
        IEEE 754-2019 section 4.3; OCP Microscaling Formats 1.0; for the
        stochastic variants P3109 3.2.2.
    """
    if offset.__class__ is not int or offset != 0:
        _check_offset(offset)
    if seed is not None and generator is not None:
        raise ValueError("give either seed= or generator=, not both")
    given = rounding if isinstance(rounding, Rounding) else _as_rounding(rounding)
    changes = (mode, saturation, random_bits, variant)
    if changes != _NO_CHANGES:
        if isinstance(given, BlockRounding):
            given = _changed(given, *changes)
        else:
            given = chosen(given, *changes)
    forward: Bound
    if axis is None and not isinstance(given, BlockRounding):
        forward = given
        if backward is None and kernels.unobserved(x):
            result = _round_unobserved(x, forward, seed, generator, offset, out)
            if result is not None:
                return result
        else:
            check_carrier(x, "x")
    else:
        check_carrier(x, "x")
        forward = _bound(given, axis, x.dim())
    gradient = None
    if backward is not None:
        given = _as_rounding(backward)
        own = axis if isinstance(given, BlockRounding) else None
        gradient = _bound(given, own, x.dim())
    forward_seed = backward_seed = None
    if forward.stochastic:
        forward_seed = as_seed(seed, generator)
    if gradient is not None and gradient.stochastic:
        base = as_seed(seed, generator) if forward_seed is None else forward_seed
        (backward_seed,) = split_seed(base, 1)
    if out is not None:
        return _round_into(x, forward, forward_seed, offset, out)
    return dispatch(x, forward, forward_seed, offset, gradient, backward_seed)


def _round_unobserved(
    x: Tensor,
    rounding: ScalarRounding,
    seed: int | Tensor | None,
    generator: torch.Generator | None,
    offset: int,
    out: Tensor | None,
) -> Tensor | None:
    """Round where `round` would do the same after more questions, or return None."""
    needs_gradient = x.requires_grad and torch.is_grad_enabled()
    if _is_dual(x) or (out is not None and (needs_gradient or not _fits(x, out))):
        return None
    if rounding.stochastic:
        if needs_gradient or (isinstance(seed, Tensor) and not kernels.is_plain(seed)):
            return None
        # An int is a key as it is: only operations need a tensor.
        if type(seed) is int and -(2**63) <= seed < 2**64:
            key: int | Tensor = seed
        else:
            key = as_seed(seed, generator)
        return kernels.round_stochastic_unobserved(x, rounding.code, key, offset, out)
    if not needs_gradient:
        return kernels.round_unobserved(x, rounding.code, out)
    if x.numel() > _SMALL:
        return None
    return kernels.round_straight_through(x, rounding.code)


def _fits(x: Tensor, out: Any) -> bool:
    """Whether `_round_into` would accept ``out`` beside an unobserved ``x``."""
    return out is x or (
        kernels.is_plain(out)
        and out.dtype == x.dtype
        and out.shape == x.shape
        and not (out.requires_grad and torch.is_grad_enabled())
        and not _is_dual(out)
    )


def _check_offset(offset: Any) -> None:
    if isinstance(offset, bool) or not isinstance(offset, (int, torch.SymInt)):
        raise TypeError(
            f"offset must be an int, got {offset!r} of type {type(offset).__name__}"
        )
    if not 0 <= offset <= _LARGEST_OFFSET:
        raise ValueError(f"offset must be from 0 to 2^62, got {offset}")


def _round_into(
    x: Tensor, rounding: Bound, seed: Tensor | None, offset: int, out: Tensor
) -> Tensor:
    """Round into ``out``; gradients are refused."""
    check_carrier(out, "out")
    if out.shape != x.shape or out.dtype != x.dtype or out.device != x.device:
        wanted = (tuple(x.shape), x.dtype, x.device)
        given = (tuple(out.shape), out.dtype, out.device)
        raise ValueError(
            "out must have shape {}, dtype {} and device {}, ".format(*wanted)
            + "got {}, {} and {}".format(*given)
        )
    if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
        raise ValueError(
            "out= does not support gradients: use it under torch.no_grad()"
        )
    if _is_transformed(x, out) or isinstance(rounding, AlongAxis):
        return out.copy_(dispatch(x, rounding, seed, offset, None, None))
    _refuse_unheld(rounding, x)
    if seed is None:
        kernels.eager_round(x, rounding.code, out)
    else:
        kernels.eager_round_stochastic(x, rounding.code, seed, offset, out)
    return out


def _is_transformed(x: Tensor, out: Tensor) -> bool:
    """Whether torch.func or forward-mode differentiation must see every operation."""
    if torch.compiler.is_compiling():
        refuse_compiled_transforms("lowprec.round")
        return False
    return transforms_active() or _is_dual(x) or _is_dual(out)
