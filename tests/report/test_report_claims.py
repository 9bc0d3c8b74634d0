"""The page of verdicts: bands in words, axes that hold what they must, figures with the series as colour."""

import json
from dataclasses import replace

import pytest

from normscope import claims
from normscope.claims import Axes, Curve, Verdict, Verdicts, at_most, between, near
from normscope.core.words import duration
from normscope.report.claims import band, charts, domain, page


@pytest.fixture(scope="module", autouse=True)
def papers():
    claims.load()


def verdict(*curves: Curve, claim: str = "daneshmand2021/fig3b") -> Verdict:
    return Verdict(claim, "quick", 0, "holds", "holds", "fails", (at_most("x", 1, 2),), curves=curves)


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (at_most("x", 1, 3), "≤ 3"),
        (between("x", 1, 0.5, 1.25), "0.5 to 1.25"),
        (near("x", 63, 63, 6e-9), "63 ± 6e-09"),
    ],
)
def test_a_band_is_said_so_that_its_ends_can_be_told_apart(reading, words):
    assert band(reading) == words


def test_an_axis_has_a_margin_round_all_points_in_its_own_scale():
    assert domain([1.0, 10.0, 101.0], [], False) == pytest.approx([-3, 105])
    assert domain([1.0, 10.0, 100.0], [], True) == pytest.approx([10**-0.08, 10**2.08])


def test_a_control_widens_an_axis_as_far_as_there_is_room():
    assert domain([1.0, 2.0], [2.4], False)[1] > 2.4
    assert domain([1.0, 2.0], [9.0], False)[1] < 2.1


def test_a_control_alone_makes_the_axis():
    assert domain([], [3.0, 4.0], False)[0] < 3 < 4 < domain([], [3.0, 4.0], False)[1]
    assert domain([], [], True) is None


def test_one_series_has_one_colour_in_all_its_roles():
    curves = [Curve("batch norm", [1, 2], [3, 4], role) for role in ("ours", "printed", "control")]
    (chart,) = charts(verdict(*curves))
    data = chart.spec["data"]["values"]
    assert {row["series"] for row in data} == {"batch norm"}
    assert {row["role"] for row in data} == {"ours", "printed", "control"}


def test_the_statement_stands_over_the_first_panel_only():
    first, second = charts(verdict(Curve("a", [1, 2], [3, 4], panel="one"), Curve("a", [1, 2], [3, 4], panel="two")))
    assert first.reading
    assert not second.reading


def test_an_axis_without_a_name_takes_the_panel_s():
    (chart,) = charts(verdict(Curve("a", [1, 2], [3, 4], panel="loss of the nets")))
    assert claims.CLAIMS["daneshmand2021/fig3b"].axes == Axes("epoch", "")
    assert "loss of the nets" in json.dumps(chart.spec)


def test_a_page_of_verdicts_shows_statement_number_and_band():
    v = verdict(Curve("a", [1, 2], [3, 4], panel="p"))
    text = page(Verdicts((v, replace(v, claim="daneshmand2021/fig4", curves=(), readings=()))))
    assert "≤ 2" in text
    assert claims.CLAIMS["daneshmand2021/fig4"].statement in text


def test_durations_are_said_in_the_unit_that_fits():
    assert [duration(s) for s in (3, 600, 36000)] == ["3 s", "10 min", "10.0 h"]
