"""Products of several tensors or over chosen dimensions, by `matmul` and `einsum`."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._added_product import added_product
from ._calls import Steps, leaves_products
from ._contractions import Indexed, contract_all
from ._matmul import matmul
from ._parts import check_bias, check_same


def _numbered(x: Tensor, prefix: str) -> list[str]:
    return [f"{prefix}{i}" for i in range(x.dim())]


def _check_pair(first: str, a: Tensor, second: str, b: Tensor) -> None:
    check_carrier(a, first)
    check_same(second, b, a, first)


@overridable
def tensordot(
    a: Tensor,
    b: Tensor,
    dims: int | Sequence[Sequence[int]] | Sequence[int] = 2,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Sum products of two tensors over some dimensions of each.

    The formula is that of `einsum` with a letter for every pair of dimensions.

    Contract:
        As `einsum`; terms are in row-major order of the summed dimensions of ``a``.

    Args:
        a: float32 or float64 tensor.
        b: tensor of the same dtype.
        dims: how many of the last dimensions of ``a`` meet the first of ``b``, or
            a list of dimensions of each.
        precision: the roundings; ``elementwise`` is not used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor with the remaining dimensions of ``a``, then those of ``b``.

    Raises:
        TypeError: as `linear`.
        ValueError: if the dimensions do not fit, and as `linear`.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> x = torch.ones(2, 3, 4)
        >>> tensordot(x, x, ([0, 2], [0, 2]), precision=Precision(output="e5m2")).shape
        torch.Size([3, 3])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    precision = as_precision(precision)
    if leaves_products(precision):
        plain: Tensor = torch.tensordot(a, b, dims)
        return plain
    _check_pair("a", a, "b", b)
    if isinstance(dims, int):
        pairs = [list(range(a.dim() - dims, a.dim())), list(range(dims))]
    else:
        pairs = [[one] if isinstance(one, int) else list(one) for one in dims]
    fit = len(pairs) == 2 and len(pairs[0]) == len(pairs[1])
    if not fit or not all(
        -x.dim() <= dim < x.dim()
        for x, own in zip((a, b), pairs, strict=True)
        for dim in own
    ):
        raise ValueError(
            f"dims must be a number of dimensions or as many of each tensor, got "
            f"{dims!r} for shapes {tuple(a.shape)} and {tuple(b.shape)}"
        )
    left, right = _numbered(a, "a"), _numbered(b, "b")
    for first, second in zip(*pairs, strict=True):
        right[second] = left[first]
    output = (
        *(label for label in left if label not in right),
        *(label for label in right if label not in left),
    )
    operands = [Indexed(a, tuple(left)), Indexed(b, tuple(right))]
    return contract_all(operands, output, precision, generator, seed)


@overridable
def inner(
    input: Tensor,
    other: Tensor,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Sum products over the last dimensions of two tensors.

    The formula is that of `tensordot`.

    Contract:
        As `tensordot`; if one of them has no dimensions, nothing is summed.

    Args:
        input: float32 or float64 tensor [..., K].
        other: tensor [..., K] of the same dtype.
        precision: the roundings; ``elementwise`` is not used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor with the leading dimensions of ``input``, then those of ``other``.

    Raises:
        TypeError: as `linear`.
        ValueError: as `tensordot`.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> x = torch.tensor([256.0, 1.0, 1.0])
        >>> inner(x, torch.ones(3), precision=Precision(accumulator="bfloat16"))
        tensor(256.)

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    precision = as_precision(precision)
    if leaves_products(precision):
        return torch.inner(input, other)
    scalar = input.dim() == 0 or other.dim() == 0
    return tensordot(
        input,
        other,
        0 if scalar else ([-1], [-1]),
        precision=precision,
        generator=generator,
        seed=seed,
    )


@overridable
def outer(
    input: Tensor,
    vec2: Tensor,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Multiply every element of one vector by every element of another.

    C[i, j] = fl_output(acc(a'[i] b'[j])), a sum of one term, gradients as `matmul`.

    Contract:
        As `matmul` of a column and a row.

    Args:
        input: float32 or float64 tensor [M].
        vec2: tensor [N] of the same dtype.
        precision: the roundings; ``elementwise`` is not used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [M, N].

    Raises:
        TypeError: as `linear`.
        ValueError: if an operand is not a vector, and as `linear`.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> low = Precision(output="e5m2")
        >>> outer(torch.ones(2), torch.tensor([1.1]), precision=low)
        tensor([[1.],
                [1.]])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    precision = as_precision(precision)
    if leaves_products(precision):
        return torch.outer(input, vec2)
    if input.dim() != 1 or vec2.dim() != 1:
        raise ValueError(
            f"outer needs two vectors, got shapes {tuple(input.shape)} and "
            f"{tuple(vec2.shape)}"
        )
    return matmul(
        input.unsqueeze(1),
        vec2.unsqueeze(0),
        precision=precision,
        generator=generator,
        seed=seed,
    )


@overridable
def vecdot(
    x: Tensor,
    y: Tensor,
    *,
    dim: int = -1,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Return inner products along one dimension of two tensors that broadcast.

    The formula is that of `einsum` with ``"...i,...i->..."``.

    Contract:
        As `einsum`.

    Args:
        x: float32 or float64 tensor.
        y: tensor of the same dtype; its shape broadcasts with that of ``x``.
        dim: the dimension that is summed.
        precision: the roundings; ``elementwise`` is not used.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor of the broadcast shape without ``dim``.

    Raises:
        TypeError: as `linear`.
        ValueError: if the shapes do not broadcast, and as `linear`.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> x = torch.tensor([[256.0, 1.0, 1.0]])
        >>> vecdot(x, torch.ones(3), precision=Precision(accumulator="bfloat16"))
        tensor([256.])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    precision = as_precision(precision)
    if leaves_products(precision):
        plain: Tensor = torch.linalg.vecdot(x, y, dim=dim)
        return plain
    _check_pair("x", x, "y", y)
    # Dimensions count from the last, as they do for broadcasting.
    operands = [
        Indexed(z, tuple(str(i) for i in range(z.dim() - 1, -1, -1))) for z in (x, y)
    ]
    dims = max(x.dim(), y.dim())
    summed = -1 - dim if dim < 0 else dims - 1 - dim
    output = tuple(str(i) for i in range(dims - 1, -1, -1) if i != summed)
    return contract_all(operands, output, precision, generator, seed)


@overridable
def multi_dot(
    tensors: Sequence[Tensor],
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Multiply several matrices, in the order that takes the fewest products.

    Every product is a `matmul`, whose result, rounded to ``output``, is an operand of
    the next.

    Contract:
        As `matmul`. Of orders that take as few scalar products, that is used whose
        last product splits the chain furthest left. The products of the left half
        come before those of the right one, and take the seeds in this order.

    Args:
        tensors: two or more float32 or float64 matrices of one dtype; the first may be
            a vector, which is a row, and the last one, which is a column.
        precision: the roundings; ``elementwise`` is not used.
        generator: source of the seed of stochastic roundings; products after the
            first take the parts of it that follow `Seeds`.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [M, N], [M], [N] or [].

    Raises:
        TypeError: as `linear`.
        ValueError: for less than two tensors, or shapes that do not fit.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> a, b, c = torch.ones(2, 3), torch.ones(3, 4), torch.ones(4)
        >>> multi_dot([a, b, c], precision=Precision(output="e4m3fn"))
        tensor([12., 12.])

    References:
        Cormen, Leiserson, Rivest and Stein, Introduction to Algorithms, section 15.2.
    """
    precision = as_precision(precision)
    if leaves_products(precision):
        plain: Tensor = torch.linalg.multi_dot(list(tensors))
        return plain
    shapes = [tuple(x.shape) for x in tensors]
    last = len(tensors) - 1
    fits = last >= 1 and all(
        x.dim() == 2 or (x.dim() == 1 and i in (0, last)) for i, x in enumerate(tensors)
    )
    if not fits or any(
        a.shape[-1] != b.shape[0] for a, b in itertools.pairwise(tensors)
    ):
        raise ValueError(
            "multi_dot needs two or more matrices (or vectors at the ends) whose inner "
            f"sizes match, got shapes {shapes}"
        )
    rows = [1 if x.dim() == 1 and i == 0 else x.shape[0] for i, x in enumerate(tensors)]
    sizes = [*rows, 1 if tensors[last].dim() == 1 else tensors[last].shape[1]]
    steps = Steps(precision, generator, seed)

    @functools.cache
    def best(first: int, end: int) -> tuple[int, int]:
        """Return the number of scalar products of a part of the chain and its split."""
        if end - first == 1:
            return 0, first
        return min(
            (
                best(first, split)[0]
                + best(split, end)[0]
                + sizes[first] * sizes[split] * sizes[end],
                split,
            )
            for split in range(first + 1, end)
        )

    def multiplied(first: int, end: int) -> Tensor:
        if end - first == 1:
            return tensors[first]
        split = best(first, end)[1]
        left, right = multiplied(first, split), multiplied(split, end)
        return matmul(left, right, precision=precision, seed=steps.next())

    return multiplied(0, last + 1)


@overridable
def bilinear(
    input1: Tensor,
    input2: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Apply a bilinear map in emulated arithmetic, forward and backward.

    Two products: H[n, o, j] = fl_output(acc over i of x1'[n, i] W'[o, i, j]), then
    y[n, o] = fl_output(fl_acc(acc over j of x2'[n, j] fl_weight(H)[n, o, j] + b[o])),
    with x1' = fl_input(x1), x2' = fl_input(x2), W' = fl_weight(W).

    Contract:
        The second product is a linear layer whose weight depends on the example, so
        both inputs are rounded to ``input`` and their gradients to ``grad_input``; H
        has its gradient rounded as that of a weight, and then as an incoming one.
        Gradients of both products are those of `matmul`, those of the weight and the
        bias are summed over all batch positions in row-major order. If no field of a
        product is given torch's own function computes.

    Args:
        input1: float32 or float64 tensor [..., I].
        input2: tensor [..., J] of the same dtype and leading shape.
        weight: tensor [O, I, J] of the same dtype.
        bias: tensor [O] of the same dtype, or None.
        precision: the roundings; ``elementwise`` is not used.
        generator: source of the seed of stochastic roundings; the second product
            takes the part of it that follows `Seeds`.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [..., O] of the inputs' dtype.

    Raises:
        TypeError: as `linear`.
        ValueError: if shapes do not match, or the carrier cannot hold the values.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> x, w = torch.tensor([[256.0, 1.0, 1.0]]), torch.ones(1, 3, 1)
        >>> y = torch.ones(1, 1)
        >>> bilinear(x, y, w, precision=Precision(accumulator="bfloat16"))
        tensor([[256.]])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    precision = as_precision(precision)
    if leaves_products(precision):
        return torch.nn.functional.bilinear(input1, input2, weight, bias)
    _check_pair("input1", input1, "input2", input2)
    check_same("weight", weight, input1, "input1")
    lead = input1.shape[:-1]
    if (
        input1.dim() == 0
        or weight.dim() != 3
        or input2.shape != (*lead, weight.shape[2])
        or input1.shape[-1] != weight.shape[1]
    ):
        raise ValueError(
            f"cannot apply weight {tuple(weight.shape)} to inputs "
            f"{tuple(input1.shape)} and {tuple(input2.shape)}: they must be [..., I] "
            "and [..., J], and weight [O, I, J]"
        )
    check_bias(bias, input1, weight.shape[0], "slice of weight")
    steps = Steps(precision, generator, seed)
    outputs, first, second = weight.shape
    columns = weight.movedim(1, 0).reshape(first, outputs * second)
    maps = matmul(
        input1.reshape(-1, first), columns, precision=precision, seed=steps.next()
    )
    result = added_product(
        input2.reshape(-1, 1, second),
        maps.reshape(-1, outputs, second).mT,
        bias,
        precision=precision,
        seed=steps.next(),
    )
    return result.reshape(*lead, outputs)
