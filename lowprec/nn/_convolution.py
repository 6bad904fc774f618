"""`lowprec.nn.Conv1d`, `Conv2d` and `Conv3d`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .. import functional
from ..precision import Precision, as_precision

__all__ = ["Conv1d", "Conv2d", "Conv3d"]

_Layer = TypeVar("_Layer", bound="_Convolution")
_Sizes = int | tuple[int, ...]


class _Convolution(torch.nn.modules.conv._ConvNd):
    """What the three layers share; torch's class for the dimension comes after it."""

    precision: Precision
    generator: torch.Generator | None
    _function: Callable[..., Tensor]
    _torch: type[torch.nn.modules.conv._ConvNd]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Sizes,
        stride: _Sizes = 1,
        padding: str | _Sizes = 0,
        dilation: _Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        precision: Precision,
        generator: torch.Generator | None = None,
    ) -> None:
        """Create and initialise the parameters as torch's layer does."""
        checked = as_precision(precision)
        layer = cast(Any, super())  # torch's layer, not its base
        layer.__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self.precision = checked
        self.generator = generator

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to ``input``, with or without a batch dimension."""
        padding: str | _Sizes = self.padding
        if self.padding_mode != "zeros":
            sides = self._reversed_padding_repeated_twice
            # One call, so that the gradients of repeated elements add as elsewhere.
            input = functional.selection(
                torch.nn.functional.pad,
                input,
                sides,
                mode=self.padding_mode,
                precision=self.precision,
                generator=self.generator,
            )
            padding = 0
        return self._function(
            input,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            precision=self.precision,
            generator=self.generator,
        )

    def extra_repr(self) -> str:
        """Return what torch prints, and the precision."""
        text = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{text}, precision={self.precision!r}"

    @classmethod
    def from_float(
        cls: type[_Layer],
        module: torch.nn.modules.conv._ConvNd,
        *,
        precision: Precision,
        generator: torch.Generator | None = None,
    ) -> _Layer:
        """Return an emulated layer that shares the parameters of ``module``.

        Args:
            module: torch's layer of the same name; it is left as it is.
            precision: the roundings.
            generator: source of the seeds of stochastic roundings.

        Returns:
            A new module with the same Parameter objects, mode, but no hooks.

        Raises:
            TypeError: if ``module`` is not torch's layer of the same name.

        Example:
            >>> plain = torch.nn.Conv1d(2, 3, 5)
            >>> layer = Conv1d.from_float(plain, precision=Precision(output="e4m3fn"))
            >>> layer.weight is plain.weight
            True
        """
        if not isinstance(module, cls._torch):
            raise TypeError(
                f"from_float takes a torch.nn.{cls._torch.__name__}, "
                f"got {type(module).__module__}.{type(module).__qualname__}"
            )
        result = cls(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
            False,
            module.padding_mode,
            "meta",
            precision=precision,
            generator=generator,
        )
        result.weight = module.weight
        result.bias = module.bias
        return result.train(module.training)


class Conv1d(_Convolution, torch.nn.Conv1d):
    """A ``torch.nn.Conv1d`` whose three products are emulated.

    As `Conv2d`, with `lowprec.functional.conv1d`.

    Shape:
        - Input: ``(N, C, L)`` or ``(C, L)``.
        - Output: ``(N, O, L')`` or ``(O, L')``.

    Example:
        >>> layer = Conv1d(2, 3, 5, precision=Precision(weight="bfloat16"))
        >>> layer(torch.ones(4, 2, 8)).shape
        torch.Size([4, 3, 4])
    """

    _function = staticmethod(functional.conv1d)
    _torch = torch.nn.Conv1d


class Conv2d(_Convolution, torch.nn.Conv2d):
    """A ``torch.nn.Conv2d`` whose three products are emulated.

    y = fl_output(fl_acc(acc(fl_input(x) * fl_weight(W)) + b)), where * convolves, with
    gradients under the same precision; see `lowprec.functional.conv2d`.

    Contract:
        Parameters, initialisation and ``state_dict`` are those of ``torch.nn.Conv2d``:
        the stored weight keeps its carrier values and is rounded in every forward.
        Padding modes other than zeros move values before anything is rounded; the
        gradient of an element that they repeat is added up in the carrier, as torch
        does. Inside `lowprec.emulate` the module's own precision holds.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: as all that follow up to ``dtype`` those of ``torch.nn.Conv2d``.
        stride: distance of windows.
        padding: zeros on both sides, ``"valid"`` or ``"same"``.
        dilation: distance of the elements of a window.
        groups: groups of channels that are convolved separately.
        bias: whether there is an additive bias.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device: of the parameters.
        dtype: of the parameters, float32 or float64.
        precision: the roundings.
        generator: source of the seeds of stochastic roundings, one per forward; None
            means torch's default generator.

    Shape:
        - Input: ``(N, C, H, W)`` or ``(C, H, W)``.
        - Output: ``(N, O, H', W')`` or ``(O, H', W')``.

    Raises:
        TypeError: if ``precision`` is not a `Precision`; in forward as
            `lowprec.functional.conv2d`.
        ValueError: as ``torch.nn.Conv2d``; in forward as `lowprec.functional.conv2d`.

    Example:
        >>> layer = Conv2d(2, 3, 5, precision=Precision(weight="bfloat16"))
        >>> layer
        Conv2d(2, 3, kernel_size=(5, 5), stride=(1, 1), \
precision=Precision(weight='bfloat16'))
        >>> layer(torch.ones(4, 2, 8, 8)).shape
        torch.Size([4, 3, 4, 4])
    """

    _function = staticmethod(functional.conv2d)
    _torch = torch.nn.Conv2d


class Conv3d(_Convolution, torch.nn.Conv3d):
    """A ``torch.nn.Conv3d`` whose three products are emulated.

    As `Conv2d`, with `lowprec.functional.conv3d`.

    Shape:
        - Input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
        - Output: ``(N, O, D', H', W')`` or ``(O, D', H', W')``.

    Example:
        >>> layer = Conv3d(2, 3, 5, precision=Precision(weight="bfloat16"))
        >>> layer(torch.ones(4, 2, 8, 8, 8)).shape
        torch.Size([4, 3, 4, 4, 4])
    """

    _function = staticmethod(functional.conv3d)
    _torch = torch.nn.Conv3d
