"""What deserves a look in measured errors, in sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ._layers import LayerMonitor
from ._ledger import Ledger
from ._roles import UPDATE
from ._statistics import TensorStatistics
from ._svg import number, share

# Below these shares a finding is no news.
_UNDERFLOW = _SWAMPED = 0.01
_STAGNATION = _SYSTEMATIC = 0.5
_LOWEST_DECIBELS = 10.0

_Share = Callable[[TensorStatistics], float]


def findings(ledger: Ledger, layers: LayerMonitor | None) -> list[str]:
    """Return sentences, the gravest first."""
    return [*(_of_layers(layers) if layers else ()), *_of_run(ledger)]


def _of_run(ledger: Ledger) -> Iterator[str]:
    for letter, what in (("r", "gradient errors r_k"), ("s", "update errors s_k")):
        name = f"{letter}_bias"
        if name in ledger.names:
            last = ledger.summary()[name].last
            # Of few errors the bias is large by chance.
            if last > max(_SYSTEMATIC, 2 / math.sqrt(len(ledger))):
                yield (
                    f"The {what} add up instead of averaging out: their bias is "
                    f"{number(last)}, where independent errors would have about "
                    f"{number(1 / math.sqrt(len(ledger)))}."
                )
    if "stagnation" in ledger.names:
        last = ledger.summary()["stagnation"].last
        if last > _STAGNATION:
            yield (
                f"In the last measured step {share(last)} of the parameters did not "
                "move: the step is below half a unit in their last place, or the "
                "gradient is zero."
            )


def _of_layers(layers: LayerMonitor) -> Iterator[str]:
    yield from _worst(
        layers,
        lambda x: _part(x.overflow, x.compared),
        0,
        "{share} of {role} in {layer} overflowed to infinity or NaN ({format}){more}.",
    )
    yield from _worst(
        layers,
        lambda x: _part(x.saturation, x.compared),
        0,
        "{share} of {role} in {layer} lie beyond the largest {format} value and were "
        "clamped to it{more}.",
    )
    yield from _worst(
        layers,
        lambda x: _part(x.swamped, x.additions),
        _SWAMPED,
        "{share} of the additions in the sums of {role} in {layer} changed nothing: "
        "the accumulator swamps its terms{more}.",
    )
    yield from _worst(
        layers,
        lambda x: _part(x.underflow, x.compared),
        _UNDERFLOW,
        "{share} of {role} in {layer} became zero in {format}{more}.",
    )
    lowest = [
        (x.signal_to_noise, name, role)
        for name, role, x in _all(layers)
        if x.signal_to_noise < _LOWEST_DECIBELS and role != UPDATE
    ]
    if lowest:
        decibels, name, role = min(lowest)
        yield (
            f"{role} of {_name(name)} has the lowest signal-to-noise ratio, "
            f"{number(decibels)} dB{_more(len(lowest) - 1)}."
        )


def _worst(layers: LayerMonitor, of: _Share, above: float, text: str) -> Iterator[str]:
    found = [
        (of(x), name, role)
        for name, role, x in _all(layers)
        if of(x) > above and role != UPDATE
    ]
    if found:
        value, name, role = max(found)
        yield text.format(
            share=share(value),
            role=role,
            layer=_name(name),
            format=layers.format(name, role),
            more=_more(len(found) - 1),
        )


def _all(layers: LayerMonitor) -> Iterator[tuple[str, str, TensorStatistics]]:
    for name, role in layers.measured:
        yield name, role, layers.statistics(name, role)


def _part(count: int, whole: int) -> float:
    return count / whole if whole else 0.0


def _more(count: int) -> str:
    if count == 0:
        return ""
    return f" ({count} more tensor{'s' if count > 1 else ''} like it)"


def _name(layer: str) -> str:
    return layer or "the model"
