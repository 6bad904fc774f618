"""Formats up to 16 bits and who judges them, for the tests of `lowprec.formats`."""

import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import formats as gfloat_formats

from lowprec.formats import Format, format

# Every format up to 16 bits that a library decodes.
NUMPY = {
    "binary16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e4m3": ml_dtypes.float8_e4m3,
    "e3m4": ml_dtypes.float8_e3m4,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e4m3b11fnuz": ml_dtypes.float8_e4m3b11fnuz,
    "e3m2fn": ml_dtypes.float6_e3m2fn,
    "e2m3fn": ml_dtypes.float6_e2m3fn,
    "e2m1fn": ml_dtypes.float4_e2m1fn,
}
GFLOAT = {
    "binary16": gfloat_formats.format_info_binary16,
    "bfloat16": gfloat_formats.format_info_bfloat16,
    "e5m2": gfloat_formats.format_info_ocp_e5m2,
    "e4m3fn": gfloat_formats.format_info_ocp_e4m3,
    "e3m2fn": gfloat_formats.format_info_ocp_e3m2,
    "e2m3fn": gfloat_formats.format_info_ocp_e2m3,
    "e2m1fn": gfloat_formats.format_info_ocp_e2m1,
}
TORCH = {
    "binary64": torch.float64,
    "binary32": torch.float32,
    "binary16": torch.float16,
    "bfloat16": torch.bfloat16,
    "e5m2": torch.float8_e5m2,
    "e4m3fn": torch.float8_e4m3fn,
    "e5m2fnuz": torch.float8_e5m2fnuz,
    "e4m3fnuz": torch.float8_e4m3fnuz,
}
FINITE = {"infinities": False, "nans": False, "encoding": "finite"}
FN = {"infinities": False, "encoding": "fn"}
FNUZ = {"infinities": False, "signed_zero": False, "encoding": "fnuz"}
# Formats that no library has: every flag, precision 1, odd ranges.
ODD = [
    Format(name="p1_no_nan", precision=1, emax=7, nans=False),
    Format(name="p1_no_infinity", precision=1, emax=3, infinities=False),
    Format(name="p1_fn", precision=1, emax=7, emin=-7, **FN),
    Format(name="p1_finite", precision=1, emax=3, **FINITE),
    Format(name="p2", precision=2, emax=3, emin=-3),
    Format(name="flush", precision=4, emax=7, subnormals=False),
    Format(name="flush_fn", precision=3, emax=5, subnormals=False, **FN),
    Format(name="top21", precision=5, emax=5, emin=-2, max_significand=21, **FINITE),
    Format(name="shifted", precision=6, emax=12, emin=-3),
    Format(name="above_one", precision=3, emax=9, emin=2),
    Format(name="one_binade", precision=3, emax=0, emin=0),
    Format(name="unsigned", precision=4, emax=7, signed=False),
    Format(name="unsigned_fn", precision=4, emax=7, signed=False, **FN),
    Format(name="unsigned_finite", precision=3, emax=6, signed=False, **FINITE),
    Format(name="one_zero", precision=4, emax=7, signed_zero=False),
    Format(name="one_zero_finite", precision=3, emax=2, signed_zero=False, **FINITE),
    Format(name="wide_fnuz", precision=2, emax=20, emin=-3, **FNUZ),
    Format(name="reserved", precision=3, emax=3, infinities=False, nans=False),
]
SMALL = [format(name) for name in NUMPY] + [format("e2m1"), format("e6m5"), *ODD]
BINARY128 = format("e15m112")

each_small = pytest.mark.parametrize("target", SMALL, ids=lambda target: target.name)
each_numpy = pytest.mark.parametrize("name", NUMPY)
each_torch = pytest.mark.parametrize("name", TORCH)
