"""Matrix products whose every addition rounds, in Triton.

A program computes a tile of outputs, one term of all of them at a time; every sum has
the order of its definition, whatever the tiles are.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import codes, sums
from ..exact import is_wide
from ..portable import CARRIERS
from ._launch import INTERPRETED, on_device, power_of_two
from ._plan import Rule, plan_of
from ._proof import Proof, facts_of, prove
from ._random import element_words, grouped_words
from ._rounding import STOCHASTIC, float_type, lanes
from ._sums import add, add_proved, round_number, round_proved

_PRODUCT = tl.constexpr(codes.PURPOSE_PRODUCT)
_ADD = tl.constexpr(codes.PURPOSE_ADD)
_COMBINE = tl.constexpr(codes.PURPOSE_COMBINE)


class Recipe(NamedTuple):
    """What a kernel is compiled for."""

    sum: Rule
    product: Rule | None  # None: products stay exact
    proof: Proof | None  # None: every rounding is done in full
    blocked: bool
    grouped: bool  # four consecutive outputs of a row share a block of random words
    huge: bool  # sums may leave the range of float64
    width: int  # of the numbers computed with


@triton.jit
def _table(table, WIDTH: tl.constexpr):
    """The constants of a rounding; two of them would be too many arguments."""
    return lanes(
        (
            tl.load(table),
            tl.load(table + 1),
            tl.load(table + 2),
            tl.load(table + 3),
            tl.load(table + 4),
            tl.load(table + 5),
            tl.load(table + 6),
            tl.load(table + 7),
            tl.load(table + 8),
            tl.load(table + 9),
            tl.load(table + 10),
        ),
        WIDTH,
    )


@triton.jit
def _words(place, step, PURPOSE: tl.constexpr, GROUPED: tl.constexpr):
    """The random words of a tile."""
    element, seed = place
    if GROUPED:  # then `element` holds the numbers of the blocks
        return grouped_words(element, seed, step, PURPOSE)
    else:
        return element_words(element, seed, step, PURPOSE)


@triton.jit
def _plus(
    total, term, constants, place, step, PURPOSE: tl.constexpr, RECIPE: tl.constexpr
):
    """fl(total + term)."""
    if RECIPE.proof is not None:
        # The proof of `guarded` is about the terms, not about the sums of blocks.
        GUARDED: tl.constexpr = RECIPE.proof.guarded or PURPOSE == _COMBINE
        return add_proved(
            total, term, constants, RECIPE.proof.odd, GUARDED, RECIPE.width
        )
    else:
        word = None
        if RECIPE.sum.mode >= STOCHASTIC:
            word = _words(place, step, PURPOSE, RECIPE.grouped)
        return add(total, term, word, constants, RECIPE.sum, RECIPE.huge)


@triton.jit
def _term(left, right, constants, place, step, RECIPE: tl.constexpr):
    """The terms pi(a b) of a tile: exact, or rounded if there is a rule for it."""
    term = left[:, None] * right[None, :]
    if RECIPE.product is not None:
        if RECIPE.proof is not None:
            GUARDED: tl.constexpr = RECIPE.proof.guarded
            term = round_proved(term, constants, True, GUARDED, RECIPE.width)
        else:
            word = None
            if RECIPE.product.mode >= STOCHASTIC:
                word = _words(place, step, _PRODUCT, RECIPE.grouped)
            term = round_number(term, word, constants, RECIPE.product, RECIPE.width)
    return term


@triton.jit
def matmul_kernel(
    a,
    b,
    out,
    sum_table,
    product_table,
    seed_pointer,
    offset: tl.int64,
    rows: tl.int64,
    columns: tl.int64,
    terms: tl.int64,
    block_size: tl.int64,
    a_batch: tl.int64,
    a_row: tl.int64,
    a_term: tl.int64,
    b_batch: tl.int64,
    b_term: tl.int64,
    b_column: tl.int64,
    tiles: tl.int32,
    tiles_across: tl.int32,
    RECIPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute one tile of one matrix of the batch."""
    FLOAT: tl.constexpr = float_type(RECIPE.width)
    # A grid of one axis, as the others have few programs; these divisions are of 32
    # bits, and everything else counts in 64.
    program = tl.program_id(0)
    tile = program % tiles
    batch = (program // tiles).to(tl.int64)
    first_row = (tile // tiles_across).to(tl.int64) * ROWS
    first_column = (tile % tiles_across).to(tl.int64) * COLUMNS
    row = first_row + tl.arange(0, ROWS)
    column = first_column + tl.arange(0, COLUMNS)
    row_inside = row < rows
    column_inside = column < columns
    left = a + batch * a_batch + row * a_row
    right = b + batch * b_batch + column * b_column
    output = (batch * rows + row[:, None]) * columns  # [ROWS, 1]
    element = offset + output
    if RECIPE.grouped:
        group = first_column // 4 + tl.arange(0, COLUMNS // 4)
        element = (element >> 2) + group[None, :]
    else:
        element = element + column[None, :]
    place = (element, tl.load(seed_pointer))
    sums = _table(sum_table, RECIPE.width)
    products = _table(product_table, RECIPE.width)

    total = tl.zeros((ROWS, COLUMNS), FLOAT)
    if RECIPE.blocked:
        number = tl.zeros((1,), tl.int64)
        for start in range(0, terms, block_size):
            partial = tl.zeros((ROWS, COLUMNS), FLOAT)
            for k in range(start, tl.minimum(start + block_size, terms)):
                x = tl.load(left + k * a_term, mask=row_inside, other=0.0).to(FLOAT)
                y = tl.load(right + k * b_term, mask=column_inside, other=0.0).to(FLOAT)
                step = number * 0 + k
                term = _term(x, y, products, place, step, RECIPE)
                partial = _plus(partial, term, sums, place, step, _ADD, RECIPE)
            total = _plus(total, partial, sums, place, number, _COMBINE, RECIPE)
            number += 1
    else:
        for k in range(0, terms):
            x = tl.load(left + k * a_term, mask=row_inside, other=0.0).to(FLOAT)
            y = tl.load(right + k * b_term, mask=column_inside, other=0.0).to(FLOAT)
            step = tl.zeros((1,), tl.int64) + k
            term = _term(x, y, products, place, step, RECIPE)
            total = _plus(total, term, sums, place, step, _ADD, RECIPE)
    # Exact: the operands' type holds every value of the accumulator. The payload of a
    # NaN would depend on the order of operands of an instruction.
    result = total.to(out.dtype.element_ty)
    result = tl.where(result == result, result, float("nan"))
    inside = row_inside[:, None] & column_inside[None, :]
    tl.store(out + output + column[None, :], result, mask=inside)


# Outputs of a program (rows, columns) and its warps, by the width computed with: as
# large as registers allow without spilling.
TILES = {32: (64, 64), 64: (32, 32)}
WARPS = 4
_LARGEST_TILE = 512


@functools.lru_cache(maxsize=256)
def _constants(code: tuple[int, ...], width: int, device: torch.device) -> Tensor:
    dtype = torch.float32 if width == 32 else torch.float64
    return torch.tensor(plan_of(code, dtype).constants, device=device)


def _proof(
    a: Tensor,
    b: Tensor,
    accumulate: tuple[int, ...],
    product: tuple[int, ...],
    blocked: bool,
) -> tuple[int, Proof | None]:
    """Return the width to compute with and, if it is one, the proof that it does."""
    plain = all(
        code[5] == codes.NEAREST_EVEN for code in (accumulate, product) if code
    )
    capturing = a.is_cuda and torch.cuda.is_current_stream_capturing()
    if plain and not capturing:  # facts are read from the device, which a graph forbids
        facts = facts_of((a, b))
        for dtype in (torch.float32, torch.float64):
            if dtype.itemsize >= a.itemsize:
                proof = prove(accumulate, product, blocked, facts, dtype)
                if proof is not None:
                    return 8 * dtype.itemsize, proof
    return 64, None


def covers(a: Tensor, b: Tensor, order: int, within: tuple[int, ...]) -> bool:
    """Whether the kernel computes such a product; else the portable one must."""
    if order not in (codes.SEQUENTIAL, codes.BLOCKED) or within:
        return False
    # Products of two float32 numbers are exact in float64; so are those of float64
    # numbers of few bits.
    return a.dtype == torch.float32 or not (is_wide(a) or is_wide(b))


def _matrices(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Bring operands of equal batch shape to [batch, rows, columns]."""
    if a.dim() == 2:
        return a.unsqueeze(0), b.unsqueeze(0)
    return a.flatten(0, -3), b.flatten(0, -3)


def matmul(
    a: Tensor,
    b: Tensor,
    accumulate: tuple[int, ...],
    product: tuple[int, ...],
    order: int,
    block_size: int,
    seed: Tensor,
    offset: int,
) -> Tensor:
    """Multiply [..., M, K] by [..., K, N] where `covers` says that this can be done.

    Raises:
        NotImplementedError: for accumulators of more than 51 bits.
        ValueError: where exact results cannot be computed or returned.
    """
    add_code = codes.decode(accumulate)
    sums.check_accumulator(add_code)
    sums.check_result_dtype(add_code, a.dtype)
    if product:
        sums.check_accumulator(codes.decode(product))
    if a.dtype == torch.float64:
        sums.check_product_range(a, b)
    out = torch.empty(
        (*a.shape[:-1], b.shape[-1]), dtype=a.dtype, device=a.device
    )
    left, right = _matrices(a, b)
    batch, rows, terms = left.shape
    columns = right.shape[2]
    if terms == 0 or out.numel() == 0:
        return out.zero_()
    blocked = order == codes.BLOCKED
    width, proof = _proof(a, b, accumulate, product, blocked)
    dtype = torch.float32 if width == 32 else torch.float64
    recipe = Recipe(
        sum=plan_of(accumulate, dtype).rule,
        product=plan_of(product, dtype).rule if product else None,
        proof=proof,
        blocked=blocked,
        grouped=columns % 4 == 0 and offset % 4 == 0,
        huge=a.dtype == torch.float64,
        width=width,
    )
    tile = TILES[width]
    if INTERPRETED:
        sizes = (power_of_two(rows), power_of_two(columns))
        tile = (min(sizes[0], _LARGEST_TILE), min(sizes[1], _LARGEST_TILE))
    tiles_across = triton.cdiv(columns, tile[1])
    tiles = triton.cdiv(rows, tile[0]) * tiles_across
    with on_device(a):
        matmul_kernel[(batch * tiles,)](
            left,
            right,
            out,
            _constants(accumulate, width, a.device),
            _constants(product or accumulate, width, a.device),
            seed.to(a.device),
            offset,
            rows,
            columns,
            terms,
            min(block_size, terms) if blocked else terms,
            *left.stride(),
            *right.stride(),
            tiles,
            tiles_across,
            RECIPE=recipe,
            ROWS=tile[0],
            COLUMNS=tile[1],
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return out
