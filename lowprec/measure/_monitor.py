"""RoundoffMonitor: r_k and s_k of any model and optimizer, beside the training run."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import nn
from ..precision import Policy, Precision
from ._attribution import Attribution
from ._configuration import describe
from ._layers import LayerMonitor
from ._ledger import Ledger
from ._norms import norm, ratio
from ._reference import (
    Closure,
    ReferenceModel,
    check_optimizer,
    dense,
    effective_steps,
    exact_step,
    random_state,
    random_state_kept,
    set_random_state,
    without_emulation,
)
from ._report import write_report

_Vector: TypeAlias = dict[str, Tensor]


class RoundoffMonitor:
    r"""Measure the rounding errors of training steps without changing them.

    .. math::
        w_{k+1} = w_k - \eta_k (g_k + r_k) + s_k, \qquad r_k = \hat g_k - g_k, \quad
        s_k = w_{k+1} - \mathrm{step}(w_k, \hat g_k)

    The exact gradient g_k comes from a copy of the model in the reference dtype, at
    the same iterate, mini-batch and dropout mask, without emulation. step is one step
    of the same optimizer class in float64, from the same state, with every
    ``*_format`` None and the step size that is really used, so that s_k holds the
    errors of momentum arithmetic, step-size product, subtraction and storage.

    Contract:
        The run is the same bit for bit with and without a monitor: parameters,
        gradients, buffers, optimizer state and random generators are only read, or
        restored. Dropout masks agree for random layers that are modules of their own
        (``torch.nn.Dropout``). `lowprec.emulate` around or inside the closure, other
        torch function modes, autocast and `lowprec.nn` layers are off in the
        reference; explicit calls such as `lowprec.round` in a ``forward`` are not.
        Gradients that are accumulated over several calls of `backward` are compared
        as accumulated. With `lowprec.optim.NormalizedSGD` the rounding
        of the direction is part of s_k; `NormalizedTrace` separates it. A measured
        step costs a second forward and backward pass in the reference dtype and a
        copy of the optimizer's state; with ``layers`` also what `LayerMonitor` says.

    Each record has ``step``, ``eta``; from `backward`: ``loss``, ``reference_loss``,
    ``r_norm``, ``gradient_norm`` (exact), ``relative_gradient_error``, ``underflow``
    (elements that are zero though the exact ones are not), ``nonfinite`` (elements
    that are NaN or infinite), ``r_bias``; from the step: ``s_norm``, ``update_norm``,
    ``relative_update_error``, ``stagnation`` (share of coordinates that did not
    move), ``s_bias``. Biases are ||sum of errors|| over
    sqrt(K times sum of squared norms) of the K records so far with finite errors: near
    1 if errors add up, about 1/sqrt(K) if they average out. With ``per_parameter``
    also ``r_norm/<name>`` and ``s_norm/<name>``. With ``layers`` the same steps are
    measured layer by layer, and their moves as role ``update``; `report` writes a page.

    Args:
        model: the model that is trained, converted or emulated in any way.
        optimizer: its optimizer.
        reference: dtype of the exact gradient.
        every: measure steps 0, every, 2 every, ...
        ledger: where records go; None makes one in memory.
        per_parameter: whether to record norms for each parameter.
        layers: a `LayerMonitor` of the model, or True for one with its defaults; its
            records go to a ledger of its own.

    Raises:
        TypeError: if a second optimizer cannot be made from the optimizer's defaults,
            or one step needs several gradients, as that of ``LBFGS``.
        ValueError: if ``every`` is not a whole number >= 1.

    Example:
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> x = torch.ones(2, 3)
        >>> with RoundoffMonitor(model, optimizer) as monitor:
        ...     loss = monitor.backward(lambda m, cast: m(cast(x)).square().sum())
        ...     optimizer.step()
        >>> bool(monitor.ledger["relative_update_error"] < 2**-23)
        True

    References:
        Cacciola et al., sections 3.2 and 5.2.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Optimizer,
        *,
        reference: torch.dtype = torch.float64,
        every: int = 1,
        ledger: Ledger | None = None,
        per_parameter: bool = False,
        layers: LayerMonitor | bool = False,
    ) -> None:
        """Copy the model and register hooks on the optimizer."""
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a whole number >= 1, got {every!r}")
        check_optimizer(optimizer)
        self.ledger = Ledger() if ledger is None else ledger
        self._model, self._optimizer, self._every = model, optimizer, every
        self._per_parameter = per_parameter
        self.layers = (
            LayerMonitor(model, reference=reference)
            if layers is True
            else (layers or None)
        )
        self._reference = ReferenceModel(model, reference)
        self._step = 0
        self._exact: _Vector | None = None
        self._versions: dict[str, tuple[int, int]] = {}
        self._error: _Vector = {}
        self._pending: dict[str, Any] = {}
        self._before: tuple[dict[str, Any], list[list[Tensor]], list[Any]] | None = None
        self._bias = {"r": _Bias(), "s": _Bias()}
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def measures(self) -> bool:
        """Whether the step to come is measured."""
        return bool(self._handles) and self._step % self._every == 0

    def backward(self, closure: Closure, *, scale: float = 1.0) -> Tensor:
        """Compute the loss and its gradients, and the exact gradients beside them.

        Args:
            closure: ``closure(model, cast)`` returns the loss. It must use the model
                that it is given, and pass floating-point data through ``cast``, which
                changes nothing for the model itself and converts to the reference
                dtype for the copy. It is called twice in a measured step.
            scale: power of two by which the gradients are to be larger than those of
                the loss, as `lowprec.optim.LossScaler.get_scale` says; records are
                about the loss itself.

        Returns:
            The loss; ``backward()`` of ``scale`` times it has been called.
        """
        if not self.measures:
            loss = closure(self._model, _identity)
            _scaled(loss, scale).backward()
            return loss
        with without_emulation(), torch.no_grad():
            self._reference.synchronize()
            base = self._accumulated(scale)
        start = random_state(self._reference.devices)
        with self.layers.observe(self._step) if self.layers else nullcontext():
            with self._reference.watched():
                loss = closure(self._model, _identity)
            _scaled(loss, scale).backward()
        with random_state_kept(self._reference.devices):
            set_random_state(start, self._reference.devices)
            exact, reference_loss = self._reference.gradients(closure)
        with without_emulation(), torch.no_grad():
            self._exact = {name: base[name] + exact[name] for name in exact}
            self._versions = self._gradient_versions()
            self._measure_gradient(float(loss.detach()), reference_loss, scale)
        return loss

    def _trained(self) -> dict[str, Tensor]:
        return {n: p for n, p in self._model.named_parameters() if p.requires_grad}

    def _accumulated(self, scale: float) -> _Vector:
        """Return what the gradients of the pass to come are added to."""
        dtype = self._reference.dtype
        known = {
            name: None if p.grad is None else dense(p.grad)
            for name, p in self._trained().items()
        }
        # Zero after `zero_grad`, or because all of it underflowed?
        kept = self._versions and self._versions == self._gradient_versions()
        fresh = all(grad is None or not bool(grad.any()) for grad in known.values())
        if self._exact is not None and (kept or not fresh):
            return self._exact
        self._pending = {}
        # A copy: the backward pass to come adds to p.grad in place.
        return {
            name: torch.zeros_like(p, dtype=dtype)
            if (grad := known[name]) is None
            else grad.to(dtype) / scale
            for name, p in self._trained().items()
        }

    def _gradient_versions(self) -> dict[str, tuple[int, int]]:
        """Return what changes if anyone writes to a gradient."""
        return {
            name: (id(p.grad), p.grad._version)
            for name, p in self._trained().items()
            if p.grad is not None
        }

    def _measure_gradient(
        self, loss: float, reference_loss: float, scale: float
    ) -> None:
        exact = self._exact or {}
        low = {
            name: torch.zeros_like(exact[name])
            if p.grad is None
            else dense(p.grad).to(exact[name].dtype) / scale
            for name, p in self._trained().items()
        }
        self._error = {name: low[name] - exact[name] for name in exact}
        r_norm, gradient_norm = norm(self._error.values()), norm(exact.values())
        self._pending = {
            "loss": loss + self._pending.get("loss", 0.0),
            "reference_loss": reference_loss + self._pending.get("reference_loss", 0.0),
            "r_norm": r_norm,
            "gradient_norm": gradient_norm,
            "relative_gradient_error": ratio(r_norm, gradient_norm),
            "underflow": sum(
                int(((low[name] == 0) & (exact[name] != 0)).sum()) for name in exact
            ),
            "nonfinite": sum(int((~torch.isfinite(x)).sum()) for x in low.values()),
        }

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        if not self.measures:
            return
        with without_emulation(), torch.no_grad():
            state = copy.deepcopy(optimizer.state_dict())
            weights = [
                [p.detach().to(torch.float64, copy=True) for p in group["params"]]
                for group in optimizer.param_groups
            ]
            self._before = state, weights, effective_steps(optimizer)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        try:
            if self._before is not None:
                with without_emulation(), torch.no_grad():
                    self._measure_step(optimizer, *self._before)
        finally:  # the step was made, even if its record could not be written
            self._before, self._exact, self._error = None, None, {}
            self._step += 1

    def _measure_step(
        self,
        optimizer: Optimizer,
        state: dict[str, Any],
        weights: list[list[Tensor]],
        etas: list[Any],
    ) -> None:
        parameters = [group["params"] for group in optimizer.param_groups]
        with random_state_kept(self._reference.devices):
            exact = exact_step(optimizer, state, weights, parameters, etas)
        errors: _Vector = {}
        made: dict[str, tuple[Tensor, Tensor]] = {}
        moves: _Vector = {}
        still = 0
        for i, (old, new, target) in enumerate(
            zip(weights, parameters, exact, strict=True)
        ):
            for j, (w, p, t) in enumerate(zip(old, new, target, strict=True)):
                name = self._names.get(id(p), f"group{i}.{j}")
                reached = p.detach().to(torch.float64)
                errors[name] = reached - t
                moves[name] = t - w
                if id(p) in self._names:
                    made[name] = reached - w, moves[name]
                still += int((p == w).sum())
        s_norm, update_norm = norm(errors.values()), norm(moves.values())
        count = sum(error.numel() for error in errors.values())
        record: dict[str, Any] = {"step": self._step, "eta": float(etas[0])}
        record |= self._pending
        if self._error:
            record["r_bias"] = self._bias["r"].add(self._error)
        record |= {
            "s_norm": s_norm,
            "update_norm": update_norm,
            "relative_update_error": ratio(s_norm, update_norm),
            "stagnation": ratio(still, count),
            "s_bias": self._bias["s"].add(errors),
        }
        if self._per_parameter:
            for letter, vectors in (("r", self._error), ("s", errors)):
                for name, vector in vectors.items():
                    record[f"{letter}_norm/{name}"] = float(vector.norm())
        self._pending = {}
        self.ledger.append(record)
        if self.layers is not None:
            self.layers.record_updates(made, self._step)

    def report(
        self,
        path: str | os.PathLike[str],
        *,
        title: str = "Rounding errors of a training run",
        policy: Policy | Precision | None = None,
        configuration: Mapping[str, Any] | None = None,
        bounds: Mapping[str, Any] | None = None,
        coverage: Iterable[Any] | None = None,
        attribution: Attribution | None = None,
    ) -> Path:
        """Write one page about the run: `write_report`.

        Args:
            path: of the page.
            title: of the page.
            policy: precision of a model that is not converted but run under
                `lowprec.emulate`.
            configuration: further text by name, for example the data.
            bounds: by quantity, from `lowprec.theory`: numbers, one per record, or
                several by label.
            coverage: rows of the context's ``coverage()``; None takes those of
                `lowprec.nn.coverage`, or `lowprec.nn.report` if nothing is converted.
            attribution: of the gradient's error, from `attribute`.

        Returns:
            The path.

        Raises:
            ValueError: if a bound is not for a quantity that a chart shows.
        """
        described = describe(self._model, self._optimizer, policy)
        if coverage is None:
            counted = nn.coverage(self._model)
            coverage = counted if len(counted) else nn.report(self._model)
        return write_report(
            path,
            self.ledger,
            title=title,
            configuration=described | dict(configuration or {}),
            bounds=bounds,
            layers=self.layers,
            coverage=coverage,
            attribution=attribution,
        )

    def close(self) -> None:
        """Remove the hooks; `backward` goes on without measuring."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> RoundoffMonitor:
        """Return the monitor."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the hooks."""
        self.close()


class _Bias:
    """Running ratio ||mean of errors|| / sqrt(mean of squared norms)."""

    def __init__(self) -> None:
        self._total: _Vector = {}
        self._squares = 0.0
        self._count = 0

    def add(self, errors: _Vector) -> float:
        """Add one step's errors, unless they are not finite, and return the ratio."""
        size = norm(errors.values())
        if math.isfinite(size):
            for name, error in errors.items():
                known = self._total.get(name)
                self._total[name] = error.clone() if known is None else known + error
            self._squares += size**2
            self._count += 1
        if self._squares == 0:
            return 0.0
        return norm(self._total.values()) / math.sqrt(self._count * self._squares)


def _identity(value: Any) -> Any:
    return value


def _scaled(loss: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return loss
    with without_emulation():
        return loss * scale
