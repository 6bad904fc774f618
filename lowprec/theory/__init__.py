"""Theory beside measurement: low-precision SGD, its limit laws, and rounded sums.

`lowprec.theory.sgd` holds the bounds for normalised (sub)gradient descent with errors
in the gradient and in the weight update; `lowprec.theory.askew` those for ASkewSGD,
which trains weights towards a quantization set; `lowprec.theory.stationary` the
covariances of iterates around the minimum, with and without rounding;
`lowprec.theory.summation` the rounding error bounds of inner products.
"""

from . import askew as askew
from . import sgd as sgd
from . import stationary as stationary
from . import summation as summation
