"""Layers and operations as functions, with emulated arithmetic forward and backward.

Names and arguments are torch's, then a `Precision`. Where nothing is rounded torch's
own function computes, bit for bit.

Products (`linear`, `matmul`, `einsum`, convolutions ...) have three GEMMs each (output,
grad_input, grad_weight). One seed serves a call: the sum of the output takes it as it
is (the words are those of `lowprec.matmul` with that seed), everything else takes the
numbered parts of ``random.split_seed(seed, 11)`` (`Seeds`). Backward therefore needs no
generator.

Everything else (`softmax`, norms, losses, `pointwise` ...) is governed by the field
``elementwise`` and behaves like one fused kernel: float64 inside, a rounding at each
border, sums that are the accumulators'. Attention and recurrent networks are composed
of both.
"""

from ._added import addbmm as addbmm
from ._added import addmm as addmm
from ._added import addmv as addmv
from ._added import addr as addr
from ._added import baddbmm as baddbmm
from ._attention import scaled_dot_product_attention as scaled_dot_product_attention
from ._class_losses import cross_entropy as cross_entropy
from ._class_losses import nll_loss as nll_loss
from ._contractions import einsum as einsum
from ._convolution import conv1d as conv1d
from ._convolution import conv2d as conv2d
from ._convolution import conv3d as conv3d
from ._dropout import alpha_dropout as alpha_dropout
from ._dropout import dropout as dropout
from ._dropout import dropout1d as dropout1d
from ._dropout import dropout2d as dropout2d
from ._dropout import dropout3d as dropout3d
from ._dropout import feature_alpha_dropout as feature_alpha_dropout
from ._embedding import embedding as embedding
from ._embedding_bag import embedding_bag as embedding_bag
from ._extremes import extremum as extremum
from ._linear import linear as linear
from ._losses import huber_loss as huber_loss
from ._losses import l1_loss as l1_loss
from ._losses import mse_loss as mse_loss
from ._losses import smooth_l1_loss as smooth_l1_loss
from ._matmul import matmul as matmul
from ._max_pooling import adaptive_max_pool1d as adaptive_max_pool1d
from ._max_pooling import adaptive_max_pool2d as adaptive_max_pool2d
from ._max_pooling import adaptive_max_pool3d as adaptive_max_pool3d
from ._max_pooling import max_pool1d as max_pool1d
from ._max_pooling import max_pool2d as max_pool2d
from ._max_pooling import max_pool3d as max_pool3d
from ._multi_head import multi_head_attention_forward as multi_head_attention_forward
from ._nonlinear_reductions import logsumexp as logsumexp
from ._nonlinear_reductions import norm as norm
from ._normalization import batch_norm as batch_norm
from ._normalization import group_norm as group_norm
from ._normalization import instance_norm as instance_norm
from ._normalization import layer_norm as layer_norm
from ._normalization import rms_norm as rms_norm
from ._parts import Seeds as Seeds
from ._pointwise import pointwise as pointwise
from ._pointwise import prelu as prelu
from ._pooling import adaptive_avg_pool1d as adaptive_avg_pool1d
from ._pooling import adaptive_avg_pool2d as adaptive_avg_pool2d
from ._pooling import adaptive_avg_pool3d as adaptive_avg_pool3d
from ._pooling import avg_pool1d as avg_pool1d
from ._pooling import avg_pool2d as avg_pool2d
from ._pooling import avg_pool3d as avg_pool3d
from ._probability_losses import binary_cross_entropy as binary_cross_entropy
from ._probability_losses import (
    binary_cross_entropy_with_logits as binary_cross_entropy_with_logits,
)
from ._probability_losses import kl_div as kl_div
from ._products import bilinear as bilinear
from ._products import inner as inner
from ._products import multi_dot as multi_dot
from ._products import outer as outer
from ._products import tensordot as tensordot
from ._products import vecdot as vecdot
from ._recurrent import gru as gru
from ._recurrent import lstm as lstm
from ._recurrent import rnn_relu as rnn_relu
from ._recurrent import rnn_tanh as rnn_tanh
from ._recurrent_cells import gru_cell as gru_cell
from ._recurrent_cells import lstm_cell as lstm_cell
from ._recurrent_cells import rnn_relu_cell as rnn_relu_cell
from ._recurrent_cells import rnn_tanh_cell as rnn_tanh_cell
from ._reductions import cumsum as cumsum
from ._reductions import mean as mean
from ._reductions import prod as prod
from ._reductions import std as std
from ._reductions import sum as sum
from ._reductions import var as var
from ._resampling import interpolate as interpolate
from ._selection import selection as selection
from ._softmax import log_softmax as log_softmax
from ._softmax import softmax as softmax
from ._softmax import softmin as softmin
from ._transposed import conv_transpose1d as conv_transpose1d
from ._transposed import conv_transpose2d as conv_transpose2d
from ._transposed import conv_transpose3d as conv_transpose3d
from ._vector_normalization import cosine_similarity as cosine_similarity
from ._vector_normalization import local_response_norm as local_response_norm
from ._vector_normalization import normalize as normalize
from ._vector_normalization import pairwise_distance as pairwise_distance
