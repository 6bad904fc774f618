"""Single steps of recurrent cells, with the arguments of ``torch._VF``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._calls import leaves_everything, seed_with_elementwise
from ._cells import GRU, LSTM, RELU, TANH, Cell
from ._parts import check_same
from ._recurrence import Walk
from ._recurrent import layer_step

_States = tuple[Tensor, ...]


def _run_cell(
    torchs: Callable[..., Any],
    cell: Cell,
    input: Tensor,
    states: _States,
    weights: Sequence[Tensor | None],
    precision: Precision,
    generator: torch.Generator | None,
    seed: int | Tensor | None,
) -> _States:
    """Run one step of one layer."""
    precision = as_precision(precision)
    if leaves_everything(precision):
        hx = states if cell.states == 2 else states[0]
        plain = torchs(input, hx, *weights)
        return tuple(plain) if cell.states == 2 else (plain,)
    check_carrier(input, "input")
    given = [weight for weight in weights if weight is not None]
    for tensor in (*states, *given):
        check_same("every state and weight", tensor, input, "input")
    if len(given) not in (2, 4):
        raise ValueError("b_ih and b_hh must both be given or both be None")
    if input.dim() not in (1, 2) or any(x.dim() != input.dim() for x in states):
        raise ValueError(
            "input and states must be [N, *] or [*], got "
            f"{[tuple(x.shape) for x in (input, *states)]}"
        )
    alone = input.dim() == 1
    rows = input.unsqueeze(0) if alone else input
    before = tuple(x.unsqueeze(0) if alone else x for x in states)
    base = seed_with_elementwise(precision, generator, seed)
    walk = Walk((rows.shape[0],), False)
    _, after = layer_step(
        rows, before, given, len(given) == 4, cell, walk, precision, base
    )
    return tuple(x.squeeze(0) if alone else x for x in after)


@overridable
def lstm_cell(
    input: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Take one step of a long short-term memory cell in emulated arithmetic.

    The formulas are those of a step of `lstm`.

    Contract:
        As `lstm` with one step; the seed is that of its only layer.

    Args:
        input: float32 or float64 tensor [N, I] or [I].
        hx: the hidden and the cell state, tensors [N, H] or [H].
        w_ih: tensor [4 H, I].
        w_hh: tensor [4 H, H].
        b_ih: tensor [4 H], or None.
        b_hh: tensor [4 H], or None.
        precision: the roundings.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        The new hidden and cell state.

    Raises:
        TypeError: as `lstm`.
        ValueError: as `lstm`.
        NotImplementedError: as `lstm`.
        RuntimeError: as `lstm`.

    Example:
        >>> cell, x = torch.nn.LSTMCell(3, 2), torch.ones(3)
        >>> state = (torch.zeros(2), torch.zeros(2))
        >>> low = Precision(elementwise="bfloat16")
        >>> lstm_cell(x, state, *cell.parameters(), precision=low)[0].shape
        torch.Size([2])

    References:
        Hochreiter and Schmidhuber 1997, Long short-term memory.
    """
    weights = (w_ih, w_hh, b_ih, b_hh)
    h, c = _run_cell(
        torch._VF.lstm_cell,
        LSTM,
        input,
        tuple(hx),
        weights,
        precision,
        generator,
        seed,
    )
    return h, c


@overridable
def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Take one step of a gated recurrent unit in emulated arithmetic.

    The formulas are those of a step of `gru`.

    Contract:
        As `lstm_cell`.

    Args:
        input: float32 or float64 tensor [N, I] or [I].
        hx: the hidden state, tensor [N, H] or [H].
        w_ih: tensor [3 H, I].
        w_hh: tensor [3 H, H].
        b_ih: tensor [3 H], or None.
        b_hh: tensor [3 H], or None.
        precision: the roundings.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        The new hidden state.

    Raises:
        TypeError: as `lstm`.
        ValueError: as `lstm`.
        NotImplementedError: as `lstm`.
        RuntimeError: as `lstm`.

    Example:
        >>> cell, x, h = torch.nn.GRUCell(3, 2), torch.ones(3), torch.zeros(2)
        >>> low = Precision(elementwise="bfloat16")
        >>> gru_cell(x, h, *cell.parameters(), precision=low).shape
        torch.Size([2])

    References:
        Cho et al. 2014, Learning phrase representations using RNN encoder-decoder.
    """
    weights = (w_ih, w_hh, b_ih, b_hh)
    (h,) = _run_cell(
        torch._VF.gru_cell, GRU, input, (hx,), weights, precision, generator, seed
    )
    return h


@overridable
def rnn_tanh_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Take one step of a cell with hyperbolic tangents in emulated arithmetic.

    The formulas are those of a step of `rnn_tanh`.

    Contract:
        As `lstm_cell`.

    Args:
        input: float32 or float64 tensor [N, I] or [I].
        hx: the hidden state, tensor [N, H] or [H].
        w_ih: tensor [H, I].
        w_hh: tensor [H, H].
        b_ih: tensor [H], or None.
        b_hh: tensor [H], or None.
        precision: the roundings.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        The new hidden state.

    Raises:
        TypeError: as `lstm`.
        ValueError: as `lstm`.
        NotImplementedError: as `lstm`.
        RuntimeError: as `lstm`.

    Example:
        >>> cell, x, h = torch.nn.RNNCell(3, 2), torch.ones(3), torch.zeros(2)
        >>> low = Precision(elementwise="bfloat16")
        >>> rnn_tanh_cell(x, h, *cell.parameters(), precision=low).shape
        torch.Size([2])

    References:
        Elman 1990, Finding structure in time.
    """
    weights = (w_ih, w_hh, b_ih, b_hh)
    (h,) = _run_cell(
        torch._VF.rnn_tanh_cell, TANH, input, (hx,), weights, precision, generator, seed
    )
    return h


@overridable
def rnn_relu_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Take one step of a cell with rectified linear units in emulated arithmetic.

    The formulas are those of a step of `rnn_relu`.

    Contract:
        As `lstm_cell`.

    Args:
        input: float32 or float64 tensor [N, I] or [I].
        hx: the hidden state, tensor [N, H] or [H].
        w_ih: tensor [H, I].
        w_hh: tensor [H, H].
        b_ih: tensor [H], or None.
        b_hh: tensor [H], or None.
        precision: the roundings.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        The new hidden state.

    Raises:
        TypeError: as `lstm`.
        ValueError: as `lstm`.
        NotImplementedError: as `lstm`.
        RuntimeError: as `lstm`.

    Example:
        >>> cell, x, h = torch.nn.RNNCell(3, 2), torch.ones(3), torch.zeros(2)
        >>> low = Precision(elementwise="bfloat16")
        >>> rnn_relu_cell(x, h, *cell.parameters(), precision=low).shape
        torch.Size([2])

    References:
        Le, Jaitly and Hinton 2015, A simple way to initialize recurrent networks of
        rectified linear units.
    """
    weights = (w_ih, w_hh, b_ih, b_hh)
    (h,) = _run_cell(
        torch._VF.rnn_relu_cell, RELU, input, (hx,), weights, precision, generator, seed
    )
    return h
