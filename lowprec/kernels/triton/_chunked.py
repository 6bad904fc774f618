"""Matrix products in chunks on tensor cores: fast, and not bit-exact."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import codes, sums
from ._launch import SIZES, on_device
from ._matmul import constants_of, load_constants, matrices, tile_of
from ._plan import plan_of
from ._random import element_words
from ._rounding import STOCHASTIC
from ._sums import add

_COMBINE = tl.constexpr(codes.PURPOSE_COMBINE)
# Outputs of a program by the operands' bytes: few enough that nothing spills.
TILES = {4: (64, 64), 2: (64, 32)}
WARPS = 8
# Terms of one dot: all that a chunk must be a multiple of.
DEPTH = 16


@triton.jit(do_not_specialize=SIZES)
def chunked_kernel(
    a,
    b,
    out,
    table,
    seed_pointer,
    offset: tl.int64,
    rows: tl.int64,
    columns: tl.int64,
    terms: tl.int64,
    chunk: tl.int64,
    a_batch: tl.int64,
    a_row,  # strides without a type become constants where they are 1
    a_term,
    b_batch: tl.int64,
    b_term,
    b_column,
    tiles: tl.int32,
    tiles_across: tl.int32,
    RULE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Compute one tile of one matrix of the batch."""
    program = tl.program_id(0)
    tile = program % tiles
    batch = (program // tiles).to(tl.int64)
    row = (tile // tiles_across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tile % tiles_across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH).to(tl.int64)
    row_inside = (row < rows)[:, None]
    column_inside = (column < columns)[None, :]
    left = a + batch * a_batch + row[:, None] * a_row + depth[None, :] * a_term
    right = b + batch * b_batch + depth[:, None] * b_term + column[None, :] * b_column
    output = (batch * rows + row[:, None]) * columns + column[None, :]
    constants = load_constants(table, 64)
    seed = tl.load(seed_pointer)

    total = tl.zeros((ROWS, COLUMNS), tl.float64)
    number = tl.zeros((1,), tl.int64)
    for start in range(0, terms, chunk):
        partial = tl.zeros((ROWS, COLUMNS), tl.float32)
        end = tl.minimum(start + chunk, terms)
        for k in range(start, end, DEPTH):
            inside = k + depth < end
            x = tl.load(left + k * a_term, mask=row_inside & inside[None, :], other=0.0)
            y = tl.load(
                right + k * b_term, mask=column_inside & inside[:, None], other=0.0
            )
            partial = tl.dot(x, y, partial, input_precision="ieee")
        word = None
        if RULE.mode >= STOCHASTIC:
            word = element_words(offset + output, seed, number, _COMBINE)
        total = add(total, partial.to(tl.float64), word, constants, RULE, False)
        number += 1
    result = total.to(tl.float32)
    tl.store(out + output, result, mask=row_inside & column_inside)


def chunked_dot(
    a: Tensor,
    b: Tensor,
    accumulate: tuple[int, ...],
    chunk: int,
    seed: Tensor,
    offset: int,
) -> Tensor:
    """Multiply matrices; `lowprec.kernels.triton.chunked_dot` says how."""
    code = codes.decode(accumulate)
    sums.check_accumulator(code)
    sums.check_result_dtype(code, torch.float32)
    rows, terms = a.shape[-2:]
    columns = b.shape[-1]
    out = torch.empty((*a.shape[:-1], columns), dtype=torch.float32, device=a.device)
    if terms == 0 or out.numel() == 0:
        return out.zero_()
    left, right = matrices(a, b)
    tile = tile_of(TILES[a.itemsize], rows, columns)
    tiles_across = triton.cdiv(columns, tile[1])
    tiles = triton.cdiv(rows, tile[0]) * tiles_across
    with on_device(a):
        chunked_kernel[(left.shape[0] * tiles,)](
            left,
            right,
            out,
            constants_of(accumulate, 64, a.device),
            seed.to(a.device),
            offset,
            rows,
            columns,
            terms,
            min(chunk, -(-terms // DEPTH) * DEPTH),
            *left.stride(),
            *right.stride(),
            tiles,
            tiles_across,
            RULE=plan_of(accumulate, torch.float64).rule,
            ROWS=tile[0],
            COLUMNS=tile[1],
            DEPTH=DEPTH,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return out
