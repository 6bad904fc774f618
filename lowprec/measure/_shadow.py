"""Calls of single modules, repeated in a reference dtype without emulation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ._nested import converted, floating_tensors, mapped
from ._reference import (
    ReferenceModel,
    dense,
    random_state,
    random_state_kept,
    set_random_state,
)
from ._roles import Layer


@dataclass
class Call:
    """One call of a module, with what repeats it.

    No tensor here has a history: a hook on a tensor that kept a tensor of the same
    graph alive would never be freed.

    Args:
        layer: the module that was called.
        session: in which it was called; its gradients may come later.
        arguments: positional and keyword arguments, detached.
        learning: whether each floating-point argument needs a gradient.
        versions: of these arguments, which change if they are changed in place.
        state: of torch's random generators.
        buffers: in the reference dtype.
    """

    layer: Layer
    session: object
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    learning: list[bool]
    versions: list[int]
    state: list[Tensor]
    buffers: list[Tensor]
    calls_others: bool = False
    input_gradients: dict[int, Tensor] = field(default_factory=dict)

    @property
    def inputs(self) -> list[Tensor]:
        """The floating-point arguments."""
        return floating_tensors(self.arguments)

    @property
    def unchanged(self) -> bool:
        """Whether the arguments still have the values of the call."""
        return [x._version for x in self.inputs] == self.versions


class Shadow:
    """A copy of a model whose modules repeat calls of the original's."""

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        self._reference = ReferenceModel(model, dtype)
        self._modules = dict(self._reference.model.named_modules())
        self.dtype = dtype

    def synchronize(self) -> None:
        """Copy parameters and buffers from the original."""
        self._reference.synchronize()

    def note(self, layer: Layer, arguments: tuple[Any, Any], session: object) -> Call:
        """Return a call that is about to be made."""
        copies: dict[int, Tensor] = {}

        def detached(x: Tensor) -> Tensor:
            # Attention looks whether its arguments are the same object.
            return copies.setdefault(id(x), x.detach())

        inputs = floating_tensors(arguments)
        return Call(
            layer,
            session,
            mapped(arguments, detached),
            [x.requires_grad for x in inputs],
            [x._version for x in inputs],
            random_state(self._reference.devices),
            [converted(b.clone(), self.dtype) for b in layer.module.buffers()],
        )

    def repeat(self, call: Call) -> tuple[list[Tensor], list[Tensor]]:
        """Return the floating-point inputs and outputs of the call in this dtype."""
        twin, entered = self._modules[call.layer.name], {}
        for x, learns in zip(call.inputs, call.learning, strict=True):
            entered[id(x)] = x.to(self.dtype, copy=True).requires_grad_(learns)
        args, kwargs = mapped(call.arguments, lambda x: entered.get(id(x), x))
        for copy, original in zip(
            twin.modules(), call.layer.module.modules(), strict=True
        ):
            copy.training = original.training
        with random_state_kept(self._reference.devices):
            set_random_state(call.state, self._reference.devices)
            with torch.no_grad():
                for buffer, value in zip(twin.buffers(), call.buffers, strict=True):
                    buffer.copy_(value)
            output = twin(*args, **kwargs)
        return list(entered.values()), floating_tensors(output)

    def gradients(
        self, call: Call, incoming: list[Tensor | None]
    ) -> tuple[list[Tensor | None], list[tuple[Tensor, Tensor]]]:
        """Return the gradients of a call's inputs and parameters.

        Args:
            call: the call.
            incoming: gradient of each of its floating-point outputs, None where there
                is none.

        Returns:
            One gradient or None per input; pairs of the original's parameters and
            their gradients.
        """
        with torch.enable_grad():
            inputs, outputs = self.repeat(call)
        if len(outputs) != len(incoming):
            return [None] * len(inputs), []
        used = [
            (y, dy.to(self.dtype))
            for y, dy in zip(outputs, incoming, strict=True)
            if dy is not None and y.requires_grad
        ]
        twins = self._modules[call.layer.name].parameters()
        trained = [
            (original, copy)
            for original, copy in zip(
                call.layer.module.parameters(), twins, strict=True
            )
            if copy.requires_grad
        ]
        wanted = [x for x in inputs if x.requires_grad] + [copy for _, copy in trained]
        if not used or not wanted:
            return [None] * len(inputs), []
        values = torch.autograd.grad(
            [y for y, _ in used], wanted, [dy for _, dy in used], allow_unused=True
        )
        gradients = iter(None if value is None else dense(value) for value in values)
        of_inputs = [next(gradients) if x.requires_grad else None for x in inputs]
        pairs = [(original, next(gradients)) for original, _ in trained]
        return of_inputs, [(p, value) for p, value in pairs if value is not None]
