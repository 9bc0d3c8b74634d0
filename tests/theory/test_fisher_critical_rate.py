"""Critical rates from initialization: the largest whose loss never exceeds its initial value in 15 steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fisher_nets import data, net
from torch import Tensor, nn

from normscope import UsageError
from normscope.curvature import CriticalRate, critical_rate

RELU: dict[str, Any] = {"act": "relu", "sw": 2.0, "sb": 0.0}
TANH: dict[str, Any] = {"act": "tanh", "sw": 3.0, "sb": 0.64}


def found(m: int, seed: int, dtype: torch.dtype = torch.float64, tol: float = 0.02, **kind: Any) -> CriticalRate:
    targets = torch.randn(m, 2, generator=torch.Generator().manual_seed(20_000 + seed), dtype=torch.float64)
    model = net([m, m, m, 2], seed, dtype=dtype, **kind)
    return critical_rate(model, data(m, m, seed, dtype=dtype), targets.to(dtype), tol=tol)


def margins(m: int, **kind: Any) -> float:
    return sum(found(m, s, **kind).margin for s in range(3)) / 3


@pytest.mark.parametrize(
    ("kind", "norm", "low", "high"),
    [  # eta_c lambda_max / 2 as published at M = 50..400, and room for three other nets
        (RELU, {}, 1.0, 1.4),
        (RELU, {"last": "ms"}, 2.4, 3.2),
        (RELU, {"hidden": "bn"}, 1.0, 1.2),
        (TANH, {}, 1.0, 1.4),
        (TANH, {"last": "ms"}, 2.2, 2.9),
        (TANH, {"hidden": "bn"}, 2.0, 2.7),
    ],
)
def test_critical_rates_in_units_of_two_over_lambda_max(
    kind: dict[str, Any], norm: dict[str, str], low: float, high: float
) -> None:
    assert low < margins(100, **kind, **norm) < high


def test_without_norm_the_critical_rate_falls_as_the_width_and_tends_to_two_over_lambda_max() -> None:
    small, large = ([found(m, s, **RELU) for s in range(3)] for m in (50, 200))
    assert 2.7 < sum(r.rate for r in small) / sum(r.rate for r in large) < 5
    assert 1 < sum(r.margin for r in large) < sum(r.margin for r in small)


def test_with_mean_subtraction_the_critical_rate_is_free_of_the_width() -> None:
    small, large = (
        sum(found(m, s, torch.float32, 0.03, last="ms", **RELU).rate for s in range(3)) / 3 for m in (100, 400)
    )
    assert 0.85 < large / small < 1.2
    assert large == pytest.approx(0.654, rel=0.1)


class Quadratic(nn.Module):
    """Outputs theta (n, 1) scaled so that the mean squared loss has curvature ``sharp`` exactly."""

    def __init__(self, sharp: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.sharp = sharp

    def forward(self, x: Tensor) -> Tensor:
        return math.sqrt(self.sharp) * self.theta.expand(len(x), 1)


X, Y = torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)


@pytest.mark.parametrize("sharp", [0.02, 5.0])
def test_of_a_quadratic_it_is_two_over_the_curvature(sharp: float) -> None:
    rate = critical_rate(Quadratic(sharp), X, Y, "squared_error", tol=1e-4)
    assert rate.rate <= 2 / sharp * (1 + 1e-4) <= rate.above * (1 + 1e-3)
    assert rate.margin == pytest.approx(1, abs=1e-3)
    assert rate.lambda_max == pytest.approx(sharp)


def test_the_bracket_is_what_was_tried() -> None:
    rate = found(50, 0, **RELU)
    tried = {run.rate: run.exceeded for run in rate.runs}
    assert tried[rate.rate] is False
    assert tried[rate.above] is True
    assert rate.rate < rate.above <= rate.rate * 1.02
    assert "2 / lambda_max" in repr(rate)


class Saturating(nn.Module):
    """A loss that no rate can raise: the outputs stay 0 wherever the parameter goes."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return 0 * self.theta.expand(len(x), 1)


def test_no_rate_that_exceeds_is_an_infinite_one() -> None:
    rate = critical_rate(Saturating(), X, Y + 1)
    assert rate.rate == math.inf
    assert rate.lambda_max == 0


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2
    rate = critical_rate(model, x, y, "cross_entropy", steps=5, tol=0.1)
    assert rate.rate > 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must"),
        ({"tol": 2.0}, "tol"),
        ({"targets": Y / 0}, "must be finite"),
        ({"targets": None}, "needs targets"),
        ({"loss": "hinge"}, "hinge"),
    ],
)
def test_bad_requests_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        critical_rate(**{"model": Quadratic(1.0), "inputs": X, "targets": Y, **change})
