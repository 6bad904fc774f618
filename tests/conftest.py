"""Seeds, threads and hypothesis profiles of the whole suite."""

import os
import random
from datetime import timedelta

import pytest
import torch
from hypothesis import HealthCheck, settings
from tables import BACKENDS

from lowprec import kernels

# Examples share one interpreter with heavy numeric work: deadlines would be noise.
settings.register_profile("dev", max_examples=100, deadline=None, print_blob=True)
settings.register_profile(
    "ci",
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", max_examples=5000, deadline=timedelta(minutes=1))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def reproducible():
    """One thread and fixed seeds for every test; both are restored."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Run the test once with every kernel that is available here."""
    with kernels.using(request.param):
        yield request.param
