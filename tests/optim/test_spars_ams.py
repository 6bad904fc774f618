"""SPARS-AMS on one machine: scopes, error feedback, state, and what is refused."""

import copy
import math

import pytest
import torch

import lowprec as lp
from lowprec.distributed import Cast, ErrorFeedback, RandomK, Sign, Threshold, TopK
from lowprec.optim import AMSGrad, SparsAMS

SHAPES = [(3, 4), (5,), (2, 1, 3)]
SIZE = 12 + 5 + 6


def parameters(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))
        for shape in SHAPES
    ]


def set_gradients(params, seed):
    generator = torch.Generator().manual_seed(1000 + seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def everything(optimizer):
    """All that a step could change."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state = [
        {key: value.clone() for key, value in optimizer.state.get(p, {}).items()}
        for p in params
    ]
    seeds = [(g["rounding_seed"], g["rounding_step"]) for g in optimizer.param_groups]
    return [p.detach().clone() for p in params], state, seeds


def assert_same(left, right):
    for a, b in zip(left[0], right[0], strict=True):
        assert torch.equal(a, b)
    assert left[2] == right[2]
    for a, b in zip(left[1], right[1], strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


COMPRESSORS = [
    TopK(k=4),
    TopK(density=0.1, values="bfloat16"),
    TopK(k=4, values=Cast(lp.Rounding("e4m3fn", "stochastic"), scaled=True)),
    RandomK(k=6),
    Threshold(relative=0.5),
    Threshold(absolute=0.8),
    Sign(),
    Cast("e5m2"),
]


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
@pytest.mark.parametrize("error_feedback", [True, False])
@pytest.mark.parametrize("scope", ["global", "group", "tensor"])
def test_it_is_amsgrad_along_what_is_sent(compressor, error_feedback, scope):
    params, twins = parameters(), parameters()
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    optimizer = SparsAMS(
        groups, lr=0.01, compressor=compressor, scope=scope,
        error_feedback=error_feedback,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    judge = AMSGrad([{"params": twins[:2]}, {"params": twins[2:]}], lr=0.01)
    parts = {"global": [[0, 1, 2]], "group": [[0, 1], [2]], "tensor": [[0], [1], [2]]}
    offsets = [0, 12, 17]
    errors: dict[int, torch.Tensor] = {}
    seed = optimizer.param_groups[0]["rounding_seed"]
    for step in range(4):
        set_gradients(params, step)
        for part in parts[scope]:
            g = flat([params[i].grad for i in part])
            chosen = compressor.limited(g.numel())
            where = {"seed": seed, "step": step, "offset": offsets[part[0]]}
            if error_feedback:
                feedback = ErrorFeedback(chosen)
                payload, errors[part[0]] = feedback.step(
                    g, errors.get(part[0]), **where
                )
            else:
                payload = chosen.compress(g, **where)
            sizes = [params[i].numel() for i in part]
            for i, sent in zip(part, payload.dense().split(sizes), strict=True):
                twins[i].grad = sent.reshape(SHAPES[i])
        optimizer.step()
        judge.step()
        assert torch.equal(flat(params), flat(twins))
    assert all(("error" in optimizer.state[p]) == error_feedback for p in params)
    if error_feedback:
        kept = flat([optimizer.state[p]["error"] for p in params])
        assert torch.equal(kept, torch.cat([errors[i] for i in sorted(errors)]))


@pytest.mark.parametrize("density", [1.0, 1])
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_with_all_entries_it_is_amsgrad_and_errors_are_zero(density, scope):
    params, twins = parameters(), parameters()
    options = {"lr": 0.02, "weight_decay": 0.1, "maximize": True}
    optimizer = SparsAMS(params, density=density, scope=scope, **options)
    judge = AMSGrad(twins, **options)
    for step in range(5):
        set_gradients(params, step)
        set_gradients(twins, step)
        optimizer.step()
        judge.step()
    assert torch.equal(flat(params), flat(twins))
    assert not flat([optimizer.state[p]["error"] for p in params]).any()


def test_results_of_the_global_scope_do_not_depend_on_the_cut_into_parameters():
    whole = [torch.nn.Parameter(flat(parameters()).clone())]
    cut = parameters()
    options = {
        "density": 0.2,
        "error_format": lp.Rounding("bfloat16", "stochastic"),
        "param_format": lp.Rounding("bfloat16", "stochastic"),
    }
    results = []
    for params in (whole, cut):
        generator = torch.Generator().manual_seed(1)
        optimizer = SparsAMS(params, **options, generator=generator)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for p in params:
                p.grad = torch.randn(p.numel(), generator=generator).view(p.shape)
            if params is cut:
                generator = torch.Generator().manual_seed(step)
                vector = torch.randn(SIZE, generator=generator)
                for p, g in zip(params, vector.split([12, 5, 6]), strict=True):
                    p.grad = g.view(p.shape)
            optimizer.step()
        results.append(flat(params))
    assert torch.equal(*results)


def stuck(compressor, error_feedback):
    """Two workers whose large gradients cancel; returns theta after 500 steps."""
    theta = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = AMSGrad([theta], lr=0.01)
    g = torch.tensor([[10.0, 0.5], [-10.0, 0.5]], dtype=torch.float64)
    error = None
    for _ in range(500):
        if error_feedback:
            payload, error = ErrorFeedback(compressor).step(g, error)
        else:
            payload = compressor.compress(g)
        theta.grad = payload.dense().mean(0)
        optimizer.step()
    return theta.tolist()


def test_without_error_feedback_the_small_entry_is_stuck():
    assert stuck(TopK(k=1), error_feedback=False) == [0.0, 0.0]
    first, second = stuck(TopK(k=1), error_feedback=True)
    assert abs(first) < 1e-12
    assert second == pytest.approx(-2.676, abs=0.01)
    first, second = stuck(TopK(k=2), error_feedback=False)
    assert first == 0.0
    assert second == pytest.approx(-13.007, abs=0.01)


def speed(optimizer, w, steps, window):
    w.grad = torch.ones_like(w)
    for _ in range(steps - window):
        optimizer.step()
    before = w.detach().clone()
    for _ in range(window):
        optimizer.step()
    return (before - w.detach()).mean().item()


@pytest.mark.parametrize(
    ("tau", "beta2", "steps", "expected", "tolerance"),
    [
        (4, 0.98, 600, None, 2e-3),
        pytest.param(4, 0.999, 12000, 0.4996, 2e-3, marks=pytest.mark.slow),
        pytest.param(16, 0.999, 12000, 0.2491, 2e-3, marks=pytest.mark.slow),
    ],
)
def test_error_feedback_shortens_the_steps(tau, beta2, steps, expected, tolerance):
    moved = []
    for make in (AMSGrad, lambda p, **options: SparsAMS(p, k=1, **options)):
        w = torch.nn.Parameter(torch.zeros(tau, dtype=torch.float64))
        optimizer = make([w], lr=1e-3, betas=(0.9, beta2), eps=1e-12)
        moved.append(speed(optimizer, w, steps, 4 * tau))
    formula = lp.theory.spars_ams.effective_step_ratio(tau, beta2=beta2)
    assert expected in (None, pytest.approx(formula, abs=5e-5))
    assert moved[1] / moved[0] == pytest.approx(formula, abs=tolerance)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scope", ["global", "group", "tensor"])
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_gradients_that_are_not_finite_change_nothing(value, scope, nonfinite):
    params = parameters()
    optimizer = SparsAMS(
        params, k=3, scope=scope, nonfinite=nonfinite,
        param_format=lp.Rounding("bfloat16", "stochastic"),
    )  # fmt: skip
    for step in range(2):
        set_gradients(params, step)
        optimizer.step()
    before = everything(optimizer)
    set_gradients(params, 2)
    params[2].grad[1, 0, 2] = value
    if nonfinite == "raise":
        with pytest.raises(ValueError, match="nothing was changed"):
            optimizer.step()
    else:
        optimizer.step()
    assert_same(before, everything(optimizer))
    set_gradients(params, 2)
    optimizer.step()
    assert everything(optimizer)[2] != before[2]


def test_finite_gradients_whose_sum_overflows_are_finite():
    w = torch.nn.Parameter(torch.zeros(4))
    optimizer = SparsAMS([w], k=1, compressor=None)
    w.grad = torch.full((4,), 2e38)
    optimizer.step()
    assert optimizer.state[w]["error"].tolist() == [0.0, *[w.grad[0].item()] * 3]


def test_a_step_that_fails_late_changes_nothing():
    params = parameters()
    optimizer = SparsAMS(params, k=2, scope="tensor", error_format="e5m2")
    set_gradients(params, 0)
    optimizer.step()
    before = everything(optimizer)
    params[2].grad.fill_(1e6)  # beyond the error's format
    with pytest.raises(ValueError, match="wider error_format"):
        optimizer.step()
    assert_same(before, everything(optimizer))


def test_a_scaler_skips_steps_with_all_their_state():
    params = parameters()
    optimizer = SparsAMS(params, k=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    set_gradients(params, 0)
    scaler.scale(torch.zeros(()))
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    before = everything(optimizer)
    set_gradients(params, 1)
    params[0].grad[0, 0] = math.inf
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert_same(before, everything(optimizer))


@pytest.mark.parametrize("scope", ["global", "group", "tensor"])
def test_parameters_without_gradients_are_left_out(scope):
    params, fewer = parameters(), parameters()
    optimizer = SparsAMS(params, k=4, scope=scope)
    other = SparsAMS([fewer[0], fewer[2]], k=4, scope=scope)
    for step in range(3):
        set_gradients(params, step)
        set_gradients(fewer, step)
        params[1].grad = None
        optimizer.step()
        other.step()
    assert torch.equal(params[1], parameters()[1])
    assert params[1] not in optimizer.state
    for i in (0, 2):
        assert torch.equal(params[i], fewer[i])
    kept = copy.deepcopy(optimizer.state[params[0]])
    set_gradients(params, 9)
    params[0].grad = None
    optimizer.step()
    after = optimizer.state[params[0]]
    assert all(torch.equal(kept[key], after[key]) for key in kept)


def test_steps_without_gradients_or_entries_do_nothing():
    empty = torch.nn.Parameter(torch.zeros(0, 3))
    w = torch.nn.Parameter(torch.ones(2))
    for scope in ("global", "group", "tensor"):
        optimizer = SparsAMS([empty, w], k=1, scope=scope)
        optimizer.step()
        assert not optimizer.state
        empty.grad, w.grad = torch.zeros(0, 3), torch.ones(2)
        optimizer.step()
        assert set(optimizer.state) == {w}
        empty.grad = w.grad = None


def test_a_number_of_entries_is_cut_to_small_parameters():
    params = parameters()
    optimizer = SparsAMS(params, k=6, scope="tensor")
    set_gradients(params, 0)
    optimizer.step()
    left = [int((optimizer.state[p]["error"] != 0).sum()) for p in params]
    assert left == [6, 0, 0]


def test_groups_have_compressors_of_their_own():
    params = parameters()
    groups = [
        {"params": params[:1], "density": 0.5},
        {"params": params[1:], "k": 2, "error_feedback": False, "lr": 0.1},
    ]
    optimizer = SparsAMS(groups, compressor=Sign(), scope="group")
    assert optimizer.param_groups[0]["compressor"] == TopK(density=0.5)
    assert optimizer.param_groups[1]["compressor"] == TopK(k=2)
    set_gradients(params, 0)
    optimizer.step()
    assert int((optimizer.state[params[0]]["error"] == 0).sum()) == 6
    assert "error" not in optimizer.state[params[1]]
    moved = flat(params[1:]) != flat(parameters()[1:])
    assert int(moved.sum()) == 2


def refused(message, error=ValueError, groups=None, **options):
    with pytest.raises(error, match=message):
        SparsAMS(parameters() if groups is None else groups, **options)


def test_options_that_make_no_sense_are_refused():
    refused("exactly one of density, k and compressor, got none")
    refused(r"got k=3, density=0\.1", k=3, density=0.1)
    refused("exactly one", k=3, compressor=Sign())
    refused("k must be at least 1", k=0)
    refused(f"k={SIZE + 1} entries of a vector that has {SIZE}", k=SIZE + 1)
    refused("above 0 and at most 1", density=0.0)
    refused("eps must be positive", k=1, eps=0.0)
    refused("scope must be one of", k=1, scope="layer")
    refused("nonfinite must be one of", k=1, nonfinite="ignore")
    refused("compressor must be a Compressor", TypeError, compressor="topk")
    refused("Invalid learning rate", k=1, lr=-1.0)
    half = RandomK(density=0.5, unbiased=True)
    refused("amplifies without bound", compressor=RandomK(k=11, unbiased=True))
    refused("amplifies", compressor=half, scope="tensor")
    SparsAMS(parameters(), compressor=half, error_feedback=False)
    params = parameters()
    refused(
        "use scope='tensor'",
        groups=[params[0], torch.nn.Parameter(torch.ones(2, dtype=torch.float64))],
        k=1,
    )
    refused(
        "use model.float",
        TypeError,
        groups=[torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))],
        k=1,
    )


@pytest.mark.parametrize(
    "option",
    [
        {"compressor": TopK(k=1)}, {"k": 5}, {"error_feedback": False},
        {"error_format": "bfloat16"},
    ],
)  # fmt: skip
def test_groups_of_one_vector_must_agree(option):
    params = parameters()
    groups = [{"params": params[:1]}, {"params": params[1:], **option}]
    refused("all groups must have the same", groups=groups, k=3)
    SparsAMS(groups, k=3, scope="group")
    optimizer = SparsAMS(params[:1], k=3)
    with pytest.raises(ValueError, match="use scope='group'"):
        optimizer.add_param_group({"params": params[1:], **option})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": params[1:], "lr": 0.5, "betas": (0.5, 0.9)})
    optimizer.param_groups[1]["error_feedback"] = False
    set_gradients(params, 0)
    with pytest.raises(ValueError, match="the same error_feedback"):
        optimizer.step()


@pytest.mark.parametrize("key", ["scope", "nonfinite"])
def test_scope_and_skipping_are_the_same_for_all(key):
    params = parameters()
    other = {"scope": "tensor", "nonfinite": "skip"}[key]
    groups = [{"params": params[:1]}, {"params": params[1:], key: other}]
    refused(f"the same {key}", groups=groups, k=3)


def test_sparse_gradients_are_refused():
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = SparsAMS(embedding.parameters(), k=1)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        optimizer.step()


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_checkpoints_hold_everything(compressor):
    params = parameters()
    options = {
        "compressor": compressor,
        "scope": "tensor",
        "error_format": lp.Rounding("bfloat16", "stochastic"),
        "update": "kahan",
        "param_format": "bfloat16",
    }
    optimizer = SparsAMS(params, **options)
    for step in range(3):
        set_gradients(params, step)
        optimizer.step()
    copied = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = SparsAMS(copied, k=1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert set(optimizer.state[params[0]]) == {
        "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "error", "compensation",
    }  # fmt: skip
    for step in range(3, 6):
        for each in (params, copied):
            set_gradients(each, step)
        optimizer.step()
        other.step()
    assert_same(everything(optimizer), everything(other))


def test_layouts_and_views_of_gradients_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, 4, 5, generator=generator)
    g = torch.randn(2, 3, 4, 5, generator=generator)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        w = torch.nn.Parameter(start.clone(memory_format=layout))
        optimizer = SparsAMS([w], k=7)
        for _ in range(3):
            w.grad = g.to(memory_format=layout)
            optimizer.step()
        results.append(w.detach().contiguous())
    assert torch.equal(*results)
