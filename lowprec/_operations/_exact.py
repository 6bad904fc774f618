"""Which operations of torch are exact by nature, and what speaks against the others.

An operation is *exact by nature* if every floating-point element of its results is an
operand's element (possibly negated), a constant or fresh data, and its gradient is as
harmless. Operations that only choose values forward but add gradients backward are
listed apart. Whatever is in no list rounds, or may round, and is not emulated.
Calls that put a constant which a format does not have are found by ``_constants``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..arithmetic import tensors_in
from ._names import words

_Arguments = Sequence[Any]
_Keywords = Mapping[str, Any]


_VIEWS = words(
    """_pack_padded_sequence _pad_packed_sequence adjoint alias align_to as_subclass
    atleast_1d atleast_2d atleast_3d block_diag cat channel_shuffle chunk clone
    column_stack complex concat concatenate conj conj_physical contiguous cpu cuda
    detach detach_copy diag diag_embed diagflat diagonal diagonal_scatter dsplit
    dstack flatten flip fliplr flipud hsplit hstack index_copy moveaxis
    movedim narrow native_channel_shuffle numpy pad_sequence permute pin_memory
    pixel_shuffle pixel_unshuffle ravel rename reshape reshape_as resolve_conj
    resolve_neg roll rot90 row_stack select select_scatter slice_scatter split
    split_with_sizes squeeze stack swapaxes swapdims t tensor_split transpose tril
    triu unbind unflatten unsqueeze view view_as view_as_complex view_as_real vsplit
    vstack"""
)
_JOINS = words(
    """block_diag cat column_stack concat concatenate dstack hstack row_stack stack
    vstack"""
)
_CHOICES = words(
    """argmax argmin argsort bernoulli byte char fix int kthvalue long
    masked_scatter masked_select neg negative positive relu short sign sort
    topk trunc"""
)
# Exact where the numbers that they put are values of the format.
_CHOICES_WITH_NUMBERS = words("hardtanh relu6 threshold")
_COMPARISONS = words(
    """_nested_tensor_from_mask_left_aligned
    all allclose any array_equal bool bucketize count_nonzero eq equal ge greater
    greater_equal gt isclose isfinite isin isinf isnan isneginf isposinf isreal le
    less less_equal logical_and logical_not logical_or logical_xor lt ne nonzero
    not_equal one_hot searchsorted signbit tril_indices triu_indices unique
    unique_consecutive bitwise_and bitwise_not bitwise_or bitwise_xor"""
)
_DATA = words(
    """as_tensor asarray bernoulli_ cauchy_ empty empty_like empty_permuted
    empty_strided exponential_ eye fill fill_ from_numpy frombuffer full full_like
    geometric_ log_normal_ multinomial new_empty new_empty_strided new_full new_ones
    new_tensor new_zeros normal normal_ ones ones_like rand rand_like randint
    randint_like randn randn_like random_ randperm scalar_tensor tensor uniform_
    zero_ zeros zeros_like kaiming_uniform_ kaiming_normal_ trunc_normal_ constant_"""
)
# Bookkeeping, conversions to Python, and the start of backward: the nodes of emulated
# operations do their own arithmetic, the others were reported in forward.
_CONTROL = words(
    """array array_wrap backward contains data_ptr deepcopy dim dir element_size format
    get_device grad has_names hash item iter len names ndimension nelement numel
    reduce reduce_ex register_hook register_post_accumulate_grad_hook repr
    requires_grad_ result_type retain_grad reversed setstate share_memory_ size
    storage storage_offset storage_type str stride tolist type_as_dtype
    untyped_storage _record_function_enter _record_function_enter_new
    _record_function_exit"""
)
EXACT = _VIEWS | _CHOICES | _COMPARISONS | _DATA | _CONTROL
# Elements may be used several times, or share a gradient among ties.
GRADIENT_ADDS = words(
    """adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d amax amin aminmax
    as_strided broadcast_tensors broadcast_to cartesian_prod combinations embedding
    expand expand_as expand_copy gather index_select max_pool1d max_pool2d max_pool3d
    max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max min
    median meshgrid repeat repeat_interleave take take_along_dim tile unfold"""
)
# Exact, and so is the gradient unless an operand is broadcast.
_CHOICES_OF_SEVERAL = words(
    """clamp clamp_max clamp_min clip copysign fmax fmin masked_fill maximum minimum
    where"""
)
_INTEGERS = words(
    """add addcmul addmm arange baddbmm bincount bmm bitwise_left_shift
    bitwise_right_shift clamp cross cumprod cumsum cummax cummin diff dot
    floor_divide fmod gcd index_add index_put lcm lshift matmul max min mm mul
    multiply mv outer pow prod remainder rshift scatter scatter_add square sub
    subtract sum trace maximum minimum where"""
)
_CONVERSIONS = {
    "float": torch.float32,
    "double": torch.float64,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
}
_CONVERTERS = frozenset(("to", "type", "type_as", *_CONVERSIONS))
# Which of them is exact depends on the arguments.
_OF_COMPLEX = frozenset(("abs", "sgn"))
CONDITIONAL = (
    _CONVERTERS
    | _JOINS
    | _CHOICES_OF_SEVERAL
    | _OF_COMPLEX
    | _CHOICES_WITH_NUMBERS
    | {"dropout", "index_fill", "pad"}
)
_SIGNIFICANT_BITS = {
    torch.bool: 1,
    torch.uint8: 8,
    torch.int8: 7,
    torch.int16: 15,
    torch.int32: 31,
    torch.int64: 63,
    torch.bfloat16: 8,
    torch.float16: 11,
    torch.float32: 24,
    torch.float64: 53,
}


_BROADCASTS = "the gradient of a broadcast value adds in the carrier"


def _operands(args: _Arguments, kwargs: _Keywords) -> list[Tensor]:
    return tensors_in((*args, *kwargs.values()))


def _needs_gradient(operands: list[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in operands)


def _floating(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() or value.is_complex()
    if isinstance(value, torch.dtype):
        return value.is_floating_point or value.is_complex
    if isinstance(value, (list, tuple)):
        return any(_floating(item) for item in value)
    return isinstance(value, (float, complex))


def _holds(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether converting every value of one dtype to the other is exact."""
    if source == target:
        return True
    if not target.is_floating_point:
        # A conversion to integers gives no floating-point result.
        return not target.is_complex
    if source not in _SIGNIFICANT_BITS or target not in _SIGNIFICANT_BITS:
        return False
    fits = _SIGNIFICANT_BITS[source] <= _SIGNIFICANT_BITS[target]
    in_range = not source.is_floating_point or (
        torch.finfo(source).max <= torch.finfo(target).max
    )
    return fits and in_range


def _conversion(name: str, args: _Arguments, kwargs: _Keywords) -> str | None:
    source = args[0].dtype
    target = _CONVERSIONS.get(name)
    for value in (*args[1:], *kwargs.values()):
        if isinstance(value, torch.dtype):
            target = value
        elif isinstance(value, Tensor):
            target = value.dtype
        elif isinstance(value, str) and name == "type":
            return "it converts by a name of a type"
    if target is None or _holds(source, target):
        return None
    return f"converting {source} to {target} rounds"


def _copy(name: str, args: _Arguments, kwargs: _Keywords) -> str | None:
    target, position = args[0], 2 if name == "setitem" else 1
    # Only copy_(source, non_blocking) has keywords, and only one tensor among them.
    rest = [*args[position:], *tensors_in(kwargs.values())]
    source = rest[0] if rest else None
    if not isinstance(source, Tensor):
        return None
    if not _holds(source.dtype, target.dtype):
        return f"converting {source.dtype} to {target.dtype} rounds"
    if not _needs_gradient([source]):
        return None
    shape = _indexed_shape(target, args[1]) if name == "setitem" else target.shape
    return _BROADCASTS if source.shape != shape else None


def _indexed_shape(target: Tensor, index: Any) -> torch.Size | None:
    """Return the shape of an indexed part, or None if it depends on values."""
    if any(x.dtype in (torch.bool, torch.uint8) for x in tensors_in([index])):
        return None
    with torch._C.DisableTorchFunction():
        return target.detach()[index].shape


def _index_put(args: _Arguments, kwargs: _Keywords) -> str | None:
    if not _overwrites(args, kwargs):
        return "it adds to elements"
    indices = kwargs["indices"] if "indices" in kwargs else args[1]
    values = kwargs["values"] if "values" in kwargs else args[2]
    if not _needs_gradient([values]):
        return None
    shape = _indexed_shape(args[0], tuple(indices))
    return _BROADCASTS if values.shape != shape else None


def _promotion(operands: list[Tensor]) -> str | None:
    """Say whether bringing operands to a common dtype rounds; constants do not."""
    dtypes = {x.dtype for x in operands if x.dim() > 0}
    if len(dtypes) < 2:
        return None
    target = functools.reduce(torch.promote_types, dtypes)
    for source in dtypes:
        if not _holds(source, target):
            return f"converting {source} to {target} rounds"
    return None


def _indexes_with_integers(index: Any) -> bool:
    items = index if isinstance(index, tuple) else (index,)
    return any(
        (isinstance(item, Tensor) and item.dtype not in (torch.bool, torch.uint8))
        or isinstance(item, list)
        for item in items
    )


def _overwrites(args: _Arguments, kwargs: _Keywords) -> bool:
    """Whether scattered values replace elements; else they are combined with them."""
    adds = args[3] if len(args) > 3 and isinstance(args[3], bool) else False
    return not kwargs.get("accumulate", adds) and kwargs.get("reduce") is None


def _dropout(args: _Arguments, kwargs: _Keywords) -> str | None:
    p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    training = args[2] if len(args) > 2 else kwargs.get("training", True)
    return "it scales by 1 / (1 - p)" if training and p > 0 else None


def _pad(args: _Arguments, kwargs: _Keywords) -> str | None:
    mode = args[2] if len(args) > 2 else kwargs.get("mode", "constant")
    if mode == "constant" or not _needs_gradient(_operands(args, kwargs)):
        return None
    return "the gradient of repeated elements adds in the carrier"


def always_exact(called: str) -> bool:
    """Whether the operation of this name is exact whatever its arguments are."""
    name = called.rstrip("_")
    if called in _DATA:
        return True
    if called in ("copy_", "setitem") or name in CONDITIONAL:
        return False
    return called in EXACT or name in EXACT or name.startswith("is_")


def objection(called: str, args: _Arguments, kwargs: _Keywords) -> str | None:
    """Say why an operation is not exact by nature, or return None if it is.

    Args:
        called: as `operation_name` gives it.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.

    Returns:
        A clause for a message, or None.

    Example:
        >>> objection("relu", (torch.ones(2),), {}) is None
        True
        >>> objection("add", (torch.ones(2), 1), {})
        'it may round'
    """
    if always_exact(called):
        return None
    if called in ("copy_", "setitem"):
        return _copy(called, args, kwargs)
    name = called.rstrip("_")
    operands = _operands(args, kwargs)
    if name in _CONVERTERS:
        return _conversion(name, args, kwargs) if operands else None
    if name == "dropout":
        return _dropout(args, kwargs)
    if name == "pad":
        return _pad(args, kwargs)
    if name in _JOINS or name in _CHOICES_OF_SEVERAL:
        reason = _promotion(operands)
        if reason is not None:
            return reason
    if name in _JOINS or name in _CHOICES_WITH_NUMBERS:
        return None
    if name == "scatter":
        return None if _overwrites(args, kwargs) else "it adds to elements"
    if name == "index_put":
        return _index_put(args, kwargs)
    if name == "index_fill":
        return _BROADCASTS if _needs_gradient(operands[2:]) else None
    if name in _OF_COMPLEX:
        rounds = any(x.is_complex() for x in operands)
        return "the absolute value of complex numbers rounds" if rounds else None
    if name == "embedding" and kwargs.get("max_norm") is not None:
        return "max_norm scales rows of the weight"
    if name == "getitem":
        if not _indexes_with_integers(args[1]) or not _needs_gradient([args[0]]):
            return None
        return "the gradient of repeated elements adds in the carrier"
    floating = any(map(_floating, (*args, *kwargs.values())))
    # Without tensors it is a setting, such as torch.device.
    if not floating and (name in _INTEGERS or not operands):
        return None
    return _gradient_objection(name, args, kwargs, operands)


def _gradient_objection(
    name: str, args: _Arguments, kwargs: _Keywords, operands: list[Tensor]
) -> str | None:
    two = name in ("max", "min") and len(args) > 1 and isinstance(args[1], Tensor)
    if name in _CHOICES_OF_SEVERAL or two:
        full = torch.broadcast_shapes(*(x.shape for x in operands))
        if _needs_gradient([x for x in operands if x.shape != full]):
            return "the gradient of a broadcast operand adds in the carrier"
        return None
    if name in GRADIENT_ADDS:
        along_dimension = len(args) > 1 or "dim" in kwargs or "other" in kwargs
        if name in ("max", "min", "median") and along_dimension:
            return None
        if _needs_gradient(operands):
            return "its gradient may add or divide in the carrier"
        return None
    return "it may round"
