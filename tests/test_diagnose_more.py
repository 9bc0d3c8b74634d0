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


def test_another_net_gets_none():
    model = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(56, 4))
    x, y = batch()
    found = ns.diagnose(model, x[:, None], y, trial=False)
    assert {r.source for r in found.profile.records} == {"measured"}


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
    assert found.facts["notes"] == [f"no prediction beside it: {type(error).__name__}: {error}"]


def test_a_prediction_too_dear_is_left_out_before_it_starts():
    model, (x, _) = plain(), batch()
    with pytest.raises(ns.UsageError, match=r"24 samples in \d+ layers .* budget=1e-09"):
        overlay(model, x, ns.probe(model, x), budget=1e-9)
