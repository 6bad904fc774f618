"""Measuring rounding errors of training runs, beside the run, without changing it.

`RoundoffMonitor` measures r_k and s_k of any model and optimizer, `NormalizedTrace`
those of normalised gradient descent with the terms of its theory; `LayerMonitor`
measures each layer by itself, and `attribute` says which layers or roundings cause the
error of a gradient. Records go to a `Ledger`. `ReplicaRunner` runs many copies of a
stochastic gradient method at once; covariances of the copies and `royston_test` say how
far they are from their limit law.
"""

from ._attribution import Attribution as Attribution
from ._attribution import AttributionRow as AttributionRow
from ._attribution import attribute as attribute
from ._batched_gradient import module_loss as module_loss
from ._covariance import LocalModel as LocalModel
from ._covariance import local_model as local_model
from ._covariance import relative_error as relative_error
from ._covariance import scaled_covariance as scaled_covariance
from ._environment import environment as environment
from ._layers import LayerMonitor as LayerMonitor
from ._ledger import Ledger as Ledger
from ._ledger import Summary as Summary
from ._ledger import SummaryRow as SummaryRow
from ._monitor import RoundoffMonitor as RoundoffMonitor
from ._normality import RoystonTest as RoystonTest
from ._normality import dithered as dithered
from ._normality import royston_test as royston_test
from ._replicas import ReplicaRunner as ReplicaRunner
from ._report import write_report as write_report
from ._statistics import TensorStatistics as TensorStatistics
from ._trace import Moments as Moments
from ._trace import NormalizedTrace as NormalizedTrace
