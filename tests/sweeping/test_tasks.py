"""Tasks: each is the function of the library that it names, on the cell's parameters."""

import math

import numpy as np
import pytest
import torch

import normscope
from normscope import Grid, Spec, UsageError, sweep, tasks
from normscope.sweeping import TASKS
from normscope.sweeping.task import Task

SMALL = {"depth": 3, "width": 8, "norm": "batch"}


def test_every_task_takes_the_fields_of_a_spec_and_a_seed():
    assert set(TASKS) >= {"probe", "simulate", "predict", "sharpness", "train", "phase"}
    for name in TASKS:
        assert Task.of(name).takes_seed
        Task.of(name).check(Grid(depth=[1], gain=[0.5], skip=[None]))


def test_simulate_is_the_simulation():
    x = np.random.default_rng([5, 1]).standard_normal((6, 8))
    expected = normscope.simulate(Spec(**SMALL), inputs=x, seed=5, every=3)
    found = {r.metric: r.value for r in tasks.simulate(**SMALL, n=6, seed=5)}
    assert found == {r.metric: r.value for r in expected.records if r.layer == 3}


def test_predict_is_the_prediction():
    gram = 0.7 * np.eye(6) + 0.3
    expected = normscope.predict(Spec(**SMALL), gram, metrics=["orthogonality_gap"], gradients=False)
    found = tasks.predict(**SMALL, n=6, cosine=0.3, metrics="orthogonality_gap", gradients=False, layers="all")
    assert [(r.layer, r.value) for r in found] == [(r.layer, r.value) for r in expected.records]


def test_probe_measures_in_training_mode():
    found = {r.metric: r.value for r in tasks.probe(**SMALL, n=16, data="digits", metrics="mean_abs_cosine")}
    net, batch = tasks._net(Spec(**SMALL), None, 16, "digits", None, 0)
    expected = normscope.probe(net, batch.inputs, metrics=["mean_abs_cosine"], mode="train")
    assert found["mean_abs_cosine"] == expected.series("mean_abs_cosine")[3]


def test_sharpness_is_the_largest_eigenvalue_of_a_dense_fisher_matrix():
    """Oracle: J^T J / n from autograd rows, batch norm from torch in training mode."""
    found = tasks.sharpness(**SMALL, n=10, outputs=2, tol=1e-6, seed=3)
    net, batch = tasks._net(Spec(**SMALL, outputs=2), None, 10, None, None, 3)
    net.double().train()
    out = net(batch.inputs.double())
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(v, net.parameters(), retain_graph=True)])
        for v in out.flatten()
    ]
    j = torch.stack(rows)
    expected = torch.linalg.eigvalsh(j @ j.T / 10)[-1].item()
    assert found["lambda_max"] == pytest.approx(expected, rel=1e-4)
    assert found["max_stable_lr"] == pytest.approx(2 / expected, rel=1e-4)


def test_train_is_plain_gradient_descent_where_it_has_no_batches():
    """Oracle: the same steps by hand on a linear model, in numpy."""
    given = {"depth": 1, "width": 5, "activation": "identity", "outputs": 1}
    net, batch = tasks._net(Spec(**given), None, 12, None, None, 7, readout=True)
    x, y = batch.inputs.double().numpy(), batch.targets.double().numpy()
    w, v = (p.detach().double().numpy() for p in net.parameters())
    losses = []
    for _ in range(21):
        h = x @ w.T
        r = h @ v.T - y
        losses.append((r**2).sum() / 24)
        w, v = w - 0.05 * (v.T @ r.T @ x) / 12, v - 0.05 * (r.T @ h) / 12
    found = tasks.train(**given, data=None, n=12, loss="squared_error", lr=0.05, steps=20, batch=None, seed=7)
    assert found["initial_loss"] == pytest.approx(losses[0], rel=1e-4)
    assert found["final_loss"] == pytest.approx(losses[-1], rel=1e-3)
    assert found["loss_ratio"] == pytest.approx(losses[-1] / losses[0], rel=1e-3)


def test_a_run_that_explodes_is_told_in_numbers():
    found = tasks.train(depth=2, width=8, data=None, loss="mse", lr=1e6, steps=50, batch=None)
    assert found["diverged"] == 1
    assert found["trained"] == 0
    assert found["final_loss"] == math.inf


def test_trained_means_that_the_loss_has_halved():
    given = {"depth": 1, "width": 64, "norm": "batch", "steps": 60, "n": 256, "batch": 64}
    well, still = tasks.train(**given, lr=0.2), tasks.train(**given, lr=1e-6)
    assert (well["trained"], still["trained"]) == (1, 0)
    assert well["loss_ratio"] < 0.5 < 0.99 < still["loss_ratio"]
    assert well["accuracy"] > 0.8 > still["accuracy"]


def test_a_phase_cell_has_all_that_a_phase_diagram_shows():
    found = tasks.phase(depth=3, width=16, norm="batch", steps=5)
    wanted = {"participation_rank", "orthogonality_gap", "gradient_growth", "lambda_max", "trained", "accuracy"}
    assert wanted <= set(found)
    assert all(math.isfinite(found[k]) for k in wanted)


def test_an_average_over_layers():
    every = tasks.simulate(**SMALL, n=6, metrics="participation_rank", layers="all", seed=1)
    (mean,) = tasks.simulate(**SMALL, n=6, metrics="participation_rank", average_from=2, seed=1)
    assert mean.value == pytest.approx(np.mean([r.value for r in every if r.layer >= 2]), rel=1e-14)
    assert mean.layer == 3
    assert math.isnan(mean.stderr)


def test_tasks_leave_the_global_stream_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for name in ("simulate", "probe", "sharpness", "train", "phase"):
        TASKS[name](**SMALL, **({"steps": 2} if name in ("train", "phase") else {}))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("train", {"loss": "huber"}, "loss"),
        ("train", {"lr": 0}, "lr must be"),
        ("train", {"steps": -1}, "steps must be"),
        ("train", {"loss": "cross_entropie"}, "Did you mean 'cross_entropy'"),
        ("probe", {"layers": "lats"}, "Did you mean 'last'"),
        ("simulate", {"n": 0}, "n must be"),
        ("simulate", {"n": 1}, "n must be a whole number >= 2"),
        ("phase", {"n": 1}, "n must be a whole number >= 2"),
        ("simulate", {"seed": "abc"}, "seed must be"),
        ("predict", {"average_from": "end"}, "average_from must be"),
        ("sharpness", {"tol": 5.0}, "tol must be"),
        ("simulate", {"cosine": 2}, "cosine must lie"),
        ("phase", {"depth": 0}, "depth"),
    ],
)
def test_bad_values_are_told_before_anything_runs(name, given, words):
    with pytest.raises(UsageError, match=words):
        sweep(Grid(**given), name)
