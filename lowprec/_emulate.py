"""`emulate`: forward code that is computed in low precision."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch

from ._coverage import Coverage, CoverageRow, Tally
from ._emulation import Emulation, keep_frames_eager
from .nn import _conversion
from .precision import Policy, Precision, as_policy, as_precision

__all__ = ["Coverage", "CoverageRow", "emulate"]


class emulate(Emulation):
    """Compute the code inside in low precision.

    Functions, methods and operators of torch become those of `lowprec.functional`,
    whose gradients are emulated as well, so ``backward`` may run inside or outside of
    the context.

    Contract:
        Every operation is treated in one of four ways, which `coverage` counts:
        emulated; exact by nature (moving, choosing, comparing, integers, new data);
        not emulated, with a `NumericalWarning` once per operation and context, or an
        error before anything is computed if ``strict``; or left to the carrier by
        policy: the policy says None there, or the precision rounds nothing of that
        kind (``elementwise=None`` for all that is no product of matrices). What
        nothing rounds is torch's own function, bit for bit.
        With ``model``, its modules compute as `lowprec.nn.convert_` would make them,
        while the context is entered; modules that are converted already, and `lowprec`
        functions and modules called inside, keep their own precision. The innermost of
        nested contexts decides alone. A context belongs to the threads that entered
        it, as all of torch's modes.
        In-place operations round what they write. The arithmetic of optimizers inside
        is not emulated and is reported. Under ``torch.autocast`` what a precision is
        about is refused. Activation checkpointing must re-enter the context for its
        second forward: `lowprec.checkpoint` does. Compiled code may be called inside
        or enter the context itself; its calls are not counted. Autograd's own
        additions, where a tensor is used more than once, are those of the carrier;
        those of activations are rounded on arrival where ``elementwise`` is given.

    Args:
        precision: a `Precision` for all, or a `Policy`; one whose patterns name
            modules together with ``model``.
        model: whose module names the policy's patterns are about; what runs outside
            of its modules has the empty name.
        strict: refuse operations that are not emulated.
        generator: source of the seeds of stochastic roundings; None means torch's
            default generator.

    Raises:
        TypeError: if ``precision`` is neither, a `Policy` with patterns comes without
            ``model``, or parameters of ``model`` are in half precision.
        ValueError: if the parameters' dtype cannot hold the values of a format.
        NotImplementedError: inside, for operations that ``strict`` refuses, for
            tensors in half precision, and for torch's checkpoint with
            ``use_reentrant=True``, whose second forward would not be emulated.
        RuntimeError: inside, under autocast; on entering, if another thread has
            ``model`` in a context.

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
        precision: Precision | Policy | Mapping[str, Precision | None],
        model: torch.nn.Module | None = None,
        *,
        strict: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        """Check the arguments; nothing changes before the context is entered."""
        if model is not None or isinstance(precision, Policy):
            policy = as_policy(precision)
        else:
            policy = Policy({"*": as_precision(precision)})
        if model is not None:
            _conversion.check(model, policy)
        elif any(pattern != "*" for pattern, _ in policy.rules):
            raise TypeError(
                "this Policy is about module names, so emulate needs the model as "
                "well: emulate(policy, model)"
            )
        super().__init__(
            policy.precision_for(""),
            policy.operations,
            "",
            strict=strict,
            generator=generator,
            tally=Tally(),
        )
        self._given = precision
        self._policy = policy
        self._model = model
        self._entrance = _Entrance(self)

    def __repr__(self) -> str:
        """Return what was given."""
        strict = ", strict=True" if self.strict else ""
        return f"emulate({self._given!r}{strict})"

    def __enter__(self) -> emulate:
        """Start emulating in this thread."""
        if self._model is not None:
            self._entrance.enter(self._model, self._policy)
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
            self._entrance.leave()

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Emulate one call, or count it and let it pass."""
        if torch.compiler.is_dynamo_compiling() and self._model is not None:
            # Dynamo pushes a mode without running its __enter__.
            _conversion.check_entered(self._model)
        return super().__torch_function__(func, types, args, kwargs)

    @property
    def ends(self) -> bool:
        """Whether backward may run after it was left, where it emulates anything."""
        rounds = self.precision is not None or bool(self.operations)
        return rounds or self._model is not None

    def coverage(self) -> Coverage:
        """Return what was met so far, over all uses of this context.

        Returns:
            The operations, their treatment and the modules where they were met.
        """
        return self.tally.coverage()


keep_frames_eager(emulate.__torch_function__)


class _Entrance:
    """Which threads entered a context, and the modules that it was lent."""

    def __init__(self, context: emulate | None) -> None:
        self._context = None if context is None else weakref.ref(context)
        self._lock = threading.Lock()
        self._threads: list[int] = []
        self._modules: list[tuple[str, torch.nn.Module]] = []
        self._wanted: list[tuple[torch.nn.Module, Emulation]] = []
        self._lent: list[_conversion.Undo] = []

    # Copies of the model inside share the context; pickles have none.
    def __deepcopy__(self, memo: Any) -> _Entrance:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _Entrance, (None,)

    def enter(self, model: torch.nn.Module, policy: Policy) -> None:
        context = self.context()
        with self._lock:
            if not self._threads:
                modules = list(model.named_modules())
                if modules != self._modules:
                    self._wanted = _conversion.emulations(
                        modules,
                        policy,
                        strict=context.strict,
                        generator=context.generator,
                        tally=context.tally,
                        owner=self,
                    )
                    self._modules = modules
                self._lent = _conversion.lend(self._wanted)
            self._threads.append(threading.get_ident())

    def leave(self) -> None:
        with self._lock:
            self._threads.remove(threading.get_ident())
            if not self._threads:
                _conversion.take_back(self._lent)

    def here(self) -> bool:
        """Whether this thread entered the context."""
        return threading.get_ident() in self._threads

    def context(self) -> emulate:
        """Return the context."""
        context = None if self._context is None else self._context()
        if context is None:
            raise RuntimeError("the context lowprec.emulate does not exist any more")
        return context
