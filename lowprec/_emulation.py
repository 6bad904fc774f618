"""The function mode that computes in a precision, and the tally of what it met."""

from __future__ import annotations

import functools
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import _operations, _optimizing
from ._operations import Operation
from .errors import NumericalWarning
from .precision import Precision

EMULATED = "emulated"
EXACT = "exact by nature"
NOT_EMULATED = "not emulated"
BY_POLICY = "carrier by policy"
SUM = "sum of gradients"
TREATMENTS = (EMULATED, EXACT, NOT_EMULATED, BY_POLICY)

_Result = TypeVar("_Result")
# Runs the body of an overridden function, whose calls a mode can see; from torch 2.13.
_redispatch: Any = getattr(torch.overrides, "redispatch_function", None)


class CoverageRow(NamedTuple):
    """How often an operation was met in a module, and what was done with it.

    ``module`` is a name of ``named_modules()``; it is empty for the model itself, for
    what runs outside of its modules, and where no model was given.
    """

    operation: str
    calls: int
    treatment: str
    module: str = ""


@dataclass(frozen=True)
class Coverage:
    """What an emulation met, most frequent first within each treatment.

    Treatments: ``"emulated"``; ``"exact by nature"`` (moves, chooses or compares
    values); ``"not emulated"`` (computed in the carrier although a precision was
    asked for); ``"carrier by policy"`` (the policy says None there, or the precision
    leaves such operations to torch). The operation ``"sum of gradients"`` is that of
    autograd, which adds the gradients of a parameter that several modules have; it
    always runs in the carrier, and is not refused.
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
        cells = [(row.operation, str(row.calls), *row[2:]) for row in self.rows]
        named = any(row.module for row in self.rows)
        cells.insert(0, ("operation", "calls", "treatment", "module" if named else ""))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            f"{operation:<{widths[0]}}  {calls:>{widths[1]}}  "
            f"{treatment:<{widths[2]}}  {module}".rstrip()
            for operation, calls, treatment, module in cells
        )

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Return calls by treatment and operation, over all modules."""
        result: dict[str, dict[str, int]] = {name: {} for name in TREATMENTS}
        for row in self.rows:
            calls = result[row.treatment]
            calls[row.operation] = calls.get(row.operation, 0) + row.calls
        return result


@dataclass
class Tally:
    """Counts of calls by operation, treatment and module; a mode must not change."""

    calls: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def add(self, operation: str, treatment: str, module: str, reason: str) -> None:
        """Count a call, and warn the first time that one is not emulated."""
        key = (operation, treatment, module)
        if treatment == NOT_EMULATED and not any(
            known[:2] == key[:2] for known in self.calls
        ):
            warnings.warn(
                f"{operation} is not emulated and runs in the carrier's arithmetic: "
                f"{reason}; coverage() counts such calls, strict=True refuses them",
                NumericalWarning,
                stacklevel=_depth_of_caller(),
            )
        self.calls[key] += 1

    def coverage(self, tied: Iterable[CoverageRow] = ()) -> Coverage:
        """Return the counts as a table, with rows that nothing counts."""
        rows = [
            CoverageRow(operation, calls, treatment, module)
            for (operation, treatment, module), calls in self.calls.items()
        ]
        rows += tied
        rows.sort(
            key=lambda row: (
                TREATMENTS.index(row.treatment),
                -row.calls,
                row.operation,
                row.module,
            )
        )
        return Coverage(tuple(rows))


def tied_rows(
    model: torch.nn.Module, precision_of: Callable[[str], Precision | None]
) -> list[CoverageRow]:
    """Return the parameters of several modules, whose gradients autograd adds."""
    uses = Counter(p for _, p in model.named_parameters(remove_duplicate=False))
    owners = [
        (name.rpartition(".")[0], uses[p])
        for name, p in model.named_parameters()
        if uses[p] > 1
    ]
    return [
        CoverageRow(SUM, count - 1, NOT_EMULATED, owner)
        for owner, count in owners
        if precision_of(owner) is not None
    ]


def _depth_of_caller() -> int:
    """Return how far up the first frame outside of lowprec and torch is."""
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ("lowprec", "torch"):
            break
        frame, depth = frame.f_back, depth + 1
    return depth


class Owner(Protocol):
    """A context that modules are lent to while it is entered."""

    def here(self) -> bool:
        """Whether this thread entered the context."""

    def context(self) -> AbstractContextManager[Any]:
        """Return the context."""


class Emulation(TorchFunctionMode):
    """Replace the operations of the code inside by emulated ones.

    Contract:
        Of nested emulations the innermost decides alone. Nothing that a call looks at
        changes, so torch.compile guards it; calls of compiled code are not counted.

    Args:
        precision: of the operations; None leaves all to torch.
        operations: precisions of single operations, which override ``precision``.
        module: name of the module that is emulated.
        strict: refuse what is not emulated.
        generator: source of the seeds of stochastic roundings.
        tally: counts the calls.
        owner: the context that a module is lent to; None for good.
    """

    def __init__(
        self,
        precision: Precision | None,
        operations: Mapping[str, Precision | None],
        module: str,
        *,
        strict: bool,
        generator: torch.Generator | None,
        tally: Tally,
        owner: Owner | None = None,
    ) -> None:
        """Keep the arguments."""
        super().__init__()
        _optimizing.watch()
        self.precision = _active(precision)
        self.operations = {name: _active(value) for name, value in operations.items()}
        self.module = module
        self.strict = strict
        self.generator = generator
        self.tally = tally
        self.owner = owner

    def replace(self, **changes: Any) -> Emulation:
        """Return an emulation that differs in some arguments."""
        names = ("precision", "operations", "module", "strict", "generator", "tally")
        kept = {name: getattr(self, name) for name in (*names, "owner")}
        return Emulation(**(kept | changes))

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Emulate one call, or count it and let it pass."""
        kwargs = {} if kwargs is None else kwargs
        if torch.compiler.is_dynamo_compiling():
            _keep_compiled_graph_alone()
        operation = _operations.operation_of(func)
        if operation is None:
            return alone(func, args, kwargs)
        if operation.exact or operation.own:
            self._count(operation, EXACT if operation.exact else EMULATED)
            return alone(func, args, kwargs)
        return self._treated(func, types, operation, args, kwargs)

    def _treated(
        self,
        func: Any,
        types: Any,
        operation: Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        compiling = torch.compiler.is_dynamo_compiling()
        if not compiling and _optimizing.in_step():
            if _optimizing.is_own():
                self._count(operation, EMULATED)
                return alone(func, args, kwargs)
            return self._left(func, operation, "an optimizer computes", args, kwargs)
        precision = self.precision
        if self.operations:
            precision = self.operations.get(operation.base, precision)
        if precision is not None:
            found = _operations.product(operation, args, kwargs)
            if found is None and precision.elementwise is not None:
                found = _operations.rounding(func, operation, args, kwargs)
            if found is not None:
                return self._emulated(operation, found, precision, args, kwargs)
        if precision is None:
            self._count(operation, BY_POLICY)
            return alone(func, args, kwargs)
        reason = _operations.objection(operation.name, args, kwargs)
        if reason is None:
            self._count(operation, EXACT)
            return alone(func, args, kwargs)
        if precision.elementwise is None and operation.governed:
            self._count(operation, BY_POLICY)
            return alone(func, args, kwargs)
        if operation.composite and _redispatch is not None:
            return under(self, _redispatch, (func, types, args, kwargs), {})
        return self._left(func, operation, reason, args, kwargs)

    def _emulated(
        self,
        operation: Operation,
        found: _operations.Bound,
        precision: Precision,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if torch._C._is_any_autocast_enabled():
            raise RuntimeError(
                f"autocast is on where {operation.name} is to be emulated: it would "
                "round to a half precision of its own; leave torch.autocast, or switch "
                "it off inside (enabled=False), and put its formats into the Precision"
            )
        self._count(operation, EMULATED)
        function, operands, options = found
        options = {**options, "precision": precision, "generator": self.generator}
        if torch.compiler.is_dynamo_compiling():
            result = alone(function, operands, options)
        else:
            try:
                result = alone(function, operands, options)
            except TypeError as error:
                # Python's @ would replace a TypeError by one without the cause.
                raise NotImplementedError(
                    f"{operation.name} cannot be emulated: {error}"
                ) from error
        target = _operations.written(operation, args, kwargs)
        if target is None:
            return result
        if target.numel() == 0 and target.shape != result.shape:
            alone(Tensor.resize_, (target, result.shape), {})  # as torch for out=
        return alone(Tensor.copy_, (target, result), {})

    def _left(
        self,
        func: Any,
        operation: Operation,
        reason: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Let a call pass that is not emulated, or refuse it."""
        if self.strict:
            raise NotImplementedError(
                f"{operation.name} is not emulated: {reason}; compute it outside of "
                "the context, allow the carrier's arithmetic by strict=False, or give "
                "the module or the operation None in a Policy"
            )
        self._count(operation, NOT_EMULATED, reason)
        return alone(func, args, kwargs)

    def _count(self, operation: Operation, treatment: str, reason: str = "") -> None:
        if not torch.compiler.is_dynamo_compiling():
            self.tally.add(operation.name, treatment, self.module, reason)


def _active(precision: Precision | None) -> Precision | None:
    """Return None for what rounds nothing: torch computes it itself."""
    return None if precision is None or precision.is_identity else precision


def alone(
    function: Callable[..., _Result],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> _Result:
    """Call a function out of reach of all emulations; other modes stay.

    While a mode handles a call, torch offers the calls inside to the modes around it.
    """
    count = torch._C._len_torch_function_stack()
    if count == 0:
        return function(*args, **kwargs)
    held = [torch._C._pop_torch_function_stack() for _ in range(count)]
    held.reverse()
    others = [mode for mode in held if not isinstance(mode, Emulation)]
    for mode in others:
        torch._C._push_on_torch_function_stack(mode)
    try:
        return function(*args, **kwargs)
    finally:
        for _ in others:
            torch._C._pop_torch_function_stack()
        for mode in held:
            torch._C._push_on_torch_function_stack(mode)


def under(
    emulation: Emulation,
    function: Callable[..., _Result],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> _Result:
    """Call a function inside an emulation, in place of the one around it."""
    count = torch._C._len_torch_function_stack()
    outer = None
    if count and isinstance(torch._C._get_function_stack_at(count - 1), Emulation):
        outer = torch._C._pop_torch_function_stack()
    torch._C._push_on_torch_function_stack(emulation)
    try:
        return function(*args, **kwargs)
    finally:
        torch._C._pop_torch_function_stack()
        if outer is not None:
            torch._C._push_on_torch_function_stack(outer)


@contextmanager
def entered(emulation: Emulation | None) -> Iterator[None]:
    """Compute inside an emulation that was left before."""
    if emulation is None:
        yield
        return
    torch._C._push_on_torch_function_stack(emulation)
    try:
        yield
    finally:
        torch._C._pop_torch_function_stack()


def innermost() -> Emulation | None:
    """Return the emulation that decides here, if any."""
    for position in reversed(range(torch._C._len_torch_function_stack())):
        mode = torch._C._get_function_stack_at(position)
        if isinstance(mode, Emulation):
            return mode
    return None


def _keep_compiled_graph_alone() -> None:
    """Let the graph that Dynamo is tracing run out of reach of function modes.

    They were applied while it was traced; on its run they would be a second time.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    output = InstructionTranslator.current_tx().output
    compiler = output.compiler_fn
    if compiler is None or getattr(compiler, "_lowprec_alone", False):
        return

    @functools.wraps(compiler)
    def compile_alone(graph: Any, inputs: Any) -> Callable[..., Any]:
        compiled = compiler(graph, inputs)

        def run(*args: Any) -> Any:
            with torch._C.DisableTorchFunction():
                return compiled(*args)

        return run

    compile_alone._lowprec_alone = True  # type: ignore[attr-defined]
    output.compiler_fn = compile_alone


# What torch.compiler.assume_constant_result sets, which would import the compiler:
# these run while Dynamo traces, and are not traced themselves.
_keep_compiled_graph_alone._dynamo_marked_constant = True  # type: ignore[attr-defined]
_operations.operation_of._dynamo_marked_constant = True  # type: ignore[attr-defined]


def keep_frames_eager(function: Any) -> None:
    """Keep Dynamo from compiling the handling of a call as a frame of its own.

    It still traces it in line. Frames for single calls would cost more than the calls,
    and torch's guards do not tell the properties of a tensor apart.
    """
    dynamo: Any = torch._C._dynamo.eval_frame
    skip = dynamo._FrameAction.SKIP
    strategy = dynamo._FrameExecStrategy(skip, skip)
    dynamo.set_code_exec_strategy(function.__code__, strategy)


keep_frames_eager(Emulation.__torch_function__)
