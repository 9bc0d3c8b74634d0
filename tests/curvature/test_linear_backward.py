"""The fast transposes of convolution and batch norm, against Jacobians from one plain backward pass a row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from normscope.curvature import hessian, jacobian
from normscope.curvature._batch import Batch

D = torch.float64
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "strides, padding, dilation": (lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=2), (5, 2, 8, 7)),
    "groups, no bias": (lambda: nn.Conv2d(4, 4, 3, groups=2, bias=False), (5, 4, 5, 5)),
    "one axis": (lambda: nn.Conv1d(3, 2, 3, padding=1, stride=2), (5, 3, 7)),
    "same padding": (lambda: nn.Conv1d(3, 2, 3, padding="same"), (5, 3, 7)),
    "three axes": (lambda: nn.Conv3d(2, 2, 2), (4, 2, 3, 3, 3)),
    "circular padding": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (5, 2, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2), (5, 2, 3, 3)),
    "batch norm": (lambda: nn.BatchNorm2d(3), (6, 3, 4, 4)),
    "batch norm of rows, no statistics": (lambda: nn.BatchNorm1d(5, track_running_stats=False), (7, 5)),
    "batch norm, not affine": (lambda: nn.BatchNorm2d(3, affine=False), (6, 3, 4, 4)),
    "cumulative average": (lambda: nn.BatchNorm2d(3, momentum=None), (6, 3, 4, 4)),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    inner, before = make(), nn.Conv2d(shape[1], shape[1], 1) if len(shape) == 4 else nn.Identity()
    model = nn.Sequential(before, inner, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).to(D)
    x = torch.randn(shape, dtype=D)
    model(x)
    return model, x


def rows(model: nn.Module, x: Tensor) -> Tensor:
    wanted = list(model.parameters())
    return torch.stack(
        [
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(o, wanted, retain_graph=True)])
            for o in model(x).reshape(-1)
        ]
    )


@pytest.fixture(autouse=True)
def no_other_route(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward mode stands in where double reverse fails; here that is to be seen."""

    def refused(self: Batch, w: Tensor) -> Tensor:
        raise AssertionError("forward mode was asked")

    monkeypatch.setattr(Batch, "_forward_mode", refused)


@pytest.mark.parametrize("name", MODELS)
def test_both_products_are_those_of_the_plain_jacobian(name: str) -> None:
    model, x = build(name)
    want = rows(model, x)
    g = torch.Generator().manual_seed(1)
    j = jacobian(model, x, route="double_vjp")
    w, v = torch.randn(j.shape[1], 2, generator=g, dtype=D), torch.randn(j.shape[0], 2, generator=g, dtype=D)
    assert float((j @ w - want @ w).norm() / (want @ w).norm()) < 1e-12
    assert float((j.T @ v - want.T @ v).norm() / (want.T @ v).norm()) < 1e-12


@pytest.mark.parametrize("frozen", ["0", "1"])
def test_frozen_parameters_leave_the_rest_right(frozen: str) -> None:
    model, x = build("batch norm")
    for p in model[int(frozen)].parameters():
        p.requires_grad_(False)
    wanted = [p for p in model.parameters() if p.requires_grad]
    want = torch.stack(
        [
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(o, wanted, retain_graph=True)])
            for o in model(x).reshape(-1)
        ]
    )
    j = jacobian(model, x, route="double_vjp")
    w = torch.randn(j.shape[1], generator=torch.Generator().manual_seed(1), dtype=D)
    assert float((j @ w - want @ w).norm() / (want @ w).norm()) < 1e-12


def test_hessians_keep_torchs_own_second_derivative() -> None:
    model, x = build("batch norm")
    y = torch.zeros(6, 3, dtype=D)
    h = hessian(model, x, y).dense()
    w = torch.randn(h.shape[0], generator=torch.Generator().manual_seed(1), dtype=D)
    step, theta = 1e-5, [p.detach().clone() for p in model.parameters()]

    def slope(at: float) -> Tensor:
        with torch.no_grad():
            for p, t, d in zip(model.parameters(), theta, w.split([t.numel() for t in theta]), strict=True):
                p.copy_(t + at * d.view_as(t))
        loss = model(x).square().mean()
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])

    difference = (slope(step) - slope(-step)) / (2 * step)
    assert float((h @ w - difference).norm() / difference.norm()) < 1e-7


def test_one_value_a_channel_is_refused_as_torch_does() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match="more than 1 value"):
        jacobian(model, torch.randn(1, 3))


def test_parameters_that_are_not_used_have_columns_of_zeros() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(D)
    model.register_parameter("unused", nn.Parameter(torch.zeros(3, dtype=D)))
    j = jacobian(model, torch.randn(5, 3, dtype=D)).dense()
    assert j.shape[1] == 29
    assert float(j[:, :3].abs().max()) == 0
    assert float(j[:, 3:].abs().max()) > 0
