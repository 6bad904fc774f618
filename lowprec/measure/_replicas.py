"""Many independent runs of a stochastic gradient method, as rows of one matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..random import as_seed, philox_words, split_seed
from ._batched_gradient import SampleLoss, trace_gradient
from ._replica_methods import PURPOSES, Draw, ReplicaMethod, State

# Steps whose samples and seeds are drawn at once; part of what a seed means.
_BLOCK = 128
_PURPOSE_SPLIT = 0xFFFFFFFF  # of lowprec.random, for seeds derived from seeds

BatchedGradient = Callable[..., Tensor]


class ReplicaRunner:
    r"""Run M replicas of a stochastic gradient method side by side.

    In every step each replica draws one sample, uniformly and with replacement,
    independent of the others and of other steps, and takes the gradient of its loss:

    .. math::
        x^m_k = x^m_{k-1} - \alpha_k \nabla f_{i}(x^m_{k-1}), \qquad
        i = i(m, k) \text{ uniform}

    for plain SGD; `ReplicaMethod` has the others, and the roundings.

    Contract:
        Everything is a pure function of (seed, step, number of the replica), for one M:
        a run that is saved and resumed continues bit for bit. Updates are bit for bit
        those of the optimizer of the same name in `lowprec.optim`, applied to a
        parameter [M, d]. Time and memory grow linearly with M.

    Args:
        loss: of a parameter vector [d] and one sample, a scalar; `module_loss` makes
            one from a module.
        data: tensors whose first dimension counts the N samples.
        start: x_0, float64 or float32, [d] for all replicas, or [M, d].
        method: recursion, step sizes and roundings.
        replicas: M.
        seed: of samples and of stochastic roundings; None draws one from torch's
            default generator.
        gradient: function of ``x`` [M, d] and M samples that returns the gradients
            [M, d], instead of that derived from ``loss`` by ``torch.func``.

    Raises:
        TypeError: if ``start`` has no floating-point dtype.
        ValueError: if shapes do not fit, there are no samples or no replicas.

    Example:
        >>> from lowprec.schedules import PowerSchedule
        >>> samples = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        >>> runner = ReplicaRunner(
        ...     lambda x, s: (x - s).square().sum() / 2,
        ...     (samples,),
        ...     torch.zeros(1, dtype=torch.float64),
        ...     ReplicaMethod("vsgd", PowerSchedule(0.5, 0.5)),
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
        method: ReplicaMethod,
        *,
        replicas: int,
        seed: int | Tensor | None = None,
        gradient: BatchedGradient | None = None,
    ) -> None:
        """Put every replica at the start; nothing is drawn or computed."""
        self.method = method
        self.replicas = _checked_replicas(replicas)
        self._data = _checked_data(data)
        x = _checked_start(start, replicas)
        self._seed = as_seed(seed)
        self._sampling, self._rounding = split_seed(self._seed, 2)
        self._state = State.at_rest(x, method.variant)
        self._step = 0
        self._loss = loss
        self._gradient = gradient
        self._block: tuple[int, list[Draw]] = (-1, [])

    @property
    def x(self) -> Tensor:
        """The iterates x_k, [M, d]; a copy."""
        return self._state.x.clone()

    @property
    def velocity(self) -> Tensor:
        """The velocities v_k, [M, d], zero for methods without; a copy."""
        return self._state.v.clone()

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
            ValueError: if ``until`` is past, or replicas are not finite at the end.
        """
        if until < self._step:
            raise ValueError(
                f"step {until} is past: the replicas have made {self._step} steps; "
                "make a new runner to start again"
            )
        with torch.no_grad():
            gradient = self._gradient or self._traced()
            for k in range(self._step + 1, until + 1):
                self._state = self.method.update(
                    k, self._state, gradient, self._data, self._draw(k)
                )
                self._step = k
                advance()
        lost = int((~self._state.x.isfinite()).any(1).sum())
        if lost:
            raise ValueError(
                f"{lost} of {self.replicas} replicas are not finite after "
                f"{self._step} steps: use smaller step sizes"
            )

    def samples(self, k: int) -> Tensor:
        """Return the number of the sample that every replica draws in step k, [M]."""
        return self._draw(k).samples.clone()

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to continue bit for bit."""
        return {
            "step": self._step,
            "seed": self._seed.clone(),
            "method": str(self.method),
            "state": {name: t.clone() for name, t in vars(self._state).items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a run of the same problem, method and number of replicas.

        Args:
            state_dict: of `state_dict`.

        Raises:
            ValueError: if it is of another method, shape or dtype; nothing is changed.
        """
        if state_dict["method"] != str(self.method):
            raise ValueError(
                f"the state is of a run of {state_dict['method']}, this runner has "
                f"{self.method}: make a runner with the same method"
            )
        given = state_dict["state"]["x"]
        own = self._state.x
        if given.shape != own.shape or given.dtype != own.dtype:
            raise ValueError(
                f"the state has {tuple(given.shape)} values of {given.dtype}, this "
                f"runner {tuple(own.shape)} of {own.dtype}"
            )
        self._step = int(state_dict["step"])
        self._seed = state_dict["seed"].clone()
        self._sampling, self._rounding = split_seed(self._seed, 2)
        self._state = State(
            **{name: t.clone() for name, t in state_dict["state"].items()}
        )
        self._block = (-1, [])

    def _traced(self) -> BatchedGradient:
        """Trace the gradient on the first call, for samples of this shape."""
        first = torch.zeros(self.replicas, dtype=torch.int64)
        samples = tuple(one.index_select(0, first) for one in self._data)
        self._gradient = trace_gradient(self._loss, self._state.x, samples)
        return self._gradient

    def _draw(self, k: int) -> Draw:
        """Return the random numbers of step k, from 1."""
        block, place = divmod(k - 1, _BLOCK)
        if self._block[0] != block:
            self._block = (block, self._draws(block))
        return self._block[1][place]

    def _draws(self, block: int) -> list[Draw]:
        key = _derived(self._sampling, torch.tensor([block]))[0, 0]
        generator = torch.Generator().manual_seed(int(key))
        shape = (_BLOCK, self.replicas)
        samples = torch.randint(self._data[0].shape[0], shape, generator=generator)
        seeds: list[list[int] | None] = [None] * _BLOCK
        if self.method.stochastic:
            steps = torch.arange(block * _BLOCK + 1, (block + 1) * _BLOCK + 1)
            seeds = list(_derived(self._rounding, steps).tolist())
        return [Draw(*pair) for pair in zip(samples.unbind(), seeds, strict=True)]


def _derived(seed: Tensor, steps: Tensor) -> Tensor:
    """Return the seeds of some steps, [steps, purposes], as the optimizers do."""
    words = philox_words(
        torch.arange(2 * PURPOSES).expand(len(steps), -1),
        seed,
        step=steps.unsqueeze(-1),
        purpose=_PURPOSE_SPLIT,
    )
    return (words[:, 0::2] << 32) | words[:, 1::2]


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
    if not start.is_floating_point():
        raise TypeError(f"start must be float32 or float64, got {start.dtype}")
    x = start.detach()
    if x.dim() == 1:
        x = x.expand(replicas, -1)
    if x.dim() != 2 or x.shape[0] != replicas:
        raise ValueError(
            f"start must be one vector [d], or one per replica [{replicas}, d], "
            f"got shape {tuple(start.shape)}"
        )
    return x.clone()
