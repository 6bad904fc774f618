"""Which module and which operation gets what precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from .. import _values
from ._precision import Precision, as_precision

__all__ = ["Policy", "as_policy"]

_Rules = tuple[tuple[str, Precision | None], ...]


@dataclass(frozen=True, init=False, repr=False)
class Policy:
    """Which precision each module and operation gets, by name; the last match wins.

    Patterns are those of ``fnmatch`` (case-sensitive) on the names of
    ``model.named_modules()``, in which ``*`` matches dots as well; the model itself
    has the empty name, which only ``"*"`` and ``""`` match.

    Contract:
        A name that nothing matches has the precision None, which leaves the module in
        carrier arithmetic on purpose. Immutable; the order of the rules counts in
        comparisons.

    Args:
        rules: an ordered mapping from pattern to `Precision` or None.
        operations: a mapping from name of an operation to `Precision` or None, which
            comes after the rules.

    Raises:
        TypeError: if a pattern is not a string or a value not a `Precision` or None.

    Example:
        >>> low = Precision(weight="e4m3fn")
        >>> policy = Policy({"*": low, "head": None})
        >>> policy.precision_for("layers.0"), policy.precision_for("head")
        (Precision(weight='e4m3fn'), None)
    """

    rules: tuple[tuple[str, Precision | None], ...]
    by_operation: tuple[tuple[str, Precision | None], ...]

    def __init__(
        self,
        rules: Mapping[str, Precision | None],
        operations: Mapping[str, Precision | None] | None = None,
    ) -> None:
        """Check and freeze the rules."""
        object.__setattr__(self, "rules", _frozen("name pattern", rules))
        frozen = _frozen("name of an operation", operations or {})
        object.__setattr__(self, "by_operation", frozen)

    def __repr__(self) -> str:
        """Return one line that evaluates back."""
        more = f", operations={self.operations!r}" if self.by_operation else ""
        return f"Policy({dict(self.rules)!r}{more})"

    @property
    def operations(self) -> dict[str, Precision | None]:
        """The precisions of single operations, by name."""
        return dict(self.by_operation)

    def precision_for(
        self, name: str, operation: str | None = None
    ) -> Precision | None:
        """Return the precision of the module with this name, or of an operation in it.

        Args:
            name: as in ``model.named_modules()``.
            operation: name of a function of torch.

        Returns:
            The precision of the operation, or else the value of the last matching
            pattern, or None.

        Example:
            >>> low = Precision(elementwise="bfloat16")
            >>> policy = Policy({"*": low}, operations={"softmax": None})
            >>> policy.precision_for("head", "softmax")
            >>> policy.precision_for("head", "relu")
            Precision(elementwise='bfloat16')
        """
        if operation is not None and operation in self.operations:
            return self.operations[operation]
        result = None
        for pattern, precision in self.rules:
            if fnmatchcase(name, pattern):
                result = precision
        return result

    def idle(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the patterns that match none of the modules' names."""
        known = list(names)
        return tuple(
            pattern
            for pattern, _ in self.rules
            if not any(fnmatchcase(name, pattern) for name in known)
        )

    def to_json(self) -> dict[str, Any]:
        """Return nested dictionaries, in order, that ``json`` can write.

        Returns:
            ``"modules"``: from pattern to precision; ``"operations"``: from name to
            precision, if there are any.

        Example:
            >>> Policy({"*": Precision(weight="e4m3fn"), "head": None}).to_json()
            {'modules': {'*': {'weight': 'e4m3fn'}, 'head': None}}
        """
        result = {"modules": _rules_to_json(self.rules)}
        if self.by_operation:
            result["operations"] = _rules_to_json(self.by_operation)
        return result

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Policy:
        """Return the policy that ``to_json`` wrote.

        Args:
            data: a mapping with the keys ``"modules"`` and ``"operations"``, each a
                mapping from name to a precision in JSON form or None.

        Returns:
            The policy.

        Raises:
            TypeError: if ``data`` or a value is not a mapping.
            ValueError: if a key or a name is unknown.

        Example:
            >>> Policy.from_json({"modules": {"*": {"weight": "e4m3fn"}}})
            Policy({'*': Precision(weight='e4m3fn')})
        """
        _values.check_mapping(data, "a Policy")
        unknown = set(data) - {"modules", "operations"}
        if unknown:
            raise ValueError(
                f"unknown key {min(unknown)!r} in the JSON form of a Policy: it must "
                "be 'modules' or 'operations'"
            )
        return cls(
            _rules_from_json("modules", data.get("modules", {})),
            _rules_from_json("operations", data.get("operations", {})),
        )


def as_policy(value: Any) -> Policy:
    """Return ``value`` as a `Policy`; a precision means every module.

    Args:
        value: a `Policy`, a mapping of rules, or a `Precision`.

    Returns:
        The policy.

    Raises:
        TypeError: if it is none of these.

    Example:
        >>> as_policy(Precision(weight="bfloat16"))
        Policy({'*': Precision(weight='bfloat16')})
    """
    if isinstance(value, Policy):
        return value
    if isinstance(value, Mapping):
        return Policy(value)
    return Policy({"*": as_precision(value)})


def _frozen(what: str, rules: Any) -> _Rules:
    if not isinstance(rules, Mapping):
        raise TypeError(
            f"a Policy takes a mapping from {what} to Precision or None, such as "
            f"{{'*': Precision(...)}}, got {type(rules).__name__}"
        )
    for name in rules:
        if not isinstance(name, str):
            raise TypeError(
                f"a {what} must be a str, got {name!r} of type {type(name).__name__}"
            )
    return tuple(
        (name, None if value is None else as_precision(value))
        for name, value in rules.items()
    )


def _rules_to_json(rules: _Rules) -> dict[str, Any]:
    return {
        name: None if precision is None else precision.to_json()
        for name, precision in rules
    }


def _rules_from_json(what: str, data: Any) -> dict[str, Precision | None]:
    _values.check_mapping(data, f"the {what} of a Policy")
    return {
        name: None if value is None else Precision.from_json(value)
        for name, value in data.items()
    }
