"""The report page: whole, self-contained, readable, and with the right numbers."""

import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from measure.small_training import batches, loss_of

import lowprec as lp
from lowprec.measure import Ledger, RoundoffMonitor, attribute, write_report
from lowprec.measure._charts import Series, line_chart
from lowprec.measure._fields import decibel_color, share_color
from lowprec.measure._findings import findings
from lowprec.measure._svg import Scale, number, share

VOID = {"meta", "br", "rect", "line", "circle", "path"}
NASTY = '<b title="&">'


class Page(HTMLParser):
    """What a page consists of; fails if its tags are not nested."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.text = [], [], {}, []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        for key, value in attrs:
            if key == "id":
                assert value not in self.ids
                self.ids[value] = tag
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)

    @property
    def visible(self):
        return " ".join(self.text)


@pytest.fixture(scope="module")
def run():
    """A run of four measured steps, and what is told about it."""
    torch.manual_seed(3)
    net = torch.nn.Sequential()
    net.add_module("body", torch.nn.Linear(6, 16))
    net.add_module("norm", torch.nn.LayerNorm(16))
    net.add_module(NASTY, torch.nn.Linear(16, 3))
    precision = lp.Precision(
        input="e4m3fn", weight="e4m3fn", grad_output="e5m2", accumulator="e8m7"
    )
    policy = lp.Policy({"body": precision, "[<]b title*": precision})
    lp.nn.convert_(net, policy)
    optimizer = lp.optim.SGD(net.parameters(), lr=0.1, param_format="bfloat16")
    monitor = RoundoffMonitor(net, optimizer, layers=True)
    for x, y in batches(4):
        optimizer.zero_grad()
        monitor.backward(loss_of(x, y))
        optimizer.step()
    return monitor, attribute(net, policy, loss_of(x, y))


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    monitor, table = run
    path = tmp_path_factory.mktemp("report") / "run.html"
    written = monitor.report(
        path,
        title=f"Run {NASTY}",
        configuration={"data": NASTY},
        bounds={"s_norm": {"u ||w||": 0.05}, "r_norm": [4.0, 3.0, 2.0, 1.0]},
        attribution=table,
    )
    assert written == path
    return path


def test_the_page_is_whole_and_needs_nothing_else(page):
    text = page.read_text(encoding="utf-8")
    found = Page(text)
    assert found.count("script") == found.count("link") == found.count("img") == 0
    assert "url(" not in text
    assert "http" not in text.replace('http-equiv="', "")
    for tag, attributes in found.tags:
        assert "src" not in attributes
        assert not any(key.startswith("on") for key in attributes)
        if tag == "a":
            assert attributes["href"].removeprefix("#") in found.ids
    assert [p.name for p in page.parent.iterdir()] == ["run.html"]


def test_every_picture_says_what_it_is(page):
    found = Page(page.read_text(encoding="utf-8"))
    pictures = [a for tag, a in found.tags if tag == "svg"]
    assert len(pictures) == 6 + 3 + 1 + 1 + 1  # charts, maps, legend, grid, bars
    for attributes in pictures:
        title, description = attributes["aria-labelledby"].split()
        assert found.ids[title] == "title"
        assert found.ids[description] == "desc"
        assert attributes["role"] == "img"
    assert found.count("details") >= 5  # their numbers as tables


def test_names_and_texts_are_not_taken_for_tags(page):
    text = page.read_text(encoding="utf-8")
    assert NASTY not in text
    assert "&lt;b title" in text
    assert Page(text).count("b") == 6  # the figures at the top
    assert f"Run {NASTY}" in Page(text).visible


def test_all_that_was_measured_is_there(run, page):
    monitor, table = run
    visible = Page(page.read_text(encoding="utf-8")).visible
    for heading in ("Findings", "Configuration", "Steps", "Layers", "Exponents",
                    "Attribution", "Coverage", "Environment"):  # fmt: skip
        assert heading in visible
    for name in ("loss", "r_norm", "s_norm", "stagnation"):
        for value in monitor.ledger[name]:
            assert number(value) in visible
    output = monitor.layers.statistics("body", "output")
    assert f"{number(output.signal_to_noise)} dB" in visible
    assert share(output.swamped / output.additions) in visible
    assert f"{100 * table['body'].alone_share:.1f} %" in visible
    assert "not emulated" in visible
    assert "u ||w||" in visible
    assert "bound of r_norm" in visible
    assert torch.__version__ in visible
    assert "lr=0.1" in visible
    assert "Precision(input='e4m3fn'" in visible


def test_a_context_tells_its_policy_and_coverage(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Tanh())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.25)
    policy = lp.Policy(
        {"*": lp.Precision(input="e4m3fn")},
        operations={"tanh": lp.Precision(elementwise="bfloat16")},
    )
    monitor = RoundoffMonitor(net, optimizer)
    context = lp.emulate(policy, net)
    ((x, y),) = batches(1)
    with context:
        monitor.backward(loss_of(x, y))
    optimizer.step()
    path = monitor.report(
        tmp_path / "run.html", policy=policy, coverage=context.coverage()
    )
    visible = Page(path.read_text(encoding="utf-8")).visible
    for text in ("SGD: lr=0.25", "precision of '*'", "precision of tanh()",
                 "Precision(elementwise='bfloat16')", "cross_entropy"):  # fmt: skip
        assert text in visible


def test_a_ledger_alone_makes_a_page(tmp_path):
    ledger = Ledger()
    empty = write_report(tmp_path / "empty.html", ledger).read_text(encoding="utf-8")
    assert "No step was measured." in Page(empty).visible
    for k in range(5000):
        ledger.append({"step": k, "loss": 1 / (k + 1), "r_norm": 0.0, "s_norm": None})
    path = write_report(tmp_path / "run.html", ledger)
    assert path.stat().st_size < 100_000
    found = Page(path.read_text(encoding="utf-8"))
    assert "one step in 42" in found.visible
    assert "no positive value" in found.visible  # zero has no logarithm
    ledger.append({"loss": math.inf, "r_norm": math.nan, "stagnation": 0.0})
    bound = lp.theory.sgd.bound_running_min(C_0=1.0, eta=0.1, R=0.1, S=0.01, L=1, p=1)
    broken = write_report(path, ledger, bounds={"loss": bound}).read_text("utf-8")
    assert "NaN" not in broken.replace("nan", "NaN")
    assert "bound of loss" in Page(broken).visible
    assert "5000 measured steps, 0 to 4999." in found.visible


def test_bounds_of_nothing_are_refused_and_the_old_page_stays(tmp_path):
    ledger = Ledger()
    ledger.append({"step": 0, "r_norm": 0.5})
    path = tmp_path / "run.html"
    path.write_text("before")
    with pytest.raises(ValueError, match="no chart shows g: bounds are for loss, "):
        write_report(path, ledger, bounds={"g": 1.0})
    with pytest.raises(ValueError, match="the bound of r_norm must be a number or 1"):
        write_report(path, ledger, bounds={"r_norm": [1.0, 2.0]})
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_lines_go_through_their_points():
    x, y = [0.0, 1.0, 2.0, 3.0], [1.0, 10.0, math.nan, 100.0]
    text = line_chart("c", "t", "d", [Series("y", x, y, "#000000")], logarithmic=True)
    (path,) = re.findall(r'<path d="M([^"]*)"', text)
    (dot,) = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', text)
    points = [tuple(map(float, p.split())) for p in path.split("L")]
    points.append(tuple(map(float, dot)))
    (x0, y0), (x1, y1), (x3, y3) = points
    assert x3 - x1 == pytest.approx(2 * (x1 - x0), abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y3, abs=0.2)  # decades are alike
    assert y0 > y1 > y3


def test_long_lines_keep_their_extremes():
    y = [0.5] * 9999
    y[1234], y[7000] = 0.0, 1.0
    text = line_chart("c", "t", "d", [Series("y", range(9999), y, "#000000")])
    (path,) = re.findall(r'<path d="M([^"]*)"', text)
    heights = [float(p.split()[1]) for p in path.split("L")]
    assert len(heights) <= 400
    assert min(heights) < heights[0] < max(heights)


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0.013, 0.9), (1e-9, 3e5), (1.0, 2.5)])
def test_ticks_are_round_and_inside(low, high, logarithmic):
    scale = Scale(low, high, 0.0, 100.0, logarithmic)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 12
    for tick in ticks:
        assert -1e-6 <= scale(tick) <= 100 + 1e-6
        assert float(f"{tick:.2g}") == pytest.approx(tick)


def test_numbers_and_colours():
    assert [number(x) for x in (0.0, 1234.0, 1e-7, math.inf, math.nan)] == [
        "0",
        "1.23e3",
        "1e-7",
        "∞",
        "none",
    ]
    assert [share(x) for x in (0.0, 1e-5, 0.0123, 1.0)] == [
        "0",
        "<0.1 %",
        "1.23 %",
        "100 %",
    ]
    assert decibel_color(-5.0) == decibel_color(0.0) == ("#b2182b", "#ffffff")
    assert decibel_color(math.inf) == decibel_color(150.0)
    assert decibel_color(math.nan)[0] == "#ffffff"
    assert share_color(1.0) == ("#b2182b", "#ffffff")


def test_findings_name_what_stands_out(run):
    monitor, _ = run
    layers = monitor.layers
    swamped = {
        name: layers.statistics(*name).swamped / layers.statistics(*name).additions
        for name in layers.measured
        if layers.statistics(*name).additions
    }
    (name, role), most = max(swamped.items(), key=lambda item: item[1])
    lines = findings(monitor.ledger, layers)
    assert any(share(most) in line and name in line and role in line for line in lines)
    stuck = Ledger()
    for _ in range(5):
        stuck.append({"s_bias": 0.99, "r_bias": 0.2, "stagnation": 0.75})
    text = " ".join(findings(stuck, None))
    assert "update errors s_k add up" in text
    assert "gradient errors" not in text
    assert "75 % of the parameters did not move" in text
    assert findings(Ledger(), None) == []
    few = Ledger()
    for _ in range(4):
        few.append({"r_bias": 0.9})
    assert findings(few, None) == []


CHROMIUM = next(
    filter(
        None,
        map(
            shutil.which,
            ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
        ),
    ),
    None,
)


def browse(path, *options):
    command = [CHROMIUM, "--headless", "--disable-gpu", "--hide-scrollbars", *options]
    if os.geteuid() == 0:
        command.append("--no-sandbox")
    result = subprocess.run(
        [*command, path.as_uri()], capture_output=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_a_browser_shows_the_page(page, tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    document = browse(page, profile, "--dump-dom")
    ours = page.read_text(encoding="utf-8")
    for tag in ("<svg", "<section", "<table", "<rect", "<path"):
        assert document.count(tag) == ours.count(tag)  # nothing was repaired
    picture = tmp_path / "run.png"
    browse(page, profile, f"--screenshot={picture}", "--window-size=1280,3000")
    with pillow.open(picture) as image:
        assert image.size == (1280, 3000)
        colours = dict(
            (colour, count) for count, colour in image.convert("RGB").getcolors(1 << 24)
        )
    white, ink = (255, 255, 255), (27, 31, 36)
    assert colours[white] > 1_000_000
    assert colours[ink] > 1_000
    lines = sum(colours.get(c, 0) for c in ((0, 114, 178), (213, 94, 0)))
    assert lines > 2_000
    fields = {c for c, n in colours.items() if n > 1_500} - {white, (246, 247, 249)}
    assert len(fields) >= 6  # of the heat maps and histograms
