"""Options of the quantization experiments: a field of a config is an option."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

__all__ = ["add_options", "check_choices", "check_positive", "from_options"]

Config = TypeVar("Config")


def add_options(
    parser: argparse.ArgumentParser,
    default: Any,
    texts: Mapping[str, str],
    choices: Mapping[str, Collection[Any]],
    kinds: Mapping[str, type],
) -> None:
    """Declare an option for every field of a configuration.

    Args:
        parser: of the command.
        default: a configuration, whose values are the defaults.
        texts: help by field.
        choices: what a field, or each element of it, may be.
        kinds: types of fields whose default is None.
    """
    for field in fields(default):
        value = getattr(default, field.name)
        several = isinstance(value, tuple)
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=kinds.get(field.name, type(value[0] if several else value)),
            nargs="+" if several else None,
            choices=choices.get(field.name),
            default=value,
            help=texts[field.name],
        )


def from_options(kind: type[Config], arguments: argparse.Namespace) -> Config:
    """Return the configuration that the options of `add_options` ask for.

    Raises:
        ValueError: if a value is out of range.
    """
    given = {field.name: getattr(arguments, field.name) for field in fields(kind)}  # type: ignore[arg-type]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return kind(**values)


def check_choices(name: str, given: Sequence[Any], allowed: Collection[Any]) -> None:
    """Refuse an empty selection, unknown elements and repeated ones.

    Raises:
        ValueError: naming what is allowed.
    """
    if not given or not set(given) <= set(allowed) or len(set(given)) < len(given):
        choices = ", ".join(map(str, allowed))
        raise ValueError(f"{name} must be some of {choices}, each once, got {given}")


def check_positive(config: Any, *names: str) -> None:
    """Refuse numbers below 1, alone or in tuples; None is allowed.

    Raises:
        ValueError: naming the field.
    """
    for name in names:
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if value is not None and (not numbers or min(numbers) < 1):
            raise ValueError(f"{name} must be 1 or more, got {value}")
