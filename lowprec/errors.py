"""Warning classes, so that users can filter lowprec's warnings by kind."""

import sys

__all__ = ["NumericalWarning", "PerformanceWarning"]


class NumericalWarning(UserWarning):
    """Results are not what the requested precision says; the text names the cause."""


class PerformanceWarning(UserWarning):
    """Results are right, but a faster way to get them exists; the text names it."""


def depth_of_caller() -> int:
    """Return how far up the first frame outside of lowprec and torch is."""
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ("lowprec", "torch"):
            break
        frame, depth = frame.f_back, depth + 1
    return depth
