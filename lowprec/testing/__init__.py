"""Exact oracles, conformance helpers and hypothesis strategies for your own tests.

`exact_round` and `exact_dot` define what the library computes, in rational arithmetic.
``lowprec.testing.strategies`` needs hypothesis and is imported on first use.
"""

from importlib import import_module as _import_module
from typing import Any as _Any

from ._block_oracle import ExactBlock as ExactBlock
from ._block_oracle import exact_block_round as exact_block_round
from ._block_oracle import exact_block_scale as exact_block_scale
from ._block_oracle import exact_tensor_scale as exact_tensor_scale
from ._block_vectors import BlockVector as BlockVector
from ._block_vectors import block_vectors as block_vectors
from ._boundaries import boundary_blocks as boundary_blocks
from ._boundaries import boundary_inputs as boundary_inputs
from ._conformance import assert_bit_equal as assert_bit_equal
from ._exact_operations import EXACT_OPERATIONS as EXACT_OPERATIONS
from ._exact_operations import exact_operation as exact_operation
from ._exact_operations import exact_softmax as exact_softmax
from ._exact_operations import exact_sum as exact_sum
from ._exact_operations import exact_value as exact_value
from ._exact_sum import exact_dot as exact_dot
from ._exact_sum import exact_matmul as exact_matmul
from ._oracle import Real as Real
from ._oracle import exact_round as exact_round
from ._oracle import exact_table_round as exact_table_round
from ._oracle import up_probability as up_probability
from ._philox import philox4x32 as philox4x32
from ._philox import random_word as random_word
from ._vectors import Vector as Vector
from ._vectors import exact_flags as exact_flags
from ._vectors import vectors as vectors
from .block_suites import BlockCodingSuite as BlockCodingSuite
from .block_suites import BlockRoundingSuite as BlockRoundingSuite
from .coding_suites import CodingSuite as CodingSuite
from .suites import OperationSuite as OperationSuite
from .suites import RoundingSuite as RoundingSuite
from .suites import StochasticSuite as StochasticSuite
from .suites import SummationSuite as SummationSuite


def __getattr__(name: str) -> _Any:
    if name == "strategies":
        return _import_module(".strategies", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "strategies"})
