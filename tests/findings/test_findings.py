"""Every rule fires where it should and is silent where it should: on real nets on digits, and on made-up profiles."""

import functools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from normscope import Profile, Record, Spec, UsageError, build, diagnose
from normscope.data.datasets import load
from normscope.findings import RULES, find


@pytest.fixture(autouse=True)
def _seeded():
    """Nets that a test makes without saying how are the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# Real nets on digits


@functools.cache
def batch(n, seed=0):
    return load("digits", n=n, seed=seed)


@functools.cache
def diagnosis(spec, n=128, seed=0, mode="train"):
    data = batch(n, seed)
    return diagnose(build(spec, (1, 8, 8), seed=seed), data.inputs, data.targets, mode=mode, trial=False)


def found(spec, code, **options):
    """The finding of a code on a built net, ``None`` if the rule was silent."""
    return next((f for f in diagnosis(spec, **options).findings if f.code == code), None)


def codes(spec, **options):
    return [f.code for f in diagnosis(spec, **options).findings]


PLAIN = Spec(depth=32, width=128, outputs=10)
NORMED = Spec(depth=32, width=128, norm="batch", outputs=10)
SHALLOW = Spec(depth=4, width=128, outputs=10)
POSITIVE = Spec(depth=32, width=128, norm="batch", weights="positive", outputs=10)
RECENTRED = Spec(depth=100, width=256, norm="batch_recenter", outputs=10)
COMPLETE = Spec(depth=100, width=256, norm="batch", outputs=10)
LINEAR = Spec(depth=32, width=256, norm="batch_rescale", activation="identity", outputs=10)


@pytest.mark.parametrize("seed", range(5))
def test_a_plain_32_layer_relu_net_collapses(seed):
    assert found(PLAIN, "NS101", seed=seed).severity in ("warning", "error")


@pytest.mark.parametrize("seed", range(5))
def test_the_collapse_of_a_plain_net_starts_inside_it(seed):
    assert 4 <= found(PLAIN, "NS101", seed=seed).layer < 32


@pytest.mark.parametrize("seed", range(5))
def test_the_layer_where_the_collapse_starts_is_named(seed):
    finding = found(PLAIN, "NS101", seed=seed)
    assert finding.name == f"layers.{finding.layer - 1}"


@pytest.mark.parametrize("seed", range(5))
def test_with_batch_norm_there_is_no_geometry_finding(seed):
    assert [c for c in codes(NORMED, seed=seed) if c.startswith("NS1")] == []


def test_with_batch_norm_the_rank_is_healthier_than_without():
    ranks = [diagnosis(s).profile.series("participation_rank")[32] for s in (NORMED, PLAIN)]
    assert ranks[0] > 1.5 * ranks[1]


@pytest.mark.parametrize("seed", range(3))
def test_a_plain_4_layer_net_is_quiet(seed):
    assert codes(SHALLOW, seed=seed) == []


def test_a_quiet_net_gets_a_quiet_verdict():
    looked = "Nothing found in geometry, gradients, wiring, loss and data (no optimizer given; no trial run)."
    assert diagnosis(SHALLOW).verdict == looked


def test_a_broken_nets_verdict_names_the_trouble_and_the_layer():
    finding = found(POSITIVE, "NS101")
    assert f"rank collapse from layer {finding.layer}" in diagnosis(POSITIVE).verdict


@pytest.mark.parametrize("seed", range(3))
def test_linear_batch_norm_without_recentring_has_no_geometry_finding(seed):
    assert [c for c in codes(LINEAR, n=16, seed=seed) if c.startswith("NS1")] == []


@pytest.mark.parametrize("seed", range(3))
def test_linear_batch_norm_without_recentring_makes_samples_orthogonal(seed):
    angles = diagnosis(LINEAR, n=16, seed=seed).profile.series("mean_abs_cosine")
    # Angles between 16 random directions in 256 dimensions have mean |cosine| sqrt(2 / pi / 256) = 0.05.
    assert angles[0] > 0.5 > 0.12 > angles[32]


@functools.cache
def by_hand(n, seed):
    """The odd sample of recentring + ReLU, from numpy alone: who carries most of the centred energy at the last
    layer.
    """
    model = build(RECENTRED, (1, 8, 8), seed=seed)
    h = batch(n, seed).inputs.numpy().reshape(n, -1).astype(np.float64)
    for layer in model.layers:
        u = h @ layer.linear.weight.detach().numpy().astype(np.float64).T
        h = np.maximum(u - u.mean(0), 0)
    distances = np.sum((h - h.mean(0)) ** 2, axis=1)
    return int(distances.argmax()), n / (n - 1) * distances.max() / distances.sum()


ODD = [(16, 0), (16, 1), (32, 0), (32, 1), (64, 0), (64, 1)]


@pytest.mark.parametrize(("n", "seed"), ODD)
def test_recentring_without_rescaling_gives_an_odd_point(n, seed):
    assert found(RECENTRED, "NS103", n=n, seed=seed).severity == "error"


@pytest.mark.parametrize(("n", "seed"), ODD)
def test_the_odd_samples_index_is_the_oracles(n, seed):
    index, _ = by_hand(n, seed)
    assert f"sample {index} stands against the other {n - 1}" in found(RECENTRED, "NS103", n=n, seed=seed).evidence


@pytest.mark.parametrize(("n", "seed"), ODD)
def test_the_odd_samples_share_is_the_oracles(n, seed):
    _, share = by_hand(n, seed)
    assert found(RECENTRED, "NS103", n=n, seed=seed).value == pytest.approx(share, rel=1e-3)


def test_several_odd_samples_are_named_and_are_no_rank_collapse():
    x = torch.ones(64, 200) + 0.05 * torch.randn(64, 200, generator=torch.Generator().manual_seed(0))
    which = [3, 17, 40]
    x[which, 0] += 300
    said = {f.code: f.evidence for f in diagnose(build(RECENTRED, 200, seed=0), x, trial=False).findings}
    assert "samples 3, 17 and 40 stand against the other 61" in said["NS103"]
    assert "NS101" not in said


@pytest.mark.parametrize(("n", "seed"), ODD)
def test_complete_batch_norm_has_no_odd_point(n, seed):
    assert found(COMPLETE, "NS103", n=n, seed=seed) is None


@pytest.mark.parametrize("seed", range(3))
def test_positive_weights_break_batch_norm(seed):
    assert found(POSITIVE, "NS101", seed=seed).severity == "error"


def test_eval_mode_on_an_untrained_net_is_found():
    assert found(NORMED, "NS502", mode="eval").severity == "warning"


def test_eval_mode_on_a_net_without_batch_norm_is_no_finding():
    assert found(PLAIN, "NS502", mode="eval") is None


def test_training_mode_on_an_untrained_net_is_no_finding():
    assert found(NORMED, "NS502") is None


def test_aligned_digits_are_found():
    data = batch(64)
    model = build(SHALLOW, (1, 8, 8))
    assert "NS102" in [f.code for f in diagnose(model, data.inputs + 5, data.targets, trial=False).findings]


def test_digits_as_they_come_are_not_aligned():
    assert found(SHALLOW, "NS102") is None


def test_linear_batch_norm_on_a_large_batch_loses_directions():
    spec = Spec(depth=60, width=64, norm="batch_rescale", activation="identity", outputs=10)
    assert found(spec, "NS104", n=48).layer > 1


def test_linear_batch_norm_on_a_small_batch_keeps_them():
    assert found(LINEAR, "NS104", n=16) is None


@pytest.mark.parametrize(("gain", "verb"), [(0.7, "shrinks"), (2.5, "grows")])
def test_a_gain_that_does_not_fit_makes_the_signal_drift(gain, verb):
    assert verb in found(Spec(depth=20, width=64, gain=gain, outputs=10), "NS105").evidence


def test_the_gain_that_fits_keeps_the_signal():
    assert found(Spec(depth=20, width=64, outputs=10), "NS105") is None


def test_deep_batch_norm_explodes_gradients():
    assert found(COMPLETE, "NS201", n=64).severity == "error"


def test_a_shallow_net_with_batch_norm_does_not():
    assert found(Spec(depth=6, width=128, norm="batch", outputs=10), "NS201") is None


def test_deep_sigmoids_vanish_gradients():
    assert found(Spec(depth=10, width=64, activation="sigmoid", outputs=10), "NS202").severity == "warning"


def test_a_plain_relu_net_does_not_vanish_gradients():
    assert found(PLAIN, "NS202") is None


def test_gradients_too_small_to_move_the_weights_are_found():
    assert found(Spec(depth=20, width=64, gain=0.5, outputs=10), "NS204") is not None


def test_gradients_of_a_net_that_trains_are_large_enough():
    assert found(SHALLOW, "NS204") is None


def with_bias(value, activation):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), activation, nn.Linear(32, 10))
    nn.init.constant_(model[1].bias, value)
    return [f.code for f in diagnose(model, batch(64).inputs, batch(64).targets, trial=False).findings]


def test_dead_units_are_found():
    assert "NS301" in with_bias(-50.0, nn.ReLU())


def test_dead_units_are_found_behind_an_in_place_relu():
    assert "NS301" in with_bias(-50.0, nn.ReLU(inplace=True))


def test_live_units_are_no_finding():
    assert "NS301" not in with_bias(0.0, nn.ReLU())


def test_saturated_units_are_found():
    assert "NS302" in with_bias(9.0, nn.Tanh())


def test_unsaturated_units_are_no_finding():
    assert "NS302" not in with_bias(0.0, nn.Tanh())


def test_a_shifted_batch_is_far_from_the_running_statistics():
    model = build(Spec(depth=3, width=32, norm="batch", outputs=10), (1, 8, 8))
    data = batch(64)
    for _ in range(60):
        model(data.inputs)
    assert "NS501" in [f.code for f in diagnose(model, data.inputs * 3 + 1, data.targets, trial=False).findings]


def test_the_batch_that_was_trained_on_is_near_them():
    model = build(Spec(depth=3, width=32, norm="batch", outputs=10), (1, 8, 8))
    data = batch(64)
    for _ in range(60):
        model(data.inputs)
    assert "NS501" not in [f.code for f in diagnose(model, data.inputs, data.targets, trial=False).findings]


def test_a_batch_of_seven_is_too_small_to_tell():
    assert found(SHALLOW, "NS901", n=7) is not None


def test_a_batch_of_eight_is_not():
    assert found(SHALLOW, "NS901", n=8) is None


# Bad numbers


class Overflow(nn.Module):
    def forward(self, x):
        return x * 1e38 * 1e38


def overflowing():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), Overflow(), nn.Linear(16, 16), nn.Linear(16, 10))


def test_an_overflow_inside_is_found_at_its_first_layer():
    findings = diagnose(overflowing(), batch(16).inputs, batch(16).targets, trial=False).findings
    assert [(f.layer, f.name) for f in findings if f.code == "NS902"] == [(3, "3")]


def test_an_overflow_inside_is_an_error():
    findings = diagnose(overflowing(), batch(16).inputs, batch(16).targets, trial=False).findings
    assert [f.severity for f in findings if f.code == "NS902"] == ["error"]


def test_a_gradient_that_is_not_finite_is_found_where_it_starts_on_its_way_back():
    def loss(outputs, _targets):
        return (outputs * 0).sqrt().sum()  # the derivative of the root at 0 is infinite, times 0: NaN

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))
    findings = diagnose(model, batch(16).inputs, None, loss, trial=False).findings
    assert [(f.layer, f.name) for f in findings if f.code == "NS902"] == [(3, "3")]


def test_a_finite_net_has_no_such_finding():
    assert found(SHALLOW, "NS902") is None


def refused(model, inputs, **options):
    with pytest.raises(UsageError) as caught:
        diagnose(model, inputs, **options)
    return str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_number_in_the_input_is_located_at_its_sample(bad):
    inputs = batch(16).inputs.clone()
    inputs[11, 0, 3, 3] = inputs[13, 0, 0, 0] = bad
    said = refused(build(SHALLOW, (1, 8, 8)), inputs)
    assert (said.startswith("inputs must be finite; 2 of 16"), "sample 11." in said) == (True, True)


def test_a_bad_number_in_a_dict_of_inputs_is_located_at_its_key():
    assert "inputs['input']" in refused(nn.Linear(2, 2), {"input": torch.tensor([[1.0, 2], [math.nan, 1]])})


def test_a_bad_number_in_a_tuple_of_inputs_is_located_at_its_place():
    good, bad = torch.ones(4, 2), torch.full((4, 3), math.nan)
    assert "inputs[1]" in refused(nn.Bilinear(2, 3, 2), (good, bad))


def with_bad_weight():
    model = build(SHALLOW, (1, 8, 8))
    with torch.no_grad():
        model.layers[2].linear.weight[0, 0] = math.nan
    return model


def test_a_bad_number_in_a_parameter_is_located_at_its_name():
    assert "layers.2.linear.weight holds 1 NaN" in refused(with_bad_weight(), batch(16).inputs)


def test_a_bad_number_in_a_parameter_is_located_at_the_first_layer_it_reaches():
    assert "first seen at layer 3 (layers.2)" in refused(with_bad_weight(), batch(16).inputs)


def test_a_bad_parameter_is_told_with_targets_too():
    assert "layers.2.linear.weight" in refused(with_bad_weight(), batch(16).inputs, targets=batch(16).targets)


# Made-up profiles: one curve at a time


def profile(curves, *, layers=12, n=64, **facts):
    """A healthy net of ``layers`` hidden layers and a readout, but for ``curves``: (metric, signal) -> layer ->
    value.
    """
    healthy = {
        ("participation_rank", "activation"): lambda _: 8.0,
        ("mean_cosine", "activation"): lambda _: 0.2,
        ("mean_norm", "activation"): lambda _: 1.0,
        ("rms", "activation"): lambda _: 1.0,
        ("numerical_rank_float32", "activation"): lambda _: 64.0,
        ("odd_point_score", "activation"): lambda _: 0.05,
        ("odd_point_coherence", "activation"): lambda _: 0.3,
        ("odd_point_separation", "activation"): lambda _: 1.0,
        ("odd_point_margin", "activation"): lambda _: 0.1,
        ("odd_point_index", "activation"): lambda _: 5.0,
        ("dead_units", "activation"): lambda _: 0.0,
        ("saturated_units", "activation"): lambda _: 0.0,
        ("gradient_norm", "gradient"): lambda _: 1.0,
        ("gradient_collinearity", "gradient"): lambda _: 0.2,
        ("relative_gradient", "weight"): lambda _: 0.1,
    }
    records = [
        Record(layer, metric, float(value(layer)), signal, f"layers.{layer}" if layer else "", kind="Layer")
        for (metric, signal), value in (healthy | curves).items()
        for layer in range(layers + 2)
    ]
    return Profile(
        tuple(records), {}, {"batch_size": n, "mode": "train", "loss": "cross_entropy", "batch_norms": 3, **facts}
    )


def activation(**curves):
    return {(metric, "activation"): value for metric, value in curves.items()}


def gradient(**curves):
    return {(metric, "gradient"): value for metric, value in curves.items()}


def odd(
    score=lambda _: 0.9, coherence=lambda _: 0.9, index=lambda _: 5.0, separation=lambda _: 1.0, margin=lambda _: 0.1
):
    return activation(
        odd_point_score=score,
        odd_point_coherence=coherence,
        odd_point_index=index,
        odd_point_separation=separation,
        odd_point_margin=margin,
    )


def since(layer, value, before=0.0):
    return lambda at: value if at >= layer else before


def curves(*scales):
    """Of curves in the place of norms, alpha = 0.5, the rms of their inputs."""
    return profile({}, checkup={"norms": {"curves": [(f"norms.{i}", "tanh", 0.5, r) for i, r in enumerate(scales)]}})


#: name -> (profile, code, severity, layer) of a rule that fires.
FIRES = {
    "alpha leaves a sign": (curves(2, 42, 90), "NS508", "warning", None),
    "alpha lets the signal fall": (curves(2, 0.4, 0.09), "NS508", "warning", None),
    "rank one at the end": (profile(activation(participation_rank=since(7, 1 + 2e-6, 8))), "NS101", "warning", 7),
    "rank one at the end of a deep net": (
        profile(activation(participation_rank=since(7, 1.0, 8)), layers=20), "NS101", "error", 7,
    ),
    "rank nearly one at the end": (profile(activation(participation_rank=since(7, 1.02, 8))), "NS101", "info", 7),
    "low for long": (profile(activation(participation_rank=since(4, 1.1, 8)), layers=20), "NS101", "warning", 4),
    "recovers but ends low": (
        profile(activation(participation_rank=lambda at: {3: 1.001, 9: 1.1, 10: 1.1, 11: 1.02, 12: 1.02}.get(at, 8))),
        "NS101",
        "info",
        9,
    ),
    "aligned input": (profile(activation(mean_cosine=lambda at: 0.2 if at else 0.96)), "NS102", "warning", 0),
    "odd point": (profile(odd(score=since(6, 0.9))), "NS103", "error", 6),
    "odd point of a large batch": (
        profile(odd(score=since(6, 0.5), separation=lambda _: 11, margin=lambda _: 0.95, coherence=since(3, 0.7))),
        "NS103",
        "error",
        3,
    ),
    "several odd samples": (
        profile(activation(odd_samples=since(6, 3)), odd_samples=[3, 17, 40]), "NS103", "error", 6,
    ),
    "several odd samples on the way to rank one": (
        profile(activation(odd_samples=since(6, 2), participation_rank=since(2, 1.02, 8)), odd_samples=[3, 17]),
        "NS103", "error", 6,
    ),
    "several odd samples that came so": (
        profile(activation(odd_samples=lambda _: 3), odd_samples=[3, 17, 40]), "NS103", "warning", 1,
    ),
    "another odd point before": (profile(odd(index=since(8, 5, before=2))), "NS103", "error", 8),
    "directions lost": (profile(activation(numerical_rank_float32=since(9, 50, before=64))), "NS104", "info", 9),
    "signal grows": (profile(activation(rms=lambda at: 2.0**at)), "NS105", "warning", 8),
    "signal grows a lot": (profile(activation(rms=lambda at: 10.0**at)), "NS105", "error", 4),
    "signal shrinks": (profile(activation(rms=lambda at: 2.0**-at)), "NS105", "warning", 8),
    "signal dies": (profile(activation(rms=since(5, 0.0, before=1.0))), "NS105", "error", 5),
    "tokens merge": (profile(activation(token_cosine=since(5, 0.9999, before=0.2))), "NS106", "warning", 5),
    "tokens merge to rounding": (
        profile(activation(token_cosine=since(3, 1 - 1e-13, before=0.2))), "NS106", "error", 3,
    ),
    "gradients explode": (profile(gradient(gradient_norm=lambda at: 2.0**-at)), "NS201", "warning", 5),
    "gradients explode a lot": (profile(gradient(gradient_norm=lambda at: 10.0**-at)), "NS201", "error", 9),
    "gradients vanish": (profile(gradient(gradient_norm=lambda at: 2.0**at)), "NS202", "warning", 5),
    "gradients vanish a lot": (profile(gradient(gradient_norm=lambda at: 10.0**at)), "NS202", "error", 9),
    "gradients vanish wholly": (profile(gradient(gradient_norm=since(4, 1.0))), "NS202", "error", 3),
    "collinear": (
        profile(gradient(gradient_collinearity=lambda at: 0.97 if at < 13 else 0.3)),
        "NS203",
        "warning",
        1,
    ),
    "small updates": (profile({("relative_gradient", "weight"): lambda at: 1e-3 / (at + 1)}), "NS204", "warning", 1),
    "small updates of few layers": (
        profile({("relative_gradient", "weight"): lambda at: 1e-3 / (at + 1)}, layers=6), "NS204", "info", 1,
    ),
    "somewhat dead": (profile(activation(dead_units=since(5, 0.7))), "NS301", "info", 5),
    "dead": (profile(activation(dead_units=since(5, 0.8))), "NS301", "warning", 5),
    "quite dead": (profile(activation(dead_units=since(5, 1.0))), "NS301", "error", 5),
    "saturated": (profile(activation(saturated_units=since(5, 0.6))), "NS302", "info", 5),
    "quite saturated": (profile(activation(saturated_units=since(5, 0.95))), "NS302", "warning", 5),
    "far running statistics": (
        profile(activation(running_statistics_distance=since(4, 6.0))), "NS501", "warning", 4,
    ),
    "lagging running statistics": (
        profile(activation(running_statistics_distance=since(4, 0.6))), "NS501", "info", 4,
    ),
    "sharp": (profile({}, lambda_max=60.0, lambda_max_centred=10.0), "NS401", "info", None),
    "very sharp": (profile({}, lambda_max=210.0, lambda_max_centred=10.0), "NS401", "warning", None),
    "rate above the threshold": (profile({}, lambda_max=10.0, learning_rate=0.21), "NS402", "warning", None),
    "untrained in eval mode": (profile({}, mode="eval", untrained_batch_norms=2), "NS502", "warning", None),
    "small batch": (profile({}, n=7), "NS901", "info", None),
    "activations not finite": (
        profile(activation(mean_norm=since(4, math.nan, before=1.0))), "NS902", "error", 4,
    ),
    "gradients not finite": (
        profile(gradient(gradient_norm=lambda at: math.nan if at < 6 else 1.0)), "NS902", "error", 5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FIRES)
def test_a_rule_fires(case):
    made, code, _, _ = FIRES[case]
    assert code in [f.code for f in find(made)]


@pytest.mark.parametrize("case", FIRES)
def test_a_rule_that_fires_has_the_severity_of_its_evidence(case):
    made, code, severity, _ = FIRES[case]
    assert [f.severity for f in find(made) if f.code == code] == [severity]


@pytest.mark.parametrize("case", FIRES)
def test_a_rule_that_fires_names_the_layer_where_it_starts(case):
    made, code, _, layer = FIRES[case]
    assert [f.layer for f in find(made) if f.code == code] == [layer]


@pytest.mark.parametrize("case", FIRES)
def test_a_finding_is_complete(case):
    made, code, _, _ = FIRES[case]
    finding = next(f for f in find(made) if f.code == code)
    texts = (finding.title, finding.metric, finding.evidence, finding.meaning, finding.cure, finding.source)
    assert all(texts)


@pytest.mark.parametrize("case", FIRES)
def test_evidence_is_written_with_numbers_not_with_nan(case):
    made, code, _, _ = FIRES[case]
    assert not re.search(r"\bnan\b", next(f for f in find(made) if f.code == code).evidence)


@pytest.mark.parametrize("case", ["activations not finite", "gradients not finite"])
def test_the_evidence_of_a_non_finite_value_names_its_layer(case):
    made, code, _, layer = FIRES[case]
    assert f"layer {layer} (layers.{layer})" in next(f for f in find(made) if f.code == code).evidence


#: name -> (profile, code) of a rule that must be silent.
SILENT = {
    "alpha large once": (curves(2, 3, 90), "NS508"),
    "alpha small everywhere, as with skips": (curves(0.05, 0.05, 0.04), "NS508"),
    "alpha small behind two layers": (curves(2, 0.09), "NS508"),
    "low for a while": (profile(activation(participation_rank=lambda at: 1.1 if 2 < at < 9 else 8)), "NS101"),
    "ends low after few layers": (profile(activation(participation_rank=since(9, 1.1, 8))), "NS101"),
    "the output alone is of rank one": (profile(activation(participation_rank=since(13, 1.0, 8))), "NS101"),
    "of rank one from the input on": (profile(activation(participation_rank=lambda _: 1.0)), "NS101"),
    "cosine of the limit": (profile(activation(mean_cosine=lambda _: 0.95)), "NS102"),
    "aligned later": (profile(activation(mean_cosine=since(1, 0.99))), "NS102"),
    "odd for a while": (profile(odd(score=lambda at: 0.9 if at < 9 else 0.1)), "NS103"),
    "odd at the output alone": (profile(odd(score=since(13, 0.9))), "NS103"),
    "odd without a cluster": (profile(odd(coherence=lambda _: 0.5)), "NS103"),
    "odd among six": (profile(odd(), n=6), "NS103"),
    "separated in a batch of fifty": (
        profile(odd(score=lambda _: 0.5, separation=lambda _: 11, margin=lambda _: 0.95), n=50), "NS103",
    ),
    "several odd for a while": (profile(activation(odd_samples=lambda at: 3 if at < 9 else 0)), "NS103"),
    "the odd one of a collapsed batch": (
        profile(odd(score=since(6, 0.9)) | activation(odd_samples=lambda _: 0)), "NS103",
    ),
    "several odd samples of a net that has learnt": (
        profile(
            activation(odd_samples=lambda _: 3),
            odd_samples=[3, 17, 40],
            checkup={"loss": {"value": 0.1, "constant": 0.4}},
        ),
        "NS103",
    ),
    "equal samples": (profile(odd(score=lambda _: math.nan, coherence=lambda _: math.nan)), "NS103"),
    "directions lost without batch norm": (
        profile(activation(numerical_rank_float32=since(9, 50, before=64)), batch_norms=0), "NS104",
    ),
    "one direction lost to recentring": (profile(activation(numerical_rank_float32=since(1, 63, before=64))), "NS104"),
    "directions lost to a collapse": (
        profile(activation(numerical_rank_float32=since(9, 5, 64), participation_rank=since(9, 1.0, 8))), "NS104",
    ),
    "signal drifts a little": (profile(activation(rms=lambda at: 1.5**at), layers=11), "NS105"),
    "signal comes back": (profile(activation(rms=lambda at: 1e4 if 3 < at < 8 else 1.0)), "NS105"),
    "tokens merge in the last two layers": (profile(activation(token_cosine=since(11, 0.9999))), "NS106"),
    "tokens alike": (profile(activation(token_cosine=since(5, 0.9999, before=0.95))), "NS106"),
    "tokens merge for a while": (profile(activation(token_cosine=lambda at: 1.0 if 2 < at < 10 else 0.2)), "NS106"),
    "what tokens have in common grows": (
        profile(activation(token_cosine=since(5, 0.9999, before=0.2), rms=since(5, 100.0, before=1.0))), "NS106",
    ),
    "no signal at all": (profile(activation(rms=lambda _: 0.0)), "NS105"),
    "gradients grow a little": (profile(gradient(gradient_norm=lambda at: 1.4**-at)), "NS201"),
    "gradients shrink": (profile(gradient(gradient_norm=lambda at: 2.0**at)), "NS201"),
    "gradients shrink a little": (profile(gradient(gradient_norm=lambda at: 1.4**at)), "NS202"),
    "gradients grow": (profile(gradient(gradient_norm=lambda at: 2.0**-at)), "NS202"),
    "two layers": (profile(gradient(gradient_norm=lambda at: 100.0**at), layers=2), "NS202"),
    "one free layer": (profile(gradient(gradient_collinearity=lambda at: 0.3 if at in (5, 13) else 0.97)), "NS203"),
    "one output": (profile(gradient(gradient_collinearity=lambda _: 0.99)), "NS203"),
    "one layer moves": (profile({("relative_gradient", "weight"): lambda at: 0.01 if at == 3 else 1e-4}), "NS204"),
    "another loss": (profile({("relative_gradient", "weight"): lambda _: 1e-4}, loss="mse"), "NS204"),
    "half dead": (profile(activation(dead_units=lambda _: 0.6)), "NS301"),
    "half saturated": (profile(activation(saturated_units=lambda _: 0.5)), "NS302"),
    "near running statistics": (profile(activation(running_statistics_distance=lambda _: 0.5)), "NS501"),
    "not sharper than the rest": (profile({}, lambda_max=49.0, lambda_max_centred=10.0), "NS401"),
    "sharpness not measured": (profile({}), "NS401"),
    "sharp compared with nothing": (profile({}, lambda_max=0.17, lambda_max_centred=1e-14), "NS401"),
    "rate below the threshold": (profile({}, lambda_max=10.0, learning_rate=0.19), "NS402"),
    "trained in eval mode": (profile({}, mode="eval", untrained_batch_norms=0), "NS502"),
    "untrained in training mode": (profile({}, untrained_batch_norms=2), "NS502"),
    "eight samples": (profile({}, n=8), "NS901"),
    "finite": (profile({}), "NS902"),
}  # fmt: skip


@pytest.mark.parametrize("case", SILENT)
def test_a_rule_is_silent(case):
    made, code = SILENT[case]
    assert code not in [f.code for f in find(made)]


def test_a_healthy_profile_has_no_findings():
    assert find(profile({})) == []


def test_a_profile_without_gradients_is_judged_all_the_same():
    made = FIRES["rank one at the end"][0]
    records = tuple(r for r in made.records if r.signal == "activation")
    assert [f.code for f in find(Profile(records, {}, made.facts))] == ["NS101"]


def test_an_empty_profile_has_no_findings_but_the_small_batch():
    assert [f.code for f in find(Profile((), {}, {}))] == ["NS901"]


def test_predicted_and_simulated_records_are_not_judged():
    made = FIRES["rank one at the end"][0]
    records = tuple(r._replace(source="predicted") for r in made.records)
    assert find(Profile(records, {}, made.facts)) == []


def test_findings_come_errors_first():
    curves = activation(participation_rank=since(7, 1.001, 8), mean_cosine=lambda at: 0.99, dead_units=lambda _: 0.7)
    severities = [f.severity for f in find(profile(curves, n=7))]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)


# The contract of a rule

#: Modules of the rules that read the check-up of a step, not a profile.
CHECKED_ELSEWHERE = (
    "trial",
    "sight",
    "axes",
    "updates",
    "wiring",
    "steps",
    "objective",
    "targets",
    "answers",
    "batches",
    "samples",
    "layouts",
    "outcomes",
    "over_layers",  # tests/findings/test_over_steps.py
    "over_losses",
)


@pytest.mark.parametrize("code", RULES)
def test_a_code_is_ns_and_three_digits(code):
    assert re.fullmatch(r"NS[1-9]\d\d", code)


@pytest.mark.parametrize("code", RULES)
def test_a_rule_is_registered_under_its_own_code(code):
    assert RULES[code].code == code


@pytest.mark.parametrize("field", ["title", "meaning", "cure", "source", "text"])
@pytest.mark.parametrize("code", RULES)
def test_a_rule_says_what_a_reader_needs(code, field):
    assert getattr(RULES[code], field).strip()


@pytest.mark.parametrize("code", RULES)
def test_a_rule_has_a_known_severity(code):
    assert RULES[code].severity in ("error", "warning", "info")


@pytest.mark.parametrize("code", RULES)
def test_a_meaning_is_one_sentence(code):
    assert re.fullmatch(r"[A-Z][^.]*\.", RULES[code].meaning)


@pytest.mark.parametrize("code", RULES)
def test_a_rule_has_a_case_that_fires_and_one_that_does_not(code):
    if RULES[code].check.__module__.rpartition(".")[2] in CHECKED_ELSEWHERE or code in (
        "NS205",
        "NS303",
        "NS503",
        "NS504",
        "NS505",
        "NS506",
        "NS507",
    ):  # tests/findings/test_checkup.py has the same test
        return
    assert (code in {c for _, c, _, _ in FIRES.values()}, code in {c for _, c in SILENT.values()}) == (True, True)


def test_the_rules_stand_in_the_order_of_their_codes():
    assert list(RULES) == sorted(RULES)


def test_no_two_rules_have_one_title():
    titles = [r.title for r in RULES.values()]
    assert len(set(titles)) == len(titles)


def test_an_unknown_code_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'NS101'"):
        RULES["NS101a"]


@pytest.mark.parametrize("spec", [PLAIN, NORMED, POSITIVE], ids=str)
def test_a_finding_on_a_real_net_quotes_its_layers_own_module(spec):
    d = diagnosis(spec)
    names = {r.layer: r.name for r in d.profile.records}
    assert [f.name for f in d.findings if f.layer] == [names[f.layer] for f in d.findings if f.layer]


class Head(nn.Module):
    """A block whose query gets far smaller gradients than its output, by nature and in every block."""

    def __init__(self):
        super().__init__()
        self.query, self.output = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.output(x * (1 + 1e-6 * self.query(x)).tanh())


def test_a_role_that_gets_small_gradients_in_every_block_is_no_vanishing_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(*(Head() for _ in range(5)), nn.Linear(8, 3))
    found = diagnose(model, torch.randn(64, 8), torch.arange(64) % 3, trial=False)
    assert not {"NS201", "NS202"} & {f.code for f in found.findings}
