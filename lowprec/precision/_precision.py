"""Which rounding each tensor of an operation gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .. import _values
from ..block_rounding import AnyRounding, BlockRounding, OperandLike, as_any_rounding
from ..rounding import (
    Accumulator,
    AccumulatorLike,
    Rounding,
    RoundingLike,
    as_accumulator,
    as_rounding,
)
from ..table_rounding import TableRounding

__all__ = ["Precision", "as_precision"]

_CARRIER = "carrier"


@dataclass(frozen=True, init=False, repr=False)
class Precision:
    """The roundings of an operation: its operands, its results and its sums.

    Products of matrices (linear, convolutions, attention, recurrent layers) have three
    GEMMs: output = fl_output(input . weight), grad_input = fl_grad_input(grad_output .
    weight), grad_weight = fl_grad_weight(input . grad_output), where the operands are
    first rounded to ``input``, ``weight`` and ``grad_output`` and the sums of products
    are those of ``accumulator`` (output) and ``grad_accumulator`` (the gradients).
    All else that rounds is a fused operation: y = fl_elementwise(f(x)), dx =
    fl_elementwise(J^T fl_elementwise(dy)), whose sums are those of the same
    accumulators, and whose parameters are rounded as weights are.

    Contract:
        None means *not rounded*: the tensor keeps its carrier values; for
        ``accumulator`` that torch itself multiplies in the carrier. Only
        ``grad_accumulator=None`` means something else, *as accumulator*, because a
        backward pass that silently left the emulation would surprise;
        ``grad_accumulator="carrier"`` asks for torch's product. Shorthands are
        normalised, so equal precisions compare equal however they were written.

        Element-wise formats round an operand once, for all its products. Block formats
        round it for each product anew, from its carrier values, in blocks along the
        dimension this product sums over, as MX training does: input and weight along K
        for output; grad_output and weight along N for grad_input; grad_output and
        input along the batch positions for grad_weight. Convolutions have the channels
        of a group in place of K and N, and the samples in place of the positions. The
        gradient of a bias sums grad_output as it arrives. A scale of the whole tensor
        (NVFP4) is left out of the operands and multiplies the finished sum, fl(total
        fl(t_a t_b)) in the carrier, as the epilogue of a hardware product does. A
        stochastic rounding for an operand's second product has a seed of its own.

    Args:
        input: rounding of the first operand (activations), also to a block format.
        weight: rounding of the second operand, also to a block format.
        output: rounding of the finished sum, after the bias was added.
        grad_output: rounding of the incoming gradient, once for both gradient GEMMs or
            to a block format for each.
        grad_input: rounding of the gradient of the first operand.
        grad_weight: rounding of the gradients of the second operand and of the bias.
        accumulator: sums of the output, an `Accumulator` or its shorthand.
        grad_accumulator: sums of the gradients; None: as ``accumulator``;
            ``"carrier"``: not emulated.
        elementwise: rounding of the results of all that is no product of matrices;
            None: torch computes it.

    Raises:
        TypeError: if a field is neither a rounding nor a shorthand for one.
        ValueError: if a field is an unknown name.

    Example:
        >>> Precision(input="e4m3fn", weight="e4m3fn", accumulator="e8m15")
        Precision(input='e4m3fn', weight='e4m3fn', accumulator='e8m15')

    References:
        Micikevicius et al. 2022, FP8 formats for deep learning (the three GEMMs).
    """

    input: AnyRounding | None
    weight: AnyRounding | None
    output: Rounding | None
    grad_output: AnyRounding | None
    grad_input: Rounding | None
    grad_weight: Rounding | None
    accumulator: Accumulator | None
    grad_accumulator: Accumulator | Literal["carrier"] | None
    elementwise: Rounding | None

    # Written out because the fields' types are narrower than what is accepted.
    def __init__(
        self,
        *,
        input: OperandLike | None = None,
        weight: OperandLike | None = None,
        output: RoundingLike | None = None,
        grad_output: OperandLike | None = None,
        grad_input: RoundingLike | None = None,
        grad_weight: RoundingLike | None = None,
        accumulator: AccumulatorLike | None = None,
        grad_accumulator: AccumulatorLike | Literal["carrier"] | None = None,
        elementwise: RoundingLike | None = None,
    ) -> None:
        """Normalise every shorthand."""
        set_field = object.__setattr__
        set_field(self, "input", _normal("input", input))
        set_field(self, "weight", _normal("weight", weight))
        set_field(self, "output", _normal("output", output))
        set_field(self, "grad_output", _normal("grad_output", grad_output))
        set_field(self, "grad_input", _normal("grad_input", grad_input))
        set_field(self, "grad_weight", _normal("grad_weight", grad_weight))
        set_field(self, "accumulator", _normal("accumulator", accumulator))
        set_field(
            self, "grad_accumulator", _normal("grad_accumulator", grad_accumulator)
        )
        set_field(self, "elementwise", _normal("elementwise", elementwise))

    def __repr__(self) -> str:
        """Return one line that evaluates back, only what is rounded."""
        parts = (
            f"{name}={_values.shorthand(value)}"
            for name, value in _values.items(self)
            if value is not None
        )
        return f"Precision({', '.join(parts)})"

    @property
    def blocked(self) -> bool:
        """Whether an operand has a block format."""
        operands = (self.input, self.weight, self.grad_output)
        return any(isinstance(each, BlockRounding) for each in operands)

    @property
    def parameter(self) -> Rounding | None:
        """The rounding of parameters that are no factors of products.

        That is ``weight``, or ``elementwise`` where ``weight`` has a block format,
        whose blocks run along the sums of products, or a set of posits or levels, which
        is meant for factors.
        """
        if isinstance(self.weight, (BlockRounding, TableRounding)):
            return self.elementwise
        return self.weight

    @property
    def is_identity(self) -> bool:
        """Whether nothing is rounded, so that all is left to torch."""
        return all(value is None for _, value in _values.items(self))

    @property
    def products(self) -> tuple[AnyRounding | Accumulator | None, ...]:
        """What products of matrices round by, forward and backward."""
        return (
            self.input,
            self.weight,
            self.output,
            self.grad_output,
            self.grad_input,
            self.grad_weight,
            self.accumulator,
            self.backward_accumulator,
        )

    def roundings(self) -> list[tuple[str, AnyRounding]]:
        """Return the names and roundings of the tensors that are rounded."""
        return [
            (name, value)
            for name, value in _values.items(self)
            if value is not None and name not in _values.ACCUMULATORS
        ]

    @property
    def backward_accumulator(self) -> Accumulator | None:
        """The accumulator of the gradients; None means the carrier's own product."""
        if self.grad_accumulator is None:
            return self.accumulator
        if isinstance(self.grad_accumulator, Accumulator):
            return self.grad_accumulator
        return None

    def to_json(self) -> dict[str, Any]:
        """Return nested dictionaries, strings and numbers that ``json`` can write.

        Contract:
            Only what differs from the default is written; ``from_json`` returns an
            equal object.

        Returns:
            A dictionary from field name to rounding.

        Example:
            >>> Precision(weight=Rounding("e4m3fn", "stochastic")).to_json()
            {'weight': {'format': 'e4m3fn', 'mode': 'stochastic'}}
        """
        return {
            name: _values.to_json(value)
            for name, value in _values.items(self)
            if value is not None
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Precision:
        """Return the precision that ``to_json`` wrote.

        Args:
            data: a mapping from field name to a rounding in JSON form or None.

        Returns:
            The precision.

        Raises:
            TypeError: if a value is not what ``to_json`` writes.
            ValueError: if a key or a name is unknown.

        Example:
            >>> Precision.from_json({"weight": "bfloat16"})
            Precision(weight='bfloat16')
        """
        known = _values.checked_keys(data, cls, "a Precision")
        return cls(
            **{name: _values.parse(name, value) for name, value in known.items()}
        )


def as_precision(value: Any) -> Precision:
    """Return ``value`` if it is a `Precision`; a bare rounding would be ambiguous.

    Args:
        value: a `Precision`.

    Returns:
        The same object.

    Raises:
        TypeError: if it is anything else, saying how to write it.

    Example:
        >>> as_precision(Precision(weight="bfloat16"))
        Precision(weight='bfloat16')
    """
    if isinstance(value, Precision):
        return value
    raise TypeError(
        f"expected a Precision, got {value!r} of type {type(value).__name__}: say "
        "which tensors are rounded, for example Precision(input='e4m3fn', "
        "weight='e4m3fn', accumulator='e8m15')"
    )


def _normal(name: str, value: Any) -> Any:
    if value is None or (name == "accumulator" and value == _CARRIER):
        return None
    if name == "grad_accumulator" and value == _CARRIER:
        return _CARRIER
    convert: Callable[[Any], Any] = as_rounding
    if name in _values.ACCUMULATORS:
        convert = as_accumulator
    elif name in _values.OPERANDS:
        convert = as_any_rounding
    try:
        return convert(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"Precision({name}={value!r}): {error}") from None
