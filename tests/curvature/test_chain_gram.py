"""The layer-wise Gram matrix of plain multilayer perceptrons against rows of plain backward passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from normscope.curvature import fisher, jacobian, ntk
from normscope.linalg import spectrum

D = torch.float64


def rows(model: nn.Module, x: Tensor, names: set[str] | None = None) -> Tensor:
    """The Jacobian, one backward pass an output."""
    wanted = [p for n, p in model.named_parameters() if p.requires_grad and (names is None or n in names)]
    out = model(x).reshape(-1)
    return torch.stack(
        [torch.cat([g.reshape(-1) for g in torch.autograd.grad(o, wanted, retain_graph=True)]) for o in out]
    )


def close(got: Tensor, want: Tensor) -> None:
    assert float((got - want).norm() / want.norm()) < 1e-12


def mlp(act: Callable[[], nn.Module] = nn.Tanh, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(7, 9, bias=bias),
        act(),
        nn.Sequential(nn.Linear(9, 8), act(), nn.Identity()),
        nn.Linear(8, 3, bias=bias),
    ).to(D)


X = torch.randn(6, 7, generator=torch.Generator().manual_seed(1), dtype=D)


@pytest.mark.parametrize("act", [nn.Tanh, nn.GELU, lambda: nn.ReLU(inplace=True), nn.Softplus, nn.LeakyReLU])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_jacobian_times_its_transpose(act: Callable[[], nn.Module], bias: bool) -> None:
    model = mlp(act, bias)
    assert jacobian(model, X).outer is not None
    j = rows(model, X)
    close(ntk(model, X).dense(), j @ j.T)


def test_images_are_flattened_first() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2), nn.Sigmoid()).to(D)
    x = torch.randn(5, 3, 2, 2, dtype=D, generator=torch.Generator().manual_seed(0))
    assert jacobian(model, x).outer is not None
    j = rows(model, x)
    close(ntk(model, x).dense(), j @ j.T)


@pytest.mark.parametrize("names", [{"0.weight"}, {"2.0.bias", "3.weight"}, {"0.bias", "2.0.weight", "2.0.bias"}])
def test_subsets_and_frozen_parameters(names: set[str]) -> None:
    model = mlp()
    j = rows(model, X, names)
    close(ntk(model, X, parameters=sorted(names)).dense(), j @ j.T)
    for name, p in model.named_parameters():
        p.requires_grad_(name in names)
    close(ntk(model, X).dense(), j @ j.T)


@pytest.mark.parametrize("loss", ["squared_error", "mse", "cross_entropy", nn.MSELoss()])
def test_the_dual_of_the_fisher(loss: object) -> None:
    model = mlp()
    f = fisher(model, X, loss=loss)  # type: ignore[arg-type]
    j = rows(model, X).reshape(6, 3, -1)
    g = model(X).softmax(1).detach()
    output = {
        "squared_error": torch.eye(3, dtype=D).expand(6, 3, 3),
        "cross_entropy": torch.diag_embed(g) - g[:, :, None] * g[:, None, :],
    }.get(str(loss), 2 / 3 * torch.eye(3, dtype=D).expand(6, 3, 3))
    want = torch.linalg.eigvalsh(torch.einsum("nkp,nkl,nlq->pq", j, output, j) / 6).flip(0)
    s = spectrum(f, trace=True)
    assert s.method == "dense"
    assert s.products == 0
    assert torch.allclose(s.eigenvalues, want[: len(s.eigenvalues)], rtol=1e-10, atol=1e-12 * float(want[0]))
    assert s.trace is not None
    assert s.trace.value == pytest.approx(float(want.sum()), rel=1e-12)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def shared() -> nn.Module:
    layer = nn.Linear(7, 7)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(7, 2))


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].register_forward_hook(lambda m, i, o: 3 * o)
    return model


def stray() -> nn.Module:
    model = nn.Sequential(nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 2))
    model.register_parameter("unused", nn.Parameter(torch.zeros(3)))
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)),
        lambda: nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 2)),
        lambda: nn.Sequential(nn.Linear(7, 5), nn.Dropout(0.5), nn.Linear(5, 2)),
        lambda: nn.Sequential(nn.Linear(7, 5), nn.PReLU(), nn.Linear(5, 2)),
        lambda: nn.Sequential(nn.Linear(7, 5), nn.Softmax(1), nn.Linear(5, 2)),
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(7, 5)), nn.ReLU(), nn.Linear(5, 2)),
        lambda: nn.Sequential(Doubled(7, 5), nn.ReLU(), nn.Linear(5, 2)),
        shared,
        hooked,
        stray,
    ],
)
def test_anything_else_goes_the_general_way(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().to(D)
    j = jacobian(model, X)
    assert j.outer is None
    dense = j.dense()
    close(ntk(model, X).dense(), dense @ dense.T)


def test_chosen_outputs_and_several_batches_go_the_general_way() -> None:
    model = mlp()
    assert jacobian(model, X, outputs=[0, 2]).outer is None
    assert jacobian(model, data=[X[:3], X[3:]]).outer is None


def test_half_precision_is_computed_in_single() -> None:
    model = mlp()
    want = ntk(model.to(torch.bfloat16), X.bfloat16(), dtype=D).dense()
    got = ntk(model, X.bfloat16()).dense()
    assert got.dtype is torch.float32
    assert float((got - want).norm() / want.norm()) < 1e-5
