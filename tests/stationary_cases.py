"""Random matrices for tests of limit covariances."""

import torch


def spd(d, seed):
    """A symmetric positive definite matrix with eigenvalues in [0.2, 5]."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(
        torch.randn(d, d, generator=generator, dtype=torch.float64)
    ).Q
    values = torch.rand(d, generator=generator, dtype=torch.float64)
    return (basis * (0.2 * 25**values)) @ basis.T
