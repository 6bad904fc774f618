"""Compressed vectors between workers: compressors, payloads and error feedback.

A `Compressor` is a value that turns a vector into a `Payload`, which is cheaper to send
and which the receiver takes for the vector; `ErrorFeedback` adds what was left out to
the next vector. A matrix holds one vector of each worker.
"""

import torch as _torch

from ._compressor import Compressor as Compressor
from ._dense import Cast as Cast
from ._dense import Sign as Sign
from ._error_feedback import ErrorFeedback as ErrorFeedback
from ._error_feedback import Feedback as Feedback
from ._payload import Payload as Payload
from ._payload import PayloadKind as PayloadKind
from ._sparse import RandomK as RandomK
from ._sparse import Threshold as Threshold
from ._sparse import TopK as TopK

# Groups of optimizers hold them: checkpoints load with torch.load(weights_only=True).
_torch.serialization.add_safe_globals(
    [Cast, ErrorFeedback, RandomK, Sign, Threshold, TopK]
)
