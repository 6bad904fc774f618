"""The C++ kernels for CPU tensors, called through ctypes on data pointers.

``available()`` says whether the library was built and loaded; ``status()`` says with
which instruction set it runs. The functions below take CPU tensors (float32 or float64,
any strides, no autograd) and the integers of `lowprec.kernels.codes`, and return what
the portable kernels return, bit for bit; products of codes that are not for them
(`codes.is_special`) are left to these::

    round(x, code, out=None) -> Tensor
    round_stochastic(x, code, seed, offset=0, out=None) -> Tensor
    matmul(a, b, accumulate, product, within, order, block_size, seed, offset)
        -> Tensor
    available() -> bool;  status() -> str;  load(path=None) -> bool
    instruction_sets() -> tuple[int, ...];  set_instruction_set(isa) -> None

``seed`` is an int (its low 64 bits are the key) or a 0-d int64 tensor. ``out`` may be
the input itself. Threads follow ``torch.get_num_threads()``; results do not depend on
them. ctypes releases the interpreter lock during a call; the tensors are kept alive by
local names until it returns.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from . import codes, portable, sums

_INTERFACE = 7
_SERIAL = 65536  # elements that one thread rounds alone (kGrain in environment.h)
_NAMES = {2: "baseline", 3: "x86-64-v3", 4: "x86-64-v4"}
_WIDTHS = {torch.float32: 32, torch.float64: 64}
_UNALIGNED = {32: 3, 64: 7}  # bits of an address that alignment leaves zero
_MASK = (1 << 64) - 1

_int, _long, _ulong = ctypes.c_int, ctypes.c_int64, ctypes.c_uint64
_pointer = ctypes.c_void_p
_INTEGERS = len(codes.RoundingCode._fields)
_Code = _long * _INTEGERS
_CodeArray = ctypes.Array[ctypes.c_int64]
_Geometry = _long * 10

_library: ctypes.CDLL | None = None
_reason = "the C++ library was not built"


def _find() -> str | None:
    # In an editable install the library lies elsewhere; its import spec knows where.
    spec = importlib.util.find_spec(f"{__package__}._k")
    if spec is not None and spec.origin is not None:
        return spec.origin
    beside = sorted(Path(__file__).parent.glob("_k.*"))
    found = [path for path in beside if path.suffix in (".so", ".dylib", ".dll")]
    return str(found[0]) if found else None


def load(path: str | Path | None = None) -> bool:
    """Load the library from ``path``, or from where the package was installed.

    Args:
        path: file of the shared library; None to look for it.

    Returns:
        Whether a library is loaded now; `status` has the reason if not.
    """
    global _library, _reason
    _library = None
    chosen = str(path) if path is not None else _find()
    if chosen is None:
        _reason = "the C++ library was not built"
        return False
    try:
        library = ctypes.CDLL(chosen)
        interface = library.lowprec_interface()
    except (OSError, AttributeError) as error:
        _reason = f"{chosen} cannot be loaded: {error}"
        return False
    if interface != _INTERFACE:
        _reason = f"{chosen} has interface {interface}, this package {_INTERFACE}"
        return False
    library.lowprec_round.argtypes = [_int, _pointer, _pointer, _long, _pointer, _int]
    library.lowprec_round_stochastic.argtypes = [
        *(_int, _pointer, _pointer, _long, _pointer),
        *(_ulong, _ulong, _int),
    ]
    for coding in (library.lowprec_encode, library.lowprec_decode):
        coding.argtypes = [_int, _int, _pointer, _pointer, _long, _pointer, _int]
    library.lowprec_matmul.argtypes = [
        *(_int, _pointer, _pointer, _pointer, _pointer),
        *(_pointer, _pointer, _pointer),
        *(_long, _long, _ulong, _ulong, _int),
    ]
    library.lowprec_levels.argtypes = [_int, _pointer]
    library.lowprec_sample_levels.argtypes = [
        *(_int, _pointer, _pointer, _long, _pointer, _long),
        *(_long, _long, _long, _ulong, _ulong, _int),
    ]
    library.lowprec_descent.argtypes = [_int, _pointer, _pointer]
    _library = library
    return True


def available() -> bool:
    """Whether the C++ library is loaded."""
    return _library is not None


def status() -> str:
    """Say which build of the library runs, or why there is none."""
    if _library is None:
        return f"not available: {_reason}"
    return f"native ({_NAMES[_library.lowprec_isa()]})"


def loaded() -> ctypes.CDLL:
    """Return the library, or raise a RuntimeError that says why there is none."""
    if _library is None:
        raise RuntimeError(f"the native kernels are not available: {_reason}")
    return _library


def instruction_sets() -> tuple[int, ...]:
    """Instruction sets that this machine can run: 2 baseline, 3 AVX2, 4 AVX-512."""
    return tuple(range(2, loaded().lowprec_best_isa() + 1))


def set_instruction_set(isa: int | None = None) -> None:
    """Use one of `instruction_sets`, or the best one; results are the same.

    Raises:
        ValueError: if this machine cannot run it.
    """
    library = loaded()
    chosen = library.lowprec_best_isa() if isa is None else isa
    if library.lowprec_set_isa(chosen) != 0:
        raise ValueError(
            f"instruction set {isa} is not one of {instruction_sets()} of this machine"
        )


@functools.lru_cache(maxsize=1024)
def _packed(code: tuple[int, ...]) -> _CodeArray:
    return _Code(*code[:_INTEGERS])  # the library refuses codes that have more


@functools.lru_cache(maxsize=1024)
def _address(code: tuple[int, ...]) -> tuple[int, _CodeArray]:
    """Where the integers of a code lie, and what keeps them there."""
    array = _packed(code)
    return ctypes.addressof(array), array


def key_of(seed: int | Tensor) -> int:
    """Return the 64 bits of a seed."""
    return int(seed) & _MASK


def _signed(key: int) -> int:
    """Return the int64 with the bits of a 64-bit key."""
    return key - (1 << 64) if key >> 63 else key


def width_of(x: Tensor) -> int:
    """Return the bits of a carrier element; a TypeError says what is none."""
    width = _WIDTHS.get(x.dtype)
    if width is None or not x.is_cpu or x.layout != torch.strided:
        name = str(x.dtype).removeprefix("torch.")
        raise TypeError(
            "the native kernels take dense float32 or float64 CPU tensors, "
            f"got {name} on {x.device}, {x.layout}"
        )
    return width


def memory_of(x: Tensor) -> int:
    """Return where the elements of ``x`` lie.

    Raises:
        ValueError: if that is nowhere, or not aligned to the elements.
    """
    pointer = x.data_ptr()
    if (pointer % x.element_size() or not pointer) and x.numel():
        raise ValueError(
            f"the elements of a {x.dtype} tensor cannot begin at address {pointer}, "
            f"which is no multiple of {x.element_size()}: clone the tensor"
            if pointer
            else f"a {x.dtype} tensor of shape {tuple(x.shape)} has no memory"
        )
    return pointer


def checked_offset(offset: int, count: int) -> int:
    """Return the offset; a ValueError says what is out of range."""
    if not 0 <= offset <= _MASK - count:
        raise ValueError(
            f"offset must be from 0 to 2^64 - {count + 1} for {count} elements, "
            f"got {offset}"
        )
    return offset


def _check_size(*sizes: int) -> None:
    """Refuse shapes of which the kernels cannot count the bytes in 64 bits."""
    if math.prod(sizes) >= 1 << 60:
        shape = " x ".join(map(str, sizes))
        raise ValueError(
            f"{shape} elements are more than memory can hold: split the operands"
        )


def _check_target(x: Tensor, out: Tensor) -> None:
    if out is not x and (
        out.dtype != x.dtype or out.shape != x.shape or out.device != x.device
    ):
        raise ValueError(
            f"out must be a {x.dtype} CPU tensor of shape {tuple(x.shape)}, "
            f"got {out.dtype} {tuple(out.shape)} on {out.device}"
        )


def target_for(x: Tensor, out: Tensor | None) -> Tensor:
    """Return where to write the contiguous result of rounding the contiguous ``x``.

    Args:
        x: what will be rounded.
        out: where the result shall be at last, a tensor like ``x``; None for a new one.

    Returns:
        ``out`` if the kernels can write there, else a new tensor.
    """
    if out is None:
        return torch.empty_like(x)
    if out is x:
        return x
    distance = abs(out.data_ptr() - x.data_ptr())
    # The kernels read a vector before they write it, so `out` may be the input, but not
    # a shifted view of it.
    shifted = 0 < distance < x.numel() * x.element_size()
    return torch.empty_like(x) if shifted or not out.is_contiguous() else out


def _serve_rest(
    x: Tensor,
    code: tuple[int, ...],
    seed: int | Tensor | None,
    offset: int,
    target: Tensor,
) -> None:
    """Round by a code that ``lowprec_round`` refused, or say why it is none.

    It knows no levels, which have a kernel of their own, and no wrapped words that do
    not fit a lane of its vectors.
    """
    if code[4] & codes.LEVELS:
        from .native_level_rounding import round_into_levels  # which imports this

        if round_into_levels(x, code, seed, offset, target):
            return
    else:
        portable.max_bits(codes.decode(code), portable.CARRIERS[x.dtype])
        if not codes.is_special(code):
            raise ValueError(
                f"not a valid rounding code for this operation: {list(code)}"
            )
    with torch.no_grad():  # as the library, torch's operations leave no trace
        if seed is None:
            target.copy_(portable.round(x, code))
        else:
            key = torch.tensor(_signed(key_of(seed)))
            target.copy_(portable.round_stochastic(x, code, key, offset))


def round(x: Tensor, code: Sequence[int], out: Tensor | None = None) -> Tensor:
    """Round every element in a deterministic mode.

    Args:
        x: float32 or float64 CPU tensor.
        code: the nine integers of a `RoundingCode`.
        out: where to write; ``x`` itself to round in place; None for a new tensor.

    Returns:
        ``out``, or a new contiguous tensor.

    Raises:
        ValueError: if the carrier cannot hold the format, or ``out`` does not fit.
    """
    loaded()
    width_of(x)
    source = x if x.is_contiguous() else x.contiguous()
    if out is not None:
        _check_target(source, out)
    target = target_for(source, out)
    round_into(source, tuple(code), target)
    return target if out is None or target is out else out.copy_(target)


def _addresses(x: Tensor, target: Tensor, width: int) -> tuple[int, int]:
    source, destination = x.data_ptr(), target.data_ptr()
    if (source | destination) & _UNALIGNED[width] or not source or not destination:
        memory_of(x)
        memory_of(target)
    return source, destination


def round_into(x: Tensor, code: tuple[int, ...], target: Tensor) -> None:
    """Round without the checks of `round`, which cost as much as a small tensor.

    Args:
        x: contiguous tensor that `width_of` accepts, while the library is loaded.
        code: the nine integers of a `RoundingCode`.
        target: what `target_for` returned.

    Raises:
        ValueError: if the carrier cannot hold the format, or a tensor is misaligned.
    """
    width, count = _WIDTHS[x.dtype], x.numel()
    address, _kept = _address(code)
    if _library.lowprec_round(  # type: ignore[union-attr] # the caller has asked
        width,
        *_addresses(x, target, width),
        count,
        address,
        1 if count < _SERIAL else torch.get_num_threads(),
    ):
        _serve_rest(x, code, None, 0, target)


def round_stochastic(
    x: Tensor,
    code: Sequence[int],
    seed: int | Tensor,
    offset: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """Round every element with the random word of its linear index plus ``offset``.

    Args:
        x: float32 or float64 CPU tensor.
        code: the nine integers of a `RoundingCode` with a stochastic mode.
        seed: key of the random words.
        offset: index of the first element.
        out: where to write; ``x`` itself to round in place; None for a new tensor.

    Returns:
        ``out``, or a new contiguous tensor.

    Raises:
        ValueError: if the carrier cannot hold the format, or ``out`` does not fit.
    """
    loaded()
    width_of(x)
    source = x if x.is_contiguous() else x.contiguous()
    if out is not None:
        _check_target(source, out)
    target = target_for(source, out)
    round_stochastic_into(source, tuple(code), seed, offset, target)
    return target if out is None or target is out else out.copy_(target)


def round_stochastic_into(
    x: Tensor, code: tuple[int, ...], seed: int | Tensor, offset: int, target: Tensor
) -> None:
    """Round stochastically as `round_into` does.

    Args:
        x: contiguous tensor that `width_of` accepts, while the library is loaded.
        code: the nine integers of a `RoundingCode` with a stochastic mode.
        seed: key of the random words.
        offset: index of the first element.
        target: what `target_for` returned.

    Raises:
        ValueError: if the carrier cannot hold the format, or a tensor is misaligned.
    """
    width, count = _WIDTHS[x.dtype], x.numel()
    address, _kept = _address(code)
    if _library.lowprec_round_stochastic(  # type: ignore[union-attr] # as above
        width,
        *_addresses(x, target, width),
        count,
        address,
        key_of(seed),
        checked_offset(offset, count),
        1 if count < _SERIAL else torch.get_num_threads(),
    ):
        _serve_rest(x, code, seed, offset, target)


def _matrices(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Bring operands of equal batch shape to [batch, rows, columns], by views."""
    if a.dim() == b.dim() == 3:
        return a, b
    if a.dim() == b.dim() == 2:
        return a.unsqueeze(0), b.unsqueeze(0)
    return a.flatten(0, -3), b.flatten(0, -3)


def matmul(
    a: Tensor,
    b: Tensor,
    accumulate: Sequence[int],
    product: Sequence[int],
    within: Sequence[int],
    order: int,
    block_size: int,
    seed: int | Tensor,
    offset: int,
) -> Tensor:
    """Multiply [..., M, K] by [..., K, N], rounding after every addition.

    Args:
        a: left operand, float32 or float64, any strides.
        b: right operand of the same dtype and batch shape.
        accumulate: code of the accumulator's rounding.
        product: code of the products' rounding, empty for exact products.
        within: code of the rounding inside blocks, empty for ``accumulate``; BLOCKED
            only.
        order: SEQUENTIAL, BLOCKED, PAIRWISE or KAHAN.
        block_size: terms per block, BLOCKED only.
        seed: key of the random words; stochastic codes only.
        offset: linear index of the first output element.

    Returns:
        Contiguous tensor [..., M, N] of the operands' dtype.

    Raises:
        NotImplementedError: for accumulators of more than 51 bits.
        ValueError: where exact results cannot be computed or returned.
    """
    library, width = loaded(), width_of(a)
    if (
        width_of(b) != width
        or a.shape[:-2] != b.shape[:-2]
        or a.shape[-1] != b.shape[-2]
    ):
        raise ValueError(
            f"cannot multiply {a.dtype} {tuple(a.shape)} by {b.dtype} {tuple(b.shape)}"
        )
    left, right = _matrices(a, b)
    batch, rows, terms = left.shape
    columns = right.shape[2]
    for sizes in ((rows, columns), (rows, terms), (terms, columns)):
        _check_size(batch, *sizes)
    out = torch.empty((*a.shape[:-1], b.shape[-1]), dtype=a.dtype)
    chosen = (accumulate, product, within)
    if any(len(code) and codes.is_special(code) for code in chosen):
        key = torch.tensor(_signed(key_of(seed)))
        return sums.matmul(a, b, *chosen, order, block_size, key, offset)
    random = any(len(code) > 0 and code[5] >= codes.STOCHASTIC for code in chosen)
    wrong = library.lowprec_matmul(
        width,
        memory_of(left),
        memory_of(right),
        memory_of(out),
        _Geometry(batch, rows, terms, columns, *left.stride(), *right.stride()),
        *(_packed(tuple(code)) if len(code) else None for code in chosen),
        order,
        block_size,
        key_of(seed) if random else 0,
        checked_offset(offset, out.numel()),
        torch.get_num_threads(),
    )
    if wrong:
        _refuse_matmul(a, b, chosen)
    return out


def _refuse_matmul(a: Tensor, b: Tensor, given: tuple[Sequence[int], ...]) -> None:
    """Raise what the portable kernel raises for operands that were refused."""
    chosen = [codes.decode(code) for code in given if len(code)]
    for code in chosen:
        sums.check_accumulator(code)
    sums.check_result_dtype(chosen[0], a.dtype)
    if a.dtype == torch.float64:
        sums.check_product_range(a, b)
    for code in chosen:
        portable.max_bits(code, portable.CARRIERS[torch.float64])
    raise ValueError(f"not valid codes or order: {[list(code) for code in given]}")


load()
