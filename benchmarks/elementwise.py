"""How long rounding takes beside a copy, in every format class, mode and size.

Run ``python benchmarks/elementwise.py`` from the repository root; one thread. Peers are
timed where they are installed (``pip install ".[peers]"``). Results are checked against
the portable kernels first and go to ``results/elementwise.json``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from harness import compare, require_equal, row, save, show

import lowprec as lp
from lowprec import kernels
from lowprec.arithmetic._codec import _encoding, decode, encode
from lowprec.kernels import native, portable

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tables import FORMATS, MODES, VARIANTS, fits, name_of

SIZES = (100_000, 1_000_000, 10_000_000, 100_000_000)
COMMON = ("bfloat16", "binary16", "e4m3fn", "e5m2")
RARE: tuple[Any, ...] = (
    lp.Posit(8),
    lp.Posit(16),
    lp.Levels.ternary(),
    lp.Levels.int_bits(8),
    "dlfloat16",
    "e8m0fnu",
    "binary8p1",
    lp.Format.fixed_point(16, 8, name="fixed16_8 wrapped"),
)
CHECKED = 10_000  # elements compared with the portable kernels before timing


def kernel(
    x: torch.Tensor, rounding: lp.Rounding, out: torch.Tensor
) -> Callable[[], object]:
    """Check a rounding and return the call to time."""
    head = x.flatten()[:CHECKED]
    if rounding.stochastic:
        seed = torch.tensor(1)
        expected = portable.round_stochastic(head, rounding.code, seed, 0)
    else:
        expected = portable.round(head, rounding.code)
    require_equal(str(rounding), lp.round(head, rounding, seed=1), expected)
    seed_of = {"seed": 1} if rounding.stochastic else {}
    return lambda: lp.round(x, rounding, out=out, **seed_of)


def roundings(target: lp.Format) -> Iterator[lp.Rounding]:
    """Every mode, and every variant of the stochastic one."""
    for mode in MODES:
        for variant in VARIANTS if mode.value == "stochastic" else VARIANTS[:1]:
            yield lp.Rounding(target, mode, variant=variant)


def common(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Time the common formats at every size: out=, in place, allocating."""
    return [
        record
        for size in sizes
        for name in COMMON
        for mode in ("nearest_even", "toward_zero", "stochastic")
        for record in _one(size, lp.Rounding(name, mode))
    ]


def _one(size: int, rounding: lp.Rounding) -> list[dict[str, Any]]:
    x = torch.randn(size)
    out, place = torch.empty_like(x), x.clone()
    mode = rounding.mode.value
    what = {"size": size, "format": rounding.format.name, "mode": mode}
    calls: dict[str, Callable[[], object]] = {
        "copy_": lambda: out.copy_(x),
        "out=": kernel(x, rounding, out),
        "in place": kernel(place, rounding, place),
    }
    rows = row(compare(calls, seconds=4), "copy_", **what)
    if mode == "nearest_even":
        new: dict[str, Callable[[], object]] = {
            "clone": lambda: x.clone(),
            "allocating": lambda: lp.round(x, rounding),
        }
        rows += row(compare(new, seconds=4), "clone", **what)
    return rows


def codes(size: int, name: str) -> list[dict[str, Any]]:
    """Time bit patterns of a common format: written and read, the kernels alone too."""
    target = lp.format(name)
    dtype = torch.uint8 if target.bits == 8 else torch.int32
    x = lp.round(torch.randn(size), target)
    out, code = torch.empty_like(x), encode(x, target, dtype=dtype)
    require_equal(f"codes of {name}", decode(code, target), x)
    integers = list(_encoding(target))
    calls: dict[str, Callable[[], object]] = {
        "copy_": lambda: out.copy_(x),
        "encode": lambda: encode(x, target, dtype=dtype),
        "decode": lambda: decode(code, target),
        "encode, unchecked": lambda: kernels.encode(x, integers, dtype),
        "decode, unchecked": lambda: kernels.decode(code, integers, torch.float32),
    }
    return row(compare(calls, seconds=4), "copy_", size=size, codes=name)


def every_format(size: int, carrier: torch.dtype, isa: int) -> list[dict[str, Any]]:
    """Time every format and mode of the tests' tables with one instruction set."""
    native.set_instruction_set(isa)
    x = torch.randn(size, dtype=carrier)
    out = torch.empty_like(x)
    rows = []
    for target in FORMATS:
        if not fits(target, carrier):
            continue
        calls: dict[str, Callable[[], object]] = {"copy_": lambda: out.copy_(x)}
        for rounding in roundings(target):
            tail = rounding.variant.value if rounding.mode.value == "stochastic" else ""
            calls[f"{rounding.mode.value} {tail}".strip()] = kernel(x, rounding, out)
        what = {
            "size": size,
            "format": name_of(target),
            "carrier": name_of(carrier),
            "isa": isa,
        }
        rows += row(compare(calls, rounds=21, seconds=10), "copy_", **what)
    native.set_instruction_set()
    return rows


def rare(size: int) -> list[dict[str, Any]]:
    """Time posits, levels, and formats that the tests' tables do not have."""
    x = torch.randn(size)
    out = torch.empty_like(x)
    rows = []
    for target in RARE:
        given = lp.format(target) if isinstance(target, str) else target
        saturation = "wrap" if given in RARE[-1:] else None
        calls: dict[str, Callable[[], object]] = {"copy_": lambda: out.copy_(x)}
        for mode in ("nearest_even", "toward_zero", "stochastic"):

            def call(
                x: torch.Tensor,
                given: Any = given,
                mode: str = mode,
                saturation: str | None = saturation,
            ) -> torch.Tensor:
                seed = 1 if mode == "stochastic" else None
                return lp.round(x, given, mode, saturation=saturation, seed=seed)

            head = x[:CHECKED]
            with kernels.using("portable"):
                expected = call(head)
            require_equal(f"{given!r} {mode}", call(head), expected)
            calls[mode] = lambda call=call: call(x)
        what = {"size": size, "format": given.name or f"{len(given)} levels"}
        rows += row(compare(calls, rounds=21, seconds=10), "copy_", **what)
    return rows


def _peer(name: str, make: Callable[[Any], Any]) -> dict[str, Callable[[], object]]:
    try:
        return {name: make(importlib.import_module(name))}
    except Exception as problem:  # a peer that cannot be used is no reason to stop
        print(f"without {name}: {problem}")
        return {}


def peers(size: int) -> list[dict[str, Any]]:
    """Time other libraries at nearest-even e4m3-like rounding, ours with out=."""
    x = torch.randn(size)
    out = torch.empty_like(x)
    array = x.numpy()
    calls: dict[str, Callable[[], object]] = {
        "lowprec": kernel(x, lp.Rounding("e4m3"), out),
        "copy_": lambda: out.copy_(x),
    }
    calls |= _peer(
        "qtorch.quant",
        lambda q: lambda: q.float_quantize(x, exp=4, man=3, rounding="nearest"),
    )

    def chop(module: Any) -> Callable[[], object]:
        module.backend("torch")
        round_to = module.Chop(exp_bits=4, sig_bits=3, rmode=1)
        return lambda: round_to(x)

    calls |= _peer("pychop", chop)

    def gfloat(module: Any) -> Callable[[], object]:
        formats = importlib.import_module("gfloat.formats")
        return lambda: module.round_ndarray(formats.format_info_ocp_e4m3, array)

    calls |= _peer("gfloat", gfloat)

    def ml_dtypes(module: Any) -> Callable[[], object]:
        return lambda: array.astype(module.float8_e4m3).astype("float32")

    calls |= _peer("ml_dtypes", ml_dtypes)
    return row(compare(calls, rounds=9, seconds=60), "lowprec", size=size)


def main() -> None:
    """Time what the arguments ask for and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--size", type=int, default=1_000_000, help="of every format")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = common(tuple(size for size in SIZES if size <= arguments.largest))
    rows += [record for name in COMMON for record in codes(1_000_000, name)]
    for isa in reversed(native.instruction_sets()):
        rows += every_format(arguments.size, torch.float32, isa)
    rows += every_format(arguments.size, torch.float64, native.instruction_sets()[-1])
    rows += rare(arguments.size)
    rows += peers(1_000_000)
    show(rows, "size", "format", "codes", "carrier", "isa", "mode")
    print(save("elementwise", rows))


if __name__ == "__main__":
    main()
