"""Layers as functions, with emulated arithmetic in forward and backward.

Every product has three GEMMs (output, grad_input, grad_weight); a `Precision` says how
each rounds. One seed serves a call: the sum of the output takes it as it is (the words
are those of `lowprec.matmul` with that seed), everything else takes the numbered parts
of ``random.split_seed(seed, 11)`` (`Seeds`). Backward therefore needs no generator.
"""

from ._added import addbmm as addbmm
from ._added import addmm as addmm
from ._added import addmv as addmv
from ._added import addr as addr
from ._added import baddbmm as baddbmm
from ._attention import scaled_dot_product_attention as scaled_dot_product_attention
from ._contractions import einsum as einsum
from ._convolution import conv1d as conv1d
from ._convolution import conv2d as conv2d
from ._convolution import conv3d as conv3d
from ._linear import linear as linear
from ._matmul import matmul as matmul
from ._normalization import batch_norm as batch_norm
from ._normalization import group_norm as group_norm
from ._normalization import instance_norm as instance_norm
from ._normalization import layer_norm as layer_norm
from ._normalization import rms_norm as rms_norm
from ._parts import Seeds as Seeds
from ._products import bilinear as bilinear
from ._products import inner as inner
from ._products import multi_dot as multi_dot
from ._products import outer as outer
from ._products import tensordot as tensordot
from ._products import vecdot as vecdot
from ._softmax import log_softmax as log_softmax
from ._softmax import softmax as softmax
from ._softmax import softmin as softmin
from ._transposed import conv_transpose1d as conv_transpose1d
from ._transposed import conv_transpose2d as conv_transpose2d
from ._transposed import conv_transpose3d as conv_transpose3d
