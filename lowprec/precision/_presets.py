"""Policies that have a name: recipes of hardware and of the literature."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..block_rounding import BlockRounding
from ..formats import BlockFormat, block_format, columns
from ..rounding import Rounding, RoundingMode, Saturation
from ._policy import Policy
from ._precision import Precision

__all__ = ["Preset", "Presets", "preset", "presets"]

# Sums of losses are of no interest to the recipes, which keep them in binary32.
_LOSSES = (
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "mse_loss",
    "nll_loss",
    "smooth_l1_loss",
)


@dataclass(frozen=True)
class Preset:
    """A policy with a name, what it means and where it comes from."""

    name: str
    summary: str
    source: str
    policy: Policy


@dataclass(frozen=True)
class Presets:
    """The presets; ``print`` shows them as a table."""

    rows: tuple[Preset, ...]

    def __iter__(self) -> Iterator[Preset]:
        """Iterate over the presets."""
        return iter(self.rows)

    def __len__(self) -> int:
        """Return the number of presets."""
        return len(self.rows)

    def __str__(self) -> str:
        """Return a table."""
        cells = [(row.name, row.summary, row.source) for row in self.rows]
        cells.insert(0, ("name", "summary", "source"))
        return "\n".join(columns(cells))


def _everywhere(precision: Precision) -> Policy:
    return Policy({"*": precision}, operations=dict.fromkeys(_LOSSES))


def _uniform(format: str, results: RoundingMode, **sums: Any) -> Precision:
    """Round every tensor to one format; only results get another mode."""
    result = Rounding(format, results)
    return Precision(
        input=format,
        weight=format,
        grad_output=format,
        output=result,
        grad_input=result,
        grad_weight=result,
        elementwise=result,
        **sums,
    )


def _fp8(**sums: Any) -> Precision:
    return Precision(
        input=Rounding("e4m3fn", saturation=Saturation.FINITE),
        weight=Rounding("e4m3fn", saturation=Saturation.FINITE),
        grad_output=Rounding("e5m2", saturation=Saturation.FINITE),
        output="bfloat16",
        grad_input="bfloat16",
        grad_weight="bfloat16",
        elementwise="bfloat16",
        **sums,
    )


def _blocks(operand: BlockFormat, gradient: RoundingMode) -> Precision:
    """Round operands to a block format, results to bfloat16."""
    return Precision(
        input=operand,
        weight=operand,
        grad_output=BlockRounding(operand, gradient),
        output="bfloat16",
        grad_input="bfloat16",
        grad_weight="bfloat16",
        elementwise="bfloat16",
    )


@functools.cache
def _table() -> dict[str, Preset]:
    nearest, stochastic = RoundingMode.NEAREST_EVEN, RoundingMode.STOCHASTIC
    mxfp8 = block_format("mxfp8_e4m3").replace(rule="rceil")
    rows = [
        Preset(
            "tf32",
            "operands of products tf32, all else binary32",
            "NVIDIA A100 whitepaper, 2020",
            Policy({"*": Precision(input="tf32", weight="tf32", grad_output="tf32")}),
        ),
        Preset(
            "bf16",
            "every tensor bfloat16, sums binary32",
            "Kalamkar et al., 2019",
            _everywhere(_uniform("bfloat16", nearest)),
        ),
        Preset(
            "bf16-sr",
            "as bf16, results rounded stochastically",
            "Gupta et al., 2015; Zamirai et al., 2020",
            _everywhere(_uniform("bfloat16", stochastic)),
        ),
        Preset(
            "bf16-acc15",
            "as bf16, sums e8m15 (15-bit accumulator)",
            "low-precision SGD, accumulator C",
            _everywhere(_uniform("bfloat16", nearest, accumulator="e8m15")),
        ),
        Preset(
            "bf16-acc10",
            "as bf16, sums e8m10 (10-bit accumulator)",
            "low-precision SGD, accumulator D",
            _everywhere(_uniform("bfloat16", nearest, accumulator="e8m10")),
        ),
        Preset(
            "fp16",
            "every tensor binary16, sums binary32; needs loss scaling",
            "Micikevicius et al., 2018",
            _everywhere(_uniform("binary16", nearest)),
        ),
        Preset(
            "fp8",
            "operands e4m3fn, gradients e5m2, results bfloat16, unscaled",
            "Micikevicius et al., 2022",
            _everywhere(_fp8()),
        ),
        Preset(
            "fp8-acc15",
            "as fp8, sums e8m15 (15-bit accumulator)",
            "Micikevicius et al., 2022",
            _everywhere(_fp8(accumulator="e8m15")),
        ),
        Preset(
            "fp8-acc10",
            "as fp8, sums e8m10 (10-bit accumulator)",
            "Wang et al., 2018",
            _everywhere(_fp8(accumulator="e8m10")),
        ),
        Preset(
            "mxfp8",
            "operands and gradients MXFP8 e4m3, scales rounded up, results bfloat16",
            "Mishra et al., 2025",
            _everywhere(_blocks(mxfp8, nearest)),
        ),
        Preset(
            "nvfp4",
            "operands NVFP4, gradients stochastically, results bfloat16",
            "NVIDIA, 2025; without Hadamard transforms, weights in rows too",
            _everywhere(_blocks(block_format("nvfp4"), stochastic)),
        ),
    ]
    return {row.name: row for row in rows}


def presets() -> Presets:
    """Return the named policies.

    Contract:
        A preset describes the arithmetic of a recipe: formats of tensors and sums. It
        holds no scales of tensors but those of block formats, no loss scaling, no
        master weights; those belong to the training loop. Sums called binary32 are
        those of torch in the carrier, in an order that is not specified, as on the
        hardware. Losses stay in the carrier.

    Returns:
        A table that prints itself.

    Example:
        >>> [row.name for row in presets()][:3]
        ['tf32', 'bf16', 'bf16-sr']
    """
    return Presets(tuple(_table().values()))


def preset(name: str) -> Policy:
    """Return the policy of a preset.

    Args:
        name: as `presets` lists it.

    Returns:
        A policy for all modules of any model.

    Raises:
        ValueError: if there is no such preset.

    Example:
        >>> preset("tf32")
        Policy({'*': Precision(input='tf32', weight='tf32', grad_output='tf32')})

    References:
        Kalamkar et al. 2019, A study of BFLOAT16 for deep learning training.
        Micikevicius et al. 2018, Mixed precision training; 2022, FP8 formats for deep
        learning. Wang et al. 2018, Training deep neural networks with 8-bit floating
        point numbers. Mishra et al. 2025, Recipes for pre-training LLMs with MXFP8.
        NVIDIA 2025, Pretraining large language models with NVFP4.
    """
    table = _table()
    if name not in table:
        raise ValueError(f"unknown preset {name!r}: it must be one of {list(table)}")
    return table[name].policy
