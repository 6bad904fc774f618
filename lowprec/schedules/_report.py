"""What a limit theorem asks of a schedule, and whether it gets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._power import PowerSchedule


@dataclass(frozen=True)
class Condition:
    """One condition of a limit theorem, with the numbers put in.

    Args:
        statement: the condition and its values.
        holds: whether they meet it.

    Example:
        >>> print(Condition("d0 = 0.5 < 2 mu = 0.25", holds=False))
        FAILS  d0 = 0.5 < 2 mu = 0.25
    """

    statement: str
    holds: bool

    def __str__(self) -> str:
        """Return the verdict and the statement."""
        return f"{'holds' if self.holds else 'FAILS'}  {self.statement}"


@dataclass(frozen=True, kw_only=True)
class ScheduleReport:
    """What a schedule ensures; see `PowerSchedule.check`.

    Args:
        schedule: what was checked.
        conditions: of the central limit theorem for the last iterate.
        sum_of_squares_diverges: whether the sum of alpha_k^2 is infinite, which the
            central limit theorem for the time average of linear gradients needs.
        inflation: 1/(1 - c_0), by which the limit covariance exceeds that of the
            interior of the conditions; not 1 for vanishing damping on the boundary
            alone.

    Example:
        >>> from lowprec.schedules import PowerSchedule
        >>> report = PowerSchedule(0.5, 0.75).check(mu=0.1)
        >>> report.holds, report.sum_of_squares_diverges
        (True, False)
    """

    schedule: PowerSchedule
    conditions: tuple[Condition, ...]
    sum_of_squares_diverges: bool
    inflation: float = 1.0

    @property
    def d0(self) -> float:
        """Limit of (alpha_k - alpha_{k+1}) / alpha_k^2."""
        return self.schedule.d0

    @property
    def failed(self) -> tuple[Condition, ...]:
        """Conditions that are not met."""
        return tuple(c for c in self.conditions if not c.holds)

    @property
    def holds(self) -> bool:
        """Whether all conditions are met."""
        return not self.failed

    @property
    def time_average(self) -> bool:
        """Whether the time average of linear gradients has a limit: a <= 1/2.

        Nonlinear gradients need a > 1/3 besides, or a symmetric objective.
        """
        return self.sum_of_squares_diverges

    def __str__(self) -> str:
        """Return the report, a condition a line."""
        schedule = self.schedule
        verdict = "is admissible" if self.holds else "is NOT admissible"
        squares = "infinite" if self.sum_of_squares_diverges else "finite"
        average = "has a limit law" if self.time_average else "has none (a > 1/2)"
        lines = [
            f"{schedule}: {verdict}",
            *(f"  {condition}" for condition in self.conditions),
            f"  d0 = {schedule.d0:.6g}, sum of alpha_k^2 {squares}: the time average "
            f"{average}",
        ]
        if self.inflation != 1:
            lines.append(f"  the limit covariance is {self.inflation:.6g} times as big")
        return "\n".join(lines)
