"""Which kernel serves which device, seen without a GPU and without the interpreter."""

import importlib.util
import subprocess
import sys

import pytest
import torch

import lowprec as lp
from lowprec import kernels
from lowprec.kernels import _library, native, portable, sums, triton

OPERATIONS = ["round", "round_stochastic", "matmul"]
E5M2 = lp.Rounding("e5m2").code


@pytest.fixture
def untried():
    """Forget what was found out about triton, before and after."""
    triton._failure.cache_clear()
    yield
    triton._failure.cache_clear()


@pytest.fixture
def no_gpu(monkeypatch, untried):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.parametrize("name", OPERATIONS)
def test_cuda_has_kernels_of_its_own(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lowprec::{name}", "CUDA")


def test_reason_is_visible_where_there_is_no_gpu(no_gpu, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    reason = "not available: there is no CUDA or ROCm device"
    assert kernels.status()["cuda"] == f"portable ({reason})"
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "triton" else found(name),
    )
    reason = "not available: triton is not installed"
    assert kernels.status()["cuda"] == f"portable ({reason})"


def test_reason_is_visible_where_there_is_no_library(monkeypatch):
    monkeypatch.setattr(native, "_library", None)
    assert kernels.status()["cpu"].startswith("portable (not available: ")


def test_status_says_what_will_be_tried(untried, monkeypatch):
    monkeypatch.setattr(triton, "_missing", lambda: None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert kernels.status()["cuda"] == "triton (not tried yet)"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels.status()["cuda"].startswith("portable (interpreted")


def test_a_compiler_that_does_not_work_leaves_the_portable_kernels(
    untried, monkeypatch
):
    monkeypatch.setattr(triton, "_missing", lambda: None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not triton.available()  # there is no GPU, or no triton, behind it
    assert kernels.status()["cuda"].startswith("portable (not available: triton does")
    choose = _library._on_cuda(portable.round, "round")
    x = torch.randn(10)
    assert torch.equal(choose(x, E5M2), portable.round(x, E5M2))


def test_forcing_what_is_not_there_is_refused(no_gpu):
    with pytest.raises(RuntimeError, match="the Triton kernels are not available: t"):
        kernels.using("triton").__enter__()
    with pytest.raises(RuntimeError, match="not available: t"):
        triton.round(torch.ones(2), E5M2)


@pytest.mark.parametrize("name", OPERATIONS)
def test_cuda_tensors_take_the_triton_kernel_unless_told_otherwise(name, monkeypatch):
    monkeypatch.setattr(triton, name, lambda *_: "triton")
    monkeypatch.setattr(triton, "available", lambda: True)
    monkeypatch.setattr(triton, "interpreted", lambda: False)
    choose = _library._on_cuda(lambda *_: "portable", name)
    assert choose(None) == "triton"
    with kernels.using("triton"):
        assert choose(None) == "triton"
    with kernels.using("portable"):
        assert choose(None) == "portable"
    monkeypatch.setattr(triton, "interpreted", lambda: True)
    assert choose(None) == "portable"
    monkeypatch.setattr(triton, "interpreted", lambda: False)
    monkeypatch.setattr(triton, "available", lambda: False)
    assert choose(None) == "portable"


def test_triton_is_not_imported_before_it_is_needed():
    program = """\
import sys
import torch
import lowprec as lp
lp.kernels.status()
lp.round(torch.ones(3), "e5m2")
lp.matmul(torch.ones(2, 2), torch.ones(2, 2), accumulator="e5m2")
print("triton" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "False\n", result.stderr


def test_signatures_are_those_of_the_operations():
    for name, other in zip(OPERATIONS, (portable, portable, sums), strict=True):
        schema = getattr(torch.ops.lowprec, name).default._schema
        wanted = [argument.name for argument in schema.arguments]
        for module in (triton, other):
            code = getattr(module, name).__code__
            assert list(code.co_varnames[: code.co_argcount]) == wanted
