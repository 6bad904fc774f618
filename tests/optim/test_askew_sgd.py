"""ASkewSGD against torch's SGD, the skewed direction, and its own promises."""

import copy
import io
import math
import warnings

import pytest
import torch

import lowprec as lp
from lowprec.optim import (
    Annealing,
    ASkewSGD,
    ExponentialEpsilon,
    Skewed,
    feasible_set,
    nearest,
    skewed_direction,
    split_params,
)

BINARY, INT2 = lp.Levels.binary(), lp.Levels.int_bits(2)
BFLOAT16 = lp.Rounding("bfloat16", "stochastic")


def problem(dtype=torch.float32):
    torch.manual_seed(5)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    ).to(dtype)
    return model, torch.randn(16, 4, dtype=dtype), torch.randn(16, 1, dtype=dtype)


def run(model, x, y, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def snapshot(optimizer):
    params = [p.detach().clone() for g in optimizer.param_groups for p in g["params"]]
    return copy.deepcopy((params, optimizer.state_dict()["state"]))


def same(a, b):
    (params, state), (others, other) = a, b
    assert all(map(torch.equal, params, others))
    assert state.keys() == other.keys()
    for key, values in state.items():
        assert values.keys() == other[key].keys()
        assert all(torch.equal(v, other[key][k]) for k, v in values.items())
    return True


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9, "weight_decay": 0.01},
        {"momentum": 0.9, "nesterov": True, "maximize": True},
        {"momentum": 0.8, "dampening": 0.3},
    ],
)
@pytest.mark.parametrize("coupling", ["velocity", "gradient"])
@pytest.mark.parametrize("levels", [None, BINARY])
def test_it_is_sgd_where_nothing_is_skewed(levels, coupling, options):
    ours, x, y = problem()
    theirs = copy.deepcopy(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lp.NumericalWarning)
        optimizer = ASkewSGD(
            ours.parameters(), 0.05, levels, epsilon=1e9, coupling=coupling, **options
        )
    run(ours, x, y, optimizer, 5)
    sgd = torch.optim.SGD(theirs.parameters(), 0.05, foreach=False, **options)
    run(theirs, x, y, sgd, 5)
    assert torch.equal(weights(ours), weights(theirs))


@pytest.mark.parametrize("scale", [None, 0.25, torch.tensor([[0.5], [2.0], [1.0]])])
@pytest.mark.parametrize("kind", ["quadratic", "quartic", "quartic_ext"])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_one_step_adds_the_skewed_velocity(kind, clip, scale):
    torch.manual_seed(1)
    p = torch.nn.Parameter(2 * torch.randn(3, 50, dtype=torch.float64))
    p.grad = torch.randn(3, 50, dtype=torch.float64)
    s = 1.0 if scale is None else torch.as_tensor(scale, dtype=torch.float64)
    limit = 1 / (4 * 0.1) if clip is None else clip
    options = {"alpha": 0.3, "clip": limit, "kind": kind, "midpoint": "report"}
    # In units of the levels: w = s z, so that dz/dt = v/s and its direction is g/s.
    expected = skewed_direction(p.grad / s, p / s, INT2, 0.05, **options) * s
    before = p.detach().clone()
    ASkewSGD(
        [p], 0.1, INT2, remoteness=kind, alpha=0.3, epsilon=0.05, clip=clip, scale=scale
    ).step()
    torch.testing.assert_close(p.detach(), before - 0.1 * expected, rtol=1e-12, atol=0)


def test_a_step_in_pieces_is_the_step_of_the_whole():
    torch.manual_seed(2)
    w, g = torch.randn(3, 30_001), torch.randn(3, 30_001)
    p = torch.nn.Parameter(w.clone())
    p.grad = g
    ASkewSGD([p], 0.5, BINARY, epsilon=0.2).step()
    direction = skewed_direction(
        g, w, BINARY, 0.2, alpha=0.2, clip=1.0, midpoint="report"
    )
    assert torch.equal(p.detach(), w.add(direction, alpha=-0.5))


def test_coupling_says_what_momentum_sees():
    p = torch.nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    steps = {}
    for coupling in ("velocity", "gradient"):
        with torch.no_grad():
            p.fill_(0.5)
        optimizer = ASkewSGD(
            [p], 0.1, BINARY, momentum=0.5, epsilon=0.25, coupling=coupling, alpha=1.0
        )
        p.grad = torch.ones_like(p)
        optimizer.step()
        steps[coupling] = optimizer.state[p]["momentum_buffer"].item(), p.item()
    # psi = -1/2 and psi' = 1 at 1/2: the skewed velocity is +1/2.
    assert steps == {"velocity": (1.0, 0.55), "gradient": (-0.5, 0.55)}


@pytest.mark.parametrize("kind", ["quadratic", "quartic", "quartic_ext"])
def test_a_constant_gradient_ends_in_the_feasible_set(kind):
    g = torch.tensor([[-5.0], [-0.01], [0.0], [0.01], [5.0]], dtype=torch.float64)
    w = torch.linspace(-4, 3, 141, dtype=torch.float64).repeat(5, 1)
    p = torch.nn.Parameter(w)
    p.grad = g.expand(5, 141).contiguous()
    epsilon = 0.01
    optimizer = ASkewSGD(
        [p], 0.01, INT2, remoteness=kind, alpha=5.0, epsilon=epsilon, clip=5.0
    )
    for _ in range(600):
        optimizer.step()
    ends = torch.tensor(feasible_set(INT2, epsilon, kind), dtype=torch.float64)
    outside = torch.maximum(ends[:, 0] - p[..., None], p[..., None] - ends[:, 1])
    distance = outside.clamp(min=0).amin(-1)
    # A step may leave the set by lr g, and comes back at once.
    assert bool((distance <= 0.01 * g.abs() + 1e-3).all())


def test_projection_and_evaluation():
    model, x, y = problem()
    quantized, others = split_params(model)
    groups = [
        {"params": quantized, "levels": INT2, "scale": "absmax", "epsilon": 0.1},
        {"params": others},
    ]
    optimizer = ASkewSGD(groups, 0.05, momentum=0.9)
    run(model, x, y, optimizer, 3)
    before, largest = weights(model), optimizer.distance()[0]
    with optimizer.quantized():
        for p in quantized:
            s = optimizer.state[p]["scale"]
            assert torch.equal(p, nearest(p / s, INT2) * s)
            assert len(p.unique()) <= 4
        inside = weights(model)
    assert torch.equal(before, weights(model))
    assert not torch.equal(before, inside)
    with pytest.raises(KeyError), optimizer.quantized():
        raise KeyError
    assert torch.equal(before, weights(model))
    optimizer.project_()
    assert torch.equal(inside, weights(model))
    assert optimizer.distance()[0] < 1e-6 < largest


def test_projection_ends_in_the_set():
    for fmt in (None, "bfloat16"):
        model, x, y = problem()
        optimizer = ASkewSGD(
            model.parameters(), 0.05, BINARY, epsilon=0.1, param_format=fmt,
            update="master",
        )  # fmt: skip
        run(model, x, y, optimizer, 2)
        optimizer.project_()
        assert set(weights(model).tolist()) <= {-1.0, 1.0}
        assert optimizer.distance() == (0.0, 0.0)


@pytest.mark.parametrize("update", ["fused", "two_step", "kahan", "master"])
def test_stored_values_are_values_of_the_format(update):
    model, x, y = problem()
    optimizer = ASkewSGD(
        model.parameters(), 0.5, BINARY, epsilon=0.1, momentum=0.9, alpha=1.0,
        hull=(-0.3, 0.3), param_format=BFLOAT16, update=update,
    )  # fmt: skip
    run(model, x, y, optimizer, 4)
    w = weights(model)
    assert torch.equal(w, lp.round(w, "bfloat16"))
    assert w.abs().max() == lp.round(torch.tensor(0.3), "bfloat16", "toward_zero")


@pytest.mark.parametrize("kind", ["quadratic", "quartic", "quartic_ext"])
@pytest.mark.parametrize("levels", [INT2, torch.tensor([[-2.0, -1, 0, 1]])], ids=type)
def test_the_hull_bounds_weights_by_the_outer_slack(levels, kind):
    p = torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    p.grad = 50 * torch.tensor([[-1.0], [1.0]], dtype=torch.float64).expand(2, 3)
    ASkewSGD(
        [p], 1.0, levels, remoteness=kind, epsilon=0.04, hull="levels", clip=9.0
    ).step()
    pieces = feasible_set(INT2, 0.04, kind)
    expected = [[pieces[-1][1]] * 3, [pieces[0][0]] * 3]
    torch.testing.assert_close(p.detach(), torch.tensor(expected, dtype=torch.float64))


def test_resuming_from_a_weights_only_checkpoint_is_bit_exact():
    def make(model):
        optimizer = ASkewSGD(
            model.parameters(), 0.05, INT2, momentum=0.9, scale="mean_abs",
            epsilon=0.2, param_format=BFLOAT16,
        )  # fmt: skip
        schedule = ExponentialEpsilon(1, 0.8, initial=0.2)
        return optimizer, Annealing(optimizer, "epsilon", schedule)

    def proceed(model, optimizer, annealing, x, y):
        for _ in range(3):
            run(model, x, y, optimizer, 1)
            annealing.step()

    model, x, y = problem()
    optimizer, annealing = make(model)
    proceed(model, optimizer, annealing, x, y)
    file = io.BytesIO()
    parts = {"model": model, "optimizer": optimizer, "annealing": annealing}
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    proceed(model, optimizer, annealing, x, y)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, _, _ = problem()
    torch.manual_seed(77)
    twin, again = make(other)
    for part, name in ((other, "model"), (twin, "optimizer"), (again, "annealing")):
        part.load_state_dict(saved[name])
    assert twin.param_groups[0]["levels"] == INT2
    proceed(other, twin, again, x, y)
    assert torch.equal(weights(model), weights(other))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_change_nothing(bad):
    model, x, y = problem()
    optimizer = ASkewSGD(
        model.parameters(), 0.05, BINARY, epsilon=0.2, momentum=0.9, scale="absmax",
        param_format=BFLOAT16,
    )  # fmt: skip
    for steps in (0, 2):
        run(model, x, y, optimizer, steps)
        optimizer.zero_grad()
        model(x).sum().backward()
        before, step = snapshot(optimizer), optimizer.param_groups[0]["rounding_step"]
        list(model.parameters())[-1].grad[0] = bad
        with pytest.raises(RuntimeError, match="1 elements that are NaN or infinite"):
            optimizer.step()
        assert same(before, snapshot(optimizer))
        assert optimizer.param_groups[0]["rounding_step"] == step


def test_large_finite_gradients_are_accepted():
    p = torch.nn.Parameter(torch.ones(8))
    p.grad = torch.full((8,), 3e38)
    ASkewSGD([p], 1e-38, BINARY, epsilon=0.1).step()
    assert p.isfinite().all()


def test_a_zero_scale_changes_nothing():
    p, q = (torch.nn.Parameter(torch.full((2,), x)) for x in (1.0, 0.0))
    optimizer = ASkewSGD([p, q], 0.1, BINARY, epsilon=0.1, scale="absmax")
    p.grad, q.grad = torch.ones(2), torch.ones(2)
    with pytest.raises(ValueError, match="positive and finite"):
        optimizer.step()
    assert p.tolist() == [1.0, 1.0]
    assert not optimizer.state


def test_scales_freeze_at_their_epoch():
    p = torch.nn.Parameter(torch.tensor([0.5, -0.25]))
    optimizer = ASkewSGD([p], 0.1, BINARY, epsilon=0.1, scale="absmax", scale_until=2)
    p.grad = torch.zeros(2)
    optimizer.step()
    assert optimizer.state[p]["scale"] == 0.5
    with torch.no_grad():
        p.mul_(4)
    optimizer.step()
    assert optimizer.state[p]["scale"] == 0.5
    optimizer.update_scales_(epoch=2)
    assert optimizer.state[p]["scale"] == 0.5
    optimizer.update_scales_(epoch=1)
    assert optimizer.state[p]["scale"] == p.abs().max() > 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"levels": torch.tensor([1.0, -1.0])}, "strictly increasing"),
        ({"levels": torch.tensor([-1.0, 1.0, 1.0])}, "increase|increasing"),
        ({"levels": torch.zeros(4, 1, 2)}, "fit|increasing"),
        ({"epsilon": -0.5}, "epsilon"),
        ({"alpha": -1.0}, "alpha"),
        ({"clip": 0.0}, "clip"),
        ({"coupling": "both"}, "coupling"),
        ({"remoteness": "cubic"}, "remoteness"),
        ({"remoteness": "quartic_ext", "levels": lp.Levels([1])}, "two levels"),
        (
            {
                "remoteness": "quartic_ext",
                "levels": torch.tensor([[1.0, math.inf], [1.0, 2.0], [3.0, 4.0]]),
            },
            "two levels",
        ),
        ({"hull": (1.0, -1.0)}, "hull"),
        ({"hull": (-1.0, 0.0, 1.0)}, "hull"),
        ({"hull": "abz"}, "hull"),
        ({"scale": 0.0}, "scale"),
        ({"scale": "sum"}, "scale"),
        ({"lr": -1.0}, "learning rate"),
        ({"momentum": -1.0}, "momentum"),
    ],
)
def test_bad_arguments_are_refused(options, text):
    options = {"lr": 0.1, "levels": BINARY, "epsilon": 0.1, **options}
    with pytest.raises(ValueError, match=text):
        ASkewSGD([torch.nn.Parameter(torch.ones(3))], **options)
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ASkewSGD([p], 0.1, BINARY, epsilon=0.1)
    other = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=text):
        optimizer.add_param_group({"params": [other], **options})
    assert len(optimizer.param_groups) == 1


def test_narrow_parameters_are_refused():
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"model\.float"):
        ASkewSGD([p], 0.1, BINARY)
    ASkewSGD([p], 0.1)


def test_a_zero_learning_rate_moves_nothing():
    p = torch.nn.Parameter(torch.tensor([0.0, 0.5, -3.0]))
    p.grad = torch.ones(3)
    ASkewSGD([p], 0.0, BINARY, epsilon=0.1).step()
    assert p.tolist() == [0.0, 0.5, -3.0]


@pytest.mark.parametrize(
    "options",
    [{"alpha": "x"}, {"clip": "x"}, {"epsilon": "x"}, {"hull": ("a", "b")}],
    ids=str,
)
def test_texts_are_no_numbers(options):
    p = torch.nn.Parameter(torch.ones(3))
    options = {"epsilon": 0.1, **options}
    with pytest.raises(TypeError, match="must be a number, got"):
        ASkewSGD([p], 0.1, BINARY, **options)
    if "hull" not in options:
        with pytest.raises(TypeError, match="must be a number, got"):
            Skewed(torch.optim.SGD([p], 0.1), BINARY, **options)


def test_splitting_a_model():
    shared = torch.nn.Linear(3, 3)
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 3), shared, torch.nn.BatchNorm1d(3), shared,
        torch.nn.Embedding(4, 3), torch.nn.Linear(3, 1),
    )  # fmt: skip
    first, last = model[0], model[5]

    def ids(params):
        return [id(p) for p in params]

    quantized, others = split_params(model)
    assert ids(quantized) == ids([first.weight, shared.weight, last.weight])
    assert len(quantized) + len(others) == len(list(model.parameters()))
    quantized, _ = split_params(model, skip_first=True, skip_last=True, bias=True)
    assert ids(quantized) == ids([shared.weight, shared.bias])


def test_which_parameters_are_weights():
    """What multiplies inputs is quantized; scales of normalizations are not."""
    layers = {
        "lstm": torch.nn.LSTM(3, 4, proj_size=2),
        "cell": torch.nn.GRUCell(3, 4),
        "attention": torch.nn.MultiheadAttention(4, 2),
        "cross": torch.nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
        "convolution": torch.nn.ConvTranspose1d(2, 3, 2),
        "bilinear": torch.nn.Bilinear(2, 3, 4),
        "instance": torch.nn.InstanceNorm1d(3, affine=True),
        "root": torch.nn.RMSNorm(3),
        "bag": torch.nn.EmbeddingBag(3, 4),
        "prelu": torch.nn.PReLU(),
    }
    model = torch.nn.ModuleDict(layers)
    chosen = set(map(id, split_params(model)[0]))
    names = [name for name, p in model.named_parameters() if id(p) in chosen]
    assert names == [
        "lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_hr_l0",
        "cell.weight_ih", "cell.weight_hh",
        "attention.in_proj_weight", "attention.out_proj.weight",
        "cross.q_proj_weight", "cross.k_proj_weight", "cross.v_proj_weight",
        "cross.out_proj.weight", "convolution.weight", "bilinear.weight",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        ("quadratic", 0),
        *(
            pytest.param(kind, seed, marks=pytest.mark.slow)
            for kind in ("quadratic", "quartic", "quartic_ext")
            for seed in (0, 1)
            if (kind, seed) != ("quadratic", 0)
        ),
    ],
)
def test_logistic_regression_finds_its_vertex(kind, seed):
    # Leconte et al. 2023, section 4.1.
    torch.manual_seed(seed)
    x = 2 * torch.rand(6000, 10) - 1
    vertex = torch.randint(2, (10,)) * 2.0 - 1
    y = torch.bernoulli(torch.sigmoid(x @ vertex))
    w = torch.nn.Parameter(1e-3 * torch.randn(10))
    optimizer = ASkewSGD([w], 1.0, BINARY, remoteness=kind, alpha=0.1, clip=1.0)
    annealing = Annealing(
        optimizer, "epsilon", ExponentialEpsilon(5), steps_per_epoch=60
    )
    for _ in range(25):
        for batch in torch.randperm(6000).split(100):
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(
                x[batch] @ w, y[batch]
            ).backward()
            optimizer.step()
            annealing.step()
    assert optimizer.distance()[0] < 0.5
    optimizer.project_()
    assert torch.equal(w.detach(), vertex)
