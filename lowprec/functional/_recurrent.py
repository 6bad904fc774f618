"""Recurrent networks and cells, with the arguments of ``torch._VF``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._calls import leaves_everything, seed_with_elementwise, seeds_of_parts
from ._cells import GRU, LSTM, RELU, TANH, Cell
from ._dropout import dropout
from ._linear import linear
from ._parts import check_same
from ._recurrence import LayerSeeds, Walk, parts, recurrence

_States = tuple[Tensor, ...]


class _Network(NamedTuple):
    """The arguments of a call, whichever of torch's two forms it has."""

    rows: Tensor  # [P, I]
    sizes: tuple[int, ...]
    states: _States  # [layers directions, N, *]
    parameters: list[list[Tensor]]  # of each layer and direction
    biased: bool
    directions: int
    dropout: float
    restored: Callable[[Tensor], Tensor]  # results [P, *] as torch returns them


def _is_packed(arguments: Sequence[Any]) -> bool:
    """Whether batch sizes come second; weights are the only list of either form."""
    return len(arguments) > 2 and isinstance(arguments[2], (list, tuple))


def _network(input: Tensor, arguments: Sequence[Any], cell: Cell) -> _Network:
    """Read ``hx, params, has_biases, num_layers, dropout, train, bidirectional``."""
    packed = _is_packed(arguments)
    expected = 8  # both forms have as many
    if len(arguments) != expected:
        raise TypeError(
            f"a recurrent network takes input and {expected} more arguments, those of "
            f"torch._VF, got {len(arguments)}"
        )
    hx, weights, biased, layers, dropout, train, bidirectional, *rest = (
        arguments[1:] if packed else arguments
    )
    check_carrier(input, "input")
    states = tuple(hx) if cell.states == 2 else (hx,)
    directions = 2 if bidirectional else 1
    if packed:
        sizes = tuple(arguments[0].tolist())
        rows, restored = input, _unchanged
    else:
        batch_first = rest[0]
        x = input.transpose(0, 1) if batch_first else input
        length, count = x.shape[:2]
        sizes, rows = (count,) * length, x.flatten(0, 1)

        def restored(y: Tensor) -> Tensor:
            steps: Tensor = y.unflatten(0, (length, count))
            return steps.transpose(0, 1) if batch_first else steps

    projected = cell.states == 2 and states[0].shape[-1] != states[1].shape[-1]
    each = (4 if biased else 2) + projected
    given = list(weights)
    _check(input, states, given, each, layers * directions, bool(sizes and sizes[0]))
    parameters = [given[i : i + each] for i in range(0, len(given), each)]
    return _Network(
        rows,
        sizes,
        states,
        parameters,
        bool(biased),
        directions,
        dropout if train else 0.0,
        restored,
    )


def _unchanged(y: Tensor) -> Tensor:
    return y


def _check(
    input: Tensor,
    states: _States,
    weights: list[Tensor],
    each: int,
    count: int,
    filled: bool,
) -> None:
    for tensor in (*states, *weights):
        check_same("every state and weight", tensor, input, "input")
    if len(weights) != each * count:
        raise ValueError(
            f"params must be {each} tensors for each of {count} layers and directions, "
            f"got {len(weights)}"
        )
    if not filled or any(x.dim() != 3 or x.shape[0] != count for x in states):
        raise ValueError(
            "the input must have at least one element, and states must be "
            f"[{count}, N, *], got {tuple(input.shape)} and "
            f"{[tuple(x.shape) for x in states]}"
        )


def _check_layer(
    cell: Cell, rows: Tensor, states: _States, weights: Sequence[Tensor], biased: bool
) -> None:
    """Refuse weights [G H, I], [G H, R], [G H], [G H], [R, H] that do not fit."""
    hidden, height = states[-1].shape[-1], cell.gates * states[-1].shape[-1]
    wanted: list[tuple[int, ...]] = [
        (height, rows.shape[-1]),
        (height, states[0].shape[-1]),
    ]
    wanted += [(height,), (height,)] if biased else []
    wanted += [(states[0].shape[-1], hidden)] if len(weights) > len(wanted) else []
    shapes = [tuple(weight.shape) for weight in weights]
    if shapes != wanted:
        raise ValueError(
            f"weights and biases of a layer must have shapes {wanted} for input "
            f"{tuple(rows.shape)} and hidden size {hidden}, got {shapes}"
        )


def layer_step(
    rows: Tensor,
    states: _States,
    weights: Sequence[Tensor],
    biased: bool,
    cell: Cell,
    walk: Walk,
    precision: Precision,
    seed: Tensor | None,
) -> tuple[Tensor, _States]:
    """Run one layer in one direction."""
    _check_layer(cell, rows, states, weights, biased)
    own_weight, weight, *others = weights
    own_bias, bias = others[:2] if biased else (None, None)
    projection = others[-1] if len(others) % 2 else None
    seeds: LayerSeeds = parts(LayerSeeds, seed, len(LayerSeeds._fields))
    own = linear(rows, own_weight, own_bias, precision=precision, seed=seeds.own)
    return recurrence(
        own, weight, bias, projection, states, cell, walk, precision, seeds
    )


def _run(
    torchs: Callable[..., Any],
    cell: Cell,
    input: Tensor,
    arguments: Sequence[Any],
    precision: Precision,
    generator: torch.Generator | None,
    seed: int | Tensor | None,
) -> tuple[Tensor, ...]:
    """Run all layers of a network."""
    precision = as_precision(precision)
    if leaves_everything(precision):
        plain: tuple[Tensor, ...] = torchs(input, *arguments)
        return plain
    network = _network(input, arguments, cell)
    directions, count = network.directions, len(network.parameters)
    base = seed_with_elementwise(precision, generator, seed)
    seeds = seeds_of_parts(base, count + count // directions)
    rows, finals = network.rows, []
    for layer in range(count // directions):
        if layer and network.dropout:
            key = seeds[count + layer - 1]
            rows = dropout(rows, network.dropout, precision=precision, seed=key)
        results = []
        for direction in range(directions):
            number = layer * directions + direction
            result, final = layer_step(
                rows,
                tuple(state[number] for state in network.states),
                network.parameters[number],
                network.biased,
                cell,
                Walk(network.sizes, direction == 1),
                precision,
                seeds[number],
            )
            results.append(result)
            finals.append(final)
        rows = torch.cat(results, -1) if directions == 2 else results[0]
    states = (torch.stack(state) for state in zip(*finals, strict=True))
    return (network.restored(rows), *states)


@overridable
def lstm(
    input: Tensor,
    *arguments: Any,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a long short-term memory network in emulated arithmetic.

    Per step, with fl of ``elementwise`` and ``linear`` meaning that function's formula:
    a = linear(x, W_ih, b_ih), u = linear(h, W_hh, b_hh), [i, f, g, o] = a + u,
    c' = fl(sigma(f) c + sigma(i) tanh(g)), h' = fl(sigma(o) tanh(c' unrounded)); with
    a projection h' becomes linear(h', W_hr).

    Contract:
        Products are those of `linear`; what lies between them is one fused operation
        in float64 whose results and gradients (of a, u, c and, in a GRU, h) are rounded
        once; where ``elementwise`` is None the carrier computes it. Weights are
        rounded once per call, and the gradient of each, and of each bias, is one sum
        over all steps and sequences, step by step in time. The gradient of a state
        that is used more than once is the carrier's sum, rounded to ``elementwise``
        on arrival, also that of the initial states. Dropout takes its zeros from
        torch's random numbers and rounds h / (1 - p). If nothing is rounded torch's
        own network computes.

    Args:
        input: float32 or float64 tensor [T, N, I], [N, T, I] with ``batch_first``, or
            the data [P, I] of a ``PackedSequence``.
        arguments: as of ``torch._VF.lstm``: (hx, params, has_biases, num_layers,
            dropout, train, bidirectional, batch_first), or (batch_sizes, hx, params,
            has_biases, num_layers, dropout, train, bidirectional).
        precision: the roundings.
        generator: source of the seed of stochastic roundings; nothing is drawn where
            nothing is stochastic. It has a part, by `split_seed`, for each layer and
            direction, and then for the dropout after each layer.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        The results of all steps, the final hidden and the final cell states.

    Raises:
        TypeError: as `linear`, or for other arguments than torch's.
        ValueError: if shapes do not match, or the carrier cannot hold the values.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> layer, x = torch.nn.LSTM(3, 2), torch.ones(5, 1, 3)
        >>> state = (torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))
        >>> y, h, c = lstm(
        ...     x, state, list(layer.parameters()), True, 1, 0.0, False, False, False,
        ...     precision=Precision(elementwise="bfloat16"),
        ... )
        >>> y.shape, h.shape
        (torch.Size([5, 1, 2]), torch.Size([1, 1, 2]))

    References:
        Hochreiter and Schmidhuber 1997, Long short-term memory; Gers, Schmidhuber and
        Cummins 2000 (forget gates).
    """
    y, h, c = _run(torch._VF.lstm, LSTM, input, arguments, precision, generator, seed)
    return y, h, c


@overridable
def gru(
    input: Tensor,
    *arguments: Any,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a network of gated recurrent units in emulated arithmetic.

    Per step, as in `lstm`: [a_r, a_z, a_n] = linear(x, W_ih, b_ih),
    [u_r, u_z, u_n] = linear(h, W_hh, b_hh), r = sigma(a_r + u_r), z = sigma(a_z + u_z),
    n = tanh(a_n + r u_n), h' = fl((1 - z) n + z h).

    Contract:
        As `lstm`.

    Args:
        input: as of `lstm`.
        arguments: as of ``torch._VF.gru``, in the two forms of `lstm`; hx is a tensor.
        precision: the roundings.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        The results of all steps and the final hidden states.

    Raises:
        TypeError: as `lstm`.
        ValueError: as `lstm`.
        NotImplementedError: as `lstm`.
        RuntimeError: as `lstm`.

    Example:
        >>> layer, x = torch.nn.GRU(3, 2), torch.ones(5, 1, 3)
        >>> y, h = gru(
        ...     x, torch.zeros(1, 1, 2), list(layer.parameters()), True, 1, 0.0, False,
        ...     False, False, precision=Precision(elementwise="bfloat16"),
        ... )
        >>> bool((y[-1] == h[0]).all())
        True

    References:
        Cho et al. 2014, Learning phrase representations using RNN encoder-decoder.
    """
    y, h = _run(torch._VF.gru, GRU, input, arguments, precision, generator, seed)
    return y, h


@overridable
def rnn_tanh(
    input: Tensor,
    *arguments: Any,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a recurrent network with hyperbolic tangents in emulated arithmetic.

    Per step, as in `lstm`:
    h' = fl(tanh(linear(x, W_ih, b_ih) + linear(h, W_hh, b_hh))).

    Contract:
        As `lstm`.

    Args:
        input: as of `lstm`.
        arguments: as of ``torch._VF.rnn_tanh``, in the two forms of `lstm`; hx is a
            tensor.
        precision: the roundings.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        The results of all steps and the final hidden states.

    Raises:
        TypeError: as `lstm`.
        ValueError: as `lstm`.
        NotImplementedError: as `lstm`.
        RuntimeError: as `lstm`.

    Example:
        >>> layer, x = torch.nn.RNN(3, 2), torch.ones(5, 1, 3)
        >>> y, h = rnn_tanh(
        ...     x, torch.zeros(1, 1, 2), list(layer.parameters()), True, 1, 0.0, False,
        ...     False, False, precision=Precision(elementwise="bfloat16"),
        ... )
        >>> bool((y[-1] == h[0]).all())
        True

    References:
        Elman 1990, Finding structure in time.
    """
    y, h = _run(torch._VF.rnn_tanh, TANH, input, arguments, precision, generator, seed)
    return y, h


@overridable
def rnn_relu(
    input: Tensor,
    *arguments: Any,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a recurrent network with rectified linear units in emulated arithmetic.

    Per step, as in `lstm`:
    h' = fl(max(0, linear(x, W_ih, b_ih) + linear(h, W_hh, b_hh))).

    Contract:
        As `lstm`.

    Args:
        input: as of `lstm`.
        arguments: as of ``torch._VF.rnn_relu``, in the two forms of `lstm`; hx is a
            tensor.
        precision: the roundings.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        The results of all steps and the final hidden states.

    Raises:
        TypeError: as `lstm`.
        ValueError: as `lstm`.
        NotImplementedError: as `lstm`.
        RuntimeError: as `lstm`.

    Example:
        >>> layer, x = torch.nn.RNN(3, 2), torch.ones(5, 1, 3)
        >>> y, h = rnn_relu(
        ...     x, torch.zeros(1, 1, 2), list(layer.parameters()), True, 1, 0.0, False,
        ...     False, False, precision=Precision(elementwise="bfloat16"),
        ... )
        >>> bool((y >= 0).all())
        True

    References:
        Le, Jaitly and Hinton 2015, A simple way to initialize recurrent networks of
        rectified linear units.
    """
    y, h = _run(torch._VF.rnn_relu, RELU, input, arguments, precision, generator, seed)
    return y, h
