"""The C++ kernels of weights with levels equal the torch operations bit for bit."""

import itertools
import math
import warnings
from fractions import Fraction

import pytest
import torch

import lowprec as lp
from lowprec.kernels import native, native_levels
from lowprec.optim import ASkewSGD, BinaryConnect, PerChannel, ProxQuant, Skewed
from lowprec.optim._scaled_levels import Sampling, ScaledLevels
from lowprec.random import philox_words

pytestmark = pytest.mark.skipif(
    not native.available(), reason="the C++ library was not built"
)

KINDS = ("quadratic", "quartic", "quartic_ext")
ISAS = native.instruction_sets() if native.available() else ()
SHAPE = (5, 67)
INF = math.inf


def uneven(count):
    """Levels without any regularity."""
    return lp.Levels(sorted(math.sin(k) * 3 for k in range(count)))


LEVELS = {
    "binary": lp.Levels.binary(),
    "ternary": lp.Levels.ternary(),
    "int2": lp.Levels.int_bits(2),
    "halves": lp.Levels([-1.0, -0.5, 0.0, 0.5]),
    "even": lp.Levels([-4, -1, 2, 5]),
    "int6": lp.Levels.int_bits(6),
    "16": uneven(16),
    "17": uneven(17),
    "100": uneven(100),
    "channel": torch.tensor(
        [
            [-1, 1, INF, INF],
            [-2, -1, 0, 1],
            [-3, 0, 0.5, 7],
            [0, 1, 2, INF],
            [1, 2, 3, 4],
        ]
    ).unsqueeze(1),
    "coordinate": torch.randn(
        *SHAPE, 3, generator=torch.Generator().manual_seed(3)
    ).sort().values,
    "column": torch.tensor([[-1.0, 1.0], [-2.0, 0.5]]).repeat(34, 1)[:67],
}  # fmt: skip
SCALES = {
    "none": None,
    "tensor": 0.37,
    "channel": torch.tensor([0.5, 2.0, 0.1, 1.0, 3.0]).unsqueeze(1),
    "coordinate": torch.rand(SHAPE, generator=torch.Generator().manual_seed(4)) + 0.1,
    "column": torch.linspace(0.2, 3, SHAPE[1]),
}


# Other instruction sets are builds of the same source.
@pytest.fixture(
    params=[*(pytest.param(i, marks=pytest.mark.slow) for i in ISAS[:-1]), *ISAS[-1:]]
)
def isa(request):
    native.set_instruction_set(request.param)
    yield request.param
    native.set_instruction_set()


def special(levels, scale, dtype):
    """Weights at, around and far from levels and mid-points, and a gradient."""
    generator = torch.Generator().manual_seed(0)
    w = 3 * torch.randn(SHAPE, generator=generator, dtype=dtype)
    values = levels.values if isinstance(levels, lp.Levels) else levels.flatten()[:8]
    q = torch.as_tensor(values, dtype=dtype)
    q = q[q.isfinite()]
    points = torch.cat([q, (q[1:] + q[:-1]) / 2])
    points = torch.cat(
        [points, *(points.nextafter(torch.tensor(x).to(q)) for x in (-INF, INF))]
    )
    rare = torch.tensor([0.0, -0.0, 1e-42, -1e-42, 1e30, -1e30, INF, -INF, math.nan])
    points = torch.cat([points, rare.to(dtype)])[: w.numel()]
    w.view(-1)[: len(points)] = points
    s = torch.ones(()) if scale is None else torch.as_tensor(scale)
    g = torch.randn(SHAPE, generator=generator, dtype=dtype)
    g.view(-1)[::7] = 0.0
    return w * s.to(dtype), g


def equal_bits(a, b):
    integer = torch.int32 if a.dtype == torch.float32 else torch.int64
    same = (a.view(integer) == b.view(integer)) | (a.isnan() & b.isnan())
    return bool(same.all())


def steps(levels, scale, dtype, backend, count=3, **options):
    w, g = special(levels, scale, dtype)
    p = torch.nn.Parameter(w)
    with warnings.catch_warnings(), lp.kernels.using(backend):
        warnings.simplefilter("ignore", lp.NumericalWarning)
        optimizer = ASkewSGD([p], levels=levels, scale=scale, **options)
        for k in range(count):
            p.grad = g * (-0.7) ** k
            optimizer.step()
    state = optimizer.state[p].get("momentum_buffer", torch.zeros(1))
    return p.detach(), state


def both_agree(levels, scale, dtype, **options):
    ours = steps(levels, scale, dtype, "native", **options)
    theirs = steps(levels, scale, dtype, "portable", **options)
    return all(map(equal_bits, ours, theirs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", LEVELS)
def test_skewed_steps_of_all_levels(isa, levels, kind, dtype):
    # None is the largest, at which some cells are feasible.
    for scale, epsilon in itertools.product(SCALES.values(), (0.05, None)):
        assert both_agree(
            LEVELS[levels], scale, dtype, lr=0.1, remoteness=kind, epsilon=epsilon
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "momentum",
    [
        {},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        {"weight_decay": 0.01, "maximize": True},
    ],
    ids=str,
)
def test_skewed_steps_with_all_options(isa, momentum, kind, dtype):
    choices = itertools.product(
        ("velocity", "gradient"), ("report", "max"), ("report", "gradient"),
        (None, "levels", (-0.75, 1.5)), (None, 0.2),
    )  # fmt: skip
    for coupling, clip_mode, midpoint, hull, clip in choices:
        assert both_agree(
            LEVELS["int2"], SCALES["channel"], dtype, lr=0.1, remoteness=kind,
            epsilon=0.05, alpha=0.7, coupling=coupling, clip_mode=clip_mode,
            midpoint=midpoint, hull=hull, clip=clip, count=2, **momentum,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode", ["deterministic", "stochastic"])
@pytest.mark.parametrize("levels", LEVELS)
def test_binary_connect(isa, levels, mode, dtype):
    for scale, clip in itertools.product(SCALES.values(), (True, False)):
        weights = []
        for backend in ("native", "portable"):
            w, g = special(LEVELS[levels], scale, dtype)
            first, p = (torch.nn.Parameter(x.clone()) for x in (w[:1, :2], w))
            first.grad, p.grad = torch.zeros_like(first), g
            with lp.kernels.using(backend):
                groups = [{"params": [first], "levels": None}, {"params": [p]}]
                optimizer = BinaryConnect(
                    torch.optim.SGD(groups, 0.1), LEVELS[levels], mode, clip=clip,
                    scale=scale, generator=torch.Generator().manual_seed(9),
                )  # fmt: skip
                optimizer.step()
            weights.append([p.detach(), optimizer.state[p]["latent"]])
        assert all(map(equal_bits, *weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("offset", [0, 3, 2**34 - 500])
@pytest.mark.parametrize("levels", ["binary", "halves", "16", "17"])
def test_words_at_their_bounds(isa, levels, offset, dtype):
    """Shares as near to the random words as the dtype allows, and some much larger."""
    count, seed = 3001, 2**40 + 5
    index = torch.arange(offset, offset + count)
    words = philox_words(index, torch.tensor(seed), step=7, purpose=0)
    values = LEVELS[levels].values
    lower, upper = values[0], values[1]
    w = (lower + (upper - lower) * words.to(torch.float64) / 2.0**32).to(dtype)
    w[::3] += 2.0 ** torch.linspace(-26, 3, len(w[::3]), dtype=dtype)
    levels_of = []
    for backend in ("native", "portable"):
        with lp.kernels.using(backend):
            out = torch.empty_like(w)
            scaled = ScaledLevels(LEVELS[levels], torch.ones((), dtype=dtype), w)
            scaled.quantize_(w, out, False, Sampling(seed, 7, offset))
            levels_of.append(out)
    assert equal_bits(*levels_of)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("prox", ["l1", "sq", "l2"])
@pytest.mark.parametrize("levels", LEVELS)
def test_prox_quant(isa, levels, prox, dtype):
    for scale, clip in itertools.product(SCALES.values(), (True, False)):
        weights = []
        for backend in ("native", "portable"):
            w, g = special(LEVELS[levels], scale, dtype)
            if prox == "l2":  # whose length must be finite to move anything
                w = w.nan_to_num(0.5, 3.0, -3.0).clamp(-9, 9)
            p = torch.nn.Parameter(w)
            p.grad = g
            with lp.kernels.using(backend):
                optimizer = ProxQuant(
                    torch.optim.SGD([p], 0.1), LEVELS[levels], prox, 0.3, clip=clip,
                    scale=scale,
                )  # fmt: skip
                optimizer.step()
                moved = w.clone()
                optimizer.project_()
            weights.append([moved, w])
        assert all(map(equal_bits, *weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [1, 31, 4095, 4097, 8192, 20_011])
def test_lengths_for_the_proximal_map(isa, count, dtype):
    """The sum of squares does not depend on threads, and is that of exact numbers."""
    generator = torch.Generator().manual_seed(count)
    w = 3 * torch.randn(5, count, generator=generator, dtype=torch.float64).to(dtype)
    scale = SCALES["channel"].to(dtype)
    threads, lengths = torch.get_num_threads(), []
    try:
        for backend, team in (("native", 1), ("native", 2), ("portable", 1)):
            torch.set_num_threads(team)
            with lp.kernels.using(backend):
                scaled = ScaledLevels(LEVELS["binary"], scale, w)
                lengths.append(scaled._length(w))
    finally:
        torch.set_num_threads(threads)
    assert len(set(lengths)) == 1
    z = w / scale  # rounded to the dtype, as their distances are
    rest = (z - torch.where(z >= 0, 1.0, -1.0).to(dtype)).flatten().tolist()
    exact = sum(Fraction(x) ** 2 for x in rest)
    relative = Fraction(lengths[0]) ** 2 / exact - 1
    assert abs(relative) < Fraction(1, 2**44)


OPTIMIZERS = {
    "askew": lambda p, scale: ASkewSGD(
        [p], 0.25, levels=lp.Levels.binary(), momentum=0.5, epsilon=0.25,
        hull="levels", scale=scale,
    ),
    "rounded": lambda p, scale: ASkewSGD(
        [p], 0.25, levels=lp.Levels.binary(), momentum=0.5, epsilon=0.25,
        hull="levels", scale=scale, param_format="bfloat16",
    ),
    "binary": lambda p, scale: BinaryConnect(
        torch.optim.SGD([p], 0.25), lp.Levels.binary(), scale=scale
    ),
    "sampled": lambda p, scale: BinaryConnect(
        torch.optim.SGD([p], 0.25), lp.Levels.binary(), "stochastic", scale=scale,
        generator=torch.Generator().manual_seed(1),
    ),
    "prox": lambda p, scale: ProxQuant(
        torch.optim.SGD([p], 0.25), lp.Levels.binary(), "l2", 0.125, clip=True,
        scale=scale,
    ),
    "skewed": lambda p, scale: Skewed(
        torch.optim.SGD([p], 0.25), lp.Levels.binary(), "displacement", epsilon=0.25,
        scale=scale,
    ),
}  # fmt: skip


@pytest.mark.parametrize("scale", [None, PerChannel("mean_abs")], ids=["1", "channels"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("first", [torch.float32, torch.float64], ids=str)
def test_a_change_of_dtype_changes_roundings_only(first, make, scale):
    def trained(changes):
        torch.manual_seed(3)
        p = torch.nn.Parameter(torch.randn(4, 40).to(first))
        gradients = torch.randn(3, 4, 40)
        optimizer = make(p, scale)
        for step, gradient in enumerate(gradients):
            if step == 1 and changes:
                p.data = p.data.to(second)
            p.grad = gradient.to(p)
            optimizer.step()
        with optimizer.quantized():
            levels = p.detach().to(torch.float64, copy=True)
        return p.dtype, optimizer.distance(), levels

    second = torch.float64 if first == torch.float32 else torch.float32
    kept, distance, expected = trained(False)
    changed, other, weights = trained(True)
    assert (kept, changed) == (first, second)
    assert other == pytest.approx(distance, rel=1e-5)
    assert torch.allclose(weights, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["levels", "middles", "scale", "out", "direction"])
def test_kernels_refuse_other_dtypes(name):
    tensors = dict.fromkeys(["levels", "middles", "scale", "out", "direction"])
    for key in tensors:
        dtype = torch.float64 if key == name else torch.float32
        tensors[key] = torch.ones(2, dtype=dtype)
    out, direction = tensors.pop("out"), tensors.pop("direction")
    before = out.clone()
    with pytest.raises(TypeError, match=r"float64 for torch\.float32"):
        native_levels.map_levels(
            native_levels.SKEW["quadratic"], torch.ones(2),
            native_levels.Rows(**tensors), out, direction=direction,
        )  # fmt: skip
    assert torch.equal(out, before)
