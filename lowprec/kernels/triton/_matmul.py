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
from ._launch import INTERPRETED, SIZES, on_device, power_of_two
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
    within: Rule  # of the additions inside blocks
    proof: Proof | None  # None: every rounding is done in full
    blocked: bool
    grouped: bool  # four consecutive outputs of a row share a block of random words
    huge: bool  # sums may leave the range of float64
    width: int  # of the numbers computed with


@triton.jit
def load_constants(table, WIDTH: tl.constexpr):
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
    total,
    term,
    constants,
    place,
    step,
    PURPOSE: tl.constexpr,
    RULE: tl.constexpr,
    RECIPE: tl.constexpr,
):
    """fl(total + term)."""
    if RECIPE.proof is not None:
        ODD: tl.constexpr = RECIPE.proof.odd
        GUARDED: tl.constexpr = RECIPE.proof.guarded
        return add_proved(total, term, constants, ODD, GUARDED, RECIPE.width)
    else:
        word = None
        if RULE.mode >= STOCHASTIC:
            word = _words(place, step, PURPOSE, RECIPE.grouped)
        return add(total, term, word, constants, RULE, RECIPE.huge)


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


@triton.jit(do_not_specialize=SIZES)
def matmul_kernel(
    a,
    b,
    out,
    sum_table,
    product_table,
    within_table,
    seed_pointer,
    offset: tl.int64,
    rows: tl.int64,
    columns: tl.int64,
    terms: tl.int64,
    block_size: tl.int64,
    a_batch: tl.int64,
    a_row,  # strides without a type become constants where they are 1
    a_term,
    b_batch: tl.int64,
    b_term,
    b_column,
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
    sums = load_constants(sum_table, RECIPE.width)
    products = load_constants(product_table, RECIPE.width)
    insides = load_constants(within_table, RECIPE.width)

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
                partial = _plus(
                    partial, term, insides, place, step, _ADD, RECIPE.within, RECIPE
                )
            total = _plus(
                total, partial, sums, place, number, _COMBINE, RECIPE.sum, RECIPE
            )
            number += 1
    else:
        for k in range(0, terms):
            x = tl.load(left + k * a_term, mask=row_inside, other=0.0).to(FLOAT)
            y = tl.load(right + k * b_term, mask=column_inside, other=0.0).to(FLOAT)
            step = tl.zeros((1,), tl.int64) + k
            term = _term(x, y, products, place, step, RECIPE)
            total = _plus(total, term, sums, place, step, _ADD, RECIPE.sum, RECIPE)
    # Exact: the operands' type holds every value of the accumulator. The payload of a
    # NaN would depend on the order of operands of an instruction.
    result = total.to(out.dtype.element_ty)
    result = tl.where(result == result, result, float("nan"))
    inside = row_inside[:, None] & column_inside[None, :]
    tl.store(out + output + column[None, :], result, mask=inside)


# Outputs of a program (rows, columns) and its warps, by the width computed with: few
# enough that nothing spills and warps wait for each other's loads.
TILES = {32: (32, 64), 64: (32, 32)}
# Every output evaluates Philox for itself, which takes many registers.
_UNGROUPED_TILE = (16, 16)
WARPS = 8
_LARGEST_TILE = 512


class Codes(NamedTuple):
    """Codes of a product's roundings; empty for none."""

    accumulate: tuple[int, ...]
    product: tuple[int, ...]  # empty: products stay exact
    within: tuple[int, ...]  # empty: as `accumulate`


@functools.lru_cache(maxsize=256)
def constants_of(code: tuple[int, ...], width: int, device: torch.device) -> Tensor:
    """The constants of a rounding, where kernels read them."""
    return torch.tensor(plan_of(code, _TYPES[width]).constants, device=device)


_TYPES = {32: torch.float32, 64: torch.float64}


def _proof(a: Tensor, b: Tensor, chosen: Codes, order: int) -> tuple[int, Proof | None]:
    """Return the width to compute with and, if it is one, the proof that it does."""
    modes = {codes.decode(code).mode for code in chosen[:2] if code}
    # Facts are read from the device, which is forbidden while a graph is captured.
    capturing = a.is_cuda and torch.cuda.is_current_stream_capturing()
    if modes != {codes.NEAREST_EVEN} or chosen.within or capturing:
        return 64, None
    facts = facts_of((a, b))
    for width, dtype in _TYPES.items():
        if dtype.itemsize >= a.itemsize:
            blocked = order == codes.BLOCKED
            proof = prove(chosen.accumulate, chosen.product, blocked, facts, dtype)
            if proof is not None:
                return width, proof
    return 64, None


def covers(a: Tensor, b: Tensor, order: int) -> bool:
    """Whether the kernel computes such a product; else the portable one must."""
    if order not in (codes.SEQUENTIAL, codes.BLOCKED):
        return False
    # Products of two float32 numbers are exact in float64; so are those of float64
    # numbers of few bits.
    return a.dtype == torch.float32 or not (is_wide(a) or is_wide(b))


def _check(a: Tensor, b: Tensor, chosen: Codes) -> None:
    for code in chosen:
        if code:
            sums.check_accumulator(codes.decode(code))
    sums.check_result_dtype(codes.decode(chosen.accumulate), a.dtype)
    if a.dtype == torch.float64:
        sums.check_product_range(a, b)


def compiled_tile(recipe: Recipe) -> tuple[int, int]:
    """Outputs of a compiled program: rows and columns."""
    rules = [rule for rule in (recipe.sum, recipe.product, recipe.within) if rule]
    random = any(rule.mode >= codes.STOCHASTIC for rule in rules)
    return _UNGROUPED_TILE if random and not recipe.grouped else TILES[recipe.width]


def tile_of(compiled: tuple[int, int], rows: int, columns: int) -> tuple[int, int]:
    """Outputs of a program: those of a compiled one, or many in the interpreter."""
    if not INTERPRETED:
        return compiled
    return (
        min(power_of_two(rows), _LARGEST_TILE),
        min(power_of_two(columns), _LARGEST_TILE),
    )


def matrices(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Bring operands of equal batch shape to [batch, rows, columns]."""
    if a.dim() == 2:
        return a.unsqueeze(0), b.unsqueeze(0)
    return a.flatten(0, -3), b.flatten(0, -3)


def matmul(
    a: Tensor,
    b: Tensor,
    chosen: Codes,
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
    _check(a, b, chosen)
    out = torch.empty((*a.shape[:-1], b.shape[-1]), dtype=a.dtype, device=a.device)
    terms = a.shape[-1]
    if terms == 0 or out.numel() == 0:
        return out.zero_()
    left, right = matrices(a, b)
    batch, rows, _ = left.shape
    columns = right.shape[2]
    width, proof = _proof(a, b, chosen, order)
    dtype = _TYPES[width]
    accumulate, product = chosen.accumulate, chosen.product
    within = chosen.within or accumulate
    recipe = Recipe(
        sum=plan_of(accumulate, dtype).rule,
        product=plan_of(product, dtype).rule if product else None,
        within=plan_of(within, dtype).rule,
        proof=proof,
        blocked=order == codes.BLOCKED,
        grouped=columns % 4 == 0 and offset % 4 == 0,
        huge=a.dtype == torch.float64 or bool(chosen.within),
        width=width,
    )
    tile = tile_of(compiled_tile(recipe), rows, columns)
    tiles_across = triton.cdiv(columns, tile[1])
    tiles = triton.cdiv(rows, tile[0]) * tiles_across
    with on_device(a):
        matmul_kernel[(batch * tiles,)](
            left,
            right,
            out,
            constants_of(accumulate, width, a.device),
            constants_of(product or accumulate, width, a.device),
            constants_of(within, width, a.device),
            seed.to(a.device),
            offset,
            rows,
            columns,
            terms,
            min(block_size, terms) if recipe.blocked else terms,
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
