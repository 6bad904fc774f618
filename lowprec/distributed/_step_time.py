r"""How long a step takes: latency and bandwidth of the network, measured compute."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Machine", "StepTime", "dense_step_time", "sparse_step_time"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What one worker and the network between workers can do.

    Args:
        latency: alpha, seconds from the start of a message to its first byte.
        bandwidth: B, bytes per second that a worker sends while it receives as many.
        gradient: seconds of forward and backward of one step.
        compression: seconds per element of p = g + e, selection and e = p - Q(p).
        decoding: seconds per entry received, unpacked and added.
        message: seconds of work per payload received, whatever its length.
        update: seconds per element of the optimizer.
        cores: processors that all workers share, None if each has its own.

    Raises:
        ValueError: if a time is negative or the bandwidth or number of cores is not
            positive.
    """

    latency: float
    bandwidth: float
    gradient: float = 0.0
    compression: float = 0.0
    decoding: float = 0.0
    message: float = 0.0
    update: float = 0.0
    cores: int | None = None

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in (
            "latency",
            "gradient",
            "compression",
            "decoding",
            "message",
            "update",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be a number of seconds, 0 or more, "
                    f"got {getattr(self, name)!r}"
                )
        if not self.bandwidth > 0:
            raise ValueError(
                f"bandwidth must be positive, in bytes per second, got {self.bandwidth}"
            )
        if self.cores is not None and self.cores < 1:
            raise ValueError(f"cores must be 1 or more or None, got {self.cores}")

    def slowdown(self, workers: int) -> float:
        """Return by how much sharing the cores stretches the compute of each worker."""
        return 1.0 if self.cores is None else max(1.0, workers / self.cores)


class StepTime(NamedTuple):
    """Seconds of the parts of one step, which follow one another.

    Args:
        gradient: forward and backward.
        compression: compressing the own gradient; 0 for dense steps.
        communication: the collective.
        decoding: adding what came; 0 for dense steps.
        update: the optimizer.
    """

    gradient: float
    compression: float
    communication: float
    decoding: float
    update: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(self)


def sparse_step_time(
    machine: Machine, workers: int, size: int, entries: int, payload_bytes: float
) -> StepTime:
    r"""Return the time of a step whose compressed gradients are gathered by all.

    .. math::
        T = s(n)\,(t_g + c\,d + n (t_m + a k) + u\,d) + (n - 1)(\alpha + b/B)

    with s(n) = max(1, n/cores): every rank receives n - 1 payloads, in a ring.

    Contract:
        No overlap of compute and communication: an upper bound for systems that do.

    Args:
        machine: measured constants.
        workers: n.
        size: d, elements of the gradient.
        entries: k, entries of a payload.
        payload_bytes: b, bytes of a payload on the wire.

    Returns:
        Seconds by part.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> network = Machine(latency=1e-5, bandwidth=1e9)
        >>> sparse_step_time(network, 5, 10**6, 10**4, 8e4).total
        0.00036

    References:
        Thakur, Rabenseifner and Gropp 2005 (ring all-gather); specification of
        SPARS-AMS, section 1.3.
    """
    _check(workers, size)
    if not 0 <= entries <= size:
        raise ValueError(f"entries must be from 0 to {size}, got {entries}")
    busy = machine.slowdown(workers)
    return StepTime(
        gradient=busy * machine.gradient,
        compression=busy * machine.compression * size,
        communication=(workers - 1)
        * (machine.latency + payload_bytes / machine.bandwidth),
        decoding=busy * workers * (machine.message + machine.decoding * entries),
        update=busy * machine.update * size,
    )


def dense_step_time(
    machine: Machine, workers: int, size: int, element_bytes: float = 4
) -> StepTime:
    r"""Return the time of a step with a ring all-reduce of the whole gradient.

    .. math::
        T = s(n)\,(t_g + u\,d) + 2 (n - 1)\Big(\alpha + \frac{d\,b}{n B}\Big)

    Args:
        machine: measured constants.
        workers: n.
        size: d, elements of the gradient.
        element_bytes: b, bytes of an element.

    Returns:
        Seconds by part.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> network = Machine(latency=1e-5, bandwidth=1e9)
        >>> round(dense_step_time(network, 5, 10**6).total, 6)
        0.00648

    References:
        As `sparse_step_time`.
    """
    _check(workers, size)
    busy = machine.slowdown(workers)
    block = size * element_bytes / workers
    return StepTime(
        gradient=busy * machine.gradient,
        compression=0.0,
        communication=2 * (workers - 1) * (machine.latency + block / machine.bandwidth),
        decoding=0.0,
        update=busy * machine.update * size,
    )


def _check(workers: int, size: int) -> None:
    if workers < 1 or size < 1:
        raise ValueError(
            f"workers and size must be 1 or more, got {workers} and {size}"
        )
