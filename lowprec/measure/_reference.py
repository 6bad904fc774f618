"""A copy of a model, and of an optimizer, in a reference dtype without emulation."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..precision import Precision
from ._nested import converted

Closure = Callable[[torch.nn.Module, Callable[[Any], Any]], Tensor]


def devices_of(model: torch.nn.Module) -> list[torch.device]:
    """Return the accelerator devices of a model's tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return list({t.device for t in tensors if t.device.type == "cuda"})


def random_state(devices: list[torch.device]) -> list[Tensor]:
    """Return the states of torch's default generators: CPU, then ``devices``."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)]


def set_random_state(state: list[Tensor], devices: list[torch.device]) -> None:
    """Set the states of torch's default generators."""
    torch.set_rng_state(state[0])
    for device, value in zip(devices, state[1:], strict=True):
        torch.cuda.set_rng_state(value, device)


@contextmanager
def random_state_kept(devices: list[torch.device]) -> Iterator[None]:
    """Restore torch's default generators at the end."""
    state = random_state(devices)
    try:
        yield
    finally:
        set_random_state(state, devices)


@contextmanager
def without_emulation() -> Iterator[None]:
    """Run torch alone: no function mode, hence no `lowprec.emulate`, and no autocast.

    Modes that the code inside enters are off as well.
    """
    with ExitStack() as stack:
        stack.enter_context(torch._C.DisableTorchFunction())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient, such as that of a sparse embedding, with all its zeros."""
    return gradient.to_dense() if gradient.is_sparse else gradient


class ReferenceModel:
    """A copy of a model in ``dtype`` that repeats its forward passes.

    Random layers see the state of torch's generators that their originals saw when
    they were called, so that dropout masks agree although emulated layers draw seeds
    of their own from the same generators.
    """

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        self._original, self.dtype = model, dtype
        self.devices = devices_of(model)
        with random_state_kept(self.devices):  # new layers draw initial values
            self.model = _plain_copy(model).to(dtype)
        self._states: dict[str, list[list[Tensor]]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the random state at each call of a module of the original."""
        self._states = {}
        handles = [
            module.register_forward_pre_hook(self._noting(name))
            for name, module in self._original.named_modules()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _noting(self, name: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            states = self._states.setdefault(name, [])
            states.append(random_state(self.devices))

        return note

    def _repeating(self, name: str) -> Callable[..., None]:
        states = iter(self._states.get(name, []))

        def repeat(*_: Any) -> None:
            state = next(states, None)
            if state is not None:
                set_random_state(state, self.devices)

        return repeat

    def synchronize(self) -> None:
        """Copy parameters, buffers and modes from the original."""
        source: dict[str, Tensor] = dict(self._original.named_parameters())
        source |= dict(self._original.named_buffers())
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(source[name])
                p.requires_grad_(source[name].requires_grad)
            for name, buffer in self.model.named_buffers():
                buffer.copy_(source[name])
        modules = dict(self._original.named_modules())
        for name, module in self.model.named_modules():
            if name in modules:
                module.training = modules[name].training

    def gradients(self, closure: Closure) -> tuple[dict[str, Tensor], float]:
        """Return the gradients by name, and the loss, of one forward pass."""
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        handles = [
            module.register_forward_pre_hook(self._repeating(name))
            for name, module in self.model.named_modules()
        ]
        try:
            with without_emulation(), torch.enable_grad():
                loss = closure(self.model, lambda x: converted(x, self.dtype))
                values: tuple[Tensor | None, ...] = ()
                if named:
                    values = torch.autograd.grad(
                        loss, list(named.values()), allow_unused=True
                    )
        finally:
            for handle in handles:
                handle.remove()
        gradients = {
            name: p.new_zeros(p.shape) if g is None else dense(g.detach())
            for (name, p), g in zip(named.items(), values, strict=True)
        }
        return gradients, float(loss.detach())


def _plain_copy(model: torch.nn.Module) -> torch.nn.Module:
    """Return a deep copy in carrier arithmetic: no layer has a precision."""
    from ..nn import unconvert_

    twin = unconvert_(copy.deepcopy(model))
    module: Any
    for module in twin.modules():
        if isinstance(getattr(module, "precision", None), Precision):
            module.precision = Precision()  # built as an emulated layer
    return twin


def exact_step(
    optimizer: Optimizer,
    state: dict[str, Any],
    weights: list[list[Tensor]],
    stepped: list[list[Tensor]],
    etas: list[Any],
) -> list[list[Tensor]]:
    """Return the parameters after one step of the same algorithm without rounding.

    A second optimizer of the same class gets the parameters in float64, the state, and
    None for every ``*_format``.

    Args:
        optimizer: the optimizer, for its class and options.
        state: its ``state_dict`` before the step, not shared with it.
        weights: float64 parameters before the step, by group; not changed.
        stepped: the parameters whose ``grad`` the step has used, by group.
        etas: step size of each group.

    Returns:
        New float64 parameters, by group.
    """
    groups = [[w.clone().requires_grad_() for w in group] for group in weights]
    for copies, originals in zip(groups, stepped, strict=True):
        for twin, p in zip(copies, originals, strict=True):
            if p.grad is not None:
                twin.grad = p.grad.detach().to(torch.float64, copy=True)
    twin_optimizer = _twin(optimizer, groups)
    twin_optimizer.load_state_dict(state)
    for group, originals, eta in zip(
        twin_optimizer.param_groups, stepped, etas, strict=True
    ):
        group["lr"] = eta
        for key in group:
            if key.endswith("_format"):
                group[key] = None
        if isinstance(group.get("eps"), tuple) and originals:
            # Adafactor's None means the eps of the dtype: not that of float64.
            unit = torch.finfo(originals[0].dtype).eps
            group["eps"] = tuple(unit if e is None else e for e in group["eps"])
    twin_optimizer.step()
    return [[w.detach() for w in group] for group in groups]


def effective_steps(optimizer: Optimizer) -> list[Any]:
    """Return the step size of each group as the optimizer uses it."""
    known = getattr(optimizer, "effective_lr", None)
    if known is not None:
        return list(known)
    return [group["lr"] for group in optimizer.param_groups]


def _twin(optimizer: Optimizer, groups: list[list[Tensor]]) -> Optimizer:
    accepted = inspect.signature(type(optimizer)).parameters
    options: dict[str, Any] = {
        name: None if name.endswith("_format") else copy.deepcopy(value)
        for name, value in optimizer.defaults.items()
        if name in accepted
    }
    wrapped = getattr(optimizer, "base", None)
    if isinstance(wrapped, Optimizer):
        # The state brings the levels; until then the twin must not move its weights.
        options["levels"] = None
    if "generator" in accepted:
        options["generator"] = torch.Generator()  # a seed from the user's is not ours
    try:
        if isinstance(wrapped, Optimizer):
            return type(optimizer)(_twin(wrapped, groups), **options)  # type: ignore[arg-type]
        return type(optimizer)([{"params": group} for group in groups], **options)
    except TypeError as error:
        raise TypeError(
            f"cannot make a second {type(optimizer).__name__} from its defaults, which "
            "measuring s_k needs: its constructor must take params and every required "
            "option under the name it has in `defaults`"
        ) from error


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse optimizers that `exact_step` cannot repeat.

    Raises:
        TypeError: saying what is missing.
    """
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"{type(optimizer).__name__} evaluates its closure several times in one "
            "step, at weights that rounding has moved: there is no single gradient to "
            "compare; use an optimizer whose step needs no closure"
        )
    # Of the same shapes, which some algorithms check, without their memory.
    zero = torch.zeros((), dtype=torch.float64)
    _twin(
        optimizer,
        [[zero.expand(p.shape) for p in g["params"]] for g in optimizer.param_groups],
    )
