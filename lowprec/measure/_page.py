"""HTML text: a page without network or scripts, its sections and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape as escape

_STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --faint: #57606a; --line: #d9dee3; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 0 0 4px; }
p { margin: 0 0 12px; max-width: 78ch; }
.formula { font-family: Georgia, "Liberation Serif", serif; font-size: 17px; }
sub { font-size: 70%; line-height: 0; }
.faint { color: var(--faint); }
section { background: #fff; border: 1px solid var(--line); border-radius: 8px;
  padding: 18px 20px; margin-top: 18px; }
nav { margin-top: 10px; font-size: 14px; }
nav a { margin-right: 14px; color: #0b5cad; }
.figures { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); margin-top: 18px; }
.figure { background: #fff; border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 14px; }
.figure b { display: block; font-size: 22px; line-height: 1.25; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.figure span { font-size: 13px; color: var(--faint); }
.charts { display: grid; gap: 18px 24px; margin-top: 8px;
  grid-template-columns: repeat(auto-fit, minmax(min(500px, 100%), 1fr)); }
.charts > div, .wide { min-width: 0; }
.wide { overflow-x: auto; margin-top: 10px; }
svg { display: block; max-width: 100%; height: auto; font-family: inherit; }
.wide svg { max-width: none; }
table { border-collapse: collapse; font-size: 13px; margin: 6px 0 4px;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 3px 14px 3px 0; vertical-align: top;
  border-bottom: 1px solid #edf0f2; }
td:first-child { max-width: 360px; }
th { color: var(--faint); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.code { font-family: ui-monospace, "Liberation Mono", monospace; font-size: 12px;
  overflow-wrap: anywhere; }
details { margin-top: 8px; font-size: 14px; }
summary { cursor: pointer; color: #0b5cad; }
details > div { overflow-x: auto; max-height: 420px; overflow-y: auto; }
pre { font: 12px/1.45 ui-monospace, "Liberation Mono", monospace; margin: 6px 0;
  white-space: pre-wrap; }
ul { margin: 4px 0 0; padding-left: 20px; max-width: 92ch; }
li { margin: 2px 0; }
.mark { display: inline-block; width: 12px; height: 12px; border: 1px solid var(--line);
  vertical-align: -1px; margin: 0 4px 0 12px; }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""


def page(title: str, body: Iterable[str]) -> str:
    """Return a whole document."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def section(name: str, title: str, text: str, parts: Iterable[str]) -> str:
    """Return a section; ``name`` is what links point to, ``text`` says what it is."""
    lead = f'<p class="faint">{escape(text)}</p>' if text else ""
    return (
        f'<section id="{name}" aria-labelledby="{name}-heading">'
        f'<h2 id="{name}-heading">{escape(title)}</h2>{lead}{"".join(parts)}</section>'
    )


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    code: Sequence[int] = (),
    numbers: Sequence[int] = (),
) -> str:
    """Return a table; some columns hold code or numbers."""
    kinds = {**dict.fromkeys(code, "code"), **dict.fromkeys(numbers, "number")}

    def cells(tag: str, values: Sequence[str]) -> str:
        shown = []
        for i, value in enumerate(values):
            kind = f' class="{kinds[i]}"' if i in kinds else ""
            scope = ' scope="col"' if tag == "th" else ""
            shown.append(f"<{tag}{kind}{scope}>{escape(value)}</{tag}>")
        return f"<tr>{''.join(shown)}</tr>"

    head = f"<thead>{cells('th', header)}</thead>" if any(header) else ""
    lines = "".join(cells("td", row) for row in rows)
    return f"<table>{head}<tbody>{lines}</tbody></table>"


def folded(summary: str, content: str) -> str:
    """Return content that is shown on demand."""
    return (
        f"<details><summary>{escape(summary)}</summary><div>{content}</div></details>"
    )


def charts(parts: Iterable[str]) -> str:
    """Return charts side by side where there is room."""
    return f'<div class="charts">{"".join(f"<div>{x}</div>" for x in parts)}</div>'


def wide(label: str, content: str) -> str:
    """Return content that scrolls sideways if it must; keys can scroll it, too."""
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"{content}</div>"
    )


def bullets(lines: Iterable[str]) -> str:
    """Return a list."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def figure(value: str, label: str) -> str:
    """Return one number with what it is."""
    return (
        f'<div class="figure"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
    )
