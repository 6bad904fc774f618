"""The one mechanism behind `convert_` and `emulate`: modules change their class.

A converted module has a class made from its own one, whose ``forward`` is the original
one inside an emulation. Everything else is inherited, and nothing is copied.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch.nn.modules.lazy import LazyModuleMixin

from .._coverage import Tally
from .._emulation import Emulation, Owner, under
from .._operations import is_known
from ..arithmetic import fits
from ..errors import NumericalWarning
from ..precision import Policy, Precision, as_precision

STATE = "_lowprec"
_PATCH = "_lowprec_forward"


class Undo(NamedTuple):
    """A module that was lent to a context, and its emulation before."""

    module: torch.nn.Module
    emulation: Emulation | None


class Converted:
    """Marks the classes of converted modules; torch's class comes after it."""

    _lowprec: Emulation
    _lowprec_kind: type[torch.nn.Module]
    _lowprec_variant: Variant

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle by the original class: this one exists in no module."""
        reduced: Any = super().__reduce_ex__(protocol)
        function, arguments, *rest = reduced
        kind, variant = self._lowprec_kind, self._lowprec_variant
        return (_rebuild, (function, kind, variant, arguments[1:]), *rest)

    def extra_repr(self) -> str:
        """Return what torch prints, and the precision of modules with parameters."""
        text: str = super().extra_repr()  # type: ignore[misc]
        precision = self._lowprec.precision
        own = any(p is not None for p in self.__dict__["_parameters"].values())
        if precision is None or not own:
            return text
        return (
            f"{text}, precision={precision!r}" if text else f"precision={precision!r}"
        )


class Exposing(Converted):
    """Shows precision and generator as `lowprec.nn` layers do, where names are free."""

    @property
    def precision(self) -> Precision | None:
        """The precision of the module; None if it rounds nothing."""
        return self._lowprec.precision

    @precision.setter
    def precision(self, value: Precision | None) -> None:
        checked = None if value is None else as_precision(value)
        self.__dict__[STATE] = self._lowprec.replace(precision=checked)

    @property
    def generator(self) -> torch.Generator | None:
        """The source of the seeds of stochastic roundings."""
        return self._lowprec.generator

    @generator.setter
    def generator(self, value: torch.Generator | None) -> None:
        self.__dict__[STATE] = self._lowprec.replace(generator=value)


class Variant(NamedTuple):
    """Whether an instance had a ``forward`` of its own; whether it shows precision."""

    patched: bool
    exposing: bool


def _rebuild(
    function: Callable[..., Any],
    kind: Any,
    variant: Variant,
    arguments: tuple[Any, ...],
) -> Any:
    return function(converted_class(kind, variant), *arguments)


@functools.cache
def converted_class(kind: Any, variant: Variant) -> type:
    """Return the class of converted modules that were of one class."""

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        original = (
            self._lowprec_forward if variant.patched else super(made, self).forward
        )
        emulation = self._lowprec
        if not torch.compiler.is_dynamo_compiling():
            owner = emulation.owner
            if owner is not None and not owner.here():
                return original(*args, **kwargs)
        return under(emulation, original, args, kwargs)

    names = {
        "forward": forward,
        "_lowprec_kind": kind,
        "_lowprec_variant": variant,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    bases = (Exposing if variant.exposing else Converted, kind)
    made: Any = type(kind)(kind.__name__, bases, names)
    result: type = made
    return result


def is_converted(module: torch.nn.Module) -> bool:
    """Whether a module computes under an emulation of its own."""
    return STATE in module.__dict__


def emulation_of(module: torch.nn.Module) -> Emulation | None:
    """Return the emulation of a converted module."""
    emulation: Emulation | None = module.__dict__.get(STATE)
    return emulation


def swap(module: torch.nn.Module, emulation: Emulation | None) -> None:
    """Give a module another emulation: None makes it what it was."""
    if emulation is not None and is_converted(module):
        module.__dict__[STATE] = emulation
    elif emulation is not None:
        patched = "forward" in module.__dict__
        if patched:
            module.__dict__[_PATCH] = module.__dict__.pop("forward")
        taken = hasattr(module, "precision") or hasattr(module, "generator")
        variant = Variant(patched, exposing=not taken)
        kind: Any = type(module)
        made = converted_class(kind, variant)
        object.__setattr__(module, "__class__", made)  # cheaper than the module's own
        module.__dict__[STATE] = emulation
    elif is_converted(module):
        kind = cast(Any, module)._lowprec_kind
        object.__setattr__(module, "__class__", kind)
        del module.__dict__[STATE]
        if _PATCH in module.__dict__:
            module.__dict__["forward"] = module.__dict__.pop(_PATCH)


def emulations(
    modules: list[tuple[str, torch.nn.Module]],
    policy: Policy,
    *,
    strict: bool,
    generator: torch.Generator | None,
    tally: Tally,
    owner: Owner | None = None,
) -> list[tuple[torch.nn.Module, Emulation]]:
    """Say under which emulation each module is to compute."""
    return [
        (
            module,
            Emulation(
                policy.precision_for(name),
                policy.operations,
                name,
                strict=strict,
                generator=generator,
                tally=tally,
                owner=owner,
            ),
        )
        for name, module in modules
        if converts(module)
    ]


def converts(module: torch.nn.Module) -> bool:
    """Whether a module has a Python ``forward``, which alone can be converted."""
    if isinstance(module, torch.jit.ScriptModule) or has_own_precision(module):
        return False
    return computes(module)


def computes(module: torch.nn.Module) -> bool:
    """Whether a module does something itself when it is called."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    if "_orig_mod" in module._modules:  # made by torch.compile
        return False
    unimplemented = type(module).forward is torch.nn.Module.forward
    return not unimplemented or "forward" in module.__dict__


def has_own_precision(module: torch.nn.Module) -> bool:
    """Whether a module was built as one of `lowprec.nn`."""
    own = any(kind.__module__.startswith("lowprec.") for kind in type(module).__mro__)
    return own and not isinstance(module, Converted)


def lend(wanted: list[tuple[torch.nn.Module, Emulation]]) -> list[Undo]:
    """Convert modules for the duration of a context.

    Modules that `convert_` made keep their precision.

    Raises:
        RuntimeError: if another thread's context has the model.
    """
    plan = []
    for module, emulation in wanted:
        before = emulation_of(module)
        if before is not None:
            if before.owner is None:
                continue
            if not before.owner.here():
                raise RuntimeError(
                    "another thread is inside a context lowprec.emulate(policy, model) "
                    "for this model: enter one context in both threads, or convert the "
                    "model by lowprec.nn.convert_"
                )
        plan.append((Undo(module, before), emulation))
    for undo, emulation in plan:
        swap(undo.module, emulation)
    return [undo for undo, _ in plan]


def take_back(lent: list[Undo]) -> None:
    """Give the modules of a context the emulation that they had."""
    for module, emulation in lent:
        swap(module, emulation)
    lent.clear()


def check_entered(model: torch.nn.Module) -> None:
    """Refuse a context that Dynamo entered, as that converts no modules.

    Raises:
        NotImplementedError: saying what to do instead.
    """
    if not isinstance(model, Converted):
        raise NotImplementedError(
            "compiled code cannot enter lowprec.emulate(policy, model): enter the "
            "context outside, or convert the model by lowprec.nn.convert_"
        )


def check(model: Any, policy: Policy) -> None:
    """Refuse what cannot be emulated and warn of patterns that match nothing.

    Raises:
        TypeError: if ``model`` is not a module or a parameter is in half precision.
        ValueError: if a parameter's dtype cannot hold the values of a format.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, got {type(model).__qualname__}"
        )
    modules = dict(model.named_modules())
    for name, module in modules.items():
        precision = policy.precision_for(name)
        if precision is not None and converts(module):
            _check_tensors(name, module, precision)
    idle = [pattern for pattern in policy.idle(modules) if pattern != "*"]
    unknown = [name for name in policy.operations if not is_known(name)]
    for what, names in (("module", idle), ("operation", unknown)):
        if names:
            warnings.warn(
                f"these names in the policy match no {what}: "
                f"{', '.join(map(repr, names))}; names are those of "
                + (
                    "model.named_modules(), for example "
                    f"{', '.join(map(repr, list(modules)[1:4]))}"
                    if what == "module"
                    else "torch's functions, for example 'linear', 'softmax', 'add'"
                ),
                NumericalWarning,
                stacklevel=3,
            )


def _check_tensors(name: str, module: torch.nn.Module, precision: Precision) -> None:
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        raise ValueError(
            f"{name or 'the model'!r} is a lazy module, which changes its class in its "
            "first forward: run the model on a batch before"
        )
    own = [
        *module.named_parameters(recurse=False),
        *module.named_buffers(recurse=False),
    ]
    for tensor_name, tensor in own:
        if not tensor.is_floating_point():
            continue
        full = f"{name}.{tensor_name}" if name else tensor_name
        if tensor.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{full} is a {tensor.dtype} tensor, which would round a second time: "
                "values live in a wider carrier, so convert the model first, by "
                "model.float()"
            )
        for role, rounding in precision.roundings():
            if not fits(rounding.format, tensor.dtype):
                raise ValueError(
                    f"{full} is a {tensor.dtype} tensor, which cannot hold the values "
                    f"of {role}={rounding.format.name or rounding.format}: convert the "
                    "model first, by model.double()"
                )
