"""`cure`: by name, in turn, or the best by what is measured."""

import copy
import math
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import normscope as ns
from normscope import UsageError, cure
from normscope.findings.cures import CANDIDATES, follow, rank_cures, read, treat
from normscope.init import CURES
from normscope.nn import CenterOutputs


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def deep(depth=24, width=32, seed=0):
    return ns.build(ns.Spec(depth=depth, width=width, weights="torch", bias=0.0, outputs=10), 64, seed=seed)


@pytest.fixture(scope="module")
def digits():
    from normscope.data.datasets import load

    batch = load("digits", n=128)
    x = batch.inputs.flatten(1)
    return (x[:64], batch.targets[:64]), (x[64:], batch.targets[64:])


@pytest.fixture(scope="module")
def trials(digits):
    own, fresh = digits
    return rank_cures(
        deep(), *own, fresh=fresh, candidates=("none", "identity", "orthogonal", "xavier", "haar"), curvature=False
    )


# By name


def test_a_cure_changes_the_model_in_place(digits):
    model = deep()
    assert cure(model, "orthogonal", digits[0][0]) is model


def test_equal_seeds_give_bit_identical_weights(digits):
    made = [cure(deep(), "he", digits[0][0], seed=3).state_dict() for _ in range(2)]
    assert all(torch.equal(made[0][k], made[1][k]) for k in made[0])


@pytest.mark.parametrize(("name", "near"), [("ortogonal", "orthogonal"), ("he+lsuw", "lsuv"), ("atuo", "auto")])
def test_an_unknown_cure_names_the_nearest(name, near, digits):
    with pytest.raises(UsageError, match=f"Did you mean '{near}'"):
        cure(deep(), name, digits[0][0])


def test_an_unknown_cure_in_a_sum_changes_nothing(digits):
    model = deep()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError):
        cure(model, "he+nothing", digits[0][0])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_cures_joined_by_a_plus_are_applied_in_turn(digits):
    x = digits[0][0]
    both = treat(deep(), "orthogonal+center-outputs", x)
    alone = cure(deep(), "orthogonal", x)
    assert isinstance(both.model, CenterOutputs)
    assert all(torch.equal(a, b) for a, b in zip(both.model.parameters(), alone.parameters(), strict=True))
    assert both.treated[-1] == "outputs"


@pytest.mark.parametrize("name", ["orthogonal", "bn"])
def test_an_interrupt_that_comes_when_a_cure_is_done_leaves_nothing_of_it(name, digits, monkeypatch):
    model = deep()
    before, modules = copy.deepcopy(model.state_dict()), list(model.modules())
    apply = CURES[name].apply

    def interrupted(*args):
        apply(*args)
        raise KeyboardInterrupt

    monkeypatch.setitem(CURES._things, name, replace(CURES[name], apply=interrupted))
    with pytest.raises(KeyboardInterrupt):
        cure(model, name, digits[0][0])
    assert [id(m) for m in model.modules()] == [id(m) for m in modules]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_cure_undoes_the_rank_collapse(digits):
    own, fresh = digits
    course = follow(deep(), "orthogonal", *own, fresh=fresh, curvature=False)
    assert "NS101" in course.before.codes
    assert not course.after.errors
    assert course.before.deepest < 1.01 < 2 < course.after.deepest
    assert course.before.gradient_spread > 1e4 > course.after.gradient_spread


# Auto


def test_auto_ranks_the_cures_that_train_first(trials):
    """Identity and orthogonal weights make this net trainable, the others do not (docs/cures.md)."""
    assert {t.name.split("+")[0] for t in trials[:2]} == {"identity", "orthogonal"}


def test_what_raced_comes_first_by_what_is_left_of_the_loss(trials):
    left = [t.left for t in trials if not math.isnan(t.left)]
    assert left == sorted(left) == [t.left for t in trials[: len(left)]]
    assert left[0] < -1 < left[-1] < 0.1
    assert trials[len(left) - 1].name == "none"


def test_without_a_loss_or_time_for_races_the_signs_decide(digits, monkeypatch):
    few = partial(rank_cures, candidates=("none", "identity", "xavier"), curvature=False)
    by_signs = few(deep(), digits[0][0])
    assert all(math.isnan(t.left) for t in by_signs)
    assert by_signs[0].name == "identity"
    monkeypatch.setattr(sys.modules["normscope.findings.cures"], "SECONDS", 0.0)
    assert all(math.isnan(t.left) for t in few(deep(), *digits[0]))


def test_a_frozen_model_is_ranked_by_signs(digits):
    model = deep(depth=4).requires_grad_(False)
    ranked = rank_cures(model, *digits[0], candidates=("none", "he"))
    assert ranked[0].name == "none"
    assert all(math.isnan(t.left) for t in ranked)


def test_a_model_with_errors_comes_after_all_without_where_nothing_raced(trials):
    errors = [bool(t.reading.errors) for t in trials if not t.control and math.isnan(t.left)]
    assert errors == sorted(errors)


def test_the_negative_control_is_shown_last_and_its_gradients_explode(trials):
    haar = trials[-1]
    assert (haar.name, haar.control) == ("haar", True)
    others = [t.reading.gradient_growth for t in trials if t.name in ("identity", "orthogonal")]
    assert haar.reading.gradient_growth > 10 * max(others)


def test_the_cost_is_the_sum_of_its_terms(trials):
    for t in trials:
        terms = t.reading.terms
        assert t.reading.cost == pytest.approx(sum(terms.values()))
        assert min(terms.values()) >= 0


def test_the_terms_are_what_their_names_say(trials):
    r = next(t.reading for t in trials if t.name == "orthogonal")
    assert r.terms["contrast lost"] == pytest.approx(max(0, math.log10((1 - 1 / r.input) / (1 - 1 / r.least))))
    assert r.terms["gradient spread"] == pytest.approx(math.log10(r.gradient_spread))
    assert r.terms["structure lost"] == pytest.approx(-math.log10(r.kept))


def test_the_sharpness_term_is_how_far_the_stable_rate_lies_below_the_usual_one(digits):
    from normscope.curvature import sharpness

    x, y = digits[0]
    model = cure(deep(depth=2), "he", x)
    with torch.no_grad():
        model.readout.weight.mul_(10)
    rate = sharpness(model, x, y, "cross_entropy").max_stable_lr
    assert rate < 0.1
    assert read(model, x, y).terms["sharpness"] == pytest.approx(math.log10(0.1 / rate), abs=0.03)


def test_the_kept_structure_is_the_alignment_of_centred_grams(digits):
    x = digits[0][0].double()
    model = nn.Sequential(nn.Linear(64, 20), nn.Linear(20, 20), nn.Linear(20, 10)).double()
    h = model[:2](x).detach()
    center = torch.eye(64, dtype=torch.float64) - 1 / 64
    a, b = center @ x @ x.T @ center, center @ h @ h.T @ center
    expected = float(torch.trace(a @ b) / (a.norm() * b.norm()))
    assert read(model, x, digits[0][1], curvature=False).kept == pytest.approx(expected)


def test_auto_leaves_a_model_alone_that_nothing_beats(digits):
    model = cure(deep(depth=6), "identity", digits[0][0])
    ranked = rank_cures(model, *digits[0], fresh=digits[1], candidates=("none", "identity", "xavier"), curvature=False)
    assert ranked[0].name == "none"


def test_trials_leave_the_model_alone(digits):
    model = deep(depth=6)
    before = copy.deepcopy(model.state_dict())
    rank_cures(model, *digits[0], candidates=("he", "identity"), curvature=False)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_auto_applies_the_first_of_the_ranking(digits, monkeypatch):
    few = partial(rank_cures, candidates=("none", "identity"), curvature=False)
    monkeypatch.setattr(sys.modules["normscope.findings.cures"], "rank_cures", few)
    model, by_name = deep(), deep()
    made = cure(model, "auto", *digits[0])
    cure(by_name, "identity", *digits[0])
    inner = made.model if isinstance(made, CenterOutputs) else made
    assert all(torch.equal(a, b) for a, b in zip(inner.parameters(), by_name.parameters(), strict=True))


def test_a_cure_that_cannot_be_tried_says_why(digits):
    model = nn.Sequential(nn.Linear(64, 10))
    ranked = rank_cures(model, *digits[0], candidates=("none", "orthogonal"), curvature=False)
    assert ranked[0].name == "none"
    assert "this model has none" in next(t.reason for t in ranked if t.name == "orthogonal")


def test_no_time_is_told(digits):
    ranked = rank_cures(deep(depth=4), *digits[0], candidates=("none", "he"), curvature=False, seconds=0.0)
    assert next(t.reason for t in ranked if t.name == "he") == "not tried: no time left"


def test_every_candidate_is_a_cure_that_keeps_the_architecture():
    assert all(not CURES[name].wraps for name in CANDIDATES)


# Norms on the outputs


def test_centred_outputs_raise_the_largest_stable_rate(digits):
    plain, centred = (
        read(cure(deep(depth=2, width=64), how, digits[0][0]), *digits[1]) for how in ("he", "he+center-outputs")
    )
    assert centred.max_stable_lr > 2 * plain.max_stable_lr


@pytest.mark.parametrize("name", ["center-outputs", "last-batch-norm"])
def test_a_model_that_returns_no_tensor_cannot_be_wrapped(name):
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(UsageError, match="returns tuple"):
        cure(Two(), name, torch.randn(4, 3))


# Batch norm after each layer


def test_batch_norm_stands_between_each_layer_and_its_activation():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3))
    made = cure(model, "bn", torch.randn(9, 1, 8, 8))
    assert [type(m).__name__ for m in made[0]] == ["Conv2d", "BatchNorm2d"]
    assert [type(m).__name__ for m in made[3]] == ["Linear", "BatchNorm1d"]
    assert isinstance(made[5], nn.Linear)


def test_inserted_batch_norm_equals_the_net_with_batch_norm(digits):
    x = digits[0][0]
    plain = ns.build(ns.Spec(depth=5, width=16, outputs=10), 64)
    normed = ns.build(ns.Spec(depth=5, width=16, norm="batch", outputs=10), 64)
    assert torch.allclose(cure(plain, "bn", x)(x), normed(x), atol=1e-5)


def test_layers_with_batch_norm_already_are_left_alone(digits):
    model = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    made = treat(model, "bn", digits[0][0])
    assert made.treated == ("3",)
    assert made.left_alone["0"] == "batch norm follows it already"


def test_a_linear_layer_on_sequences_gets_no_batch_norm():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Flatten(), nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 3))
    made = treat(model, "bn", torch.randn(7, 5, 6))
    assert made.treated == ("3",)
    assert "sequences" in made.left_alone["0"]


def test_targets_with_a_mean_are_not_given_centred_outputs():
    torch.manual_seed(0)
    x = torch.rand(64, 8) + 1
    y = x.sum(1, keepdim=True)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
    names = [t.name for t in rank_cures(model, x, y, candidates=("none", "he"), loss="mse")]
    assert not any("center-outputs" in name for name in names)
    assert any("cannot have" in note for note in treat(model, "center-outputs", x, y).notes)
    assert not any("cannot have" in note for note in treat(model, "center-outputs", x, y - y.mean()).notes)
