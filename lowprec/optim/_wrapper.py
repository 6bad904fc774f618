"""Optimizers that quantize what another optimizer does."""

from __future__ import annotations

import inspect
from abc import abstractmethod

from torch import Tensor
from torch.optim import Optimizer

from ._base import Group, refuse_sparse
from ._quantized import QuantizedMixin, check_gradients, check_levels
from ._stepping import AbstractSteppingOptimizer


class AbstractQuantizingOptimizer(QuantizedMixin, AbstractSteppingOptimizer):
    """A quantization around a base optimizer, whose groups it shares.

    The groups are the very dictionaries of the base, so that schedulers may be given
    either; the base's state is in ``state_dict`` under ``"base"``. Levels that differ
    between groups are given in the groups of the base: ``levels=None`` leaves the
    parameters of a group to the base alone. A step is refused where groups were added
    to the base alone, or loaded into it.
    """

    def __init__(self, base: Optimizer, defaults: Group) -> None:
        self._check_base(base)
        for group in base.param_groups:
            self._check_group({**defaults, **group})
            self._check_new({**defaults, **group})
        self.base = base
        super().__init__(base.param_groups, defaults)

    def _check_base(self, base: object) -> None:
        """Refuse what cannot be wrapped."""
        name, given = type(self).__name__, type(base).__name__
        if not isinstance(base, Optimizer):
            raise TypeError(f"{name} wraps a torch.optim.Optimizer, got {given}")
        if isinstance(base, QuantizedMixin):
            raise TypeError(
                f"{name} around {given} would quantize twice, by the same keys of the "
                "same groups: wrap a plain optimizer, as torch.optim.SGD"
            )
        closure = inspect.signature(type(base).step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise TypeError(
                f"{name} wraps optimizers that step along the gradients that are "
                f"there, but {given} needs a closure: use another, as torch.optim.SGD"
            )

    def __getstate__(self) -> Group:
        """Return what copies and pickles need, the base included."""
        return {**super().__getstate__(), "base": self.base}

    def add_param_group(self, param_group: Group) -> None:
        """Add a group here and to the base.

        Raises:
            TypeError: if a parameter with levels is not float32 or float64.
            ValueError: if a value is out of range.
        """
        if not any(param_group is group for group in self.base.param_groups):
            params = param_group["params"]
            params = [params] if isinstance(params, Tensor) else list(params)
            params = [p[1] if isinstance(p, tuple) else p for p in params]
            merged = {**self.defaults, **param_group, "params": params}
            self._check_group(merged)
            self._check_new(merged)
            self.base.add_param_group({**param_group, "params": params})
            param_group = self.base.param_groups[-1]
        super().add_param_group(param_group)

    def _check_new(self, group: Group) -> None:
        """Refuse what only a group that is added cannot have."""

    def _check_group(self, group: Group) -> None:
        """Refuse values that are out of range."""
        check_levels(group, group["params"])
        if group["levels"] is None:
            return
        if group.get("update") == "master" and group["param_format"] is not None:
            raise ValueError(
                "update='master' keeps weights that a quantization around it cannot "
                "reach: use 'fused', 'two_step' or 'kahan'"
            )

    def _kept(self, p: Tensor) -> Group:
        state: Group = self.base.state.get(p, {})
        return state

    def _check_shared(self) -> None:
        """Refuse groups that only the base has.

        Raises:
            RuntimeError: saying where to add and to load them.
        """
        if list(map(id, self.param_groups)) != list(map(id, self.base.param_groups)):
            name, base = type(self).__name__, type(self.base).__name__
            raise RuntimeError(
                f"the groups of {base} are no longer those of the {name} around it: "
                f"use add_param_group and load_state_dict of {name}, which change "
                "both; nothing was changed here"
            )

    def state_dict(self) -> Group:
        """Return the state of both optimizers.

        Raises:
            RuntimeError: if groups were added to the base, or loaded into it.
        """
        self._check_shared()
        return {**super().state_dict(), "base": self.base.state_dict()}

    def load_state_dict(self, state_dict: Group) -> None:
        """Restore both optimizers, or neither.

        Raises:
            RuntimeError: if groups were added to the base, or loaded into it.
            ValueError: if the state is not of a wrapped optimizer, or does not fit the
                groups; nothing has changed then.
        """
        self._check_shared()
        if "base" not in state_dict:
            raise ValueError(
                f"this is no state_dict of {type(self).__name__}, which has the base's "
                "under 'base': load it into the base"
            )
        own = {k: v for k, v in state_dict.items() if k != "base"}
        # Loading replaces both of an optimizer, so that the old ones stay whole.
        before = [(x, x.state, x.param_groups) for x in (self, self.base)]
        try:
            self.base.load_state_dict(state_dict["base"])
            super().load_state_dict(own)
        except Exception:
            for optimizer, state, groups in before:
                optimizer.state, optimizer.param_groups = state, groups
            raise
        for group in self.param_groups:  # an older checkpoint lacks newer keys
            for key, value in self.defaults.items():
                group.setdefault(key, value)
        # The dictionaries are shared, not the list, to which both append.
        self.base.param_groups = list(self.param_groups)

    def _check_ready(self) -> None:
        self._check_shared()

    def _step(self) -> None:
        for group in self.param_groups:
            self._check_group(group)
        for p, _ in self._pairs():
            refuse_sparse(p, self)
        check_gradients(self.param_groups)
        scales = self._pending_scales()
        self._step_and_quantize(scales)
        self._keep_scales(scales)

    @abstractmethod
    def _step_and_quantize(self, scales: dict[Tensor, Tensor]) -> None:
        """Step the base and quantize."""
