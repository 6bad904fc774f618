"""`lowprec.round` against other people's implementations, where those are right.

Judges are used from float32 only: torch and ml_dtypes round twice from float64.
"""

import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import RoundMode, round_ndarray
from gfloat.formats import (
    format_info_bfloat16,
    format_info_binary16,
    format_info_ocp_e2m1,
    format_info_ocp_e2m3,
    format_info_ocp_e3m2,
    format_info_ocp_e4m3,
    format_info_ocp_e5m2,
)
from tables import FORMATS, name_of
from test_round_exact import class_values, random_patterns, sixteen_bit_patterns

import lowprec as lp
from lowprec.testing import assert_bit_equal, boundary_inputs

_BY_NAME = {target.name: target for target in FORMATS}


def inputs(target):
    parts = [
        class_values(torch.float32),
        sixteen_bit_patterns(torch.float32),
        random_patterns(torch.float32, 2**18),
        boundary_inputs(target, torch.float32),
    ]
    return torch.cat(parts)


def entry(name):
    return _BY_NAME[name] if name in _BY_NAME else lp.format(name)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("dtype", "name", "saturation"),
    [
        (torch.bfloat16, "bfloat16", "none"),
        (torch.float16, "binary16", "none"),
        (torch.float8_e5m2, "e5m2", "none"),
        (torch.float8_e4m3fn, "e4m3fn", "finite"),
        (torch.float8_e4m3fnuz, "e4m3fnuz", "none"),
        (torch.float8_e5m2fnuz, "e5m2fnuz", "none"),
    ],
    ids=str,
)
def test_equals_torch_casts_from_float32(dtype, name, saturation):
    # torch's overflow differs by dtype: e4m3fn clamps, infinity included.
    target = entry(name)
    x = inputs(target)
    assert_bit_equal(
        lp.round(x, target, saturation=saturation), x.to(dtype).to(torch.float32)
    )


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("bfloat16", "bfloat16"),
        ("float8_e5m2", "e5m2"),
        ("float8_e4m3fn", "e4m3fn"),
        ("float8_e4m3", "e4m3"),
        ("float8_e3m4", "e3m4"),
        ("float8_e4m3fnuz", "e4m3fnuz"),
        ("float8_e5m2fnuz", "e5m2fnuz"),
        ("float6_e2m3fn", "e2m3fn"),
        ("float6_e3m2fn", "e3m2fn"),
        ("float4_e2m1fn", "e2m1fn"),
    ],
)
def test_equals_ml_dtypes_from_float32(dtype, name):
    target = entry(name)
    x = inputs(target)
    if not target.nans:  # ml_dtypes turns NaN into 0 there
        x = x[~x.isnan()]
    with np.errstate(all="ignore"):
        expected = x.numpy().astype(getattr(ml_dtypes, dtype)).astype(np.float32)
    assert_bit_equal(lp.round(x, target), torch.from_numpy(expected))


_MODES = {
    "nearest_even": RoundMode.TiesToEven,
    "nearest_away": RoundMode.TiesToAway,
    "toward_positive": RoundMode.TowardPositive,
    "toward_negative": RoundMode.TowardNegative,
    "toward_zero": RoundMode.TowardZero,
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("saturation", ["none", "finite"])
@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize(
    ("name", "info"),
    [
        ("binary16", format_info_binary16),
        ("bfloat16", format_info_bfloat16),
        ("e5m2", format_info_ocp_e5m2),
        ("e4m3fn", format_info_ocp_e4m3),
        ("e2m1fn", format_info_ocp_e2m1),
        ("e2m3fn", format_info_ocp_e2m3),
        ("e3m2fn", format_info_ocp_e3m2),
    ],
    ids=name_of,
)
def test_equals_gfloat(name, info, mode, saturation):
    target = entry(name)
    x = torch.cat(
        [
            class_values(torch.float32),
            random_patterns(torch.float32, 2**12),
            boundary_inputs(target, torch.float32)[::3],
        ]
    )
    if not target.nans:  # gfloat refuses what such a format lacks
        x = x[~x.isnan()]
        if saturation == "none":
            x = x[x.abs() <= target.max]
    with np.errstate(all="ignore"):
        expected = round_ndarray(
            info, x.double().numpy(), _MODES[mode], saturation == "finite"
        )
    expected = torch.from_numpy(np.asarray(expected, dtype=np.float64)).float()
    assert_bit_equal(lp.round(x, target, mode, saturation=saturation), expected)


@pytest.mark.usefixtures("backend")
def test_equals_numpy_half_from_float64():
    # numpy's float64 -> float16 rounds once, unlike torch's.
    x = torch.cat(
        [
            boundary_inputs("binary16", torch.float64),
            torch.randn(2**16, dtype=torch.float64),
            random_patterns(torch.float64, 2**14),
        ]
    )
    with np.errstate(all="ignore"):
        expected = x.numpy().astype(np.float16).astype(np.float64)
    assert_bit_equal(lp.round(x, "binary16"), torch.from_numpy(expected))
