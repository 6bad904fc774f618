"""Which functional computes an operation that ``elementwise`` governs."""

from __future__ import annotations

from typing import Any

from ._products import Bind


BINDINGS: dict[str, Bind] = {}


def is_elementwise(name: str) -> bool:
    return name in BINDINGS


def binds(name: str, func: Any) -> bool:
    return name in BINDINGS
