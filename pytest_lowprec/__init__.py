"""pytest fixtures for numerical tests; nothing of torch is imported before their use.

It is a package of its own because importing any module of ``lowprec`` imports torch,
and pytest loads the plugins that are installed in every project.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from lowprec import RoundingMode, Saturation

_MODES = (
    "nearest_even",
    "nearest_away",
    "nearest_zero",
    "toward_positive",
    "toward_negative",
    "toward_zero",
    "to_odd",
    "stochastic",
    "stochastic_equal",
)
_DETERMINISTIC = _MODES[:7]
_KINDS = ("e4m3fn", "fixed8f4", "binary8p3ue", "posit8", "ternary", "mxfp4")


@pytest.fixture
def lowprec_seed(request: pytest.FixtureRequest) -> Iterator[int]:
    """Seed torch by the name of the test, and by nothing else; return the seed."""
    import torch

    seed = zlib.crc32(request.node.nodeid.encode())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield seed


@pytest.fixture
def assert_bit_equal() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Return `lowprec.testing.assert_bit_equal`."""
    from lowprec.testing import assert_bit_equal as function

    return function


@pytest.fixture(params=_MODES)
def rounding_mode(request: pytest.FixtureRequest) -> RoundingMode:
    """Run the test once for each rounding mode."""
    from lowprec import RoundingMode

    return RoundingMode(request.param)


@pytest.fixture(params=_DETERMINISTIC)
def deterministic_mode(request: pytest.FixtureRequest) -> RoundingMode:
    """Run the test once for each rounding mode that needs no random numbers."""
    from lowprec import RoundingMode

    return RoundingMode(request.param)


@pytest.fixture(params=("none", "finite", "propagate"))
def saturation(request: pytest.FixtureRequest) -> Saturation:
    """Run the test once for each saturation."""
    from lowprec import Saturation

    return Saturation(request.param)


@pytest.fixture(params=_KINDS)
def format_of_each_kind(request: pytest.FixtureRequest) -> Any:
    """Run the test once with a small format of each kind, as `lowprec.round` takes it.

    Floating and fixed point, P3109, posits, levels and blocks.
    """
    from lowprec.formats import any_format

    return any_format(request.param)


@pytest.fixture
def boundary_inputs() -> Callable[..., torch.Tensor]:
    """Return `lowprec.testing.boundary_inputs`."""
    from lowprec.testing import boundary_inputs as function

    return function


@pytest.fixture(params=("float32", "float64"))
def carrier(request: pytest.FixtureRequest) -> Any:
    """Run the test once with torch.float32 and once with torch.float64."""
    import torch

    return getattr(torch, request.param)
