"""Theory beside measurement: convergence of low-precision SGD and sums in rounding.

`lowprec.theory.sgd` holds the bounds for normalised (sub)gradient descent with errors
in the gradient and in the weight update; `lowprec.theory.askew` those for ASkewSGD,
which trains weights towards a quantization set; `lowprec.theory.spars_ams` those for
adaptive training on compressed gradients; `lowprec.theory.summation` holds the rounding
error bounds of inner products.
"""

from . import askew as askew
from . import sgd as sgd
from . import spars_ams as spars_ams
from . import summation as summation
