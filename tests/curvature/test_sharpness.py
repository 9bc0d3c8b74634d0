"""What ``sharpness`` reports, apart from the numbers tested elsewhere."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from normscope import curvature
from normscope.core.errors import UsageError


def net(width: int = 24, c: int = 4) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, c))
    return model, torch.randn(40, 10), torch.randn(40, c)


def test_batches_and_the_whole_are_told_apart() -> None:
    model, x, _ = net()
    parts = list(x.split(20))
    s = curvature.sharpness(model, data=parts)
    assert set(s.modes) == {"train, mean over batches", "train, whole batch", "eval"}
    assert s.modes["train, whole batch"] == pytest.approx(curvature.sharpness(model, x).lambda_max, rel=1e-5)
    assert s.modes["train, mean over batches"] == s.lambda_max
    assert s.facts["batches"] == 2
    assert s.facts["samples"] == 40


def test_torchs_mean_squared_error_scales_the_rate() -> None:
    model, x, y = net()
    ours = curvature.sharpness(model, x, y, "squared_error")
    torchs = curvature.sharpness(model, x, y, nn.MSELoss())
    assert torchs.max_stable_lr == pytest.approx(ours.max_stable_lr * 4 / 2, rel=1e-5)


def test_results_are_plain_data_and_print_their_circumstances() -> None:
    model, x, y = net()
    s = curvature.sharpness(model, x, y, what_if=True, descent=3)
    told = json.loads(json.dumps(s.to_dict(), default=str))
    assert told["max_stable_lr"] == pytest.approx(2 / s.lambda_max)
    assert set(told["what_if"]) == set(curvature.VARIANTS) - {"none"}
    assert "train mode, batch 40, float32, loss mse" in repr(s)
    assert "linear stability" in repr(s)


def test_a_long_solve_gives_the_same_as_a_dense_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 50), nn.BatchNorm1d(50), nn.Tanh(), nn.Linear(50, 10))
    x = torch.randn(150, 20)
    s = curvature.sharpness(model, x, probes=30)
    f = curvature.fisher(model, x, dtype=torch.float64)
    values = torch.linalg.eigvalsh(f.dense())
    assert s.method != "dense"
    assert s.lambda_max == pytest.approx(float(values[-1]), rel=1e-3)
    assert abs(s.mean - float(values.mean())) < 4 * s.mean_stderr
    assert abs(s.second_moment - float(values.square().mean())) < 4 * s.second_moment_stderr
    rows = curvature.jacobian(model, x, dtype=torch.float64).dense().reshape(150, 10, -1)
    share = float(rows.mean(0).square().sum() / values.sum())
    assert s.mean_gradient_share == pytest.approx(share, rel=0.02)


def test_the_top_eigenvectors_layer_shares_are_those_of_the_dense_one() -> None:
    model, x, _ = net()
    s = curvature.sharpness(model, x)
    vector = torch.linalg.eigh(curvature.fisher(model, x, dtype=torch.float64).dense())[1][:, -1]
    parts = vector.square().split([p.numel() for p in model.parameters()])
    want: dict[str, float] = {}
    for (name, _), part in zip(model.named_parameters(), parts, strict=True):
        want[name.split(".")[0]] = want.get(name.split(".")[0], 0) + float(part.sum())
    assert s.layers == pytest.approx(want, abs=1e-3)


def test_a_flat_loss_has_no_limit() -> None:
    model = nn.Linear(3, 2)
    s = curvature.sharpness(model, torch.zeros(5, 3), parameters="weight")
    assert s.lambda_max == 0
    assert s.max_stable_lr == math.inf


def test_descent_needs_targets() -> None:
    model, x, _ = net()
    with pytest.raises(UsageError, match="needs targets"):
        curvature.sharpness(model, x, descent=3)


def test_momentum_must_be_below_one() -> None:
    with pytest.raises(UsageError, match="momentum"):
        curvature.stable_rates(1.0, momentum=1.0)


@pytest.mark.parametrize("tol", [0, -1, 1, 5, math.nan])
def test_the_tolerance_is_a_relative_error(tol: float) -> None:
    model, x, _ = net()
    with pytest.raises(UsageError, match="tol must be a finite number > 0 and < 1"):
        curvature.sharpness(model, x, tol=tol)


def test_a_descent_has_no_negative_length() -> None:
    model, x, y = net()
    with pytest.raises(UsageError, match="descent must be"):
        curvature.sharpness(model, x, y, descent=-5)


@pytest.mark.parametrize("decay", [-3, math.nan])
def test_weight_decay_is_not_negative(decay: float) -> None:
    with pytest.raises(UsageError, match="weight_decay"):
        curvature.stable_rates(1.0, weight_decay=decay)


def test_unknown_variants_are_named() -> None:
    model, x, _ = net()
    with pytest.raises(UsageError, match=r"no last-layer variant 'bach'.*batch"):
        curvature.last_layer(model, x, "bach")
