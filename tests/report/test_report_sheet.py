"""The page for races, sweeps and verdicts: what it says, and that nothing foreign runs in it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

alt = pytest.importorskip("altair")
pl = pytest.importorskip("polars")

from normscope.report.sheet import Chart, Section, Sheet, Table, render  # noqa: E402


def sheet():
    frame = pl.DataFrame({"x": [0.0, 1.0], "y": [1.0, 2.0], "who": ["a", "</script><b>"]})
    chart = alt.Chart(frame).mark_line().encode(x="x:Q", y="y:Q", color="who:N")
    table = Table(["variant", "loss"], [["plain", "0.10"], ["<img src=x>", "2.30"]], marks=["good", "bad"])
    return Sheet(
        "Who wins?",
        [
            Section("Result", "See `plain`.", {"batch": 128}, table, [Chart("Loss", chart, "Lower is better.", "nat")]),
            Section("More", folded=True, charts=[Chart("Again", chart, height=100)], notes=["one note"]),
        ],
        "plain wins",
    )


@pytest.fixture(scope="module")
def page():
    return render(sheet())


def test_text_is_escaped_and_code_is_code(page):
    assert "<img src=x>" not in page
    assert "</script><b>" not in page
    assert "See <code>plain</code>." in page
    for text in ("Who wins?", "plain wins", "batch", "128", "Lower is better.", "nat", "one note"):
        assert text in page


def test_numbers_stand_to_the_right_and_rows_carry_their_marks(page):
    assert '<td class="n">0.10</td>' in page
    assert re.search(r'<tr class="bad"><td>&lt;img', page)


def test_every_chart_has_its_specification_and_both_themes(page):
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert set(data["charts"]) == set(re.findall(r'data-chart="(\w+)"', page))
    assert [c["height"] for c in data["charts"].values()] == [260, 100]
    assert set(data["config"]) == {"light", "dark"}


def test_a_page_without_charts_carries_no_scripts():
    assert "<script" not in render(Sheet("Words", [Section("One", "only prose")]))


def test_saved_verdicts_make_their_page_in_a_fresh_process(tmp_path):
    results = Path(__file__).parents[2] / "results" / "verify.jsonl"
    code = "import sys; from normscope.claims import Verdicts; Verdicts.load(sys.argv[1]).to_html(sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, results, tmp_path / "page.html"], check=True)
    assert "Provably Avoids Rank Collapse" in (tmp_path / "page.html").read_text()
