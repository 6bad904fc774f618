"""Step sizes and dampings over time, and the iterations that they drive.

Steps are counted from 1: alpha_k is the size of the k-th update. Optimizers, theory and
measurements take the same objects: `PowerSchedule` for alpha_k and vanishing mu_k,
`Iteration` for one of the methods with its numbers.
"""

from torch.serialization import add_safe_globals as _add_safe_globals

from ._iteration import Coefficients as Coefficients
from ._iteration import Iteration as Iteration
from ._iteration import Method as Method
from ._iteration import ScheduleLike as ScheduleLike
from ._power import InverseTimeDamping as InverseTimeDamping
from ._power import PowerSchedule as PowerSchedule
from ._report import Condition as Condition
from ._report import ScheduleReport as ScheduleReport

_add_safe_globals([InverseTimeDamping, Iteration, PowerSchedule])
