"""AMSGrad as SPARS-AMS uses it: eps inside the root, no bias correction."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..rounding import Rounding, RoundingLike
from ._adam import check_adam_values, in_dtype, next_first, next_second
from ._base import AbstractRoundedOptimizer, Change, Group
from ._exact import by_pieces
from ._update import (
    Seeds,
    Stored,
    UpdateLike,
    kept_name,
    step_size,
    store_master,
    store_update,
)

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class Member(NamedTuple):
    """A parameter with a gradient, and what its step needs."""

    p: Tensor
    group: Group
    state: dict[str, Tensor]
    offset: int

    def gradient(self) -> Tensor:
        """Return g with its sign and coupled weight decay, in the parameter's dtype."""
        gradient, group = cast(Tensor, self.p.grad), self.group
        if group["maximize"]:
            gradient = -gradient
        if group["weight_decay"] != 0 and not group["decoupled_weight_decay"]:
            gradient = gradient.add(self.moving()[0], alpha=group["weight_decay"])
        return gradient

    def moving(self) -> tuple[Tensor, Tensor | None]:
        """Return the weights that move, and what the last update kept."""
        name = kept_name(self.group)
        kept = None if name is None else self.state.get(name)
        return kept if name == "master" and kept is not None else self.p, kept


class Received(NamedTuple):
    """The gradient to step along, and further state that the step brings."""

    gradient: Tensor
    state: dict[str, Tensor]


def all_finite(members: list[Member]) -> bool:
    """Whether no gradient has a NaN or an infinity."""
    for member in members:
        gradient = member.p.grad
        # A finite sum, which takes one pass, has finite terms only.
        if gradient is None or bool(gradient.sum().isfinite()):
            continue
        if not bool(gradient.isfinite().all()):
            return False
    return True


class AbstractAMSGrad(AbstractRoundedOptimizer):
    """The step of AMSGrad along gradients that a subclass provides."""

    _nonfinite: ClassVar[tuple[str, ...]] = ("raise", "skip")
    _roundings: ClassVar[tuple[str, ...]] = (
        "param_format",
        "exp_avg_format",
        "exp_avg_sq_format",
    )

    def _check_values(self, group: Group) -> None:
        super()._check_values(group)
        check_adam_values(group)
        if group["nonfinite"] not in self._nonfinite:
            raise ValueError(
                f"nonfinite must be one of {self._nonfinite}, got "
                f"{group['nonfinite']!r}"
            )

    @abstractmethod
    def _received(self, members: list[Member]) -> list[Received] | None:
        """Return what to step along for each member, None to leave the step out."""

    def _step(self) -> None:
        groups = [self._validated(group) for group in self.param_groups]
        members = [
            Member(p, group, self.state.get(p, {}), offset)
            for group, (_, members) in zip(groups, self._offsets(), strict=True)
            for p, offset in members
            if p.numel()
        ]
        seeds = self._step_seeds()
        received = self._received(members)
        if received is None:
            return
        changes = [
            _change(member, one, seeds)
            for member, one in zip(members, received, strict=True)
        ]
        self._commit(changes, seeds)


class AMSGrad(AbstractAMSGrad):
    r"""AMSGrad without bias correction, with rounded parameters and moments.

    .. math::
        \begin{aligned}
        & g_t = \nabla f_t(w_{t-1}) \text{ (negated if maximize)}, \qquad
          g_t \leftarrow g_t + \lambda w_{t-1} \text{ unless decoupled} \\
        & m_t = \mathrm{fl}_m(\beta_1 m_{t-1} + (1 - \beta_1) g_t), \qquad
          v_t = \mathrm{fl}_v(\beta_2 v_{t-1} + (1 - \beta_2) g_t^2) \\
        & \hat v_t = \max(\hat v_{t-1}, v_t), \qquad
          u_t = m_t / \sqrt{\hat v_t + \epsilon} \\
        & w_t = \mathrm{fl}_w(w_{t-1} - \hat\eta \lambda w_{t-1} - \hat\eta u_t), \quad
          \hat\eta = \mathrm{fl}_w(\eta) \text{ to nearest even}
        \end{aligned}

    where the term with lambda is that of decoupled decay alone. The other ways to
    ``update`` are those of `Adam`; ``"kahan"`` is error feedback for the weights: what
    rounding dropped joins the next step.

    Contract:
        Each fl rounds the exact value of its argument once, as in `Adam`, given u,
        which is computed in float64 by three rounded operations. Lines without a format
        are computed in the parameter's dtype. The maximum is exact. NaN and infinity
        propagate, and stay in the moments, unless ``nonfinite`` says otherwise; with
        ``eps=0`` an entry without gradients becomes NaN. Compensations, master weights,
        seeds, checkpoints and failing steps as in `SGD`; a step holds its results
        beside the old state until all are known.

        The first step moves a weight by about (1 - beta_1) / sqrt(1 - beta_2) eta,
        which is 3.16 eta for the default betas; ``torch.optim.Adam`` moves it by eta.
        With eps = 0 the two agree if torch's step size is
        eta (1 - beta_1^t) / sqrt(1 - beta_2^t). In a format of p bits v moves down only
        if 1 - beta_2 exceeds about 2^-p.

    Args:
        params: parameters or groups, as in ``torch.optim``.
        lr: step size eta; see `rounded_step_size`.
        betas: beta_1 and beta_2.
        eps: epsilon, added under the root.
        weight_decay: lambda.
        maximize: whether to ascend.
        decoupled_weight_decay: whether lambda shrinks the weights instead of joining
            the gradient.
        param_format: rounding fl_w of the parameters; None leaves them in their dtype.
        exp_avg_format: rounding fl_m of the first moment; None likewise.
        exp_avg_sq_format: rounding fl_v of the second moment; None likewise.
        update: ``"fused"``, ``"two_step"``, ``"kahan"`` or ``"master"``.
        nonfinite: what a step does if a gradient of the group has a NaN or an infinity:
            ``"propagate"``; or change nothing in any group, and ``"raise"`` or
            ``"skip"``. Behind `lowprec.distributed.compression_hook`, which answers an
            overflow with NaN on all ranks, use ``"skip"`` or a gradient scaler.
        generator: source of the seed; None means torch's default generator.

    Raises:
        TypeError: if a format is given and a parameter is not float32 or float64.
        ValueError: if an argument is out of range or a format does not fit a dtype.
        NotImplementedError: for formats of more than 51 significant bits.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        >>> optimizer = AMSGrad([w], lr=0.25, betas=(0.5, 0.75), eps=0.75)
        >>> w.grad = torch.ones(1, dtype=torch.float64)
        >>> optimizer.step()  # moves by 0.25 * 0.5 / sqrt(0.25 + 0.75)
        >>> w.item()
        0.875

    References:
        Reddi, Kale and Kumar 2018; "Sparsified Distributed Adaptive Learning with Error
        Feedback", algorithm 1.
    """

    _nonfinite: ClassVar[tuple[str, ...]] = ("propagate", "raise", "skip")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        param_format: RoundingLike | torch.dtype | None = None,
        exp_avg_format: RoundingLike | torch.dtype | None = None,
        exp_avg_sq_format: RoundingLike | torch.dtype | None = None,
        update: UpdateLike = "fused",
        nonfinite: Literal["propagate", "raise", "skip"] = "propagate",
        generator: torch.Generator | None = None,
    ) -> None:
        """Check the arguments as ``torch.optim.Adam`` does."""
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
            "param_format": param_format,
            "exp_avg_format": exp_avg_format,
            "exp_avg_sq_format": exp_avg_sq_format,
            "update": update,
            "nonfinite": nonfinite,
        }
        super().__init__(params, defaults, generator)

    def _received(self, members: list[Member]) -> list[Received] | None:
        for member in members:
            answer = member.group["nonfinite"]
            if answer == "propagate" or all_finite([member]):
                continue
            if answer == "skip":
                return None
            raise ValueError(
                "a gradient has a NaN or an infinity, which would stay in the moments: "
                "nothing was changed; nonfinite='skip' leaves such steps out"
            )
        return [Received(member.gradient(), {}) for member in members]


def _change(member: Member, received: Received, seeds: Seeds | None) -> Change:
    p, group, state, offset = member
    gradient = received.gradient
    moments = {name: state[name] for name in _MOMENTS if name in state}
    if not moments:
        moments = {name: torch.zeros_like(p) for name in _MOMENTS}
    first, second, largest = moments.values()
    step = state["step"] + 1 if "step" in state else torch.tensor(1.0)
    first = next_first(first, gradient, group, seeds, offset)
    second = next_second(second, gradient, group, seeds, offset)
    largest = torch.maximum(largest, second)
    changed = {
        "step": step,
        "exp_avg": first,
        "exp_avg_sq": second,
        "max_exp_avg_sq": largest,
        **received.state,
    }
    stored = _store(member, first, largest, seeds)
    name = kept_name(group)
    if name is not None:
        changed[name] = cast(Tensor, stored.kept)
    return Change(p, stored.weights, changed)


def _store(
    member: Member, first: Tensor, largest: Tensor, seeds: Seeds | None
) -> Stored:
    p, group, _, offset = member
    moving, kept = member.moving()
    rounding: Rounding | None = group["param_format"]
    decay = group["weight_decay"] if group["decoupled_weight_decay"] else 0
    if rounding is None or group["update"] == "master":
        lr, eps = group["lr"], group["eps"]

        def moved(w: Tensor, first: Tensor, largest: Tensor, _: int) -> Tensor:
            w = w.mul(1 - lr * decay) if decay != 0 else w
            return w.addcdiv(first, largest.add(eps).sqrt_(), value=-lr)

        weights = by_pieces(moved, [moving, first, largest], offset)
        if rounding is None:
            return Stored(weights)
        return store_master(weights, rounding, seeds, offset)
    eta = step_size(group)
    shrink = in_dtype(eta * float(decay), p.dtype) if decay != 0 else 0.0
    return store_update(
        p,
        kept,
        amsgrad_direction(first, largest, group["eps"]),
        eta,
        rounding,
        update=group["update"],
        shrink=shrink,
        seeds=seeds,
        offset=offset,
    )


def amsgrad_direction(first: Tensor, largest: Tensor, eps: float) -> Tensor:
    """Return u of `AMSGrad`, in float64.

    Args:
        first: m.
        largest: the largest second moment so far.
        eps: epsilon.

    Returns:
        float64 tensor.
    """
    root = (largest.to(torch.float64) + eps).sqrt_()
    return first.to(torch.float64) / root
