"""LayerMonitor: the rounding errors of each layer, tensor by tensor."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..precision import Policy, Precision, as_policy
from ._additions import count_swamped
from ._ledger import Ledger
from ._nested import floating_tensors, mapped
from ._products import TERMS
from ._reference import dense, without_emulation
from ._roles import ROLES, UPDATE, Layer, floating_point
from ._shadow import Call, Shadow
from ._statistics import TensorStatistics

_Key = tuple[str, str]


class LayerMonitor:
    r"""Measure what each layer's own roundings do to its tensors, at its own inputs.

    A shadow of the layer in the reference dtype, without emulation, gets the same
    inputs, parameters, random numbers and incoming gradients. Compared are, by role:
    ``input``, ``weight``, ``grad_output``, the operands, before and after the rounding
    that the layer's precision gives them; ``output``, ``grad_input``, ``grad_weight``
    with those of the shadow. Errors of other layers therefore do not appear, and
    those of one layer appear in full; `attribute` says what they do to the gradient.

    Contract:
        The run is the same bit for bit with and without a monitor. A call of a module
        is measured if it calls no other module: layers are, containers are not.
        Units in the last place are those of the tensor's format: that of its rounding,
        else of its accumulator, else of its dtype. ``grad_weight`` sums over the calls
        of a backward pass, as torch does, and is listed under the first layer that has
        the parameter; uses of a parameter outside of its layers are unknown to the
        shadow. Left out are calls that change their inputs in place, and swamped
        additions (`TensorStatistics`) in layers other than linear ones and
        convolutions with zero padding. Models that ``torch.compile`` made run
        eagerly while they are observed. Activation checkpointing (only with
        ``use_reentrant=False``) calls layers twice, and they count twice. Operands are
        rounded here with other random numbers than the layer's, of the same
        distribution.

        Memory: a copy of the parameters in the reference dtype; the inputs of each
        layer until its backward; one layer's computation in the reference dtype at a
        time; per tensor role a fixed set of sums and one count per binary exponent.
        Time: two forward passes and a backward pass in the reference dtype.

    Args:
        model: the model, plain, converted, or run under `lowprec.emulate`.
        precision: the `Policy` or `Precision` of its modules; None reads the
            attribute ``precision`` that converted modules have.
        reference: dtype of the shadow.
        modules: patterns of the names of modules to measure.
        sample: most elements of a tensor to compare in one call.
        sums: most sums of a product to watch for swamped additions in one call; 0
            watches none.
        ledger: where records go; None makes one in memory.

    Raises:
        ValueError: if ``sample`` or ``sums`` is no whole number, or too small.

    Example:
        >>> import lowprec as lp
        >>> model = lp.nn.convert_(torch.nn.Linear(3, 2), Precision(weight="e4m3fn"))
        >>> layers = LayerMonitor(model)
        >>> with layers.observe():
        ...     model(torch.ones(4, 3)).sum().backward()
        >>> layers.statistics("", "weight").relative_error < 2**-4
        True
        >>> layers.statistics("", "input").noise
        0.0

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, sections 1.2 and 3.1.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        precision: Policy | Precision | None = None,
        reference: torch.dtype = torch.float64,
        modules: str | Sequence[str] = "*",
        sample: int = 1 << 16,
        sums: int = 32,
        ledger: Ledger | None = None,
    ) -> None:
        """Copy the model; hooks are there only while `observe` is active."""
        _check_count("sample", sample, 1)
        _check_count("sums", sums, 0)
        self.ledger = Ledger() if ledger is None else ledger
        self._model = model
        self._policy = None if precision is None else as_policy(precision)
        self._patterns = [modules] if isinstance(modules, str) else list(modules)
        self._sample, self._sums = sample, sums
        self._shadow = Shadow(model, reference)
        self._step = 0
        self._total: dict[_Key, TensorStatistics] = {}
        self._formats: dict[_Key, Any] = {}
        self._session: object | None = None
        self._start()

    def _start(self) -> None:
        self._now: dict[_Key, TensorStatistics] = {}
        self._stack: list[Call] = []
        self._owners: dict[int, Layer] = {}
        self._weight_gradients: dict[int, Tensor] = {}

    @contextmanager
    def observe(self, step: int | None = None) -> Iterator[None]:
        """Measure one training step: its forward and, if any, backward passes.

        At the end the statistics are added to the totals and written to the ledger,
        one record for each layer and role.

        Args:
            step: its number; None continues to count.

        Raises:
            RuntimeError: if a step is observed already.
        """
        if self._session is not None:
            raise RuntimeError("this LayerMonitor observes a step already")
        with without_emulation(), torch.no_grad():
            self._shadow.synchronize()
        handles = self._hooks()
        self._session = object()
        try:
            with _eagerly():
                yield
            self._record(self._step if step is None else step)
        finally:
            self._session = None
            for handle in handles:
                handle.remove()
            self._start()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers measured so far, in order of their first call."""
        return tuple(dict.fromkeys(name for name, _ in self._total))

    def statistics(self, module: str, role: str) -> TensorStatistics:
        """Return the totals over all steps.

        Args:
            module: name of the layer, as in ``model.named_modules()``.
            role: ``"input"``, ``"weight"``, ``"output"``, ``"grad_output"``,
                ``"grad_input"``, ``"grad_weight"``; ``"update"``, the moves of the
                parameters, if a `RoundoffMonitor` measures them.

        Returns:
            The statistics.

        Raises:
            KeyError: if nothing was measured there.
        """
        if (module, role) in self._total:
            return self._total[module, role]
        known = ", ".join(f"{name!r} {part}" for name, part in self._total)
        raise KeyError(
            f"nothing was measured for {role!r} of {module!r}: there are "
            f"{known or 'no measurements'}"
        )

    @property
    def measured(self) -> tuple[tuple[str, str], ...]:
        """Layers and roles measured so far, in order of the layers and of ``ROLES``."""
        return tuple(self._total)

    def format(self, module: str, role: str) -> str:
        """Return the name of the format of a measured tensor; empty for ``update``."""
        return _label(self._formats[module, role])

    def kind(self, module: str) -> str:
        """Return the class of a layer by its name."""
        return type(self._model.get_submodule(module)).__name__

    def known_format(self, module: str, role: str) -> Any:
        """Return the format of a measured tensor, of whatever kind it is, or None."""
        return self._formats[module, role]

    def _hooks(self) -> list[Any]:
        handles: list[Any] = []
        for name, module in self._model.named_modules():
            before = partial(self._before, name)
            handles += [
                module.register_forward_pre_hook(before, with_kwargs=True),
                module.register_forward_hook(self._after, always_call=True),
            ]
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                hook = partial(self._on_weight_gradient, id(parameter))
                handles.append(parameter.register_hook(hook))
        return handles

    def _before(
        self,
        name: str,
        module: torch.nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if self._stack:
            self._stack[-1].calls_others = True
        views: dict[int, Tensor] = {}

        def view(x: Tensor) -> Tensor:
            # A view has the gradient of this call alone.
            if not (x.requires_grad and torch.is_grad_enabled()):
                return x
            return views.setdefault(id(x), x.view_as(x))

        with without_emulation():
            arguments: tuple[Any, Any] = mapped((args, kwargs), view)
            with torch.no_grad():
                layer = Layer(name, module, self._precision(name, module))
                call = self._shadow.note(layer, arguments, self._session)
        for i, x in enumerate(floating_tensors(arguments)):
            if id(x) in {id(copy) for copy in views.values()}:
                x.register_hook(partial(self._on_input_gradient, call, i))
        self._stack.append(call)
        return arguments

    def _after(self, module: torch.nn.Module, _: Any, output: Any) -> None:
        if not self._stack or self._stack[-1].layer.module is not module:
            return  # an earlier hook has failed
        call, outputs = self._stack.pop(), floating_tensors(output)
        selected = any(fnmatchcase(call.layer.name, one) for one in self._patterns)
        if call.calls_others or not selected or not outputs or not call.unchanged:
            return
        with without_emulation(), torch.no_grad():
            self._measure_forward(call, outputs)
        learning = [y.requires_grad for y in outputs]
        if any(learning):
            for parameter in module.parameters():
                self._owners.setdefault(id(parameter), call.layer)
            torch.autograd.graph.register_multi_grad_hook(
                [y for y in outputs if y.requires_grad],
                partial(self._on_output_gradients, call, learning),
            )

    def _measure_forward(self, call: Call, outputs: list[Tensor]) -> None:
        for x in call.inputs:
            self._operand(call, "input", x)
        for name, parameter in call.layer.module.named_parameters():
            if "bias" not in name:  # biases are used as they are
                self._operand(call, "weight", parameter)
        _, exact = self._shadow.repeat(call)
        for y, wanted in zip(outputs, exact, strict=False):
            self._compare(call.layer, "output", y, wanted)
        self._watch_sums(call, "output", outputs[0])

    def _on_output_gradients(
        self, call: Call, learning: list[bool], gradients: Sequence[Tensor | None]
    ) -> None:
        if call.session is not self._session or not call.unchanged:
            return
        with without_emulation(), torch.no_grad():
            arrived = iter(gradients)
            incoming = [next(arrived) if learns else None for learns in learning]
            incoming = [None if dy is None else dense(dy) for dy in incoming]
            for dy in incoming:
                if dy is not None:
                    self._operand(call, "grad_output", dy)
            of_inputs, of_parameters = self._shadow.gradients(call, incoming)
            call.input_gradients = {
                i: value for i, value in enumerate(of_inputs) if value is not None
            }
            for parameter, value in of_parameters:
                known = self._weight_gradients.get(id(parameter), 0)
                self._weight_gradients[id(parameter)] = value + known
            if incoming[0] is not None:
                if 0 in call.input_gradients:
                    self._watch_sums(call, "grad_input", incoming[0])
                if of_parameters:
                    self._watch_sums(call, "grad_weight", incoming[0])

    def _on_input_gradient(self, call: Call, position: int, gradient: Tensor) -> None:
        exact = call.input_gradients.pop(position, None)
        if call.session is self._session and exact is not None:
            with without_emulation(), torch.no_grad():
                self._compare(call.layer, "grad_input", dense(gradient), exact)

    def _on_weight_gradient(self, parameter: int, gradient: Tensor) -> None:
        exact = self._weight_gradients.pop(parameter, None)
        if exact is not None:
            with without_emulation(), torch.no_grad():
                layer = self._owners[parameter]
                self._compare(layer, "grad_weight", dense(gradient), exact)

    def _precision(self, name: str, module: torch.nn.Module) -> Precision:
        known: Any = getattr(module, "precision", None)
        if self._policy is not None:
            known = self._policy.precision_for(name)
        return known if isinstance(known, Precision) else Precision()

    def _operand(self, call: Call, role: str, x: Tensor) -> None:
        self._compare(call.layer, role, call.layer.rounded(role, x), x)

    def _compare(self, layer: Layer, role: str, actual: Tensor, exact: Tensor) -> None:
        if actual.shape == exact.shape:
            self._of(layer, role, actual).update(
                actual,
                exact,
                floating_point(layer.format(role, actual)),
                sample=self._sample,
            )

    def _of(self, layer: Layer, role: str, x: Tensor) -> TensorStatistics:
        """Return the statistics of this step."""
        self._formats[layer.name, role] = layer.format(role, x)
        return self._now.setdefault((layer.name, role), TensorStatistics())

    def _watch_sums(self, call: Call, role: str, result: Tensor) -> None:
        """Count swamped additions; ``result`` is the output or its gradient."""
        layer = call.layer
        accumulator = layer.accumulator(role)
        if accumulator is None or self._sums == 0 or not call.inputs:
            return
        factors, terms_of = TERMS[role]
        terms = terms_of(layer.module, call.inputs[0], result, self._sums)
        if terms is None:
            return
        left, right = (
            layer.factor(factor, x) for factor, x in zip(factors, terms, strict=True)
        )
        if left is None or right is None:
            return
        counts = count_swamped(left, right, accumulator)
        if counts is not None:
            if role == "grad_weight":
                weight: Any = layer.module.weight
                layer = self._owners[id(weight)]
            self._of(layer, role, result).count_additions(*counts)

    def record_updates(
        self, moves: Mapping[str, tuple[Tensor, Tensor]], step: int
    ) -> None:
        """Add what one optimizer step did to the parameters, as role ``update``.

        Args:
            moves: by parameter name, the move that was made and the exact one, in
                float64; where the made one is zero, ``underflow`` counts stagnation.
            step: number of the step.
        """
        for name, (made, exact) in moves.items():
            layer = name.rpartition(".")[0]
            statistics = self._now.setdefault((layer, UPDATE), TensorStatistics())
            statistics.update(made, exact, None, sample=self._sample)
            self._formats[layer, UPDATE] = None
        self._record(step)
        self._start()

    def _record(self, step: int) -> None:
        order = {role: i for i, role in enumerate((*ROLES, UPDATE))}
        names = list(dict.fromkeys(name for name, _ in self._now))
        for key in sorted(self._now, key=lambda k: (names.index(k[0]), order[k[1]])):
            name, role = key
            self._total.setdefault(key, TensorStatistics()).merge(self._now[key])
            self.ledger.append(
                {
                    "step": step,
                    "module": name,
                    "kind": self.kind(name),
                    "role": role,
                    "format": _label(self._formats[key]),
                    **self._now[key].record(),
                }
            )
        self._step = step + 1


def _eagerly() -> AbstractContextManager[Any]:
    """Let compiled models run as they were: compiled code would trace the hooks."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")


def _label(format: Any) -> str:
    return "" if format is None else getattr(format, "name", None) or repr(format)
