"""Error feedback: what a compressor left out joins the next vector."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .. import kernels
from ..kernels import codes, portable
from ..kernels.exact import add_to_odd, two_sum
from ..random import as_seed, split_seed
from ..rounding import Rounding, RoundingLike, as_rounding
from ._compressor import Compressor, check_vector
from ._payload import Payload, PayloadKind
from ._seeds import worker_seeds

# Of the parts of a worker's seed; the compressor has the seed itself.
_PARTS = 1


class Feedback(NamedTuple):
    """What to send, and the error to keep for the next step, of the vector's shape."""

    payload: Payload
    error: Tensor


@dataclass(frozen=True, init=False)
class ErrorFeedback:
    r"""Compress a vector together with the errors of the steps before.

    .. math::
        p = g + e, \qquad \tilde g = Q(p), \qquad e \leftarrow \mathrm{fl}(p - \tilde g)

    Contract:
        p is one sum in the carrier. p - Q(p) is rounded once: by fl from its exact
        value, or to the carrier if there is no fl, which loses nothing where an entry
        is sent as it is, left out, or rounded to nearest within the format. Errors are
        in the units of g, so that changes of the step size do not concern them. With
        fl stochastic, element j takes the random word j of a seed of its own for each
        worker and step.

    Args:
        compressor: Q.
        error_format: rounding fl of the stored error; None keeps it in the carrier.

    Raises:
        TypeError: if an argument is neither.

    Example:
        >>> from lowprec.distributed import TopK
        >>> feedback = ErrorFeedback(TopK(k=1))
        >>> payload, error = feedback.step(torch.tensor([3.0, 2.0]))
        >>> payload, error = feedback.step(torch.tensor([3.0, 2.0]), error)
        >>> payload.dense(), error
        (tensor([0., 4.]), tensor([3., 0.]))

    References:
        Seide et al. 2014; Stich, Cordonnier and Jaggi 2018; identity I1 of
        `lowprec.theory.spars_ams`.
    """

    compressor: Compressor
    error_format: Rounding | None = None

    def __init__(
        self,
        compressor: Compressor,
        error_format: RoundingLike | torch.dtype | None = None,
    ) -> None:
        """Normalise the rounding."""
        if not isinstance(compressor, Compressor):
            raise TypeError(
                "error feedback needs a compressor such as TopK(density=0.01), got "
                f"{compressor!r} of type {type(compressor).__name__}"
            )
        rounding = None if error_format is None else as_rounding(error_format)
        object.__setattr__(self, "compressor", compressor)
        object.__setattr__(self, "error_format", rounding)

    @property
    def stochastic(self) -> bool:
        """Whether results depend on random numbers."""
        fl = self.error_format
        return self.compressor.stochastic or (fl is not None and fl.stochastic)

    @torch.no_grad()
    def step(
        self,
        gradient: Tensor,
        error: Tensor | None = None,
        seed: int | Tensor | None = None,
        step: int = 0,
        worker: int = 0,
        offset: int = 0,
    ) -> Feedback:
        """Compress one vector, or one of each of n workers; nothing is changed.

        Args:
            gradient: g, [d] or [n, d], float32 or float64, finite.
            error: e of the same shape and dtype; None means zeros.
            seed: 64-bit key of the random numbers; None draws one if needed.
            step: number of the step, modulo 2^32.
            worker: number of the first row's worker.
            offset: linear index of the first element, as in `Compressor.compress`.

        Returns:
            The payload and the next error.

        Raises:
            TypeError: if ``gradient`` is no tensor of these dtypes.
            ValueError: if shapes or dtypes differ, something is not finite, or the
                compressor is one that error feedback makes diverge.
        """
        check_vector(gradient)
        self.compressor.check_error_feedback(gradient.shape[-1])
        if error is None:
            p = gradient.detach().clone()
        elif error.shape != gradient.shape or error.dtype != gradient.dtype:
            raise ValueError(
                f"the error must be like the gradient, {gradient.dtype} "
                f"{tuple(gradient.shape)}, got {error.dtype} {tuple(error.shape)}"
            )
        else:
            p = gradient.detach() + error
        key = as_seed(seed) if self.stochastic else None
        payload = self.compressor.compress(p, key, step, worker, offset)
        return Feedback(payload, self._error(p, payload, key, step, worker, offset))

    def _error(
        self,
        p: Tensor,
        payload: Payload,
        key: Tensor | None,
        step: int,
        worker: int,
        offset: int,
    ) -> Tensor:
        fl = self.error_format
        if fl is None:
            return payload.apply(torch.sub, p)
        code = list(fl.code)
        _check_held(fl, p.dtype)
        rest = _difference(payload, p)
        if key is None or not fl.stochastic:
            rounded = kernels.round(rest, code)
        else:
            rows = rest.reshape(-1, rest.shape[-1])
            keys = worker_seeds(key, step, worker, rows.shape[0], offset)
            seeds = [split_seed(one, _PARTS)[0] for one in keys]
            pairs = zip(rows, seeds, strict=True)
            rounded = torch.stack(
                [kernels.round_stochastic(row, code, own, 0) for row, own in pairs]
            )
        # A finite sum, which takes one pass, has finite terms only.
        if not bool(rounded.sum().isfinite()) and not bool(rounded.isfinite().all()):
            raise ValueError(
                f"an error of {rest.abs().amax().item():g} is beyond "
                f"{float(fl.format.max):g}, the largest value of {fl.format!r}: use a "
                "wider error_format or saturation='finite'"
            )
        return cast(Tensor, rounded.reshape(p.shape).to(p.dtype))


def _check_held(fl: Rounding, dtype: torch.dtype) -> None:
    """Refuse formats of which the carrier lacks values."""
    code, carrier = codes.decode(list(fl.code)), portable.CARRIERS[dtype]
    portable.max_bits(code, carrier)
    quantum = code.emin - (code.precision - 1 if fl.format.subnormals else 0)
    lowest = 2 - carrier.bias - carrier.precision
    if code.precision > carrier.precision or quantum < lowest:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"a {name} carrier cannot hold every value of {fl.format!r}: use a "
            "narrower error_format, or None for the carrier itself"
        )


def _difference(payload: Payload, p: Tensor) -> Tensor:
    """Return p - Q(p) as a tensor that rounds as the exact difference does.

    In the carrier where all differences are exact, else in float64, rounded to odd.
    """
    errors: list[Tensor] = []

    def split(p: Tensor, sent: Tensor) -> Tensor:
        total, error = two_sum(p, -sent)
        errors.append(error)
        return total

    rest = payload.apply(split, p)
    if not bool(errors[0].any()):
        return rest
    kind = payload.kind if payload.indices is not None else PayloadKind.DENSE
    missing = replace(payload, kind=kind, values=errors[0], scale=None, rounding=None)
    return missing.apply(add_to_odd, rest.to(torch.float64))
