"""`lowprec.functional.addmm`, `baddbmm`, `addbmm`, `addmv` and `addr`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arithmetic import check_carrier, overridable
from ..precision import Precision, as_precision
from ._added_product import added_product
from ._calls import leaves_products, seed_with_elementwise
from ._parts import check_same


def _is_torchs(precision: Precision, beta: float, alpha: float) -> bool:
    scales = beta not in (0, 1) or alpha != 1
    return leaves_products(precision) and not (scales and precision.elementwise)


def _checked(
    input: Tensor, shape: tuple[int, ...], factors: dict[str, Tensor], valid: bool
) -> None:
    """Refuse operands that torch cannot multiply or add.

    Raises:
        TypeError: for dtypes.
        ValueError: for shapes.
    """
    check_carrier(input, "input")
    for name, factor in factors.items():
        check_same(name, factor, input, "input")
    given = ", ".join(f"{name} {tuple(x.shape)}" for name, x in factors.items())
    if not valid:
        raise ValueError(f"cannot multiply {given}: see the shapes in the docstring")
    sizes = zip(reversed(input.shape), reversed(shape), strict=False)
    if input.dim() > len(shape) or any(m not in (1, n) for m, n in sizes):
        raise ValueError(
            f"input {tuple(input.shape)} does not broadcast to the shape {shape} of "
            f"the product of {given}"
        )


@overridable
def addmm(
    input: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Add a product of matrices to a tensor, in emulated arithmetic.

    With A' = fl_input(mat1), B' = fl_weight(mat2), fl = fl_elementwise:
    Y = fl_output(fl_acc(fl(alpha acc(A' B')) + fl(beta C))); with
    dY' = fl_grad_output(dY): dA = fl_grad_input(acc(fl(alpha dY') B'^T)),
    dB = fl_grad_weight(acc(A'^T fl(alpha dY'))),
    dC = fl_grad_weight(fl(beta acc(dY'))), summed where C was broadcast.

    Contract:
        As `linear`, of which this is the general form: C is its bias, is used as it is
        and added by one more addition of the accumulator. A factor of 1 rounds
        nothing; ``beta=0`` ignores C, NaN included. Where ``elementwise`` is None the
        carrier scales. Random words of scaling are those of the parts after `Seeds`:
        alpha and beta of the result, alpha and beta of the gradients. If nothing is
        rounded torch's own function computes.

    Args:
        input: float32 or float64 tensor C that broadcasts to [M, N].
        mat1: tensor [M, K] of the same dtype.
        mat2: tensor [K, N] of the same dtype.
        beta: factor of ``input``.
        alpha: factor of the product.
        precision: the roundings.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [M, N].

    Raises:
        TypeError: as `linear`.
        ValueError: if shapes do not match, or the carrier cannot hold the values.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> c, a, b = torch.ones(1), torch.tensor([[256.0]]), torch.ones(1, 1)
        >>> addmm(c, a, b, precision=Precision(accumulator="bfloat16"))
        tensor([[256.]])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    precision = as_precision(precision)
    if _is_torchs(precision, beta, alpha):
        return torch.addmm(input, mat1, mat2, beta=beta, alpha=alpha)
    valid = mat1.dim() == mat2.dim() == 2 and mat1.shape[1] == mat2.shape[0]
    shape = (*mat1.shape[:1], *mat2.shape[1:2])
    _checked(input, shape, {"mat1": mat1, "mat2": mat2}, valid)
    return added_product(
        mat1.unsqueeze(0),
        mat2.unsqueeze(0),
        input,
        beta=beta,
        alpha=alpha,
        precision=precision,
        seed=seed_with_elementwise(precision, generator, seed),
    ).squeeze(0)


@overridable
def baddbmm(
    input: Tensor,
    batch1: Tensor,
    batch2: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Add products of matrices, one per batch position, to a tensor.

    The formula is that of `addmm`.

    Contract:
        As `addmm`.

    Args:
        input: float32 or float64 tensor that broadcasts to [B, M, N].
        batch1: tensor [B, M, K] of the same dtype.
        batch2: tensor [B, K, N] of the same dtype.
        beta: factor of ``input``.
        alpha: factor of the products.
        precision: the roundings.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [B, M, N].

    Raises:
        TypeError: as `linear`.
        ValueError: as `addmm`.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> c, a, b = torch.ones(1), torch.tensor([[[256.0]]]), torch.ones(1, 1, 1)
        >>> baddbmm(c, a, b, beta=0, precision=Precision(accumulator="bfloat16"))
        tensor([[[256.]]])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    precision = as_precision(precision)
    if _is_torchs(precision, beta, alpha):
        return torch.baddbmm(input, batch1, batch2, beta=beta, alpha=alpha)
    valid = (
        batch1.dim() == batch2.dim() == 3
        and batch1.shape[0] == batch2.shape[0]
        and batch1.shape[2] == batch2.shape[1]
    )
    shape = (*batch1.shape[:2], *batch2.shape[2:])
    _checked(input, shape, {"batch1": batch1, "batch2": batch2}, valid)
    return added_product(
        batch1,
        batch2,
        input,
        beta=beta,
        alpha=alpha,
        precision=precision,
        seed=seed_with_elementwise(precision, generator, seed),
    )


@overridable
def addbmm(
    input: Tensor,
    batch1: Tensor,
    batch2: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Add the sum of products of matrices over all batch positions to a tensor.

    The formula is that of `addmm` with K running over batch positions and columns.

    Contract:
        As `addmm`; a sum takes its terms batch position by batch position.

    Args:
        input: float32 or float64 tensor that broadcasts to [M, N].
        batch1: tensor [B, M, K] of the same dtype.
        batch2: tensor [B, K, N] of the same dtype.
        beta: factor of ``input``.
        alpha: factor of the sum.
        precision: the roundings.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [M, N].

    Raises:
        TypeError: as `linear`.
        ValueError: as `addmm`.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> c, a = torch.zeros(1), torch.tensor([256.0, 1.0, 1.0]).reshape(3, 1, 1)
        >>> b = torch.ones(3, 1, 1)
        >>> addbmm(c, a, b, precision=Precision(accumulator="bfloat16"))
        tensor([[256.]])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    precision = as_precision(precision)
    if _is_torchs(precision, beta, alpha):
        return torch.addbmm(input, batch1, batch2, beta=beta, alpha=alpha)
    valid = (
        batch1.dim() == batch2.dim() == 3
        and batch1.shape[0] == batch2.shape[0]
        and batch1.shape[2] == batch2.shape[1]
    )
    shape = (*batch1.shape[1:2], *batch2.shape[2:])
    _checked(input, shape, {"batch1": batch1, "batch2": batch2}, valid)
    return added_product(
        batch1.movedim(1, 0).flatten(1).unsqueeze(0),
        batch2.flatten(0, 1).unsqueeze(0),
        input,
        beta=beta,
        alpha=alpha,
        precision=precision,
        seed=seed_with_elementwise(precision, generator, seed),
    ).squeeze(0)


@overridable
def addmv(
    input: Tensor,
    mat: Tensor,
    vec: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Add the product of a matrix and a vector to a tensor.

    The formula is that of `addmm` with a single column.

    Contract:
        As `addmm`.

    Args:
        input: float32 or float64 tensor that broadcasts to [M].
        mat: tensor [M, K] of the same dtype.
        vec: tensor [K] of the same dtype.
        beta: factor of ``input``.
        alpha: factor of the product.
        precision: the roundings.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [M].

    Raises:
        TypeError: as `linear`.
        ValueError: as `addmm`.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> c, a, x = torch.ones(1), torch.tensor([[256.0, 1.0]]), torch.ones(2)
        >>> addmv(c, a, x, precision=Precision(accumulator="bfloat16"))
        tensor([256.])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    precision = as_precision(precision)
    if _is_torchs(precision, beta, alpha):
        return torch.addmv(input, mat, vec, beta=beta, alpha=alpha)
    valid = mat.dim() == 2 and vec.dim() == 1 and mat.shape[1] == vec.shape[0]
    _checked(input, tuple(mat.shape[:1]), {"mat": mat, "vec": vec}, valid)
    return added_product(
        mat.unsqueeze(0),
        vec.reshape(1, -1, 1),
        input.unsqueeze(-1),
        beta=beta,
        alpha=alpha,
        precision=precision,
        seed=seed_with_elementwise(precision, generator, seed),
    ).reshape(-1)


@overridable
def addr(
    input: Tensor,
    vec1: Tensor,
    vec2: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
    precision: Precision,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Add the outer product of two vectors to a tensor.

    The formula is that of `addmm` with sums of one term.

    Contract:
        As `addmm`.

    Args:
        input: float32 or float64 tensor that broadcasts to [M, N].
        vec1: tensor [M] of the same dtype.
        vec2: tensor [N] of the same dtype.
        beta: factor of ``input``.
        alpha: factor of the product.
        precision: the roundings.
        generator: source of the seed of stochastic roundings.
        seed: the seed itself instead, an int or 0-d int64 tensor.

    Returns:
        Tensor [M, N].

    Raises:
        TypeError: as `linear`.
        ValueError: as `addmm`.
        NotImplementedError: as `linear`.
        RuntimeError: as `linear`.

    Example:
        >>> c, a, b = torch.ones(1, 1), torch.tensor([256.0]), torch.ones(1)
        >>> addr(c, a, b, precision=Precision(accumulator="bfloat16"))
        tensor([[256.]])

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    precision = as_precision(precision)
    if _is_torchs(precision, beta, alpha):
        return torch.addr(input, vec1, vec2, beta=beta, alpha=alpha)
    valid = vec1.dim() == vec2.dim() == 1
    shape = (*vec1.shape, *vec2.shape)
    _checked(input, shape, {"vec1": vec1, "vec2": vec2}, valid)
    return added_product(
        vec1.reshape(1, -1, 1),
        vec2.reshape(1, 1, -1),
        input,
        beta=beta,
        alpha=alpha,
        precision=precision,
        seed=seed_with_elementwise(precision, generator, seed),
    ).squeeze(0)
