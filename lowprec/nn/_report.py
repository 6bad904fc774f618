"""What is emulated in a model, module by module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .._coverage import BY_POLICY, EMULATED, NOT_EMULATED, Coverage, Tally
from ..formats import columns
from ..precision import Precision
from ._conversion import computes, emulation_of, has_own_precision


class ReportRow(NamedTuple):
    """What happens to one module.

    ``treatment`` is ``"emulated"``, ``"carrier by policy"`` or ``"not emulated"``.
    """

    name: str
    module: str
    treatment: str
    precision: Precision | None


@dataclass(frozen=True)
class Report:
    """What is emulated in a model, one row per module that has a ``forward``.

    An *emulated* module computes under its precision; `coverage` says what became of
    each of its operations.
    """

    rows: tuple[ReportRow, ...]

    def __iter__(self) -> Iterator[ReportRow]:
        """Iterate over the rows in the order of ``named_modules``."""
        return iter(self.rows)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __str__(self) -> str:
        """Return a table; precisions of several modules are numbered below it."""
        uses = Counter(row.precision for row in self.rows if row.precision is not None)
        shared = [precision for precision, count in uses.items() if count > 1]
        labels = {each: f"({i})" for i, each in enumerate(shared, start=1)}
        cells = [(*row[:3], _label(row.precision, labels)) for row in self.rows]
        cells.insert(0, ("name", "module", "treatment", "precision"))
        legend = [f"{label} {one}" for one, label in labels.items()]
        return "\n".join([*columns(cells), *legend])

    def of(self, treatment: str) -> tuple[ReportRow, ...]:
        """Return the rows with one treatment."""
        return tuple(row for row in self.rows if row.treatment == treatment)


def _label(precision: Precision | None, labels: dict[Precision, str]) -> str:
    return "" if precision is None else labels.get(precision, str(precision))


def report(model: torch.nn.Module) -> Report:
    """Say which modules of a model are emulated and which stay in the carrier.

    Args:
        model: any module.

    Returns:
        One row for every module that has a ``forward``.

    Example:
        >>> from lowprec import Precision
        >>> from lowprec.nn import convert_
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh())
        >>> model = convert_(model, {"0": Precision(weight="bfloat16")})
        >>> print(report(model))
        name  module      treatment          precision
              Sequential  carrier by policy
        0     Linear      emulated           Precision(weight='bfloat16')
        1     Tanh        carrier by policy
    """
    rows = []
    for name, module in model.named_modules():
        emulation = emulation_of(module)
        if emulation is not None:
            precision = emulation.precision
            treatment = BY_POLICY if precision is None else EMULATED
        elif has_own_precision(module):
            precision, treatment = getattr(module, "precision", None), EMULATED
        elif computes(module):
            precision, treatment = None, NOT_EMULATED
        else:
            continue
        rows.append(ReportRow(name, type(module).__name__, treatment, precision))
    return Report(tuple(rows))


def coverage(model: torch.nn.Module) -> Coverage:
    """Say what converted modules met so far when they ran.

    Contract:
        Counts go on from the conversion of a module; calls of compiled code are not
        counted.

    Args:
        model: a module that `convert_` was applied to.

    Returns:
        The operations, their treatment and the modules where they were met.

    Example:
        >>> from lowprec import Precision
        >>> from lowprec.nn import convert_
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh())
        >>> model = convert_(model, Precision(weight="bfloat16"))
        >>> y = model(torch.ones(2))
        >>> print(coverage(model))
        operation  calls  treatment          module
        linear         1  emulated           0
        tanh           1  carrier by policy  1
    """
    emulations = {
        name: emulation
        for name, module in model.named_modules()
        if (emulation := emulation_of(module)) is not None
    }
    total = Tally()
    for tally in {id(one.tally): one.tally for one in emulations.values()}.values():
        total.calls.update(tally.calls)
    return total.coverage()
