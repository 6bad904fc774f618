"""How much of a gradient's rounding error each layer, or each rounding, causes."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import NumericalWarning
from ..formats import columns
from ..nn import convert_, unconvert_
from ..precision import Policy, Precision, as_policy
from ._norms import norm, ratio
from ._reference import Closure, ReferenceModel, dense, random_state_kept

_Vector = list[Tensor]


class _Site(NamedTuple):
    """A field of the precision of a module, or of an operation by its name."""

    name: str
    field: str
    operation: bool

    @property
    def owner(self) -> str:
        """What the user calls the module or operation."""
        return f"{self.name}()" if self.operation else self.name


_Plan = dict[_Site, Any]  # what rounds
_SITES: dict[str, Callable[[_Site], str]] = {
    "modules": lambda site: site.owner,
    "fields": lambda site: site.field,
    "sites": lambda site: f"{site.owner}.{site.field}" if site.owner else site.field,
}


@dataclass(frozen=True)
class AttributionRow:
    """What one site does to the gradient.

    With g(S) the gradient where only the sites S round, and all of them ``*``:

    Args:
        site: name of the layer, of the field, or both.
        alone: ||g({site}) - g({})||, switched on alone.
        alone_share: its part <g({site}) - g({}), e> / ||e||^2 of the total error
            e = g(*) - g({}); the parts add up to one if sites do not interact.
        removed: ||g(*) - g(* without site)||, switched off alone.
        removed_share: its part, as for ``alone_share``.
        r_without: ||r|| that is left without the site.
    """

    site: str
    alone: float
    alone_share: float
    removed: float
    removed_share: float
    r_without: float


@dataclass(frozen=True)
class Attribution:
    """The error of a gradient by its causes; prints as a table.

    Args:
        rows: one per site, in the order of the model.
        r_norm: ||r||, the error g(*) - g against the reference.
        carrier: ||g({}) - g||, the error without any site: that of the carrier.
        gradient_norm: ||g|| of the reference.
        interaction: ||e - sum over sites of (g({site}) - g({}))|| / ||e||, which is 0
            if errors add up, with e = g(*) - g({}).
    """

    rows: tuple[AttributionRow, ...]
    r_norm: float
    carrier: float
    gradient_norm: float
    interaction: float

    def __getitem__(self, site: str) -> AttributionRow:
        """Return the row of a site."""
        for row in self.rows:
            if row.site == site:
                return row
        known = ", ".join(repr(row.site) for row in self.rows)
        raise KeyError(f"no site {site!r}: there are {known or 'none'}")

    def __str__(self) -> str:
        """Return the rows that are not zero, and the total below them."""
        names = [one.name for one in fields(AttributionRow)]
        cells = [names]
        for row in self.rows:
            if row.alone == row.removed == 0:
                continue
            shown = []
            for name in names[1:]:
                value = getattr(row, name)
                shown.append(f"{value:.1%}" if "share" in name else f"{value:.4g}")
            cells.append([row.site, *shown])
        lines = columns(cells, right=range(1, len(names)))
        lines.append(
            f"total: ||r|| = {self.r_norm:.4g}, ||g|| = {self.gradient_norm:.4g}, "
            f"carrier alone {self.carrier:.4g}, interaction {self.interaction:.1%}"
        )
        return "\n".join(lines)

    def to_pandas(self) -> Any:
        """Return the rows as a ``pandas.DataFrame``.

        Raises:
            ModuleNotFoundError: if pandas is not installed.
        """
        import pandas

        return pandas.DataFrame([vars(row) for row in self.rows])


def attribute(
    model: torch.nn.Module,
    policy: Policy | Precision | Mapping[str, Precision | None],
    closure: Closure,
    *,
    sites: Literal["modules", "fields", "sites"] = "modules",
    reference: torch.dtype = torch.float64,
    seed: int = 0,
) -> Attribution:
    """Attribute the gradient's error to the sites where it is made.

    The gradient of one batch is computed with no site, with all, with each alone and
    with all but each: 2 n + 2 times for n sites, and once in the reference dtype.

    Contract:
        Batch, parameters, dropout masks and the random numbers of every site are the
        same in all runs. A site is what `lowprec.nn.convert_` makes of the policy: a
        module or operation with a precision, one field of all precisions, or one
        field of one module or operation. A site is off where its field is None, which
        leaves that rounding out and, for an accumulator, means the carrier's sum. The
        model, its gradients and torch's generators are not changed: copies are used,
        which hold one model and seven gradients at a time. Modules whose precision
        changes nothing get a row of zeros.

    Args:
        model: the model; how it was converted does not matter.
        policy: the precisions to attribute.
        closure: ``closure(model, cast)`` returns the loss, as in
            `RoundoffMonitor.backward`.
        sites: ``"modules"``, ``"fields"`` or ``"sites"`` (every field of every
            module).
        reference: dtype of the exact gradient.
        seed: of stochastic roundings.

    Returns:
        The table.

    Raises:
        ValueError: if ``sites`` is unknown, or the policy gives no module a precision
            that rounds.

    Example:
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> x = torch.tensor([[1.1, 1.2, 1.3]])
        >>> table = attribute(
        ...     model,
        ...     Precision(input="e4m3fn", weight="bfloat16"),
        ...     lambda m, cast: m(cast(x)).sum(),
        ...     sites="fields",
        ... )
        >>> table["weight"].alone, table["input"].alone_share
        (0.0, 1.0)

    References:
        Cacciola et al., section 3.2 (r_k).
    """
    if sites not in _SITES:
        raise ValueError(f"sites must be one of {', '.join(_SITES)}, got {sites!r}")
    rules = as_policy(policy)
    full = _plan(model, rules)
    parts: dict[str, _Plan] = {}
    for key, value in full.items():
        parts.setdefault(_SITES[sites](key), {})[key] = value
    runs = _Runs(model, rules, closure, reference, seed)
    exact, nothing, everything = runs.exact(), runs.gradient({}), runs.gradient(full)
    error = _minus(everything, nothing)
    rest, square = error, norm(error) ** 2
    rows = []
    for site, part in parts.items():
        alone = _minus(runs.gradient(part), nothing)
        without = runs.gradient({k: v for k, v in full.items() if k not in part})
        removed = _minus(everything, without)
        rest = _minus(rest, alone)
        rows.append(
            AttributionRow(
                site,
                norm(alone),
                ratio(_dot(alone, error), square),
                norm(removed),
                ratio(_dot(removed, error), square),
                norm(_minus(without, exact)),
            )
        )
    return Attribution(
        tuple(rows),
        norm(_minus(everything, exact)),
        norm(_minus(nothing, exact)),
        norm(exact),
        ratio(norm(rest), math.sqrt(square)),
    )


class _Runs:
    """Gradients of one batch under plans, all else being equal."""

    def __init__(
        self,
        model: torch.nn.Module,
        policy: Policy,
        closure: Closure,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        self._model, self._closure, self._seed = model, closure, seed
        self._operations, self._dtype = policy.operations, dtype
        self._reference = ReferenceModel(model, dtype)

    def exact(self) -> _Vector:
        with random_state_kept(self._reference.devices):
            self._reference.synchronize()
            gradients, _ = self._reference.gradients(self._closure)
        return list(gradients.values())

    def gradient(self, plan: _Plan) -> _Vector:
        with random_state_kept(self._reference.devices), warnings.catch_warnings():
            # Of what is not emulated the user is told when the model itself runs.
            warnings.simplefilter("ignore", NumericalWarning)
            twin = self._converted(plan)
            self._closure(twin, _identity).backward()
        return [
            torch.zeros_like(p, dtype=self._dtype)
            if p.grad is None
            else dense(p.grad).to(self._dtype)
            for p in twin.parameters()
            if p.requires_grad
        ]

    def _converted(self, plan: _Plan) -> torch.nn.Module:
        """Return a copy of the model under the precisions of a plan."""
        twin = unconvert_(copy.deepcopy(self._model))
        twin.zero_grad()
        modules = _precisions(plan, of_operations=False)
        # Those that the policy names never fall back on their module's precision.
        operations = dict.fromkeys(self._operations) | _precisions(
            plan, of_operations=True
        )
        convert_(twin, Policy({_literal(n): p for n, p in modules.items()}, operations))
        module: Any
        for number, (name, module) in enumerate(twin.named_modules()):
            if isinstance(getattr(module, "precision", None), Precision):
                # Built as an emulated layer, which `convert_` leaves alone.
                module.precision = modules.get(name, Precision())
            if hasattr(module, "precision") and hasattr(module, "generator"):
                # Its own, so that it draws the same whatever the others do.
                generator = torch.Generator()
                module.generator = generator.manual_seed(self._seed + number)
        return twin


def _plan(model: torch.nn.Module, policy: Policy) -> _Plan:
    named = [(name, policy.precision_for(name)) for name, _ in model.named_modules()]
    plan: _Plan = {}
    for operation, pairs in ((False, named), (True, list(policy.operations.items()))):
        for name, precision in pairs:
            if precision is None:
                continue
            values = {x.name: getattr(precision, x.name) for x in fields(precision)}
            values["grad_accumulator"] = precision.backward_accumulator
            for key, value in values.items():
                if value is not None:
                    plan[_Site(name, key, operation)] = value
    if not plan:
        raise ValueError(
            "there is nothing to attribute: the policy gives no module of the model a "
            "precision that rounds; its patterns must match names of named_modules()"
        )
    return plan


def _precisions(plan: _Plan, *, of_operations: bool) -> dict[str, Precision]:
    options: dict[str, dict[str, Any]] = {}
    for site, value in plan.items():
        if site.operation == of_operations:
            chosen = options.setdefault(site.name, {"grad_accumulator": "carrier"})
            chosen[site.field] = value
    return {name: Precision(**chosen) for name, chosen in options.items()}


def _literal(name: str) -> str:
    """Return a pattern that matches this name alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _identity(value: Any) -> Any:
    return value


def _minus(a: _Vector, b: _Vector) -> _Vector:
    return [x - y for x, y in zip(a, b, strict=True)]


def _dot(a: _Vector, b: _Vector) -> float:
    return math.fsum(float((x * y).sum()) for x, y in zip(a, b, strict=True))
