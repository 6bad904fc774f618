"""SPARS-AMS: AMSGrad along gradients that were compressed with error feedback."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ..distributed import Compressor, ErrorFeedback, Exchange, Payload, TopK
from ..rounding import RoundingLike
from ._amsgrad import AbstractAMSGrad, Member, Received, all_finite
from ._base import Group
from ._replicas import agree, refuse_sharded
from ._update import Seeds, UpdateLike

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Scope = Literal["tensor", "group", "global"]
_SCOPES = ("tensor", "group", "global")
_SHARED = ("scope", "nonfinite")
_SHARED_IF_GLOBAL = ("compressor", "error_feedback", "error_format")


class SparsAMS(AbstractAMSGrad):
    r"""AMSGrad that sees compressed gradients, and their errors later.

    .. math::
        \begin{aligned}
        & p_t = g_t + e_t, \qquad \tilde g_t = Q(p_t), \qquad
          e_{t+1} = \mathrm{fl}_e(p_t - \tilde g_t) \\
        & m_t, v_t, \hat v_t, w_t \text{ as in `AMSGrad`, along } \tilde g_t
        \end{aligned}

    with g_t negated if maximize, and with coupled weight decay.

    Contract:
        Vectors are what ``scope`` says: the gradients of all parameters, of each group,
        or of each parameter, flattened in the order of the groups. A parameter whose
        gradient is None is no part of a vector, and nothing of it changes. Errors are
        in the units of gradients, so step sizes may change; unscale and clip gradients
        before the step. Each fl rounds once, as in `AMSGrad` and `ErrorFeedback`.
        Random numbers of the compressor are a pure function of the group's
        ``rounding_seed`` and ``rounding_step``; a resumed run continues bit for bit.
        A failing step changes nothing; neither does a skipped one.

        With a ``process_group``, g_t is this rank's gradient, e_t its error, and the
        rest runs along the mean of what all ranks send, on every rank with the same
        bits, those of `lowprec.distributed.WorkerSimulation` and `AMSGrad`. The seed
        is rank 0's. A gradient that is None counts as zeros, and is set to them, as
        other ranks may have one. If a gradient of one rank is not finite, all ranks
        raise or skip the step. If a value is beyond the format in which a rank would
        send or keep it, that rank raises in any case. A checkpoint has the rank's own
        errors: save one for each rank.

        Compression makes the second moment larger than the gradients', by up to d/k:
        `lowprec.theory.spars_ams.effective_step_ratio`.

    Args:
        params: parameters or groups, as in ``torch.optim``; float32 or float64.
        lr: step size eta; see `rounded_step_size`.
        betas: beta_1 and beta_2.
        eps: epsilon, added under the root; positive, as most entries are zeros.
        weight_decay: lambda.
        density: share of the entries to send, those of largest magnitude: short for
            ``compressor=TopK(density=density)``.
        compressor: Q; None means the one that ``density`` or ``k`` says.
        k: number of entries to send: short for ``compressor=TopK(k=k)``. For the scope
            ``"tensor"`` each parameter sends min(k, numel).
        scope: what is compressed as one vector: ``"global"``, ``"group"`` or
            ``"tensor"``; the same in all groups.
        error_feedback: whether what was left out joins the next gradient.
        error_format: rounding fl_e of the stored error; None leaves it in its dtype.
        nonfinite: what a step does if g or p has a NaN or an infinity: ``"raise"`` or
            ``"skip"``; the same in all groups.
        maximize: whether to ascend.
        decoupled_weight_decay: whether lambda shrinks the weights instead of joining
            the gradient.
        param_format: rounding of the parameters; None leaves them in their dtype.
        exp_avg_format: rounding of the first moment; None likewise.
        exp_avg_sq_format: rounding of the second moment; None likewise.
        update: ``"fused"``, ``"two_step"``, ``"kahan"`` or ``"master"``, as in
            `AMSGrad`.
        generator: source of the seed; None means torch's default generator.
        process_group: ranks that train together, such as
            ``torch.distributed.group.WORLD``, or a `lowprec.distributed.Exchange` for
            them; None trains alone.

    Raises:
        TypeError: if a parameter is not float32 or float64, or ``compressor`` no
            `Compressor`.
        NotImplementedError: for parameters that are sharded (DTensor, FSDP).
        ValueError: if an argument is out of range, not exactly one of ``density``,
            ``k`` and ``compressor`` is given, k is larger than a vector, groups differ
            where they must not, or the compressor cannot be used with error feedback.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(4))
        >>> optimizer = SparsAMS([w], lr=0.1, k=1)
        >>> w.grad = torch.tensor([1.0, -3.0, 2.0, 0.5])
        >>> optimizer.step()
        >>> optimizer.state[w]["error"]
        tensor([1.0000, 0.0000, 2.0000, 0.5000])

    References:
        "Sparsified Distributed Adaptive Learning with Error Feedback", algorithms 1
        and 2; Li, Karimi and Li 2022 (COMP-AMS).
    """

    _roundings: ClassVar[tuple[str, ...]] = (
        *AbstractAMSGrad._roundings,
        "error_format",
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        *,
        density: float | None = None,
        compressor: Compressor | None = None,
        k: int | None = None,
        scope: Scope = "global",
        error_feedback: bool = True,
        error_format: RoundingLike | torch.dtype | None = None,
        nonfinite: Literal["raise", "skip"] = "raise",
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        param_format: RoundingLike | torch.dtype | None = None,
        exp_avg_format: RoundingLike | torch.dtype | None = None,
        exp_avg_sq_format: RoundingLike | torch.dtype | None = None,
        update: UpdateLike = "fused",
        generator: torch.Generator | None = None,
        process_group: ProcessGroup | Exchange | None = None,
    ) -> None:
        """Check the arguments and the sizes of the vectors."""
        # Kept out of the groups, as no checkpoint can hold it.
        self.exchange = _exchange(process_group)
        self._agreed = False
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "compressor": _compressor(compressor, k, density),
            "scope": scope,
            "error_feedback": error_feedback,
            "error_format": error_format,
            "nonfinite": nonfinite,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
            "param_format": param_format,
            "exp_avg_format": exp_avg_format,
            "exp_avg_sq_format": exp_avg_sq_format,
            "update": update,
        }
        super().__init__(params, defaults, generator)
        members = [
            Member(p, group, {}, 0)
            for group in self.param_groups
            for p in group["params"]
            if p.numel()
        ]
        for vector in _vectors(members):
            vector.check()

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; its roundings may be given by name, its compressor as ``k``.

        Args:
            param_group: ``{"params": ...}`` and what differs from the defaults.

        Raises:
            TypeError: as the constructor.
            ValueError: as the constructor.
        """
        if isinstance(param_group, dict) and {"k", "density"} & param_group.keys():
            given = {**param_group}
            options = (given.pop(key, None) for key in ("compressor", "k", "density"))
            param_group = {**given, "compressor": _compressor(*options)}
        super().add_param_group(param_group)
        try:
            _check_shared(self.param_groups)
        except ValueError:
            self.param_groups.pop()
            raise
        self._agreed = False

    def __setstate__(self, state: Group) -> None:
        """Restore the groups; a copy from a file has no process group."""
        super().__setstate__(state)
        self.__dict__.setdefault("exchange", None)
        self._agreed = False

    def _offsets(self) -> Iterator[tuple[Group, list[tuple[Tensor, int]]]]:
        if self.exchange is not None:
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None and p.requires_grad:
                        p.grad = torch.zeros_like(p)
        return super()._offsets()

    def _step_seeds(self) -> Seeds | None:
        if self.exchange is not None and not self._agreed:
            agree(self.exchange, self.param_groups, self._stochastic())
            self._agreed = True
        return super()._step_seeds()

    def _check_values(self, group: Group) -> None:
        super()._check_values(group)
        if not group["eps"] > 0.0:
            raise ValueError(
                f"eps must be positive, got {group['eps']}: entries that were never "
                "sent have a second moment of 0"
            )
        if not isinstance(group["compressor"], Compressor):
            raise TypeError(
                "compressor must be a Compressor such as TopK(density=0.01), got "
                f"{group['compressor']!r} of type {type(group['compressor']).__name__}"
            )
        if group["scope"] not in _SCOPES:
            raise ValueError(f"scope must be one of {_SCOPES}, got {group['scope']!r}")

    def _check_storage(self, key: str, rounding: Any, p: Tensor) -> None:
        refuse_sharded(p)
        super()._check_storage(key, rounding, p)
        if p.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                "SparsAMS needs float32 or float64 parameters, got "
                f"{str(p.dtype).removeprefix('torch.')}: use model.float(), and "
                "param_format= for fewer bits"
            )

    def _stochastic(self) -> bool:
        return super()._stochastic() or any(
            group["compressor"].stochastic for group in self.param_groups
        )

    def _received(self, members: list[Member]) -> list[Received] | None:
        _check_shared(self.param_groups)
        finite, refusal = all_finite(members), None
        vectors = list(_vectors(members))
        means: list[Tensor] | None = None
        if finite or self.exchange is not None:
            try:
                sent = self._sent(vectors, finite)
            except ValueError as error:
                if not finite:
                    raise  # of the options, which all ranks have in common
                # The other ranks wait for this one, which must tell them.
                finite, refusal = False, error
                if self.exchange is not None:
                    sent = self._sent(vectors, finite)
            if finite or self.exchange is not None:
                means = self._means([one.payload for one in sent], finite)
        if means is None:
            skips = self.param_groups[0]["nonfinite"] == "skip"
            if skips and (refusal is None or any(v.overflows() for v in vectors)):
                return None
            raise refusal or ValueError(
                "a gradient, or on another rank what would be sent or kept of it, is "
                "NaN, infinite or beyond its format: nothing was changed; "
                "nonfinite='skip' leaves such steps out"
            )
        return [
            received
            for vector, one, mean in zip(vectors, sent, means, strict=True)
            for received in vector.received(mean, one.error)
        ]

    def _sent(self, vectors: list[_Vector], finite: bool) -> list[_Sent]:
        first = self.param_groups[0]
        key, step = first["rounding_seed"], first["rounding_step"]
        worker = 0 if self.exchange is None else self.exchange.rank
        return [vector.sent(key, step, worker, finite) for vector in vectors]

    def _means(self, payloads: list[Payload], finite: bool) -> list[Tensor] | None:
        """Return the means of what the workers send, None if one is not finite."""
        if self.exchange is None:
            return [payload.dense() for payload in payloads]
        self.exchange.stats.steps += 1
        return self.exchange.means(payloads, finite=finite).wait()


def _exchange(ranks: ProcessGroup | Exchange | None) -> Exchange | None:
    return ranks if ranks is None or isinstance(ranks, Exchange) else Exchange(ranks)


def _compressor(
    compressor: Compressor | None, k: int | None, density: float | None
) -> Compressor:
    given = {"compressor": compressor, "k": k, "density": density}
    named = {key: value for key, value in given.items() if value is not None}
    if len(named) != 1:
        said = ", ".join(f"{key}={value!r}" for key, value in named.items())
        raise ValueError(
            "SparsAMS needs exactly one of density, k and compressor, got "
            f"{said or 'none of them'}: density=0.01 sends the largest 1 % of the "
            "entries"
        )
    return compressor if compressor is not None else TopK(k=k, density=density)


def _check_shared(groups: list[Group]) -> None:
    """Refuse groups that differ in what they must share."""
    keys: tuple[str, ...] = _SHARED
    if groups[0]["scope"] == "global":
        keys += _SHARED_IF_GLOBAL
    for key in keys:
        values = list(dict.fromkeys(group[key] for group in groups))
        if len(values) > 1:
            advice = (
                "" if key in _SHARED else ": use scope='group' to compress them apart"
            )
            raise ValueError(
                f"all groups must have the same {key}, got "
                f"{' and '.join(map(repr, values))}{advice}"
            )


class _Sent(NamedTuple):
    """What a vector sends, and the error to keep if the step is taken."""

    payload: Payload
    error: Tensor | None


class _Vector(NamedTuple):
    """Parameters whose gradients are compressed together."""

    members: list[Member]
    compressor: Compressor

    @property
    def size(self) -> int:
        return sum(member.p.numel() for member in self.members)

    def check(self) -> None:
        """Refuse a vector that the compressor cannot take."""
        self.compressor.check_size(self.size)
        if self.members[0].group["error_feedback"]:
            self.compressor.check_error_feedback(self.size)
        kinds = {(member.p.dtype, member.p.device) for member in self.members}
        if len(kinds) > 1:
            raise ValueError(
                "parameters that are compressed together need one dtype and device, "
                f"got {sorted(map(str, kinds))}: use scope='tensor'"
            )

    def sent(self, key: int | None, step: int, worker: int, finite: bool) -> _Sent:
        """Compress, by the group's seed and step; zeros, if it is not finite."""
        self.check()
        group, offset = self.members[0].group, self.members[0].offset
        g = self._flat([member.gradient() for member in self.members])
        g = g if finite else torch.zeros_like(g)
        if not group["error_feedback"]:
            payload = self.compressor.compress(g, key, step, worker, offset)
            return _Sent(payload, None)
        feedback = ErrorFeedback(self.compressor, group["error_format"])
        error = self._error() if finite else None
        return _Sent(*feedback.step(g, error, key, step, worker, offset))

    def overflows(self) -> bool:
        """Whether p = g + e has an infinity, though g and e have none."""
        p = self._flat([member.gradient() for member in self.members])
        error = self._error() if self.members[0].group["error_feedback"] else None
        return not bool((p if error is None else p + error).isfinite().all())

    def received(self, mean: Tensor, error: Tensor | None) -> Iterator[Received]:
        """Yield what arrives for each member, and its error."""
        errors = None if error is None else self._shaped(error)
        for index, gradient in enumerate(self._shaped(mean)):
            yield Received(gradient, {} if errors is None else {"error": errors[index]})

    def _error(self) -> Tensor | None:
        known = [member.state.get("error") for member in self.members]
        if all(error is None for error in known):
            return None
        return self._flat(
            [
                torch.zeros_like(member.p) if error is None else error
                for member, error in zip(self.members, known, strict=True)
            ]
        )

    def _flat(self, parts: list[Tensor]) -> Tensor:
        flat = [part.reshape(-1) for part in parts]
        return flat[0] if len(flat) == 1 else torch.cat(flat)

    def _shaped(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([member.p.numel() for member in self.members])
        pairs = zip(parts, self.members, strict=True)
        return [part.view(member.p.shape) for part, member in pairs]


def _vectors(members: list[Member]) -> Iterator[_Vector]:
    """Yield the vectors that the scope says, in the order of the members."""
    if not members:
        return
    scope = members[0].group["scope"]
    if scope == "tensor":
        for member in members:
            compressor: Compressor = member.group["compressor"]
            yield _Vector([member], compressor.limited(member.p.numel()))
    elif scope == "group":
        for _, same in groupby(members, key=lambda member: id(member.group)):
            together = list(same)
            yield _Vector(together, together[0].group["compressor"])
    else:
        yield _Vector(members, members[0].group["compressor"])
