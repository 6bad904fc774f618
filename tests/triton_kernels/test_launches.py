"""Launches, up to the point where a GPU is needed, against a driver without one.

Everything but the execution takes place: arguments are bound, types and constants are
chosen, and kernels are compiled.
"""

import importlib.util

import pytest
import torch

import lowprec as lp
from lowprec.kernels import codes, triton

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None,
        reason="triton is not installed: pip install -e '.[test-gpu]'",
    ),
    pytest.mark.skipif(
        triton.interpreted(), reason="TRITON_INTERPRET=1: nothing is compiled"
    ),
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="tests/gpu launches for real here"
    ),
]
SEED = torch.tensor(3)


class NoDevice:
    """Enough of a driver to compile for an H100."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def launched(monkeypatch):
    """The kernels compiled by launches, in order."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    kernels = []
    run = JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        kernels.append(run(self, *arguments, grid=grid, warmup=True, **options))

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", NoDevice())
    return kernels


def chosen(accumulate, product=(), within=()):
    from lowprec.kernels.triton import _matmul

    return _matmul.Codes(accumulate, product, within)


def code(name, mode="nearest_even"):
    return lp.Rounding(name, mode).code


def test_no_launch_fuses(launched):
    from lowprec.kernels.triton import _chunked, _elementwise, _matmul

    x, a, b = torch.randn(1001), torch.randn(5, 16), torch.randn(16, 7)
    _elementwise.round(x, code("e4m3fn"))
    _elementwise.round_stochastic(x, code("e4m3fn", "stochastic"), SEED, 5)
    rest = (codes.BLOCKED, 3, SEED, 5)
    _matmul.matmul(a, b, chosen(code("e5m2"), code("e4m3"), code("e8m3")), *rest)
    _chunked.chunked_dot(a, b, code("bfloat16"), 16, SEED, 0)
    assert [kernel.metadata.enable_fp_fusion for kernel in launched] == [False] * 4


def test_one_kernel_serves_every_format_size_and_offset(launched):
    from lowprec.kernels.triton import _elementwise, _matmul

    for name, count in (("e4m3fn", 1), ("e5m2", 1024), ("e2m1", 77), ("e6m8", 16)):
        _elementwise.round(torch.randn(count), code(name, "toward_zero"))
    assert len({kernel.hash for kernel in launched}) == 1
    launched.clear()
    for name, offset in (("e4m3fn", 4), ("e5m2", 16), ("e6m8", 2**40)):
        stochastic = code(name, "stochastic")
        _elementwise.round_stochastic(torch.randn(100), stochastic, SEED, offset)
    assert len({kernel.hash for kernel in launched}) == 1
    launched.clear()
    for name, m, offset in (("e4m3fn", 1, 4), ("e5m2", 16, 16), ("e6m8", 33, 2**40)):
        a, b = torch.randn(m, 2 * m), torch.randn(2 * m, 8)
        stochastic = chosen(code(name, "stochastic"))
        _matmul.matmul(a, b, stochastic, codes.SEQUENTIAL, 0, SEED, offset)
    # A row of one element has another stride.
    assert len({kernel.hash for kernel in launched}) <= 2
    launched.clear()


def test_sizes_have_64_bits(launched):
    from lowprec.kernels.triton import _elementwise, _matmul

    _elementwise.round(torch.ones(3), code("e5m2"))
    a, b = torch.ones(1, 1), torch.ones(1, 1)
    _matmul.matmul(a, b, chosen(code("e5m2")), codes.SEQUENTIAL, 0, SEED, 0)
    for kernel in launched:
        sizes = {"count", "rows", "columns", "terms", "offset", "a_batch"}
        types = {kernel.src.signature.get(name, "i64") for name in sizes}
        assert types == {"i64"}
