"""Measuring rounding errors of training runs, beside the run, without changing it.

`RoundoffMonitor` measures r_k and s_k of any model and optimizer, `NormalizedTrace`
those of normalised gradient descent with the terms of its theory; both write their
records to a `Ledger`.
"""

from ._ledger import Ledger as Ledger
from ._ledger import Summary as Summary
from ._ledger import SummaryRow as SummaryRow
from ._monitor import RoundoffMonitor as RoundoffMonitor
from ._trace import Moments as Moments
from ._trace import NormalizedTrace as NormalizedTrace
