"""The torch.library operations and the choice of kernel behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import codes, native, portable, sums, triton

_LIBRARY = torch.library.Library("lowprec", "DEF")
_LIBRARY.define("round(Tensor x, int[] code) -> Tensor")
_LIBRARY.define(
    "round_stochastic(Tensor x, int[] code, Tensor seed, SymInt offset) -> Tensor"
)
_LIBRARY.define("round_out(Tensor x, int[] code, Tensor(a!) out) -> ()")
_LIBRARY.define(
    "round_stochastic_out(Tensor x, int[] code, Tensor seed, SymInt offset, "
    "Tensor(a!) out) -> ()"
)
_LIBRARY.define(
    "matmul(Tensor a, Tensor b, int[] accumulate, int[] product, int[] within, "
    "int order, int block_size, Tensor seed, SymInt offset) -> Tensor"
)

BACKENDS = ("portable", "native", "triton")
_forced: ContextVar[str | None] = ContextVar("lowprec_kernels", default=None)


def status() -> dict[str, str]:
    """Say which kernel serves each device type.

    Returns:
        A mapping from device type to kernel name, with the reason where a faster one
        does not run; ``"cuda"`` stands for ROCm too.

    Example:
        >>> status()["other"]
        'portable'
    """
    return {
        "cpu": "native" if native.available() else f"portable ({native.status()})",
        "cuda": _cuda_status(),
        "other": "portable",
    }


def _cuda_status() -> str:
    text = triton.status()
    return text if text.startswith("triton") else f"portable ({text})"


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Force a kernel inside the context, for tests and debugging.

    Args:
        backend: ``"portable"``, ``"native"`` for CPU tensors, or ``"triton"`` for CUDA
            and ROCm tensors; tensors of other devices keep the kernel they have.

    Raises:
        ValueError: if there is no such kernel.
        RuntimeError: if it is not available.

    Example:
        >>> with using("portable"):
        ...     pass
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown kernel {backend!r}: it must be one of {BACKENDS}")
    if backend == "native" and not native.available():
        raise RuntimeError(f"the native kernels are {native.status()}")
    if backend == "triton" and not triton.available():
        raise RuntimeError(f"the Triton kernels are {triton.status()}")
    token = _forced.set(backend)
    try:
        yield
    finally:
        _forced.reset(token)


def _round(x: Tensor, code: Sequence[int]) -> Tensor:
    return portable.round(x.contiguous(), code)


def _round_stochastic(
    x: Tensor, code: Sequence[int], seed: Tensor, offset: int
) -> Tensor:
    return portable.round_stochastic(x.contiguous(), code, seed, offset)


def _round_out(x: Tensor, code: Sequence[int], out: Tensor) -> None:
    out.copy_(torch.ops.lowprec.round.default(x, code))


def _round_stochastic_out(
    x: Tensor, code: Sequence[int], seed: Tensor, offset: int, out: Tensor
) -> None:
    out.copy_(torch.ops.lowprec.round_stochastic.default(x, code, seed, offset))


def _interpreter_serves() -> bool:
    """Whether Triton's interpreter serves CPU tensors here, as tests ask for."""
    return _forced.get() == "triton" and triton.interpreted()


def native_serves() -> bool:
    """Whether the C++ kernels serve CPU tensors here."""
    forced = _forced.get()
    if forced is None or forced == "native":
        return native.available()
    return forced == "triton" and native.available() and not _interpreter_serves()


def _round_out_on_cpu(x: Tensor, code: Sequence[int], out: Tensor) -> None:
    if not native_serves():
        return _round_out(x, code, out)
    native.round(x, code, out)
    mark_written(out)
    return None


def _round_stochastic_out_on_cpu(
    x: Tensor, code: Sequence[int], seed: Tensor, offset: int, out: Tensor
) -> None:
    if not native_serves():
        return _round_stochastic_out(x, code, seed, offset, out)
    native.round_stochastic(x, code, seed, offset, out)
    mark_written(out)
    return None


def mark_written(out: Tensor) -> None:
    """Tell autograd that ``out`` changed, as torch's own in-place operations do."""
    if not out.is_inference():
        increment_version(out)


def _has_special(arguments: tuple[Any, ...]) -> bool:
    """Whether a rounding code among the arguments is not for kernels of GPUs."""
    return any(
        isinstance(value, (list, tuple)) and value and codes.is_special(value)
        for value in arguments
    )


def _on_cpu(portable_kernel: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """Choose between the kernels of CPU tensors at every call."""
    native_kernel: Callable[..., Tensor] = getattr(native, name)
    triton_kernel: Callable[..., Tensor] = getattr(triton, name)

    def choose(*arguments: Any) -> Tensor:
        if native_serves():
            return native_kernel(*arguments)
        if _interpreter_serves() and not _has_special(arguments):
            return triton_kernel(*arguments)
        return portable_kernel(*arguments)

    return choose


def _on_cuda(
    portable_kernel: Callable[..., Tensor], name: str
) -> Callable[..., Tensor]:
    """Choose between the kernels of CUDA and ROCm tensors at every call."""
    triton_kernel: Callable[..., Tensor] = getattr(triton, name)

    def choose(*arguments: Any) -> Tensor:
        allowed = _forced.get() != "portable" and not triton.interpreted()
        if allowed and triton.available() and not _has_special(arguments):
            return triton_kernel(*arguments)
        return portable_kernel(*arguments)

    return choose


# Results are new contiguous tensors in every kernel, as the fakes promise.
_KERNELS: dict[str, Callable[..., Tensor]] = {
    "round": _round,
    "round_stochastic": _round_stochastic,
    "matmul": sums.matmul,
}
for _name, _kernel in _KERNELS.items():
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    _LIBRARY.impl(_name, _on_cpu(_kernel, _name), "CPU")
    _LIBRARY.impl(_name, _on_cuda(_kernel, _name), "CUDA")
_LIBRARY.impl("round_out", _round_out, "CompositeExplicitAutograd")
_LIBRARY.impl("round_out", _round_out_on_cpu, "CPU")
_LIBRARY.impl(
    "round_stochastic_out", _round_stochastic_out, "CompositeExplicitAutograd"
)
_LIBRARY.impl("round_stochastic_out", _round_stochastic_out_on_cpu, "CPU")


def _round_fake(x: Tensor, code: Sequence[int]) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _round_stochastic_fake(
    x: Tensor, code: Sequence[int], seed: Tensor, offset: int
) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _round_out_fake(x: Tensor, code: Sequence[int], out: Tensor) -> None:
    return None


def _round_stochastic_out_fake(
    x: Tensor, code: Sequence[int], seed: Tensor, offset: int, out: Tensor
) -> None:
    return None


def _matmul_fake(a: Tensor, b: Tensor, *_: Any) -> Tensor:
    return a.new_empty((*a.shape[:-1], b.shape[-1]))


# Kernels of the device "meta" serve fake tensors too. register_fake would search the
# source files for where it was called, which takes a third of importing lowprec.
for _name, _fake in {
    "round": _round_fake,
    "round_stochastic": _round_stochastic_fake,
    "round_out": _round_out_fake,
    "round_stochastic_out": _round_stochastic_out_fake,
    "matmul": _matmul_fake,
}.items():
    _LIBRARY.impl(_name, _fake, "Meta")

round = torch.ops.lowprec.round.default
round_stochastic = torch.ops.lowprec.round_stochastic.default
matmul = torch.ops.lowprec.matmul.default
round_out = torch.ops.lowprec.round_out.default
round_stochastic_out = torch.ops.lowprec.round_stochastic_out.default


_PLAIN = (Tensor, torch.nn.Parameter)


def unobserved(x: Any) -> bool:
    """Whether ``x`` is a carrier of which only the C++ kernels would see an operation.

    Then the dispatcher, which costs as much as the kernel of a small tensor, is left
    out: no mode, transform, compiler or subclass waits for the operation, and ``x`` is
    a dense float32 or float64 CPU tensor that the library, which is loaded, can read.
    """
    if (
        torch.compiler.is_compiling()
        or x.__class__ not in _PLAIN
        or x.dtype not in portable.CARRIERS
        or not x.is_cpu
        or x.layout != torch.strided
    ):
        return False
    return _nobody_observes() and not x.is_neg() and native_serves()


def _nobody_observes() -> bool:
    """Whether no mode or transform waits for the next operation."""
    try:
        return not (
            torch._C._len_torch_dispatch_stack()
            or torch._C._len_torch_function_stack()
            or torch._C._are_functorch_transforms_active()
        )
    except AttributeError:  # private names: without them, the dispatcher decides
        return False


def is_plain(x: Tensor) -> bool:
    """Whether a tensor beside an `unobserved` one is as easy to reach."""
    strided = x.__class__ in _PLAIN and x.is_cpu and x.layout == torch.strided
    return strided and not x.is_neg()


def round_unobserved(
    x: Tensor, code: tuple[int, ...], out: Tensor | None = None
) -> Tensor:
    """Round a tensor that is `unobserved`; gradients are the caller's.

    Args:
        x: the tensor.
        code: the nine integers of a `RoundingCode`.
        out: where to write, a tensor of the same shape and dtype that `is_plain`; None
            for a new one.

    Returns:
        ``out``, or a new contiguous tensor.
    """
    source = x if x.is_contiguous() else x.contiguous()
    target = native.target_for(source, out)
    native.round_into(source, code, target)
    return target if out is None else _written(out, target)


def round_stochastic_unobserved(
    x: Tensor,
    code: tuple[int, ...],
    seed: int | Tensor,
    offset: int,
    out: Tensor | None = None,
) -> Tensor:
    """Round a tensor that is `unobserved` stochastically; else as `round_unobserved`.

    Args:
        x: the tensor.
        code: the nine integers of a `RoundingCode` with a stochastic mode.
        seed: key of the random words, an int or a 0-d int64 tensor.
        offset: linear index of the first element.
        out: as in `round_unobserved`.

    Returns:
        ``out``, or a new contiguous tensor.
    """
    source = x if x.is_contiguous() else x.contiguous()
    target = native.target_for(source, out)
    native.round_stochastic_into(source, code, seed, offset, target)
    return target if out is None else _written(out, target)


def _written(out: Tensor, target: Tensor) -> Tensor:
    """Return ``out`` with what was written to ``target``, and let autograd know."""
    if target is not out:
        return out.copy_(target)
    mark_written(out)
    return out


def round_straight_through(x: Tensor, code: tuple[int, ...]) -> Tensor:
    """Round a small tensor that is `unobserved`; the gradient is that of a clone.

    A clone that is then rounded in place is differentiated by torch's C++ code alone,
    which takes a third of what a Python autograd function takes. It reads the elements
    twice, which only small tensors do not notice.

    Args:
        x: the tensor.
        code: the nine integers of a `RoundingCode`.

    Returns:
        A new contiguous tensor that knows its gradient.
    """
    target = x.clone(memory_format=torch.contiguous_format)
    native.round_into(target, code, target)
    return target


def eager_round(x: Tensor, code: tuple[int, ...], out: Tensor | None = None) -> Tensor:
    """Call `round` or `round_out`, without the dispatcher where nothing needs it.

    Args:
        x: float32 or float64 tensor; gradients are the caller's.
        code: the nine integers of a `RoundingCode`.
        out: where to write, a tensor of the same shape and dtype; None for a new one.

    Returns:
        ``out``, or a new contiguous tensor.
    """
    if out is None:
        if unobserved(x):
            return round_unobserved(x, code)
        return cast(Tensor, round(x, list(code)))
    if unobserved(x) and is_plain(out):
        return round_unobserved(x, code, out)
    round_out(x, list(code), out)
    return out


def eager_round_stochastic(
    x: Tensor,
    code: tuple[int, ...],
    seed: Tensor,
    offset: int,
    out: Tensor | None = None,
) -> Tensor:
    """Call `round_stochastic` or its twin as `eager_round` does.

    Args:
        x: float32 or float64 tensor; gradients are the caller's.
        code: the nine integers of a `RoundingCode` with a stochastic mode.
        seed: key of the random words, 0-d int64.
        offset: linear index of the first element.
        out: where to write, a tensor of the same shape and dtype; None for a new one.

    Returns:
        ``out``, or a new contiguous tensor.
    """
    if unobserved(x) and is_plain(seed) and (out is None or is_plain(out)):
        return round_stochastic_unobserved(x, code, seed, offset, out)
    if out is None:
        return cast(Tensor, round_stochastic(x, list(code), seed, offset))
    round_stochastic_out(x, list(code), seed, offset, out)
    return out


@torch.library.register_vmap("lowprec::round", lib=_LIBRARY)
def _round_vmap(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, code: Sequence[int]
) -> tuple[Tensor, int]:
    return round(x, code), in_dims[0]


def _batch_first(value: Tensor, dim: int | None, size: int) -> Tensor:
    if dim is None:
        return value.expand(size, *value.shape)
    return value.movedim(dim, 0)


@torch.library.register_vmap("lowprec::round_stochastic", lib=_LIBRARY)
def _round_stochastic_vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    x: Tensor,
    code: Sequence[int],
    seed: Tensor,
    offset: int,
) -> tuple[Tensor, int]:
    # Element indices count inside one example, so examples with the same seed get the
    # same random words, as a loop over the examples would.
    xs = _batch_first(x, in_dims[0], info.batch_size)
    seeds = _batch_first(seed, in_dims[2], info.batch_size)
    rows = [
        round_stochastic(x_i, code, seed_i, offset)
        for x_i, seed_i in zip(xs.unbind(), seeds.unbind(), strict=True)
    ]
    return torch.stack(rows) if rows else torch.empty_like(xs), 0


@torch.library.register_vmap("lowprec::matmul", lib=_LIBRARY)
def _matmul_vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    a: Tensor,
    b: Tensor,
    accumulate: Sequence[int],
    product: Sequence[int],
    within: Sequence[int],
    order: int,
    block_size: int,
    seed: Tensor,
    offset: int,
) -> tuple[Tensor, int]:
    codes = (accumulate, product, within, order, block_size)
    rows = [
        matmul(a_i, b_i, *codes, seed_i, offset)
        for a_i, b_i, seed_i in zip(
            _batch_first(a, in_dims[0], info.batch_size).unbind(),
            _batch_first(b, in_dims[1], info.batch_size).unbind(),
            _batch_first(seed, in_dims[7], info.batch_size).unbind(),
            strict=True,
        )
    ]
    return torch.stack(rows), 0
