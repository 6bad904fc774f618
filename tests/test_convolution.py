"""conv1d, conv2d and conv3d: against the oracle on explicitly unfolded operands."""

import itertools
import weakref

import pytest
import torch
from layer_roundings import ROUNDINGS, STOCHASTIC, ignore_dynamo, leaf

import lowprec as lp
from lowprec import Accumulator, Rounding, functional
from lowprec.functional import Seeds, _unrolled
from lowprec.precision import Precision
from lowprec.random import split_seed
from lowprec.testing import assert_bit_equal, exact_dot

OURS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TORCHS = {
    1: torch.nn.functional.conv1d,
    2: torch.nn.functional.conv2d,
    3: torch.nn.functional.conv3d,
}
# input, weight, stride, padding before, padding after, dilation, groups
CASES = {
    "sequence": ((2, 2, 5), (3, 2, 3), (1,), (1,), (1,), (1,), 1),
    "one tap": ((2, 3, 4), (2, 3, 1), (1,), (0,), (0,), (1,), 1),
    "groups": ((1, 4, 7), (4, 2, 3), (2,), (2,), (2,), (1,), 2),
    "gaps": ((1, 1, 8), (2, 1, 2), (3,), (0,), (0,), (1,), 1),
    "dilated stride": ((1, 1, 9), (1, 1, 3), (2,), (1,), (1,), (2,), 1),
    "common factor": ((1, 1, 14), (1, 1, 3), (4,), (3,), (3,), (6,), 1),
    "wide padding": ((1, 1, 2), (1, 1, 2), (2,), (3,), (3,), (1,), 1),
    "image": ((2, 2, 3, 4), (2, 2, 2, 3), (2, 1), (1, 1), (1, 1), (1, 1), 1),
    "depthwise": ((1, 2, 3, 3), (4, 1, 3, 3), (1, 1), (1, 1), (1, 1), (1, 1), 2),
    "same": ((1, 1, 3, 2), (1, 1, 2, 4), (1, 1), (0, 1), (1, 2), (1, 1), 1),
    "volume": (
        (1, 1, 2, 3, 3),
        (2, 1, 2, 2, 2),
        (1, 2, 1),
        (0, 1, 0),
        (0, 1, 0),
        (1, 1, 2),
        1,
    ),
}
STOCHASTIC_SUMS = Accumulator(
    Rounding("e6m4", "stochastic"), product=Rounding("e5m2", "stochastic")
)
ACCUMULATORS = [
    Accumulator("e8m7"),
    Accumulator("e6m4", product="e5m2", order="blocked", block_size=3),
    Accumulator(Rounding("e6m4", "toward_negative"), order="pairwise"),
    STOCHASTIC_SUMS,
]


def convolve(functions, x, w, b, case, **keywords):
    _, _, stride, before, after, dilation, groups = CASES[case]
    padding = before if before == after else "same"
    function = functions[x.dim() - 2]
    return function(x, w, b, stride, padding, dilation, groups, **keywords)


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


def expected_output(x, w, case, size, accumulator, seed):
    _, _, stride, before, _, dilation, groups = CASES[case]
    per_group = w.shape[0] // groups

    def terms(n, o, *out):
        pairs = []
        for c, *k in positions(w.shape[1:]):
            place = [
                i * s + j * d - p
                for i, s, j, d, p in zip(out, stride, k, dilation, before, strict=True)
            ]
            channel = o // per_group * w.shape[1] + c
            pairs.append((w[(o, c, *k)].item(), at(x, (n, channel), place)))
        return pairs

    return sums((x.shape[0], w.shape[0], *size), terms, accumulator, seed)


def expected_weight_gradient(x, w, g, case, accumulator, seed):
    _, _, stride, before, _, dilation, groups = CASES[case]
    per_group = w.shape[0] // groups

    def terms(o, c, *k):
        pairs = []
        for n, *out in positions((g.shape[0], *g.shape[2:])):
            place = [
                i * s + j * d - p
                for i, s, j, d, p in zip(out, stride, k, dilation, before, strict=True)
            ]
            channel = o // per_group * w.shape[1] + c
            pairs.append((g[(n, o, *out)].item(), at(x, (n, channel), place)))
        return pairs

    return sums(w.shape, terms, accumulator, seed)


def expected_input_gradient(x, w, g, case, accumulator, seed):
    _, _, stride, before, _, dilation, groups = CASES[case]
    per_group = w.shape[0] // groups

    def terms(n, c, *place):
        group, channel = divmod(c, w.shape[1])
        pairs = []
        for o in range(group * per_group, (group + 1) * per_group):
            # Descending kernel positions are ascending outputs.
            for k in itertools.product(*(reversed(range(n)) for n in w.shape[2:])):
                distance = [
                    i + p - j * d
                    for i, p, j, d in zip(place, before, k, dilation, strict=True)
                ]
                if any(a % s for a, s in zip(distance, stride, strict=True)):
                    continue
                out = [a // s for a, s in zip(distance, stride, strict=True)]
                pairs.append((w[(o, channel, *k)].item(), at(g, (n, o), out)))
        return pairs

    # The random words count phase by phase.
    order = sorted(
        positions(x.shape),
        key=lambda where: (
            [i % s for i, s in zip(where[2:], stride, strict=True)],
            where,
        ),
    )
    index = {where: number for number, where in enumerate(order)}
    return sums(x.shape, terms, accumulator, seed, index)


@pytest.mark.parametrize("accumulator", ACCUMULATORS, ids=repr)
@pytest.mark.parametrize("case", CASES)
def test_sums_are_those_of_the_oracle(case, accumulator):
    torch.manual_seed(1)
    x, w = leaf(*CASES[case][0]), leaf(*CASES[case][1])
    precision = Precision(accumulator=accumulator)
    y = convolve(OURS, x, w, None, case, precision=precision, seed=7)
    g = torch.randn_like(y)
    dx, dw = torch.autograd.grad(y, (x, w), g)
    parts = Seeds(*(part.item() for part in split_seed(torch.tensor(7), 11)))
    with torch.no_grad():
        size = y.shape[2:]
        assert_bit_equal(y.double(), expected_output(x, w, case, size, accumulator, 7))
        assert_bit_equal(
            dx.double(),
            expected_input_gradient(
                x, w, g, case, accumulator, parts.grad_input_sum % 2**64
            ),
        )
        assert_bit_equal(
            dw.double(),
            expected_weight_gradient(
                x, w, g, case, accumulator, parts.grad_weight_sum % 2**64
            ),
        )


def everything(x, w, b, case, precision, seed=7):
    """Output and all gradients."""
    y = convolve(OURS, x, w, b, case, precision=precision, seed=seed)
    g = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(5))
    leaves = [x, w] if b is None else [x, w, b]
    return [y.detach(), *torch.autograd.grad(y, leaves, g)]


def leaves_of(case, dtype=torch.float32):
    shape_x, shape_w = CASES[case][:2]
    return (
        leaf(*shape_x, dtype=dtype),
        leaf(*shape_w, dtype=dtype),
        leaf(shape_w[0], dtype=dtype),
    )


def assert_all_equal(ours, theirs):
    for left, right in zip(ours, theirs, strict=True):
        assert_bit_equal(left, right)


@pytest.mark.parametrize("workspace", [1, 150])
@pytest.mark.parametrize("accumulator", ACCUMULATORS, ids=repr)
@pytest.mark.parametrize("case", CASES)
def test_workspace_is_kept_and_changes_nothing(
    case, accumulator, workspace, monkeypatch
):
    leaves, precision = leaves_of(case), Precision(accumulator=accumulator)
    expected = everything(*leaves, case, precision)
    multiply, sizes, alive = _unrolled.product, [], []

    def watched(a, b, *rest):
        before = alive[-1]() if alive else None
        assert before is None or before is b or before.numel() == 0  # one at a time
        alive.append(weakref.ref(b))
        sizes.append(b.numel() * b.element_size())
        assert sizes[-1] <= max(workspace, b.shape[-2] * b.element_size())
        return multiply(a, b, *rest)

    monkeypatch.setattr(_unrolled, "product", watched)
    monkeypatch.setattr(_unrolled, "WORKSPACE", workspace)
    assert_all_equal(everything(*leaves, case, precision), expected)
    assert workspace > 1 or len(sizes) > 3


def expected_composition(x, w, b, g, case, precision, seed):
    """Round around the sums, which the oracle's test is about."""
    parts = Seeds(*split_seed(torch.tensor(seed), len(Seeds._fields)))
    forward, backward = precision.accumulator, precision.backward_accumulator
    x2 = lp.round(x, precision.input, seed=parts.input).requires_grad_()
    w2 = lp.round(w, precision.weight, seed=parts.weight).requires_grad_()
    bare = Precision(accumulator=forward)
    y = convolve(OURS, x2, w2, None, case, precision=bare, seed=seed).detach()
    adder = forward.replace(
        product="exact", order="sequential", block_size=None, within=None
    )
    column = b.reshape(-1, *[1] * (x.dim() - 2))
    pairs = torch.stack(torch.broadcast_tensors(y, column), -1).reshape(-1, 2)
    ones = torch.ones(2, 1, dtype=x.dtype)
    y = lp.matmul(pairs, ones, accumulator=adder, seed=parts.bias).reshape(y.shape)
    y = lp.round(y, precision.output, seed=parts.output)
    g2 = lp.round(g, precision.grad_output, seed=parts.grad_output)
    geometry = _unrolled.Geometry(
        CASES[case][2],
        tuple(zip(CASES[case][3], CASES[case][4], strict=True)),
        CASES[case][5],
        CASES[case][6],
    )
    dx = _unrolled.input_gradient(
        g2, w2.detach(), x.shape[2:], geometry, backward, parts.grad_input_sum
    )
    dw = _unrolled.weight_gradient(
        g2, x2.detach(), w.shape[2:], geometry, backward, parts.grad_weight_sum
    )
    terms = g2.movedim(1, -1).reshape(-1, w.shape[0])
    ones = torch.ones(1, terms.shape[0], dtype=x.dtype)
    plain = backward.replace(product="exact")
    db = lp.matmul(ones, terms, accumulator=plain, seed=parts.grad_bias_sum)[0]
    return (
        y,
        lp.round(dx, precision.grad_input, seed=parts.grad_input),
        lp.round(dw, precision.grad_weight, seed=parts.grad_weight),
        lp.round(db, precision.grad_weight, seed=parts.grad_bias),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fields", [ROUNDINGS, STOCHASTIC], ids=["rne", "sr"])
@pytest.mark.parametrize("case", ["groups", "image", "same"])
def test_roundings_are_those_of_linear(case, fields, dtype):
    precision = Precision(
        accumulator=STOCHASTIC_SUMS, grad_accumulator="e8m10", **fields
    )
    x, w, b = leaves_of(case, dtype)
    y = convolve(OURS, x, w, b, case, precision=precision, seed=7)
    g = torch.randn_like(y)
    gradients = torch.autograd.grad(y, (x, w, b), g)
    with torch.no_grad():
        expected = expected_composition(x, w, b, g, case, precision, 7)
    assert_all_equal([y.detach(), *gradients], [z.detach() for z in expected])


@pytest.mark.parametrize("fields", [ROUNDINGS, STOCHASTIC], ids=["rne", "sr"])
@pytest.mark.parametrize("accumulator", ACCUMULATORS, ids=repr)
def test_kernel_of_the_inputs_size_is_linear(accumulator, fields):
    precision = Precision(accumulator=accumulator, **fields)
    x, w, b = leaf(3, 2, 2, 2), leaf(4, 2, 2, 2), leaf(4)
    y = functional.conv2d(x, w, b, precision=precision, seed=3)
    flat = functional.linear(x.flatten(1), w.flatten(1), b, precision=precision, seed=3)
    g = torch.randn(3, 4)
    ours = torch.autograd.grad(y, (w, b), g[..., None, None])
    theirs = torch.autograd.grad(flat, (w, b), g)
    assert_bit_equal(y.detach().flatten(1), flat.detach())
    # Sums for the gradient of the input have the zeros around dy as further terms.
    assert_all_equal(ours, theirs)


@pytest.mark.parametrize("fields", [ROUNDINGS, STOCHASTIC], ids=["rne", "sr"])
@pytest.mark.parametrize("accumulator", ACCUMULATORS, ids=repr)
def test_kernel_of_one_element_is_linear(accumulator, fields):
    precision = Precision(accumulator=accumulator, **fields)
    x, w, b = leaf(3, 4), leaf(5, 4), leaf(5)
    y = functional.conv1d(x[..., None], w[..., None], b, precision=precision, seed=3)
    flat = functional.linear(x, w, b, precision=precision, seed=3)
    g = torch.randn(3, 5)
    assert_bit_equal(y[..., 0].detach(), flat.detach())
    assert_all_equal(
        torch.autograd.grad(y, (x, w, b), g[..., None]),
        torch.autograd.grad(flat, (x, w, b), g),
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_identity_precision_is_torch(case, bias, dtype):
    x, w, b = leaves_of(case, dtype)
    leaves = (x, w, b) if bias else (x, w)
    b = b if bias else None
    actual = convolve(OURS, x, w, b, case, precision=Precision())
    expected = convolve(TORCHS, x, w, b, case)
    g = torch.randn_like(expected)
    assert_bit_equal(actual.detach(), expected.detach())
    assert_all_equal(
        torch.autograd.grad(actual, leaves, g), torch.autograd.grad(expected, leaves, g)
    )


@pytest.mark.parametrize("case", CASES)
def test_wide_formats_are_nearly_float64(case):
    # An accumulator of 51 bits differs from float64 by less than any real mistake.
    leaves = leaves_of(case, torch.float64)
    ours = everything(*leaves, case, Precision(accumulator="e8m50"))
    theirs = everything(*leaves, case, Precision())
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("accumulator", [None, "e8m7"])
def test_one_example_needs_no_batch_dimension(accumulator):
    precision = Precision(accumulator=accumulator, **ROUNDINGS)
    x, w, b = leaves_of("depthwise")
    alone = functional.conv2d(x[0], w, b, 1, "same", groups=2, precision=precision)
    batch = functional.conv2d(x, w, b, 1, 1, groups=2, precision=precision)
    assert_bit_equal(alone.detach(), batch[0].detach())
    g = torch.randn_like(alone)
    assert_all_equal(
        torch.autograd.grad(alone, (x, w, b), g),
        torch.autograd.grad(batch, (x, w, b), g[None]),
    )


@pytest.mark.parametrize("accumulator", [None, "e8m7", STOCHASTIC_SUMS])
def test_no_examples_at_all(accumulator):
    x, w, b = leaf(0, 2, 5), leaf(3, 2, 3), leaf(3)
    y = functional.conv1d(
        x, w, b, 2, precision=Precision(accumulator=accumulator), seed=1
    )
    assert y.shape == (0, 3, 2)
    dx, dw, db = torch.autograd.grad(y, (x, w, b), y)
    assert dx.shape == x.shape
    assert not dw.any()
    assert not db.any()


def test_layout_of_operands_does_not_matter():
    precision = Precision(accumulator=STOCHASTIC_SUMS, **STOCHASTIC)
    x, w = torch.randn(2, 3, 4, 5), torch.randn(4, 3, 2, 2)
    expected = functional.conv2d(x, w, precision=precision, seed=3)
    channels_last = x.to(memory_format=torch.channels_last)
    strided = w.repeat(1, 1, 1, 2)[..., :2]
    actual = functional.conv2d(channels_last, strided, precision=precision, seed=3)
    assert_bit_equal(actual, expected)


def test_zeros_around_the_input_are_factors():
    x, w = torch.ones(1, 1, 1), torch.tensor([[[float("inf"), 1.0, 2.0]]])
    y = functional.conv1d(x, w, padding=1, precision=Precision(accumulator="e8m7"))
    assert y.isnan().all()


def test_nothing_is_drawn_without_stochastic_roundings():
    state = torch.get_rng_state()
    precision = Precision(elementwise=Rounding("e4m3fn", "stochastic"), **ROUNDINGS)
    functional.conv1d(torch.ones(1, 1, 2), torch.ones(1, 1, 2), precision=precision)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("needed", [0, 1, 2])
@pytest.mark.parametrize("backward", ["carrier", STOCHASTIC_SUMS])
def test_seeds_of_parts_do_not_depend_on_what_needs_gradients(needed, backward):
    precision = Precision(
        accumulator=STOCHASTIC_SUMS, grad_accumulator=backward, **STOCHASTIC
    )
    leaves = [x.detach() for x in leaves_of("groups")]
    all_need = [x.clone().requires_grad_() for x in leaves]
    y = convolve(OURS, *all_need, "groups", precision=precision, seed=5)
    expected = torch.autograd.grad(y.sum(), all_need)[needed]
    leaves[needed].requires_grad_()
    y = convolve(OURS, *leaves, "groups", precision=precision, seed=5)
    (actual,) = torch.autograd.grad(y.sum(), leaves[needed])
    assert_bit_equal(actual, expected)


@pytest.mark.parametrize("accumulator", [None, "e8m7"])
def test_autocast_is_off_inside(accumulator):
    precision = Precision(accumulator=accumulator, **ROUNDINGS)
    leaves = leaves_of("image")
    expected = everything(*leaves, "image", precision)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_all_equal(everything(*leaves, "image", precision), expected)


@ignore_dynamo
@pytest.mark.parametrize("accumulator", [None, STOCHASTIC_SUMS])
@pytest.mark.parametrize(
    "case", [pytest.param("gaps", marks=pytest.mark.slow), "image"]
)
def test_compiles_without_graph_breaks(case, accumulator):
    precision = Precision(accumulator=accumulator, **ROUNDINGS)
    leaves, seed = leaves_of(case), torch.tensor(9)

    def run(x, w, b, seed):
        return convolve(OURS, x, w, b, case, precision=precision, seed=seed)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(*leaves, seed), run(*leaves, seed)
    assert_bit_equal(actual.detach(), expected.detach())
    assert_all_equal(
        torch.autograd.grad(actual.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
    )


@pytest.mark.parametrize("workspace", [100, _unrolled.WORKSPACE])
@pytest.mark.parametrize("case", ["gaps", "image"])
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0)])
def test_per_sample_gradients_by_torch_func(case, workspace, in_dims, monkeypatch):
    monkeypatch.setattr(_unrolled, "WORKSPACE", workspace)
    precision = Precision(accumulator="e8m4", **ROUNDINGS)
    operands = [
        torch.randn(*([3] if dim == 0 else []), *shape)
        for shape, dim in zip(CASES[case][:2], in_dims, strict=True)
    ]

    def loss(x, w):
        return convolve(OURS, x, w, None, case, precision=precision).sum()

    gradient = torch.func.grad(loss, argnums=(0, 1))
    actual = torch.func.vmap(gradient, in_dims=in_dims)(*operands)
    for i in range(3):
        one = [x if d is None else x[i] for x, d in zip(operands, in_dims, strict=True)]
        assert_all_equal([x[i] for x in actual], gradient(*one))


X, W = torch.ones(1, 2, 4), torch.ones(4, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((X.half(), W), TypeError, r"half carrier.*x\.float"),
        ((X, W.double()), TypeError, "weight and input must have the same dtype"),
        ((X, W, torch.ones(3)), ValueError, r"bias must have shape \(4,\)"),
        ((X[..., None], W), ValueError, r"cannot convolve input \(1, 2, 4, 1\)"),
        ((X, W[..., :0]), ValueError, "all sizes of these at least 1"),
        ((X[..., :0], W, None, 1, 2), ValueError, "all sizes of these at least 1"),
        ((X, W[:, :1]), ValueError, "in 1 groups"),
        ((X, W[:3, :1], None, 1, 0, 1, 2), ValueError, "groups that divide O"),
        ((X, W, None, 1, 0, 1, 0), ValueError, "groups must be a positive int, got 0"),
        ((X, W, None, 0), ValueError, "stride must be a positive int or 1 of them"),
        ((X, W, None, (1, 1)), ValueError, r"stride .* got \(1, 1\)"),
        ((X, W, None, 1, -1), ValueError, "padding must be a non-negative int or 1 of"),
        ((X, W, None, 1, "full"), ValueError, "'same' or 'valid', got 'full'"),
        ((X, W, None, 1, 0, 1.5), ValueError, "dilation must be a positive int"),
        ((X, W, None, 2, "same"), ValueError, "padding='same' needs stride 1"),
        ((X, W, None, 1, 0, 2), ValueError, "has 4 elements .* kernel needs 5"),
    ],
)
def test_refusals(arguments, kind, message):
    with pytest.raises(kind, match=message):
        functional.conv1d(*arguments, precision=Precision())


def test_other_refusals():
    with pytest.raises(TypeError, match="expected a Precision"):
        functional.conv1d(X, W, precision="bfloat16")
    x, w = X.clone().requires_grad_(), W.clone()
    y = functional.conv1d(x, w, precision=Precision(accumulator="e8m7"))
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()
