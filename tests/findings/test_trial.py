"""The trial: real steps on copies, held against a plain loop of torch; what it says, and that nothing is left
behind.
"""

import copy
import math

import pytest
import torch
from torch import nn

from normscope import Step, diagnose
from normscope.core.errors import UsageError
from normscope.findings.checkup.trial import plan
from normscope.training.short import ShortRuns

CODES = ("NS421", "NS422", "NS423", "NS424", "NS425", "NS426", "NS427")


def table(n=512, d=10, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g)
    return x, (x[:, 0] * x[:, 1] + x[:, 2] > 0).long()


def batches(x, y, size=64):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def net(*widths, seed=0, norm=False):
    torch.manual_seed(seed)
    layers = []
    for i in range(len(widths) - 2):
        layers += [nn.Linear(widths[i], widths[i + 1]), *([nn.BatchNorm1d(widths[i + 1])] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def trained(model, optimizer, data, steps):
    """The losses of the plain loop, on the model itself."""
    losses = []
    for i in range(steps):
        x, y = data[i % len(data)]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def setup(seed=0, rate=0.1, **more):
    x, y = table()
    model = net(10, 32, 32, 2, seed=seed, norm=True)
    data = batches(x, y)
    given = {"model": model, "inputs": x[:64], "targets": y[:64], "loss": nn.CrossEntropyLoss(), "data": data}
    return given | {"optimizer": torch.optim.SGD(model.parameters(), rate)} | more


def trial_of(**given):
    found = diagnose(**given)
    assert found.profile.facts["checkup"]["left_out"] == {}
    return found, found.profile.facts["checkup"]["trial"]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_short_run_has_the_losses_of_a_plain_loop_bit_for_bit(kind):
    x, y = table()
    model, data = net(10, 32, 32, 2, norm=True), batches(x, y)
    runs = ShortRuns(Step(model, x, y, nn.CrossEntropyLoss()), data)
    course = runs.run(runs.plain(lambda p: kind(p, lr=0.01)), 20)
    twin = copy.deepcopy(model)
    assert list(course.losses) == trained(twin, kind(twin.parameters(), lr=0.01), data, 20)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_users_own_steps_have_the_losses_of_a_plain_loop(momentum):
    given = setup()
    given["optimizer"] = torch.optim.SGD(given["model"].parameters(), 0.05, momentum=momentum)
    twin = copy.deepcopy(given["model"])
    own = trial_of(**given)[1]["own"]
    optimizer = torch.optim.SGD(twin.parameters(), 0.05, momentum=momentum)
    assert own["losses"] == trained(twin, optimizer, given["data"], len(own["losses"]))


def test_an_optimizer_that_has_moments_already_goes_on_with_them():
    given = setup()
    optimizer = torch.optim.Adam(given["model"].parameters(), 0.01)
    trained(given["model"], optimizer, given["data"], 5)
    twin = copy.deepcopy(given["model"])
    other = torch.optim.Adam(twin.parameters(), 0.01)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    own = trial_of(**given | {"optimizer": optimizer})[1]["own"]
    assert own["losses"] == trained(twin, other, given["data"], len(own["losses"]))


def test_a_train_step_with_a_schedule_is_the_users_and_leaves_the_schedule_alone():
    given = setup()
    schedule = torch.optim.lr_scheduler.LambdaLR(given["optimizer"], lambda s: 1 / (1 + s))

    def step(model, optimizer, loss_fn, x, y):
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss

    before = copy.deepcopy(schedule.state_dict())
    own = trial_of(**given, train_step=step)[1]["own"]
    assert schedule.state_dict() == before
    assert given["optimizer"].param_groups[0]["lr"] == 0.1
    twin = copy.deepcopy(given["model"])
    other = torch.optim.SGD(twin.parameters(), 0.1)
    again = torch.optim.lr_scheduler.LambdaLR(other, lambda s: 1 / (1 + s))
    losses = []
    for i in range(10):
        losses += trained(twin, other, given["data"][i % len(given["data"]) :], 1)
        again.step()
    assert own["losses"][:10] == losses


@pytest.mark.parametrize("broken", [False, True])
def test_the_trial_leaves_nothing_behind(broken):
    given = setup()
    model, optimizer = given["model"], given["optimizer"]

    def step(model, optimizer, loss_fn, x, y):
        if broken and step.calls > 3:
            raise RuntimeError("the user's own")
        step.calls += 1
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    step.calls = 0
    before, ids = copy.deepcopy(model.state_dict()), [id(p) for p in model.parameters()]
    state, stream = copy.deepcopy(optimizer.state_dict()), torch.get_rng_state()
    diagnose(**given, train_step=step)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert ids == [id(p) for p in model.parameters()]
    assert [id(p) for g in optimizer.param_groups for p in g["params"]] == ids
    assert optimizer.state_dict() == state
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_a_net_that_trains_is_said_to():
    found, trial = trial_of(**setup())
    assert found.trains == {"sgd": True, "adam": True, "own": True}
    assert not [f.code for f in found.findings if f.code in CODES]
    assert "the loss fell with SGD and Adam, and with your own optimizer it went from" in found.verdict
    assert trial["steps"] == 50


def test_without_a_trial_the_verdict_says_so():
    found = diagnose(**setup(), trial=False)
    assert found.trains == {"sgd": None, "adam": None, "own": None}
    assert "no trial run" in found.verdict


def codes(**given):
    return {f.code: f for f in diagnose(**given).findings}


def test_nothing_trains_a_net_without_gradient():
    given = setup()
    for p in given["model"].parameters():
        nn.init.zeros_(p)
    found = codes(**given)
    assert found["NS421"].severity == "error"


def test_labels_that_are_noise_are_learnt_by_heart_only():
    given = setup()
    g = torch.Generator().manual_seed(3)
    given["data"] = [(torch.randn(64, 10, generator=g), torch.randint(2, (64,), generator=g)) for _ in range(200)]
    given["inputs"], given["targets"] = given["data"][0]
    assert codes(**given)["NS426"].severity == "info"
    valid = torch.randn(256, 10, generator=g), torch.randint(2, (256,), generator=g)
    assert codes(**given, valid=valid)["NS426"].severity == "warning"


def test_a_net_of_tiny_weights_trains_with_adam_only():
    model = net(10, 32, 32, 32, 32, 2)
    for m in model:
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=0.02)
            nn.init.zeros_(m.bias)
    x, y = table()
    given = {"model": model, "inputs": x, "targets": y, "loss": nn.CrossEntropyLoss()}
    found = codes(**given)
    assert found["NS422"].severity == "info"
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    assert codes(**given, optimizer=optimizer)["NS422"].severity == "info"


@pytest.mark.parametrize(("rate", "words"), [(1e-6, "too small"), (1e4, "too large")])
def test_an_optimizer_at_a_rate_that_does_not_train_is_named(rate, words):
    found = codes(**setup(rate=rate))
    assert words in found["NS423"].evidence
    assert found["NS423"].severity == "warning"


def test_a_loop_that_does_not_step_is_behind():
    def step(model, optimizer, loss_fn, x, y):
        loss = loss_fn(model(x), y)
        loss.backward()
        return loss

    found = diagnose(**setup(), train_step=step)
    assert found.trains == {"sgd": True, "adam": True, "own": False}


def test_validation_data_with_other_labels_do_not_follow():
    x, y = table(seed=5)
    assert "does not carry over" in codes(**setup(), valid=(x, 1 - y))["NS424"].evidence
    assert "NS424" not in codes(**setup(), valid=(x, y))


class OnlyTrained(nn.Module):
    """Another function in eval mode."""

    def __init__(self):
        super().__init__()
        self.net = net(10, 32, 32, 2)

    def forward(self, x):
        return self.net(x) if self.training else -self.net(x)


def test_an_eval_mode_that_is_another_function_is_named():
    model = OnlyTrained()
    found = codes(**setup(model=model, optimizer=torch.optim.Adam(model.parameters(), 0.01)))
    assert "the two modes are different functions" in found["NS424"].evidence


@pytest.mark.parametrize(("steps", "fires"), [(4, True), (50, False)])
def test_a_training_that_ends_while_the_loss_falls_is_too_short(steps, fires):
    assert ("NS425" in codes(**setup(steps=steps, rate=0.05))) == fires


def test_predictions_are_notes_of_a_net_that_trained():
    model = net(10, *[32] * 20, 2, norm=True)
    x, y = table()
    without = {f.code: f.severity for f in diagnose(model, x, y, trial=False, theory=False).findings}
    found = diagnose(model, x, y, theory=False)
    assert found.trains["sgd"]
    assert found.trains["adam"]
    fired = [c for c in without if c.startswith(("NS1", "NS2")) and without[c] != "info"]
    assert all(f.severity == "info" for f in found.findings if f.code in fired)


def test_a_loss_that_starts_as_no_number_gets_no_race():
    model = net(10, 32, 2)
    found = diagnose(model, *table(), lambda o, t: o.sum() * math.nan, trial=5)
    assert found.trains["sgd"] is None


@pytest.mark.parametrize("wrong", [0, 4, 2.5, "always", -1])
def test_a_trial_of_what_is_no_number_of_steps_is_refused(wrong):
    with pytest.raises(UsageError, match="trial"):
        diagnose(net(10, 4, 2), *table(), trial=wrong)


def test_the_plan_keeps_to_the_updates_that_there_are():
    plans = [plan(updates) for updates in (1, 30, 60, 100, 140, 250, 400, 1e5)]
    assert [p[0] for p in plans] == sorted(p[0] for p in plans)
    assert plans[0] == (5, 5, 2, 0)
    assert plans[-1][0] == 50


def test_too_few_steps_decide_nothing():
    x, y = table()
    model = net(10, 32, 2)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    found = diagnose(model, x, y, trial=5)
    assert found.trains == {"sgd": None, "adam": None, "own": None}
    assert "too few steps to tell" in found.verdict
    assert not [f for f in found.findings if f.code in CODES]


class Twice(nn.Module):
    """Two views of a sample, and what one predicts of the other."""

    def __init__(self):
        super().__init__()
        self.encoder, self.predictor = net(10, 32, 8), net(8, 8, seed=1)

    def forward(self, x):
        z = self.encoder(x)
        return z, self.predictor(z)


@pytest.mark.parametrize(("spread", "fires"), [(0.0, True), (20.0, False)])
def test_outputs_that_collapse_are_told(spread, fires):
    x, _ = table()
    model = Twice()

    def loss(o, t):
        z, p = o
        return 2 + 10 * (p - z).square().mean() + (z - 1).square().mean() - spread * z.std(0).clamp_max(1).mean()

    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    found = diagnose(model, x[:64], x[:64], loss, optimizer=optimizer, data=batches(x, x), trial=200)
    assert ("NS427" in {f.code for f in found.findings}) is fires


@pytest.mark.parametrize("apart", [True, False])
def test_what_does_not_carry_over_is_told(apart):
    x, y = table(d=4)
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))] if apart else y
    model = net(4, 64, 64, 2)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    found = diagnose(model, x[:64], y[:64], "cross_entropy", optimizer=optimizer, data=batches(x, y))
    assert ("NS426" in {f.code for f in found.findings if f.severity != "info"}) is apart


def test_a_loop_whose_inputs_change_without_their_targets_is_told():
    x, _ = table()
    y = (x[:, 0] > 0).long()
    model = net(10, 32, 2)

    def mirrored(model, optimizer, loss_fn, x, y):
        optimizer.zero_grad()
        loss = loss_fn(model(torch.where(torch.rand(len(x), 1) < 0.5, -x, x)), y)
        loss.backward()
        optimizer.step()
        return loss

    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    given = {"loss": nn.CrossEntropyLoss(), "optimizer": optimizer, "data": batches(x, y)}
    first = diagnose(model, x[:64], y[:64], **given, train_step=mirrored).findings[0]
    assert (first.code, "inputs" in first.evidence) == ("NS423", True)
    assert [f for f in diagnose(model, x[:64], y[:64], **given).findings if f.severity != "info"] == []


def test_what_the_trial_looks_at_moves_no_running_statistics():
    x, y = table()
    model = net(10, 32, 2, norm=True)
    data = batches(x, y)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(model, optimizer, loss_fn, x, y):
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    given = {"loss": nn.CrossEntropyLoss(), "optimizer": optimizer, "data": data, "valid": (x[:64], y[:64])}
    own = diagnose(model, *data[0], **given, train_step=step, trial=10).profile.facts["checkup"]["trial"]["own"]
    alone = copy.deepcopy(model)
    trained(alone, torch.optim.SGD(alone.parameters(), 0.1), data, 10)
    alone.eval()
    with torch.no_grad():
        wanted = [float(nn.functional.cross_entropy(alone(x), y)) for x, y in data[:8]]
    assert own["eval_after"] == pytest.approx(sum(wanted) / len(wanted), rel=1e-6)
    assert own["valid_after"] == pytest.approx(wanted[0], rel=1e-6)


def test_a_race_that_ends_early_was_seen_on_the_batches_held_back():
    x = torch.randn(512, 10, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    model = net(10, 256, 2)
    frozen = torch.optim.SGD(model.parameters(), 1e-6)
    found = diagnose(model, x[:64], y[:64], "cross_entropy", optimizer=frozen, data=batches(10 * x, y), trial=200)
    assert math.isfinite(found.profile.facts["checkup"]["trial"]["stream"]["unseen"])
    assert "NS426" not in {f.code for f in found.findings}
