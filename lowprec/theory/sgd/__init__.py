"""Convergence of normalised SGD in low precision: bounds, step sizes, certificates.

The iteration is w_{k+1} = w_k - eta (g_k/||g_k|| + r_k) + s_k for a quasi-convex f with
f(w) - f* <= L dist(w, W*)^p, where r_k is the error of the normalised direction and s_k
that of the weight update. Formulas are those of Cacciola, Frangioni, Asgharian,
Ghaffari and Partovi Nia, "On the Convergence of Stochastic Gradient Descent in
Low-precision Number Formats", with errata E1 ... E39 corrected; ``form="as_printed"``
gives the original where the two differ.
"""

from ._bound import Bound as Bound
from ._bound import OptimalStep as OptimalStep
from ._bound import StepInterval as StepInterval
from ._certificate import Certificate as Certificate
from ._certificate import CrossTerms as CrossTerms
from ._certificate import StepQuantities as StepQuantities
from ._certificate import certificate as certificate
from ._certificate import step_quantities as step_quantities
from ._deterministic import bound_liminf as bound_liminf
from ._deterministic import bound_running_min as bound_running_min
from ._deterministic import gamma_deterministic as gamma_deterministic
from ._deterministic import gamma_hu2015 as gamma_hu2015
from ._deterministic import informative_interval as informative_interval
from ._deterministic import optimal_step_deterministic as optimal_step_deterministic
from ._growth import GrowthModulus as GrowthModulus
from ._growth import HolderFit as HolderFit
from ._growth import default_radii as default_radii
from ._growth import growth_modulus as growth_modulus
from ._growth import holder_constant as holder_constant
from ._growth import holder_fit as holder_fit
from ._rounding_model import direction_error_bound as direction_error_bound
from ._rounding_model import gradient_error_bound as gradient_error_bound
from ._rounding_model import relative_error_bound as relative_error_bound
from ._rounding_model import stored_update_error_bound as stored_update_error_bound
from ._rounding_model import update_error_bound as update_error_bound
from ._stochastic import ErrorBalance as ErrorBalance
from ._stochastic import error_balance as error_balance
from ._stochastic import gamma_stochastic as gamma_stochastic
from ._stochastic import optimal_step_stochastic as optimal_step_stochastic
from ._stochastic import stochastic_floor as stochastic_floor
from ._stochastic import stochastic_floor_finite as stochastic_floor_finite
from ._worst_case import WorstCase as WorstCase
from ._worst_case import worst_case_increase as worst_case_increase
from ._worst_case import worst_case_step as worst_case_step
