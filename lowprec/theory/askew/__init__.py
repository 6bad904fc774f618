"""ASkewSGD: feasible sets, the skewing force, step sizes and convergence bounds.

The iteration is w_{k+1} = w_k + gamma v_k, where v_k is the negative gradient unless a
weight is too far from its quantization levels and does not return fast enough; then a
skewing force replaces it. Formulas are those of "Revisiting ASkewSGD" and of the
convergence notes on it, with errata E1 ... E33 corrected; ``form="as_printed"`` gives
the original where the two differ.
"""

from ._bounds import StationarityBound as StationarityBound
from ._bounds import bound_constant_step as bound_constant_step
from ._bounds import bound_decreasing_steps as bound_decreasing_steps
from ._bounds import bound_horizon_step as bound_horizon_step
from ._bounds import bound_small_step as bound_small_step
from ._cycle import Cycle as Cycle
from ._cycle import cycle as cycle
from ._projection import constrained_step as constrained_step
from ._projection import project_velocity as project_velocity
from ._random_index import RandomIterate as RandomIterate
from ._random_index import index_law as index_law
from ._remoteness import Kind as Kind
from ._remoteness import Remoteness as Remoteness
from ._skew import skew_bound as skew_bound
from ._skew import skew_ratio as skew_ratio
from ._skew import skew_ratio_bounds as skew_ratio_bounds
from ._stationarity import distance_lyapunov as distance_lyapunov
from ._stationarity import distance_lyapunov_rate as distance_lyapunov_rate
from ._stationarity import distance_lyapunov_slope as distance_lyapunov_slope
from ._stationarity import kkt_residual as kkt_residual
from ._stationarity import penalty_lyapunov as penalty_lyapunov
from ._stationarity import penalty_lyapunov_gradient as penalty_lyapunov_gradient
from ._step_size import Neighbourhood as Neighbourhood
from ._step_size import StepSizeConditions as StepSizeConditions
from ._step_size import lemma5_count as lemma5_count
from ._step_size import max_stepsize as max_stepsize
from ._step_size import neighbourhood as neighbourhood
from ._step_size import step_size_conditions as step_size_conditions
from ._velocity import IndexSets as IndexSets
from ._velocity import Midpoint as Midpoint
from ._velocity import index_sets as index_sets
from ._velocity import skewing_force as skewing_force
from ._velocity import stochastic_index_sets as stochastic_index_sets
from ._velocity import velocity as velocity
