"""Measuring rounding errors of training runs, beside the run, without changing it.

`RoundoffMonitor` measures r_k and s_k of any model and optimizer, `NormalizedTrace`
those of normalised gradient descent with the terms of its theory; `LayerMonitor`
measures each layer by itself, and `attribute` says which layers or roundings cause the
error of a gradient. Records go to a `Ledger`.
"""

from ._attribution import Attribution as Attribution
from ._attribution import AttributionRow as AttributionRow
from ._attribution import attribute as attribute
from ._environment import environment as environment
from ._layers import LayerMonitor as LayerMonitor
from ._ledger import Ledger as Ledger
from ._ledger import Summary as Summary
from ._ledger import SummaryRow as SummaryRow
from ._monitor import RoundoffMonitor as RoundoffMonitor
from ._report import write_report as write_report
from ._statistics import TensorStatistics as TensorStatistics
from ._trace import Moments as Moments
from ._trace import NormalizedTrace as NormalizedTrace
