"""A race that is killed, interrupted, torn or joined by others goes on to the same table."""

import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import nn

from normscope import Grid, UsageError, race, sweep
from normscope.racing import Interrupted, Watcher
from normscope.sweeping import Cell, Store

G = torch.Generator().manual_seed(0)
X = torch.randn(64, 6, generator=G)
DATA = (X, (X[:, 0] > 0).long())
CALM = {"epochs": 2, "batch": 16, "lr": 0.1, "seeds": 2, "geometry": 3}


def net(width=12):
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 2))


VARIANTS = {"narrow": lambda seed: net(8), "wide": lambda seed: net(16)}


def double(x):
    return 2 * x


def file_of(folder, variant, seed):
    """Where the numbers of a finished run lie."""
    key = Cell({"variant": variant, "seed": seed, "lr": CALM["lr"]}).key("race")
    return folder / "cells" / key[:2] / f"{key}.parquet"


def numbers(table):
    """All but the clock."""
    return table.filter(~pl.col("metric").str.starts_with("seconds"))


class Counted(nn.Module):
    """Counts its forward passes in training mode, over all copies."""

    calls = 0

    def __init__(self, at=None):
        super().__init__()
        self.inner, self.at = net(), at

    def forward(self, x):
        if self.training:
            Counted.calls += 1
            if Counted.calls == self.at:
                signal.raise_signal(signal.SIGINT)
        return self.inner(x)


@pytest.fixture(autouse=True)
def _from_zero():
    Counted.calls = 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
def test_a_race_that_is_killed_again_and_again_ends_with_the_same_table(tmp_path):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("race_killed.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, "7"], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] >= 5
    assert told["states"] >= 4  # in the middle of a run
    calm, killed = (numbers(pl.read_parquet(tmp_path / f"{name}.parquet")) for name in ("calm", "killed"))
    assert len(calm) > 200
    assert calm.equals(killed)


def test_ctrl_c_stops_after_a_step_says_how_to_resume_and_loses_nothing(tmp_path):
    variants = {"one": lambda seed: Counted(at=10)}
    options = CALM | {"out": tmp_path, "geometry": 0}
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background of a shell
    with pytest.raises(Interrupted, match="goes on from here"):
        race(variants, DATA, **options)
    assert signal.getsignal(signal.SIGINT) is before
    state = torch.load(next(tmp_path.glob("states/*.pt")), weights_only=True)
    assert 0 < state["training"]["step"] < 8
    resumed = race(variants, DATA, **options)
    undisturbed = race({"one": lambda seed: Counted()}, DATA, **CALM | {"geometry": 0})
    assert numbers(resumed.table).equals(numbers(undisturbed.table))


def test_ctrl_c_without_a_folder_says_that_nothing_is_kept():
    with pytest.raises(Interrupted, match="Nothing was kept"):
        race({"one": lambda seed: Counted(at=10)}, DATA, **CALM | {"geometry": 0})


def test_finished_runs_are_not_run_again(tmp_path):
    first = race({"one": lambda seed: Counted()}, DATA, **CALM, out=tmp_path)
    Counted.calls = 0
    second = race({"one": lambda seed: Counted()}, DATA, **CALM, out=tmp_path)
    assert Counted.calls == 3  # the trial, the step and the look that show that the variant works
    assert second.table.equals(first.table)


def test_more_seeds_and_variants_join_a_folder(tmp_path):
    race({"narrow": VARIANTS["narrow"]}, DATA, **CALM, out=tmp_path)
    stamp = file_of(tmp_path, "narrow", 1).stat().st_mtime_ns
    joined = race(VARIANTS, DATA, **CALM | {"seeds": 3}, out=tmp_path)
    alone = race(VARIANTS, DATA, **CALM | {"seeds": 3})
    assert file_of(tmp_path, "narrow", 1).stat().st_mtime_ns == stamp
    assert numbers(joined.table).equals(numbers(alone.table))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 3}, "epochs 2 there, 3 here"),
        ({"lr": 0.2}, "lr of variant 'wide' 0.1 there, 0.2 here"),
        ({"momentum": 0.5}, "momentum 0.0 there, 0.5 here"),
        ({"geometry": 4}, "geometry 3 there, 4 here"),
        ({"dtype": torch.float64}, "dtype None there, float64 here"),
    ],
)
def test_a_changed_setting_is_refused_by_name(tmp_path, changes, says):
    race(VARIANTS, DATA, **CALM, out=tmp_path)
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=says):
        race(VARIANTS, DATA, **CALM | changes, out=tmp_path)
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


def test_changed_data_and_changed_variants_are_refused_by_name(tmp_path):
    race(VARIANTS, DATA, **CALM, out=tmp_path)
    with pytest.raises(UsageError, match=r"data 64x6 .* there, 64x6 .* here"):
        race(VARIANTS, (X + 1e-3, DATA[1]), **CALM, out=tmp_path)
    with pytest.raises(UsageError, match="structure of variant 'wide'"):
        race(VARIANTS | {"wide": lambda seed: net(17)}, DATA, **CALM, out=tmp_path)

    def scaled(seed):
        model = net(16)
        with torch.no_grad():
            model[0].weight.mul_(2)
        return model

    with pytest.raises(UsageError, match="norm, seed 0 of variant 'wide'"):
        race(VARIANTS | {"wide": scaled}, DATA, **CALM, out=tmp_path)


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(UsageError, match=r"that a sweep or a race made; .* holds thesis\.tex"):
        race(VARIANTS, DATA, **CALM, out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="must be a folder"):
        race(VARIANTS, DATA, **CALM, out=tmp_path / "out")


def test_torn_files_are_set_aside_named_and_computed_again(tmp_path):
    first = race(VARIANTS, DATA, **CALM, out=tmp_path)
    torn = file_of(tmp_path, "wide", 1)
    torn.write_bytes(torn.read_bytes()[:100])
    (tmp_path / "states").mkdir(exist_ok=True)
    (tmp_path / "states" / f"{torn.stem}.pt").write_bytes(b"half")
    pl.DataFrame({"a": [1]}).write_parquet(file_of(tmp_path, "wide", 0))
    again = race(VARIANTS, DATA, **CALM, out=tmp_path)
    assert numbers(again.table).equals(numbers(first.table))
    assert len([n for n in again.facts["notes"] if "(set-aside/" in n and "computed again" in n]) == 3
    assert len(list((tmp_path / "set-aside").iterdir())) == 3
    assert not list((tmp_path / "states").iterdir())


def test_a_race_is_kept_in_a_store_that_sweeps_use_too(tmp_path):
    found = race(VARIANTS, DATA, **CALM, out=tmp_path)
    store = Store(tmp_path)
    sweep(Grid(x=[1, 2]), double, store, ThreadPoolExecutor(1))
    kept = store.table(task="race").filter(pl.col("metric") == "loss", pl.col("signal") == "batch").collect()
    losses = found.table.filter(pl.col("metric") == "loss", pl.col("signal") == "batch")
    kept = kept.sort("variant", "seed", maintain_order=True)
    assert kept.select("variant", "seed", "value").equals(losses.select("variant", "seed", "value"))
    assert store.compact() == 6
    Counted.calls = 0
    assert race(VARIANTS, DATA, **CALM, out=tmp_path).table.equals(found.table)


@pytest.mark.parametrize("what", ["read", "write"])
def test_a_folder_that_fails_on_the_way_is_one_error_and_keeps_what_it_had(tmp_path, monkeypatch, what):
    race({"narrow": VARIANTS["narrow"]}, DATA, **CALM, out=tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.parquet")}
    whole = getattr(type(Store(tmp_path).files), what)

    def failing(files, path, *rest, **options):
        if "race.json" in (path if what == "read" else [path]):
            raise OSError(errno.EIO, "Input/output error")
        return whole(files, path, *rest, **options)

    monkeypatch.setattr(type(Store(tmp_path).files), what, failing)
    with pytest.raises(UsageError, match=r"Input/output error\. What was kept in it stays"):
        race(VARIANTS, DATA, **CALM, out=tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.parquet")} == before


def test_a_race_goes_on_from_an_address_that_is_no_folder():
    pytest.importorskip("fsspec")
    out = "memory://race-that-goes-on"
    first = race({"one": lambda seed: Counted()}, DATA, **CALM, out=out)
    Counted.calls = 0
    assert race({"one": lambda seed: Counted()}, DATA, **CALM, out=out).table.equals(first.table)
    assert Counted.calls == 3


def test_a_folder_in_use_is_refused(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    race(VARIANTS, DATA, **CALM, out=tmp_path)
    with (tmp_path / "race.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="Another process"):
            race(VARIANTS, DATA, **CALM, out=tmp_path)
    race(VARIANTS, DATA, **CALM, out=tmp_path)


def test_a_chosen_rate_is_not_chosen_again(tmp_path):
    class Stages(Watcher):
        def __init__(self):
            self.seen = []

        def stage(self, text):
            self.seen.append(text)

    options = CALM | {"lr": "search:0.01,0.1", "out": tmp_path}
    first = race(VARIANTS, DATA, **options)
    stages = Stages()
    second = race(VARIANTS, DATA, **options | {"seeds": 3}, progress=stages)
    assert not [s for s in stages.seen if "search" in s]
    assert second.facts["rates"] == first.facts["rates"]
    assert len(first.facts["rates"]["wide"]["tried"]) == 2
