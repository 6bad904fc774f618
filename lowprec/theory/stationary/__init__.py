"""Central limit theorems for SGD and its variants, and what rounding does to them.

The last iterate of a method with step sizes alpha_k has Z_k / sqrt(alpha_k) => N(0, W*)
with Z = (x - x*, v): `limit_covariance`. At a finite step `linear_covariance` is exact
for linear gradients and `predicted_covariance` its slow limit, rounding errors of
gradients, weights and velocities included. Formulas are those of Li, Xiao and Yang,
"Revisiting the central limit theorems for the SGD-type methods", with errata C1 ... C22
corrected; ``form="as_printed"`` gives the original where the two differ.
"""

from ._counterexample import SkewedQuadratic as SkewedQuadratic
from ._drift import drift_matrix as drift_matrix
from ._drift import drift_rate as drift_rate
from ._drift import drift_rate_bound as drift_rate_bound
from ._floor import covariance_floor as covariance_floor
from ._floor import crossover_step as crossover_step
from ._floor import freeze_step as freeze_step
from ._joint import JointCovariance as JointCovariance
from ._limit import commutant_projection as commutant_projection
from ._limit import limit_covariance as limit_covariance
from ._limit import vanishing_damping_covariance as vanishing_damping_covariance
from ._lyapunov import lyapunov as lyapunov
from ._predicted import predicted_covariance as predicted_covariance
from ._recursion import linear_covariance as linear_covariance
from ._rounding import gaussian_rounding_variance as gaussian_rounding_variance
from ._rounding import grid_spacing as grid_spacing
from ._rounding import rounding_covariance as rounding_covariance
from ._rounding import rounding_shift as rounding_shift
from ._sampling import effective_dimension as effective_dimension
from ._sampling import sampling_floor as sampling_floor
from ._time_average import time_average_bias as time_average_bias
from ._time_average import time_average_covariance as time_average_covariance
