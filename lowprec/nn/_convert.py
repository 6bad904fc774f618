"""In-place conversion of models: modules change class, parameters stay."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch

from ..errors import NumericalWarning
from ..precision import Policy, Precision, as_policy
from ._convolution import Conv1d, Conv2d, Conv3d
from ._linear import Linear

__all__ = ["Report", "ReportRow", "convert_", "report", "unconvert_"]

_Module = TypeVar("_Module", bound=torch.nn.Module)
_MARK = "_lowprec_converted"
_FUSED = "_lowprec_fused_activation"

CONVERTED = "emulated"
EXACT = "exact by nature"
NOT_CONVERTED = "not emulated"


# Which class makes a module of torch an emulated one.
_TARGETS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.Linear: Linear,
    torch.nn.Conv1d: Conv1d,
    torch.nn.Conv2d: Conv2d,
    torch.nn.Conv3d: Conv3d,
}
_ORIGINALS = {target: original for original, target in _TARGETS.items()}

# Forward and backward only move values, choose among them or compare.
_EXACT_MODULES = (
    torch.nn.Identity,
    torch.nn.Flatten,
    torch.nn.Unflatten,
    torch.nn.ReLU,
    torch.nn.ZeroPad1d,
    torch.nn.ZeroPad2d,
    torch.nn.ZeroPad3d,
    torch.nn.ChannelShuffle,
    torch.nn.PixelShuffle,
    torch.nn.PixelUnshuffle,
)


class ReportRow(NamedTuple):
    """What happens to one module.

    ``treatment`` is ``"emulated"``, ``"exact by nature"`` or ``"not emulated"``.
    """

    name: str
    module: str
    treatment: str
    precision: Precision | None


@dataclass(frozen=True)
class Report:
    """What is emulated in a model, one row per module that computes something itself.

    Containers have no row: `report` sees modules, not the calls inside a container's
    ``forward``; `lowprec.emulate` sees those.
    """

    rows: tuple[ReportRow, ...]

    def __iter__(self) -> Iterator[ReportRow]:
        """Iterate over the rows in the order of ``named_modules``."""
        return iter(self.rows)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __str__(self) -> str:
        """Return a table."""
        cells = [
            (row.name, row.module, row.treatment, str(row.precision or ""))
            for row in self.rows
        ]
        cells.insert(0, ("name", "module", "treatment", "precision"))
        widths = [max(len(line[i]) for line in cells) for i in range(4)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) for cell, width in zip(line, widths, strict=True)
            ).rstrip()
            for line in cells
        )

    def of(self, treatment: str) -> tuple[ReportRow, ...]:
        """Return the rows with one treatment."""
        return tuple(row for row in self.rows if row.treatment == treatment)


def report(model: torch.nn.Module) -> Report:
    """Say which modules of a model are emulated and which stay in the carrier.

    Args:
        model: any module.

    Returns:
        One row for every emulated module, every module without children and every
        module with parameters of its own.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh())
        >>> model = convert_(model, {"0": Precision(weight="bfloat16"), "1": None})
        >>> print(report(model))
        name  module  treatment     precision
        0     Linear  emulated      Precision(weight='bfloat16')
        1     Tanh    not emulated
    """
    rows = []
    for name, module in model.named_modules():
        if _emulates(module):
            treatment = CONVERTED
        elif not _computes(module):
            continue
        elif type(module) in _EXACT_MODULES and not _overridden(module):
            treatment = EXACT
        else:
            treatment = NOT_CONVERTED
        precision = getattr(module, "precision", None)
        rows.append(
            ReportRow(
                name,
                type(module).__name__,
                treatment,
                precision if treatment == CONVERTED else None,
            )
        )
    return Report(tuple(rows))


def _emulates(module: torch.nn.Module) -> bool:
    """Whether the module runs an emulated forward; parametrized ones do."""
    return not _overridden(module) and any(
        isinstance(module, kind) and type(module).forward is kind.forward
        for kind in _ORIGINALS
    )


def _computes(module: torch.nn.Module) -> bool:
    own = any(parameter is not None for parameter in module._parameters.values())
    return own or not module._modules


def _overridden(module: torch.nn.Module) -> bool:
    """Whether the instance has a forward of its own, which a class swap would miss."""
    return "forward" in module.__dict__


def _convertible(module: torch.nn.Module) -> bool:
    return type(module) in _TARGETS and not _overridden(module)


def _is_converted(module: torch.nn.Module) -> bool:
    return _MARK in module.__dict__


def convert_(
    model: _Module,
    policy: Policy | Precision | Mapping[str, Precision | None],
    *,
    strict: bool = False,
    generator: torch.Generator | None = None,
) -> _Module:
    """Turn the layers of a model into emulated ones, in place.

    Contract:
        Modules change their class and nothing else: parameters, buffers, hooks,
        names, ``state_dict`` and tied weights stay, so optimizers, DDP and
        checkpoints do not notice; `unconvert_` undoes it. A
        ``torch.nn.TransformerEncoderLayer`` with converted layers no longer uses its
        fused inference kernel, which would not call them. Only exact
        ``torch.nn.Linear`` and ``Conv1d`` to ``Conv3d`` modules are converted so far:
        subclasses and modules whose ``forward`` was replaced have a meaning this
        function does not know. Converting again replaces the precision, also by None.
        Modules built as `lowprec.nn` ones keep their own. A module that the policy
        gives a precision but that stays in carrier arithmetic is named in a
        `NumericalWarning` (give it None in the policy to accept that); `report` lists
        all. Calls inside the ``forward`` of containers are not seen here;
        `lowprec.emulate` sees them.

    Args:
        model: the module to convert; it may itself be a layer.
        policy: a `Policy`, a mapping of rules, or one `Precision` for all modules.
        strict: refuse, before anything is changed, what would be warned about.
        generator: source of the seeds of stochastic roundings of all layers.

    Returns:
        ``model``.

    Raises:
        TypeError: if ``model`` is not a module or ``policy`` not a policy.
        NotImplementedError: if ``strict`` and a module cannot be emulated.
        RuntimeError: if a converted module changed its class since, as
            ``torch.nn.utils.parametrize`` does; nothing is changed then.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> convert_(model, Precision(input="e4m3fn"))
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True, \
precision=Precision(input='e4m3fn'))
          (1): ReLU()
        )
    """
    _check_module(model)
    _check_restorable(model)
    rules = as_policy(policy)
    plan: list[tuple[torch.nn.Module, Precision | None]] = []
    missed = []
    for name, module in model.named_modules():
        precision = rules.precision_for(name)
        if _convertible(module) or _is_converted(module):
            plan.append((module, precision))
        elif precision is not None and _is_missed(module):
            missed.append((name, module))
    if missed:
        text = _missed_text(missed)
        if strict:
            raise NotImplementedError(text)
        warnings.warn(text, NumericalWarning, stacklevel=2)
    for module, precision in plan:
        _restore(module)
        if precision is not None:
            module.__class__ = _TARGETS[type(module)]
            module.__dict__.update(
                {"precision": precision, "generator": generator, _MARK: True}
            )
    _choose_fused_kernels(model)
    return model


def _is_missed(module: torch.nn.Module) -> bool:
    if _emulates(module) or not _computes(module):
        return False
    return type(module) not in _EXACT_MODULES or _overridden(module)


def _missed_text(missed: list[tuple[str, torch.nn.Module]]) -> str:
    counts = Counter(type(module).__qualname__ for _, module in missed)
    kinds = ", ".join(f"{kind} ({count})" for kind, count in counts.items())
    names = ", ".join(repr(name) for name, _ in missed[:5])
    more = ", ..." if len(missed) > 5 else ""
    return (
        "these modules have a precision in the policy but cannot be converted and "
        f"stay in carrier arithmetic: {kinds}, namely {names}{more}; give them None in "
        "the policy to accept that, for example Policy({'*': precision, "
        f"{missed[0][0]!r}: None}})"
    )


def _check_module(model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, got {type(model).__qualname__}"
        )


def _check_restorable(model: torch.nn.Module) -> None:
    for name, module in model.named_modules():
        if _is_converted(module) and type(module) not in _ORIGINALS:
            raise RuntimeError(
                f"{name!r} was converted and became a {type(module).__qualname__} "
                "since: undo that first, for example with "
                "torch.nn.utils.parametrize.remove_parametrizations"
            )


def _choose_fused_kernels(model: torch.nn.Module) -> None:
    """Let encoder layers call their layers, if one is emulated, in inference too.

    Their fused kernel, which reads the weights itself, needs a known activation.
    """
    for layer in model.modules():
        if not isinstance(layer, torch.nn.TransformerEncoderLayer):
            continue
        state = layer.__dict__
        emulated = any(map(_emulates, layer.modules()))
        if emulated and _FUSED not in state:
            state[_FUSED] = layer.activation_relu_or_gelu
            layer.activation_relu_or_gelu = 0
        elif not emulated and _FUSED in state:
            layer.activation_relu_or_gelu = state.pop(_FUSED)


def _restore(module: torch.nn.Module) -> None:
    if _is_converted(module):
        for name in ("precision", "generator", _MARK):
            del module.__dict__[name]
        module.__class__ = _ORIGINALS[type(module)]


def unconvert_(model: _Module) -> _Module:
    """Undo `convert_`: every converted module becomes what it was.

    Contract:
        Modules built as `lowprec.nn` ones stay as they are.

    Args:
        model: a module that `convert_` was applied to, or a copy of it.

    Returns:
        ``model``.

    Raises:
        TypeError: if ``model`` is not a module.
        RuntimeError: as `convert_`.

    Example:
        >>> model = convert_(torch.nn.Linear(2, 3), Precision(input="e4m3fn"))
        >>> unconvert_(model)
        Linear(in_features=2, out_features=3, bias=True)
    """
    _check_module(model)
    _check_restorable(model)
    for module in model.modules():
        _restore(module)
    _choose_fused_kernels(model)
    return model
