"""The faces of all results: a chart with titles, a page, a notebook cell, pictures; one registry, one list of
endings.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import normscope
from normscope.claims import Curve, Verdict, Verdicts, at_most, load
from normscope.core.errors import UsageError
from normscope.core.faces import SUFFIXES, Shown, show
from normscope.findings.review import review

alt = pytest.importorskip("altair")

MAGIC = {".html": b"<!doctype html>", ".png": b"\x89PNG", ".svg": b"<svg", ".pdf": b"%PDF-"}
#: What may stand in a page though it looks like an address: names of formats, and words of the chart library.
NAMES = re.compile(r"https?://(www\.w3\.org/|vega\.github\.io/(schema|editor)|github\.com/vega/)")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(12, 6), torch.arange(12) % 3


def small(width, depth):
    return nn.Sequential(nn.Linear(6, width), *[nn.Linear(width, width) for _ in range(depth)], nn.Linear(width, 3))


def tracked():
    model, (x, y) = net(), batch()
    tracker, optimizer = normscope.Tracker(model, every=2), torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return tracker


def verdict() -> Verdict:
    load()
    curves = (Curve("gap", [1, 2], [3, 4]), Curve("gap", [1, 2], [5, 6], "control"))
    return Verdict("daneshmand2021/fig3b", "quick", 0, "holds", "holds", "fails", (at_most("x", 1, 2),), curves=curves)


MAKE = {
    "Profile": lambda: normscope.probe(net(), *batch(), loss="cross_entropy"),
    "Diagnosis": lambda: normscope.diagnose(net(), *batch(), trial=False),
    "Spectrum": lambda: normscope.spectrum(normscope.fisher(net(), batch()[0]), k=3, density=True),
    "Sharpness": lambda: normscope.sharpness(net(), *batch(), loss="cross_entropy", descent=2, what_if=True),
    "Rates": lambda: normscope.rates(net(), *batch(), optimizer="momentum", steps=5, budget=40),
    "Transfer": lambda: normscope.transfer(
        small, *batch(), widths=(4, 8), depths=(1, 2), seeds=1, steps=3, budget=12, executor=ThreadPoolExecutor(1)
    ),
    "RateRange": lambda: normscope.rate_range(net(), *batch(), steps=12),
    "Overfit": lambda: normscope.overfit(net(), *batch(), steps=12, rate=0.01),
    "Similarity": lambda: normscope.similarity(net(), batch()[0]),
    "Race": lambda: normscope.race(
        {"none": net(), "batch": net()}, batch(), batch(), batch=4, epochs=2, seeds=2, geometry=2
    ),
    "Tracker": tracked,
    "Review": lambda: review(tracked().run()),
    "Verdict": verdict,
    "Verdicts": lambda: Verdicts((verdict(),)),
}


@pytest.fixture(scope="module", params=MAKE)
def result(request):
    return MAKE[request.param]()


def sheet(result):
    return show(result.face, result)


def titles(spec) -> list:
    """The titles of all axes."""
    if isinstance(spec, list):
        return [t for part in spec for t in titles(part)]
    if not isinstance(spec, dict):
        return []
    own = [c["title"] for k, c in spec.get("encoding", {}).items() if k in ("x", "y") and "axis" in c]
    return own + [t for part in spec.values() for t in titles(part)]


def test_every_result_that_shows_itself_is_here():
    assert all(getattr(normscope, name) for name in normscope.__all__)  # imports them
    assert {c.__name__ for c in Shown.__subclasses__()} == set(MAKE)


def test_a_chart_is_altair_s_with_a_title_on_every_axis_and_every_panel(result):
    chart = result.chart()
    assert isinstance(chart, alt.TopLevelMixin)
    spec = chart.to_dict(validate=True)
    panels = spec.get("concat") or spec["vconcat"]
    assert panels
    assert all(panel["title"]["text"] for panel in panels)
    assert titles(panels)
    assert all(titles(panels))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_result_is_saved_as_its_ending_says(result, suffix, tmp_path):
    result.save(tmp_path / f"a{suffix}")
    written = (tmp_path / f"a{suffix}").read_bytes()
    assert written.startswith(MAGIC[suffix])
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


def test_a_page_names_no_address_that_a_browser_would_fetch(result, tmp_path):
    result.save(tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "default-src &#39;none&#39;" in page
    assert [a for a in re.findall(r"https?://[^\s\"'`<>)]+", page) if not NAMES.match(a)] == []
    words = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"<(link|iframe|base|script)\b|<img[^>]*\bsrc=\"(?!data:)", words)


def test_every_chart_of_a_page_has_a_description_and_its_numbers_in_a_table(result, tmp_path):
    result.save(tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    figures = re.findall(r"<figure.*?</figure>", page, re.S)
    assert len(figures) == len(data["charts"]) > 0
    for figure in figures:
        assert re.search(r'role="img" aria-label="[^"]{20,}"', figure)
        assert len(re.findall(r"<tr", figure)) > 1
    assert all(spec["description"] for spec in data["charts"].values())


def test_every_chart_of_a_page_is_valid_vega_lite(result):
    for chart in sheet(result).charts.values():
        alt.Chart.from_dict(chart.plain, validate=True)


def test_a_notebook_cell_has_pictures_and_no_script(result):
    cell = result._repr_html_()
    assert "<script" not in cell
    assert '<img alt="' in cell
    assert 'src="data:image/svg+xml;base64,' in cell


def test_another_ending_is_refused_with_those_that_work(tmp_path):
    with pytest.raises(UsageError, match=r"\.html, \.png, \.svg, \.pdf") as told:
        tracked().save(tmp_path / "a.jpg")
    assert "a.jpg" in str(told.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_told_and_nothing_is_written(result, tmp_path):
    with pytest.raises(UsageError, match="must exist"):
        result.save(tmp_path / "gone" / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_picture_of_no_numbers_is_refused_and_leaves_nothing(tmp_path):
    empty = Verdict("daneshmand2021/fig3b", "quick", 0, "holds", "holds", "fails")
    for draw in (empty.chart, lambda: empty.save(tmp_path / "a.png")):
        with pytest.raises(UsageError, match="none"):
            draw()
    assert not list(tmp_path.iterdir())


def test_a_race_and_verdicts_are_still_kept_as_files_that_they_read_again(tmp_path):
    race, verdicts = MAKE["Race"](), Verdicts((verdict(),))
    race.save(tmp_path / "race.zip")
    verdicts.save(tmp_path / "verdicts.jsonl")
    assert type(race).load(tmp_path / "race.zip").table.equals(race.table)
    assert Verdicts.load(tmp_path / "verdicts.jsonl")[0].claim == verdicts[0].claim


def test_without_the_extra_a_notebook_shows_the_repr_and_a_chart_says_what_to_install(monkeypatch):
    found = verdict()
    for name in ("altair", "jinja2", "vl_convert"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    assert found._repr_html_() is None
    with pytest.raises(ImportError, match=r"pip install 'normscope\[report\]'"):
        found.chart()


def test_a_norm_has_one_colour_whichever_others_are_drawn():
    from normscope.report.grammar import Colour

    one, two = (Colour("norm", names).channel()["scale"]["domain"] for names in (["none", "batch"], ["layer", "none"]))
    assert one == two


def test_colours_of_names_go_by_their_place():
    from normscope.report.grammar import Colour

    assert Colour("model", ["b", "a"]).channel()["scale"]["domain"] == ["b", "a"]


# The command line

COMMANDS = {
    "diagnose": ["mlp:depth=2,width=8", "-n", "16", "--trial", "none"],
    "predict": ["mlp:depth=3,width=16", "-n", "6"],
    "race": [
        "mlp:depth=2,width=8",
        "--cures",
        "none,bn",
        "--samples",
        "64",
        "--epochs",
        "1",
        "--seeds",
        "1",
        "-n",
        "32",
    ],
    "sharpness": ["mlp:depth=2,width=8", "-n", "16"],
    "sweep": ["--task", "predict", "--depth", "2,3", "--width", "8", "--workers", "1"],
    "transfer": [
        "mlp:",
        "--width",
        "4,8",
        "--depth",
        "1,2",
        "--seeds",
        "1",
        "--steps",
        "3",
        "-n",
        "16",
        "--workers",
        "1",
    ],
    "report": ["losses.csv"],
    "verify": ["daneshmand2021/vanilla-relu", "--workers", "1"],
}
TRAIN = """
import torch
model = torch.nn.Linear(6, 3)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(3):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(torch.randn(8, 6)), torch.randint(0, 3, (8,))).backward()
    optimizer.step()
"""


@pytest.mark.parametrize("command", [*COMMANDS, "why"])
def test_a_command_writes_a_page_and_pictures(command, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "losses.csv").write_text("step,loss\n0,2\n1,1\n")
    (tmp_path / "train.py").write_text(TRAIN)
    files = [word for kind in ("html", "png", "svg", "pdf") for word in (f"--{kind}", f"a.{kind}")]
    code, out, err = run(command, *files, *COMMANDS.get(command, ["--trial", "none", "train.py"]))
    assert code == 0, err
    for suffix, magic in MAGIC.items():
        assert (tmp_path / f"a{suffix}").read_bytes().startswith(magic)
        assert f"a{suffix}" in out


@pytest.mark.parametrize("command", [*COMMANDS, "why"])
def test_a_picture_with_another_ending_is_misuse_told_before_the_work(command, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(command, "--svg", "a.png", *COMMANDS.get(command, ["train.py"]))
    assert (code, out, list(tmp_path.iterdir())) == (2, "", [])
    assert "a.svg" in err
