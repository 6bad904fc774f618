"""`lowprec.round` among torch's own mechanisms: autograd, compile, func, opcheck."""

import re

import pytest
import torch
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.func import functional_call, grad, jacrev, jvp, vmap

import lowprec as lp
from lowprec.testing import assert_bit_equal, random_word

CASES = {
    "deterministic": {"rounding": "bfloat16"},
    "stochastic": {"rounding": lp.Rounding("e4m3fn", "stochastic"), "seed": 7},
}
# Dynamo instantiates autograd functions itself and warns about it.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated")


def values(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


def test_gradient_is_that_of_the_identity(case):
    x = values(50).requires_grad_()
    lp.round(x, **case).mul(values(50)).sum().backward()
    assert_bit_equal(x.grad, values(50))


def test_gradient_is_rounded_where_asked():
    x = values(50).requires_grad_()
    lp.round(x, "bfloat16", backward="e5m2").mul(values(50)).sum().backward()
    assert_bit_equal(x.grad, lp.round(values(50), "e5m2"))


def test_stochastic_gradients_follow_the_seed():
    gradients = []
    for seed in (1, 1, 2):
        x = values(200).requires_grad_()
        fl = lp.Rounding("e5m2", "stochastic")
        lp.round(x, fl, backward=fl, seed=seed).mul(values(200)).sum().backward()
        gradients.append(x.grad)
    (part,) = lp.random.split_seed(torch.tensor(1), 1)
    assert_bit_equal(gradients[0], lp.round(values(200), fl, seed=part))
    assert_bit_equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])


def test_second_derivative_passes_through():
    x = values(5, dtype=torch.float64).requires_grad_()
    first = torch.autograd.grad(lp.round(x, "e8m40").pow(3).sum(), x, create_graph=True)
    second = torch.autograd.grad(first[0].sum(), x)[0]
    rounded = lp.round(x.detach(), "e8m40")
    torch.testing.assert_close(second, 6 * rounded, rtol=1e-12, atol=0)


# Small tensors have the gradient of a clone, large ones that of a function in Python.
@pytest.mark.parametrize("rows", [8, 1000])
@pytest.mark.parametrize("parameter", [False, True])
def test_every_size_has_the_gradient_of_the_identity(rows, parameter):
    base = values(rows * 16).view(16, rows)
    x = torch.nn.Parameter(base) if parameter else base.clone().requires_grad_()
    y = lp.round(x.T, "bfloat16", "toward_zero")
    assert y.is_contiguous()
    assert_bit_equal(y, lp.round(base.T.contiguous(), "bfloat16", "toward_zero"))
    upstream = values(rows * 16).view(rows, 16)
    y.backward(upstream)
    assert_bit_equal(x.grad, upstream.T)
    assert_bit_equal(x, values(rows * 16).view(16, rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiles_without_graph_breaks(case, dtype):
    compiled = torch.compile(lambda x: lp.round(x, **case), fullgraph=True)
    x = values(33, 7, dtype=dtype)
    x[0, :4] = torch.tensor([0.0, -0.0, float("inf"), float("nan")])
    assert_bit_equal(compiled(x), lp.round(x, **case))
    y = values(33, 7, dtype=dtype).requires_grad_()
    compiled(y).sum().backward()
    assert bool((y.grad == 1).all())


def test_compiled_seeds_are_arguments():
    compiled = torch.compile(
        lambda x, seed: lp.round(x, "e5m2", "stochastic", seed=seed), fullgraph=True
    )
    x = values(100)
    for seed in (0, 1, 2**62):
        expected = lp.round(x, "e5m2", "stochastic", seed=seed)
        assert_bit_equal(compiled(x, torch.tensor(seed)), expected)


def test_compiled_stochastic_gradients_equal_eager_ones():
    fl = lp.Rounding("e5m2", "stochastic")
    compiled = torch.compile(
        lambda x: lp.round(x, "bfloat16", backward=fl, seed=2), fullgraph=True
    )
    x, y = values(50).requires_grad_(), values(50).requires_grad_()
    compiled(x).mul(values(50)).sum().backward()
    lp.round(y, "bfloat16", backward=fl, seed=2).mul(values(50)).sum().backward()
    assert_bit_equal(x.grad, y.grad)


@pytest.mark.parametrize("count", [1, 3, 65])
def test_split_seeds(count):
    # Written by hand from the documented layout of random words.
    def expected(seed):
        words = [random_word(seed, i, 0, 2**32 - 1) for i in range(2 * count)]
        parts = [words[2 * j] << 32 | words[2 * j + 1] for j in range(count)]
        return [part - (part >> 63 << 64) for part in parts]

    seeds = torch.tensor([0, -1, 2**62])
    parts = torch.stack([torch.stack(lp.random.split_seed(s, count)) for s in seeds])
    assert parts.tolist() == [expected(seed) for seed in seeds.tolist()]
    mapped = vmap(lambda s: torch.stack(lp.random.split_seed(s, count)))(seeds)
    assert torch.equal(mapped, parts)
    torch.library.opcheck(torch.ops.lowprec.split_seed.default, (seeds[0], count))


def test_compiled_draws_follow_manual_seed():
    compiled = torch.compile(
        lambda x: lp.round(x, "e5m2", "stochastic"), fullgraph=True
    )
    x = values(1000)
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        runs.append(compiled(x))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_portable_kernel_survives_inductor():
    """Fused by the compiler, the integer operations give the same bits.

    Inductor drops casts to 16 bits and back: those formats are rounded to as well.
    """
    names = ("e5m2", "bfloat16", "binary16")
    codes = [list(lp.Rounding(name).code) for name in names]
    compiled = torch.compile(
        lambda x: [lp.kernels.portable.round(x, code) for code in codes]
    )
    x = values(4096) * 2.0 ** torch.arange(-20.0, 20.0).repeat(103)[:4096]
    x[:4] = torch.tensor([0.0, -0.0, float("inf"), float("nan")])
    for name, rounded in zip(names, compiled(x), strict=True):
        assert_bit_equal(rounded, lp.round(x, name))


def test_func_transforms():
    x = values(6)

    def loss(x):
        return lp.round(x, "bfloat16").pow(2).sum()

    assert_bit_equal(grad(loss)(x), 2 * lp.round(x, "bfloat16"))
    out, tangent = jvp(lambda x: lp.round(x, "bfloat16"), (x,), (values(6),))
    assert_bit_equal(out, lp.round(x, "bfloat16"))
    assert_bit_equal(tangent, values(6))
    assert_bit_equal(jacrev(lambda x: lp.round(x, "bfloat16"))(x), torch.eye(6))
    rows = values(4, 6)
    per_row = vmap(grad(loss))(rows)
    assert_bit_equal(per_row, torch.stack([grad(loss)(row) for row in rows]))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_dual_tensors_keep_their_tangent(case, requires_grad):
    x = values(6).requires_grad_(requires_grad)
    with dual_level():
        y, tangent = unpack_dual(lp.round(make_dual(x, values(6) * 3), **case))
    assert_bit_equal(y.detach(), lp.round(values(6), **case))
    assert_bit_equal(tangent.detach(), values(6) * 3)


def test_vmap_over_nothing(case):
    assert vmap(lambda row: lp.round(row, **case))(values(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("dim", [0, 1])
def test_vmap_is_a_loop(case, dim):
    x = values(5, 8)
    expected = torch.stack([lp.round(row, **case) for row in x.unbind(dim)])
    assert_bit_equal(vmap(lambda row: lp.round(row, **case), in_dims=dim)(x), expected)


def test_vmap_over_seeds_decorrelates():
    x = torch.full((1000,), 1 + 2.0**-9)
    seeds = torch.arange(3)
    rounded = vmap(lambda s: lp.round(x, "bfloat16", "stochastic", seed=s))(seeds)
    for seed, row in zip(seeds, rounded, strict=True):
        assert_bit_equal(row, lp.round(x, "bfloat16", "stochastic", seed=seed))


def test_matmul_under_vmap():
    a, b = values(3, 4, 5), values(5, 2)
    expected = torch.stack([lp.matmul(x, b, accumulator="e8m7") for x in a])
    result = vmap(lambda x: lp.matmul(x, b, accumulator="e8m7"))(a)
    assert_bit_equal(result, expected)


def test_functional_call_of_a_module():
    class Rounded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(values(4))

        def forward(self, x):
            return lp.round(self.weight, "e5m2") * x

    module = Rounded()
    out = functional_call(module, {"weight": values(4) * 3}, (torch.ones(4),))
    assert_bit_equal(out, lp.round(values(4) * 3, "e5m2"))


ROUND = list(lp.Rounding("e4m3fn").code)
STOCHASTIC = list(lp.Rounding("e4m3fn", "stochastic").code)
SUMS = list(lp.Rounding("e8m7").code)


@pytest.mark.parametrize("x", [values(3, 4), values(4, 3).t(), values(0), values(1)[0]])
def test_opcheck_round(x):
    torch.library.opcheck(torch.ops.lowprec.round.default, (x, ROUND))
    seed = torch.tensor(3)
    torch.library.opcheck(
        torch.ops.lowprec.round_stochastic.default, (x, STOCHASTIC, seed, 0)
    )


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_opcheck_matmul(batch):
    a, b = values(*batch, 3, 4), values(*batch, 4, 2)
    arguments = (a, b, SUMS, [], [], 0, 0, torch.tensor(0), 0)
    torch.library.opcheck(torch.ops.lowprec.matmul.default, arguments)


def test_layouts_do_not_matter(case, backend):
    x = values(6, 10)
    expected = lp.round(x, **case)
    assert_bit_equal(lp.round(x.t().contiguous().t(), **case), expected)
    spread = torch.empty(6, 20)[:, ::2].copy_(x)
    assert_bit_equal(lp.round(spread, **case), expected)
    assert lp.round(torch.empty(0, 3), **case).shape == (0, 3)
    assert_bit_equal(lp.round(x[0, 0], **case), expected[0, 0])


def test_out_and_in_place():
    x = values(10)
    expected = lp.round(x, "e5m2")
    target = torch.empty(10)
    assert lp.round(x, "e5m2", out=target) is target
    assert_bit_equal(target, expected)
    assert lp.round(x, "e5m2", out=x) is x
    assert_bit_equal(x, expected)
    with pytest.raises(ValueError, match="out must have shape"):
        lp.round(x, "e5m2", out=torch.empty(3))
    with pytest.raises(ValueError, match="does not support gradients"):
        lp.round(x.clone().requires_grad_(), "e5m2", out=torch.empty(10))


def test_generators_and_seeds():
    x = values(100)
    draws = [
        lp.round(x, "e5m2", "stochastic", generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    ]
    assert_bit_equal(draws[0], draws[1])
    torch.manual_seed(0)
    state = torch.get_rng_state()
    lp.round(x, "e5m2")
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn in vain
    with pytest.raises(ValueError, match="either seed= or generator="):
        lp.round(x, "e5m2", "stochastic", seed=1, generator=torch.Generator())
    with pytest.raises(TypeError, match="0-d int64"):
        lp.round(x, "e5m2", "stochastic", seed=torch.tensor([1]))
    with pytest.raises(ValueError, match="64-bit"):
        lp.round(x, "e5m2", "stochastic", seed=2**64)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seed": 1, "offset": -1}, ValueError, "from 0 to 2^62, got -1"),
        ({"seed": 1, "offset": 2**63}, ValueError, "from 0 to 2^62, got"),
        ({"seed": 1, "offset": 1.5}, TypeError, "offset must be an int, got 1.5"),
        ({"seed": 1, "offset": True}, TypeError, "offset must be an int, got True"),
        ({"generator": 3}, TypeError, "must be a torch.Generator, got 3 of type int"),
        ({"seed": 1.0}, TypeError, "seed must be an int or a 0-d int64 tensor"),
        ({"seed": -(2**63) - 1}, ValueError, "64-bit"),
        ({"out": torch.empty(3, device="meta")}, ValueError, "torch.float32 and meta"),
    ],
    ids=str,
)
def test_refused_options(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        lp.round(values(3), "e5m2", "stochastic", **options)


def test_seed_and_generator_exclude_each_other_in_every_mode():
    with pytest.raises(ValueError, match="either seed= or generator="):
        lp.round(values(3), "e5m2", seed=1, generator=torch.Generator())


def test_meta_tensors_keep_shape_and_dtype():
    x = torch.empty(3, 2, device="meta", dtype=torch.float64)
    y = lp.round(x, "bfloat16", "stochastic", seed=1)
    assert (y.shape, y.dtype, y.device.type) == (x.shape, x.dtype, "meta")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (values(3).half(), "got float16: a half carrier would round a second time"),
        (values(3).bfloat16(), "use x.float()"),
        (torch.arange(3), "got int64"),
        (torch.ones(3, dtype=torch.bool), "got bool: convert it first"),
        (torch.eye(3).to_sparse(), "got torch.sparse_coo: use x.to_dense()"),
        (values(3).to(torch.complex64), "view_as_real"),
        (1.5, "got float: torch.tensor"),
    ],
)
def test_other_carriers_are_refused(x, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        lp.round(x, "bfloat16")


def test_narrow_carriers_are_refused():
    with pytest.raises(ValueError, match="use a float64 carrier"):
        lp.round(values(3), "e11m5")
    with pytest.raises(NotImplementedError, match="at most 51"):
        lp.dot(values(3), values(3), accumulator="e11m52")
    with pytest.raises(ValueError, match="use float64 operands"):
        lp.dot(values(3), values(3), accumulator="e8m40")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_torchs_error():
    with pytest.raises((RuntimeError, AssertionError), match="CUDA"):
        lp.round(values(3).to("cuda"), "bfloat16")


def test_fake_tensors_on_cuda():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(3, 4, device="cuda")
        assert lp.round(x, "bfloat16").device.type == "cuda"


TRANSFORMED = {
    "round": lambda x: 3 * lp.round(x, "bfloat16").sum(),
    "linear": lambda x: lp.functional.linear(
        x[None],
        torch.tensor([[1.25, 2.5, -3.0]]),
        precision=lp.Precision(input="bfloat16", accumulator="e8m15"),
    ).sum(),
}


# Dynamo looks at .grad of tensors inside the transform.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("name", TRANSFORMED)
def test_compiled_transforms_are_right_or_refused(name):
    function = TRANSFORMED[name]
    # Traced by Dynamo, an autograd.Function inside torch.func.grad has gradient zero.
    x = torch.tensor([1.0, 2.0, 3.0])
    expected = torch.func.grad(function)(x)
    assert bool((expected != 0).all())
    if name == "round":  # torch itself fails to compile the backward of linear here
        compiled = torch.compile(torch.func.grad(function), backend="eager")
        assert torch.equal(compiled(x), expected)
        torch._dynamo.reset()
    refusing = torch.compile(torch.func.grad(function), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="cannot be compiled"):
        refusing(x)
