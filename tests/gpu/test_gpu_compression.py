"""Compressed vectors on real hardware: the same bits as on the CPU."""

import pytest
import torch
from distributed.compression_oracle import EXACT

import lowprec as lp
from lowprec.distributed import ErrorFeedback, RandomK, TopK

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no CUDA or ROCm device"
)
SAFE = [c for c in EXACT if not (isinstance(c, RandomK) and c.unbiased)]


@pytest.mark.parametrize("compressor", SAFE, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_payloads_and_errors(compressor, dtype):
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(3, 16, generator=generator, dtype=dtype)
    g[1] = g[1].mul(2).round()  # ties
    for error_format in (None, "bfloat16", lp.Rounding("bfloat16", "stochastic")):
        feedback = ErrorFeedback(compressor, error_format)
        expected = feedback.step(g, g.flip(0), seed=5, step=2, worker=1)
        actual = feedback.step(g.cuda(), g.flip(0).cuda(), seed=5, step=2, worker=1)
        assert actual.error.is_cuda
        assert torch.equal(actual.error.cpu(), expected.error)
        assert torch.equal(actual.payload.dense().cpu(), expected.payload.dense())


@pytest.mark.parametrize("ties", [False, True])
def test_long_vectors(ties):
    x = torch.randn(300_001, generator=torch.Generator().manual_seed(1))
    x = x.mul(4).round() if ties else x
    for k in (1, 3000, 200_000):
        expected, actual = TopK(k=k).compress(x), TopK(k=k).compress(x.cuda())
        assert torch.equal(actual.indices.cpu(), expected.indices)


def test_a_training_step():
    weights = []
    for device in ("cpu", "cuda"):
        w = torch.nn.Parameter(torch.linspace(-1, 1, 1000).to(device))
        optimizer = lp.optim.SparsAMS(
            [w], lr=2.0**-6, density=0.1, betas=(0.75, 0.875),
            param_format="bfloat16", error_format="bfloat16",
            exp_avg_format="bfloat16", exp_avg_sq_format="bfloat16",
        )  # fmt: skip
        for _ in range(5):
            w.grad = w.detach() * w.detach() * w.detach()  # pow differs by device
            optimizer.step()
        weights.append(w.detach().cpu())
    assert torch.equal(*weights)
