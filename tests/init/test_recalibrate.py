"""Running statistics of a batch norm set by one batch."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import normscope as ns
from normscope import UsageError
from normscope.findings.cures import treat

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(1)) * 3 + 1


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh())


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if k.endswith(("running_mean", "running_var"))}


def test_they_are_what_torch_sets_over_a_loader_of_this_batch():
    found, twin = treat(net(), "recalibrate", X), net()
    assert found.treated == ("1", "4")
    update_bn([X], twin)
    torch.testing.assert_close(statistics(found.model), statistics(twin))


def test_eval_mode_gives_what_training_mode_gives_but_for_the_variance_of_a_sample():
    before, model = net(), treat(net(), "recalibrate", X).model
    far = (before.eval()(X) - before.train()(X)).abs().max()
    assert (model.eval()(X) - model.train()(X)).abs().max() < 0.05 < far


def test_weights_modes_and_the_count_of_batches_stay_and_no_finding_is_left():
    model = net()
    for norm in (model[1], model[4]):  # settled, and far off
        norm.num_batches_tracked += 100
        norm.running_mean += 40
    assert "NS501" in {f.code for f in ns.diagnose(model, X).findings}
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" not in k}
    cured = ns.cure(model, "recalibrate", X)
    assert all(torch.equal(cured.state_dict()[k], v) for k, v in before.items())
    assert cured.training
    assert "NS501" not in {f.code for f in ns.diagnose(cured, X).findings}


@pytest.mark.parametrize("recenter", [True, False])
def test_our_own_batch_norm_is_brought_up_to_date_with_and_without_recentring(recenter):
    model = nn.Sequential(nn.Linear(6, 8), ns.nn.BatchNorm(8, recenter=recenter), nn.ReLU())
    cured = treat(model, "recalibrate", X).model
    assert (cured.eval()(X) - cured.train()(X)).abs().max() < 0.05


def test_a_norm_that_runs_twice_gets_the_mean_of_both():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.idle = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x) + self.norm(x + 4)

    found = treat(Twice(), "recalibrate", X)
    torch.testing.assert_close(found.model.norm.running_mean, X.mean(0) + 2)
    torch.testing.assert_close(found.model.norm.running_var, X.var(0))
    assert found.left_alone == {"idle": "it does not run"}


@pytest.mark.parametrize(
    ("model", "x", "said"),
    [(nn.Sequential(nn.Linear(6, 3)), X, "running statistics; this model has none"),
     (nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False)), X, "running statistics; this model has none"),
     (net(), X * float("nan"), "must be finite")],
)  # fmt: skip
def test_what_cannot_be_is_said_and_nothing_is_changed(model, x, said):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match=said):
        treat(model, "recalibrate", x)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
