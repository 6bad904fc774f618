"""Where each known format is defined."""

from __future__ import annotations

__all__ = ["BLOCK_SOURCES", "SOURCES"]

_IEEE, _OCP8, _MX = "IEEE 754-2019", "OCP FP8 1.0", "OCP MX 1.0"
_FNUZ, _ML_DTYPES = "Noune et al. 2022", "ml_dtypes"
_INTEGER = "two's complement"

SOURCES = {
    "binary64": _IEEE,
    "binary32": _IEEE,
    "tf32": "NVIDIA A100",
    "binary16": _IEEE,
    "bfloat16": "Intel 2018",
    "e5m2": _OCP8,
    "e4m3fn": _OCP8,
    "e4m3": _ML_DTYPES,
    "e3m4": _ML_DTYPES,
    "e5m2fnuz": _FNUZ,
    "e4m3fnuz": _FNUZ,
    "e4m3b11fnuz": _ML_DTYPES,
    "e3m2fn": _MX,
    "e2m3fn": _MX,
    "e2m1fn": _MX,
    "e8m0fnu": _MX,
    "dlfloat16": "Agrawal et al. 2019",
    "fp24": "ATI R300",
    "e8m15": "OpenEXR PXR24",
    "hfp8_e4m3": "Sun et al. 2019",
    **{f"int{width}": _INTEGER for width in (4, 8, 16, 32)},
    **{f"uint{width}": "unsigned binary" for width in (4, 8, 16, 32)},
}

_MX_NAMES = ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4", "mxint8")
BLOCK_SOURCES = {
    **dict.fromkeys(_MX_NAMES, _MX),
    "nvfp4": "NVIDIA 2025",
    **{f"msfp{total}": "Rouhani et al. 2020" for total in range(11, 17)},
}
