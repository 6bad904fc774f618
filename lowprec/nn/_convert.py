"""In-place conversion of models: modules change class, parameters stay."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TypeVar

import torch

from .._coverage import Tally
from ..errors import NumericalWarning
from ..precision import Policy, Precision, as_policy
from . import _conversion

__all__ = ["convert_", "unconvert_"]

_Module = TypeVar("_Module", bound=torch.nn.Module)


def convert_(
    model: _Module,
    policy: Policy | Precision | Mapping[str, Precision | None],
    *,
    strict: bool = False,
    generator: torch.Generator | None = None,
) -> _Module:
    """Make the modules of a model compute in low precision, in place.

    Contract:
        The ``forward`` of each module runs as inside `lowprec.emulate` under the
        precision that the policy gives the module's name, with the same bits. Modules
        change their class, to one derived from it, and nothing else: parameters,
        buffers, hooks, names, ``state_dict`` and tied weights stay, so optimizers, DDP
        and checkpoints do not notice; `unconvert_` undoes it. Copies and pickles of a
        converted model are converted. Kernels of torch that fuse a whole module, such
        as the inference kernel of ``torch.nn.TransformerEncoderLayer``, are not used.
        A module whose precision is None or rounds nothing computes as torch does.
        Converting again replaces the precision. Modules built as `lowprec.nn` ones
        keep their own. Code outside of a ``forward`` is not seen (methods called by
        other names, hooks, a loss function of its own); nor are TorchScript modules,
        which a `NumericalWarning` names. What an operation is that a precision is
        about, but cannot be emulated, is reported when it is met: `coverage` lists
        what was met, `report` lists the modules.

    Args:
        model: the module to convert; it may itself be a layer.
        policy: a `Policy`, a mapping of rules, or one `Precision` for all modules.
        strict: refuse operations that are not emulated when they are met, and modules
            that cannot be converted before anything is changed.
        generator: source of the seeds of stochastic roundings of all modules.

    Returns:
        ``model``.

    Raises:
        TypeError: if ``model`` is not a module, ``policy`` not a policy, or parameters
            are in half precision.
        ValueError: if the parameters' dtype cannot hold the values of a format.
        NotImplementedError: if ``strict`` and a module cannot be converted.
        RuntimeError: if a converted module changed its class since, as
            ``torch.nn.utils.parametrize`` does, or the model is inside a context
            ``emulate(policy, model)``; nothing is changed then.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> convert_(model, Precision(input="e4m3fn"))
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True, \
precision=Precision(input='e4m3fn'))
          (1): ReLU()
        )
    """
    rules = as_policy(policy)
    _conversion.check(model, rules)
    _check_restorable(model)
    _check_scripted(model, rules, strict)
    _check_not_lent(model)
    plan = _conversion.emulations(
        list(model.named_modules()),
        rules,
        strict=strict,
        generator=generator,
        tally=Tally(),
    )
    for module, emulation in plan:
        _conversion.swap(module, emulation)
    return model


def _check_scripted(model: torch.nn.Module, policy: Policy, strict: bool) -> None:
    missed = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.jit.ScriptModule)
        and policy.precision_for(name) is not None
    ]
    if not missed:
        return
    text = (
        "TorchScript modules have a precision in the policy but cannot be converted "
        f"and stay in carrier arithmetic: {', '.join(map(repr, missed[:5]))}"
        f"{', ...' if len(missed) > 5 else ''}; use the Python modules that they were "
        "made from, or give them None in the policy"
    )
    if strict:
        raise NotImplementedError(text)
    warnings.warn(text, NumericalWarning, stacklevel=3)


def _check_not_lent(model: torch.nn.Module) -> None:
    for name, module in model.named_modules():
        emulation = _conversion.emulation_of(module)
        if emulation is not None and emulation.owner is not None:
            raise RuntimeError(
                f"{name!r} is inside a context lowprec.emulate(policy, model): leave "
                "it first"
            )


def _check_restorable(model: torch.nn.Module) -> None:
    for name, module in model.named_modules():
        if not _conversion.is_converted(module):
            continue
        if "_lowprec_kind" not in vars(type(module)):
            raise RuntimeError(
                f"{name!r} was converted and became a {type(module).__qualname__} "
                "since: undo that first, for example with "
                "torch.nn.utils.parametrize.remove_parametrizations"
            )


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
    _conversion.check(model, Policy({}))
    _check_restorable(model)
    for module in model.modules():
        _conversion.swap(module, None)
    return model
