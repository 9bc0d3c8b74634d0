"""The range test, one batch learnt by heart, and the noise of gradients: against plain loops."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normscope as ns


def net(norm=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.ReLU(), nn.Linear(16, 3))


X = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(48) % 3


def kept(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


# Gradient noise


def gradient(model, x, y):
    model = copy.deepcopy(model)
    F.cross_entropy(model(x), y).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]).double().numpy()


def test_parts_of_one_sample_give_the_covariance_of_the_samples_gradients():
    model = net(norm=False)
    g = np.stack([gradient(model, X[i : i + 1], Y[i : i + 1]) for i in range(48)])
    found = ns.gradient_noise(model, X, Y, parts=48)
    noise = np.trace(np.cov(g.T))
    assert found.noise == pytest.approx(noise, rel=1e-5)
    assert found.signal == pytest.approx(g.mean(0) @ g.mean(0) - noise / 48, rel=1e-4)
    assert found.scale == pytest.approx(found.noise / found.signal, rel=1e-9)


def test_with_batch_norm_each_part_is_a_batch_of_its_own():
    model = net()
    before = kept(model)
    g = np.stack([gradient(model, X[i : i + 8], Y[i : i + 8]) for i in range(0, 48, 8)])
    found = ns.gradient_noise(model, X, Y, parts=6)
    assert found.noise == pytest.approx(8 * np.trace(np.cov(g.T)), rel=1e-5)
    assert found.size == 8
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_batches_of_a_loader_are_parts():
    model = net()
    loader = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 48, 8)]
    assert ns.gradient_noise(model, data=loader) == ns.gradient_noise(model, X, Y, parts=6)


def test_the_error_is_that_of_the_jackknife_and_covers():
    # scalar model y = w with targets 1 + e: g = w - t; |G|^2 = 1, tr = 1, B = 1
    rng, inside = torch.Generator().manual_seed(0), []
    for _ in range(60):
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        t = 1 + torch.randn(160, 1, generator=rng)
        found = ns.gradient_noise(model, torch.ones(160, 1), t / 2, "mse", parts=16)
        inside.append(abs(found.scale - 1) < 2 * found.stderr)
    assert np.mean(inside) > 0.8  # of 95 % where the estimate is normal


def test_gradients_that_are_noise_alone_have_an_infinite_scale_or_are_told_as_such():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    t = torch.randn(64, 1, generator=torch.Generator().manual_seed(4))
    found = ns.gradient_noise(model, torch.ones(64, 1), t, "mse")
    assert abs(found.signal) < 3 * found.signal_stderr
    assert "hardly told from noise" in found.reason


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ns.UsageError, match="divide into 100 parts"):
        ns.gradient_noise(net(), X, Y, parts=100)


# The range test


def test_the_range_test_is_the_plain_loop():
    model = net()
    before = kept(model)
    found = ns.rate_range(model, X, Y, "cross_entropy", "momentum", low=1e-3, high=1.0, steps=30)
    twin = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-3, momentum=0.9)
    losses = []
    for rate in found.rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        value = F.cross_entropy(twin(X), Y)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert found.losses == pytest.approx(losses, rel=1e-4)
    assert found.rates == pytest.approx(np.geomspace(1e-3, 1, 30)[: len(found.rates)])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_range_test_ends_where_the_loss_blows_up_and_suggests_less():
    torch.manual_seed(0)
    model = nn.Linear(6, 1)
    found = ns.rate_range(model, 3 * X, X.sum(1, keepdim=True), "mse", "sgd")
    assert len(found.rates) < 100
    assert found.suggested < found.least < found.diverged == found.rates[-1]


def test_a_range_test_of_what_does_not_learn_suggests_nothing():
    model = nn.Sequential(nn.Linear(6, 3), nn.ReLU())
    nn.init.constant_(model[0].bias, -100.0)
    assert math.isnan(ns.rate_range(model, X, Y).suggested)


def test_groups_keep_their_ratios():
    model = net(norm=False)
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[3].parameters()}], lr=0.1
    )
    bare = copy.deepcopy(model)
    bare[0].requires_grad_(False)
    both = [ns.rate_range(m, X, Y, optimizer=o, low=1e-2, high=1.0, steps=12).losses
            for m, o in ((model, optimizer), (bare, "sgd"))]  # fmt: skip
    assert both[0] == pytest.approx(both[1], rel=1e-5)


# One batch learnt by heart


def test_a_healthy_net_learns_its_batch_by_heart():
    model = net()
    before = kept(model)
    found = ns.overfit(model, X[:16], torch.randint(3, (16,), generator=torch.Generator().manual_seed(2)))
    assert found.reached
    assert max(found.losses[found.step : found.step + 3]) <= found.floor == pytest.approx(0.05 * found.start)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_two_targets_for_one_input_are_not_learnt_by_heart():
    x, y = X[:8].repeat(2, 1), torch.arange(16) // 8
    found = ns.overfit(net(), x, y, steps=120)
    assert not found.reached
    assert found.end == pytest.approx(math.log(2), abs=0.02)
    assert "stands still" in found.reason


def test_a_rate_that_is_too_small_is_told_to_be_still_falling():
    found = ns.overfit(net(), X, Y, optimizer="sgd", rate=1e-3, steps=40)
    assert "still falling" in found.reason


def test_a_rate_that_blows_up_is_halved():
    torch.manual_seed(0)
    found = ns.overfit(nn.Linear(6, 1), X, X.sum(1, keepdim=True), "mse", optimizer="sgd", rate=4.0, steps=60)
    assert found.rate == 0.5
    assert found.reached


def test_progress_is_told_of_every_step():
    seen = []
    found = ns.overfit(net(), X, Y, rate=1e-4, steps=12, progress=lambda *at: seen.append(at))
    assert seen == [(i + 1, 12) for i in range(len(found.losses))]


def test_an_interrupt_leaves_the_model_as_it_was():
    model = net()
    before = kept(model)

    def stop(done, _):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ns.overfit(model, X, Y, rate=0.1, progress=stop)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("verb", [ns.overfit, ns.rate_range, ns.gradient_noise])
def test_a_loss_is_needed(verb):
    with pytest.raises(ns.UsageError, match="no targets and no loss"):
        verb(net(), X)


@pytest.mark.parametrize("verb", [ns.overfit, ns.rate_range])
def test_a_run_is_drawn(verb, tmp_path):
    found = verb(net(), X, Y, optimizer="sgd", steps=12)
    (chart,) = found.chart().to_dict()["concat"]
    assert len(chart["layer"]) > 2
    found.save(tmp_path / "a.html")
    assert (tmp_path / "a.html").exists()
