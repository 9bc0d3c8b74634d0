"""On a large net lambda_max comes first: what lies beside it is kept to a budget, and named where it is left out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from normscope import curvature
from normscope.core.errors import UsageError
from normscope.curvature._budget import Budget


def many_outputs() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 60), nn.BatchNorm1d(60), nn.ReLU(), nn.Linear(60, 60))
    return model, torch.randn(20, 20)


def test_without_time_there_is_lambda_max_and_a_list_of_what_is_missing() -> None:
    model, x = many_outputs()
    s = curvature.sharpness(model, x, budget=0.0)
    assert s.method == "lanczos"
    dense = torch.linalg.eigvalsh(curvature.ntk(model, x, dtype=torch.float64).dense())[-1] / 20
    assert s.lambda_max == pytest.approx(float(dense), rel=1e-3)
    assert math.isnan(s.mean)
    assert s.mean_gradient_share is None
    assert set(s.modes) == {"train, whole batch"}
    assert set(s.skipped) == {"mean eigenvalue, second moment", "lambda_max, eval"}
    assert "not computed    lambda_max, eval" in repr(s)
    assert "nan" not in repr(s)
    assert sum(s.layers.values()) == pytest.approx(1)


def test_with_time_nothing_is_left_out_and_every_estimate_has_an_error() -> None:
    model, x = many_outputs()
    s = curvature.sharpness(model, x, what_if=True)
    assert s.skipped == {}
    g = curvature.ntk(model, x, dtype=torch.float64).dense() / 20
    ones = torch.kron(torch.ones(20, 1, dtype=torch.float64) / 20**0.5, torch.eye(60, dtype=torch.float64))
    share = float((ones.T @ g @ ones).trace() / g.trace())
    assert s.mean_gradient_share is not None
    assert s.mean_gradient_share_stderr is not None
    assert 0 < s.mean_gradient_share_stderr < 0.2
    assert abs(s.mean_gradient_share - share) < 4 * s.mean_gradient_share_stderr
    for table in (s.modes, s.what_if):
        for name, value in table.items():
            assert 0 <= s.errors[name] <= 1e-2 * value * 1.01, name


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.Identity])
@pytest.mark.parametrize("loss", ["cross_entropy", nn.MSELoss()])
def test_the_mean_gradients_of_many_outputs_are_orthonormal_before_they_are_summed(loss: object, norm: type) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(20, 60), norm(60), nn.Tanh(), nn.Linear(60, 60)), torch.randn(25, 20)
    s = curvature.sharpness(model, x, loss=loss)
    assert (s.method == "dense") == (norm is nn.Identity)
    j = curvature.jacobian(model, x, dtype=torch.float64).dense().reshape(25, 60, -1)
    g = model(x).detach().double().softmax(1)
    root = g.sqrt().diag_embed() - g[:, :, None] * g.sqrt()[:, None, :]  # S S^T = diag(g) - g g^T
    if loss != "cross_entropy":
        root = torch.eye(60, dtype=torch.float64).expand(25, 60, 60)
    dual = torch.einsum("ikp,ikl->ilp", j, root).reshape(1500, -1)
    left, size, _ = torch.linalg.svd(root.transpose(1, 2).reshape(1500, 60), full_matrices=False)
    q = left[:, size / size[0] > 1e-9]
    share = float((q.T @ dual).square().sum() / dual.square().sum())
    assert s.mean_gradient_share is not None
    assert s.mean_gradient_share_stderr is not None
    assert s.mean_gradient_share_stderr < 0.2 * share
    assert abs(s.mean_gradient_share - share) <= 4 * s.mean_gradient_share_stderr + 1e-5 * share


def test_other_modes_say_how_far_off_they_may_be() -> None:
    model, x = many_outputs()
    s = curvature.sharpness(model, x)
    for name, mode in (("train, whole batch", "train"), ("eval", "eval")):
        g = curvature.ntk(model, x, mode=mode, dtype=torch.float64).dense() / 20
        off = float(torch.linalg.eigvalsh(g)[-1]) - s.modes[name]
        assert -1e-5 * s.modes[name] <= off <= s.errors[name], name


def test_fewer_probes_where_not_all_fit() -> None:
    budget = Budget(seconds=1000.0, product=180.0)  # five products and a bit
    assert budget.probes("trace", 8) == 5
    assert budget.probes("trace", 2) == 2
    assert not budget.affords("eval", 6)
    assert budget.skipped == {"eval": "6 products, about 1080 s"}
    poor = Budget(seconds=1000.0, product=300.0)
    assert poor.probes("trace", 8) == 0
    assert poor.skipped == {"trace": "8 products, about 2400 s"}


def test_a_budget_is_a_number_of_seconds() -> None:
    model, x = many_outputs()
    with pytest.raises(UsageError, match="budget must be a finite number >= 0"):
        curvature.sharpness(model, x, budget=-1.0)


def test_a_graph_that_does_not_fit_is_dropped_before_it_is_built_again() -> None:
    model, x = many_outputs()
    lean, kept = (curvature.sharpness(model, x, budget=0.0, memory=m) for m in (0.0, 1e12))
    assert lean.lambda_max == pytest.approx(kept.lambda_max, rel=1e-4)
