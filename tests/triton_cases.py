"""The kernels that are compiled ahead of time, and what each may cost.

``python tests/triton_cases.py`` compiles all of them and records registers and
instructions per element, or per multiplication, as the new ceilings.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import torch
from triton_compiling import TARGETS, compile_kernel

import lowprec as lp

CEILINGS = Path(__file__).parent / "triton_kernels" / "ceilings.json"
FLUSH = lp.Format(precision=8, emax=127, subnormals=False)

# Format, mode, further arguments of the rounding, carrier.
ROUNDINGS = {
    "floats": ("e4m3fn", "nearest_even", {}, torch.float32),
    "floats directed": ("e4m3fn", "toward_zero", {}, torch.float32),
    "floats stochastic": ("e6m8", "stochastic", {}, torch.float32),
    "floats float64": ("bfloat16", "nearest_even", {}, torch.float64),
    "mask": ("bfloat16", "nearest_even", {}, torch.float32),
    "mask stochastic": ("bfloat16", "stochastic", {}, torch.float32),
    "integers": ("bfloat16", "nearest_even", {"saturation": "finite"}, torch.float32),
    "integers flush": (FLUSH, "to_odd", {}, torch.float32),
    "integers stochastic": (
        *("e5m2", "stochastic", {"random_bits": 8, "variant": "C"}),
        torch.float32,
    ),
}


class Product(NamedTuple):
    """One way to compute a matrix product."""

    sum: lp.Rounding
    width: int
    proof: tuple[bool, bool] | None = None
    product: lp.Rounding | None = None
    blocked: bool = False
    grouped: bool = True
    carrier: torch.dtype = torch.float32


_BF16, _SR = lp.Rounding("bfloat16"), lp.Rounding("e6m8", "stochastic")
PRODUCTS = {
    "float32": Product(_BF16, 32, (False, False)),
    "float32 guarded": Product(lp.Rounding("e4m3fn"), 32, (False, True)),
    "float32 odd": Product(_BF16, 32, (True, False)),
    "float32 rounded": Product(_BF16, 32, (False, True), lp.Rounding("e5m2")),
    "float64": Product(_BF16, 64, (False, False)),
    "float64 odd": Product(lp.Rounding("e8m15"), 64, (True, True)),
    "directed": Product(lp.Rounding("e6m8", "toward_negative"), 64),
    "integers": Product(lp.Rounding(FLUSH, "toward_zero"), 64),
    "stochastic": Product(_SR, 64),
    "stochastic blocked": Product(
        *(_SR, 64, None, lp.Rounding("e5m2", "stochastic"), True, False),
        torch.float64,
    ),
}
CHUNKED = {
    "chunked float32": torch.float32,
    "chunked float16": torch.float16,
    "chunked bfloat16": torch.bfloat16,
}
NAMES = [*ROUNDINGS, *(f"matmul {name}" for name in PRODUCTS), *CHUNKED]
# Compiled for every target in the quick part of the tests; the rest for two.
CORE = {"floats", "mask stochastic", "integers", "matmul float32", "matmul stochastic"}

_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
}
_TABLES = dict.fromkeys(
    ["table", "sum_table", "product_table", "within_table", "seed_pointer"], "*i64"
)
_CONTIGUOUS = {"a_term": 1, "b_column": 1}
_TILES = {"tiles": "i32", "tiles_across": "i32"}


def _rounding(name, target):
    from lowprec.kernels.triton import _elementwise
    from lowprec.kernels.triton._plan import plan_of

    form, mode, rest, carrier = ROUNDINGS[name]
    plan = plan_of(lp.Rounding(form, mode, **rest).code, carrier)
    assert name.startswith(("integers", "floats", "mask")[plan.rule.route]), plan
    width = 8 * carrier.itemsize
    constants = {"RULE": plan.rule, "WIDTH": width, "BLOCK": _elementwise.BLOCK}
    kernel = _elementwise.round_kernel
    if mode == "stochastic":
        kernel = _elementwise.stochastic_kernel
        constants["SHIFT"] = 0
    types = {"x": f"*i{width}", "out": f"*i{width}", "seed": "*i64"}
    warps = _elementwise.WARPS
    compiled = compile_kernel(kernel, types, constants, target, warps)
    # Two copies of the code: for full blocks, and for the last one.
    lanes = warps * TARGETS[target][2]
    elements = _elementwise.BLOCK / lanes
    return compiled, compiled.opcodes.total() / (2 * elements)


def _matmul(name, target, fusion):
    from lowprec.kernels.triton import _matmul
    from lowprec.kernels.triton._plan import plan_of
    from lowprec.kernels.triton._proof import Proof

    case = PRODUCTS[name]
    dtype = torch.float32 if case.width == 32 else torch.float64
    rule = plan_of(case.sum.code, dtype).rule
    recipe = _matmul.Recipe(
        sum=rule,
        product=case.product and plan_of(case.product.code, dtype).rule,
        within=rule,
        proof=case.proof and Proof(*case.proof),
        blocked=case.blocked,
        grouped=case.grouped,
        huge=case.carrier == torch.float64,
        width=case.width,
    )
    rows, columns = _matmul.compiled_tile(recipe)
    pointers = dict.fromkeys(["a", "b", "out"], _POINTERS[case.carrier])
    compiled = compile_kernel(
        _matmul.matmul_kernel,
        {**pointers, **_TABLES, **_TILES},
        {"RECIPE": recipe, "ROWS": rows, "COLUMNS": columns, **_CONTIGUOUS},
        target,
        _matmul.WARPS,
        fusion,
    )
    outputs = rows * columns / (_matmul.WARPS * TARGETS[target][2])
    return compiled, compiled.loop / outputs


def _chunked(name, target):
    from lowprec.kernels.triton import _chunked
    from lowprec.kernels.triton._plan import plan_of

    pointer = _POINTERS[CHUNKED[name]]
    rows, columns = _chunked.TILES[CHUNKED[name].itemsize]
    rule = plan_of(_BF16.code, torch.float64).rule
    sizes = {"RULE": rule, "ROWS": rows, "COLUMNS": columns, "DEPTH": _chunked.DEPTH}
    compiled = compile_kernel(
        _chunked.chunked_kernel,
        {"a": pointer, "b": pointer, "out": "*fp32", **_TABLES, **_TILES},
        {**sizes, **_CONTIGUOUS},
        target,
        _chunked.WARPS,
    )
    outputs = rows * columns / (_chunked.WARPS * TARGETS[target][2])
    return compiled, compiled.loop / outputs / _chunked.DEPTH


@functools.cache
def compiled_case(name, target, fusion=False):
    """The compiled kernel, and its instructions per element or multiplication."""
    if name in ROUNDINGS:
        return _rounding(name, target)
    if name in CHUNKED:
        return _chunked(name, target)
    return _matmul(name.removeprefix("matmul "), target, fusion)


def ceilings():
    """{case: {target: [instructions, registers]}}."""
    return json.loads(CEILINGS.read_text())


def record():
    """Write the present costs as the new ceilings."""
    found = {}
    for name in NAMES:
        found[name] = {}
        for target in TARGETS:
            compiled, instructions = compiled_case(name, target)
            found[name][target] = [round(instructions, 2), compiled.registers]
    lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in found.items()]
    CEILINGS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    record()
