"""The terms of some sums of a layer's three products, in the order of its kernels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._statistics import spread

Terms = tuple[Tensor, Tensor]

_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_MOST_TERMS = 1 << 20  # of all sums together: 16 MiB of float64 factors


def output_terms(
    module: Any, input: Tensor, output: Tensor, count: int
) -> Terms | None:
    """Return the factors [S, K] of at most ``count`` elements of the output.

    Left factors are elements of the input, right ones of the weight; nothing is
    rounded. None for layers other than linear ones and convolutions with zeros around.
    """
    if _is_linear(module):
        x, w = _rows(input), module.weight
        return _gathered(
            output.numel(),
            x.shape[-1],
            count,
            lambda i: (x[i // w.shape[0]], w[i % w.shape[0]]),
        )
    if not _is_convolution(module):
        return None
    window = _Window(module, input)
    return _gathered(
        output.numel(),
        module.weight[0].numel(),
        count,
        lambda i: window.output(i, output.shape),
    )


def input_gradient_terms(
    module: Any, input: Tensor, grad: Tensor, count: int
) -> Terms | None:
    """Return the factors of elements of the input's gradient: grad and weight."""
    if _is_linear(module):
        dy, w = _rows(grad), module.weight
        return _gathered(
            input.numel(),
            w.shape[0],
            count,
            lambda i: (dy[i // w.shape[1]], w[:, i % w.shape[1]]),
        )
    if not _is_convolution(module):
        return None
    window = _Window(module, input)
    terms = module.weight.numel() // module.weight.shape[1]
    return _gathered(
        input.numel(), terms, count, lambda i: window.input_gradient(i, grad)
    )


def weight_gradient_terms(
    module: Any, input: Tensor, grad: Tensor, count: int
) -> Terms | None:
    """Return the factors of elements of the weight's gradient: grad and input."""
    if _is_linear(module):
        dy, x = _rows(grad), _rows(input)
        return _gathered(
            module.weight.numel(),
            x.shape[0],
            count,
            lambda i: (dy[:, i // x.shape[1]], x[:, i % x.shape[1]]),
        )
    if not _is_convolution(module):
        return None
    window = _Window(module, input)
    return _gathered(
        module.weight.numel(),
        grad.numel() // module.weight.shape[0],
        count,
        lambda i: window.weight_gradient(i, grad),
    )


# By role of the result: roles of the left and right factors, and where they come from.
TERMS: dict[str, tuple[tuple[str, str], Callable[..., Terms | None]]] = {
    "output": (("input", "weight"), output_terms),
    "grad_input": (("grad_output", "weight"), input_gradient_terms),
    "grad_weight": (("grad_output", "input"), weight_gradient_terms),
}


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear)


def _is_convolution(module: Any) -> bool:
    return isinstance(module, _CONVOLUTIONS) and module.padding_mode == "zeros"


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _gathered(
    sums: int, terms: int, count: int, factors: Callable[[int], Terms]
) -> Terms | None:
    """Stack the factors of some sums, those of shorter ones followed by zeros."""
    count = min(count, max(1, _MOST_TERMS // max(1, terms)))
    pairs = [factors(i) for i in spread(sums, count).tolist()]
    if not pairs:
        return None
    left, right = (
        torch.nn.utils.rnn.pad_sequence([x.reshape(-1) for x in side], True)
        for side in zip(*pairs, strict=True)
    )
    return left, right


def _unraveled(index: int, shape: Any) -> list[int]:
    result = []
    for size in reversed(shape):
        index, position = divmod(index, size)
        result.append(position)
    return result[::-1]


class _Window:
    """Which elements meet in the products of a convolution."""

    def __init__(self, module: Any, input: Tensor) -> None:
        self.weight: Tensor = module.weight
        self.groups: int = module.groups
        self.stride, self.dilation = module.stride, module.dilation
        self.kernel = self.weight.shape[2:]
        dims = len(self.kernel)
        self.batched = input.dim() == dims + 2
        x = input if self.batched else input.unsqueeze(0)
        self.shape = x.shape
        if module.padding == "same":
            reach = [
                d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)
            ]
            sides = [(total // 2, total - total // 2) for total in reach]
        elif module.padding == "valid":
            sides = [(0, 0)] * dims
        else:
            sides = [(one, one) for one in module.padding]
        self.before = [first for first, _ in sides]
        amounts = list(itertools.chain.from_iterable(reversed(sides)))
        self.padded = torch.nn.functional.pad(x, amounts)

    def _channels(self, output_channel: int) -> slice:
        size = self.weight.shape[1]
        group = output_channel // (self.weight.shape[0] // self.groups)
        return slice(group * size, (group + 1) * size)

    def output(self, index: int, shape: torch.Size) -> Terms:
        """Sum over the channels of the group and the kernel."""
        place = _unraveled(index, shape if self.batched else (1, *shape))
        n, o, *positions = place
        parts = [
            slice(p * s, p * s + d * (k - 1) + 1, d)
            for p, s, d, k in zip(
                positions, self.stride, self.dilation, self.kernel, strict=True
            )
        ]
        met: tuple[Any, ...] = (n, self._channels(o), *parts)
        return self.padded[met], self.weight[o]

    def weight_gradient(self, index: int, grad: Tensor) -> Terms:
        """Sum over samples and positions."""
        o, c, *taps = _unraveled(index, self.weight.shape)
        dy = grad if self.batched else grad.unsqueeze(0)
        parts = [
            slice(t * d, t * d + s * (count - 1) + 1, s)
            for t, d, s, count in zip(
                taps, self.dilation, self.stride, dy.shape[2:], strict=True
            )
        ]
        channel = self._channels(o).start + c
        met: tuple[Any, ...] = (slice(None), channel, *parts)
        return dy[:, o], self.padded[met]

    def input_gradient(self, index: int, grad: Tensor) -> Terms:
        """Sum over the output channels of the group and the positions they met at."""
        n, c, *place = _unraveled(index, self.shape)
        dy = grad if self.batched else grad.unsqueeze(0)
        size = self.weight.shape[1]
        share = self.weight.shape[0] // self.groups
        outputs = slice(c // size * share, (c // size + 1) * share)
        # A zero after the last position stands for those outside.
        left = torch.nn.functional.pad(dy[n, outputs], [0, 1] * len(place))
        right = self.weight[outputs, c % size]
        for axis, position in enumerate(place):
            places, taps = self._met(axis, position, dy.shape[2 + axis])
            left = left.index_select(axis + 1, places.to(left.device))
            right = right.index_select(axis + 1, taps.to(left.device))
        return left, right

    def _met(self, axis: int, place: int, positions: int) -> Terms:
        """Return positions, ascending, and the kernel indices that met there."""
        taps = torch.arange(self.kernel[axis]).flip(0)
        reached = place + self.before[axis] - self.dilation[axis] * taps
        step = self.stride[axis]
        fits = reached % step == 0
        places = reached[fits] // step
        inside = (places >= 0) & (places < positions)
        return torch.where(inside, places, positions), taps[fits]
