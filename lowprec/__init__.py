"""Software floating point for PyTorch: any format, rounding and accumulator, bit-exact.

Values live in float32 or float64 tensors and are always members of the chosen format.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from torch import Tensor as _Tensor
from torch.serialization import add_safe_globals as _add_safe_globals

from . import kernels as kernels
from ._version import __version__ as __version__
from .block_rounding import BlockRounding as BlockRounding
from .errors import NumericalWarning as NumericalWarning
from .errors import PerformanceWarning as PerformanceWarning
from .formats import BlockFormat as BlockFormat
from .formats import Format as Format
from .formats import Levels as Levels
from .formats import Posit as Posit
from .formats import ScaleRule as ScaleRule
from .formats import SharedExponent as SharedExponent
from .formats import block_format as block_format
from .formats import block_formats as block_formats
from .formats import decode_value as _decode_value
from .formats import encode_value as _encode_value
from .formats import format as format
from .formats import formats as formats
from .precision import Policy as Policy
from .precision import Precision as Precision
from .precision import preset as preset
from .precision import presets as presets
from .rounding import Accumulator as Accumulator
from .rounding import Order as Order
from .rounding import Rounding as Rounding
from .rounding import RoundingMode as RoundingMode
from .rounding import Saturation as Saturation
from .rounding import Variant as Variant
from .table_rounding import TableRounding as TableRounding

if _TYPE_CHECKING:
    from ._checkpoint import checkpoint as checkpoint
    from ._emulate import emulate as emulate
    from .arithmetic import BlockCodes as BlockCodes
    from .arithmetic import add as add
    from .arithmetic import decode as decode
    from .arithmetic import decode_blocks as decode_blocks
    from .arithmetic import div as div
    from .arithmetic import dot as dot
    from .arithmetic import encode as encode
    from .arithmetic import encode_blocks as encode_blocks
    from .arithmetic import exp as exp
    from .arithmetic import fma as fma
    from .arithmetic import log as log
    from .arithmetic import matmul as matmul
    from .arithmetic import mul as mul
    from .arithmetic import pack as pack
    from .arithmetic import round as round
    from .arithmetic import sigmoid as sigmoid
    from .arithmetic import softmax as softmax
    from .arithmetic import sqrt as sqrt
    from .arithmetic import sub as sub
    from .arithmetic import sum as sum
    from .arithmetic import tanh as tanh
    from .arithmetic import unpack as unpack

# Checkpoints that hold them load with torch.load(weights_only=True).
_add_safe_globals(
    [
        Accumulator,
        BlockFormat,
        BlockRounding,
        Format,
        Levels,
        Order,
        Policy,
        Posit,
        Precision,
        Rounding,
        RoundingMode,
        Saturation,
        ScaleRule,
        SharedExponent,
        TableRounding,
        Variant,
    ]
)

_LAZY_MODULES = (
    "distributed",
    "experiments",
    "functional",
    "integrations",
    "measure",
    "nn",
    "optim",
    "plot",
    "schedules",
    "testing",
    "theory",
)
_ARITHMETIC = (
    "BlockCodes",
    "add",
    "decode",
    "decode_blocks",
    "div",
    "dot",
    "encode",
    "encode_blocks",
    "exp",
    "fma",
    "log",
    "matmul",
    "mul",
    "pack",
    "round",
    "sigmoid",
    "softmax",
    "sqrt",
    "sub",
    "sum",
    "tanh",
    "unpack",
)
_LAZY_NAMES = {
    "checkpoint": "_checkpoint",
    "emulate": "_emulate",
    **dict.fromkeys(_ARITHMETIC, "arithmetic"),
}


# `Format.encode` and `Format.decode` know no torch; they learn of tensors here.
@_encode_value.register(_Tensor)
def _encode(x: _Tensor, format: Format) -> _Tensor:
    from .arithmetic import encode

    return encode(x, format)


@_decode_value.register(_Tensor)
def _decode(codes: _Tensor, format: Format) -> _Tensor:
    from .arithmetic import decode

    return decode(codes, format)


def __getattr__(name: str) -> _Any:
    # Loaded on first use, so that `import lowprec` costs little over torch.
    if name in _LAZY_MODULES:
        return _import_module(f".{name}", __name__)
    if name in _LAZY_NAMES:
        value = getattr(_import_module(f".{_LAZY_NAMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY_MODULES, *_LAZY_NAMES})
