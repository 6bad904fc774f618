"""docs/reference/formats.md: its table is current, and its names mean what it says."""

import math
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
BLOCKS = "<!-- lowprec formats --markdown: block formats -->"
POSITS = "<!-- lowprec formats --markdown: posits -->"
NAMES = "<!-- names in other libraries -->"


def table_below(mark):
    text = PAGE.read_text(encoding="utf-8").split(mark + "\n")[1]
    return text.split("\n\n")[0]


def test_table_is_what_the_command_prints(capsys):
    assert main(["formats", "--markdown"]) == 0
    printed = capsys.readouterr().out.strip().split("\n\n")
    assert [table_below(mark) for mark in (TABLE, BLOCKS, POSITS)] == printed


def test_every_block_format_and_posit_of_the_table_is_what_it_says():
    _, _, *rows = table_below(BLOCKS).splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [name for name, *_ in cells] == [one.name for one in lp.block_formats()]
    for name, _, size, *_, bits, aliases, source in cells:
        fmt = lp.block_format(name)
        assert (fmt.block_size, fmt.bits_per_value) == (int(size), float(bits))
        assert all(lp.block_format(one) is fmt for one in aliases.split(", ") if one)
        assert source
    _, _, *rows, _ = table_below(POSITS).splitlines()
    for row in rows:
        name, bits, es, largest, *_ = (cell.strip() for cell in row.split("|")[1:-1])
        posit = lp.Posit(int(bits), int(es))
        assert (posit.name, f"2^{math.frexp(posit.max)[1] - 1}") == (name, largest)


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


def test_every_floating_point_dtype_of_torch_is_a_format():
    dtypes = {one for one in vars(torch).values() if isinstance(one, torch.dtype)}
    floating = {one for one in dtypes if one.is_floating_point}
    assert torch.float4_e2m1fn_x2 in floating
    for dtype in floating:
        finite = lp.format(dtype)
        if dtype != torch.float4_e2m1fn_x2:  # of which torch says nothing
            assert finite.max == torch.finfo(dtype).max
    assert lp.format(torch.float4_e2m1fn_x2) == lp.format("e2m1fn")


def family_examples():
    text = PAGE.read_text(encoding="utf-8").split("## Families")[1].split("```")[0]
    formats, others = text.split("Posits, levels")
    for part, is_format in ((formats, True), (others, False)):
        rows = [row for row in part.splitlines() if row.startswith("| `")]
        yield from ((row.split("|")[3].strip().strip("`"), is_format) for row in rows)


@pytest.mark.parametrize(("name", "is_format"), list(family_examples()))
def test_examples_of_families_stand_where_the_page_says(name, is_format):
    x = torch.ones(4)
    assert lp.round(x, name).tolist() == [1.0] * 4
    if is_format:
        assert lp.add(x, x, name).tolist() == [2.0] * 4
        return
    with pytest.raises(ValueError, match=r"stands where lowprec\.round"):
        lp.format(name)


@pytest.mark.parametrize(
    "other", [lp.Posit(8, 2), lp.Levels([0.0, 1.0]), lp.block_format("mxfp4")]
)
def test_sets_that_are_no_format_are_refused_by_the_places_they_have(other):
    with pytest.raises(TypeError, match=r"stands where lowprec\.round, or a Precision"):
        lp.format(other)
