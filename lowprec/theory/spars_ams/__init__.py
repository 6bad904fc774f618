"""SPARS-AMS: identities of error feedback, bounds, convergence, effects of precision.

The iteration is that of `lowprec.optim.SparsAMS` with n workers. Formulas are those of
the corrected analysis; the paper's own theorem is there as printed, with a note.
"""

from ._bounds import error_bound as error_bound
from ._bounds import largest_relative_step as largest_relative_step
from ._bounds import sent_bound as sent_bound
from ._bounds import step_length_bound as step_length_bound
from ._convergence import ConvergenceBound as ConvergenceBound
from ._convergence import convergence_bound as convergence_bound
from ._convergence import convergence_bound_as_printed as convergence_bound_as_printed
from ._effective_step import effective_step_ratio as effective_step_ratio
from ._effective_step import largest_second_moment as largest_second_moment
from ._identities import iterate_residual as iterate_residual
from ._identities import momentum_residual as momentum_residual
from ._identities import transmission_residual as transmission_residual
from ._storage import accumulator_stall as accumulator_stall
from ._storage import decay_is_blocked as decay_is_blocked
from ._storage import is_never_sent as is_never_sent
from ._storage import second_moment_stall as second_moment_stall
from ._storage import smallest_moving_step_size as smallest_moving_step_size
from ._wire import break_even_density as break_even_density
from ._wire import index_bits as index_bits
from ._wire import payload_bits as payload_bits
from ._wire import subset_bits as subset_bits
