"""Adam: torch's bits without formats, correct roundings with them."""

import itertools
import math
from fractions import Fraction

import mpmath
import pytest
import torch

import lowprec as lp
from lowprec.optim._adam import adam_direction
from lowprec.optim._base import step_seeds
from lowprec.optim._update import Purpose
from lowprec.testing import exact_round, random_word

FLAGS = [
    {"amsgrad": a, "weight_decay": d, "maximize": x, "eps": e, "betas": b}
    for a, d, x, (e, b) in itertools.product(
        (False, True), (0, 0.02), (False, True),
        ((1e-8, (0.9, 0.999)), (0.0, (0.0, 0.5))),
    )
]  # fmt: skip
PAIRS = [
    (lp.optim.Adam, torch.optim.Adam),
    (lp.optim.AdamW, torch.optim.AdamW),
]
STATE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def parameters(dtype):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(s, generator=generator, dtype=dtype))
        for s in [(7, 5), (), (13,), (0,), (33,)]
    ]


def set_gradients(params, k):
    generator = torch.Generator().manual_seed(100 + k)
    for i, p in enumerate(params):
        if i == 2 and k % 3 == 1:
            p.grad = None
        else:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def assert_same(a, b):
    assert torch.equal(a.isnan(), b.isnan())  # eps = 0 and no gradient yet: 0/0
    assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    assert torch.equal(a.signbit(), b.signbit())


@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=["float", "tensor"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids=["Adam", "AdamW"])
def test_equals_torch_bit_for_bit_without_formats(pair, flags, dtype, lr):
    ours, theirs = parameters(dtype), parameters(dtype)
    first = pair[0](ours, lr=lr, **flags)
    second = pair[1](theirs, lr=lr, foreach=False, **flags)
    for k in range(6):
        set_gradients(ours, k)
        set_gradients(theirs, k)
        first.step()
        second.step()
        if not isinstance(lr, torch.Tensor):
            first.param_groups[0]["lr"] *= 0.9
            second.param_groups[0]["lr"] *= 0.9
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a, b)
        assert first.state[a].keys() == second.state[b].keys()
        for key, value in first.state[a].items():
            assert_same(value, second.state[b][key])


def fraction(x):
    return Fraction(float(x))


def words(optimizer, step, purpose, count):
    seed = optimizer.param_groups[0]["rounding_seed"]
    if seed is None:
        return [0] * count
    key = int(step_seeds(seed, step)[purpose])
    return [random_word(key, i) for i in range(count)]


def rounded(values, fl, draws):
    return [float(exact_round(x, fl, w)) for x, w in zip(values, draws, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode", ["nearest_even", "toward_zero", "stochastic"])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_moments_are_exact_values_rounded_once(dtype, mode, amsgrad):
    fl = lp.Rounding("e6m8", mode, random_bits=12)
    count = 48
    p = torch.nn.Parameter(torch.zeros(count, dtype=dtype))
    optimizer = lp.optim.Adam(
        [p], betas=(0.9, 0.8), exp_avg_format=fl, exp_avg_sq_format=fl, amsgrad=amsgrad
    )
    b1, a1, b2, a2 = (
        fraction(torch.tensor(x, dtype=dtype)) for x in (0.9, 1 - 0.9, 0.8, 1 - 0.8)
    )
    m = v = largest = [0.0] * count
    for k in range(4):
        p.grad = torch.randn(count, dtype=dtype) * 3.0**-k
        g = [fraction(x) for x in p.grad]
        m = rounded(
            [b1 * fraction(x) + a1 * y for x, y in zip(m, g, strict=True)],
            fl,
            words(optimizer, k, Purpose.MOMENTUM, count),
        )
        v = rounded(
            [b2 * fraction(x) + a2 * y**2 for x, y in zip(v, g, strict=True)],
            fl,
            words(optimizer, k, Purpose.SECOND_MOMENT, count),
        )
        largest = [max(x, y) for x, y in zip(largest, v, strict=True)]
        optimizer.step()
        state = optimizer.state[p]
        assert state["exp_avg"].tolist() == m
        assert state["exp_avg_sq"].tolist() == v
        if amsgrad:
            assert state["max_exp_avg_sq"].tolist() == largest
    assert not amsgrad or largest != v


def test_a_square_wider_than_float64_decides_a_tie():
    # With beta_2 = 0.5, v = (v + g^2)/2: g^2 is just off the tie 1 + 2^-7 between
    # 1 and 1 + 2^-6, by less than the last bit of its float64 square.
    fl = lp.Rounding("bfloat16")
    for direction, expected in ((1, 1 + 2.0**-7), (-1, 1.0)):
        root = math.sqrt(1 + 2.0**-7)
        while (Fraction(root) ** 2 > 1 + Fraction(1, 128)) != (direction > 0):
            root = math.nextafter(root, math.inf * direction)
        p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = lp.optim.Adam([p], betas=(0.0, 0.5), exp_avg_sq_format=fl)
        p.grad = torch.tensor([root], dtype=torch.float64)
        optimizer.step()
        optimizer.state[p]["exp_avg_sq"].fill_(1.0)
        optimizer.step()
        assert optimizer.state[p]["exp_avg_sq"].item() == expected


@pytest.mark.parametrize("exponent", [-1000, -500, -451, -449, 0, 500, 511])
def test_squares_of_extreme_gradients(exponent):
    fl = lp.Rounding("e10m4", "toward_positive")
    g = math.ldexp(1.2345678901234567, exponent)
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = lp.optim.Adam([p], betas=(0.0, 0.5), exp_avg_sq_format=fl)
    p.grad = torch.tensor([g], dtype=torch.float64)
    optimizer.step()
    expected = float(exact_round(Fraction(g) ** 2 / 2, fl))
    assert optimizer.state[p]["exp_avg_sq"].item() == expected


def test_nonfinite_gradients_propagate():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = lp.optim.Adam([p], exp_avg_format="e5m2", exp_avg_sq_format="e5m2")
    p.grad = torch.tensor([float("inf"), float("nan"), 1.0])
    optimizer.step()
    state = optimizer.state[p]
    assert state["exp_avg_sq"][0].isinf()
    assert state["exp_avg"][1].isnan()
    assert state["exp_avg_sq"][1].isnan()
    assert p.isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_direction_is_accurate_and_leaves_the_state_alone(dtype):
    first, second = torch.randn(200, dtype=dtype), torch.rand(200, dtype=dtype)
    before = first.clone(), second.clone()
    group = {"betas": (0.9, 0.999), "eps": 1e-8}
    u = adam_direction(first, second, 7.0, group)
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])
    with mpmath.workdps(60):
        for a, b, c in zip(first.tolist(), second.tolist(), u.tolist(), strict=True):
            root = mpmath.sqrt(b) / mpmath.sqrt(1 - mpmath.mpf(0.999) ** 7)
            exact = a / (1 - mpmath.mpf(0.9) ** 7) / (root + mpmath.mpf(1e-8))
            assert abs(c - exact) <= abs(exact) * 2.0**-43


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode", ["nearest_even", "toward_negative", "stochastic"])
@pytest.mark.parametrize("update", ["fused", "two_step"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_parameters_are_exact_values_rounded_once(dtype, mode, update, decay):
    fl = lp.Rounding("e6m8", mode, random_bits=12)
    count = 48
    p = torch.nn.Parameter(torch.randn(count, dtype=dtype))
    optimizer = lp.optim.AdamW(
        [p], lr=0.1, weight_decay=decay, param_format=fl, update=update
    )
    group, eta = optimizer.param_groups[0], Fraction(optimizer.effective_lr[0])
    shrink = fraction(torch.tensor(float(eta) * decay, dtype=dtype))
    w = p.tolist()
    for k in range(3):
        p.grad = torch.randn(count, dtype=dtype)
        draws = {
            purpose: words(optimizer, k, purpose, count)
            for purpose in (Purpose.PARAMETER, Purpose.PRODUCT, Purpose.DECAY)
        }
        optimizer.step()
        state = optimizer.state[p]
        u = adam_direction(state["exp_avg"], state["exp_avg_sq"], k + 1.0, group)
        steps = [eta * fraction(x) for x in u]
        kept = [(1 - shrink) * fraction(x) for x in w]
        if update == "two_step":
            steps = rounded(steps, fl, draws[Purpose.PRODUCT])
            if decay:
                kept = rounded(kept, fl, draws[Purpose.DECAY])
        exact = [fraction(a) - fraction(b) for a, b in zip(kept, steps, strict=True)]
        if update == "fused":
            exact = [a - b for a, b in zip(kept, steps, strict=True)]
        w = rounded(exact, fl, draws[Purpose.PARAMETER])
        assert p.tolist() == w


def test_coupled_decay_joins_the_gradient():
    p, q = (torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0])) for _ in "ab")
    first = lp.optim.Adam([p], weight_decay=0.5, exp_avg_format="bfloat16")
    second = lp.optim.Adam([q], exp_avg_format="bfloat16")
    p.grad = torch.tensor([0.1, 0.2, 0.3])
    q.grad = p.grad + 0.5 * p.detach()
    first.step()
    second.step()
    assert torch.equal(first.state[p]["exp_avg"], second.state[q]["exp_avg"])


def test_second_moments_of_bfloat16_need_stochastic_rounding_to_decay():
    """beta_2 = 0.999 is nearer to 1 than half a unit in the last place."""
    results = {}
    for mode in ("nearest_even", "stochastic"):
        p = torch.nn.Parameter(torch.zeros(256))
        fl = lp.Rounding("bfloat16", mode)
        optimizer = lp.optim.Adam([p], exp_avg_sq_format=fl)
        p.grad = torch.ones(256)
        optimizer.step()
        start = optimizer.state[p]["exp_avg_sq"].mean()
        p.grad = torch.zeros(256)
        for _ in range(500):
            optimizer.step()
        results[mode] = (optimizer.state[p]["exp_avg_sq"].mean() / start).item()
    assert results["nearest_even"] == 1.0
    assert abs(results["stochastic"] - 0.999**500) < 0.02


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"lr": -0.1}, "Invalid learning rate: -0.1"),
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"eps": float("nan")}, "Invalid epsilon value: nan"),
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
        ({"update": "both"}, r"'fused' \(one rounding.*or 'master' \(.*got 'both'"),
        ({"exp_avg_format": "binary64"}, "exp_avg_format with 53 significant bits"),
        ({"exp_avg_sq_format": "e11m5"}, "every value of exp_avg_sq_format"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [lp.optim.Adam, lp.optim.AdamW])
def test_invalid_arguments_are_refused(kind, arguments, text):
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises((ValueError, NotImplementedError), match=text):
        kind([p], **arguments)
    optimizer = kind([p])
    p.grad = torch.ones(2)
    optimizer.param_groups[0].update(arguments)
    with pytest.raises((ValueError, NotImplementedError), match=text):
        optimizer.step()
    assert p.tolist() == [1.0, 1.0]
    assert p not in optimizer.state


def test_a_failing_step_changes_nothing():
    fl = lp.Rounding("bfloat16", "stochastic")
    p, q = (torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in "ab")
    optimizer = lp.optim.Adam([{"params": [p]}, {"params": [q]}], exp_avg_format=fl)
    for parameter in (p, q):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = [p.clone(), q.clone(), *(optimizer.state[p][k].clone() for k in STATE[:2])]
    # A product that float64 cannot hold, in a format with values of that size.
    optimizer.param_groups[1]["exp_avg_format"] = "e11m5"
    q.grad *= 2.0**-1000
    optimizer.state[q]["exp_avg"].zero_()
    with pytest.raises(ValueError, match="below 2\\^-960"):
        optimizer.step()
    after = [p, q, *(optimizer.state[p][k] for k in STATE[:2])]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert optimizer.state[p]["step"] == optimizer.state[q]["step"] == 1
    assert optimizer.param_groups[0]["rounding_step"] == 1


def test_a_checkpoint_of_torch_adam_loads_and_decay_stays_decoupled():
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in "ab")
    theirs = torch.optim.Adam([p], lr=0.25, weight_decay=0.5)
    p.grad = q.grad = torch.ones(3)
    theirs.step()
    ours = lp.optim.AdamW([q], param_format="bfloat16")
    ours.load_state_dict(theirs.state_dict())
    group = ours.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.25, 0.5)
    assert group["decoupled_weight_decay"]
    ours.step()
    assert ours.state[q]["step"] == 2
    assert torch.equal(q, lp.round(q.detach(), "bfloat16"))


def test_results_do_not_depend_on_how_weights_are_cut_into_parameters():
    fl = lp.Rounding("bfloat16", "stochastic")
    values, gradient = torch.randn(30), torch.randn(30)
    whole = torch.nn.Parameter(values.clone())
    parts = [torch.nn.Parameter(piece.clone()) for piece in values.split([7, 3, 20])]
    whole.grad = gradient
    for part, piece in zip(parts, gradient.split([7, 3, 20]), strict=True):
        part.grad = piece.clone()
    for params in ([whole], parts):
        generator = torch.Generator().manual_seed(3)
        lp.optim.Adam(
            params, lr=0.1, param_format=fl, exp_avg_format=fl, exp_avg_sq_format=fl,
            generator=generator,
        ).step()  # fmt: skip
    assert torch.equal(torch.cat([p.detach() for p in parts]), whole.detach())


def test_sparse_gradients_are_refused():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = lp.optim.AdamW(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"AdamW does not support sparse gradients"):
        optimizer.step()
