"""docs/reference/formats.md: its table is current, and its names mean what it says."""

import random
from pathlib import Path

import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
import torch

import lowprec as lp
from lowprec.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "formats.md"
TABLE = "<!-- lowprec formats --markdown -->"
NAMES = "<!-- names in other libraries -->"


def table_below(mark):
    text = PAGE.read_text(encoding="utf-8").split(mark + "\n")[1]
    return text.split("\n\n")[0]


def test_table_is_what_the_command_prints(capsys):
    assert main(["formats", "--markdown"]) == 0
    assert table_below(TABLE) == capsys.readouterr().out.strip()


def test_every_known_format_has_a_source():
    lines = lp.formats()._repr_markdown_().splitlines()[2:]
    assert [line for line in lines if line.endswith("|  |")] == []


def names():
    _, _, *rows = table_below(NAMES).splitlines()
    for row in rows:
        cells = [cell.strip().split(" ")[0].strip("`") for cell in row.split("|")[1:5]]
        yield dict(zip(("ours", "torch", "ml_dtypes", "gfloat"), cells, strict=True))


ROWS = list(names())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["ours"])
def test_codes_are_those_of_the_other_libraries(row):
    fmt = lp.format(row["ours"])
    if fmt.bits > 16:
        codes = [random.getrandbits(fmt.bits) for _ in range(2000)]
    else:
        codes = list(range(1 << fmt.bits))
    wanted = np.array(fmt.decode(codes), dtype=np.float64)
    raw = np.array(codes, dtype=f"uint{max(8, fmt.bits)}")
    if row["torch"]:
        dtype = getattr(torch, row["torch"])
        theirs = torch.from_numpy(raw).view(dtype).double().numpy()
        np.testing.assert_array_equal(theirs, wanted)
        assert lp.format(dtype) == fmt
    if row["ml_dtypes"]:
        kind = getattr(ml_dtypes, row["ml_dtypes"], None) or np.dtype(row["ml_dtypes"])
        with np.errstate(invalid="ignore"):  # signalling NaNs become quiet
            theirs = raw.view(kind).astype(np.float64)
        np.testing.assert_array_equal(theirs, wanted)
    if row["gfloat"]:
        info = getattr(gfloat.formats, f"format_info_{row['gfloat']}")
        few = slice(None, None, max(1, len(raw) // 300))
        theirs = [gfloat.decode_float(info, code).fval for code in codes[few]]
        np.testing.assert_array_equal(theirs, wanted[few])


def test_page_names_every_format_that_torch_has():
    ours = {row["torch"] for row in ROWS} - {""}
    theirs = {
        str(one.dtype)
        for one in lp.formats()
        if one.dtype and not one.dtype.lstrip("u").startswith("int")
    }
    assert ours == theirs
