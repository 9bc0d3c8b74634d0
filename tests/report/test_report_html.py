"""The HTML page, the notebook fragment and the picture."""

import base64
import hashlib
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import altair as alt
import pytest
from test_report_content import aligned, collapse, content, deep, facts, one, quiet, records, three

from normscope.core.errors import UsageError
from normscope.report import _charts, _frame, html

EVIL = "</script><script>alert(1)</script>"


class Page(HTMLParser):
    """What a page loads, and its text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads, self.scripts, self.text, self.tags, self._inside = [], [], "", [], ""
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.loads += [found[k] for k in ("src", "href", "srcset", "data", "action") if k in found]
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]
        if tag == "script":
            self.scripts.append([found.get("type", ""), ""])
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1][1] += data
        elif self._inside != "style":
            self.text += data

    @property
    def data(self) -> dict:
        (found,) = [text for kind, text in self.scripts if kind == "application/json"]
        return json.loads(found, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def marks(spec: dict) -> list[dict]:
    """The rows that a chart has of its own."""
    return [row for layer in spec["layer"] for row in layer.get("data", {}).get("values", [])]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(html.render(three()))


def test_a_page_of_three_models_and_300_layers_is_below_2_5_megabytes():
    assert len(html.render(deep()).encode()) < 2.5e6


def test_a_page_loads_nothing(page):
    assert page.loads == []
    assert "default-src 'none'" in page.policy


def test_the_chart_library_is_there_once(page):
    assert sum(len(text) > 200_000 for _, text in page.scripts) == 1


def test_the_policy_allows_exactly_the_scripts_of_the_page(page):
    codes = [text for kind, text in page.scripts if not kind]
    hashes = {f"sha256-{base64.b64encode(hashlib.sha256(c.encode()).digest()).decode()}" for c in codes}
    assert hashes == set(re.findall(r"sha256-[\w+/=]+", page.policy))


def test_findings_stand_before_charts(page):
    text = html.render(three())
    assert (
        text.index('id="findings"') < text.index('id="charts"') < text.index('id="tables"') < text.index('id="facts"')
    )


@pytest.mark.parametrize(
    "words", ["At risk: the batch collapses", "NS101", "Rank collapse", "layer 11, net.33", "0.1.0"]
)
def test_a_page_says(page, words):
    assert words in page.text


def test_names_are_escaped_everywhere():
    found = [tuple(EVIL if isinstance(v, str) and i not in (1, 2, 6) else v for i, v in enumerate(collapse(EVIL)))]
    evil = content(records(EVIL, "plain", 2, names=EVIL), found, (facts(EVIL, EVIL, notes=[EVIL], mode=EVIL),), EVIL)
    for render in (html.render, html.fragment):
        text = render(evil)
        page = Page(text)
        assert EVIL not in text
        assert "alert(1)" in page.text
        assert not [code for kind, code in page.scripts if not kind and code.startswith("alert")]


def test_backticks_become_code():
    found = list(collapse("m"))
    found[-1] = "Call `cure(model, '<b>')` first."
    text = html.render(content(records("m", "plain", 2), [tuple(found)], ()))
    assert "<code>cure(model, &#39;&lt;b&gt;&#39;)</code>" in text


def test_numbers_that_are_not_finite_survive():
    rows = [
        ("m", "measured", 0, layer, "a", 0, "ReLU", signal, metric, value, 0.0)
        for signal, metric in (("activation", "mean_norm"), ("gradient", "gradient_norm"), ("activation", "dead_units"))
        for layer, value in enumerate((1.0, math.nan, math.inf, 0.0, -math.inf, 2.0))
    ]
    page = Page(html.render(content(rows, [], ())))
    assert page.data["values"]["mean_norm"] == [1, "x", "x", 0, "x", 2]
    crosses = marks(page.data["charts"]["mean_norm"])
    assert [(r["layer"], r["value"]) for r in crosses] == [(1, "nan"), (2, "inf"), (3, "0"), (4, "-inf")]
    assert "nan" in page.text


def test_only_nan_gives_a_page():
    rows = [("m", "measured", 0, i, "a", 0, "", "activation", "participation_rank", math.nan, 0.0) for i in range(3)]
    assert html.render(content(rows, [], ()))
    assert html.fragment(content(rows, [], ()))


def test_no_rows_give_a_page_without_charts():
    page = Page(html.render(content([], [], (facts("m", "Nothing was measured."),))))
    assert "Nothing was measured." in page.text
    assert "figure" not in page.tags


def test_no_findings_is_said():
    assert "No findings: quiet." in Page(html.render(quiet())).text


def test_a_metric_that_does_not_apply_has_no_chart(page):
    data = Page(html.render(content([r for r in records("m", "plain", 3) if r[8] != "dead_units"], [], ()))).data
    assert "dead_units" not in data["charts"]
    assert "participation_rank" in data["charts"]


def test_specs_are_valid_vega_lite():
    for chart in _charts.charts(_charts.Scene.of(one())):
        alt.LayerChart.from_dict(chart.spec, validate=True)


def test_a_predicted_profile_is_dashed():
    both = content(records("m", "plain", 8) + records("m", "plain", 8, source="predicted"), [], ())
    data = Page(html.render(both)).data
    assert set(data["places"]["source"]) == {"measured", "predicted"}
    assert "strokeDash" in json.dumps(data["charts"]["participation_rank"]["layer"][-2]["encoding"])


def test_codes_that_would_overlap_stand_in_rows():
    found = [collapse("a", 3), collapse("b", 3), collapse("c", 4), collapse("c", 31)]
    rows = [row for m in "abc" for row in records(m, "plain")]
    spec = Page(html.render(content(rows, found, ()))).data["charts"]["participation_rank"]
    codes = {(row["layer"], row["top"]) for row in marks(spec) if "top" in row}
    assert sorted(codes) == [(3, -21), (3, -8), (4, -34), (31, -8)]


def test_two_models_of_one_report_keep_their_colours_in_every_chart(page):
    domains = {
        json.dumps(layer["encoding"]["color"]["scale"]["domain"])
        for chart in page.data["charts"].values()
        for layer in chart["layer"]
        if layer.get("encoding", {}).get("color", {}).get("field") == "model"
    }
    assert domains == {json.dumps(list(three().models))}


def test_a_fragment_has_no_script_and_is_small():
    text = html.fragment(three())
    page = Page(text)
    assert page.scripts == []
    assert all(load.startswith("data:image/svg+xml;base64,") for load in page.loads)
    assert len(text) < 250_000
    assert "NS101" in page.text


def test_a_picture_is_a_png(tmp_path):
    path = html.to_png(one(), tmp_path / "panel.png", charts=("participation_rank",), scale=1)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_unknown_charts_is_refused(tmp_path):
    with pytest.raises(UsageError, match="participation_rank"):
        html.to_png(one(), tmp_path / "panel.png", charts=("participation_rnak",))
    assert not list(tmp_path.iterdir())


def test_without_the_extra_the_pip_line_is_shown():
    code = (
        "import sys; sys.modules['altair'] = None\n"
        "from normscope.core.errors import UsageError\n"
        "try:\n    import normscope.report.html\n"
        "except ImportError as error:\n    assert isinstance(error, UsageError); print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'normscope[report]'" in said


def test_findings_of_other_metrics_are_listed_but_not_marked():
    found = list(aligned("m"))
    found[6], found[4] = "something_else", None
    page = Page(html.render(content(records("m", "plain", 3), [tuple(found)], ())))
    assert "the whole model" not in page.text  # its module is known
    assert "net.36" in page.text


def test_the_chart_library_is_made_once_and_kept_and_a_torn_file_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = _frame.bundle.__wrapped__()
    (kept,) = (tmp_path / "normscope").iterdir()
    assert kept.read_text() == made
    kept.write_text("let kept = 1;" + _frame._END)
    assert _frame.bundle.__wrapped__() == "let kept = 1;" + _frame._END
    kept.write_text(made[:1000])
    assert _frame.bundle.__wrapped__() == made
