"""`lowprec.functional.einsum`.

Every contraction of two tensors is one batched matrix product: indices that both have
and the result keeps are its batch, those that both have and the result lacks are the
sum, the others are rows and columns.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..block_rounding import AnyRounding
from ..precision import Precision, as_precision
from ..rounding import Accumulator
from ._calls import Steps, leaves_products
from ._matmul import matmul
from ._parts import check_same, plain
from ._wide import wide_for

_Labels = tuple[str, ...]


@dataclass(frozen=True)
class Indexed:
    """A tensor and the names of its dimensions, each of which occurs once."""

    tensor: Tensor
    labels: _Labels

    def ordered(self, labels: Sequence[str]) -> Tensor:
        """Return the tensor with its dimensions in this order."""
        return self.tensor.permute([self.labels.index(label) for label in labels])


def _diagonal(tensor: Tensor, labels: _Labels) -> Indexed:
    """Give every label one dimension: equal ones become the diagonal."""
    names = list(labels)
    for label in labels:
        while names.count(label) > 1:
            first = names.index(label)
            second = names.index(label, first + 1)
            tensor = tensor.diagonal(dim1=first, dim2=second)
            names = [name for i, name in enumerate(names) if i not in (first, second)]
            names.append(label)
    return Indexed(tensor, tuple(names))


def _without_copies(operands: Sequence[Indexed]) -> list[Indexed]:
    """Drop dimensions of size 1 where another operand has more elements."""
    sizes: dict[str, int] = {}
    for operand in operands:
        for label, size in zip(operand.labels, operand.tensor.shape, strict=True):
            if sizes.get(label, 1) == 1:
                sizes[label] = size
    result = []
    for operand in operands:
        shape = operand.tensor.shape
        kept = [
            i
            for i, label in enumerate(operand.labels)
            if shape[i] != 1 or sizes[label] == 1
        ]
        for i in kept:
            if shape[i] != sizes[operand.labels[i]]:
                shapes = [tuple(one.tensor.shape) for one in operands]
                raise ValueError(
                    f"index {operand.labels[i]!r} has sizes {shape[i]} and "
                    f"{sizes[operand.labels[i]]} in operands of shapes {shapes}"
                )
        index: tuple[Any, ...] = tuple(
            slice(None) if i in kept else 0 for i in range(len(shape))
        )
        labels = tuple(operand.labels[i] for i in kept)
        result.append(Indexed(operand.tensor[index], labels))
    return result


def _summed(
    x: Indexed,
    labels: Sequence[str],
    rounding: AnyRounding | None,
    accumulator: Accumulator | None,
    steps: Steps,
) -> Indexed:
    """Sum over indices that no other tensor has; the gradient is copied."""
    if not labels:
        return x
    kept = tuple(label for label in x.labels if label not in labels)
    rows = x.ordered((*kept, *labels)).flatten(len(kept))
    sums = Precision(
        input=rounding,
        accumulator=None if accumulator is None else plain(accumulator),
        grad_accumulator="carrier",
    )
    ones = rows.new_ones(rows.shape[-1])
    total = matmul(rows, ones, precision=sums, seed=steps.next())
    return Indexed(total, kept)


def contract(
    left: Indexed,
    right: Indexed,
    kept: Sequence[str],
    precision: Precision,
    steps: Steps,
) -> Indexed:
    """Multiply and sum over every index that is not in ``kept``, by one product."""
    alone = [a for a in left.labels if a not in right.labels and a not in kept]
    left = _summed(left, alone, precision.input, precision.accumulator, steps)
    alone = [a for a in right.labels if a not in left.labels and a not in kept]
    right = _summed(right, alone, precision.weight, precision.accumulator, steps)
    shared = [a for a in left.labels if a in right.labels]
    batch = [a for a in shared if a in kept]
    terms = [a for a in shared if a not in kept]
    rows = [a for a in left.labels if a not in shared]
    columns = [a for a in right.labels if a not in shared]
    a = left.ordered([*batch, *rows, *terms])
    b = right.ordered([*batch, *terms, *columns])
    shape = (*a.shape[: len(batch) + len(rows)], *b.shape[len(batch) + len(terms) :])
    count = math.prod(a.shape[len(batch) + len(rows) :])
    heights = math.prod(a.shape[len(batch) : len(batch) + len(rows)])
    widths = math.prod(b.shape[len(batch) + len(terms) :])
    positions = math.prod(a.shape[: len(batch)])
    result = matmul(
        a.reshape(positions, heights, count),
        b.reshape(positions, count, widths),
        precision=precision,
        seed=steps.next(),
    )
    return Indexed(result.reshape(shape), (*batch, *rows, *columns))


def contract_all(
    operands: Sequence[Indexed],
    output: _Labels,
    precision: Precision,
    generator: torch.Generator | None,
    seed: int | Tensor | None,
) -> Tensor:
    """Contract from left to right, and return the indices ``output`` in this order."""
    steps = Steps(precision, generator, seed)
    result, *others = _without_copies(operands)
    for number, operand in enumerate(others):
        later = {label for one in others[number + 1 :] for label in one.labels}
        result = contract(result, operand, [*output, *later], precision, steps)
    return result.ordered(output)


def _reduced(
    operand: Indexed,
    output: _Labels,
    precision: Precision,
    generator: torch.Generator | None,
    seed: int | Tensor | None,
) -> Tensor:
    """Sum one tensor over the indices that ``output`` lacks."""
    summed = [i for i, label in enumerate(operand.labels) if label not in output]
    if not summed:
        return operand.ordered(output)
    wide = wide_for(precision, operand.tensor.dtype, generator, seed)
    total = wide.leave(wide.sum(wide.enter(operand.tensor), summed))
    kept = tuple(label for label in operand.labels if label in output)
    return Indexed(total, kept).ordered(output)


def _spelled(equation: Any, operands: Sequence[Any]) -> tuple[str, list[Tensor]]:
    """Return the equation and the tensors; torch's form with lists has neither."""
    if isinstance(equation, str):
        several = len(operands) == 1 and isinstance(operands[0], (list, tuple))
        return equation, list(operands[0] if several else operands)
    values = (equation, *operands)

    def term(indices: Any) -> str:
        try:
            return "".join(
                "..." if i is Ellipsis else string.ascii_letters[i] for i in indices
            )
        except (IndexError, TypeError):
            raise ValueError(
                "lists of indices must hold Ellipsis or ints from 0 to 51, got "
                f"{indices!r}"
            ) from None

    pairs = len(values) // 2
    text = ",".join(term(values[2 * i + 1]) for i in range(pairs))
    if len(values) % 2:
        text += "->" + term(values[-1])
    return text, [values[2 * i] for i in range(pairs)]


def _labels(term: str, dims: int, equation: str) -> _Labels:
    """Return a name for each dimension; those of ``...`` count from the last."""
    before, dots, after = term.partition("...")
    names = before + after
    hidden = dims - len(names)
    known = all(name in string.ascii_letters for name in names)
    if not known or hidden < 0 or (hidden > 0 and not dots):
        raise ValueError(
            f"the term {term!r} of equation {equation!r} does not describe an operand "
            f"of {dims} dimensions: it takes one letter per dimension, and '...' once "
            "for any number of others"
        )
    others = (f"...{i}" for i in range(hidden - 1, -1, -1))
    return (*before, *others, *after)


def _parsed(equation: str, operands: Sequence[Tensor]) -> tuple[list[_Labels], _Labels]:
    """Return the labels of every operand and of the output."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands) or not operands:
        raise ValueError(
            f"equation {equation!r} has {len(terms)} terms for {len(operands)} operands"
        )
    inputs = [
        _labels(term, operand.dim(), equation)
        for term, operand in zip(terms, operands, strict=True)
    ]
    every = [label for labels in inputs for label in labels]
    hidden = sorted({a for a in every if a.startswith("...")}, reverse=True)
    if not arrow:  # hidden dimensions, then what occurs once, in alphabetical order
        once = sorted(a for a in set(every) if a in left and every.count(a) == 1)
        return inputs, (*hidden, *(a for a in once if not a.startswith("...")))
    names = right.replace("...", "")
    dims = len(names) + (len(hidden) if "..." in right else 0)
    output = _labels(right, dims, equation)
    if len(set(output)) != len(output) or not set(output) <= set(every):
        raise ValueError(
            f"every index of the output of equation {equation!r} must occur once "
            "there and in an operand"
        )
    return inputs, output


@overridable
def einsum(
    equation: Any,
    *operands: Any,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Sum products of tensors over named indices, in emulated arithmetic.

    With A' = fl_input(A), B' = fl_weight(B), for two operands
    C[kept] = fl_output(acc over summed of A'[...] B'[...]), with gradients as `matmul`.

    Contract:
        Two operands are one `matmul`: the first is its input, the second its weight;
        terms are in row-major order of the summed indices as the first operand has
        them. An index that is summed and that only one operand has is summed first,
        by the accumulator without products, and its gradient is copied. More operands
        are contracted from left to right (torch may choose another order), each
        result being rounded to ``output`` and then entering the next product as its
        input. Equal indices of one operand take its diagonal; dimensions of size 1
        broadcast. A single operand has no product: its sums round to ``elementwise``
        and None there leaves them to torch. If no field of a product is given torch's
        own function computes.

    Args:
        equation: as in ``torch.einsum``, which also takes operands and lists of ints.
        operands: float32 or float64 tensors of one dtype.
        precision: the roundings.
        generator: source of the seed of stochastic roundings; products after the
            first take the parts of it that follow `Seeds`.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor of the operands' dtype.

    Raises:
        TypeError: as `linear`.
        ValueError: if equation and operands do not fit, and as `linear`.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> x = torch.tensor([[256.0, 1.0, 1.0]])
        >>> einsum("bi,oi->bo", x, torch.ones(1, 3),
        ...        precision=Precision(accumulator="bfloat16"))
        tensor([[256.]])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    precision = as_precision(precision)
    text, tensors = _spelled(equation, operands)
    single = len(tensors) == 1
    if leaves_products(precision) and not single:
        return torch.einsum(text, *tensors)
    for tensor in tensors:
        check_carrier(tensor, "an operand")
        check_same("every operand", tensor, tensors[0], "the first")
    inputs, output = _parsed(text, tensors)
    indexed = [_diagonal(x, names) for x, names in zip(tensors, inputs, strict=True)]
    if not single:
        return contract_all(indexed, output, precision, generator, seed)
    if precision.elementwise is None:
        return torch.einsum(text, *tensors)
    return _reduced(indexed[0], output, precision, generator, seed)
