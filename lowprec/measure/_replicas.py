"""Many independent runs of a stochastic gradient method, as rows of one matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..random import as_seed, split_seed
from ..rounding import RoundingLike
from ..schedules import Iteration
from ._batched_gradient import SampleLoss, trace_gradient
from ._replica_step import Formats, State, step_seeds, updated

# Steps whose samples and seeds are drawn at once; part of what a seed means.
_BLOCK = 128

BatchedGradient = Callable[..., Tensor]


class _Draw(NamedTuple):
    """The random numbers of one step: samples [M], seeds of roundings by purpose."""

    samples: Tensor
    seeds: list[int] | None


class ReplicaRunner:
    r"""Run M replicas of a stochastic gradient method side by side.

    In every step each replica draws one sample, uniformly and with replacement,
    independent of the others and of other steps, and takes the gradient of its loss
    for the F of `lowprec.schedules.Iteration`:

    .. math::
        v_k = \mathrm{fl}_v\bigl(\rho_k v_{k-1} - \alpha_k \hat g_k\bigr), \quad
        x_k = \mathrm{fl}_x\bigl(x_{k-1} + \gamma_k v_k\bigr), \quad
        \hat g_k = \mathrm{fl}_g\bigl(\nabla f_i(y_{k-1})\bigr), \quad
        y_k = \mathrm{fl}_x\bigl(x_k + c_{k+1} v_k\bigr)

    and :math:`x_k = \mathrm{fl}_x(x_{k-1} - \alpha_k \hat g_k)` without velocity.

    Contract:
        Everything is a pure function of (seed, step, number of the replica), for one M
        and one version of torch, whose generator draws the samples: a run that is saved
        and resumed continues bit for bit. The loss must be deterministic. Updates are
        those of `lowprec.optim.ScheduledSGD` with the same iteration, applied to one
        parameter [M, d], bit for bit. Time and memory grow linearly with M.

    Args:
        loss: of a parameter vector [d] and one sample, a scalar; `module_loss` makes
            one from a module, `lowprec.emulate` inside it computes in low precision.
        data: tensors whose first dimension counts the N samples.
        start: x_0, float64 or float32, [d] for all replicas, or [M, d].
        iteration: method and step sizes.
        replicas: M.
        gradient_format: rounding fl_g, which makes the errors r_k; None for none.
        param_format: rounding fl_x, which makes the errors s_k; ``start`` must be in
            the format.
        velocity_format: rounding fl_v.
        seed: of samples and of stochastic roundings; None draws one from torch's
            default generator.
        gradient: function of ``x`` [M, d] and M samples that returns the gradients
            [M, d], instead of that derived from ``loss`` by ``torch.func``.

    Raises:
        TypeError: if ``start`` is not float32 or float64, or there is no velocity for
            ``velocity_format``.
        ValueError: if shapes do not fit, there are no samples or no replicas, a format
            is unknown, or ``start`` not finite or not in it.
        NotImplementedError: for formats of x or v with more than 51 significant bits.

    Example:
        >>> from lowprec.schedules import Iteration, PowerSchedule
        >>> samples = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        >>> runner = ReplicaRunner(
        ...     lambda x, s: (x - s).square().sum() / 2,
        ...     (samples,),
        ...     torch.zeros(1, dtype=torch.float64),
        ...     Iteration("sgd", PowerSchedule(0.5, 0.5)),
        ...     replicas=2000,
        ...     seed=0,
        ... )
        >>> runner.run(400)
        >>> variance = runner.x.square().mean().item() / 0.025  # of alpha_400
        >>> 0.45 < variance < 0.58  # 1/2 for k to infinity
        True

    References:
        Li, Xiao and Yang, section 6.
    """

    def __init__(
        self,
        loss: SampleLoss,
        data: tuple[Tensor, ...],
        start: Tensor,
        iteration: Iteration,
        *,
        replicas: int,
        gradient_format: RoundingLike | None = None,
        param_format: RoundingLike | None = None,
        velocity_format: RoundingLike | None = None,
        seed: int | Tensor | None = None,
        gradient: BatchedGradient | None = None,
    ) -> None:
        """Put every replica at the start; nothing is computed."""
        self.iteration = iteration
        self.formats = Formats.of(gradient_format, param_format, velocity_format)
        self.replicas = _checked_replicas(replicas)
        self._data = _checked_data(data)
        x = _checked_start(start, replicas)
        self.formats.check(x, iteration)
        v = torch.zeros_like(x) if iteration.has_velocity else None
        self._state = State(x, v, x)
        self._step = 0
        self._seed = as_seed(seed)
        self._sampling, self._rounding = split_seed(self._seed, 2)
        self._loss = loss
        self._gradient = gradient
        self._block: tuple[int, list[_Draw]] = (-1, [])

    @property
    def x(self) -> Tensor:
        """The iterates x_k, [M, d]: the state itself, so clone it to change it.

        Later steps make a new tensor and leave this one as it is.
        """
        return self._state.x

    @property
    def velocity(self) -> Tensor | None:
        """The velocities v_k, [M, d], or None for a method without; likewise."""
        return self._state.v

    @property
    def rounding_seed(self) -> Tensor:
        """Seed of the stochastic roundings, ``rounding_seed`` of the optimizers."""
        return self._rounding

    @property
    def step(self) -> int:
        """Number of updates so far, k."""
        return self._step

    def run(self, until: int, advance: Callable[[], object] = lambda: None) -> None:
        """Update until so many steps have been made since the start.

        Args:
            until: number of the last step, at least `step`; nothing is done if it is.
            advance: called after every step, for progress bars.

        Raises:
            ValueError: if ``until`` is past, gradients have another shape than the
                replicas, or replicas are not finite at the end.
        """
        if until < self._step:
            raise ValueError(
                f"step {until} is past: the replicas have made {self._step} steps; "
                "make a new runner to start again"
            )
        with torch.no_grad():
            for k in range(self._step + 1, until + 1):
                self._update(k)
                advance()
        lost = int((~self.x.isfinite()).any(1).sum())
        if lost:
            raise ValueError(
                f"{lost} of {self.replicas} replicas are not finite after "
                f"{self._step} steps: use smaller step sizes"
            )

    def _update(self, k: int) -> None:
        draw = self._draw(k)
        samples = [one.index_select(0, draw.samples) for one in self._data]
        if self._gradient is None:
            self._gradient = trace_gradient(self._loss, self._state.y, tuple(samples))
        gradient = self._gradient(self._state.y, *samples)
        if gradient.shape != self.x.shape or gradient.dtype != self.x.dtype:
            raise ValueError(
                f"gradient must return {tuple(self.x.shape)} values of {self.x.dtype}, "
                f"got {tuple(gradient.shape)} of {gradient.dtype}"
            )
        now = following = self.iteration.coefficients(k)
        if self.iteration.looks_ahead:
            following = self.iteration.coefficients(k + 1)
        self._state = updated(
            self._state, gradient, now, following, self.formats, draw.seeds
        )
        self._step = k

    def samples(self, k: int) -> Tensor:
        """Return the number of the sample that every replica draws in step k, [M]."""
        return self._draw(k).samples.clone()

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to continue bit for bit."""
        return {
            "data": self._shapes(),
            "step": self._step,
            "seed": self._seed.clone(),
            "method": self._description(),
            **_copied(vars(self._state)),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a run of the same problem, method and number of replicas.

        Args:
            state_dict: of `state_dict`.

        Raises:
            ValueError: if it is incomplete, or of another method, or of other shapes or
                dtypes of data or replicas; nothing is changed.
        """
        missing = sorted(self.state_dict().keys() - state_dict.keys())
        if missing:
            raise ValueError(
                f"the state lacks {', '.join(missing)}: give what state_dict() returned"
            )
        if state_dict["method"] != self._description():
            raise ValueError(
                f"the state is of a run of {state_dict['method']}, this runner has "
                f"{self._description()}: make a runner with the same method"
            )
        if state_dict["data"] != self._shapes():
            raise ValueError(
                f"the state is of a run with data {state_dict['data']}, this runner "
                f"has {self._shapes()}: make a runner with the same data"
            )
        step = state_dict["step"]
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"the state's step must be a number >= 0, got {step!r}")
        now = {"seed": self._seed, **vars(self._state)}
        for name, mine in now.items():
            theirs = state_dict[name]
            if _shape(theirs) != _shape(mine):
                raise ValueError(
                    f"the state has {_shape(theirs)} for {name}, this runner "
                    f"{_shape(mine)}"
                )
        copied = _copied({name: state_dict[name] for name in now})
        seed = copied.pop("seed")
        self._sampling, self._rounding = split_seed(seed, 2)
        self._step, self._seed, self._state = step, seed, State(**copied)
        self._block = (-1, [])

    def _shapes(self) -> list[str]:
        """Return shapes and dtypes of the data, which must be the same to continue."""
        return [_shape(one) for one in self._data]

    def _description(self) -> str:
        """Return what must be the same to continue; functions have no name for it."""
        parts = (
            f"{name}=a function"
            if callable(value) and not is_dataclass(value)
            else f"{name}={value!r}"
            for name, value in {
                **vars(self.iteration),
                **{f"{name}_format": one for name, one in vars(self.formats).items()},
            }.items()
            if value is not None
        )
        return ", ".join(parts)

    def _draw(self, k: int) -> _Draw:
        """Return the random numbers of step k, from 1."""
        block, place = divmod(k - 1, _BLOCK)
        if self._block[0] != block:
            self._block = (block, self._draws(block))
        return self._block[1][place]

    def _draws(self, block: int) -> list[_Draw]:
        key = step_seeds(self._sampling, torch.tensor([block]))[0, 0]
        generator = torch.Generator().manual_seed(int(key))
        shape = (_BLOCK, self.replicas)
        samples = torch.randint(self._data[0].shape[0], shape, generator=generator)
        seeds: list[list[int] | None] = [None] * _BLOCK
        if self.formats.stochastic:
            steps = torch.arange(block * _BLOCK, (block + 1) * _BLOCK)
            seeds = list(step_seeds(self._rounding, steps).tolist())
        return [_Draw(*pair) for pair in zip(samples.unbind(), seeds, strict=True)]


def _shape(value: Any) -> str:
    """Return what a state's entry must have in common with that of a runner."""
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{tuple(value.shape)} values of {value.dtype}"


def _copied(tensors: dict[str, Tensor | None]) -> dict[str, Any]:
    return {name: None if t is None else t.clone() for name, t in tensors.items()}


def _checked_replicas(replicas: Any) -> int:
    if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1:
        raise ValueError(f"replicas must be a whole number >= 1, got {replicas!r}")
    return replicas


def _checked_data(data: Any) -> tuple[Tensor, ...]:
    tensors = tuple(data)
    sizes = {one.shape[0] if one.dim() else 0 for one in tensors}
    if len(sizes) != 1 or 0 in sizes:
        shapes = [tuple(one.shape) for one in tensors]
        raise ValueError(
            "data must be tensors whose first dimension counts the same N >= 1 "
            f"samples, got shapes {shapes}"
        )
    return tensors


def _checked_start(start: Tensor, replicas: int) -> Tensor:
    if start.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"start must be float32 or float64, got {start.dtype}")
    x = start.detach()
    if x.dim() == 1:
        x = x.expand(replicas, -1)
    if x.dim() != 2 or x.shape[0] != replicas:
        raise ValueError(
            f"start must be one vector [d], or one per replica [{replicas}, d], "
            f"got shape {tuple(start.shape)}"
        )
    if not bool(x.isfinite().all()):
        raise ValueError("start must be finite, got a value that is NaN or infinite")
    return x.clone()
