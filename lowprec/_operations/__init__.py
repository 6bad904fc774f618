"""What `lowprec.emulate` knows about torch's operations."""

from ._exact import objection as objection
from ._names import operation_name as operation_name
from ._products import Bound as Bound
from ._table import Operation as Operation
from ._table import is_known as is_known
from ._table import operation_of as operation_of
from ._table import product as product
from ._table import rounding as rounding
from ._table import written as written
