"""The tables that parametrise every property: formats, modes, carriers, orders."""

import torch

from lowprec import Format, Order, RoundingMode, Saturation, Variant, format
from lowprec.kernels import native


def _named(name, **fields):
    return Format(name=name, **fields)


_NAMED = [
    "binary16",
    "bfloat16",
    "tf32",
    "binary32",
    "binary64",
    "e4m3fn",
    "e5m2",
    "e4m3",
    "e3m4",
    "e2m1",
    "e8m1",
    "e6m8",
    "e8m15",
    "e8m22",
    "e8m50",
    "e11m5",
]
_FN = {"infinities": False, "encoding": "fn"}
_FNUZ = {"infinities": False, "signed_zero": False, "encoding": "fnuz"}
_FINITE = {"infinities": False, "nans": False, "encoding": "finite"}
_UNSIGNED = {"signed": False, "signed_zero": False}

FORMATS = [
    *(format(name) for name in _NAMED),
    # One significand bit: every value is a power of two.
    _named("p1", precision=1, emax=7, emin=-7),
    _named("p1_flush", precision=1, emax=6, subnormals=False),
    _named("p2", precision=2, emax=3, emin=-3),
    # Special codes elsewhere than in IEEE 754.
    _named("e5m2fn", precision=3, emax=16, emin=-14, max_significand=6, **_FN),
    _named("e4m3fnuz", precision=4, emax=7, emin=-7, **_FNUZ),
    _named("e5m2fnuz", precision=3, emax=15, emin=-15, **_FNUZ),
    _named("e2m1fn", precision=2, emax=2, emin=0, **_FINITE),
    _named("e3m2fn", precision=3, emax=4, emin=-2, **_FINITE),
    _named("e2m3fn", precision=4, emax=2, emin=0, **_FINITE),
    _named("top21", precision=5, emax=5, emin=-2, max_significand=21, **_FINITE),
    # No subnormals.
    _named("bf16_flush", precision=8, emax=127, subnormals=False),
    _named("e5m2_flush", precision=3, emax=15, subnormals=False),
    _named(
        "e4m3fn_flush",
        precision=4,
        emax=8,
        emin=-6,
        max_significand=14,
        subnormals=False,
        **_FN,
    ),
    # Unsigned.
    _named("unsigned", precision=4, emax=7, **_UNSIGNED),
    _named("unsigned_finite", precision=3, emax=6, **_FINITE, **_UNSIGNED),
    # Odd ranges: asymmetric, all above one, normal where float32 is subnormal.
    _named("shifted", precision=6, emax=12, emin=-3),
    _named("above_one", precision=3, emax=9, emin=2),
    _named("deep", precision=3, emax=100, emin=-140),
    Format.from_system(3, -2, 3),
]

MODES = list(RoundingMode)
DETERMINISTIC = MODES[:7]
STOCHASTIC = MODES[7:]
SATURATIONS = list(Saturation)[:3]  # of any format: only fixed point wraps
VARIANTS = list(Variant)
ORDERS = list(Order)
CARRIERS = [torch.float32, torch.float64]
BACKENDS = ["native", "portable"] if native.available() else ["portable"]

_LIMITS = {torch.float32: (24, -149, 127), torch.float64: (53, -1074, 1023)}


def fits(format, carrier):
    """Whether the carrier holds every value of the format."""
    precision, lowest, highest = _LIMITS[carrier]
    quantum = (
        format.emin if not format.subnormals else format.emin - format.precision + 1
    )
    return (
        format.precision <= precision and quantum >= lowest and format.emax <= highest
    )


def name_of(value):
    """Test identifier of a table entry."""
    if isinstance(value, Format):
        return value.name or f"p{value.precision}e{value.emin}_{value.emax}"
    return getattr(value, "value", None) or str(value).removeprefix("torch.")


PAIRS = [(f, c) for f in FORMATS for c in CARRIERS if fits(f, c)]


def pair_name(value):
    """Test identifier of a (format, carrier) pair."""
    return name_of(value)
