"""Which rounding each tensor gets, and which module and operation gets what."""

from ._policy import Policy as Policy
from ._policy import as_policy as as_policy
from ._precision import Precision as Precision
from ._precision import as_precision as as_precision
from ._presets import Preset as Preset
from ._presets import Presets as Presets
from ._presets import preset as preset
from ._presets import presets as presets
