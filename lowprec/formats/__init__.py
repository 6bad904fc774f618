"""Number formats as exact value objects: no torch, no NumPy, no rounding."""

from ._any import AnyFormat as AnyFormat
from ._any import any_format as any_format
from ._any import line_of as line_of
from ._any import table_format as table_format
from ._block import BlockFormat as BlockFormat
from ._block import ScaleRule as ScaleRule
from ._block import SharedExponent as SharedExponent
from ._block_registry import block_format as block_format
from ._block_registry import block_formats as block_formats
from ._block_registry import is_block_name as is_block_name
from ._encoding import decode_value as decode_value
from ._encoding import encode_value as encode_value
from ._format import Format as Format
from ._levels import Levels as Levels
from ._line import Line as Line
from ._other_tables import other_tables as other_tables
from ._parse import format as format
from ._posit import Posit as Posit
from ._registry import FormatTable as FormatTable
from ._registry import formats as formats
from ._system import System as System
from ._table import Table as Table
from ._text import columns as columns
from ._text import describe as describe
