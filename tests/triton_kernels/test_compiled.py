"""Compiled ahead of time for four GPUs: nothing spills, fuses or approximates."""

import importlib.util
import re

import pytest
from triton_cases import CHUNKED, CORE, NAMES, ROUNDINGS, ceilings, compiled_case
from triton_compiling import TARGETS

from lowprec.kernels import triton

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None,
        reason="triton is not installed: pip install -e '.[test-gpu]'",
    ),
    pytest.mark.skipif(
        triton.interpreted(), reason="TRITON_INTERPRET=1: nothing is compiled"
    ),
]


def cases(names):
    return [
        pytest.param(
            name,
            target,
            marks=()
            if name in CORE or target in ("sm_90", "gfx942")
            else pytest.mark.slow,
            id=f"{name}-{target}",
        )
        for name in names
        for target in TARGETS
    ]


def opcodes(compiled, pattern):
    return {name: n for name, n in compiled.opcodes.items() if re.match(pattern, name)}


@pytest.mark.parametrize(("name", "target"), cases(NAMES))
def test_nothing_spills_and_costs_stay_below_their_ceilings(name, target):
    compiled, instructions = compiled_case(name, target)
    assert compiled.spills == 0
    assert compiled.stack == 0
    allowed, registers = ceilings()[name][target]
    assert 0 < instructions <= allowed + 0.01
    assert compiled.registers <= registers


@pytest.mark.parametrize(("name", "target"), cases(ROUNDINGS))
def test_memory_is_read_and_written_in_vectors(name, target):
    compiled, _ = compiled_case(name, target)
    if target == "gfx942":
        assert opcodes(compiled, "(global|buffer)_load_dwordx4$")
        assert opcodes(compiled, "(global|buffer)_store_dwordx4$")
    else:
        assert opcodes(compiled, r"LDG\.E\.128")
        assert opcodes(compiled, r"STG\.E\.128")
        assert re.search(r"ld\.global\.v[24]\.b(32|64)", compiled.text)


FUSED = {"gfx942": r"v_(pk_)?(fma|fmac|mad|mac)(_mix)?_f", "nvidia": "[FD]FMA"}


@pytest.mark.parametrize(
    ("name", "target"), cases([n for n in NAMES if n not in CHUNKED])
)
def test_products_and_sums_are_not_fused(name, target):
    compiled, _ = compiled_case(name, target)
    assert opcodes(compiled, FUSED.get(target, FUSED["nvidia"])) == {}
    assert not re.search(r"\bfma\.r", compiled.text)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_the_search_for_fused_operations_finds_them(target):
    compiled, _ = compiled_case("matmul float32", target, fusion=True)
    assert opcodes(compiled, FUSED.get(target, FUSED["nvidia"]))


@pytest.mark.parametrize(("name", "target"), cases(NAMES))
def test_nothing_approximates_or_flushes_subnormals(name, target):
    compiled, _ = compiled_case(name, target)
    if target == "gfx942":
        assert ".amdhsa_float_denorm_mode_32 3" in compiled.text
        assert ".amdhsa_float_denorm_mode_16_64 3" in compiled.text
        # The reciprocal of an integer division is corrected; others are not.
        assert opcodes(compiled, r"v_(rcp_f|rsq|sqrt|exp|log|sin|cos)") == {}
    else:
        assert not re.search(r"\.(approx|ftz|full)\b", compiled.text)


@pytest.mark.parametrize("name", NAMES)
def test_indices_have_64_bits(name):
    compiled, _ = compiled_case(name, "sm_90")
    moved = re.findall(
        r"tt\.addptr .* : tensor<.*tt\.ptr.*>, tensor<(?:\d+x)*(i\d+)",
        compiled.intermediate,
    )
    assert moved
    assert set(moved) == {"i64"}


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_chunks_of_narrow_numbers_run_on_tensor_cores(target):
    for name in ("chunked float16", "chunked bfloat16"):
        compiled, _ = compiled_case(name, target)
        assert re.search(r"\b(mma\.sync|wgmma|tcgen05\.mma|v_mfma)", compiled.text)
