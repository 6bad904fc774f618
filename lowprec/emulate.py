"""`emulate`: forward code whose matrix products are computed in low precision."""

from __future__ import annotations

import functools
import itertools
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import _operations
from .errors import NumericalWarning
from .precision import Policy, Precision, as_policy, as_precision

__all__ = ["Coverage", "CoverageRow", "emulate"]

EMULATED = "emulated"
EXACT = "exact by nature"
NOT_EMULATED = "not emulated"
BY_POLICY = "carrier by policy"


_NO_COMPILE = (
    "lowprec.emulate runs eagerly; lowprec.nn.convert_ makes models to compile"
)


class CoverageRow(NamedTuple):
    """How often an operation was met, and what was done with it."""

    operation: str
    calls: int
    treatment: str


@dataclass(frozen=True)
class Coverage:
    """What an `emulate` context met, most frequent first within each treatment.

    Treatments: ``"emulated"``; ``"exact by nature"`` (moves, chooses or compares
    values); ``"not emulated"`` (computed in the carrier although a precision was
    asked for); ``"carrier by policy"`` (the policy says None there).
    """

    rows: tuple[CoverageRow, ...]

    def __iter__(self) -> Iterator[CoverageRow]:
        """Iterate over the rows."""
        return iter(self.rows)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __str__(self) -> str:
        """Return a table."""
        cells = [(row.operation, str(row.calls), row.treatment) for row in self.rows]
        cells.insert(0, ("operation", "calls", "treatment"))
        first, second, _ = (
            max(map(len, column)) for column in zip(*cells, strict=True)
        )
        return "\n".join(
            f"{operation:<{first}}  {calls:>{second}}  {treatment}"
            for operation, calls, treatment in cells
        )

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Return calls by treatment and operation."""
        result: dict[str, dict[str, int]] = {
            treatment: {} for treatment in (EMULATED, EXACT, NOT_EMULATED, BY_POLICY)
        }
        for row in self.rows:
            result[row.treatment][row.operation] = row.calls
        return result


class _Local(threading.local):
    """State of one thread: contexts that are active, innermost last; module names."""

    def __init__(self) -> None:
        self.active: list[int] = []
        self.modules: dict[int, list[str]] = {}


# A mode must not change for torch.compile to guard it, so what does change lives here,
# under the number of the context.
_numbers = itertools.count()
_calls: dict[int, Counter[tuple[str, str]]] = {}
_handles: dict[int, list[list[Any]]] = {}
_local = _Local()


def _forget(number: int) -> None:
    del _calls[number], _handles[number]


def _record(number: int, operation: str, treatment: str, reason: str) -> None:
    """Count a call, and warn the first time that one is not emulated."""
    calls = _calls[number]
    first = (operation, treatment) not in calls
    calls[operation, treatment] += 1
    if first and treatment == NOT_EMULATED:
        warnings.warn(
            f"{operation} is not emulated and runs in the carrier's arithmetic: "
            f"{reason}; coverage() counts such calls, strict=True refuses them",
            NumericalWarning,
            stacklevel=5,
        )


class emulate(TorchFunctionMode):
    """Compute the matrix products of the code inside in low precision.

    Calls of ``linear``, ``matmul`` (``@``), ``mm``, ``bmm``, ``mv``, ``dot``, plain
    ``addmm`` and ``conv1d`` to ``conv3d`` become those of `lowprec.functional`, whose
    gradients are emulated as well, so ``backward`` may run inside or outside of the
    context.

    Contract:
        Every operation is treated in one of four ways, which `coverage` counts:
        emulated; exact by nature (moving, choosing, comparing, integers, new data);
        not emulated, with a `NumericalWarning` once per operation and context, or an
        error before anything is computed if ``strict``; or left to the carrier because
        the policy says None. Optimizer arithmetic inside the context is not emulated
        and is reported. `lowprec` functions and modules called inside keep their own
        precision. The innermost of nested contexts decides alone. Like every
        function mode it belongs to the thread that entered it. Autograd's own
        additions, where a tensor is used more than once, are those of the carrier.
        Code inside runs eagerly: torch.compile breaks its graph at every operation
        (an error with ``fullgraph``), whereas models that `lowprec.nn.convert_` made
        are compiled. Activation checkpointing must re-enter the context for its second
        forward (``context_fn``).

    Args:
        precision: a `Precision` for all, or a `Policy` together with ``model``.
        model: whose module names the policy's patterns are about; what runs outside
            of its modules has the empty name.
        strict: refuse operations that are not emulated.
        generator: source of the seeds of stochastic roundings; None means torch's
            default generator.

    Raises:
        TypeError: if ``precision`` is neither, or a `Policy` comes without ``model``.
        NotImplementedError: inside, for operations that ``strict`` refuses and for
            products of half precision tensors.

    Example:
        >>> layer, x = torch.nn.Linear(2, 3), torch.ones(4, 2)
        >>> with emulate(Precision(weight="e4m3fn"), strict=True) as context:
        ...     y = torch.relu(layer(x))
        >>> print(context.coverage())
        operation  calls  treatment
        linear         1  emulated
        relu           1  exact by nature
    """

    def __init__(
        self,
        precision: Precision | Policy,
        model: torch.nn.Module | None = None,
        *,
        strict: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        """Check the arguments; nothing changes before the context is entered."""
        super().__init__()
        _keep_eager()
        self._precision: Precision | None = None
        self._policy: Policy | None = None
        if model is not None:
            self._policy = as_policy(precision)
        elif isinstance(precision, Policy):
            raise TypeError(
                "a Policy is about module names, so emulate needs the model as well: "
                "emulate(policy, model)"
            )
        else:
            self._precision = as_precision(precision)
        self._model = model
        self._strict = strict
        self._generator = generator
        self._number = next(_numbers)
        _calls[self._number] = Counter()
        _handles[self._number] = []
        weakref.finalize(self, _forget, self._number)

    def __repr__(self) -> str:
        """Return what was given."""
        given = self._precision if self._policy is None else self._policy
        strict = ", strict=True" if self._strict else ""
        return f"emulate({given!r}{strict})"

    def __enter__(self) -> emulate:
        """Start emulating in this thread."""
        number = self._number
        _local.active.append(number)
        if self._model is not None:
            _handles[number].append(_follow(self._model, number))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Stop emulating."""
        super().__exit__(exc_type, exc_val, exc_tb)  # type: ignore[no-untyped-call]
        if self._model is not None:
            for handle in _handles[self._number].pop():
                handle.remove()
        _local.active.pop()

    def coverage(self) -> Coverage:
        """Return what was met so far, over all uses of this context.

        Returns:
            The operations and their treatment.
        """
        order = (EMULATED, EXACT, NOT_EMULATED, BY_POLICY)
        rows = [
            CoverageRow(operation, calls, treatment)
            for (operation, treatment), calls in _calls[self._number].items()
        ]
        rows.sort(
            key=lambda row: (order.index(row.treatment), -row.calls, row.operation)
        )
        return Coverage(tuple(rows))

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Emulate one call, or count it and let it pass."""
        kwargs = {} if kwargs is None else kwargs
        if _operations.hidden(func) or not self._is_innermost():
            return func(*args, **kwargs)
        if _operations.is_explicit(func):
            self._count(func, EMULATED)
            return func(*args, **kwargs)
        precision = self._precision_here()
        if precision is not None:
            bound = _operations.binding(func, args, kwargs)
            if bound is not None:
                self._count(func, EMULATED)
                return self._emulated(func, *bound, precision)
        reason = _operations.objection(func, args, kwargs)
        if reason is None:
            self._count(func, EXACT)
        elif precision is None:
            self._count(func, BY_POLICY)
        else:
            self._refuse_if_strict(func, reason)
            self._count(func, NOT_EMULATED, reason)
        return func(*args, **kwargs)

    def _emulated(
        self,
        func: Any,
        function: Callable[..., Tensor],
        operands: tuple[Tensor | None, ...],
        precision: Precision,
    ) -> Tensor:
        try:
            return function(*operands, precision=precision, generator=self._generator)
        except TypeError as error:
            # Python's @ would replace a TypeError by one that does not say the cause.
            name = _operations.operation_name(func)
            raise NotImplementedError(f"{name} cannot be emulated: {error}") from error

    def _is_innermost(self) -> bool:
        # While the innermost context handles a call, torch offers its inner calls to
        # the contexts around it.
        return not _local.active or _local.active[-1] == self._number

    def _precision_here(self) -> Precision | None:
        if self._policy is None:
            return self._precision
        names = _local.modules.get(self._number)
        return self._policy.precision_for(names[-1] if names else "")

    def _count(self, func: Any, treatment: str, reason: str = "") -> None:
        _record(self._number, _operations.operation_name(func), treatment, reason)

    def _refuse_if_strict(self, func: Any, reason: str) -> None:
        if self._strict:
            raise NotImplementedError(
                f"{_operations.operation_name(func)} is not emulated: {reason}; "
                "compute it outside of the context, allow the carrier's arithmetic by "
                "strict=False, or give the module None in a Policy"
            )


def _follow(model: torch.nn.Module, number: int) -> list[Any]:
    """Keep the name of the module whose forward runs, by torch's public hooks."""
    handles: list[Any] = []
    for name, module in model.named_modules():
        before = partial(_enter_module, number, name)
        after = partial(_leave_module, number)
        handles.append(module.register_forward_pre_hook(before, prepend=True))
        handles.append(module.register_forward_hook(after, always_call=True))
    return handles


def _enter_module(number: int, name: str, *_: Any) -> None:
    _local.modules.setdefault(number, []).append(name)


def _leave_module(number: int, *_: Any) -> None:
    _local.modules[number].pop()


@functools.cache
def _keep_eager() -> None:
    """Keep Dynamo out of the mode, once, when the first context is made.

    Compiled code would meet the mode a second time, while its graph runs. Disabling
    imports torch's compiler, which takes seconds: too dear for `import lowprec`.
    """
    eager = torch.compiler.disable(emulate.__torch_function__, reason=_NO_COMPILE)
    emulate.__torch_function__ = eager  # type: ignore[method-assign]
