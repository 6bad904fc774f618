"""`out=` and in place: written by the kernel, refused or right in every layout."""

import pytest
import torch
from tables import CARRIERS, MODES, name_of

import lowprec as lp
from lowprec import kernels
from lowprec.testing import assert_bit_equal


def values(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype) * 8


@pytest.mark.parametrize("dtype", CARRIERS, ids=name_of)
@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_every_layout(mode, dtype, backend):
    x = values(6, 35, dtype=dtype)
    rounding = lp.Rounding("e4m3fn", mode)
    expected = lp.round(x, rounding, seed=5)
    outs = [
        torch.full((6, 35), torch.nan, dtype=dtype),
        torch.full((35, 6), torch.nan, dtype=dtype).T,
        torch.full((12, 70), torch.nan, dtype=dtype)[::2, ::2],
        torch.full((211,), torch.nan, dtype=dtype)[1:].view(6, 35),
    ]
    for out in outs:
        assert lp.round(x, rounding, seed=5, out=out) is out
        assert_bit_equal(out.contiguous(), expected)
    for source in (x.T.contiguous().T, x.repeat(2, 1)[:6]):
        out = torch.empty_like(expected)
        assert_bit_equal(lp.round(source, rounding, seed=5, out=out), expected)
    place = x.clone()
    assert lp.round(place, rounding, seed=5, out=place) is place
    assert_bit_equal(place, expected)


def test_overlapping_memory(backend):
    memory = values(50)
    expected = lp.round(memory[:40], "e4m3fn")
    lp.round(memory[:40], "e4m3fn", out=memory[7:47])
    assert_bit_equal(memory[7:47], expected)
    with pytest.raises(RuntimeError, match="single memory location"):
        lp.round(values(5), "e4m3fn", out=torch.empty(1).expand(5))


@pytest.mark.parametrize("mode", ["nearest_even", "stochastic"])
def test_autograd_sees_the_change(mode, backend):
    weight = values(4).requires_grad_()
    saved = values(4)
    product = weight * saved
    version = saved._version
    lp.round(saved, "e5m2", mode, out=saved)
    assert saved._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
    with torch.inference_mode():
        fresh = values(4)
        lp.round(fresh, "e5m2", mode, out=fresh)


@pytest.mark.parametrize("mode", ["nearest_even", "stochastic"])
def test_compiled(mode):
    x = values(33)
    rounding = lp.Rounding("e5m2", mode)
    seed = torch.tensor(3)

    def function(x):
        y = x * 2
        lp.round(y, rounding, seed=seed, out=y)
        return y + 1

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_bit_equal(compiled(x), function(x))


def test_operations_pass_opcheck():
    x, seed = values(9), torch.tensor(1)
    plain, random = (
        list(lp.Rounding("e5m2", mode).code) for mode in ("nearest_even", "stochastic")
    )
    operations = torch.ops.lowprec
    torch.library.opcheck(operations.round_out, (x, plain, torch.empty(9)))
    torch.library.opcheck(
        operations.round_stochastic_out, (x, random, seed, 4, torch.empty(9))
    )


def test_modes_and_subclasses_see_the_operation():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Listener(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen = []
    x = values(3)
    with Listener():
        lp.round(x, "e5m2")
        lp.round(x, "e5m2", out=torch.empty(3))
        lp.round(x, "e5m2", "stochastic", seed=1)
    for name in ("round.default", "round_out.default", "round_stochastic.default"):
        assert f"lowprec.{name}" in seen


def test_views_with_lazy_negation():
    x = torch.complex(values(4), values(4))
    lazy = x.conj().imag
    assert lazy.is_neg()
    assert_bit_equal(lp.round(lazy, "e5m2"), lp.round(lazy.resolve_neg(), "e5m2"))


def test_the_cheap_path_equals_the_operation():
    x = values(64)
    for mode in MODES[:7]:
        rounding = lp.Rounding("e4m3fn", mode)
        expected = kernels.round(x, list(rounding.code))
        assert_bit_equal(lp.round(x, rounding), expected)
        assert_bit_equal(lp.round(x, "e4m3fn", mode.value), expected)


def test_caches_do_not_blur_types():
    lp.round(values(2), "e5m2", "stochastic", random_bits=1, seed=1)
    with pytest.raises(TypeError, match="random_bits must be an int"):
        lp.round(values(2), "e5m2", "stochastic", random_bits=True, seed=1)
    with pytest.raises(TypeError):
        lp.round(values(2), ["e5m2"])
    with pytest.raises(ValueError, match="unknown rounding mode"):
        lp.round(values(2), lp.Rounding("e5m2"), "")
