"""lowprec.plot: what the figures show, read back from matplotlib's artists."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import lowprec as lp
from lowprec.cli import main
from lowprec.formats import any_format, is_block_name, line_of
from lowprec.measure import Ledger

pytest.importorskip("matplotlib")


def drawn(figure, path):
    figure.savefig(path, dpi=40)
    return path.stat().st_size > 0


def test_number_line_has_a_mark_per_value(tmp_path):
    figure, axes = lp.plot.number_line("e3m2")
    (marks,) = axes.collections
    assert list(marks.get_positions()) == [float(v) for v in lp.format("e3m2").values()]
    assert drawn(figure, tmp_path / "line.png")
    with pytest.raises(ValueError, match=r"65536 values, .* binary32 has more"):
        lp.plot.number_line("binary32")


def test_traces_show_quantities_and_bounds(tmp_path):
    ledger = Ledger()
    for k in range(4):
        ledger.append({"step": 10 * k, "r_norm": 0.5**k, "s_norm": 0.1, "mode": "SR"})
    figure, axes = ledger.plot(bounds={"R": 1.0, "S": [0.4, 0.3, 0.2, 0.1]})
    assert [line.get_label() for line in axes.lines] == ["r_norm", "s_norm", "R", "S"]
    assert list(axes.lines[0].get_xdata()) == [0, 10, 20, 30]
    assert list(axes.lines[0].get_ydata()) == [1, 0.5, 0.25, 0.125]
    assert list(axes.lines[3].get_ydata()) == [0.4, 0.3, 0.2, 0.1]
    assert axes.get_yscale() == "linear"
    assert axes.get_xlabel() == "step"
    assert drawn(figure, tmp_path / "traces.png")
    _, axes = ledger.plot("r_norm", bounds={"tiny": 1e-6})
    assert axes.get_yscale() == "log"
    _, axes = ledger.plot("r_norm", logarithmic=True)
    assert axes.get_yscale() == "log"
    with pytest.raises(KeyError, match="no quantity 'g_norm'"):
        ledger.plot("g_norm")


def test_traces_go_into_given_axes_and_count_records_without_steps():
    ledger = Ledger()
    ledger.append({"loss": 2.0})
    ledger.append({"loss": 0.0})
    first, axes = ledger.plot("loss")
    second, same = ledger.plot("loss", axes=axes)
    assert (second, same) == (first, axes)
    assert list(axes.lines[1].get_xdata()) == [0, 1]
    assert axes.get_yscale() == "linear"  # zero has no logarithm


def test_exponents_mark_the_ranges_of_a_format(tmp_path):
    figure, axes = lp.plot.exponents({-12: 1, -3: 7, 9: 2}, format="e4m3fn")
    spans = {p.get_label(): p.get_extents for p in axes.patches if p.get_alpha()}
    assert set(spans) == {"e4m3fn", "subnormal in e4m3fn"}
    bars = axes.containers[0]
    assert [(bar.get_x(), bar.get_height()) for bar in bars] == [
        (-12, 1),
        (-3, 7),
        (9, 2),
    ]
    assert drawn(figure, tmp_path / "exponents.png")


def test_heat_maps_show_finite_numbers(tmp_path):
    figure, axes = lp.plot.heat_map(
        [[30.0, np.inf], [12.5, np.nan]], ["a", "b"], ["output", "input"], label="dB"
    )
    assert [text.get_text() for text in axes.texts] == ["30", "12.5"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    assert drawn(figure, tmp_path / "map.png")


def test_spacing_is_relative_to_powers_of_two(tmp_path):
    figure, axes = lp.plot.spacing("e4m3fn", "bfloat16")
    first, second = axes.lines
    assert (first.get_label(), second.get_label()) == ("e4m3fn", "bfloat16")
    x, y = first.get_xdata(), first.get_ydata()
    assert (x[0], y[0]) == (2.0**-9, 1.0)  # subnormal
    assert list(y[x >= 2.0**-6]) == [2.0**-3] * 16
    assert x[-1] == 448
    assert second.get_ydata()[-1] == 2.0**-7
    assert drawn(figure, tmp_path / "spacing.png")
    with pytest.raises(ValueError, match="at least one format"):
        lp.plot.spacing()


def test_staircases_have_the_values_as_steps(tmp_path):
    figure, axes = lp.plot.staircase("e2m1fn", "toward_zero")
    identity, steps = axes.lines
    x, y = np.asarray(steps.get_xdata()), np.asarray(steps.get_ydata())
    assert set(y.tolist()) == {float(value) for value in lp.format("e2m1fn").values()}
    assert np.all(np.abs(y) <= np.abs(x))
    assert np.array_equal(np.asarray(identity.get_ydata()), x)
    assert drawn(figure, tmp_path / "staircase.png")
    _, axes = lp.plot.staircase("bfloat16", "stochastic", limit=1.0)
    assert axes.lines[1].get_marker() == "."
    _, axes = lp.plot.staircase("uint4")
    assert min(axes.lines[1].get_xdata()) == 0
    with pytest.raises(ValueError, match="rounding mode"):
        lp.plot.staircase("e2m1fn", "sideways")


@pytest.mark.parametrize("picture", ["number-line", "spacing", "staircase"])
def test_command_writes_a_picture(picture, tmp_path, capsys):
    path = tmp_path / "picture.png"
    assert main(["plot", picture, "e3m2", "--out", str(path)]) == 0
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out == f"wrote {path}\n"


def test_command_refuses_what_no_picture_shows(capsys):
    assert main(["plot", "number-line", "e3m2", "e2m1"]) == 2
    assert "number-line shows one format, got e3m2 e2m1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["e2m1fn", "e4m3fn", "binary64", "uint8", "int8", "e8m0fnu", "binary8p1se"]
)
def test_notebooks_show_a_number_line(name):
    fmt = lp.format(name)
    page = ElementTree.fromstring(fmt._repr_html_())
    path, axis = page.findall("svg/path")
    marks = re.findall(r"M(\S+) \d+v-\d+", path.get("d"))
    left, right = re.fullmatch(r"M(\d+) \d+H(\d+)", axis.get("d")).groups()
    assert all(float(left) <= float(x) <= float(right) for x in marks)
    texts = [text.text for text in page.findall("svg/text")]
    assert f"{float(fmt.max):.4g}" in texts
    if "values" in texts[-1]:
        assert len(marks) == len(fmt.values())
    else:
        assert name == "binary64"
        assert 100 < len(marks) < 500
    assert name in page.find("table").itertext()
    assert ("0" in texts) == (name != "e8m0fnu")


@pytest.mark.parametrize("name", ["e12m3", "e20m3", "binary16p1se"])
def test_beyond_float64_notebooks_show_exact_ends_and_figures_refuse(name, capsys):
    fmt = lp.format(name)
    page = ElementTree.fromstring(fmt._repr_html_())
    texts = [text.text for text in page.findall("svg/text")]
    (largest,) = [line for line in str(fmt).splitlines() if line.startswith("max ")]
    assert largest.split()[-1] in texts  # as str shows it
    assert f"-{largest.split()[-1]}" in texts
    for picture in ("number-line", "spacing", "staircase"):
        if picture == "number-line" and fmt.bits > 16:
            continue
        assert main(["plot", picture, name]) == 2
        message = f"values that float64 holds, unlike those of {name}"
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="values that float64 holds"):
        lp.plot.exponents({0: 1}, format=fmt)


@pytest.mark.filterwarnings("error")
def test_spacing_of_the_whole_range_of_float64(tmp_path):
    figure, axes = lp.plot.spacing("binary64", "e4m3fn")
    assert drawn(figure, tmp_path / "spacing.png")
    assert axes.lines[0].get_ydata()[-1] == 2.0**-52
    left, right = axes.get_xlim()
    assert left <= 2.0**-1074
    assert 2.0**1023 <= right < float("inf")


# Names of each kind, and how many numbers a line of theirs has.
KINDS = {
    "posit8_0": 255,
    "posit4": 15,
    "ternary": 3,
    "int_bits(3)": 8,
    "mxfp4": 15,
    "msfp12": 15,
    "nvfp4": 15,
    "int4": 16,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_a_number_line(name):
    _, axes = lp.plot.number_line(name)
    (marks,) = axes.collections
    assert len(marks.get_positions()) == KINDS[name]
    assert axes.get_title() == f"{name}: {KINDS[name]} values"
    blocks = is_block_name(name)
    assert ("in units of the block's scale" in axes.get_xlabel()) == blocks
    page = ElementTree.fromstring(any_format(name)._repr_html_())
    strokes = re.findall(r"M\S+ \d+v-\d+", page.find("svg/path").get("d"))
    assert len(strokes) == KINDS[name]
    texts = [text.text for text in page.findall("svg/text")]
    largest, least = (f"{float(x):.4g}" for x in ends(name))
    assert {largest, least} <= set(texts)
    assert ("in units of the block's scale" in texts[-1]) == blocks
    assert name in page.find("table").itertext()


def ends(name):
    line = line_of(name)
    return line.largest, line.least


def test_spacing_of_posits_tapers():
    _, axes = lp.plot.spacing("posit8", "ternary", "mxfp4")
    posit, ternary, block = axes.lines
    x, y = posit.get_xdata(), posit.get_ydata()
    target = lp.Posit(8)
    values = target.values()
    for begin, ratio in zip(x[:-1], y, strict=False):
        i = values.index(begin)
        if begin < target.max:
            assert ratio == (values[i + 1] - begin) / begin
    assert min(y) == target.eps
    assert y[0] > 1 > y[len(y) // 2]
    assert list(ternary.get_ydata()) == [1.0, 1.0]
    assert block.get_label() == "mxfp4 (in units of the block's scale)"
    with pytest.raises(ValueError, match="positive values; 2 levels has none"):
        lp.plot.spacing(lp.Levels([-2, -1]))


@pytest.mark.parametrize("name", ["posit6", "ternary", "int_bits(2)", "mxfp4"])
@pytest.mark.parametrize("mode", ["nearest_even", "toward_zero", "stochastic"])
def test_staircases_of_every_kind_have_the_values_as_steps(name, mode):
    _, axes = lp.plot.staircase(name, mode)
    y = np.asarray(axes.lines[1].get_ydata())
    line = line_of(name)
    reached = [float(v) for v in line.values(100) if abs(v) <= line.positive(20)]
    assert set(y.tolist()) <= {float(value) for value in line.values(100)}
    steps = set(y.tolist())
    close = 1e-3 * float(line.positive(20))  # of zero: no sample may be there
    assert {v for v in reached if abs(v) > close} <= steps
    assert axes.get_title() == f"{name}, {mode}"


def test_levels_of_one_sign_have_pictures():
    levels = lp.Levels([-3.0, -2.5, -0.5])
    _, axes = lp.plot.staircase(levels)
    assert set(axes.lines[1].get_ydata()) == set(levels.values)
    page = ElementTree.fromstring(levels._repr_html_())
    path, axis = page.findall("svg/path")
    places = [float(x) for x in re.findall(r"M(\S+) \d+v", path.get("d"))]
    left, right = re.fullmatch(r"M(\d+) \d+H(\d+)", axis.get("d")).groups()
    assert places == sorted(places)
    assert places[0] == float(left)
    assert places[-1] < float(right)


def test_notebooks_thin_out_many_values():
    page = ElementTree.fromstring(lp.Posit(16)._repr_html_())
    strokes = re.findall(r"M(\S+) \d+v-(\d+)", page.find("svg/path").get("d"))
    assert 400 < len(strokes) <= 602
    assert sum(height == "18" for _, height in strokes) == 1  # zero
    assert page.findall("svg/text")[-1].text.startswith("every 128th value")


@pytest.mark.parametrize("picture", ["number-line", "spacing", "staircase"])
@pytest.mark.parametrize("name", ["posit8", "ternary", "int_bits(2)", "mxfp4"])
def test_command_draws_every_kind(picture, name, tmp_path, capsys):
    path = tmp_path / "picture.png"
    assert main(["plot", picture, name, "--out", str(path)]) == 0
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_levels_have_names_where_formats_are_named():
    for name in ("binary", "ternary", "int_bits(2)", "symmetric_int(16)"):
        levels = any_format(name)
        assert levels.name == name
        assert any_format(levels.name) == levels
        rounding = lp.TableRounding(levels)
        assert repr(rounding) == f"TableRounding({name!r})"
        assert eval(repr(rounding), vars(lp)) == rounding
    for values in ([5.0], [-1, 0], [-1, 0, 1, 2], [-2, 1], [-2, -1, 0, 1, 5]):
        assert lp.Levels(values).name is None
    x = np.linspace(-2, 2, 9)
    given, made = (
        lp.round(torch.from_numpy(x), q) for q in ("ternary", lp.Levels.ternary())
    )
    assert torch.equal(given, made)
    precision = lp.Precision(weight="int_bits(2)")
    assert lp.Precision.from_json(precision.to_json()) == precision
    with pytest.raises(ValueError, match="'ternary' are levels, whose set stands"):
        lp.format("ternary")
    shown = str(lp.Levels.int_bits(6)).splitlines()[3]
    assert shown.endswith("  -32, -31, -30, -29, ..., 28, 29, 30, 31")
