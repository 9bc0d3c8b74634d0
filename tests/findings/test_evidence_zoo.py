"""The zoo of nets behind docs/findings.md: its nets, its sweep, and the judging of forecasts."""

import importlib
import itertools
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

ZOO = Path(__file__).parents[2] / "benchmarks" / "zoo"


@pytest.fixture(scope="module")
def zoo():
    """The modules of the folder, which is no package."""
    sys.path.insert(0, str(ZOO))
    try:
        yield {name: importlib.import_module(name) for name in ("nets", "training", "diagnosing", "judging", "table")}
    finally:
        sys.path.remove(str(ZOO))


def test_three_nets_are_trained_diagnosed_and_stand_in_the_table_and_a_second_run_trains_nothing(
    zoo, tmp_path, monkeypatch
):
    def run(module, *args):
        monkeypatch.setattr(sys, "argv", [module, *args])
        zoo[module].main()

    common = ["--bundled", "--subset", "3", "--workers", "0"]
    training = ["--out", str(tmp_path / "t"), "--csv", str(tmp_path / "t.csv"), "--steps", "12", *common]
    run("training", *training)
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "t").rglob("*.parquet")}
    first = (tmp_path / "t.csv").read_text()
    (tmp_path / "t.csv").unlink()
    run("training", *training)
    assert len(cells) == 3
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "t").rglob("*.parquet")} == cells
    assert (tmp_path / "t.csv").read_text() == first

    run("diagnosing", "--out", str(tmp_path / "s"), "--csv", str(tmp_path / "s.csv"), *common)
    out = tmp_path / "page.md"
    run(
        "table",
        "--training",
        str(tmp_path / "t.csv"),
        "--diagnosis",
        str(tmp_path / "s.csv"),
        "--out",
        str(out),
        "--every",
    )
    page = out.read_text()
    assert page.startswith("## The evidence\n\n3 nets")
    for net in pl.read_csv(tmp_path / "t.csv")["net"]:
        assert f"| {net} | " in page


def test_there_are_300_nets_and_more_and_each_name_makes_the_same_net_twice(zoo):
    nets = zoo["nets"].NETS
    assert len(nets) >= 300
    assert len({net.kind for net in nets.values()}) >= 10
    torch.manual_seed(1)
    before = torch.get_rng_state()
    (one, _), (two, _), (other, _) = (nets["tabular 03"].make(seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def rows(*nets):
    """Training tables of one task: (net, seed, SGD's scores at two rates)."""
    return pl.DataFrame(
        [
            {"net": n, "kind": "k", "group": "g", "recipe": "", "seed": s, "chance": 0.1, "sgd 0.1 score": a,
                "sgd 1 score": b,
             "adam 0.1 score": a}
            for n, s, a, b in nets
        ]
    )  # fmt: skip


def test_a_net_trains_where_its_best_rate_comes_80_percent_of_the_way_from_chance_to_the_best_net(zoo):
    nan = float("nan")
    found = zoo["judging"].labels(
        rows(("best", 0, 1.0, 0.3), ("nearly", 0, 0.2, 0.95), ("poor", 0, 0.5, nan), ("lost", 0, nan, nan))
    )
    assert found["sgd relative"].to_list() == pytest.approx([1, 0.85 / 0.9, 0.4 / 0.9, 0])
    assert found["sgd trains"].to_list() == [True, True, False, False]
    assert found["sgd close"].to_list() == [False] * 4


def test_nets_near_the_line_and_nets_whose_seeds_disagree_are_close(zoo):
    found = zoo["judging"].labels(
        rows(
            ("a", 0, 1.0, 0),
            ("a", 1, 1.0, 0),
            ("line", 0, 0.8, 0),
            ("line", 1, 0.8, 0),
            ("split", 0, 0.3, 0),
            ("split", 1, 1, 0),
        )
    )
    assert found["sgd close"].to_list() == [False, True, True]


def test_balanced_accuracy_is_the_mean_of_the_two_shares(zoo):
    r = zoo["judging"].balanced([True, True, False, False, False], [True, False, False, False, False])
    assert (r.good, r.bad, r.value) == (1.0, 0.75, 0.875)
    assert r.low < r.value < r.high
    assert np.isnan(zoo["judging"].balanced([True], [True]).value)


def slow_best_threshold(scores, truth):
    """Every cut, both ways."""
    values = sorted(set(scores))
    cuts = [values[0] - 1, *((a + b) / 2 for a, b in itertools.pairwise(values)), values[-1] + 1]

    def value(cut, up):
        says = [(s > cut) == up for s in scores]
        good = sum(p and t for p, t in zip(says, truth, strict=True)) / sum(truth)
        return (good + sum(not p and not t for p, t in zip(says, truth, strict=True)) / (len(truth) - sum(truth))) / 2

    return max(value(cut, up) for cut in cuts for up in (True, False))


@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_that_is_chosen_is_the_best_of_all(zoo, seed):
    g = np.random.default_rng(seed)
    truth = g.random(30) < 0.5
    scores = (1 if seed % 2 else -1) * truth + np.round(g.normal(size=30), 1)
    threshold, upward = zoo["judging"].best_threshold(scores, truth)
    says = (scores > threshold) == upward
    got = ((says & truth).sum() / truth.sum() + (~says & ~truth).sum() / (~truth).sum()) / 2
    assert got == pytest.approx(slow_best_threshold(list(scores), list(truth)))


def test_a_kind_is_judged_by_the_threshold_of_the_others(zoo):
    # In kind b the sign is the other way round: a threshold that had seen b would do better there.
    scores, truth = [1, 2, 3, 4, 1, 2, 3, 4], [False, False, True, True, True, True, False, False]
    says, used = zoo["judging"].leave_one_kind_out(scores, truth, ["a"] * 4 + ["b"] * 4)
    assert list(says) == [not t for t in truth]
    assert used == [2.5, 2.5]
