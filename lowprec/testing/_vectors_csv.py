"""``lowprec vectors``: test vectors for hardware benches as CSV."""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from ..block_rounding import BlockRounding
from ..formats import BlockFormat, Format, any_format
from ..rounding import Rounding, RoundingMode, Saturation, Variant
from ..table_rounding import TableRounding
from ._block_vectors import BlockVector, block_vectors
from ._exact_operations import EXACT_OPERATIONS
from ._vectors import Coded, Vector, coded, vectors

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``lowprec vectors``."""
    choices = {
        "mode": RoundingMode,
        "saturation": Saturation,
        "variant": Variant,
    }
    parser.add_argument(
        "format",
        metavar="FORMAT",
        help="of operands and result, such as e4m3fn, fixed8f4, posit8, ternary, mxfp4",
    )
    parser.add_argument(
        "--operation", default="round", choices=list(EXACT_OPERATIONS), help="[round]"
    )
    for name, values in choices.items():
        default = next(iter(values)).value
        names = [value.value for value in values]
        note = ", of block formats finite" if name == "saturation" else ""
        parser.add_argument(f"--{name}", choices=names, help=f"[{default}{note}]")
    parser.add_argument(
        "--random-bits", type=int, default=32, help="of stochastic modes [32]"
    )
    parser.add_argument("--source", help="format of the operand of 'round' [binary32]")
    parser.add_argument(
        "--count", type=int, help="operands [all if they are at most 2^18, else 10000]"
    )
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    parser.add_argument("--out", help="path of the CSV file [standard output]")


def run(arguments: argparse.Namespace) -> None:
    """Write what ``lowprec vectors`` was asked for as CSV."""
    rows = _rows(arguments)
    head = next(rows)  # what cannot be done is refused before a file is opened
    if arguments.out is None:
        _write(head, rows, sys.stdout)
        return
    unfinished = f"{arguments.out}.part"  # so that what has the name is complete
    try:
        with open(unfinished, "w", encoding="utf-8", newline="") as file:
            _write(head, rows, file)
        os.replace(unfinished, arguments.out)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(unfinished)
        raise


def _rounding(
    arguments: argparse.Namespace,
) -> Rounding | TableRounding | BlockRounding:
    """Return the rounding that the arguments mean.

    Raises:
        ValueError: if they contradict each other.
    """
    target = any_format(arguments.format)
    given = {
        "mode": arguments.mode,
        "saturation": arguments.saturation,
        "random_bits": arguments.random_bits,
        "variant": arguments.variant,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    if isinstance(target, Format):
        return Rounding(target, **fields)
    if isinstance(target, BlockFormat):
        return BlockRounding(target, **fields)
    if "saturation" in fields:
        raise ValueError(
            f"--saturation does not apply to {arguments.format}: beyond its ends the "
            "ends stand"
        )
    return TableRounding(target, **fields)


def _rows(arguments: argparse.Namespace) -> Iterator[Sequence[str]]:
    """Yield the names of the columns, then hexadecimal cells."""
    rounding = _rounding(arguments)
    options = {
        "source": arguments.source,
        "count": arguments.count,
        "seed": arguments.seed,
    }
    source = coded(arguments.source or "binary32")
    if isinstance(rounding, BlockRounding):
        if arguments.operation != "round":
            raise ValueError(
                f"{arguments.format} is a block format, whose vectors are those of "
                "--operation round"
            )
        yield from _block_rows(rounding, source, block_vectors(rounding, **options))
        return
    yield from _number_rows(
        arguments.operation,
        rounding,
        source if arguments.operation == "round" else rounding.format,
        vectors(arguments.operation, rounding, **options),
    )


def _number_rows(
    operation: str,
    rounding: Rounding | TableRounding,
    source: Coded,
    found: Iterator[Vector],
) -> Iterator[Sequence[str]]:
    """Yield columns: operands, the random word, the result, the flags."""
    arity, random = EXACT_OPERATIONS[operation], rounding.stochastic
    yield [*"abc"[:arity], *["word"] * random, "result", "flags"]
    given, made = _digits(source.bits), _digits(rounding.format.bits)
    widths = [given] * arity + [8] * random + [made, 2]
    for vector in found:
        words = [] if vector.word is None else [vector.word]
        yield _cells([*vector.operands, *words, vector.result, vector.flags], widths)


def _block_rows(
    rounding: BlockRounding, source: Coded, found: Iterator[BlockVector]
) -> Iterator[Sequence[str]]:
    """Yield columns: numbers, random words, elements, the scale, the tensor's scale."""
    target, random = rounding.format, rounding.stochastic
    second = target.tensor_scale
    counts = range(target.block_size)
    parts = [("a", _digits(source.bits)), *[("word", 8)] * random]
    parts.append(("q", _digits(target.element.bits)))
    ends = [("scale", target.scale.bits)]
    ends += [] if second is None else [("tensor_scale", second.bits)]
    yield [
        *(f"{name}{j}" for name, _ in parts for j in counts),
        *(name for name, _ in ends),
    ]
    widths = [width for _, width in parts for _ in counts]
    widths += [_digits(bits) for _, bits in ends]
    for vector in found:
        last = [] if vector.tensor_scale is None else [vector.tensor_scale]
        codes = (*vector.operands, *(vector.words or ()), *vector.elements)
        yield _cells([*codes, vector.scale, *last], widths)


def _cells(codes: Iterable[int], widths: Iterable[int]) -> list[str]:
    return [f"{code:0{width}x}" for code, width in zip(codes, widths, strict=True)]


def _digits(bits: int) -> int:
    return -(-bits // 4)


def _write(head: Sequence[str], rows: Iterator[Sequence[str]], file: TextIO) -> None:
    out: Any = csv.writer(file, lineterminator="\n")
    out.writerow(head)
    out.writerows(rows)
