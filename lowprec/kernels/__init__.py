"""Kernels: plain integers in, tensors out; no `Format` is known here.

The hot operations are torch.library operations, so torch's dispatcher, fake tensors,
vmap and torch.compile see them. `portable` runs everywhere and is what every faster
kernel must equal bit for bit.
"""

from . import basic as basic
from ._library import eager_round as eager_round
from ._library import eager_round_stochastic as eager_round_stochastic
from ._library import is_plain as is_plain
from ._library import mark_written as mark_written
from ._library import matmul as matmul
from ._library import round as round
from ._library import round_stochastic as round_stochastic
from ._library import round_stochastic_unobserved as round_stochastic_unobserved
from ._library import round_straight_through as round_straight_through
from ._library import round_unobserved as round_unobserved
from ._library import status as status
from ._library import unobserved as unobserved
from ._library import using as using
from .blocks import BlockCode as BlockCode
from .blocks import Quantized as Quantized
from .blocks import block_values as block_values
from .blocks import quantize as quantize
from .blocks import round_blocks as round_blocks
from .codes import RoundingCode as RoundingCode
from .coding import Encoding as Encoding
from .coding import decode as decode
from .coding import encode as encode
from .segments import segment_sums as segment_sums
from .terms import summable as summable
from .terms import term_sums as term_sums
