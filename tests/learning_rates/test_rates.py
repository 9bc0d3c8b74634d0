"""`normscope.rates`, against a plain loop of torch's own optimizers."""

import copy
import dataclasses
import json
import math
import re
import statistics

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normscope as ns
from normscope.core.errors import UsageError
from normscope.learning_rates._rates import MARGIN

MAKE = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9),
    "adam": lambda p, lr: torch.optim.Adam(p, lr),
}


def net(seed=0, *more):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), *more, nn.Linear(16, 3))


def batch(seed=0, n=24):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=g), torch.randint(3, (n,), generator=g)


def losses(model, batches, optimizer, rate, steps=20):
    """Before each update, and after the last."""
    model = copy.deepcopy(model)
    own = optimizer(model.parameters(), rate)
    found = []
    for i in range(steps + 1):
        x, y = batches[i % len(batches)]
        own.zero_grad()
        value = F.cross_entropy(model(x), y)
        found.append(value.item())
        if i < steps:
            value.backward()
            own.step()
    return found


def trains(model, batches, optimizer, rate, steps=20):
    """The definition, word by word."""
    now, start = (losses(model, batches, optimizer, r, steps) for r in (rate, 0.0))
    if len(batches) == 1:
        return all(x <= start[0] * (1 + 1e-6) for x in now)
    noise = 2 * statistics.pstdev(start)
    change = [a - b for a, b in zip(now, start, strict=True)]
    return all(statistics.fmean(change[max(0, i - 4) : i + 1]) <= noise for i in range(len(change)))


@pytest.mark.parametrize("name", list(MAKE))
def test_every_run_is_that_of_a_plain_loop_and_the_largest_rate_is_its_edge(name):
    model = net()
    found = ns.rates(model, *batch(), "cross_entropy", name)
    for rate, _, stayed in found.runs:
        assert trains(model, [batch()], MAKE[name], rate) == stayed
    ladder = sorted([found.largest / 3 * 1.05**k for k in range(46)] + [rate for rate, _, _ in found.runs])
    edge = next(r for r in ladder if not trains(model, [batch()], MAKE[name], r))
    assert found.largest < edge < found.largest * 1.25 / MARGIN
    assert found.largest_interval[0] < edge < found.largest_interval[1] * 1.06
    assert 0 < found.cost <= 200


def test_fresh_batches_are_held_against_themselves_at_the_start():
    model, batches = net(), [batch(k) for k in range(21)]
    found = ns.rates(model, data=batches, loss="cross_entropy")
    assert [trains(model, batches, MAKE["sgd"], r) for r, _, _ in found.runs] == [s for _, _, s in found.runs]
    assert not all(stayed for _, _, stayed in found.runs)
    start = [F.cross_entropy(model(x), y).item() for x, y in batches]
    assert found.noise == pytest.approx(2 * statistics.pstdev(start), rel=1e-5)
    assert found.start == pytest.approx(statistics.fmean(start), rel=1e-5)


@pytest.mark.parametrize(("name", "times"), [("sgd", 2.0), ("momentum", 3.8)])
def test_of_a_quadratic_it_is_at_most_the_rate_of_linear_stability(name, times):
    model = nn.Linear(1, 1, bias=False)
    x = torch.full((4, 1), 3.0)  # mse = 9 w^2, of curvature 18
    found = ns.rates(model, x, torch.zeros(4, 1), "mse", name, budget=400)
    assert found.largest <= times / 18 * 1.001
    if name == "sgd":
        assert found.largest > MARGIN * times / 18 / 1.1
        assert found.best == pytest.approx(1 / 18, rel=0.5)


def test_the_best_rate_has_the_least_loss_at_the_end_of_all_that_were_tried():
    found = ns.rates(net(), *batch(), optimizer="adam")
    ends = {rate: seen[-1] for rate, seen, stayed in found.runs if stayed and rate <= found.largest / MARGIN * 1.001}
    assert found.best == min(found.largest, min(ends, key=lambda rate: ends[rate]))
    assert found.best_interval[0] <= found.best <= found.best_interval[1]


def test_nothing_is_left_behind():
    model = net(0, nn.BatchNorm1d(16), nn.Dropout(0.3)).eval()
    own = torch.optim.Adam([{"params": model[0].parameters(), "lr": 0.1}, {"params": model[4].parameters()}], lr=0.01)
    F.cross_entropy(model(batch()[0]), batch()[1]).backward()
    own.step()
    state, kept = copy.deepcopy(model.state_dict()), copy.deepcopy(own.state_dict())
    grads = [p.grad.clone() for p in model[0].parameters()]
    luck = torch.get_rng_state()
    found = ns.rates(model, *batch(), optimizer=own)
    assert found.optimizer == "Adam"
    assert found.noise > 0  # of the dropout
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model[0].parameters(), grads, strict=True))
    assert str(own.state_dict()) == str(kept)
    assert not model.training
    assert torch.equal(torch.get_rng_state(), luck)


def test_an_own_optimizers_settings_and_groups_count():
    model = net()
    own = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[2].parameters()}], lr=0.01, momentum=0.5
    )
    found = ns.rates(model, *batch(), optimizer=own)

    def same(parameters, lr):
        given = list(parameters)
        return torch.optim.SGD([{"params": given[:2], "lr": lr}, {"params": given[2:], "lr": lr / 2}], momentum=0.5)

    assert [trains(model, [batch()], same, r) for r, _, _ in found.runs] == [s for _, _, s in found.runs]


@pytest.mark.parametrize(
    ("model", "inputs", "says"),
    [
        (nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Flatten()).requires_grad_(False), None, "no parameter takes"),
        (nn.Linear(6, 3), torch.full((24, 6), math.nan), "the loss is nan at the start"),
        (nn.Linear(6, 3, bias=False), torch.zeros(24, 6), "the gradient is zero"),
    ],
)
def test_a_dead_net_gets_the_reason_and_no_rate(model, inputs, says):
    x, y = batch()
    found = ns.rates(model, x if inputs is None else inputs, y)
    assert math.isnan(found.largest)
    assert math.isnan(found.best)
    assert says in found.reason
    assert says in str(found)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"optimizer": "adagrad"}, "no optimizer 'adagrad'"),
        ({"steps": 1}, "steps must be"),
        ({"budget": 20}, "budget must be"),
    ],
)
def test_what_it_cannot_use_is_one_error(options, says):
    with pytest.raises(UsageError, match=says):
        ns.rates(net(), *batch(), **options)


def test_without_targets_there_is_nothing_to_lower():
    with pytest.raises(UsageError, match="no targets and no loss"):
        ns.rates(net(), batch()[0])


def test_the_command_line_prints_a_table_and_writes_json_and_a_page(run, tmp_path):
    page = tmp_path / "rates.html"
    small = ("sharpness", "mlp:depth=2,width=8", "-n", 16, "--rates")
    code, out, _ = run(*small, "--html", page)
    assert code == 0
    assert "momentum" in out
    assert "linear stability of gradient descent" in out
    text = page.read_text()
    assert "Learning rates that were tried" in text
    assert "2 / λ_max" in text or "2 / \\u03bb_max" in text
    code, out, _ = run(*small, "--json")
    found = json.loads(out)["trials"]
    assert [t["optimizer"] for t in found] == ["sgd", "momentum", "adam"]
    assert all(t["largest_interval"][0] < t["largest"] < t["largest_interval"][1] for t in found)
    assert max(t["cost"] for t in found) <= 200


def test_a_race_takes_the_best_rate_of_trials_with_its_own_optimiser():
    x, y = batch(1, 512)
    options = {"epochs": 1, "batch": 16, "seeds": 1, "geometry": 0, "optimiser": "sgd", "momentum": 0.5}
    found = ns.race({"a": net(), "b": net()}, (x, y), lr={"a": "auto", "b": "auto:0.5"}, **options)
    rates = found.facts["rates"]
    assert rates["a"]["how"] == "the best of trials"
    assert rates["b"]["lr"] == pytest.approx(rates["a"]["lr"] / 2)
    assert rates["a"]["lr"] in [rate for rate, _ in rates["a"]["tried"]]
    assert rates["a"]["steps"] <= 200


def test_a_race_refuses_a_net_for_which_no_rate_trains():
    dead = nn.Sequential(nn.Linear(6, 3), nn.Flatten())
    nn.init.zeros_(dead[0].weight)
    dead[0].bias = None
    with pytest.raises(UsageError, match=r"lr='auto' found no rate that trains: the gradient is zero"):
        ns.race({"a": dead}, (torch.zeros(64, 6), batch(0, 64)[1]), lr="auto", epochs=1, batch=16, seeds=1, geometry=0)


def test_the_chart_has_a_line_for_each_rate_that_is_known():
    pytest.importorskip("altair")
    model = net()
    own = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.2}, {"params": model[2].parameters()}], lr=0.1)
    found = ns.rates(model, *batch(), optimizer=own)
    assert found.own == 0.2
    for known, words in ((found, {"best", "as given"}), (dataclasses.replace(found, stability=3.0), {"2 / λ_max"})):
        drawn = json.dumps(known.chart().to_dict(validate=False), ensure_ascii=False)
        assert words <= set(re.findall(r'"line": "([^"]*)"', drawn))
        assert known is not found or "2 / λ_max" not in drawn


def test_the_rate_of_a_warm_up_is_the_one_it_goes_to():
    model = net()
    own = torch.optim.SGD(model.parameters(), 0.3)
    torch.optim.lr_scheduler.LambdaLR(own, lambda step: step / 100)  # begins at zero
    found = ns.rates(model, *batch(), optimizer=own)
    assert found.own == 0.3
    assert [trains(model, [batch()], MAKE["sgd"], r) for r, _, _ in found.runs] == [s for _, _, s in found.runs]


def test_lbfgs_takes_no_single_step():
    model = net()
    with pytest.raises(UsageError, match="LBFGS evaluates the loss itself"):
        ns.rates(model, *batch(), optimizer=torch.optim.LBFGS(model.parameters()))


def test_the_best_rate_after_a_horizon_is_that_of_whole_runs():
    model, (x, y) = net(), batch()
    found = ns.rates(model, x, y, optimizer="adam", steps=5, horizon=30)
    assert found.horizon == 30
    ends = dict(found.ends)
    assert found.best == min(found.largest, min(ends, key=lambda rate: ends[rate]))
    assert len(ends) >= 5
    assert found.best_interval[0] <= found.best <= found.best_interval[1]
    assert found.best / 2 in ends or found.best / 4 in ends
    assert "after 30" in str(found)
    seen = losses(model, [(x, y)], MAKE["adam"], found.best, 30)[:30]
    assert statistics.fmean(seen[-10:]) == pytest.approx(ends[found.best], rel=1e-4)
    with pytest.raises(UsageError, match="horizon"):
        ns.rates(model, x, y, horizon=3)


class Slope(nn.Module):
    """A direction that falls at once, and a steep one whose growth is seen after many steps only."""

    def __init__(self, steep):
        super().__init__()
        self.u, self.v = (nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in (1.0, 1e-150))
        self.steep = steep

    def forward(self, x):
        return (self.u.square() + self.steep * self.v.square()).expand(len(x))


def test_where_the_best_rate_of_few_steps_blows_up_later_the_horizon_goes_lower():
    x, y = torch.zeros(4, 1), torch.zeros(4, dtype=torch.float64)
    found = ns.rates(Slope(1e4), x, y, lambda out, _: out.mean(), horizon=200)
    assert dict(found.ends)[max(dict(found.ends))] == math.inf
    assert 5e-5 < found.best < 1e-3  # 1 - 2e4 times the rate, to the power 200, times 1e-150
    assert dict(found.ends)[found.best] < found.start
