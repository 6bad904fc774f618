"""Rounding of every element of a tensor, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..codes import PURPOSE_ROUND
from ..portable import CARRIERS
from ._launch import INTERPRETED, SIZES, on_device, power_of_two
from ._plan import Constants, plan_of
from ._random import grouped_words
from ._rounding import lanes, round_bits

_PURPOSE = tl.constexpr(PURPOSE_ROUND)
# Elements per program: two 16-byte loads of float32 per thread. The interpreter takes
# milliseconds per program, so there it is as large as the tensor.
BLOCK = 1024
WARPS = 4
_LARGEST_BLOCK = 1 << 20


@triton.jit(do_not_specialize=[*SIZES, *Constants._fields])
def round_kernel(
    x,
    out,
    count: tl.int64,
    emin: tl.int64,
    drop: tl.int64,
    beyond: tl.int64,
    largest: tl.int64,
    over: tl.int64,
    over_negative: tl.int64,
    infinite: tl.int64,
    infinite_negative: tl.int64,
    below: tl.int64,
    keep_sign: tl.int64,
    random_bits: tl.int64,
    RULE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Round ``count`` elements in a deterministic mode."""
    constants = lanes(
        (
            emin,
            drop,
            beyond,
            largest,
            over,
            over_negative,
            infinite,
            infinite_negative,
            below,
            keep_sign,
            random_bits,
        ),
        WIDTH,
    )
    start = tl.program_id(0).to(tl.int64) * BLOCK
    index = start + tl.arange(0, BLOCK)
    # Without a mask in full blocks: loads stay vectors whatever the count is.
    if start + BLOCK <= count:
        bits = tl.load(x + index)
        tl.store(out + index, round_bits(bits, None, constants, RULE, WIDTH))
    else:
        inside = index < count
        bits = tl.load(x + index, mask=inside, other=0)
        rounded = round_bits(bits, None, constants, RULE, WIDTH)
        tl.store(out + index, rounded, mask=inside)


@triton.jit(do_not_specialize=[*SIZES, *Constants._fields])
def stochastic_kernel(
    x,
    out,
    seed,
    count: tl.int64,
    first_block: tl.int64,
    emin: tl.int64,
    drop: tl.int64,
    beyond: tl.int64,
    largest: tl.int64,
    over: tl.int64,
    over_negative: tl.int64,
    infinite: tl.int64,
    infinite_negative: tl.int64,
    below: tl.int64,
    keep_sign: tl.int64,
    random_bits: tl.int64,
    RULE: tl.constexpr,
    WIDTH: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Round ``count`` elements; the first has the index 4 first_block + SHIFT."""
    constants = lanes(
        (
            emin,
            drop,
            beyond,
            largest,
            over,
            over_negative,
            infinite,
            infinite_negative,
            below,
            keep_sign,
            random_bits,
        ),
        WIDTH,
    )
    start = tl.program_id(0).to(tl.int64) * BLOCK
    GROUPS: tl.constexpr = BLOCK // 4
    block = first_block + tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    step = tl.zeros((1,), tl.int64)
    words = grouped_words(block, tl.load(seed), step, _PURPOSE)
    index = start + tl.arange(0, BLOCK) - SHIFT
    if (start >= SHIFT) & (start + BLOCK - SHIFT <= count):
        bits = tl.load(x + index)
        tl.store(out + index, round_bits(bits, words, constants, RULE, WIDTH))
    else:
        inside = (index >= 0) & (index < count)
        bits = tl.load(x + index, mask=inside, other=0)
        rounded = round_bits(bits, words, constants, RULE, WIDTH)
        tl.store(out + index, rounded, mask=inside)


def _block(count: int) -> int:
    return min(power_of_two(count), _LARGEST_BLOCK) if INTERPRETED else BLOCK


def round(x: Tensor, code: tuple[int, ...]) -> Tensor:
    """Round every element in a deterministic mode; a new contiguous tensor."""
    plan = plan_of(code, x.dtype)
    carrier = CARRIERS[x.dtype]
    source = x.contiguous()
    out = torch.empty_like(source)
    count = source.numel()
    if count == 0:
        return out
    block = _block(count)
    with on_device(x):
        round_kernel[(triton.cdiv(count, block),)](
            source.view(carrier.integer),
            out.view(carrier.integer),
            count,
            *plan.constants,
            RULE=plan.rule,
            WIDTH=carrier.width,
            BLOCK=block,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return out


def round_stochastic(
    x: Tensor, code: tuple[int, ...], seed: Tensor, offset: int
) -> Tensor:
    """Round every element with the random word of its index plus ``offset``."""
    plan = plan_of(code, x.dtype)
    carrier = CARRIERS[x.dtype]
    source = x.contiguous()
    out = torch.empty_like(source)
    count = source.numel()
    if count == 0:
        return out
    first_block, shift = divmod(offset, 4)
    block = _block(count + shift)
    with on_device(x):
        stochastic_kernel[(triton.cdiv(count + shift, block),)](
            source.view(carrier.integer),
            out.view(carrier.integer),
            seed.to(x.device),
            count,
            first_block,
            *plan.constants,
            RULE=plan.rule,
            WIDTH=carrier.width,
            SHIFT=shift,
            BLOCK=block,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return out
