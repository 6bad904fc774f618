"""Number formats as exact value objects: no torch, no NumPy, no rounding."""

from ._encoding import decode_value as decode_value
from ._encoding import encode_value as encode_value
from ._format import Format as Format
from ._parse import format as format
from ._registry import FormatTable as FormatTable
from ._registry import formats as formats
from ._system import System as System
from ._text import describe as describe
