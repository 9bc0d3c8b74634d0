"""Diagnose with theory and curvature beside the measurement."""

import numpy as np
import pytest
import torch

import normscope as ns
from normscope.findings import find
from normscope.theory import overlay


def plain(width=64, depth=3, norm="none", seed=0):
    return ns.build(ns.Spec(depth=depth, width=width, norm=norm, outputs=4), 16, seed=seed)


def batch(n=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 16, generator=generator), torch.randint(4, (n,), generator=generator)


def brute_force_lambda_max(model, x, y):
    """Largest eigenvalue of (1/n) sum J_i^T (diag g - g g^T) J_i, J from one backward pass an output."""
    parameters = list(model.parameters())
    logits = model(x)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(v, parameters, retain_graph=True)])
        for v in logits.flatten()
    ]
    jacobian = torch.stack(rows).double().reshape(len(x), 4, -1)
    g = logits.detach().double().softmax(1)
    hessian = torch.diag_embed(g) - g[:, :, None] * g[:, None, :]
    fisher = torch.einsum("ncp,ncd,ndq->pq", jacobian, hessian, jacobian) / len(x)
    return torch.linalg.eigvalsh(fisher)[-1].item()


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_sharpness_of_a_diagnosis_is_that_of_the_dense_matrix(norm):
    model, (x, y) = plain(16, 2, norm), batch()
    found = ns.diagnose(model, x, y, curvature=True, trial=False)
    assert found.fisher.lambda_max == pytest.approx(brute_force_lambda_max(model, x, y), rel=2e-3)


def test_without_asking_no_curvature_is_measured():
    found = ns.diagnose(plain(), *batch(), trial=False)
    assert found.fisher is None
    assert not [f for f in found.findings if f.code.startswith("NS4")]


def test_a_rate_above_the_threshold_is_found():
    found = ns.diagnose(plain(), *batch(), lr=100.0, trial=False)
    assert "NS402" in [f.code for f in found.findings]


def test_a_rate_below_the_threshold_is_not():
    found = ns.diagnose(plain(), *batch(), lr=1e-4, trial=False)
    assert "NS402" not in [f.code for f in found.findings]


def test_a_wide_plain_net_is_pathologically_sharp_and_centring_cures_it():
    model, (x, y) = plain(width=512), batch(n=64)
    found = ns.diagnose(model, x, y, curvature=True, trial=False)
    assert "NS401" in [f.code for f in found.findings]
    cured = ns.diagnose(ns.nn.CenterOutputs(model, 4), x, y, curvature=True, trial=False)
    assert "NS401" not in [f.code for f in cured.findings]
    assert cured.fisher.lambda_max == pytest.approx(found.facts["lambda_max_centred"], rel=0.05)


def test_outputs_without_classes_leave_a_note_instead_of_an_error():
    model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Unflatten(1, (2, 2, 2, 1)))
    found = ns.diagnose(model, batch()[0], curvature=True, trial=False)
    assert found.fisher is None
    assert any("no sharpness" in note for note in found.facts["notes"])


def test_the_prediction_of_a_plain_mlp_is_what_its_seeds_average_to():
    x, _ = batch()
    found = [ns.diagnose(plain(width=256, depth=6, seed=s), x, trial=False).profile for s in range(12)]
    predicted = found[0].series("participation_rank", source="predicted")
    assert set(predicted) == set(range(7))
    for layer in range(1, 7):
        values = torch.tensor([p.series("participation_rank", source="measured")[layer] for p in found])
        standard_error = values.std().item() / 12**0.5
        assert abs(values.mean().item() - predicted[layer]) < 4 * standard_error


def test_another_net_gets_that_of_its_program():
    model = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(56, 4))
    x, y = batch()
    found = ns.diagnose(model, x[:, None], y, trial=False)
    predicted = {(r.layer, r.name) for r in found.profile.records if r.source == "predicted"}
    assert predicted == {(1, "0"), (2, "1"), (3, "3")}
    assert found.findings == find(found.profile)


def test_predictions_change_no_finding():
    x, y = batch()
    with_theory, without = (
        ns.diagnose(plain(depth=40), x, y, trial=False),
        ns.diagnose(plain(depth=40), x, y, theory=False, trial=False),
    )
    assert with_theory.findings == without.findings == find(with_theory.profile)


def test_the_layer_table_holds_measurements_only():
    found = ns.diagnose(plain(), *batch(), trial=False)
    assert len(found.layers) == 5  # input, three layers, readout


def test_one_metric_may_be_named_by_a_string():
    x, _ = batch()
    assert {r.metric for r in ns.probe(plain(), x, metrics="rms").records} == {"rms"}
    assert set(ns.measure(x, "rms")) == {"rms"}


def test_building_a_named_model_seeds_no_cuda_device(monkeypatch):
    from normscope.data.models import load_model

    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.random.get_rng_state()
    load_model("mlp:depth=2,width=8")
    assert not seeded
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("not enough memory"), np.linalg.LinAlgError("no"), IndexError("no")]
)
def test_a_prediction_that_fails_leaves_the_measurement_and_a_note(monkeypatch, error):
    def fails(*args, **options):
        raise error

    model, (x, y) = plain(), batch()
    whole = ns.diagnose(model, x, y, trial=False, theory=False)
    monkeypatch.setattr("normscope.theory.beside.predict", fails)
    found = ns.diagnose(model, x, y, trial=False)
    assert found.findings == whole.findings
    why = "it does not fit in memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"
    assert found.facts["notes"] == [f"no prediction beside it: {why}"]


def test_a_prediction_too_dear_is_left_out_before_it_starts():
    model, (x, _) = plain(), batch()
    with pytest.raises(ns.UsageError, match=r"24 samples in \d+ layers .* budget=1e-09"):
        overlay(model, x, ns.probe(model, x), budget=1e-9)


# Rates that are tried


def rated(lr, *, rates=True, optimizer=torch.optim.SGD, trial=False, **more):
    model = plain(16, 2)
    return ns.diagnose(model, *batch(), optimizer=optimizer(model.parameters(), lr), rates=rates, trial=trial, **more)


def of_rate(found):
    return [(f.severity, f.evidence) for f in found.findings if f.code == "NS402"]


def test_rates_are_tried_of_the_users_own_optimizer_and_else_of_three():
    (own,) = rated(0.1).rates
    assert (own.optimizer, own.own) == ("SGD", 0.1)
    assert own.largest_interval[0] <= own.largest <= own.largest_interval[1]
    found = ns.diagnose(plain(16, 2), *batch(), rates=True, trial=False)
    assert [r.optimizer for r in found.rates] == ["sgd", "momentum", "adam"]
    assert [r["optimizer"] for r in found.to_dict()["rates"]] == ["sgd", "momentum", "adam"]
    assert "learning rates" in found.verdict


def test_no_rate_is_tried_where_nobody_asked():
    assert rated(0.1, rates=False).rates == ()


@pytest.mark.parametrize(
    ("times", "severity", "words"),
    [(3.0, "warning", "too large"), (0.5, None, ""), (3e-3, "info", "too small"), (3e-4, "warning", "too small")],
)
def test_the_rate_in_use_is_held_against_the_trials(times, severity, words):
    (own,) = rated(0.1).rates
    said = of_rate(rated(times * (own.largest if times > 1 else own.best)))
    assert [s for s, _ in said] == ([severity] if severity else [])
    assert all(words in evidence for _, evidence in said)


@pytest.mark.parametrize(("top", "largest", "fires"), [(10.0, 1.0, False), (1.0, 0.1, True)])
def test_the_trials_decide_and_not_linear_stability(top, largest, fires):
    """A rate of 0.5 above 2 / λ_max = 0.2 that trains, and one below 2 / λ_max = 2 that does not."""
    profile = ns.diagnose(plain(16, 2), *batch(), rates=True, trial=False).profile
    profile.facts.update(lambda_max=top, learning_rate=0.5)
    interval = {"largest": largest, "largest_interval": (largest, largest)}
    profile.facts["checkup"]["rates"]["sgd"] |= interval | {"best": largest, "best_interval": (largest, largest)}
    assert ("NS402" in [f.code for f in find(profile)]) == fires


def test_a_rate_that_its_own_trial_trained_with_is_a_note():
    (own,) = rated(0.1).rates
    ((severity, evidence),) = of_rate(rated(3e-3 * own.best, optimizer=torch.optim.SGD, trial=50))
    assert severity == "info"
    assert "too small" in evidence


def test_where_the_loss_is_at_fault_no_rate_is_judged_and_auto_tries_none():
    model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    x, own = batch()[0], torch.optim.SGD(model.parameters(), 1e4)
    found = ns.diagnose(model, x, x.sum(1), torch.nn.MSELoss(), optimizer=own, rates=True, trial=False)
    assert "NS703" in [f.code for f in found.findings]
    assert len(found.rates) == 1
    assert not of_rate(found)
    found = ns.diagnose(model, x, x.sum(1), torch.nn.MSELoss(), optimizer=own, rates="auto", trial=False)
    assert found.rates == ()
    assert any("no learning rates were tried: wiring, loss or data" in note for note in found.facts["notes"])


def test_auto_tries_the_rates_of_a_given_optimizer_only():
    assert len(rated(0.1, rates="auto").rates) == 1
    assert ns.diagnose(plain(16, 2), *batch(), rates="auto", trial=False).rates == ()


def test_a_dead_net_gets_no_rate_but_the_reason():
    model = plain(16, 2)
    for p in model.parameters():
        p.data.zero_()
    own = torch.optim.SGD(model.parameters(), 1e4)
    found = ns.diagnose(model, torch.zeros(8, 16), torch.zeros(8, 4), "mse", optimizer=own, rates=True, trial=False)
    assert "the gradient is zero" in found.rates[0].reason
    assert not of_rate(found)


def test_what_stands_in_the_way_of_trials_is_a_note():
    found = ns.diagnose(plain(16, 2), batch()[0], rates=True, trial=False)
    assert found.rates == ()
    assert any("no targets and no loss" in note for note in found.facts["notes"])


def test_rates_are_true_false_or_auto():
    with pytest.raises(ns.UsageError, match="must be True or False; got 'yes'"):
        ns.diagnose(plain(16, 2), *batch(), rates="yes")


def test_the_command_line_shows_the_rates_and_a_page_draws_them(run, tmp_path):
    page = tmp_path / "a.html"
    code, out, _ = run("diagnose", "mlp:depth=2,width=8", "-n", 16, "--trial", "none", "--rates", "--html", page)
    assert code == 0
    assert "largest rate" in out
    assert "momentum" in out
    assert "Learning rates that were tried" in page.read_text()
    code, out, _ = run("diagnose", "mlp:depth=2,width=8", "-n", 16, "--trial", "none")
    assert "largest rate" not in out
