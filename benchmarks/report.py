"""Tables and plots of docs/performance.md from the JSON files in results/.

Between `<!-- begin NAME -->` and `<!-- end NAME -->` the page holds the table of
results/NAME.json: one line per case, one column per contender, each entry the ratio to
the reference, whose own time is in the first column.
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import harness

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "performance.md"
_MEASURED = {
    "contender",
    "reference",
    "ratio",
    "median",
    "lower",
    "upper",
    "samples",
    "dropped",
    "GMAC/s",
    "share",
    "wanted",
    "steps",
}
_BLOCK = re.compile(r"<!-- begin (\S+) -->\n.*?<!-- end \1 -->", re.DOTALL)
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))

Row = dict[str, Any]


def read(name: str) -> tuple[dict[str, Any], list[Row]]:
    """Return the machine and the rows of one file."""
    content = json.loads((harness.RESULTS / f"{name}.json").read_text())
    return content["machine"], content["rows"]


def _case(row: Row) -> tuple[tuple[str, Any], ...]:
    return tuple((key, row[key]) for key in row if key not in _MEASURED)


def cases(rows: list[Row]) -> list[tuple[dict[str, Any], dict[str, Row]]]:
    """Group rows by what was timed and against what: (keys, row by contender)."""
    grouped: dict[tuple[Any, str], dict[str, Row]] = {}
    for row in rows:
        group = (_case(row), row["reference"])
        grouped.setdefault(group, {})[row["contender"]] = row
    return [(dict(case), by_name) for (case, _), by_name in grouped.items()]


def seconds(value: float) -> str:
    """Return a time with three digits and its unit."""
    for unit, name in _UNITS:
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.3g} s"


def over_formats(rows: list[Row]) -> str:
    """Return the median and the worst ratio of each mode over all formats."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["contender"] != row["reference"]:
            key = (row["carrier"], row["isa"], row["contender"])
            groups.setdefault(key, []).append(row)
    lines = [["carrier", "instruction set", "mode", "median", "worst", "its format"]]
    for (carrier, isa, mode), members in groups.items():
        worst = max(members, key=lambda row: float(row["ratio"]))
        middle = statistics.median(row["ratio"] for row in members)
        numbers = [f"{middle:.2f}", f"{worst['ratio']:.2f}"]
        lines.append([carrier, str(isa), mode, *numbers, worst["format"]])
    return markdown(lines)


def tables(rows: list[Row]) -> str:
    """Return one table for each set of contenders."""
    parts: dict[tuple[str, ...], list[tuple[dict[str, Any], dict[str, Row]]]] = {}
    for case, by_name in cases(rows):
        parts.setdefault(tuple(by_name), []).append((case, by_name))
    return "\n\n".join(_table(names, members) for names, members in parts.items())


def _table(
    names: tuple[str, ...], members: list[tuple[dict[str, Any], dict[str, Row]]]
) -> str:
    reference = next(iter(members[0][1].values()))["reference"]
    others = [name for name in names if name != reference]
    keys = [
        key
        for key in members[0][0]
        if key != "threads" or len({case.get(key) for case, _ in members}) > 1
    ]
    lines = [
        [*keys, reference, *others],
        *(
            [
                *(_number(case.get(key, "")) for key in keys),
                seconds(by_name[reference]["median"]),
                *(f"{by_name[name]['ratio']:.2f}" for name in others),
            ]
            for case, by_name in members
        ),
    ]
    if len(others) > len(members):  # a line per contender reads better
        lines = [list(line) for line in zip(*lines, strict=True)]
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    """Return lines of cells as a table whose first line is the head."""
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, f"|{'---|' * len(lines[0])}", *rest])


def facts(rows: list[Row]) -> str:
    """Return what was measured without a reference."""
    lines = [["", ""]]
    for row in rows:
        size = f"{row['bytes'] / 1e6:.2f} MB" if "bytes" in row else ""
        lines.append([row["what"], size or seconds(row["seconds"])])
    return markdown(lines)


def _number(value: Any) -> str:
    return f"{value:.0e}".replace("e+0", "e") if _is_large(value) else str(value)


def _is_large(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 10_000


def plot(name: str, rows: list[Row]) -> None:
    """Draw every ratio with its quartiles, one panel per case."""
    from matplotlib.figure import Figure

    members = cases(rows)
    height = 0.6 + 0.22 * sum(len(by_name) + 1.5 for _, by_name in members)
    picture = Figure(figsize=(8.0, height), layout="constrained")
    axes = picture.subplots()
    labels: list[tuple[float, str]] = []
    position = 0.0
    for case, by_name in members:
        title = ", ".join(f"{key} {_number(value)}" for key, value in case.items())
        labels.append((position, title))
        for contender, row in by_name.items():
            position += 1
            ours = contender != row["reference"]
            axes.barh(position, row["ratio"], color="C0" if ours else "0.7")
            unit = row["ratio"] / row["median"]
            ends = [row["lower"] * unit, row["upper"] * unit]
            axes.plot(ends, [position, position], color="k", lw=0.8)
            labels.append((position, contender))
        position += 1.5
    axes.set_yticks([at for at, _ in labels], [text for _, text in labels], fontsize=6)
    axes.axvline(1, color="0.5", lw=0.8)
    axes.set_xscale("log")
    axes.set_ylim(position, -1)
    axes.set_xlabel("time, as a multiple of the reference (bars: quartiles)")
    target = DOCS / "figures" / f"performance-{name}.png"
    picture.savefig(target, dpi=110)


def main() -> None:
    """Rewrite every block of the page whose results are there."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        if not (harness.RESULTS / f"{name}.json").exists():
            return match[0]
        machine, everything = read(name)
        single = [row for row in everything if "contender" not in row]
        broad = [row for row in everything if "carrier" in row]
        rows = [row for row in everything if row not in single and row not in broad]
        plot(name, rows)
        parts = [tables(rows)]
        parts += [over_formats(broad)] if broad else []
        parts += [facts(single)] if single else []
        lines = [
            f"<!-- begin {name} -->",
            "{processor}, {cores} cores, {kernels}, torch {torch}, load {load:.1f}, "
            "{when}.\n".format(**machine),
            "\n\n".join(parts),
            f"\n![{name}](figures/performance-{name}.png)",
            f"<!-- end {name} -->",
        ]
        return "\n".join(lines)

    PAGE.write_text(_BLOCK.sub(block, PAGE.read_text()))
    print(PAGE)


if __name__ == "__main__":
    main()
