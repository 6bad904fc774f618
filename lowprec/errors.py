"""Warning classes, so that users can filter lowprec's warnings by kind."""

__all__ = ["NumericalWarning", "PerformanceWarning"]


class NumericalWarning(UserWarning):
    """Results are not what the requested precision says; the text names the cause."""


class PerformanceWarning(UserWarning):
    """Results are right, but a faster way to get them exists; the text names it."""
