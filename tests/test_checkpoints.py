"""Models, policies and optimizers are saved and loaded, without arbitrary code."""

import io
import subprocess
import sys

import pytest
import torch
from model_zoo import CASES

import lowprec as lp

LOW = lp.Precision(
    input="e4m3fn", weight=lp.Rounding("e4m3fn", "stochastic"), grad_output="e5m2",
    accumulator=lp.Accumulator("e8m9", order="blocked", block_size=4),
)  # fmt: skip
# The head; the autoencoder, which has none, has a container "down".
POLICY = lp.Policy({"*": LOW, "[hd]*[dn]": None})


def converted(case, seed):
    return lp.nn.convert_(case.build(seed), POLICY)


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def output(case, model, seed=5):
    torch.manual_seed(seed)
    return model(case.batch(0)[0])


every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every
def test_weights_travel_between_plain_and_converted_models(case):
    model, plain = converted(case, 1), case.build(1)
    other, other_plain = converted(case, 2), case.build(2)
    other.load_state_dict(torch.load(saved(plain.state_dict()), weights_only=True))
    other_plain.load_state_dict(
        torch.load(saved(model.state_dict()), weights_only=True)
    )
    assert torch.equal(output(case, model), output(case, other))
    assert torch.equal(output(case, plain), output(case, other_plain))


@every
def test_whole_converted_models_are_pickled(case):
    model = converted(case, 1)
    twin = torch.load(saved(model), weights_only=False)
    assert torch.equal(output(case, model), output(case, twin))
    restored = lp.nn.unconvert_(twin)
    assert torch.equal(output(case, restored), output(case, case.build(1)))


def test_values_load_without_arbitrary_code_after_import_lowprec_alone(tmp_path):
    values = [
        POLICY,
        LOW,
        lp.Accumulator("e6m8", product="e5m2", order="pairwise"),
        lp.Rounding("bfloat16", "stochastic", "finite", random_bits=7, variant="C"),
        lp.format("e4m3fn"),
        lp.Levels.binary(),
        *(lp.preset(name) for name in ("mxfp8", "nvfp4")),
        *lp.block_formats(),
    ]
    torch.save(values, tmp_path / "values.pt")
    program = "import lowprec, torch; print(torch.load('values.pt', weights_only=True))"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout.strip() == str(values), result.stderr
    assert torch.load(tmp_path / "values.pt", weights_only=True) == values


@every
def test_training_continues_bit_for_bit(case):
    def make(seed):
        model = converted(case, seed)
        optimizer = lp.optim.Adam(
            model.parameters(), lr=0.01, update="kahan",
            param_format=lp.Rounding("bfloat16", "stochastic"),
            exp_avg_sq_format="e8m15",
        )  # fmt: skip
        return model, optimizer

    def run(model, optimizer, steps):
        for step in steps:
            torch.manual_seed(step)
            optimizer.zero_grad()
            case.loss(model, case.batch(step)).backward()
            optimizer.step()

    model, optimizer = make(0)
    run(model, optimizer, range(2))
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "policy": POLICY,
    }
    file = saved(state)
    run(model, optimizer, range(2, 4))
    loaded = torch.load(file, weights_only=True)
    assert loaded["policy"] == POLICY
    resumed, other = make(1)
    resumed.load_state_dict(loaded["model"])
    other.load_state_dict(loaded["optimizer"])
    run(resumed, other, range(2, 4))
    expected = model.state_dict()
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, expected[name])
