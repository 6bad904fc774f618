"""The Python code in README.md and docs/ runs, and prints what the page says."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def code_of(page):
    """The page's Python blocks; blank lines keep the line numbers of the page."""
    text = page.read_text(encoding="utf-8")
    for match in CODE.finditer(text):
        yield "\n" * text.count("\n", 0, match.start(1)) + match[1]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(code_of(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_code_of_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    parser = doctest.DocTestParser()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for block in code_of(page):
        if ">>>" not in block:
            exec(compile(block, str(page), "exec"), names)
            continue
        example = parser.get_doctest(block, names, page.name, str(page), 0)
        differences = []
        runner.run(example, out=differences.append, clear_globs=False)
        assert not differences, "".join(differences)
        names.update(example.globs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_page_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [
        link
        for link in links
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert missing == []
