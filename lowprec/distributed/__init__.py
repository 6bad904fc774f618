"""Compressed vectors between workers: compressors, payloads and error feedback.

A `Compressor` is a value that turns a vector into a `Payload`, which is cheaper to send
and which the receiver takes for the vector; `ErrorFeedback` adds what was left out to
the next vector. A matrix holds one vector of each worker.
"""

import torch as _torch

from ._checkpoint import Checkpoints as Checkpoints
from ._checkpoint import redistributed as redistributed
from ._collectives import Exchange as Exchange
from ._collectives import mean_in_order as mean_in_order
from ._communicator import Communicator as Communicator
from ._communicator import Traffic as Traffic
from ._compressor import Compressor as Compressor
from ._dense import Cast as Cast
from ._dense import Sign as Sign
from ._error_feedback import ErrorFeedback as ErrorFeedback
from ._error_feedback import Feedback as Feedback
from ._hook import compression_hook as compression_hook
from ._hook import topk_hook as topk_hook
from ._hook_state import CompressionState as CompressionState
from ._hook_state import TopKState as TopKState
from ._payload import Payload as Payload
from ._payload import PayloadKind as PayloadKind
from ._simulation import WorkerSimulation as WorkerSimulation
from ._sparse import RandomK as RandomK
from ._sparse import Threshold as Threshold
from ._sparse import TopK as TopK
from ._step_time import Machine as Machine
from ._step_time import StepTime as StepTime
from ._step_time import dense_step_time as dense_step_time
from ._step_time import sparse_step_time as sparse_step_time
from ._wire import IndexCoding as IndexCoding
from ._wire import Wire as Wire

# Groups of optimizers hold them: checkpoints load with torch.load(weights_only=True).
_torch.serialization.add_safe_globals(
    [Cast, ErrorFeedback, RandomK, Sign, Threshold, TopK]
)
