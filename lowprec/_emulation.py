"""The function mode that computes in a precision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import _operations, _optimizing
from ._coverage import BY_POLICY, EMULATED, EXACT, NOT_EMULATED, Tally
from ._operations import Operation
from .precision import Precision

_Result = TypeVar("_Result")
# Runs the body of an overridden function, whose calls a mode can see; from torch 2.13.
_redispatch: Any = getattr(torch.overrides, "redispatch_function", None)


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
