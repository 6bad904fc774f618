"""What the communication hook of DistributedDataParallel keeps between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.futures import Future

from ..random import as_seed
from ..rounding import RoundingLike
from ._collectives import Exchange
from ._compressor import Compressor
from ._parts import Compression, starts
from ._payload import Payload
from ._sparse import TopK
from ._wire import IndexCoding, index_coding

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_SCOPES = ("tensor", "bucket")


class CompressionState:
    r"""What `compression_hook` needs: a compressor, the errors of this rank, accounts.

    .. math::
        p = g / S + e, \qquad e \leftarrow p - Q(p), \qquad
        \text{gradient} \leftarrow \frac{S}{n} \sum_{i=1}^n Q(p_i)

    Contract:
        With ``scope="tensor"``, no loss scale and equal gradients, every bit is that of
        `WorkerSimulation` with the sizes of the parameters. Errors belong to
        parameters, so that they survive when DDP rebuilds its buckets. If a gradient
        of any rank is not finite, or beyond the format in which it would be sent or
        kept, all ranks get NaN in that bucket, which gradient scalers and
        ``AMSGrad(nonfinite="skip")`` see, and no error of that step is kept anywhere.
        In the latter case the rank itself raises. Under ``no_sync()`` nothing is sent;
        the sum of the gradients takes part once, at the synchronising step. Clip and
        scale what `backward` leaves as without the hook.

    Args:
        compressor: Q.
        error_feedback: whether there are errors e; otherwise p = g / S.
        error_format: rounding of the stored errors; None keeps them in the carrier.
        scope: compress every ``"tensor"`` alone, or every ``"bucket"`` of DDP.
        parameters: the model's, in an order that is the same in every run and on
            every rank; random numbers and checkpoints go by their positions. Needed
            for these two only.
        indices: how indices travel: ``"packed"`` or ``"int32"``.
        unused_parameters: whether a parameter whose gradient is all zeros on a rank
            keeps its error there, as DDP with ``find_unused_parameters=True`` drops the
            mean of one that no rank has used. Bits are not those of the simulation in
            such a step.
        loss_scale: returns the factor S that the loss was multiplied with, such as
            ``scaler.get_scale``; None means 1.
        seed: of the random numbers; None takes one that rank 0 draws.
        process_group: that of DDP; None for the default one.

    Raises:
        TypeError: if ``compressor`` or ``error_format`` is none.
        ValueError: if an argument is not among those allowed, or random numbers are
            needed and ``parameters`` missing.

    Example:
        >>> state = CompressionState(TopK(density=0.01), scope="bucket")
        >>> # ddp.register_comm_hook(state, compression_hook)

    References:
        ``torch.nn.parallel.DistributedDataParallel.register_comm_hook``.
    """

    def __init__(
        self,
        compressor: Compressor,
        *,
        error_feedback: bool = True,
        error_format: RoundingLike | torch.dtype | None = None,
        scope: str = "tensor",
        parameters: Iterable[Tensor] | None = None,
        indices: IndexCoding | str = "packed",
        unused_parameters: bool = False,
        loss_scale: Callable[[], float] | None = None,
        seed: int | Tensor | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        """Check the arguments; the process group is looked for at the first step."""
        self.compression = Compression(
            compressor, error_feedback=error_feedback, error_format=error_format
        )
        if scope not in _SCOPES:
            raise ValueError(
                "scope must be 'tensor' or 'bucket', got "
                f"{scope!r}: a hook sees one bucket at a time; "
                "lowprec.optim.SparsAMS(process_group=...) has scope='global'"
            )
        if self.compression.stochastic and parameters is None:
            raise ValueError(
                f"{self.compression!r} draws random numbers by the position of an "
                "entry in the model: give parameters=model.parameters()"
            )
        self.scope = scope
        self.indices = index_coding(indices)
        self.unused_parameters = unused_parameters
        self.loss_scale = loss_scale
        self.step = 0
        self._group = process_group
        self._seed = None if seed is None else as_seed(seed)
        self._offsets = None if parameters is None else _numbered(parameters)
        self._errors: dict[Tensor, Tensor] = {}
        self._pending: dict[Tensor, Tensor] = {}
        self._finished: list[Future[bool]] = []
        self._refusal: ValueError | None = None
        self._exchange: Exchange | None = None

    @property
    def exchange(self) -> Exchange:
        """The process group and its accounts ``stats``, from the first step on."""
        if self._exchange is None:
            raise RuntimeError("the hook has not been called: there are no accounts")
        return self._exchange

    def error(self, parameter: Tensor) -> Tensor:
        """Return e of a parameter, in its shape; zeros before the first step."""
        error = self._errors.get(parameter)
        if error is None:
            return torch.zeros_like(parameter)
        return error.reshape(parameter.shape)

    def state_dict(self) -> dict[str, Any]:
        """Return step, seed and the errors of this rank, by positions of parameters.

        Raises:
            ValueError: if the state was made without ``parameters``.
        """
        errors = {
            position: self._errors[p].clone()
            for position, p in enumerate(self._known())
            if p in self._errors
        }
        return {"step": self.step, "seed": self._seed, "error": errors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue, bit for bit, where `state_dict` was taken.

        Args:
            state: of the same rank of a run with as many ranks; see `redistributed`.

        Raises:
            ValueError: if the state was made without ``parameters``, or has errors of
                other parameters.
        """
        parameters = self._known()
        errors = {}
        for position, error in state["error"].items():
            if (
                position >= len(parameters)
                or parameters[position].numel() != error.numel()
            ):
                raise ValueError(
                    f"the checkpoint has an error of {error.numel()} entries for "
                    f"parameter {position}, which the model lacks: it is of another one"
                )
            p = parameters[position]
            errors[p] = error.to(device=p.device, dtype=p.dtype, copy=True)
        self._errors = errors
        self.step, self._seed = state["step"], state["seed"]

    def _known(self) -> list[Tensor]:
        if self._offsets is None:
            raise ValueError(
                "checkpoints go by positions of parameters: give "
                "parameters=model.parameters() to the state"
            )
        return list(self._offsets)

    def _opened(self, parameters: list[Tensor]) -> Exchange:
        """Return the exchange; at the first call, all ranks must agree."""
        if self._exchange is None:
            exchange = Exchange(
                self._group, indices=self.indices, varying=self.compression.varying
            )
            shapes = [(tuple(p.shape), str(p.dtype)) for p in parameters]
            exchange.agree(
                {
                    "compression": repr(self.compression),
                    "scope": self.scope,
                    "indices": self.indices.value,
                    "unused parameters": str(self.unused_parameters),
                    "loss scaling": str(self.loss_scale is not None),
                    "parameters of the first bucket": repr(shapes),
                    "steps done": str(self.step),
                }
            )
            if self.compression.stochastic:
                self._seed = exchange.first_seed(self._seed)
            self._exchange = exchange
        return self._exchange

    def _offset(self, parameter: Tensor) -> int:
        if self._offsets is None:
            return 0  # no random numbers
        if parameter not in self._offsets:
            raise ValueError(
                f"a parameter of shape {tuple(parameter.shape)} is not among the "
                "parameters that the state was made with: give model.parameters()"
            )
        return self._offsets[parameter]

    def _compressed(
        self,
        parameters: list[Tensor],
        vectors: list[Tensor],
        rank: int,
        fresh: bool = False,
    ) -> list[Payload]:
        """Return what this rank sends of a bucket; its next errors are pending.

        With ``fresh`` it has no errors: what it sends then can always be made.
        """
        kept = [None if fresh else self._errors.get(p) for p in parameters]
        # DDP drops the mean of a parameter that no rank has used, and with it what
        # would be sent of its error.
        idle = [self.unused_parameters and not bool(v.any()) for v in vectors]
        pairs = zip(kept, idle, strict=True)
        errors = [None if unused else error for error, unused in pairs]
        offsets = [self._offset(p) for p in parameters]
        sizes = [vector.numel() for vector in vectors]
        if self.scope == "bucket":
            errors, offsets = [_joined(errors, vectors)], offsets[:1]
            vectors = [torch.cat(vectors)]
        compressed = self.compression(
            vectors, errors, offsets, seed=self._seed, step=self.step, worker=rank
        )
        if compressed.errors is not None:
            left = torch.cat(compressed.errors).split(sizes)
            for p, new, old, unused in zip(parameters, left, kept, idle, strict=True):
                self._pending[p] = new + old if unused and old is not None else new
        return compressed.payloads

    def _begin(self) -> None:
        """Forget what a step has left that failed."""
        self._pending, self._finished, self._refusal = {}, [], None

    def _keep(self, finished: Future[Any]) -> None:
        """Make the errors of a step those of the next one, if all ranks were finite."""
        if all(one.value() for one in finished.value()):
            self._errors.update(self._pending)
            self.step += 1
        self._pending = {}
        if self._refusal is not None:
            raise self._refusal


class TopKState(CompressionState):
    """The state of `topk_hook`: `CompressionState` with `TopK`.

    Args:
        density: share of the entries that are sent, k = max(1, ceil(density d)).
        k: their number instead.
        values: rounding of the values that are sent.
        options: as `CompressionState`.

    Raises:
        TypeError: as `TopK` and `CompressionState`.
        ValueError: likewise.

    Example:
        >>> state = TopKState(density=0.01, error_feedback=True)
        >>> # ddp.register_comm_hook(state, topk_hook)
    """

    def __init__(
        self,
        density: float | None = None,
        *,
        k: int | None = None,
        values: RoundingLike | torch.dtype | None = None,
        **options: Any,
    ) -> None:
        """Check the arguments."""
        super().__init__(TopK(k=k, density=density, values=values), **options)


def _joined(errors: list[Tensor | None], vectors: list[Tensor]) -> Tensor | None:
    if all(error is None for error in errors):
        return None
    known = zip(errors, vectors, strict=True)
    return torch.cat([torch.zeros_like(v) if e is None else e for e, v in known])


def _numbered(parameters: Iterable[Tensor]) -> dict[Tensor, int]:
    listed = [p for p in parameters if p.requires_grad]
    return dict(zip(listed, starts([p.numel() for p in listed]), strict=True))
