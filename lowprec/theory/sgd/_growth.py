"""Hoelder growth f - f* <= L dist(w, W*)^p: measuring it and fitting L and p."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._inputs import Real, nonnegative, plain, positive, shown

_FEWEST_STARTS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class GrowthModulus:
    """The modulus omega(rho) = sup over ||w - w*|| <= rho of f(w) - f*.

    Args:
        rho: radii, shape [m].
        omega: the largest f(w) - f* found at each radius, shape [m].
        f_star: f(w*).

    Example:
        >>> print(GrowthModulus(rho=torch.tensor([1.0, 2.0]),
        ...                     omega=torch.tensor([0.5, 2.0]), f_star=0.0))
        omega = 0.5 ... 2 at 2 radii rho = 1 ... 2
    """

    rho: Tensor
    omega: Tensor
    f_star: float

    def __str__(self) -> str:
        """Return the ranges in one line."""
        return (
            f"omega = {shown(self.omega)} at {self.rho.numel()} radii "
            f"rho = {shown(self.rho)}"
        )


@dataclass(frozen=True, kw_only=True)
class HolderFit:
    """Order and constant with omega(rho) <= L rho^p at every radius of the fit.

    Args:
        L: constant.
        p: order.
        rho_min: smallest radius of the fit.
        rho_max: largest radius of the fit.
        largest_ratio: max of L rho^p/omega(rho), at least 1: the price of a power law.

    Example:
        >>> print(HolderFit(L=0.5, p=2.0, rho_min=1.0, rho_max=2.0, largest_ratio=1.0))
        f - f* <= 0.5 rho^2 for 1 <= rho <= 2, at most 1 times omega
    """

    L: float
    p: float
    rho_min: float
    rho_max: float
    largest_ratio: float

    def __str__(self) -> str:
        """Return the growth condition in one line."""
        return (
            f"f - f* <= {self.L:.6g} rho^{self.p:.6g} for {self.rho_min:.6g} <= rho "
            f"<= {self.rho_max:.6g}, at most {self.largest_ratio:.4g} times omega"
        )


def default_radii() -> Tensor:
    """Return the default radii 2^-7, 2^-6.5, ..., 2^4.5.

    Returns:
        Half octaves, shape [24], float64.

    Example:
        >>> default_radii()[::8]
        tensor([0.0078, 0.1250, 2.0000], dtype=torch.float64)
    """
    return torch.exp2(torch.arange(-14, 10, dtype=torch.float64) / 2)


def growth_modulus(
    f: Callable[[Tensor], Any],
    grad: Callable[[Tensor], Tensor] | None,
    w_star: Tensor,
    rho: Any = None,
    *,
    f_star: float | None = None,
    starts: int = 16,
    iterations: int = 200,
    generator: torch.Generator | None = None,
) -> GrowthModulus:
    r"""Return the growth modulus of f around a minimiser.

    .. math::
        \omega(\rho) = \sup_{\|v\| \le 1} f(w^* + \rho v) - f^*

    by the iteration v <- g/||g||, g = grad f(w* + rho v), from random directions,
    from +-w* and from the best directions of the neighbouring radii. Every bound
    f* + L Gamma^p of this module may be replaced by f* + omega(Gamma).

    Contract:
        For convex f each iteration maximises the linearisation over the ball, so that
        f never decreases. What is returned is the largest value met, hence a lower
        estimate of omega for every f. Local maxima are common: on softmax regression
        with 30 weights, 16 starts can still miss omega by one per cent. A direction
        stops when it no longer gains, and f is never evaluated outside the ball.
        Reproducible for a given ``generator``.

    Args:
        f: objective, from a tensor of the shape of ``w_star`` to a number.
        grad: its gradient, from such a tensor to such a tensor; None to use autograd.
        w_star: a minimiser, any shape; used in float64.
        rho: radii, positive, one or shape [m]; None for `default_radii`.
        f_star: f(w*); None to evaluate it.
        starts: number of random directions, 4 or more.
        iterations: largest number of iterations from one start.
        generator: source of the random directions; None for torch's default.

    Returns:
        Radii and moduli, float64 on the device of ``w_star``.

    Raises:
        ValueError: if a radius is not positive, ``starts`` < 4 or ``iterations`` < 1.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> w = torch.zeros(3, dtype=torch.float64)
        >>> a = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
        >>> found = growth_modulus(lambda w: (a * w * w).sum() / 2, lambda w: a * w, w,
        ...                        [0.5, 1.0], generator=g)
        >>> found.omega
        tensor([0.5000, 2.0000], dtype=torch.float64)

    References:
        Cacciola et al., Figure 4, fits L and p by hand; the iteration is the power
        method for convex maximisation (Journee et al., JMLR 11, 2010).
    """
    if starts < _FEWEST_STARTS:
        raise ValueError(
            f"starts must be {_FEWEST_STARTS} or more, got {starts}: fewer random "
            "directions can miss the largest growth"
        )
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more, got {iterations}")
    centre = w_star.detach().to(torch.float64)
    radii = positive("rho", default_radii() if rho is None else rho).reshape(-1)
    lowest = float(f(centre)) if f_star is None else float(f_star)
    gradient = _autograd(f) if grad is None else grad
    shape = (starts, *centre.shape)
    directions = torch.randn(shape, dtype=torch.float64, generator=generator)
    seeds = [*directions.to(centre.device), centre, -centre]
    seeds = [seed for seed in seeds if seed.norm() > 0]
    ascending = torch.argsort(radii).tolist()
    best: dict[int, tuple[float, Tensor]] = {}
    # Up with all seeds, then down: each sweep also starts from its neighbour's best.
    for sweep, starting in ((ascending, seeds), (ascending[::-1], [])):
        neighbour: list[Tensor] = []
        for index in sweep:
            climbs = [
                _climb(f, gradient, centre, radii[index].item(), seed, iterations)
                for seed in [*starting, *neighbour]
            ]
            known = [best[index]] if index in best else []
            best[index] = max([*known, *climbs], key=lambda climb: climb[0])
            neighbour = [best[index][1]]
    found = [max(best[index][0] - lowest, 0.0) for index in range(len(radii))]
    omega = torch.tensor(found, dtype=torch.float64, device=radii.device)
    return GrowthModulus(rho=radii, omega=omega, f_star=lowest)


def holder_constant(rho: Any, omega: Any, p: Real) -> Real:
    r"""Return the smallest constant for a given order.

    .. math::
        L = \max_j \omega(\rho_j) / \rho_j^p .

    Contract:
        The envelope L rho^p >= omega(rho) holds at the given radii only.

    Args:
        rho: radii, positive, shape [m].
        omega: moduli, nonnegative, shape [m].
        p: order, positive.

    Returns:
        L; a float, or a float64 tensor of the shape of ``p``.

    Raises:
        ValueError: if the shapes differ or an entry is out of range.

    Example:
        >>> holder_constant([1.0, 2.0, 4.0], [1.0, 3.0, 8.0], 2.0)
        1.0

    References:
        Cacciola et al., Figure 4 (manual fit).
    """
    radii, moduli = _samples(rho, omega)
    ratios = moduli / torch.pow(radii, positive("p", p)[..., None])
    value: Real = plain(ratios.amax(dim=-1), p)
    return value


def holder_fit(
    rho: Any, omega: Any, *, max_order: float = 2.0, min_order: float = 1e-3
) -> HolderFit:
    r"""Return the order and constant whose power law lies closest above omega.

    .. math::
        \min_{\log L,\,p} \sum_j (\log L + p \log \rho_j - \log \omega_j)
        \quad\text{s.t.}\quad \log L + p \log \rho_j \ge \log \omega_j,

    a linear program in (log L, p), solved by SciPy's HiGHS.

    Contract:
        The constant is recomputed from the order, so that the envelope holds exactly
        at the given radii. Radii with omega = 0 constrain nothing and are left out.
        The result depends on the radii: give those at which bounds are needed.

    Args:
        rho: radii, positive, shape [m] with m >= 2 where omega > 0.
        omega: moduli, nonnegative and finite, shape [m].
        max_order: largest order allowed; 2 for smooth f.
        min_order: smallest order allowed, positive.

    Returns:
        The fit.

    Raises:
        ValueError: if the shapes differ, an entry is out of range, the orders are not
            0 < min_order <= max_order, or fewer than two radii have omega > 0.

    Example:
        >>> print(holder_fit([0.25, 1.0, 4.0], [0.5, 1.0, 2.0]))
        f - f* <= 1 rho^0.5 for 0.25 <= rho <= 4, at most 1 times omega

    References:
        Cacciola et al., Definition 3.3 and Figure 4.
    """
    from scipy.optimize import linprog

    if not 0 < min_order <= max_order:
        raise ValueError(
            "orders must satisfy 0 < min_order <= max_order, got "
            f"min_order = {min_order!r}, max_order = {max_order!r}"
        )
    radii, moduli = _samples(rho, omega)
    used = moduli > 0
    if int(used.sum()) < 2:
        raise ValueError(
            "two or more radii must have omega > 0 to fit an order; use "
            "holder_constant with a given order"
        )
    log_rho, log_omega = torch.log(radii[used]), torch.log(moduli[used])
    ones = torch.ones_like(log_rho)
    solution = linprog(
        [float(log_rho.numel()), log_rho.sum().item()],
        A_ub=-torch.stack([ones, log_rho], dim=1).numpy(),
        b_ub=-log_omega.numpy(),
        bounds=[(None, None), (min_order, max_order)],
        method="highs",
    )
    if not solution.success:
        raise ValueError(f"the linear program has no solution: {solution.message}")
    order = float(solution.x[1])
    constant = float(holder_constant(radii, moduli, order))
    envelope = constant * torch.pow(radii[used], order)
    return HolderFit(
        L=constant,
        p=order,
        rho_min=radii.min().item(),
        rho_max=radii.max().item(),
        largest_ratio=(envelope / moduli[used]).max().item(),
    )


def _climb(
    f: Callable[[Tensor], Any],
    grad: Callable[[Tensor], Tensor],
    centre: Tensor,
    radius: float,
    start: Tensor,
    iterations: int,
) -> tuple[float, Tensor]:
    direction = start / start.norm()
    value = float(f(centre + radius * direction))
    for _ in range(iterations):
        slope = grad(centre + radius * direction)
        length = slope.norm()
        if not 0 < length < torch.inf:
            break
        candidate = slope / length
        reached = float(f(centre + radius * candidate))
        if not reached > value:
            break
        value, direction = reached, candidate
    return value, direction


def _autograd(f: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    def gradient(w: Tensor) -> Tensor:
        point = w.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(f(point), point)
        return slope

    return gradient


def _samples(rho: Any, omega: Any) -> tuple[Tensor, Tensor]:
    radii, moduli = positive("rho", rho), nonnegative("omega", omega)
    if radii.ndim != 1 or radii.shape != moduli.shape or radii.numel() == 0:
        raise ValueError(
            "rho and omega must be vectors of the same length, got shapes "
            f"{tuple(radii.shape)} and {tuple(moduli.shape)}"
        )
    if bool(torch.isinf(moduli).any()):
        raise ValueError("omega must be finite: leave out radii where f is infinite")
    return radii.cpu(), moduli.cpu()
