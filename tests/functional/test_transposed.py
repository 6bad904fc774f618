"""Transposed convolutions: against the oracle on explicitly enumerated terms."""

import itertools

import pytest
import torch
from gradients import assert_all_equal, everything, incoming
from layer_roundings import ROUNDINGS, STOCHASTIC, ignore_dynamo, leaf

import lowprec as lp
from lowprec import Accumulator, Rounding, functional
from lowprec.functional import Seeds
from lowprec.precision import Precision
from lowprec.random import split_seed
from lowprec.testing import assert_bit_equal, exact_dot

OURS = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
TORCHS = {
    1: torch.nn.functional.conv_transpose1d,
    2: torch.nn.functional.conv_transpose2d,
    3: torch.nn.functional.conv_transpose3d,
}
# input, weight, stride, padding, output padding, groups, dilation
CASES = {
    "sequence": ((2, 2, 4), (2, 3, 3), (1,), (1,), (0,), 1, (1,)),
    "one tap": ((2, 3, 4), (3, 2, 1), (1,), (0,), (0,), 1, (1,)),
    "stride": ((1, 2, 3), (2, 2, 3), (2,), (1,), (1,), 1, (1,)),
    "groups": ((1, 4, 3), (4, 2, 2), (1,), (0,), (0,), 2, (1,)),
    "gaps": ((1, 1, 3), (1, 2, 2), (3,), (0,), (2,), 1, (1,)),
    "dilated": ((1, 1, 4), (1, 2, 3), (2,), (3,), (2,), 1, (3,)),
    "image": ((2, 2, 2, 3), (2, 2, 3, 2), (2, 1), (1, 0), (1, 0), 1, (1, 1)),
    "volume": (
        (1, 1, 2, 2, 2),
        (1, 2, 2, 1, 2),
        (1, 2, 1),
        (0, 0, 1),
        (0, 1, 0),
        1,
        (1, 1, 2),
    ),
}
STOCHASTIC_SUMS = Accumulator(
    Rounding("e6m4", "stochastic"), product=Rounding("e5m2", "stochastic")
)
ACCUMULATORS = [
    Accumulator("e8m7"),
    Accumulator("e6m4", product="e5m2", order="blocked", block_size=3),
    STOCHASTIC_SUMS,
]


def convolve(functions, x, w, b, case, **keywords):
    return functions[x.dim() - 2](x, w, b, *CASES[case][2:], **keywords)


def positions(shape):
    return itertools.product(*map(range, shape))


def at(x, leading, position):
    """The element there, or the zero around the tensor."""
    inside = all(0 <= i < n for i, n in zip(position, x.shape[2:], strict=True))
    return x[(*leading, *position)].item() if inside else 0.0


def sums(shape, terms, accumulator, seed, index=None):
    """A tensor of exact sums; ``terms`` gives the pairs of one element."""
    result = torch.empty(shape, dtype=torch.float64)
    for number, where in enumerate(positions(shape)):
        pairs = terms(*where)
        a, b = [a for a, _ in pairs], [b for _, b in pairs]
        key = number if index is None else index[where]
        result[where] = exact_dot(a, b, accumulator, seed, key)
    return result


def expected_output(x, w, shape, case, accumulator, seed):
    _, _, stride, padding, _, groups, dilation = CASES[case]
    per_group = w.shape[0] // groups

    def terms(n, o, *place):
        group, channel = divmod(o, w.shape[1])
        pairs = []
        for c in range(group * per_group, (group + 1) * per_group):
            # Descending kernel positions are ascending inputs.
            for k in itertools.product(*(reversed(range(n)) for n in w.shape[2:])):
                distance = [
                    i + p - j * d
                    for i, p, j, d in zip(place, padding, k, dilation, strict=True)
                ]
                if not any(a % s for a, s in zip(distance, stride, strict=True)):
                    source = [a // s for a, s in zip(distance, stride, strict=True)]
                    pairs.append((w[(c, channel, *k)].item(), at(x, (n, c), source)))
        return pairs

    # The random words count phase by phase.
    order = sorted(
        positions(shape),
        key=lambda where: (
            [i % s for i, s in zip(where[2:], stride, strict=True)],
            where,
        ),
    )
    index = {where: number for number, where in enumerate(order)}
    return sums(shape, terms, accumulator, seed, index)


def reached(source, kernel, case):
    """Where the kernel's element puts the input's one."""
    _, _, stride, padding, _, _, dilation = CASES[case]
    return [
        i * s + j * d - p
        for i, s, j, d, p in zip(source, stride, kernel, dilation, padding, strict=True)
    ]


def expected_input_gradient(x, w, g, case, accumulator, seed):
    per_group = w.shape[0] // CASES[case][5]

    def terms(n, c, *source):
        pairs = []
        for o, *k in positions(w.shape[1:]):
            channel = c // per_group * w.shape[1] + o
            value = at(g, (n, channel), reached(source, k, case))
            pairs.append((w[(c, o, *k)].item(), value))
        return pairs

    return sums(x.shape, terms, accumulator, seed)


def expected_weight_gradient(x, w, g, case, accumulator, seed):
    per_group = w.shape[0] // CASES[case][5]

    def terms(c, o, *k):
        channel = c // per_group * w.shape[1] + o
        return [
            (x[(n, c, *source)].item(), at(g, (n, channel), reached(source, k, case)))
            for n, *source in positions((x.shape[0], *x.shape[2:]))
        ]

    return sums(w.shape, terms, accumulator, seed)


def parts_of(seed):
    return Seeds(*split_seed(torch.tensor(seed), len(Seeds._fields)))


@pytest.mark.parametrize("accumulator", ACCUMULATORS, ids=repr)
@pytest.mark.parametrize("case", CASES)
def test_sums_are_those_of_the_oracle(case, accumulator):
    x, w = leaf(*CASES[case][0]), leaf(*CASES[case][1])
    precision = Precision(accumulator=accumulator)
    y = convolve(OURS, x, w, None, case, precision=precision, seed=7)
    g = torch.randn_like(y)
    dx, dw = torch.autograd.grad(y, (x, w), g)
    parts = parts_of(7)
    with torch.no_grad():
        assert_bit_equal(
            y.double(), expected_output(x, w, y.shape, case, accumulator, 7)
        )
        seed = parts.grad_input_sum.item() % 2**64
        wanted = expected_input_gradient(x, w, g, case, accumulator, seed)
        assert_bit_equal(dx.double(), wanted)
        seed = parts.grad_weight_sum.item() % 2**64
        wanted = expected_weight_gradient(x, w, g, case, accumulator, seed)
        assert_bit_equal(dw.double(), wanted)


def leaves_of(case, dtype=torch.float32):
    shape_x, shape_w, *_, groups, _ = CASES[case]
    return (
        leaf(*shape_x, dtype=dtype),
        leaf(*shape_w, dtype=dtype),
        leaf(shape_w[1] * groups, dtype=dtype),
    )


@pytest.mark.parametrize("fields", [ROUNDINGS, STOCHASTIC], ids=["rne", "sr"])
@pytest.mark.parametrize("case", ["groups", "image"])
def test_roundings_surround_the_sums(case, fields):
    precision = Precision(
        accumulator=STOCHASTIC_SUMS, grad_accumulator="e8m10", **fields
    )
    leaves = x, w, b = leaves_of(case)
    ours = everything(
        lambda *leaves: convolve(OURS, *leaves, case, precision=precision, seed=7),
        leaves,
    )
    parts, bare = parts_of(7), Precision(accumulator=STOCHASTIC_SUMS)
    x2 = lp.round(x.detach(), precision.input, seed=parts.input)
    w2 = lp.round(w.detach(), precision.weight, seed=parts.weight)
    y = convolve(OURS, x2, w2, None, case, precision=bare, seed=7)
    column = b.detach().reshape(-1, *[1] * (x.dim() - 2))
    pairs = torch.stack(torch.broadcast_tensors(y, column), -1).reshape(-1, 2)
    adder = lp.Accumulator(STOCHASTIC_SUMS.rounding)
    total = lp.matmul(pairs, torch.ones(2, 1), accumulator=adder, seed=parts.bias)
    y = lp.round(total.reshape(y.shape), precision.output, seed=parts.output)
    (g,) = incoming([y])
    g = lp.round(g, precision.grad_output, seed=parts.grad_output)
    seeds = [None, None]
    dx = expected_input_gradient(x2, w2, g, case, Accumulator("e8m10"), seeds[0])
    dw = expected_weight_gradient(x2, w2, g, case, Accumulator("e8m10"), seeds[1])
    terms = g.movedim(1, -1).reshape(-1, g.shape[1])
    db = lp.matmul(torch.ones(1, len(terms)), terms, accumulator="e8m10")[0]
    expected = [
        y,
        lp.round(dx.float(), precision.grad_input, seed=parts.grad_input),
        lp.round(dw.float(), precision.grad_weight, seed=parts.grad_weight),
        lp.round(db, precision.grad_weight, seed=parts.grad_bias),
    ]
    assert_all_equal(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_identity_precision_is_torch(case, bias, dtype):
    leaves = leaves_of(case, dtype)[: 3 if bias else 2]

    def run(functions, **keywords):
        return everything(
            lambda x, w, b=None: convolve(functions, x, w, b, case, **keywords), leaves
        )

    assert_all_equal(run(OURS, precision=Precision()), run(TORCHS))


@pytest.mark.parametrize("case", CASES)
def test_wide_accumulators_are_nearly_float64(case):
    leaves = leaves_of(case, torch.float64)
    precision = Precision(accumulator="e8m50")
    ours = everything(lambda *x: convolve(OURS, *x, case, precision=precision), leaves)
    theirs = everything(lambda *x: convolve(TORCHS, *x, case), leaves)
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_it_is_the_gradient_of_the_convolution():
    # Same sums, same random words: only the seed's part differs.
    precision = Precision(accumulator=STOCHASTIC_SUMS)
    w, g = torch.randn(3, 2, 3, 3), torch.randn(2, 3, 4, 4)
    x = torch.zeros(2, 2, 8, 8, requires_grad=True)
    y = functional.conv2d(x, w, None, 2, 1, precision=precision, seed=7)
    (expected,) = torch.autograd.grad(y, x, g)
    seed = parts_of(7).grad_input_sum
    actual = functional.conv_transpose2d(
        g, w, None, 2, 1, 1, precision=precision, seed=seed
    )
    assert_bit_equal(actual, expected)


@pytest.mark.parametrize("accumulator", [None, "e8m7"])
def test_one_example_needs_no_batch_dimension(accumulator):
    precision = Precision(accumulator=accumulator, **ROUNDINGS)
    x, w, b = leaves_of("groups")
    alone = functional.conv_transpose1d(x[0], w, b, groups=2, precision=precision)
    batch = functional.conv_transpose1d(x, w, b, groups=2, precision=precision)
    assert_bit_equal(alone.detach(), batch[0].detach())


@ignore_dynamo
@pytest.mark.parametrize("accumulator", [None, STOCHASTIC_SUMS])
def test_compiles_without_graph_breaks(accumulator):
    precision = Precision(accumulator=accumulator, **ROUNDINGS)
    leaves, seed = leaves_of("stride"), torch.tensor(9)

    def run(x, w, b, seed):
        return convolve(OURS, x, w, b, "stride", precision=precision, seed=seed)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(*leaves, seed), run(*leaves, seed)
    assert_bit_equal(actual.detach(), expected.detach())
    assert_all_equal(
        torch.autograd.grad(actual.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
    )


def test_per_sample_gradients_by_torch_func():
    precision = Precision(accumulator="e8m4", **ROUNDINGS)
    shape_x, shape_w = CASES["stride"][:2]
    x, w = torch.randn(3, *shape_x), torch.randn(*shape_w)

    def loss(x, w):
        return convolve(OURS, x, w, None, "stride", precision=precision).sum()

    gradient = torch.func.grad(loss, argnums=(0, 1))
    actual = torch.func.vmap(gradient, in_dims=(0, None))(x, w)
    for i in range(3):
        assert_all_equal([part[i] for part in actual], gradient(x[i], w))


X, W = torch.ones(1, 4, 4), torch.ones(4, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((X.half(), W), TypeError, r"half carrier.*x\.float"),
        ((X, W.double()), TypeError, "weight and input must have the same dtype"),
        ((X, W, torch.ones(3)), ValueError, r"bias must have shape \(2,\)"),
        ((X[:, :2], W), ValueError, r"of weight \(4, 2, 3\) to input \(1, 2, 4\)"),
        ((X, W, None, 1, 0, 0, 3), ValueError, "groups that divide C"),
        ((X, W, None, 1, 0, 0, 0), ValueError, "groups must be a positive int, got 0"),
        ((X, W, None, 0), ValueError, "stride must be a positive int or 1 of them"),
        ((X, W, None, 1, 0, 1), ValueError, "smaller than stride or dilation, got"),
        ((X, W, None, 1, 3), ValueError, r"sizes \(0,\), which must be at least 1"),
    ],
)
def test_refusals(arguments, kind, message):
    with pytest.raises(kind, match=message):
        functional.conv_transpose1d(*arguments, precision=Precision())
