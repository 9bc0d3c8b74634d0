"""A race: the same batches for all, the plain loop underneath, rates by their stated rules, diverged runs counted."""

import math
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import nn

from normscope import Race, UsageError, race
from normscope.racing import Watcher
from normscope.racing._run import COLUMNS, geometry_steps
from normscope.training import Recipe, Samples, Training

G = torch.Generator().manual_seed(0)
X = torch.randn(70, 6, generator=G)
Y = (X[:, 0] > 0).long()
CALM = {"epochs": 2, "batch": 16, "lr": 0.1, "seeds": 2, "geometry": 3}


def net(width=12, dropout=0.2):
    layers = [nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 2)]
    return nn.Sequential(*layers)


class Watched(nn.Module):
    """Keeps every batch that it sees in training."""

    def __init__(self, width, seen):
        super().__init__()
        self.inner, self.seen = net(width), seen

    def forward(self, x):
        if self.training:
            self.seen.append(x.detach().clone())
        return self.inner(x)

    def __deepcopy__(self, memo):
        return Watched(len(self.inner[0].bias), [])  # copies are for trying out, and see no race


def values(table, variant, seed, signal="batch", metric="loss"):
    chosen = table.filter(
        (pl.col("variant") == variant) & (pl.col("seed") == seed) & (pl.col("signal") == signal)
        & (pl.col("metric") == metric)
    ).sort("step")  # fmt: skip
    return chosen["value"].to_list()


# The same batches, the plain loop


def test_every_variant_sees_the_same_batches_and_every_seed_others():
    seen = {}

    def make(name, width):
        return lambda seed: Watched(width, seen.setdefault((name, seed), []))

    race({"a": make("a", 4), "b": make("b", 9)}, (X, Y), **CALM | {"geometry": 0})
    assert all(len(x) == 8 for x in seen.values())
    for seed in (0, 1):
        assert all(torch.equal(p, q) for p, q in zip(seen["a", seed], seen["b", seed], strict=True))
    assert not torch.equal(seen["a", 0][0], seen["a", 1][0])
    assert not torch.equal(seen["a", 0][0], seen["a", 0][4])  # the second epoch


def test_losses_are_those_of_a_training_of_its_own():
    found = race({"a": lambda seed: net()}, (X, Y), **CALM, momentum=0.9, warmup=3)
    for seed in (0, 1):
        torch.manual_seed(seed)
        run = Training(net(), Samples(X, Y), Recipe(epochs=2, batch=16, lr=0.1, momentum=0.9, warmup=3, seed=seed))
        run.advance(8)
        assert values(found.table, "a", seed) == run.losses


@pytest.mark.parametrize("changes", [{"geometry": 8}, {"geometry": 0}, {"test": (X, Y)}, {"checkpoint_every": 0.0}])
def test_looking_changes_no_loss(changes):
    options = CALM | {"geometry": 1} | changes
    plain = race({"a": lambda seed: net(), "b": lambda seed: net(7)}, (X, Y), **CALM | {"geometry": 0})
    looked = race({"a": lambda seed: net(), "b": lambda seed: net(7)}, (X, Y), **options)
    for variant in "ab":
        for seed in (0, 1):
            assert values(plain.table, variant, seed) == values(looked.table, variant, seed)


def test_a_module_trains_as_a_copy():
    model = net()
    before = [p.clone() for p in model.parameters()]
    found = race({"a": model}, (X, Y), **CALM)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert values(found.table, "a", 0) != values(found.table, "a", 1)  # the order of the samples


def test_the_global_stream_is_left_alone():
    state = torch.get_rng_state()
    race({"a": lambda seed: net()}, (X, Y), **CALM)
    assert torch.equal(torch.get_rng_state(), state)


# The table


def test_the_table_has_every_number_with_its_place():
    found = race({"a": lambda seed: net()}, (X, Y), (X[:20], Y[:20]), **CALM)
    table = found.frame()
    assert tuple(table.columns) == COLUMNS
    kinds = set(table.select("signal", "metric").unique().iter_rows())
    assert kinds == {
        ("batch", "loss"), ("train", "loss"), ("train", "accuracy"), ("test", "loss"), ("test", "accuracy"),
        ("activation", "orthogonality_gap"), ("activation", "participation_rank"), ("gradient", "gradient_norm"),
        ("weight", "gradient_norm"), ("run", "lr"), ("run", "seconds_per_step"), ("run", "seconds_training"),
        ("run", "seconds_evaluation"), ("run", "seconds_geometry"),
    }  # fmt: skip
    assert table.filter(pl.col("metric") == "accuracy")["step"].unique().sort().to_list() == [0, 4, 8]
    assert table.filter(pl.col("metric") == "orthogonality_gap")["step"].unique().sort().to_list() == [0, 1, 8]
    assert table.filter(pl.col("step") == 6)["epoch"].unique().to_list() == [1.5]
    layers = table.filter(pl.col("metric") == "participation_rank")["layer"].unique().sort().to_list()
    assert layers == list(range(len(layers)))


def test_geometry_steps_are_even_on_a_log_axis_and_end_at_the_end():
    assert sorted(geometry_steps(1000, 5)) == [0, 1, 10, 100, 1000]
    assert geometry_steps(1000, 0) == frozenset()
    assert sorted(geometry_steps(3, 50)) == [0, 1, 2, 3]


def test_a_short_race_looks_at_its_layers_less_often():
    options = {key: value for key, value in CALM.items() if key != "geometry"} | {"seeds": 1}
    assert race({"a": net()}, (X, Y), **options).facts["geometry"] == 4
    assert race({"a": net()}, (X, Y), **options | {"epochs": 25}).facts["geometry"] == 6  # 100 steps


def test_a_race_is_saved_and_loaded(tmp_path):
    found = race({"a": lambda seed: net()}, (X, Y), **CALM)
    found.save(tmp_path / "a.race")
    again = Race.load(tmp_path / "a.race")
    assert again.table.equals(found.table)
    assert again.facts == found.facts
    assert again.summary().equals(found.summary(), null_equal=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", None])
def test_a_file_that_is_no_race_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    with pytest.raises(UsageError, match="must be"):
        Race.load(tmp_path / "x")


# Learning rates


def test_search_takes_the_rate_whose_pilot_ends_lowest():
    grid = [0.001, 0.03, 1.0, 1e9]
    found = race({"a": lambda seed: net(dropout=0)}, (X, Y), **CALM | {"epochs": 5, "lr": "search:0.03,0.001,1e9,1"})
    ends = []
    for lr in grid:
        torch.manual_seed(0)
        pilot = Training(net(dropout=0), Samples(X, Y), Recipe(epochs=5, batch=16, lr=lr))
        pilot.advance(20)
        ends.append(math.inf if pilot.diverged is not None else sum(pilot.losses[-4:]) / 4)
    told = found.facts["rates"]["a"]
    assert math.isinf(ends[3])
    assert told["tried"] == [[lr, end if math.isfinite(end) else None] for lr, end in zip(grid, ends, strict=True)]
    assert told["lr"] == grid[ends.index(min(ends))]
    assert told["steps"] >= 60
    assert told["seconds"] > 0


@pytest.mark.parametrize(
    ("grid", "says"), [("0.01,0.05", "largest of the grid"), ("1e-9,1e-8", "no rate"), ("1e8,1e9", "every rate")]
)
def test_search_says_when_the_grid_is_wrong(grid, says):
    found = race({"a": lambda seed: net()}, (X, Y), **CALM | {"epochs": 20, "lr": f"search:{grid}"})
    assert any(says in note for note in found.facts["notes"])


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({}, 1.0),
        ({"momentum": 0.9}, 1.9),
        ({"momentum": 0.9, "nesterov": True}, 1.9 / 2.8),
    ],
)
def test_sharpness_takes_its_share_of_the_stability_threshold(options, factor):
    """Linear net, torch's mse over n c entries: the Hessian is 2 X'X / (n c), c times over."""
    y = torch.randn(70, 3, generator=torch.Generator().manual_seed(5))
    make = {"a": lambda seed: nn.Linear(6, 3, bias=False)}
    found = race(make, (X, y), **CALM | {"lr": "sharpness:0.4"}, **options)
    first = Training(nn.Linear(6, 3), Samples(X, y), Recipe(batch=16)).batch(0)
    rows = X[first].double()
    top = torch.linalg.eigvalsh(2 * rows.T @ rows / (16 * 3))[-1].item()
    assert found.facts["rates"]["a"]["lr"] == pytest.approx(0.4 * factor * 2 / top, rel=0.01)  # tol of the eigenvalue


def test_the_stability_threshold_is_one():
    y = torch.randn(64, 3, generator=torch.Generator().manual_seed(5))
    x = X[:64]
    make = {"a": lambda seed: nn.Linear(6, 3, bias=False)}
    options = {"epochs": 400, "batch": 64, "seeds": 1, "geometry": 0}  # full batch: gradient descent
    below, above = (race(make, (x, y), lr=f"sharpness:{f}", **options).lines()[0] for f in (0.9, 1.1))
    assert below.diverged == 0
    assert above.diverged == 1


def test_every_variant_may_have_its_own_rate():
    made = {"a": lambda seed: net(), "b": lambda seed: net()}
    found = race(made, (X, Y), **CALM | {"lr": {"a": 0.1, "b": "search:0.5"}})
    assert [line.lr for line in found.lines()] == [0.1, 0.5]


# Divergence


def test_a_diverged_run_is_counted_with_its_step_and_in_no_mean():
    made = {
        "calm": lambda seed: net(),
        "wild": lambda seed: nn.Linear(6, 2) if seed else nn.Sequential(nn.Linear(6, 2)),
    }
    y = torch.randn(70, 2, generator=torch.Generator().manual_seed(5))
    found = race(made, (X, y), **CALM | {"lr": {"calm": 0.01, "wild": 1e20}, "seeds": 3})
    calm, wild = found.lines()
    assert (wild.diverged, wild.seeds, wild.verdict) == (3, 3, "diverged")
    assert math.isnan(wild.train_loss)
    steps = found.table.filter(pl.col("metric") == "diverged")["step"].to_list()
    assert wild.steps_to_divergence == sorted(steps)[1]
    assert len(values(found.table, "wild", 0)) == steps[0] + 1
    assert calm.diverged == 0
    assert wild.p_loss == pytest.approx(0.25)  # exact sign test, three of three seeds


def test_a_first_loss_that_is_not_finite_names_the_variant():
    def broken(seed):
        model = net()
        nn.init.constant_(model[4].bias, math.inf)
        return model

    with pytest.raises(UsageError, match=r"first loss of variant 'bad' \(seed 0\).*nan"):
        race({"good": lambda seed: net(), "bad": broken}, (X, Y), **CALM)


# What is told


def test_a_watcher_hears_of_the_plan_and_of_every_step():
    class Ear(Watcher):
        plans, steps, closed = [], [], 0

        def plan(self, plan):
            self.plans.append(plan)

        def step(self, variant, seed, loss, done):
            self.steps.append((variant, seed, done))

        def close(self):
            self.closed += 1

    ear = Ear()
    race({"a": lambda seed: net(), "b": lambda seed: net()}, (X, Y), **CALM, progress=ear)
    (plan,) = ear.plans
    assert (plan.steps, plan.steps_per_run, plan.done) == (32, 8, 0)
    assert str(plan).startswith("2 variants x 2 seeds = 4 runs of 8 steps; about ")
    assert [done for *_, done in ear.steps] == list(range(1, 33))
    assert [(v, s) for v, s, done in ear.steps if done % 8 == 0] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert ear.closed == 1


# Bad input


def fails(seed):
    raise RuntimeError("no such layer")


def misshapen(seed):
    return nn.Linear(5, 2)


@pytest.mark.parametrize(
    ("variants", "changes", "says"),
    [
        ({}, {}, "at least one"),
        ([net], {}, "must be a mapping"),
        ({"a": nn.ReLU}, {}, "lambda seed"),
        ({"a": 3}, {}, "it is a int"),
        ({"a": lambda seed: 3}, {}, "must return an nn.Module"),
        ({"a": fails}, {}, "Building variant 'a' with seed 0 failed .* no such layer"),
        ({"a": misshapen}, {}, r"Variant 'a': .*Linear.* float32 \(16, 6\).*\(torch: .*shapes cannot be multiplied"),
        ({"a": nn.ReLU()}, {}, "'a'.*nothing to train"),
        (None, {"batch": 100}, "at most 70"),
        (None, {"optimiser": "adma"}, "Did you mean 'adam'"),
        (None, {"lr": "serch"}, "Did you mean 'search'"),
        (None, {"lr": "search:a"}, "search:0.01"),
        (None, {"lr": -1}, "positive"),
        (None, {"lr": {"b": 1.0}}, "no variant 'b'"),
        (None, {"lr": {}}, "a has none"),
        (None, {"lr": "sharpness", "optimiser": "adam"}, "rescales the curvature"),
        (None, {"seeds": 0}, "seeds"),
        (None, {"seeds": [1, 1]}, "seeds"),
        (None, {"baseline": "b"}, "no variant 'b'"),
        (None, {"geometry": -1}, "geometry"),
        (None, {"loss": "msee"}, "Did you mean 'mse'"),
        (None, {"epochs": 0}, "epochs"),
        (None, {"device": "abacus"}, "device must be one that works"),
        (
            None,
            {"test": (X[:, :5], Y)},
            r"Variant 'a' on the test samples: .*layer '0' \(Linear\) got float32 \(2, 5\)",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_runs(tmp_path, variants, changes, says):
    made = {"a": lambda seed: net()} if variants is None else variants
    with pytest.raises(UsageError, match=says):
        race(made, (X, Y), **CALM | changes)


def test_how_the_first_batch_was_read_is_in_the_notes():
    found = race({"a": net(), "b": net()}, (X, Y), **CALM | {"loss": "mse"})
    assert found.facts["notes"] == [f"{v}, first batch: integer targets were read as one-hot rows" for v in "ab"]


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_race_trains_where_gradients_are_off(off):
    model = net()
    on = race({"a": model}, (X, Y), **CALM)
    with off():
        assert values(race({"a": model}, (X, Y), **CALM).table, "a", 0) == values(on.table, "a", 0)


@pytest.mark.parametrize(("data", "says"), [("digits", "a Batch"), ((X, Y[:3]), "rows each"), ((X,), "a pair")])
def test_bad_data_is_refused(data, says):
    with pytest.raises(UsageError, match=says):
        race({"a": net()}, data, **CALM)


# The point of it


def test_on_digits_batch_norm_trains_a_deep_net_that_stalls_without(tmp_path, monkeypatch):
    """The example of the documentation. The plain net stays at chance, log 10."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "race.md").read_text()
    names = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    plain, normed = names["found"].lines()
    assert (tmp_path / "race.html").exists()
    assert plain.train_loss == pytest.approx(math.log(10), abs=0.01)
    assert normed.train_loss + normed.train_loss_half < 2.0
    assert (plain.verdict, normed.verdict) == ("baseline", "better")
    assert normed.p_loss < 0.05
    assert plain.steps_to_target is None
    assert normed.steps_to_target < 66
