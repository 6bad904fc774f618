"""Scales of quantization sets, per tensor and per channel."""

import pytest
import torch

import lowprec as lp
from lowprec.optim import ASkewSGD, PerChannel, scale_of

POLICIES = ("range", "absmax", "mean_abs", "sawb")
LEVELS = {
    "int2": lp.Levels.int_bits(2),
    "int4": lp.Levels.int_bits(4),
    "rows": torch.tensor([[-1.0, 1.0], [-2.0, 1.0], [-3.0, 7.0]]),
}


def weights(*shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_channel_has_the_scale_it_would_have_alone(policy, dim):
    w, levels = weights(3, 4, 5), LEVELS["int4"]
    s = scale_of(w, levels, PerChannel(policy, dim))
    assert s.shape == tuple(n if i == dim % 3 else 1 for i, n in enumerate(w.shape))
    alone = [scale_of(x, levels, policy) for x in w.unbind(dim)]
    torch.testing.assert_close(s.flatten(), torch.stack(alone), rtol=1e-14, atol=0)


@pytest.mark.parametrize("policy", POLICIES)
def test_levels_of_a_channel_count(policy):
    w, rows = weights(3, 50), LEVELS["rows"]
    s = scale_of(w, rows.unsqueeze(1), PerChannel(policy))
    alone = [scale_of(x, row, policy) for x, row in zip(w, rows, strict=True)]
    torch.testing.assert_close(s.flatten(), torch.stack(alone), rtol=1e-14, atol=0)


def test_policies_by_hand():
    w = torch.tensor([[3.0, -1.0], [0.5, 0.25]])
    expected = {"range": [[4 / 3], [0.25 / 3]], "absmax": [[1.5], [0.25]]}
    for policy, values in expected.items():
        s = scale_of(w, LEVELS["int2"], PerChannel(policy))
        torch.testing.assert_close(s, torch.tensor(values))
    assert scale_of(w[0], LEVELS["int2"], PerChannel("absmax")).tolist() == [1.5, 0.5]


def test_weights_are_near_levels_times_their_channel_s_scale():
    p = torch.nn.Parameter(weights(3, 40) * torch.tensor([[0.1], [1.0], [10.0]]))
    p.grad = torch.zeros_like(p)
    levels = LEVELS["int2"]
    optimizer = ASkewSGD([p], 0.1, levels, epsilon=0.01, scale=PerChannel("absmax"))
    s = scale_of(p, levels, PerChannel("absmax"))
    optimizer.step()
    optimizer.project_()
    units = (p.detach() / s).round()
    assert set(units.flatten().tolist()) <= {-2.0, -1.0, 0.0, 1.0}
    torch.testing.assert_close(p.detach(), units * s)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="policy"):
        PerChannel("sum")
    with pytest.raises(ValueError, match="no dimension 2"):
        scale_of(weights(3, 4), LEVELS["int2"], PerChannel("absmax", 2))
    zero = weights(3, 4)
    zero[1] = 0
    with pytest.raises(ValueError, match=r"gives 0 at \[1, 0\] for weights"):
        scale_of(zero, LEVELS["int2"], PerChannel("absmax"))
    with pytest.raises(TypeError, match="scale must be a number or a policy, got True"):
        scale_of(zero, LEVELS["int2"], True)


def test_many_bad_channels_are_counted():
    w = torch.zeros(512, 3)
    w[0] = 1
    with pytest.raises(
        ValueError, match=r"gives 0 at \[1, 0\], .* and at 507 other"
    ) as error:
        scale_of(w, LEVELS["int2"], PerChannel("absmax"))
    assert len(str(error.value)) < 400
