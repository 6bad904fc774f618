"""`lowprec.nn.Linear`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional
from ..precision import Precision, as_precision

__all__ = ["Linear"]


class Linear(torch.nn.Linear):
    """A ``torch.nn.Linear`` whose three GEMMs are emulated.

    y = fl_output(fl_acc(acc(fl_input(x) fl_weight(W)^T) + b)), with gradients under
    the same precision; see `lowprec.functional.linear`.

    Contract:
        Parameters, initialisation and ``state_dict`` are those of ``torch.nn.Linear``:
        the stored weight keeps its carrier values and is rounded in every forward.
        Inside `lowprec.emulate` the module's own precision holds.

    Args:
        in_features: size of each input sample.
        out_features: size of each output sample.
        bias: whether there is an additive bias.
        device: of the parameters.
        dtype: of the parameters, float32 or float64.
        precision: the roundings.
        generator: source of the seeds of stochastic roundings, one per forward; None
            means torch's default generator.

    Shape:
        - Input: ``(*, in_features)``, any number of dimensions from one on.
        - Output: ``(*, out_features)``.

    Raises:
        TypeError: if ``precision`` is not a `Precision`; in forward as
            `lowprec.functional.linear`.

    Example:
        >>> layer = Linear(2, 3, bias=False, precision=Precision(weight="bfloat16"))
        >>> layer
        Linear(in_features=2, out_features=3, bias=False, \
precision=Precision(weight='bfloat16'))
        >>> layer(torch.ones(5, 2)).shape
        torch.Size([5, 3])
    """

    precision: Precision
    generator: torch.Generator | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        precision: Precision,
        generator: torch.Generator | None = None,
    ) -> None:
        """Create and initialise the parameters as ``torch.nn.Linear`` does."""
        checked = as_precision(precision)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.precision = checked
        self.generator = generator

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to ``input`` [..., in_features]."""
        return functional.linear(
            input,
            self.weight,
            self.bias,
            precision=self.precision,
            generator=self.generator,
        )

    def extra_repr(self) -> str:
        """Return what torch prints, and the precision."""
        return f"{super().extra_repr()}, precision={self.precision!r}"

    @classmethod
    def from_float(
        cls,
        module: torch.nn.Linear,
        *,
        precision: Precision,
        generator: torch.Generator | None = None,
    ) -> Linear:
        """Return an emulated layer that shares the parameters of ``module``.

        Args:
            module: a ``torch.nn.Linear``; it is left as it is.
            precision: the roundings.
            generator: source of the seeds of stochastic roundings.

        Returns:
            A new module with the same Parameter objects, mode, but no hooks.

        Raises:
            TypeError: if ``module`` is not a ``torch.nn.Linear``.

        Example:
            >>> plain = torch.nn.Linear(2, 3)
            >>> layer = Linear.from_float(plain, precision=Precision(output="e4m3fn"))
            >>> layer.weight is plain.weight
            True
        """
        if not isinstance(module, torch.nn.Linear):
            raise TypeError(
                "from_float takes a torch.nn.Linear, "
                f"got {type(module).__module__}.{type(module).__qualname__}"
            )
        result = cls(
            module.in_features,
            module.out_features,
            bias=False,
            device="meta",
            precision=precision,
            generator=generator,
        )
        result.weight = module.weight
        result.bias = module.bias
        return result.train(module.training)
