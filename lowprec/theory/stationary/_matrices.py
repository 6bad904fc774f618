"""Checked matrices, and the basis in which the Hessian is diagonal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._inputs import finite


def square(name: str, value: Any) -> Tensor:
    """Return a square matrix in binary64; a number is a 1 x 1 matrix.

    Raises:
        ValueError: if it is not finite or not square.
    """
    matrix = finite(name, value)
    if matrix.dim() == 0:
        matrix = matrix.reshape(1, 1)
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"{name} must be a square matrix, got shape {tuple(matrix.shape)}"
        )
    return matrix


def symmetric(name: str, value: Any, size: int | None = None) -> Tensor:
    """Return a symmetric matrix in binary64, of ``size`` rows if that is given.

    Raises:
        ValueError: if it is not; asymmetry at rounding level is removed.
    """
    matrix = square(name, value)
    if size is not None and matrix.shape[0] != size:
        raise ValueError(
            f"{name} must be {size} x {size} as A is, got {tuple(matrix.shape)}"
        )
    away = (matrix - matrix.T).abs().max().item()
    if away > 1e-10 * matrix.abs().max().item():
        raise ValueError(
            f"{name} must be symmetric, but differs from its transpose by {away:.3g}: "
            f"use ({name} + {name}.T) / 2 if that is rounding"
        )
    return (matrix + matrix.T) / 2


def positive_definite(name: str, value: Any) -> Tensor:
    """Return a symmetric positive definite matrix in binary64.

    Raises:
        ValueError: naming the smallest eigenvalue.
    """
    matrix = symmetric(name, value)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    _check_positive(name, eigenvalues)
    return matrix


def covariance(name: str, value: Any, size: int | None = None) -> Tensor:
    """Return a symmetric positive semidefinite matrix in binary64.

    Raises:
        ValueError: naming the smallest eigenvalue.
    """
    matrix = symmetric(name, value, size)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    if eigenvalues[0] < -1e-10 * eigenvalues.abs().max():
        raise ValueError(
            f"{name} must be a covariance, positive semidefinite, but its smallest "
            f"eigenvalue is {eigenvalues[0].item():.6g}"
        )
    return matrix


def vector(name: str, value: Any, size: int) -> Tensor:
    """Return a finite vector of ``size`` elements; a number stands for equal ones."""
    result = finite(name, value)
    if result.dim() > 1 or result.numel() not in (1, size):
        raise ValueError(
            f"{name} must be a number or have {size} elements, as many as A has rows, "
            f"got shape {tuple(result.shape)}"
        )
    return result.expand(size)


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """A = U diag(values) U^T, symmetric positive definite."""

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, A: Any) -> Eigenbasis:
        """Decompose the Hessian.

        Raises:
            ValueError: if it is not symmetric positive definite.
        """
        values, vectors = torch.linalg.eigh(symmetric("A", A))
        _check_positive("A", values)
        return cls(values, vectors)

    @property
    def size(self) -> int:
        """Number of eigenvalues."""
        return int(self.values.numel())

    def into(self, matrix: Tensor) -> Tensor:
        """Return U^T S U, for S of shape [..., d, d]."""
        return self.vectors.T @ matrix @ self.vectors

    def back(self, matrix: Tensor) -> Tensor:
        """Return U S U^T, for S of shape [..., d, d]."""
        return self.vectors @ matrix @ self.vectors.T

    def solve(self, right: Tensor) -> Tensor:
        """Return A^-1 b for a vector b."""
        return self.vectors @ ((self.vectors.T @ right) / self.values)


def _check_positive(name: str, eigenvalues: Tensor) -> None:
    smallest, largest = eigenvalues[0].item(), eigenvalues[-1].item()
    if not smallest > eigenvalues.numel() * 2**-52 * largest:
        raise ValueError(
            f"{name} must be positive definite, but its smallest eigenvalue is "
            f"{smallest:.6g} (largest {largest:.6g}): the minimum is not strict, and "
            "no limit covariance exists"
        )
