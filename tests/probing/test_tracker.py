"""The tracker: measures right, changes nothing, keeps nothing alive, stays sound whatever the loop does."""

import copy
import os
import pickle
import runpy
import signal
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from normscope import Tracker, UsageError, measure, probe
from normscope.probing.writers import CsvWriter, ParquetWriter


def mlp(width=24, depth=3, bn=True, seed=0):
    torch.manual_seed(seed)
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()) if bn or
              not isinstance(m, nn.BatchNorm1d)]  # fmt: skip
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(width, 5))


def batch(n=16, width=24, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=g), torch.randint(5, (n,), generator=g)


def train(model, steps=6, lr=0.1, forward=None, n=16):
    """Losses of a plain loop on changing batches."""
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    losses = []
    for i in range(steps):
        x, y = batch(n, seed=i)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy((forward or model)(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def one(frame, **where):
    """The one value with these coordinates."""
    for column, value in where.items():
        frame = frame.filter(pl.col(column) == value)
    assert len(frame) == 1, frame
    return frame["value"][0]


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# It measures what is there


def test_numbers_are_those_of_the_batch_that_passed():
    model = mlp()
    outputs, x = {}, batch()[0]
    twin = copy.deepcopy(model)
    with Tracker(model, metrics="all") as tracker:
        train(model, 1)
    x, _ = batch(seed=0)
    torch.manual_seed(0)
    for name, module in twin.named_children():
        x = outputs[name] = module(x)
        x.retain_grad()
    frame = tracker.frame()
    assert tracker.notes == ()
    for name in ("0", "1", "4", "6"):  # before the dropout, whose noise differs
        for metric, value in measure(outputs[name].detach()).items():
            if metric not in ("dead_units", "saturated_units", "token_cosine"):
                assert one(frame, name=name, metric=metric, signal="activation") == pytest.approx(
                    value, rel=1e-5, abs=1e-6, nan_ok=True
                ), (name, metric)
    dead = one(frame, name="2", metric="dead_units")
    assert dead == (outputs["2"] == 0).all(0).double().mean()


def test_gradients_are_autograds():
    model = mlp(bn=True)
    model[9].p = 0.0
    twin = copy.deepcopy(model)
    with Tracker(model) as tracker:
        train(model, 1)
    x, y = batch(seed=0)
    outputs = {}
    for name, module in twin.named_children():
        x = outputs[name] = module(x)
        x.retain_grad()
    nn.functional.cross_entropy(x, y).backward()
    frame = tracker.frame()
    for name, module in twin.named_children():
        if name == "9":
            continue
        grad = outputs[name].grad.double()
        assert one(frame, name=name, signal="gradient", metric="gradient_norm") == pytest.approx(
            grad.norm().item(), rel=1e-5
        )
        own = list(module.parameters())
        if not own:
            continue
        norm = torch.cat([p.grad.double().flatten() for p in own]).norm()
        size = torch.cat([p.detach().double().flatten() for p in own]).norm()
        assert one(frame, name=name, signal="weight", metric="gradient_norm") == pytest.approx(norm.item(), rel=1e-5)
        assert one(frame, name=name, metric="relative_gradient") == pytest.approx((norm / size).item(), rel=1e-5)
    cosines = nn.functional.cosine_similarity(outputs["10"].grad[:, None], outputs["10"].grad[None], dim=-1)
    above = torch.ones(16, 16).triu(1).bool()
    expected = cosines[above].abs().mean().item()
    assert one(frame, name="10", metric="gradient_collinearity") == pytest.approx(expected, rel=1e-5)


def test_a_tracked_step_agrees_with_a_probe():
    model, (x, y) = mlp(bn=True), batch(seed=0)
    model[9].p = 0.0
    want = probe(model, x, y).frame()
    with Tracker(model) as tracker:
        train(model, 1)
    got = tracker.frame().filter(~pl.col("metric").is_in(["weight_norm", "relative_update"]))  # of a training alone
    both = got.join(want, on=["layer", "name", "call", "kind", "signal", "metric"], suffix="_probe")
    assert len(both) == len(got) > 50
    assert both.filter(
        (pl.col("value") - pl.col("value_probe")).abs() > 1e-5 * (1 + pl.col("value_probe").abs())
    ).is_empty()


def test_every_nth_training_step_is_measured_and_evaluation_is_not_counted():
    model = mlp()
    with Tracker(model, every=3) as tracker:
        for _ in range(4):
            train(model, 2)
            model.eval()
            model(batch()[0])
            with torch.no_grad():
                model.train()
                model(batch()[0])
    assert tracker.steps == 8
    assert tracker.frame()["step"].unique().sort().to_list() == [0, 3, 6]
    assert tracker.measured == 3


def test_between_measured_steps_no_layer_carries_a_hook():
    model = mlp()
    seen = []
    model[3].register_forward_pre_hook(lambda *_: seen.append(hooks_of(model)))
    Tracker(model, every=3)
    train(model, 5)
    assert seen[1] == seen[2] == seen[4] == 3  # the test's own, and the two on the model
    assert seen[0] == seen[3] > 10


def test_at_most_so_many_rows_enter_the_gram_and_the_table_says_so():
    model = mlp(bn=False)
    with Tracker(model, rows=8) as tracker:
        train(model, 1, n=20)
    frame = tracker.frame()
    assert set(frame.filter(signal="activation")["samples"]) == {8}
    assert set(frame.filter(metric="gradient_norm")["samples"]) == {20}
    x = batch(20, seed=0)[0]
    fresh = mlp(bn=False)
    want = measure(fresh[0](x)[:8].detach())["participation_rank"]
    assert one(frame, name="0", metric="participation_rank") == pytest.approx(want, rel=1e-6)
    logits = fresh.eval()(x)  # the dropout stands behind the last hidden layer
    assert logits.shape == (20, 5)


def test_tokens_are_rows_when_asked():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(30, 12), nn.Linear(12, 30)

        def forward(self, ids):
            return self.out(self.embed(ids))

    torch.manual_seed(0)
    model, ids = Net(), torch.randint(30, (4, 9))
    with Tracker(model, tokens=True, rows=18) as tracker:
        model(ids).square().mean().backward()
    rows = model.embed(ids).flatten(0, 1)[::2][:18].detach()
    assert one(tracker.frame(), name="embed", metric="participation_rank") == pytest.approx(
        measure(rows)["participation_rank"], rel=1e-6
    )


@pytest.mark.parametrize("metrics", [None, ["participation_rank"], "gradient_norm", ["rms", "relative_gradient"]])
def test_metrics_are_chosen_by_name(metrics):
    model = mlp()
    with Tracker(model, metrics=metrics) as tracker:
        train(model, 1)
    found = set(tracker.frame()["metric"])
    assert found == ({metrics} if isinstance(metrics, str) else set(metrics)) if metrics else "rms" in found


def test_eigenvalues_are_looked_at_only_if_a_metric_asks():
    assert not Tracker(mlp())._plan.spectrum
    assert Tracker(mlp(), metrics=["entropy_rank"])._plan.spectrum


# It changes nothing


@pytest.mark.parametrize("amp", [False, True])
def test_training_is_bit_identical(amp):
    def run(track):
        model = mlp()
        torch.manual_seed(7)
        tracker = Tracker(model, every=2, metrics="all") if track else None
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            losses = train(model)
        if tracker:
            assert tracker.measured == 3
            assert tracker.notes == ()
            tracker.close()
        return losses, list(model.state_dict().values()), torch.get_rng_state()

    (losses, weights, rng), (losses_t, weights_t, rng_t) = run(False), run(True)
    assert losses == losses_t
    assert all(torch.equal(a, b) for a, b in zip(weights, weights_t, strict=True))
    assert torch.equal(rng, rng_t)


def test_closing_leaves_no_hook():
    model = mlp()
    tracker = Tracker(model)
    x, y = batch()
    loss = nn.functional.cross_entropy(model(x), y)
    tracker.close()  # between forward and backward
    loss.backward()
    assert hooks_of(model) == 0
    assert all(not p._backward_hooks for p in model.parameters())
    tracker.close()


def test_no_activation_outlives_its_hook():
    model, alive = mlp(bn=False), []
    model[2].register_forward_hook(lambda m, a, out: alive.append(weakref.ref(out.untyped_storage())))
    Tracker(model)
    x, y = batch(64)
    out = model(x)
    nn.functional.cross_entropy(out, y).backward()
    del out
    assert alive[0]() is None


def test_copies_and_pickles_of_the_model_are_not_tracked():
    model = mlp()
    tracker = Tracker(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        train(twin, 1)
    assert tracker.steps == 0
    train(model, 1)
    assert tracker.steps == 1


# Whatever the loop does


def test_a_checkpointed_layer_runs_twice_and_is_measured_once():
    for reentrant in (False, True):
        model = mlp(bn=False)
        tracker = Tracker(model, every=1)

        class Checkpointed(nn.Module):
            def __init__(self, inner, reentrant=reentrant):
                super().__init__()
                self.inner, self.reentrant = inner, reentrant

            def forward(self, x):
                return checkpoint(self.inner, x, use_reentrant=self.reentrant)

        model[2] = Checkpointed(nn.Sequential(nn.Linear(24, 24), nn.Tanh()))
        train(model, 2)
        tracker.close()
        frame = tracker.frame()
        assert tracker.steps == 2
        assert set(frame["call"]) == {0}
        assert one(frame, step=1, name="2.inner.1", metric="rms") > 0
        assert one(frame, step=1, name="2.inner.0", signal="weight", metric="gradient_norm") > 0
        assert tracker.notes == ()


def test_a_wholly_checkpointed_model_is_counted_once_a_step():
    model = mlp(bn=False)
    tracker = Tracker(model, every=2)
    train(model, 4, forward=lambda x: checkpoint(model, x, use_reentrant=False))
    tracker.close()
    assert tracker.steps == 4
    assert set(tracker.frame()["step"]) == {0, 2}
    assert set(tracker.frame()["signal"]) == {"activation", "gradient", "weight"}


def test_a_forward_that_raises_is_forgotten_and_the_next_is_measured():
    model, boom = mlp(), [True]

    def raise_once(*_):
        if boom.pop() if boom else False:
            raise RuntimeError("no memory")

    model[3].register_forward_hook(raise_once)
    own = hooks_of(model)
    tracker = Tracker(model, every=10)
    with pytest.raises(RuntimeError, match="no memory"):
        model(batch()[0])
    assert hooks_of(model) == own + 2
    assert all(not p._backward_hooks for p in model.parameters())
    train(model, 3)
    tracker.close()
    assert set(tracker.frame()["step"]) == {1}
    assert tracker.notes == ()


def test_an_interrupt_inside_the_forward_is_survived():
    model, boom = mlp(), [True]

    def interrupt(*_):
        if boom:
            boom.pop()
            raise KeyboardInterrupt

    model[3].register_forward_hook(interrupt)
    tracker = Tracker(model, every=2)
    with pytest.raises(KeyboardInterrupt):
        model(batch()[0])
    train(model, 4)
    tracker.close()
    assert tracker.steps == 5
    assert set(tracker.frame()["step"]) == {2, 4}
    assert hooks_of(model) == 1


def test_a_model_that_calls_itself_is_one_step():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(24, 24)

        def forward(self, x, again=True):
            return self(self.layer(x), again=False) if again else self.layer(x).relu()

    model = Twice()
    with Tracker(model, every=1) as tracker:
        for _ in range(2):
            model(batch()[0]).square().mean().backward()
    assert tracker.steps == 2
    assert tracker.frame().filter(metric="rms", step=1)["call"].to_list() == [0, 1]


def test_a_shared_layer_is_measured_at_each_call():
    shared = nn.Linear(24, 24)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(24, 5))
    with Tracker(model) as tracker:
        train(model, 1)
    calls = tracker.frame().filter(pl.col("name") == "0", pl.col("metric") == "rms")
    assert calls["call"].to_list() == [0, 1]


def test_frozen_parts_have_outputs_but_no_gradients():
    model = mlp(bn=False)
    for p in model[:2].parameters():
        p.requires_grad_(False)
    with Tracker(model) as tracker:
        train(model, 1)
    frame = tracker.frame()
    assert set(frame.filter(name="0")["signal"]) == {"activation"}
    assert set(frame.filter(name="2")["signal"]) == {"activation", "gradient", "weight"}


def test_several_trackers_see_the_same():
    model = mlp()
    a, b = Tracker(model, every=2), Tracker(model, every=2)
    train(model, 4)
    a.close()
    b.close()
    assert a.frame().equals(b.frame())
    assert a.measured == 2


def test_a_model_that_is_one_layer():
    model = nn.Linear(24, 5)
    with Tracker(model, every=1) as tracker:
        train(model, 2)
    assert one(tracker.frame(), step=1, metric="rms") > 0
    assert hooks_of(model) == 0


def test_wrappers_are_looked_through():
    model = mlp()
    with Tracker(nn.DataParallel(model)) as tracker:
        train(tracker._root, 1)
    assert "0" in set(tracker.frame()["name"])
    replica = model._replicate_for_data_parallel()
    tracker = Tracker(model)
    replica(batch()[0])  # hooks are shared with a replica; it is not the model
    tracker.close()


def test_accumulation_is_one_step_when_the_loop_says_so():
    model = mlp(bn=False)
    model[6].p = 0.0
    with Tracker(model, every=2, by="step") as tracker:
        for step in range(4):
            model.zero_grad()
            for micro in range(3):
                x, y = batch(seed=10 * step + micro)
                (nn.functional.cross_entropy(model(x), y) / 3).backward()
            tracker.step()
    frame = tracker.frame()
    assert tracker.steps == 4
    assert set(frame["step"]) == {0, 2}
    assert frame["call"].max() == 0
    x, y = batch(seed=20)
    alone = torch.autograd.grad(nn.functional.cross_entropy(model(x), y) / 3, list(model[0].parameters()))
    want = torch.cat([g.flatten() for g in alone]).norm().item()
    assert one(frame, step=2, name="0", signal="weight", metric="gradient_norm") == pytest.approx(want, rel=1e-5)


def test_two_forward_passes_of_one_loss_keep_their_gradients():
    model = mlp(bn=False)
    with Tracker(model, every=10) as tracker:
        (model(batch()[0]).square().mean() + model(batch(seed=2)[0]).square().mean()).backward()
        model(batch()[0])
    assert one(tracker.frame(), name="0", signal="gradient", metric="gradient_norm") > 0


def test_a_step_can_be_opened_by_hand():
    body, head = nn.Linear(24, 8), nn.Linear(8, 5)
    model = nn.ModuleDict({"body": body, "head": head})
    with Tracker(model, every=2) as tracker:
        for i in range(3):
            x, y = batch(seed=i)
            tracker.begin((x, y))
            nn.functional.cross_entropy(head(body(x)), y).backward()
            tracker.end()
    assert set(tracker.frame()["step"]) == {0, 2}
    assert set(tracker.frame()["name"]) == {"body", "head"}


def test_gradients_are_divided_by_the_loss_scale():
    class Scaler:
        def get_scale(self):
            return 1024.0

    def run(scale, scaler):
        model = mlp(bn=False)
        model[6].p = 0.0
        with Tracker(model, scaler=scaler) as tracker:
            (nn.functional.cross_entropy(model(batch()[0]), batch()[1]) * scale).backward()
        return tracker.frame()["value"].to_list()

    assert run(1024.0, Scaler()) == pytest.approx(run(1.0, None), rel=1e-5)


def test_a_gradient_that_is_not_a_number_is_recorded():
    model = mlp(bn=False)
    with Tracker(model) as tracker:
        (model(batch()[0]).sum() * float("nan")).backward()
    assert torch.isnan(torch.tensor(one(tracker.frame(), name="0", signal="gradient", metric="gradient_norm")))


def test_what_cannot_be_measured_is_noted_and_training_goes_on(monkeypatch):
    from normscope.probing.recorder import Recorder

    def fail(*_, **__):
        raise RuntimeError("odd tensor")

    monkeypatch.setattr(Recorder, "look", fail)
    model = mlp()
    with Tracker(model) as tracker:
        train(model, 1)
    assert any("odd tensor" in note for note in tracker.notes)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_runs_eagerly_in_measured_steps():
    model = mlp(bn=False)
    model[6].p = 0.0
    compiled = torch.compile(model, backend="eager")
    with Tracker(compiled, every=2) as tracker:
        train(compiled, 3)
    assert set(tracker.frame()["step"]) == {0, 2}
    assert set(tracker.frame()["signal"]) == {"activation", "gradient", "weight"}
    assert any("eagerly" in note for note in tracker.notes)


@pytest.mark.filterwarnings("ignore")
def test_a_model_compiled_after_the_tracker_trains_on_and_the_tracker_says_that_it_is_blind():
    model = mlp(bn=False)
    tracker = Tracker(model, every=2)
    assert len(train(torch.compile(model, backend="eager"), 3)) == 3
    with pytest.warns(UserWarning, match=r"after torch\.compile"):
        tracker.close()


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_part_runs_eagerly_in_measured_steps():
    model = mlp(bn=False)
    model[0] = torch.compile(model[0], backend="eager")
    with Tracker(model, every=2) as tracker:
        train(model, 3)
    assert {"0._orig_mod", "2"} <= set(tracker.frame()["name"])
    assert set(tracker.frame()["step"]) == {0, 2}


# Bad input, files, reports


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every"), ({"every": True}, "every"), ({"rows": 1}, "rows"), ({"by": "epoch"}, "by"),
        ({"metrics": ["participation"]}, "participation_rank"), ({"layers": "nope*"}, "nope"),
        ({"writers": 3}, "writer"), ({"writers": "x.xlsx"}, r"\.csv.*folder.*\.parquet.*x\.xlsx"),
        ({"writers": "no/folder/x.csv"}, "no 'no/folder'"), ({"writers": "no/folder/parts"}, "no 'no/folder'"),
    ],
)  # fmt: skip
def test_bad_input_is_said_at_once_and_leaves_no_hook(options, words):
    model = mlp()
    with pytest.raises(UsageError, match=words):
        Tracker(model, **options)
    assert hooks_of(model) == 0


def test_step_needs_by_step():
    with pytest.raises(UsageError, match="by='step'"):
        Tracker(mlp()).step()


def test_a_tracker_that_saw_nothing_says_so():
    with pytest.warns(UserWarning, match="no training step"):
        Tracker(mlp()).close()


def test_files_hold_the_table(tmp_path):
    model = mlp()
    with Tracker(model, every=2, writers=[tmp_path / "run.csv", tmp_path / "parts"]) as tracker:
        train(model, 5)
    frame = tracker.frame()
    tracker.to_csv(tmp_path / "whole.csv")
    tracker.to_parquet(tmp_path / "whole.parquet")
    for read in (pl.read_parquet(tmp_path / "parts"), pl.read_parquet(tmp_path / "whole.parquet")):
        assert read.equals(frame)
    for name in ("run.csv", "whole.csv"):
        assert pl.read_csv(tmp_path / name, schema=frame.schema).equals(frame)
    assert len(list((tmp_path / "parts").iterdir())) == 3


def test_folders_may_have_dots_and_files_need_their_folder(tmp_path):
    model = mlp()
    with Tracker(
        model, every=2, writers=[tmp_path / "lr-0.1", tmp_path / "run.parquet", tmp_path / "UP.CSV"]
    ) as tracker:
        train(model, 3)
    for name in ("lr-0.1", "run.parquet"):
        assert pl.read_parquet(tmp_path / name).equals(tracker.frame())
    assert (tmp_path / "UP.CSV").is_file()
    with pytest.raises(UsageError, match="Create it first"):
        tracker.to_csv(tmp_path / "no" / "x.csv")


def test_an_earlier_runs_files_are_not_touched(tmp_path):
    def run(**options):
        model = mlp()
        with Tracker(model, every=2, **options) as tracker:
            train(model, 3)
        return tracker.frame()

    run(writers=[tmp_path / "a.csv", tmp_path / "a"])
    for target in (tmp_path / "a.csv", tmp_path / "a"):
        with pytest.raises(UsageError, match="append=True"):
            run(writers=target)
    with (tmp_path / "a.csv").open("a") as file:
        file.write("measured,9,torn")
    again = run(writers=[CsvWriter(tmp_path / "a.csv", append=True), ParquetWriter(tmp_path / "a", append=True)])
    assert len(pl.read_csv(tmp_path / "a.csv")) == len(pl.read_parquet(tmp_path / "a")) == 2 * len(again)


def test_a_writer_that_fails_warns_and_the_table_is_kept():
    def full(frame):
        raise OSError("disk full")

    model = mlp()
    tracker = Tracker(model, writers=full)
    train(model, 1)
    with pytest.warns(UserWarning, match="disk full"):
        tracker.close()
    assert len(tracker.frame())


def test_what_was_measured_is_on_disk_after_a_kill(tmp_path):
    code = f"""
    import os, signal, sys
    sys.path.insert(0, {os.path.dirname(__file__)!r})
    from test_tracker import *
    model = mlp()
    tracker = Tracker(model, every=2, writers=[{str(tmp_path / "k.csv")!r}, {str(tmp_path / "k")!r}])
    train(model, 4)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    for read in (pl.read_csv(tmp_path / "k.csv"), pl.read_parquet(tmp_path / "k")):
        assert set(read["step"]) == {0, 2}
        assert set(read["signal"]) == {"activation", "gradient", "weight"}


def test_a_run_that_just_ends_writes_its_last_step(tmp_path, monkeypatch):
    at_exit = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    tracker = Tracker(mlp(), writers=tmp_path / "k.csv")
    tracker._root(batch()[0])  # no backward pass came
    assert not (tmp_path / "k.csv").exists()
    at_exit[0]()
    assert set(pl.read_csv(tmp_path / "k.csv")["step"]) == {0}


def test_the_overhead_is_the_trackers_share():
    model = mlp()
    tracker = Tracker(model, every=1)
    assert tracker.overhead == 0
    train(model, 4)
    tracker.close()
    assert tracker.seconds > 0
    assert tracker.overhead == pytest.approx(
        tracker.seconds / (tracker._last - tracker._first - tracker.seconds), rel=1e-9
    )
    assert "4 steps seen, 4 measured, 10 layers" in repr(tracker)


def test_an_empty_table_has_its_columns():
    columns = ["source", "step", "samples", "layer", "name", "call", "kind", "signal", "metric", "value"]
    tracker = Tracker(mlp())
    assert tracker.frame().columns == columns
    train(tracker._root, 1)
    tracker.frame()
    assert tracker.frame().columns == columns


def test_the_example_runs(capsys):
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "track_training.py"))
    said = capsys.readouterr().out
    assert "every=10: 50 steps seen, 5 measured, 49 layers" in said
    assert "least rank of a layer" in said


def test_a_row_that_does_not_fit_is_taken_off_again(tmp_path, monkeypatch):
    import polars as pl

    from normscope.probing.writers import CsvWriter

    writer = CsvWriter(tmp_path / "a.csv")
    writer(pl.DataFrame({"step": [1], "name": ["=1+1"], "value": [-0.5]}))
    before = (tmp_path / "a.csv").read_bytes()
    assert before == b"step,name,value\n1,'=1+1,-0.5\n"
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    writer._flushed = -100.0
    with pytest.raises(OSError, match="No space"):
        writer(pl.DataFrame({"step": [2], "name": ["b"], "value": [1.0]}))
    assert (tmp_path / "a.csv").read_bytes() == before


def test_texts_that_a_spreadsheet_would_run_are_no_formulas_and_numbers_stay(tmp_path):
    import polars as pl

    from normscope.core.records import csv

    table = pl.DataFrame({"a": ["=x", "+x", "-x", "@x", "-1.5e-3", "+inf", "x=1", None], "b": [-1.0] * 8})
    assert csv(table, header=False).splitlines() == [
        "'=x,-1.0", "'+x,-1.0", "'-x,-1.0", "'@x,-1.0", "-1.5e-3,-1.0", "+inf,-1.0", "x=1,-1.0", ",-1.0",
    ]  # fmt: skip


def test_a_hook_that_was_set_as_the_interrupt_came_is_taken_off(monkeypatch):
    model = mlp()
    last = model[-1].weight
    usual = torch.Tensor.register_hook

    def interrupted(p, hook):
        handle = usual(p, hook)
        if p is last:
            raise KeyboardInterrupt
        return handle

    monkeypatch.setattr(nn.Parameter, "register_hook", interrupted)
    tracker = Tracker(model, every=1)
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(8, 24))
    tracker.close()
    assert not [n for n, p in model.named_parameters() if p._backward_hooks]
