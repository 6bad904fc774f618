"""On real hardware: the same bits as the portable kernels on the CPU."""

import pytest
import torch
from native_checks import BY_NAME, SEED, arguments, same_bits, same_numbers
from tables import CARRIERS, MODES, PAIRS, SATURATIONS, fits, name_of
from test_native_sums import adversaries, spread

import lowprec as lp
from lowprec import kernels
from lowprec.kernels import portable, sums, triton
from lowprec.testing import boundary_inputs

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no CUDA or ROCm device"
)
OFFSET = 2**34 + 6


def test_the_kernels_are_triton_ones():
    assert triton.available(), triton.status()
    assert kernels.status()["cuda"] == "triton"


def roundings(target):
    for mode in MODES:
        for saturation in SATURATIONS:
            yield lp.Rounding(target, mode, saturation)
    for variant, bits in (("A", 5), ("B", 11), ("C", 3), ("C", 32)):
        yield lp.Rounding(target, "stochastic", random_bits=bits, variant=variant)


def rounded(x, rounding, module):
    if not rounding.stochastic:
        return module.round(x, rounding.code)
    seed = torch.tensor(SEED, device=x.device)
    return module.round_stochastic(x, rounding.code, seed, OFFSET)


@pytest.mark.parametrize(("target", "carrier"), PAIRS, ids=name_of)
def test_rounding(target, carrier):
    x = boundary_inputs(target, carrier)
    for rounding in roundings(target):
        actual = rounded(x.cuda(), rounding, kernels)
        assert actual.is_cuda
        assert same_bits(actual.cpu(), rounded(x, rounding, portable)), rounding


@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
def test_many_random_bit_patterns(carrier):
    integer = torch.int32 if carrier == torch.float32 else torch.int64
    limits = torch.iinfo(integer)
    x = torch.randint(limits.min, limits.max, (1_000_003,), dtype=integer).view(carrier)
    for name in ("e4m3fn", "bfloat16", "binary16", "e8m15", "bf16_flush"):
        for mode in MODES:
            rounding = lp.Rounding(BY_NAME.get(name, name), mode)
            actual = rounded(x.cuda(), rounding, kernels).cpu()
            assert same_bits(actual, rounded(x, rounding, portable)), rounding


def check(a, b, accumulator, offset=0):
    seed = torch.tensor(SEED)
    expected = sums.matmul(a, b, *arguments(accumulator), seed, offset)
    rest = (*arguments(accumulator), seed.cuda(), offset)
    actual = kernels.matmul(a.cuda(), b.cuda(), *rest)
    assert actual.is_cuda
    assert same_numbers(actual.cpu(), expected), accumulator


SHAPES = [(1, 1, 1), (64, 40, 64), (65, 33, 67), (130, 20, 1), (1, 300, 200), (2, 3, 0)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_products(mode, carrier, shape):
    m, k, n = shape
    a, b = spread((m, k), 1, 3).to(carrier), torch.randn(k, n).bfloat16().to(carrier)
    for name in ("e5m2", "bfloat16", "e8m15", "unsigned", "bf16_flush"):
        rounding = lp.Rounding(BY_NAME[name], mode, random_bits=11, variant="B")
        check(a, b, lp.Accumulator(rounding), 4)
        check(a, b, lp.Accumulator(rounding, "accumulator", "blocked", 7), 3)
    check(a, b, lp.Accumulator(rounding, "e4m3", "blocked", 16, within="e5m2"))
    check(a, torch.randn(k, n, dtype=carrier), lp.Accumulator("bfloat16"))


@pytest.mark.parametrize("mode", MODES, ids=name_of)
@pytest.mark.parametrize("carrier", CARRIERS, ids=name_of)
def test_adversarial_sums(mode, carrier):
    for name in ("bfloat16", "e8m15", "binary32", "e4m3fnuz"):
        target = BY_NAME[name]
        if not fits(target, carrier):
            continue
        values = torch.tensor(adversaries(target.precision), dtype=torch.float64)
        ones = torch.ones((4, 2), dtype=carrier)
        ones[:, 1] = -1.0
        for saturation in SATURATIONS:
            rounding = lp.Rounding(target, mode, saturation)
            check(values.to(carrier), ones, lp.Accumulator(rounding))
            check(values.to(carrier), ones, lp.Accumulator(rounding, "accumulator"))


@pytest.mark.parametrize("order", ["pairwise", "kahan"])
def test_products_without_a_kernel(order):
    check(
        torch.randn(5, 40), torch.randn(40, 6), lp.Accumulator("bfloat16", order=order)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_chunked_dot_keeps_its_bound(dtype):
    a, b = torch.randn(2, 70, 300).to(dtype), torch.randn(2, 300, 90).to(dtype)
    code, chunk = lp.Rounding("e8m22").code, 64
    actual = triton.chunked_dot(a.cuda(), b.cuda(), code, chunk).cpu().double()
    a, b = a.double(), b.double()
    # The accumulator's own five roundings are below three units of the bound.
    bound = (chunk + 1 + 3) * 2.0**-21 * (a.abs() @ b.abs())
    assert ((actual - a @ b).abs() <= bound).all()


def test_gradients_and_layers_run_on_the_device():
    x = torch.randn(6, 5, device="cuda", requires_grad=True)
    w = torch.randn(7, 5, device="cuda", requires_grad=True)
    precision = lp.Precision(input="e4m3fn", weight="e4m3fn", accumulator="e8m15")
    with lp.emulate(precision):
        y = torch.nn.functional.linear(x, w)
    y.sum().backward()
    cpu = [value.detach().cpu().requires_grad_() for value in (x, w)]
    with lp.emulate(precision):
        z = torch.nn.functional.linear(*cpu)
    z.sum().backward()
    assert same_bits(y.detach().cpu(), z.detach())
    assert all(
        same_bits(value.grad.cpu(), other.grad)
        for value, other in zip((x, w), cpu, strict=True)
    )


@pytest.mark.slow
def test_more_elements_than_32_bits_count():
    count = 2**31 + 70
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of GPU memory")
    x = torch.zeros(count, device="cuda")
    x[-70:] = 1.2345
    for mode in ("nearest_even", "stochastic"):
        rounding = lp.Rounding("e5m2", mode)
        actual = rounded(x, rounding, kernels)
        tail = x[-70:].cpu()
        if mode == "nearest_even":
            expected = portable.round(tail, rounding.code)
        else:
            rest = (torch.tensor(SEED), OFFSET + count - 70)
            expected = portable.round_stochastic(tail, rounding.code, *rest)
        assert same_bits(actual[-70:].cpu(), expected)
        assert not actual[:-70].any()
