"""attribute: against gradients computed by hand, site by site."""

import pytest
import torch
from torch.nn import functional

import lowprec as lp
from lowprec.measure import attribute

X = torch.tensor([[1.1, -0.3, 0.7], [0.2, 1.9, -2.3]])


def linear():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2, bias=False)


def squared(m, cast):
    return m(cast(X)).square().sum()


def gradient(x, w, output=None):
    """Gradient of sum(y^2) for y = x w^T, in float64."""
    y = x.double() @ w.double().T
    y = y if output is None else lp.round(y.float(), output).double()
    return 2 * y.T @ x.double()


def test_norms_and_shares_are_those_of_gradients_by_hand():
    model = linear()
    w = model.weight.detach()
    low_x, low_w = lp.round(X, "e4m3fn"), lp.round(w, "e5m2")
    table = attribute(
        model, lp.Precision(input="e4m3fn", weight="e5m2"), squared, sites="fields"
    )
    none, both = gradient(X, w), gradient(low_x, low_w)
    only = {"input": gradient(low_x, w), "weight": gradient(X, low_w)}
    total = both - none
    assert table.r_norm == pytest.approx(float(total.norm()), rel=1e-5)
    assert table.gradient_norm == pytest.approx(float(none.norm()), rel=1e-6)
    assert table.carrier < 1e-6 * table.gradient_norm
    for site, other in (("input", "weight"), ("weight", "input")):
        row, alone, removed = table[site], only[site] - none, both - only[other]
        square = total.square().sum()
        assert row.alone == pytest.approx(float(alone.norm()), rel=1e-5)
        assert row.removed == pytest.approx(float(removed.norm()), rel=1e-5)
        share = float((alone * total).sum() / square)
        assert row.alone_share == pytest.approx(share, rel=1e-4)
        share = float((removed * total).sum() / square)
        assert row.removed_share == pytest.approx(share, rel=1e-4)
        left = float((only[other] - none).norm())
        assert row.r_without == pytest.approx(left, rel=1e-5)
    rest = total - sum(one - none for one in only.values())
    assert table.interaction == pytest.approx(
        float(rest.norm() / total.norm()), rel=1e-4
    )


def test_sites_that_do_not_interact_add_up_exactly():
    """The gradient of a weight is linear in the roundings of one GEMM operand."""
    model = torch.nn.ModuleList([torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)])

    def closure(m, cast):
        return sum(layer(cast(X)).sum() for layer in m)

    policy = {"0": lp.Precision(input="e4m3fn"), "1": lp.Precision(input="e5m2")}
    table = attribute(model, policy, closure)
    assert table.interaction < 1e-6
    assert sum(row.alone_share for row in table.rows) == pytest.approx(1)
    assert sum(row.alone**2 for row in table.rows) == pytest.approx(table.r_norm**2)
    for row in table.rows:
        assert row.alone == row.removed > 0


def network():
    torch.manual_seed(2)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 8),
        torch.nn.BatchNorm1d(8),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(8, 2),
    )


BATCH = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))


def entropy(m, cast):
    return functional.cross_entropy(m(cast(BATCH)), torch.arange(16) % 2)


STOCHASTIC = lp.Precision(
    input="e4m3fn",
    weight=lp.Rounding("e5m2", "stochastic"),
    grad_output=lp.Rounding("e5m2", "stochastic"),
    accumulator="e8m6",
)
POLICY = lp.Policy({"0": STOCHASTIC, "3": STOCHASTIC})


def test_one_site_is_the_whole_error():
    for sites in ("modules", "fields", "sites"):
        policy = {"3": lp.Precision(grad_output="e4m3fn")}
        table = attribute(network(), policy, entropy, sites=sites)
        (row,) = table.rows
        name = {"modules": "3", "fields": "grad_output", "sites": "3.grad_output"}
        assert row.site == name[sites]
        assert row.alone == row.removed > 0
        assert row.alone_share == pytest.approx(1)
        assert row.r_without == table.carrier
        assert table.interaction == 0


def test_random_numbers_and_dropout_masks_are_the_same_in_all_runs():
    model = network()
    state = torch.get_rng_state()
    first = attribute(model, POLICY, entropy, sites="sites")
    assert torch.equal(torch.get_rng_state(), state)
    assert attribute(model, POLICY, entropy, sites="sites") == first
    assert attribute(model, POLICY, entropy, sites="sites", seed=1) != first
    assert first.r_norm < first.gradient_norm  # else the masks differed
    assert first.carrier < 1e-5 * first.gradient_norm
    # A site's own contribution does not depend on which others there are.
    fewer = {"3": lp.Precision(weight=STOCHASTIC.weight, grad_accumulator="carrier")}
    alone = attribute(model, fewer, entropy, sites="sites")
    assert alone["3.weight"].alone == first["3.weight"].alone


def test_an_accumulator_does_both_directions_unless_told_otherwise():
    table = attribute(network(), {"0": lp.Precision(accumulator="e8m4")}, entropy,
                      sites="fields")  # fmt: skip
    assert [row.site for row in table.rows] == ["accumulator", "grad_accumulator"]
    assert all(row.alone > 0 for row in table.rows)
    forward = lp.Precision(accumulator="e8m4", grad_accumulator="carrier")
    table = attribute(network(), {"0": forward}, entropy, sites="fields")
    assert [row.site for row in table.rows] == ["accumulator"]


def test_operations_of_the_policy_are_sites_of_their_own():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())
    policy = lp.Policy(
        {"0": lp.Precision(weight="e4m3fn"), "1": lp.Precision(elementwise="e4m3fn")},
        operations={"tanh": lp.Precision(elementwise="bfloat16"), "relu": None},
    )
    table = attribute(model, policy, entropy)
    assert [row.site for row in table.rows] == ["0", "1", "tanh()"]
    assert table["1"].alone == 0  # its only operation has a precision of its own
    assert table["tanh()"].alone > 0
    assert table["tanh()"].removed > 0
    table = attribute(model, policy, entropy, sites="sites")
    assert table.rows[-1].site == "tanh().elementwise"


def test_the_model_stays_as_it_was_and_its_own_precision_does_not_count():
    plain, converted = network(), lp.nn.convert_(network(), POLICY)
    converted[0].weight.grad = torch.ones(8, 3)
    before = {name: x.clone() for name, x in converted.state_dict().items()}
    table = attribute(converted, POLICY, entropy)
    assert table == attribute(plain, POLICY, entropy)
    for name, x in converted.state_dict().items():
        assert torch.equal(x, before[name])
    assert torch.equal(converted[0].weight.grad, torch.ones(8, 3))
    assert converted[3].precision == STOCHASTIC
    built = torch.nn.Sequential(
        lp.nn.Linear(3, 8, precision=lp.Precision(weight="e2m1")), *list(plain)[1:]
    )
    built[0].load_state_dict(plain[0].state_dict())
    network()  # whose generator's state the masks begin with
    assert attribute(built, POLICY, entropy) == table


def test_the_table_prints_what_matters():
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(3, 2))
    table = attribute(model, lp.Precision(weight="e4m3fn"), entropy)
    lines = str(table).splitlines()
    assert lines[0].split()[:2] == ["site", "alone"]
    assert [line.split()[0] for line in lines[1:-1]] == ["1"]
    assert lines[-1].startswith("total: ||r|| = ")
    pandas = pytest.importorskip("pandas")
    frame = table.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["site"]) == ["", "0", "1"]
    with pytest.raises(KeyError, match="no site 'x': there are '', '0', '1'"):
        table["x"]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="modules, fields, sites, got 'layers'"):
        attribute(linear(), lp.Precision(), squared, sites="layers")
    with pytest.raises(ValueError, match="there is nothing to attribute"):
        attribute(linear(), lp.Policy({"head": lp.Precision(input="e5m2")}), squared)
