"""Royston's test of multivariate normality, and dither for values on a grid."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import NumericalWarning
from ..random import as_seed

RoystonVariant = Literal["sw", "trujillo"]

_FEWEST, _MOST, _FITTED = 4, 5000, 2000
_LARGE_SAMPLE = 12  # from here on ln(1 - W) itself is normal
_NORMAL_KURTOSIS = 3.0

# Polynomials in n^(-1/2), ln n or n, constant term first.
_LAST_WEIGHT = (0.0, 0.221157, -0.147981, -2.071190, 4.434685, -2.706056)
_NEXT_WEIGHT = (0.0, 0.042981, -0.293762, -1.752461, 5.682633, -3.582633)
_LARGE_MEAN = (-1.5861, -0.31082, -0.083751, 0.0038915)
_LARGE_LOG_DEVIATION = (-0.4803, -0.082676, 0.0030302)
_SMALL_SHIFT = (-2.273, 0.459)
_SMALL_MEAN = (0.5440, -0.39978, 0.025054, -0.0006714)
_SMALL_LOG_DEVIATION = (1.3822, -0.77857, 0.062767, -0.0020322)
_CORRELATION_SCALE = (0.21364, 0.0, 0.015124, -0.0018034)
_CORRELATION_POWER = 5
_CORRELATION_EXPONENT = 0.715


@dataclass(frozen=True, kw_only=True)
class RoystonTest:
    """Result of Royston's test.

    Args:
        statistic: H; infinite where a variable is beyond what the normal score of
            float64 can tell from certain rejection.
        degrees_of_freedom: e of the chi-square distribution, positive.
        p_value: probability of a larger H from normal samples.
        w: W of every variable.
    """

    statistic: float
    degrees_of_freedom: float
    p_value: float
    w: tuple[float, ...]

    def rho(self, significance: float = 0.05) -> float:
        """Return the p-value minus the significance level: positive if it passes."""
        return self.p_value - significance


def royston_test(samples: Tensor, variant: RoystonVariant = "sw") -> RoystonTest:
    r"""Test whether samples come from a multivariate normal distribution.

    The W of every variable becomes a normal score :math:`z_j` and
    :math:`R_j = [\Phi^{-1}(\Phi(-z_j)/2)]^2`, and

    .. math::
        H = \frac{e}{p} \sum_j R_j \sim \chi^2_e, \qquad
        e = \frac{p}{1 + (p - 1)\bar c},

    with :math:`\bar c` the mean estimated correlation of two :math:`R_j`.

    Contract:
        In float64, deterministic. One variable has the p-value of the Shapiro-Wilk
        test. The size is near the nominal one for independent variables, and larger
        for correlated ones: 0.05 becomes 0.095 at correlation 0.6 and p = 10.

    Args:
        samples: n samples of p variables, [n, p], with n from 4 to 5000, at least p.
        variant: ``"sw"``: the Shapiro-Wilk W of every variable. ``"trujillo"``: the
            Shapiro-Francia W of variables whose kurtosis exceeds 3, as in the MATLAB
            and R programs, with the Shapiro-Wilk constants: it rejects too often.

    Returns:
        H, its degrees of freedom and the p-value.

    Raises:
        TypeError: if ``samples`` is not a real floating-point tensor.
        ValueError: for other shapes, variables that are constant or not finite, or an
            unknown variant.

    Warns:
        NumericalWarning: beyond n = 2000, to which the constants were fitted.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(500, 3, dtype=torch.float64, generator=generator)
        >>> royston_test(x).p_value > 0.05, royston_test(x**3).p_value < 1e-6
        (True, True)

    References:
        Royston 1983, Some techniques for assessing multivariate normality based on the
        Shapiro-Wilk W; 1992, Approximating the Shapiro-Wilk W-test for non-normality;
        1995, AS R94.
    """
    if variant not in get_args(RoystonVariant):
        raise ValueError(
            "variant must be 'sw' (Shapiro-Wilk) or 'trujillo' (Shapiro-Francia for "
            f"variables with heavy tails), got {variant!r}"
        )
    x = _checked(samples)
    n, p = x.shape
    centred = x - x.mean(0)
    # Scale does not matter, and squares of small deviations must not underflow.
    centred = centred / centred.abs().amax(0)
    w = _statistic(centred, _shapiro_wilk_weights(n))
    if variant == "trujillo":
        kurtosis = n * centred.pow(4).sum(0) / centred.square().sum(0).square()
        francia = _statistic(centred, _normal_scores(n))
        w = torch.where(kurtosis > _NORMAL_KURTOSIS, francia, w)
    z = _normalised(w, n)
    r = torch.special.ndtri(torch.special.ndtr(-z) / 2).square()
    e = p / (1 + (p - 1) * _mean_correlation(centred, n))
    statistic = e * float(r.mean())
    p_value = torch.special.gammaincc(
        torch.tensor(e / 2, dtype=torch.float64),
        torch.tensor(statistic / 2, dtype=torch.float64),
    )
    return RoystonTest(
        statistic=statistic,
        degrees_of_freedom=e,
        p_value=float(p_value),
        w=tuple(w.tolist()),
    )


def dithered(
    x: Tensor,
    spacing: float | Tensor,
    *,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Add uniform noise as wide as the grid that values lie on.

    x + U with U uniform in [-spacing/2, spacing/2): iterates that are stochastically
    rounded are discrete, and a test of normality sees that first. With the dither it
    sees the distribution of which they are the rounded values.

    Contract:
        Pure function of (seed, element index); ``x`` is not changed.

    Args:
        x: float64 tensor of any shape.
        spacing: distance of neighbouring values, broadcast against ``x``; of a
            floating-point format `lowprec.Format.ulp` of the mean.
        generator: source of the seed; None means torch's default generator.
        seed: the seed itself instead.

    Returns:
        Tensor of ``x``'s shape.

    Raises:
        ValueError: if a spacing is negative or not finite.

    Example:
        >>> y = dithered(torch.zeros(1000, dtype=torch.float64), 0.25, seed=1)
        >>> bool(y.abs().max() <= 0.125), y.unique().numel() > 990
        (True, True)
    """
    width = torch.as_tensor(spacing, dtype=torch.float64, device=x.device)
    if not bool(((width >= 0) & width.isfinite()).all()):
        raise ValueError(f"spacing must be finite and 0 or more, got {spacing!r}")
    key = int(as_seed(seed, generator))
    source = torch.Generator().manual_seed(key)
    uniform = torch.rand(x.shape, dtype=torch.float64, generator=source).to(x.device)
    return x + width * (uniform - 0.5)


def _checked(samples: Any) -> Tensor:
    """Return the samples in float64; refuse what the test does not cover."""
    if not isinstance(samples, Tensor) or not samples.is_floating_point():
        kind = getattr(samples, "dtype", type(samples).__name__)
        raise TypeError(f"samples must be a floating-point tensor [n, p], got {kind}")
    if samples.dim() != 2 or samples.shape[1] == 0:
        raise ValueError(
            "samples must be a matrix of n samples of p variables, "
            f"got shape {tuple(samples.shape)}"
        )
    n, p = samples.shape
    if not _FEWEST <= n <= _MOST:
        raise ValueError(
            f"the test needs {_FEWEST} to {_MOST} samples, got {n}: "
            + ("add samples" if n < _FEWEST else "test a part of them")
        )
    if n < p:
        raise ValueError(
            f"the test needs at least as many samples as variables, got {n} samples of "
            f"{p} variables: add samples, or test fewer variables"
        )
    x = samples.detach().to(torch.float64)
    if not bool(x.isfinite().all()):
        raise ValueError("samples must be finite: they have infinities or NaN")
    constant = (x == x[0]).all(0).nonzero().flatten().tolist()
    if constant:
        raise ValueError(
            f"variables {constant} are constant: leave them out, a constant has no W"
        )
    if n > _FITTED:
        warnings.warn(
            f"the constants of Royston's test were fitted up to {_FITTED} samples, "
            f"got {n}",
            NumericalWarning,
            stacklevel=3,
        )
    return x


def _polynomial(coefficients: tuple[float, ...], x: float) -> float:
    return float(sum(c * x**power for power, c in enumerate(coefficients)))


def _normal_scores(n: int) -> Tensor:
    """Return Blom's expected order statistics, scaled to length 1."""
    ranks = torch.arange(1, n + 1, dtype=torch.float64)
    m: Tensor = torch.special.ndtri((ranks - 0.375) / (n + 0.25))
    scores: Tensor = m / m.norm()
    return scores


def _shapiro_wilk_weights(n: int) -> Tensor:
    """Return the weights a of W = (sum a_i x_(i))^2 / sum (x_i - mean)^2."""
    c, u = _normal_scores(n), n**-0.5
    corrected = [float(c[-1]) + _polynomial(_LAST_WEIGHT, u)]
    if n > 5:
        corrected.append(float(c[-2]) + _polynomial(_NEXT_WEIGHT, u))
    outer = torch.tensor(corrected, dtype=torch.float64)
    k = len(corrected)
    # The middle keeps its shape; the whole has length 1.
    scale = math.sqrt(
        float((1 - 2 * outer.square().sum()) / c[k : n - k].square().sum())
    )
    return torch.cat([-outer, scale * c[k : n - k], outer.flip(0)])


def _statistic(centred: Tensor, weights: Tensor) -> Tensor:
    ordered = centred.sort(0).values
    w: Tensor = (weights @ ordered).square() / centred.square().sum(0)
    return w.clamp(max=1)  # rounding may pass the bound of Cauchy and Schwarz


def _normalised(w: Tensor, n: int) -> Tensor:
    """Return z, which is standard normal if the samples are normal."""
    defect = torch.log1p(-w)
    logarithm = math.log(n)
    if n >= _LARGE_SAMPLE:
        mean = _polynomial(_LARGE_MEAN, logarithm)
        deviation = math.exp(_polynomial(_LARGE_LOG_DEVIATION, logarithm))
        return (defect - mean) / deviation
    mean = _polynomial(_SMALL_MEAN, n)
    deviation = math.exp(_polynomial(_SMALL_LOG_DEVIATION, n))
    # W below its lowest quantiles of small samples is beyond the transformation.
    argument = (_polynomial(_SMALL_SHIFT, n) - defect).clamp(min=0)
    return (-torch.log(argument) - mean) / deviation


def _mean_correlation(centred: Tensor, n: int) -> float:
    """Return the mean correlation of two R_j, from that of two variables."""
    p = centred.shape[1]
    if p == 1:
        return 0.0
    unit = centred / centred.norm(dim=0)
    c = (unit.T @ unit).clamp(-1, 1)
    nu = _polynomial(_CORRELATION_SCALE, math.log(n))
    slope = _CORRELATION_EXPONENT / nu
    estimated = c**_CORRELATION_POWER * (1 - slope * (1 - c) ** _CORRELATION_EXPONENT)
    return float((estimated.sum() - estimated.diagonal().sum()) / (p * (p - 1)))
