"""Correctly rounded operations on tensors whose values live in a wide carrier."""

from ._basic import add as add
from ._basic import div as div
from ._basic import fma as fma
from ._basic import mul as mul
from ._basic import sqrt as sqrt
from ._basic import sub as sub
from ._block import AlongAxis as AlongAxis
from ._block_codec import BlockCodes as BlockCodes
from ._block_codec import decode_blocks as decode_blocks
from ._block_codec import encode_blocks as encode_blocks
from ._codec import decode as decode
from ._codec import encode as encode
from ._codec import fits as fits
from ._correct import WIDEST as WIDEST
from ._correct import Operands as Operands
from ._correct import aligned as aligned
from ._correct import with_gradient_of as with_gradient_of
from ._matmul import check_product_shapes as check_product_shapes
from ._matmul import dot as dot
from ._matmul import gemm as gemm
from ._matmul import kernel_order as kernel_order
from ._matmul import matmul as matmul
from ._overrides import overridable as overridable
from ._round import check_carrier as check_carrier
from ._round import refuse_compiled_transforms as refuse_compiled_transforms
from ._round import round as round
