"""Ledgers as TensorBoard scalars and histograms.

Nothing is imported: any writer with the two methods of
``torch.utils.tensorboard.SummaryWriter`` will do.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ..measure import Ledger

__all__ = ["Writer", "write"]

_LABELS = ("module", "role")
_HISTOGRAM = "exponents"


class Writer(Protocol):
    """What `write` needs, as in ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Write one number."""

    def add_histogram(self, tag: str, values: Any, global_step: int, bins: Any) -> Any:
        """Write the histogram of an array with given bins."""


def write(ledger: Ledger, writer: Writer, *, prefix: str = "lowprec") -> int:
    """Write the records of a ledger.

    Contract:
        The tag is the prefix and the quantity; for the records of a
        `lowprec.measure.LayerMonitor` the layer and the role stand between them.
        Exponents become histograms with one bin per binade. The global step is the
        record's ``step``, or its number if it has none. Text and None are left out.

    Args:
        ledger: the records.
        writer: for example a ``torch.utils.tensorboard.SummaryWriter``.
        prefix: first part of every tag.

    Returns:
        The number of values written.

    Example:
        >>> class Printer:
        ...     def add_scalar(self, tag, value, step):
        ...         print(tag, value, step)
        ...     add_histogram = None
        >>> ledger = Ledger()
        >>> ledger.append({"step": 3, "r_norm": 0.5})
        >>> write(ledger, Printer())
        lowprec/r_norm 0.5 3
        1
    """
    written = 0
    for number, record in enumerate(ledger):
        step = record.pop("step", None)
        place = [str(record.pop(name)) for name in _LABELS if name in record]
        stem = "/".join([prefix, *(part for part in place if part)])
        at = number if step is None else int(step)
        for name, value in record.items():
            if name == _HISTOGRAM and value:
                counts = [pair.split(":") for pair in str(value).split()]
                places = np.array([int(e) for e, _ in counts])
                values = np.repeat(places, [int(n) for _, n in counts])
                bins = np.arange(places.min(), places.max() + 2)
                writer.add_histogram(f"{stem}/{name}", values, at, bins)
            elif isinstance(value, bool | int | float):
                writer.add_scalar(f"{stem}/{name}", float(value), at)
            else:
                continue
            written += 1
    return written
