"""Layers in emulated arithmetic and the in-place conversion of models to them."""

from ._convert import convert_ as convert_
from ._convert import unconvert_ as unconvert_
from ._convolution import Conv1d as Conv1d
from ._convolution import Conv2d as Conv2d
from ._convolution import Conv3d as Conv3d
from ._linear import Linear as Linear
from ._report import Report as Report
from ._report import ReportRow as ReportRow
from ._report import coverage as coverage
from ._report import report as report
