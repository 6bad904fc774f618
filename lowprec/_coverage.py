"""What an emulation met: counts of calls, and the table of them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from .errors import NumericalWarning, depth_of_caller
from .formats import columns

EMULATED = "emulated"
EXACT = "exact by nature"
NOT_EMULATED = "not emulated"
BY_POLICY = "carrier by policy"
SUM = "sum of gradients"
TREATMENTS = (EMULATED, EXACT, NOT_EMULATED, BY_POLICY)


class CoverageRow(NamedTuple):
    """How often an operation was met in a module, and what was done with it.

    ``module`` is a name of ``named_modules()``; it is empty for the model itself, for
    what runs outside of its modules, and where no model was given.
    """

    operation: str
    calls: int
    treatment: str
    module: str = ""


@dataclass(frozen=True)
class Coverage:
    """What an emulation met, most frequent first within each treatment.

    Treatments: ``"emulated"``; ``"exact by nature"`` (moves, chooses or compares
    values); ``"not emulated"`` (computed in the carrier although a precision was
    asked for); ``"carrier by policy"`` (the policy says None there, or the precision
    leaves such operations to torch). The operation ``"sum of gradients"`` is that of
    autograd, which adds the gradients of a parameter, or another leaf, that several
    calls use; it always runs in the carrier, and is not refused.
    """

    rows: tuple[CoverageRow, ...]

    def __iter__(self) -> Iterator[CoverageRow]:
        """Iterate over the rows."""
        return iter(self.rows)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __str__(self) -> str:
        """Return a table."""
        cells = [(row.operation, str(row.calls), *row[2:]) for row in self.rows]
        named = any(row.module for row in self.rows)
        cells.insert(0, ("operation", "calls", "treatment", "module" if named else ""))
        return "\n".join(columns(cells, right=[1]))

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Return calls by treatment and operation, over all modules."""
        result: dict[str, dict[str, int]] = {name: {} for name in TREATMENTS}
        for row in self.rows:
            calls = result[row.treatment]
            calls[row.operation] = calls.get(row.operation, 0) + row.calls
        return result


@dataclass
class Tally:
    """Counts of calls by operation, treatment and module; a mode must not change."""

    calls: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def add(self, operation: str, treatment: str, module: str, reason: str) -> None:
        """Count a call, and warn the first time that one is not emulated."""
        key = (operation, treatment, module)
        if treatment == NOT_EMULATED and not any(
            known[:2] == key[:2] for known in self.calls
        ):
            warnings.warn(
                f"{operation} is not emulated and runs in the carrier's arithmetic: "
                f"{reason}; coverage() counts such calls, strict=True refuses them",
                NumericalWarning,
                stacklevel=depth_of_caller(),
            )
        self.calls[key] += 1

    def coverage(self) -> Coverage:
        """Return the counts as a table."""
        rows = [
            CoverageRow(operation, calls, treatment, module)
            for (operation, treatment, module), calls in self.calls.items()
        ]
        rows.sort(
            key=lambda row: (
                TREATMENTS.index(row.treatment),
                -row.calls,
                row.operation,
                row.module,
            )
        )
        return Coverage(tuple(rows))
