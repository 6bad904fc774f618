"""Records of a run: in memory, and as JSON lines that survive a killed process."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from ..formats import columns
from ..plot import traces

Value: TypeAlias = float | int | bool | str | None
Record: TypeAlias = dict[str, Value]

_CHUNK = 1 << 16


@dataclass(frozen=True)
class SummaryRow:
    """Statistics of one quantity over the records that have it.

    NaN counts as missing; with infinite values mean and root mean square are infinite
    or NaN.

    Args:
        name: the quantity.
        count: number of records with it.
        mean: arithmetic mean.
        rms: root mean square, the moment about zero.
        max: largest magnitude.
        last: latest value.
    """

    name: str
    count: int
    mean: float
    rms: float
    max: float
    last: float


@dataclass(frozen=True)
class Summary:
    """A readable table of `SummaryRow`, one for each numeric quantity.

    Example:
        >>> ledger = Ledger()
        >>> ledger.append({"loss": 3.0})
        >>> ledger.append({"loss": 4.0})
        >>> print(ledger.summary())
        quantity  count  mean      rms  max  last
        loss          2   3.5  3.53553    4     4
    """

    rows: tuple[SummaryRow, ...]

    def __getitem__(self, name: str) -> SummaryRow:
        """Return the row of one quantity."""
        for row in self.rows:
            if row.name == name:
                return row
        known = ", ".join(row.name for row in self.rows)
        raise KeyError(f"no numeric quantity {name!r}: there are {known or 'none'}")

    def __str__(self) -> str:
        """Return the table as aligned text."""
        header = ["quantity", *(field.name for field in fields(SummaryRow)[1:])]
        table = [header]
        for row in self.rows:
            numbers = (row.mean, row.rms, row.max, row.last)
            table.append([row.name, str(row.count), *(f"{x:.6g}" for x in numbers)])
        return "\n".join(columns(table, right=range(1, len(header))))


class Ledger:
    """A list of records, written to a file as they come.

    Contract:
        Each record is one line of JSON (with Python's ``NaN`` and ``Infinity``) and
        reaches the operating system in one write before `append` returns: a killed
        process loses no finished record. Floats are read back bit for bit. A file is
        continued, never overwritten; a last line that a kill or a full disk cut short
        is removed before the first new record. `load` ignores such a line and refuses
        other damage.

    Args:
        path: file to append to; None keeps the records in memory only.

    Example:
        >>> ledger = Ledger()
        >>> ledger.append({"step": 0, "loss": 1.5})
        >>> ledger["loss"]
        array([1.5])
        >>> ledger[0]
        {'step': 0, 'loss': 1.5}
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Open the file, if any; records that it holds already are not read."""
        self._records: list[Record] = []
        self._path = None if path is None else Path(path)
        self._file: io.FileIO | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ledger:
        """Read the records of a file; new ones are kept in memory only.

        Args:
            path: file that a `Ledger` has written.

        Returns:
            The ledger.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if a line other than an unfinished last one is no record.
        """
        ledger = cls()
        for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
            record = _parsed(line)
            if record is not None:
                ledger._records.append(record)
            elif line and not _is_last(path, number):
                raise ValueError(
                    f"line {number} of {os.fspath(path)} is no JSON record: the file "
                    "was not written by a Ledger, or is damaged"
                )
        return ledger

    @property
    def path(self) -> Path | None:
        """The file that records are appended to."""
        return self._path

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record.

        Args:
            record: names to floats, ints, bools, strings or None; 0-d tensors and
                numpy scalars are converted.

        Raises:
            TypeError: if a value is none of these; nothing is recorded then.
        """
        plain = {str(name): _plain(name, value) for name, value in record.items()}
        if self._path is not None:
            if self._file is None:
                self._file = _opened(self._path)
            try:
                _write_line(self._file, json.dumps(plain).encode() + b"\n")
            except BaseException:
                self.close()  # so that the next record first removes half a line
                raise
        self._records.append(plain)

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Ledger:
        """Return the ledger."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def __del__(self) -> None:
        """Close the file of a ledger that nobody closed."""
        if getattr(self, "_file", None) is not None:
            self.close()

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        """Iterate over copies of the records."""
        return (dict(record) for record in self._records)

    def __repr__(self) -> str:
        """Return length and file."""
        where = "" if self._path is None else f", path={os.fspath(self._path)!r}"
        return f"<Ledger of {len(self)} records{where}>"

    @property
    def names(self) -> list[str]:
        """Names of all quantities, in order of appearance."""
        return list(dict.fromkeys(name for record in self._records for name in record))

    @overload
    def __getitem__(self, key: int) -> Record: ...

    @overload
    def __getitem__(self, key: str) -> NDArray[Any]: ...

    def __getitem__(self, key: int | str) -> Record | NDArray[Any]:
        """Return one record by number, or one quantity of all records by name.

        Numeric quantities come as float64 with NaN where a record lacks them; others
        as an object array with None.
        """
        if isinstance(key, int):
            return dict(self._records[key])
        values = [record.get(key) for record in self._records]
        if not any(key in record for record in self._records):
            known = ", ".join(self.names)
            raise KeyError(f"no quantity {key!r}: there are {known or 'none'}")
        if any(isinstance(value, str) for value in values):
            return np.array(values, dtype=object)
        return np.array([np.nan if v is None else v for v in values], dtype=np.float64)

    def summary(self) -> Summary:
        """Return mean, root mean square, largest and last value of each quantity."""
        rows = [_row(name, self[name]) for name in self.names if self._numeric(name)]
        return Summary(tuple(rows))

    def _numeric(self, name: str) -> bool:
        values = [record.get(name) for record in self._records]
        known = [value for value in values if value is not None]
        return bool(known) and not any(isinstance(value, str) for value in known)

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row per record.

        Raises:
            ModuleNotFoundError: if pandas is not installed.
        """
        import pandas

        return pandas.DataFrame(self._records, columns=self.names)

    def plot(
        self,
        *names: str,
        x: str = "step",
        bounds: Mapping[str, Any] | None = None,
        logarithmic: bool | None = None,
        axes: Any = None,
    ) -> tuple[Any, Any]:
        """Draw quantities over the steps: `lowprec.plot.traces`.

        Args:
            *names: of the quantities; none means every numeric one but ``x``.
            x: quantity of the abscissa; numbers of the records if no record has it.
            bounds: numbers, or one per record, by label: dashed lines.
            logarithmic: scale of the ordinate; None decides by the values.
            axes: matplotlib axes; None makes a figure.

        Returns:
            The figure and the axes.

        Raises:
            KeyError: if a quantity is unknown.
            ModuleNotFoundError: if matplotlib is not installed.

        Example:
            >>> ledger = Ledger()
            >>> ledger.append({"step": 0, "r_norm": 0.25})
            >>> figure, axes = ledger.plot("r_norm", bounds={"R": 0.5})
            >>> axes.get_xlabel()
            'step'
        """
        steps = self[x] if x in self.names else np.arange(len(self))
        chosen = names or [n for n in self.names if n != x and self._numeric(n)]
        series = {name: self[name] for name in chosen}
        figure, axes = traces(
            steps, series, bounds=bounds, logarithmic=logarithmic, axes=axes
        )
        axes.set_xlabel(x)
        return figure, axes


def _row(name: str, values: NDArray[Any]) -> SummaryRow:
    known = values[~np.isnan(values)]
    if known.size == 0:
        return SummaryRow(name, 0, math.nan, math.nan, math.nan, math.nan)
    with np.errstate(all="ignore"):
        scale = float(np.abs(known).max())
        unit = scale if 0 < scale < math.inf else 1.0
        rms = unit * float(np.sqrt(np.mean(np.square(known / unit))))
        mean = float(np.mean(known))
    return SummaryRow(name, known.size, mean, rms, scale, float(known[-1]))


def _plain(name: Any, value: Any) -> Value:
    if value is None or isinstance(value, bool | int | float | str):
        # Subclasses such as enum members would not be read back as what they are.
        for kind in (bool, int, float, str):
            if isinstance(value, kind):
                return kind(value) if type(value) is not kind else value
        return None
    item = getattr(value, "item", None)
    if item is not None and getattr(value, "ndim", 0) == 0:
        return _plain(name, item())
    raise TypeError(
        f"{name!r} must be a float, int, bool, string or None, got "
        f"{type(value).__name__}: a record holds scalars, for example a norm"
    )


def _parsed(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _is_last(path: str | os.PathLike[str], number: int) -> bool:
    return Path(path).read_bytes().count(b"\n") == number - 1


def _opened(path: Path) -> io.FileIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        with path.open("r+b") as file:
            start, line = _last_line(file)
            if _parsed(line) is not None:
                file.seek(0, os.SEEK_END)
                file.write(b"\n")
            else:
                file.truncate(start)
    return path.open("ab", buffering=0)


def _last_line(file: io.BufferedRandom) -> tuple[int, bytes]:
    """Return where the text after the last newline starts, and that text."""
    start, tail = file.seek(0, os.SEEK_END), b""
    while start > 0 and b"\n" not in tail:
        size = min(start, _CHUNK)
        start = file.seek(start - size)
        tail = file.read(size) + tail
    line = tail[tail.rfind(b"\n") + 1 :]
    return start + len(tail) - len(line), line


def _write_line(file: io.FileIO, line: bytes) -> None:
    written = file.write(line)
    while written is not None and written < len(line):  # a full disk or a signal
        line = line[written:]
        written = file.write(line)
