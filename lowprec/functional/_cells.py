"""The elementwise part of recurrent cells, forward and backward.

One step of a cell takes the preactivations that the input makes (``own``), those that
the hidden state makes (``recurrent``), and the states; all gates lie side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_States = tuple[Tensor, ...]


@dataclass(frozen=True)
class Cell:
    """A recurrent cell.

    Args:
        gates: how many preactivations there are per hidden unit.
        states: 1 for the hidden state alone, 2 with the cell state.
        forward: from own, recurrent and states to the new states.
        backward: from these and the gradients of the new states to the gradients of
            own, recurrent and states; None for a state that is not used here.
    """

    gates: int
    states: int
    forward: Callable[[Tensor, Tensor, _States], _States]
    backward: Callable[
        [Tensor, Tensor, _States, _States],
        tuple[Tensor, Tensor, tuple[Tensor | None, ...]],
    ]


def _lstm_gates(own: Tensor, recurrent: Tensor) -> tuple[Tensor, ...]:
    i, f, g, o = (own + recurrent).chunk(4, -1)
    return i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()


def _lstm(own: Tensor, recurrent: Tensor, states: _States) -> _States:
    i, f, g, o = _lstm_gates(own, recurrent)
    c = f * states[1] + i * g
    return o * c.tanh(), c


def _lstm_backward(
    own: Tensor, recurrent: Tensor, states: _States, grads: _States
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    i, f, g, o = _lstm_gates(own, recurrent)
    t = (f * states[1] + i * g).tanh()
    dh, dc = grads
    dc = dc + dh * o * (1 - t * t)
    gates = (
        dc * g * i * (1 - i),
        dc * states[1] * f * (1 - f),
        dc * i * (1 - g * g),
        dh * t * o * (1 - o),
    )
    total = torch.cat(gates, -1)
    return total, total, (None, dc * f)


def _gru_gates(own: Tensor, recurrent: Tensor) -> tuple[Tensor, ...]:
    r, z, n = own.chunk(3, -1)
    hidden_r, hidden_z, hidden_n = recurrent.chunk(3, -1)
    r, z = (r + hidden_r).sigmoid(), (z + hidden_z).sigmoid()
    return r, z, (n + r * hidden_n).tanh(), hidden_n


def _gru(own: Tensor, recurrent: Tensor, states: _States) -> _States:
    _, z, n, _ = _gru_gates(own, recurrent)
    return ((1 - z) * n + z * states[0],)


def _gru_backward(
    own: Tensor, recurrent: Tensor, states: _States, grads: _States
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    r, z, n, hidden_n = _gru_gates(own, recurrent)
    (dh,) = grads
    dn = dh * (1 - z) * (1 - n * n)
    dz = dh * (states[0] - n) * z * (1 - z)
    dr = dn * hidden_n * r * (1 - r)
    return torch.cat((dr, dz, dn), -1), torch.cat((dr, dz, dn * r), -1), (dh * z,)


def _tanh(own: Tensor, recurrent: Tensor, states: _States) -> _States:
    return ((own + recurrent).tanh(),)


def _tanh_backward(
    own: Tensor, recurrent: Tensor, states: _States, grads: _States
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    h = (own + recurrent).tanh()
    total = grads[0] * (1 - h * h)
    return total, total, (None,)


def _relu(own: Tensor, recurrent: Tensor, states: _States) -> _States:
    return ((own + recurrent).relu(),)


def _relu_backward(
    own: Tensor, recurrent: Tensor, states: _States, grads: _States
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    total = grads[0].masked_fill(own + recurrent <= 0, 0)
    return total, total, (None,)


LSTM = Cell(4, 2, _lstm, _lstm_backward)
GRU = Cell(3, 1, _gru, _gru_backward)
TANH = Cell(1, 1, _tanh, _tanh_backward)
RELU = Cell(1, 1, _relu, _relu_backward)
