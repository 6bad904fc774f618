"""Optimizers whose stored numbers are rounded; one algorithm per file.

They follow the conventions of ``torch.optim``: groups, hooks, closures, schedulers and
``state_dict``. Roundings and projections sit in the parameter groups and are registered
as safe, so that ``torch.load(weights_only=True)`` reads a saved ``state_dict`` once
this module is imported.
"""

import torch as _torch

from ._adam import Adam as Adam
from ._adam import AdamW as AdamW
from ._amsgrad import AMSGrad as AMSGrad
from ._annealing import Annealing as Annealing
from ._annealing import ExponentialEpsilon as ExponentialEpsilon
from ._annealing import LinearLambda as LinearLambda
from ._askew_sgd import ASkewSGD as ASkewSGD
from ._batch_norm import reestimate_batch_norm as reestimate_batch_norm
from ._batch_norm import reestimated_batch_norm as reestimated_batch_norm
from ._binary_connect import BinaryConnect as BinaryConnect
from ._dorefa import dorefa_int as dorefa_int
from ._dorefa import dorefa_weight as dorefa_weight
from ._levels import cell as cell
from ._levels import nearest as nearest
from ._loss_scaling import LossScaler as LossScaler
from ._normalized_sgd import NormalizedSGD as NormalizedSGD
from ._normalized_sgd import normalized_direction as normalized_direction
from ._normalized_sgd import normalized_sgd_step as normalized_sgd_step
from ._projection import Ball as Ball
from ._projection import Box as Box
from ._projection import Projection as Projection
from ._prox_quant import ProxQuant as ProxQuant
from ._prox_quant import proximal_map as proximal_map
from ._published import PublishedSettings as PublishedSettings
from ._published import published_settings as published_settings
from ._remoteness import Remoteness as Remoteness
from ._remoteness import feasible_set as feasible_set
from ._remoteness import largest_epsilon as largest_epsilon
from ._remoteness import remoteness as remoteness
from ._remoteness import skewed_direction as skewed_direction
from ._rounded_sum import rounded_sum as rounded_sum
from ._scales import PerChannel as PerChannel
from ._scales import scale_of as scale_of
from ._scheduled_sgd import ScheduledSGD as ScheduledSGD
from ._sgd import SGD as SGD
from ._skewed import Skewed as Skewed
from ._spars_ams import SparsAMS as SparsAMS
from ._split_params import split_params as split_params
from ._update import rounded_step_size as rounded_step_size

_torch.serialization.add_safe_globals([Ball, Box, PerChannel])
