"""Edge cases of the bounds: zero and infinite errors, tensors, refusals."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch

from lowprec.theory import sgd


@pytest.mark.parametrize("R", [0.0, 0.5])
def test_no_update_error(R):
    best = sgd.optimal_step_deterministic(R, 0.0, 2.0)
    assert (best.eta, best.gamma) == (0.0, 2.0 * R)
    assert not best.attained
    assert not best.vacuous
    assert "not attained" in str(best)
    assert sgd.informative_interval(R, 0.0, 2.0).lower == 0.0
    tiny = sgd.gamma_deterministic(1e-9, R, 0.0, 2.0)
    assert tiny == pytest.approx(best.gamma, abs=1e-8)


def test_no_errors_at_all():
    assert sgd.gamma_deterministic(0.5, 0.0, 0.0, 2.0) == 0.25
    assert sgd.gamma_stochastic(0.5, d_sigma_r2=0.0, d_sigma_s2=0.0) == 0.25
    best = sgd.optimal_step_stochastic(d_sigma_r2=0.0, d_sigma_s2=0.0)
    assert (best.eta, best.gamma, best.attained) == (0.0, 0.0, False)
    assert sgd.optimal_step_stochastic(d_sigma_r2=3.0, d_sigma_s2=0.0).gamma == 0.0


def test_no_gradient_error_has_no_third_candidate():
    best = sgd.optimal_step_deterministic(0.0, 3.0, 1.0)
    assert best.vacuous
    assert best.eta == 3.0
    assert best.gamma == 3.0


def test_printed_root_may_not_be_real():
    printed = sgd.optimal_step_deterministic(0.1, 0.6, 1.0, form="as_printed")
    assert math.isnan(printed.candidates[1])
    assert math.isfinite(printed.gamma)


@pytest.mark.parametrize(("R", "S"), [(math.inf, 0.0), (0.0, math.inf), (2.0, 9.0)])
def test_hopeless_errors_are_flagged_not_raised(R, S):
    for bound in (
        sgd.bound_liminf(0.5, R, S, 2.0, L=1.0, p=2.0),
        sgd.bound_running_min(0.5, R, S, 2.0, L=1.0, p=2.0, K=3),
    ):
        assert bound.vacuous
        assert not math.isnan(bound.value)
        assert (bound.value == math.inf) == (math.inf in (R, S))
    assert sgd.informative_interval(R, S, 2.0).empty


def test_infinite_variance_is_flagged():
    floor = sgd.stochastic_floor(0.5, d_sigma_r2=math.inf, d_sigma_s2=0.0)
    assert floor.value == math.inf
    assert floor.vacuous


def test_an_interval_without_a_step_has_no_nan():
    errors = torch.tensor([0.0, 0.5, math.inf])
    for R in errors:
        interval = sgd.informative_interval(R, errors, 1.0)
        assert not interval.lower.isnan().any()
        assert not interval.upper.isnan().any()


def test_finite_stochastic_bounds_take_tensors_of_orders():
    given = {"K": 100, "C_0": 2.0, "d_sigma_r2": 0.5, "d_sigma_s2": 0.25}
    orders = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    bound = sgd.stochastic_floor_finite(0.5, p=orders, **given)
    for i, p in enumerate(orders.tolist()):
        one = sgd.stochastic_floor_finite(0.5, p=p, **given)
        assert bound.value[i].item() == one.value
        assert bound.vacuous[i].item() is one.vacuous
    assert bound.vacuous.tolist() == [False, False, True]


def test_tensors_broadcast_and_agree_with_floats():
    eta = torch.tensor([0.05, 0.5, 5.0])
    R = torch.tensor([[0.0], [0.4], [1.2]], dtype=torch.float64)
    bound = sgd.bound_liminf(eta, R, 0.05, 2.0, L=3.0, p=0.2, f_star=1.0)
    assert bound.value.shape == (3, 3)
    assert bound.value.dtype == torch.float64
    for i in range(3):
        for j in range(3):
            one = sgd.bound_liminf(
                eta[j].item(), R[i].item(), 0.05, 2.0, L=3.0, p=0.2, f_star=1.0
            )
            assert bound.value[i, j].item() == pytest.approx(one.value, rel=1e-15)
            assert bound.vacuous[i, j].item() is one.vacuous
    best = sgd.optimal_step_deterministic(R, torch.tensor([0.0, 0.05, 3.0]), 2.0)
    for i in range(3):
        for j, S in enumerate((0.0, torch.tensor(0.05).item(), 3.0)):
            one = sgd.optimal_step_deterministic(R[i].item(), S, 2.0)
            assert best.eta[i, j].item() == one.eta
            assert best.gamma[i, j].item() == one.gamma
            assert best.vacuous[i, j].item() is one.vacuous


def test_bounds_are_differentiable():
    inputs = [
        torch.tensor(x, dtype=torch.float64, requires_grad=True)
        for x in (0.5, 0.4, 0.05, 2.0)
    ]
    assert torch.autograd.gradcheck(sgd.gamma_deterministic, inputs)


def test_numpy_scalars_are_numbers_and_arrays_are_tensors():
    scalar = sgd.gamma_deterministic(np.float64(0.5), 0.4, np.float32(0.05), 2)
    assert type(scalar) is float
    steps = sgd.gamma_deterministic(np.array([0.5, 1.0]), 0.4, 0.05, 2.0)
    assert isinstance(steps, torch.Tensor)
    assert steps[0].item() == 1.1875


def test_results_are_frozen_plain_and_picklable():
    bound = sgd.bound_liminf(0.5, 0.4, 0.05, 2.0, L=1.0, p=1.0)
    assert isinstance(bound.value, float)
    assert bound.vacuous is False
    assert float(bound) == bound.value
    assert pickle.loads(pickle.dumps(bound)).value == bound.value
    with pytest.raises(dataclasses.FrozenInstanceError):
        bound.value = 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eta": 0.0}, "eta must be positive and finite, got 0.0"),
        ({"eta": -1.0}, "eta must be positive and finite, got -1.0"),
        ({"eta": math.nan}, "eta must be positive"),
        ({"eta": torch.tensor([0.1, -0.1])}, "eta must be positive .* -0.1 ... 0.1"),
        ({"R": -0.1}, "R must be nonnegative"),
        ({"S": math.nan}, "S must be nonnegative .*NaN is not"),
        ({"C_0": math.inf}, "C_0 must be positive and finite"),
        ({"L": 0.0}, "L must be positive"),
        ({"p": -1.0}, "p must be positive"),
        ({"f_star": math.nan}, "f_star must be finite"),
        ({"K": 0}, "K counts steps"),
        ({"K": 2.5}, "whole number >= 1"),
        ({"form": "printed"}, "form must be 'corrected' or 'as_printed'"),
    ],
)
def test_bad_input_is_explained(changes, message):
    arguments = {"eta": 0.5, "R": 0.1, "S": 0.1, "C_0": 1.0, "L": 1.0, "p": 1.0}
    with pytest.raises(ValueError, match=message):
        sgd.bound_running_min(**{**arguments, **changes})


def test_other_bad_input_is_explained():
    with pytest.raises(ValueError, match="B must not exceed C"):
        sgd.worst_case_increase(0.5, 0.1, 2.0, 1.0)
    with pytest.raises(ValueError, match="in one dimension"):
        sgd.worst_case_step(0.5, 0.1, 1.0, 2.0, direction=torch.ones(1))
    with pytest.raises(ValueError, match="finite"):
        sgd.optimal_step_stochastic(d_sigma_r2=0.0, d_sigma_s2=math.inf)
    with pytest.raises(ValueError, match="d_sigma_s2 must be nonnegative"):
        sgd.stochastic_floor(0.5, d_sigma_r2=0.0, d_sigma_s2=-1.0)
    with pytest.raises(ValueError, match="failure_probability must lie"):
        sgd.stochastic_floor_finite(
            0.5, K=1, C_0=1.0, d_sigma_r2=0.0, d_sigma_s2=0.0, failure_probability=1.0
        )
    with pytest.raises(TypeError, match="eta must be a number or a tensor, got str"):
        sgd.gamma_deterministic("fast", 0.1, 0.1, 1.0)
