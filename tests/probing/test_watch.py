"""A tracker that speaks while a net trains: findings are told, training is stopped, a page is kept up."""

import pytest
import torch
from torch import nn

import normscope as ns


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def train(model, steps, tracker=None, broken_at=None, lr=0.1):
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for step in range(steps):
        x, y = torch.randn(16, 6), torch.randint(3, (16,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y) * (float("nan") if step == broken_at else 1.0)
        loss.backward()
        optimizer.step()
        if tracker is not None:
            tracker.log(loss=loss, lr=lr)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_update_is_that_of_the_step_that_followed():
    model = net()
    tracker = ns.Tracker(model, every=1)
    sizes = []
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().mean().backward()
        before = torch.cat([p.detach().flatten().clone() for p in model[0].parameters()])
        optimizer.step()
        after = torch.cat([p.detach().flatten() for p in model[0].parameters()])
        sizes.append(float((after - before).norm() / before.norm()))
    tracker.close()
    table = tracker.frame().filter(name="0", signal="weight")
    assert table.filter(metric="relative_update")["value"].to_list() == pytest.approx(sizes, rel=1e-4)


def test_a_table_that_is_read_before_the_step_claims_no_update():
    model = net()
    tracker = ns.Tracker(model, every=1)
    model(torch.randn(16, 6)).square().mean().backward()
    assert tracker.frame().filter(metric="relative_update").is_empty()


def test_what_the_loop_logs_is_in_the_table_with_its_step():
    model = net()
    with ns.Tracker(model, every=4) as tracker:
        train(model, 6, tracker)
        tracker.log(val_loss=torch.tensor(0.5))
    told = tracker.frame().filter(signal="run")
    assert told.filter(metric="loss")["step"].to_list() == list(range(6))
    assert told.filter(metric="val_loss").select("step", "value", "layer").rows() == [(5, 0.5, None)]


@pytest.mark.parametrize("value", ["2.3", torch.zeros(2), None])
def test_what_is_no_number_is_not_logged(value):
    with pytest.raises(ns.UsageError, match="loss=loss"):
        ns.Tracker(net()).log(loss=value)


def test_training_is_the_same_with_a_watch_that_tells():
    watched, plain = net(), net()
    with ns.Tracker(watched, every=2, on_finding=lambda f: None, stop_on="error") as tracker:
        train(watched, 8, tracker)
    train(plain, 8)
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), plain.parameters(), strict=True))


def test_a_finding_is_told_once_with_its_step():
    told, model = [], net()
    with ns.Tracker(model, every=2, on_finding=told.append) as tracker:
        train(model, 12, tracker, broken_at=5)
    assert [(f.code, f.severity, f.step) for f in told] == [("NS911", "error", 5)]
    assert tracker.findings()[0].code == "NS911"


def test_a_callback_that_raises_does_not_stop_training():
    model = net()
    with ns.Tracker(model, every=2, on_finding=lambda f: 1 / 0) as tracker:
        train(model, 8, tracker, broken_at=3)
    assert any("ZeroDivisionError" in note for note in tracker.notes)


def test_training_is_stopped_at_the_next_step_and_the_model_is_clean():
    model = net()
    tracker = ns.Tracker(model, every=1, stop_on="error")
    with pytest.raises(ns.TrainingStopped, match="NS911 numbers stop being finite") as stopped:
        train(model, 20, tracker, broken_at=4)
    assert stopped.value.finding.step == 4
    assert tracker.steps == 5
    assert hooks(model) == 0
    assert all(not p._backward_hooks for p in model.parameters())


def test_with_steps_counted_by_the_loop_step_itself_stops():
    model = net()
    tracker = ns.Tracker(model, every=1, by="step", stop_on="error")
    model(torch.randn(8, 6)).mul(float("nan")).sum().backward()
    with pytest.raises(ns.TrainingStopped):
        tracker.step()


def test_a_page_is_written_while_training_goes_on(tmp_path):
    pytest.importorskip("altair")
    model, seen = net(), []
    page = tmp_path / "run.html"
    with ns.Tracker(model, every=1, report=page, report_every=5) as tracker:
        for steps in (2, 5):
            train(model, steps, tracker)
            seen.append(page.stat().st_mtime_ns)
    assert len({*seen, page.stat().st_mtime_ns}) == 3
    assert "Training of Sequential" in page.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["run.html"]


def test_a_page_that_cannot_be_written_is_a_note(tmp_path):
    model, folder = net(), tmp_path / "gone"
    folder.mkdir()
    tracker = ns.Tracker(model, every=1, report=folder / "run.html")
    folder.rmdir()
    train(model, 3, tracker)
    assert any("run.html was not written" in note for note in tracker.notes)
    assert tracker.measured == 2


@pytest.mark.parametrize(
    "options",
    [{"stop_on": "info"}, {"report": "run.txt"}, {"report": "gone/run.html"}, {"report_every": 0}, {"on_finding": 3}],
)
def test_misuse_is_told_before_the_training(options):
    model = net()
    with pytest.raises(ns.UsageError):
        ns.Tracker(model, **options)
    assert hooks(model) == 0
