"""Adam and AdamW whose parameters and moments are stored in formats."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..kernels.exact import two_product
from ..rounding import Rounding, RoundingLike
from ._base import AbstractRoundedOptimizer, Change, Group
from ._exact import by_pieces, round_sum, scaled
from ._update import (
    Purpose,
    Seeds,
    Stored,
    UpdateLike,
    kept_name,
    step_size,
    store_master,
    store_update,
)

_FLOAT64_LARGEST = torch.finfo(torch.float64).max
# Squares below have an error that float64 may not hold.
_SMALLEST_SQUARE = 2.0**-900
# Dekker's splitting of a larger number overflows.
_LARGEST_SPLIT = 2.0**511


class Adam(AbstractRoundedOptimizer):
    r"""Adam with rounded parameters and moments.

    .. math::
        \begin{aligned}
        & g_t = \nabla f_t(w_{t-1}) \text{ (negated if maximize)}, \qquad
          g_t \leftarrow g_t + \lambda w_{t-1} \text{ unless decoupled} \\
        & m_t = \mathrm{fl}_m(\beta_1 m_{t-1} + (1 - \beta_1) g_t), \qquad
          v_t = \mathrm{fl}_v(\beta_2 v_{t-1} + (1 - \beta_2) g_t^2) \\
        & \bar v_t = \max(\bar v_{t-1}, v_t) \text{ if amsgrad, else } v_t \\
        & u_t = \frac{m_t / (1 - \beta_1^t)}
                     {\sqrt{\bar v_t} / \sqrt{1 - \beta_2^t} + \epsilon} \\
        & w_t = \mathrm{fl}_w(w_{t-1} - \hat\eta \lambda w_{t-1} - \hat\eta u_t), \quad
          \hat\eta = \mathrm{fl}_w(\eta) \text{ to nearest even}
        \end{aligned}

    where the term with lambda is that of decoupled decay alone. The other ways to
    ``update`` are
    two_step: fl_w(fl_w(w - eta lambda w) - fl_w(eta u));
    kahan: y = fl_w(-eta lambda w - eta u - c), w' = fl_w(w + y),
    c' = fl_w(fl_w(w' - w) - y);
    master: w' = fl_w(W'), where W' is torch's own update of weights W in the
    parameter's dtype, by the unrounded eta.

    Contract:
        Each fl rounds the exact value of its argument once, for formats of up to 51
        significant bits, given u, which is computed in float64 by five rounded
        operations from bias corrections that are Python floats, as in torch. beta_1,
        beta_2, 1 - beta_1, 1 - beta_2 and eta lambda mean their values in the dtype of
        the parameter, as in torch. Squares of float64 gradients are exact from 2^-900
        to 2^1022. Lines without a format are computed in that dtype by torch's own
        operations, so that with all formats None every bit is that of
        ``torch.optim.Adam(foreach=False)``. The maximum is exact. Parameters are
        rounded when they are first updated, not before. NaN and infinity propagate.
        Compensations, master weights, seeds, checkpoints and failing steps as in
        `SGD`; a step holds its results beside the old state until all are known.

        In a format of p bits v moves down only if 1 - beta_2 exceeds about 2^-p: with
        bfloat16 and beta_2 = 0.999 round it stochastically.

    Args:
        params: parameters or groups, as in ``torch.optim``.
        lr: step size eta; see `rounded_step_size`.
        betas: beta_1 and beta_2.
        eps: epsilon, added to the root.
        weight_decay: lambda.
        amsgrad: whether to divide by the largest second moment so far.
        maximize: whether to ascend.
        decoupled_weight_decay: whether lambda shrinks the weights, as in `AdamW`,
            instead of joining the gradient.
        param_format: rounding fl_w of the parameters; None leaves them in their dtype.
        exp_avg_format: rounding fl_m of the first moment; None likewise.
        exp_avg_sq_format: rounding fl_v of the second moment; None likewise.
        update: ``"fused"``, ``"two_step"``, ``"kahan"`` or ``"master"``.
        generator: source of the seed; None means torch's default generator.

    Raises:
        TypeError: if a format is given and a parameter is not float32 or float64.
        ValueError: if an argument is out of range or a format does not fit a dtype.
        NotImplementedError: for formats of more than 51 significant bits.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.5]))
        >>> optimizer = Adam([w], lr=2**-9, param_format="bfloat16", update="kahan")
        >>> for _ in range(4):
        ...     w.grad = torch.ones(1)
        ...     optimizer.step()
        >>> w.item()  # four steps, each less than half a unit in the last place
        1.4921875

    References:
        Kingma and Ba 2015; Loshchilov and Hutter 2019 (decoupled decay); Reddi et al.
        2018 (amsgrad); Zamirai et al. 2020, Revisiting BFloat16 training (kahan);
        ``torch.optim.Adam``.
    """

    _roundings = ("param_format", "exp_avg_format", "exp_avg_sq_format")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        param_format: RoundingLike | torch.dtype | None = None,
        exp_avg_format: RoundingLike | torch.dtype | None = None,
        exp_avg_sq_format: RoundingLike | torch.dtype | None = None,
        update: UpdateLike = "fused",
        generator: torch.Generator | None = None,
    ) -> None:
        """Check the arguments as ``torch.optim.Adam`` does."""
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
            "param_format": param_format,
            "exp_avg_format": exp_avg_format,
            "exp_avg_sq_format": exp_avg_sq_format,
            "update": update,
        }
        super().__init__(params, defaults, generator)

    def _check_values(self, group: Group) -> None:
        super()._check_values(group)
        check_adam_values(group)

    def _step(self) -> None:
        groups = [self._validated(group) for group in self.param_groups]
        seeds = self._step_seeds()
        changes = [
            _change(p, self.state.get(p, {}), group, seeds, offset)
            for group, (_, members) in zip(groups, self._offsets(), strict=True)
            for p, offset in members
        ]
        self._commit(changes, seeds)


class AdamW(Adam):
    """`Adam` with decoupled weight decay, by default 0.01, as ``torch.optim.AdamW``.

    Contract:
        As `Adam` with ``decoupled_weight_decay=True``, also for checkpoints of Adam.

    Args:
        params: parameters or groups, as in ``torch.optim``.
        lr: step size eta.
        betas: beta_1 and beta_2.
        eps: epsilon, added to the root.
        weight_decay: lambda.
        amsgrad: whether to divide by the largest second moment so far.
        maximize: whether to ascend.
        param_format: rounding of the parameters.
        exp_avg_format: rounding of the first moment.
        exp_avg_sq_format: rounding of the second moment.
        update: ``"fused"``, ``"two_step"``, ``"kahan"`` or ``"master"``.
        generator: source of the seed; None means torch's default generator.

    Raises:
        TypeError: as `Adam`.
        ValueError: as `Adam`.
        NotImplementedError: as `Adam`.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = AdamW([w], lr=0.5, weight_decay=0.25, param_format="bfloat16")
        >>> w.grad = torch.zeros(1)
        >>> optimizer.step()
        >>> w.item()
        0.875

    References:
        Loshchilov and Hutter 2019.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        param_format: RoundingLike | torch.dtype | None = None,
        exp_avg_format: RoundingLike | torch.dtype | None = None,
        exp_avg_sq_format: RoundingLike | torch.dtype | None = None,
        update: UpdateLike = "fused",
        generator: torch.Generator | None = None,
    ) -> None:
        """Check the arguments as ``torch.optim.AdamW`` does."""
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
            param_format=param_format,
            exp_avg_format=exp_avg_format,
            exp_avg_sq_format=exp_avg_sq_format,
            update=update,
            generator=generator,
        )

    def __setstate__(self, state: Group) -> None:
        """Restore the groups; the decay stays decoupled, whoever wrote them."""
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True


def check_adam_values(group: Group) -> None:
    """Refuse values out of range, with the texts of ``torch.optim.Adam``.

    Raises:
        ValueError: for negative ``eps`` or ``weight_decay``, or a beta outside [0, 1).
    """
    if not group["eps"] >= 0.0:
        raise ValueError(f"Invalid epsilon value: {group['eps']}")
    for index, beta in enumerate(group["betas"]):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
    if not group["weight_decay"] >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {group['weight_decay']}")


class _Moments(NamedTuple):
    """What a direction is made of; ``second`` is the largest so far for amsgrad."""

    first: Tensor
    second: Tensor
    step: float


def _change(
    p: Tensor,
    state: dict[str, Tensor],
    group: Group,
    seeds: Seeds | None,
    offset: int,
) -> Change:
    name = kept_name(group)
    kept = None if name is None else state.get(name)
    moving = kept if name == "master" and kept is not None else p
    gradient = cast(Tensor, p.grad)
    if group["maximize"]:
        gradient = -gradient
    if group["weight_decay"] != 0 and not group["decoupled_weight_decay"]:
        gradient = gradient.add(moving, alpha=group["weight_decay"])
    zeros = torch.zeros_like(p, memory_format=torch.preserve_format)
    step = state["step"] + 1 if "step" in state else torch.tensor(1.0)
    first = next_first(state.get("exp_avg", zeros), gradient, group, seeds, offset)
    second = next_second(state.get("exp_avg_sq", zeros), gradient, group, seeds, offset)
    changed = {"step": step, "exp_avg": first, "exp_avg_sq": second}
    if group["amsgrad"]:
        second = torch.maximum(state.get("max_exp_avg_sq", zeros), second)
        changed["max_exp_avg_sq"] = second
    moments = _Moments(first, second, step.item())
    stored = _store(p, moving, kept, moments, group, seeds, offset)
    if name is not None:
        changed[name] = cast(Tensor, stored.kept)
    return Change(p, stored.weights, changed)


def next_first(
    known: Tensor, gradient: Tensor, group: Group, seeds: Seeds | None, offset: int
) -> Tensor:
    """Return fl_m of the next first moment; torch's own without a format."""
    beta: float = group["betas"][0]
    rounding: Rounding | None = group["exp_avg_format"]
    if rounding is None:
        return known.lerp(gradient, 1 - beta)
    dtype, seed = known.dtype, None if seeds is None else seeds[Purpose.MOMENTUM]
    kept, new = in_dtype(beta, dtype), in_dtype(1 - beta, dtype)

    def averaged(known: Tensor, gradient: Tensor, offset: int) -> Tensor:
        terms = [scaled(kept, known, rounding), scaled(new, gradient, rounding)]
        return round_sum(terms, rounding, dtype, seed, offset)

    return by_pieces(averaged, [known, gradient], offset)


def next_second(
    known: Tensor, gradient: Tensor, group: Group, seeds: Seeds | None, offset: int
) -> Tensor:
    """Return fl_v of the next second moment; torch's own without a format."""
    beta: float = group["betas"][1]
    rounding: Rounding | None = group["exp_avg_sq_format"]
    if rounding is None:
        return known.mul(beta).addcmul_(gradient, gradient, value=1 - beta)
    dtype, seed = known.dtype, None if seeds is None else seeds[Purpose.SECOND_MOMENT]
    kept, new = in_dtype(beta, dtype), in_dtype(1 - beta, dtype)

    def averaged(known: Tensor, gradient: Tensor, offset: int) -> Tensor:
        terms = [scaled(kept, known, rounding)]
        terms += [scaled(new, part, rounding) for part in _square(gradient)]
        return round_sum(terms, rounding, dtype, seed, offset)

    return by_pieces(averaged, [known, gradient], offset)


def in_dtype(value: float, dtype: torch.dtype) -> float:
    """Return the factor that torch would use."""
    return torch.tensor(value, dtype=dtype).item()


def _square(x: Tensor) -> list[Tensor]:
    """Return float64 tensors whose sum is x^2, exactly while it is in range.

    A smaller square becomes one that no format of float64 carriers tells apart; a
    larger one becomes the largest float64.
    """
    if x.dtype == torch.float32:
        return [x.to(torch.float64).square()]
    head, error = two_product(x, x)
    tiny = (head < _SMALLEST_SQUARE) & (x != 0)
    huge = x.abs() > _LARGEST_SPLIT
    head = torch.where(tiny, _SMALLEST_SQUARE, head)
    head = torch.where(huge & x.isfinite(), _FLOAT64_LARGEST, head)
    return [head, torch.where(tiny | huge | x.isnan(), 0.0, error)]


def _store(
    p: Tensor,
    moving: Tensor,  # the parameter, or the master weights in its place
    kept: Tensor | None,
    moments: _Moments,
    group: Group,
    seeds: Seeds | None,
    offset: int,
) -> Stored:
    rounding: Rounding | None = group["param_format"]
    if rounding is None:
        return Stored(_carrier_update(moving, moments, group))
    if group["update"] == "master":
        master = _carrier_update(moving, moments, group)
        return store_master(master, rounding, seeds, offset)
    eta = step_size(group)
    shrink = 0.0
    if group["decoupled_weight_decay"]:
        shrink = in_dtype(eta * float(group["weight_decay"]), p.dtype)
    return store_update(
        p,
        kept,
        adam_direction(moments.first, moments.second, moments.step, group),
        eta,
        rounding,
        update=group["update"],
        shrink=shrink,
        seeds=seeds,
        offset=offset,
    )


def _carrier_update(w: Tensor, moments: _Moments, group: Group) -> Tensor:
    """Return what ``torch.optim.Adam`` makes of w, operation by operation."""
    lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
    if decay != 0 and group["decoupled_weight_decay"]:
        w = w.mul(1 - lr * decay)
    step_size = lr / (1 - beta1**moments.step)
    root = (1 - beta2**moments.step) ** 0.5
    denominator = (moments.second.sqrt() / root).add_(group["eps"])
    return w.addcdiv(moments.first, denominator, value=-step_size)


def adam_direction(first: Tensor, second: Tensor, step: float, group: Group) -> Tensor:
    """Return u of `Adam`, in float64.

    Args:
        first: m.
        second: v, or its largest value so far.
        step: t, from 1.
        group: has ``betas`` and ``eps``.

    Returns:
        float64 tensor.
    """
    beta1, beta2 = group["betas"]
    denominator = second.to(torch.float64).sqrt()
    denominator.div_((1 - beta2**step) ** 0.5).add_(group["eps"])
    return first.to(torch.float64).div(1 - beta1**step).div_(denominator)
