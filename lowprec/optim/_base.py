"""What the optimizers share: roundings in groups and seeds that can be resumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..random import draw_seed, philox_words
from ..rounding import Rounding, as_rounding
from ._exact import check_storage
from ._stepping import AbstractSteppingOptimizer
from ._update import Purpose, Seeds, check_update, step_size

Group = dict[str, Any]

# Reserved by lowprec.random for deriving seeds; no rounding uses it.
_PURPOSE_SPLIT = 0xFFFFFFFF
_STEPS = 2**32


def step_seeds(seed: int, step: int) -> Seeds:
    """Return the seeds of one step, in the order of `Purpose`.

    Seed j is words 2j and 2j + 1 of the Philox stream of ``seed`` with the step number
    in the third counter word.
    """
    index = torch.arange(2 * len(Purpose))
    words = philox_words(
        index, torch.tensor(seed), step=step % _STEPS, purpose=_PURPOSE_SPLIT
    )
    return tuple(((words[0::2] << 32) | words[1::2]).unbind())


def check_learning_rate(lr: float | Tensor) -> None:
    """Refuse what is no step size, with the texts of ``torch.optim``.

    Raises:
        ValueError: for negative or NaN values and tensors of several elements.
    """
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")


def refuse_sparse(p: Tensor, optimizer: object) -> None:
    """Refuse a gradient that is not strided.

    Raises:
        RuntimeError: saying how to get another.
    """
    if p.grad is not None and p.grad.layout != torch.strided:
        raise RuntimeError(
            f"{type(optimizer).__name__} does not support sparse gradients: use "
            "sparse=False in the layer, or p.grad.to_dense()"
        )


class Change(NamedTuple):
    """What a step does to one parameter, once all of them are known."""

    p: Tensor
    weights: Tensor
    state: dict[str, Tensor]


class AbstractRoundedOptimizer(AbstractSteppingOptimizer):
    """An optimizer that rounds what it stores.

    ``rounding_seed`` and ``rounding_step`` in the groups are the whole state of its
    randomness: a resumed run continues bit for bit. Parameters are numbered through
    all groups, so results do not depend on how weights are cut into parameters.
    """

    _roundings: ClassVar[tuple[str, ...]] = ("param_format",)

    def __init__(
        self, params: ParamsT, defaults: Group, generator: torch.Generator | None
    ) -> None:
        """Create the groups and, if something is stochastic, draw the seed."""
        self._generator = generator
        self._check_values(defaults)
        super().__init__(params, self._normalized(defaults))
        self._ensure_seed()

    def __setstate__(self, state: Group) -> None:
        """Restore the groups; keys that an older checkpoint lacks get defaults."""
        super().__setstate__(state)
        self.__dict__.setdefault("_generator", None)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            group.setdefault("rounding_seed", None)
            group.setdefault("rounding_step", 0)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; its roundings may be given by name.

        Args:
            param_group: ``{"params": ...}`` and what differs from the defaults.

        Raises:
            TypeError: if a format is given and a parameter is not float32 or float64.
            ValueError: if a value is out of range, or a format is unknown or does not
                fit a parameter's dtype.
        """
        if not isinstance(param_group, dict):
            super().add_param_group(param_group)  # torch has the error text
        group = {**self._normalized(param_group)}
        self._check_values({**self.defaults, **group})
        group.setdefault("rounding_seed", None)
        group.setdefault("rounding_step", 0)
        params = group["params"]
        group["params"] = [params] if isinstance(params, Tensor) else list(params)
        for key in self._roundings:
            rounding = group.get(key, self.defaults[key])
            for p in group["params"]:
                tensor = p[1] if isinstance(p, tuple) else p
                if isinstance(tensor, Tensor):
                    self._check_storage(key, rounding, tensor)
        super().add_param_group(group)

    def _commit(self, changes: list[Change], seeds: Seeds | None) -> None:
        """Do what has been computed, which used the seeds of this step."""
        for change in changes:
            change.p.copy_(change.weights)
            if change.state:
                self.state[change.p].update(change.state)
        self._advance(seeds)

    def _check_values(self, group: Group) -> None:
        """Refuse hyper-parameters that are out of range."""
        check_learning_rate(group["lr"])
        check_update(group["update"])

    def _check_storage(self, key: str, rounding: Rounding | None, p: Tensor) -> None:
        check_storage(rounding, p, key)

    def _normalized(self, group: Group) -> Group:
        changes: Group = {}
        for key in self._roundings:
            if group.get(key) is not None:
                changes[key] = as_rounding(group[key])
        return {**group, **changes}

    @property
    def effective_lr(self) -> list[float]:
        """Step size of each group as the update uses it.

        Rounded to ``param_format``, unless the weights that move are not in it.
        """
        return [step_size(group) for group in self.param_groups]

    def _validated(self, group: Group) -> Group:
        """Return the group with roundings as values; refuse what cannot be stepped."""
        group = self._normalized(group)
        self._check_values(group)
        for p in group["params"]:
            if p.grad is None:
                continue
            refuse_sparse(p, self)
            for key in self._roundings:
                self._check_storage(key, group[key], p)
        return group

    def _offsets(self) -> Iterator[tuple[Group, list[tuple[Tensor, int]]]]:
        """Yield each group, and its parameters with gradients and their offsets."""
        offset = 0
        for group in self.param_groups:
            members = []
            for p in group["params"]:
                if p.grad is not None:
                    members.append((p, offset))
                offset += p.numel()
            yield group, members

    def _stochastic(self) -> bool:
        return any(
            rounding is not None and as_rounding(rounding).stochastic
            for group in self.param_groups
            for rounding in (group[key] for key in self._roundings)
        )

    def _ensure_seed(self) -> None:
        if not self._stochastic():
            return
        seeds = [group["rounding_seed"] for group in self.param_groups]
        known = next((seed for seed in seeds if seed is not None), None)
        if known is None:
            known = int(draw_seed(self._generator))
        step = max(group["rounding_step"] for group in self.param_groups)
        for group in self.param_groups:
            group["rounding_seed"], group["rounding_step"] = known, step

    def _step_seeds(self) -> Seeds | None:
        """Return the seeds of the step to come, None if nothing is stochastic."""
        if not self._stochastic():
            return None
        self._ensure_seed()
        group = self.param_groups[0]
        return step_seeds(group["rounding_seed"], group["rounding_step"])

    def _advance(self, seeds: Seeds | None) -> None:
        if seeds is None:
            return
        for group in self.param_groups:
            group["rounding_step"] += 1
