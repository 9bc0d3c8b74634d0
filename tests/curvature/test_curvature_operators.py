"""Curvature operators against dense oracles that share no code with the library.

The oracle is ``torch.func.jacrev`` of a whole-batch function written here, with every batch, layer and group norm
replaced by one from primitive operations, in float64.
"""

from __future__ import annotations

import copy
import hashlib
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope import curvature
from normscope.core.errors import UsageError

N, C = 12, 3


class PlainBatchNorm(nn.Module):
    """Batch norm in training mode from means and a square root, parameters shared with the module it stands for."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        over = [i for i in range(x.dim()) if i != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        centred = x - x.mean(over, keepdim=True)
        out = centred / ((centred**2).mean(over, keepdim=True) + self.eps).sqrt()
        if self.weight is not None:
            out = out * self.weight.reshape(shape) + self.bias.reshape(shape)
        return out


class PlainLayerNorm(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / ((centred**2).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias


class PlainGroupNorm(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.groups = norm.weight, norm.bias, norm.eps, norm.num_groups

    def forward(self, x: Tensor) -> Tensor:
        g = x.reshape(x.shape[0], self.groups, -1)
        g = g - g.mean(-1, keepdim=True)
        g = g / ((g**2).mean(-1, keepdim=True) + self.eps).sqrt()
        shape = [1, -1] + [1] * (x.dim() - 2)
        return g.reshape(x.shape) * self.weight.reshape(shape) + self.bias.reshape(shape)


class PlainAttention(nn.Module):
    def __init__(self, attend: nn.MultiheadAttention) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = attend.in_proj_weight, attend.in_proj_bias
        self.out_proj, self.heads = attend.out_proj, attend.num_heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor, need_weights: bool) -> tuple[Tensor, None]:
        n, t, d = q.shape
        parts = (q @ self.in_proj_weight.T + self.in_proj_bias).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = parts[0] @ parts[1].transpose(-1, -2) / (d // self.heads) ** 0.5
        mixed = scores.softmax(-1) @ parts[2]
        return mixed.transpose(1, 2).reshape(n, t, d) @ self.out_proj.weight.T + self.out_proj.bias, None


def plain(model: nn.Module) -> nn.Module:
    """The same parameters (the very same objects), fused norms replaced, nothing in place."""
    model = copy.deepcopy(model, {id(p): p for p in model.parameters()})

    def swap(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, PlainBatchNorm(child))
            elif isinstance(child, nn.LayerNorm):
                setattr(parent, name, PlainLayerNorm(child))
            elif isinstance(child, nn.GroupNorm):
                setattr(parent, name, PlainGroupNorm(child))
            elif isinstance(child, nn.MultiheadAttention):
                setattr(parent, name, PlainAttention(child))
            elif isinstance(child, nn.ReLU):
                setattr(parent, name, nn.ReLU())
            else:
                swap(child)

    swap(model)
    return model


def oracle_jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """(n c, p) by jacrev of the primitive network."""
    twin = plain(model)
    names = [n for n, p in twin.named_parameters() if p.requires_grad]
    theta = {n: p.detach() for n, p in twin.named_parameters()}

    def f(chosen: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(twin, {**theta, **chosen}, (x,)).reshape(-1)

    rows = torch.func.jacrev(f)({n: theta[n] for n in names})
    return torch.cat([rows[n].reshape(len(x) * C, -1) for n in names], 1)


def oracle_loss_hessian(model: nn.Module, x: Tensor, y: Tensor, loss: str) -> Tensor:
    """(p, p) by rows of double backward through the primitive network."""
    twin = plain(model)
    params = [p for p in twin.parameters() if p.requires_grad]
    out = twin(x)
    if loss == "squared_error":
        value = (out - y).square().sum() / (2 * N)
    else:
        value = F.mse_loss(out, y) if loss == "mse" else F.cross_entropy(out, y)
    slope = torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, params, create_graph=True)])
    rows = []
    for s in slope:
        grads = torch.autograd.grad(s, params, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(grads, params, strict=True)]
            )
        )
    return torch.stack(rows)


def softmax_blocks(out: Tensor) -> Tensor:
    """Block-diagonal (n c, n c) of diag(g) - g g^T."""
    g = out.softmax(1)
    return torch.block_diag(*[torch.diag(r) - torch.outer(r, r) for r in g])


# ---- nets ------------------------------------------------------------------------------------------------------------


def mlp(affine: bool = True, track: bool = True, inplace: bool = False) -> nn.Module:
    def layer(a: int, b: int) -> list[nn.Module]:
        return [nn.Linear(a, b), nn.BatchNorm1d(b, affine=affine, track_running_stats=track), nn.ReLU(inplace)]

    return nn.Sequential(*layer(6, 8), *layer(8, 7), nn.Linear(7, C))


def conv(affine: bool = True, track: bool = True) -> nn.Module:
    norm = lambda d: nn.BatchNorm2d(d, affine=affine, track_running_stats=track)  # noqa: E731
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), norm(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, padding=1, bias=False), norm(5), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, C),
    )  # fmt: skip


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.n1, self.c1, self.n2, self.c2 = (
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3, padding=1),
        )
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, C)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.c2(self.act(self.n2(self.c1(self.act(self.n1(x))))))
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.n1, self.n2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 10), nn.Linear(10, 8), nn.Linear(8, C)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        u = self.n1(h)
        h = h + self.attend(u, u, u, need_weights=False)[0]
        h = h + self.down(F.gelu(self.up(self.n2(h))))
        return self.head(h.mean(1))


class SharedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(6, 6), nn.Linear(6, 6)
        self.again.weight = self.first.weight
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.again(torch.tanh(self.first(x))))))


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.net[0].weight.requires_grad_(False)
        self.net[4].bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, C)
    )


NETS = {
    "mlp-batchnorm": (mlp, "vector"),
    "mlp-no-affine": (lambda: mlp(affine=False), "vector"),
    "mlp-no-running-statistics": (lambda: mlp(track=False), "vector"),
    "mlp-inplace": (lambda: mlp(inplace=True), "vector"),
    "conv-batchnorm-maxpool-inplace": (conv, "image"),
    "conv-no-affine": (lambda: conv(affine=False), "image"),
    "conv-no-running-statistics": (lambda: conv(track=False), "image"),
    "resnet": (ResNet, "image"),
    "group-and-layer-norm": (grouped, "vector"),
    "transformer-embedding": (Transformer, "ids"),
    "shared-weights": (SharedWeights, "vector"),
    "frozen-parameters": (Frozen, "vector"),
}  # fmt: skip


def make(name: str) -> tuple[nn.Module, Tensor]:
    builder, kind = NETS[name]
    torch.manual_seed(len(name))
    model = builder().double()
    for p in model.parameters():  # away from the special point gamma = 1, beta = 0
        if p.dim() == 1 and p.requires_grad:
            p.data.add_(0.3 * torch.randn_like(p))
    x = {
        "vector": lambda: torch.randn(N, 6, dtype=torch.float64),
        "image": lambda: torch.randn(N, 2, 6, 6, dtype=torch.float64),
        "ids": lambda: torch.randint(0, 11, (N, 5)),
    }[kind]()
    return model, x


def off(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).norm() / b.norm())


@pytest.fixture(params=sorted(NETS))
def net(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    return make(request.param)


# ---- dense oracles ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["auto", "jvp", "double_vjp", "linearize"])
def test_jacobian_and_its_products(net: tuple[nn.Module, Tensor], route: str) -> None:
    model, x = net
    j = oracle_jacobian(model, x)
    got = curvature.jacobian(model, x, route=route)
    w = torch.randn(j.shape[1], 2, dtype=torch.float64)
    v = torch.randn(N * C, 2, dtype=torch.float64)
    assert got.shape == j.shape
    assert off(got.dense(), j) < 1e-10
    assert off(got.matmat(w), j @ w) < 1e-10
    assert off(got.T.matmat(v), j.T @ v) < 1e-10
    assert off(got.rmatvec(v[:, 0]), j.T @ v[:, 0]) < 1e-10


def test_fisher_and_ntk(net: tuple[nn.Module, Tensor]) -> None:
    model, x = net
    j = oracle_jacobian(model, x)
    w = torch.randn(j.shape[1], 3, dtype=torch.float64)
    fisher = curvature.fisher(model, x)
    assert off(fisher.dense(), j.T @ j / N) < 1e-10
    assert off(fisher.matmat(w), j.T @ (j @ w) / N) < 1e-10
    kernel = curvature.ntk(model, x)
    v = torch.randn(N * C, dtype=torch.float64)
    assert off(kernel.matvec(v), j @ (j.T @ v)) < 1e-10
    assert off(kernel.dense(), j @ j.T) < 1e-10


def test_fisher_of_cross_entropy(net: tuple[nn.Module, Tensor]) -> None:
    model, x = net
    j = oracle_jacobian(model, x)
    want = j.T @ softmax_blocks(plain(model)(x).detach()) @ j / N
    got = curvature.fisher(model, x, loss="cross_entropy")
    assert off(got.dense(), want) < 1e-10
    w = torch.randn(len(want), dtype=torch.float64)
    assert off(got.matvec(w), want @ w) < 1e-10


@pytest.mark.parametrize("loss", ["mse", "squared_error", "cross_entropy"])
def test_hessian(net: tuple[nn.Module, Tensor], loss: str) -> None:
    model, x = net
    y = torch.randn(N, C, dtype=torch.float64) if loss != "cross_entropy" else torch.randint(0, C, (N,))
    want = oracle_loss_hessian(model, x, y, loss)
    got = curvature.hessian(model, x, y, loss)
    columns = torch.randn(len(want), 3, dtype=torch.float64)
    assert off(got.matmat(columns), want @ columns) < 1e-10


def test_empirical_fisher_takes_whole_batch_rows() -> None:
    model, x = make("mlp-batchnorm")
    y = torch.randint(0, C, (N,))
    j = oracle_jacobian(model, x).reshape(N, C, -1)
    slope = plain(model)(x).detach().softmax(1) - F.one_hot(y, C)
    g = torch.einsum("nc,ncp->np", slope, j)
    assert off(curvature.fisher(model, x, y, "cross_entropy", kind="empirical").dense(), g.T @ g / N) < 1e-10


@pytest.mark.parametrize("loss", ["mse", "squared_error", "cross_entropy"])
def test_monte_carlo_fisher_is_unbiased(loss: str) -> None:
    model, x = make("mlp-batchnorm")
    exact = curvature.fisher(model, x, loss=loss).dense()
    drawn = [
        curvature.fisher(model, x, loss=loss, kind="monte_carlo", draws=40, seed=s).dense().diagonal().sum()
        for s in range(20)
    ]
    drawn = torch.stack(drawn)
    assert abs(float(drawn.mean() - exact.trace())) < 4 * float(drawn.std()) / 20**0.5


def test_callable_losses_keep_their_normalization() -> None:
    model, x = make("mlp-batchnorm")
    j = oracle_jacobian(model, x)
    y = torch.randn(N, C, dtype=torch.float64)
    mean = 2 / (N * C) * j.T @ j
    assert off(curvature.fisher(model, x, y, F.mse_loss).dense(), mean) < 1e-10
    assert off(curvature.fisher(model, x, y, nn.MSELoss()).dense(), mean) < 1e-10
    labels = torch.randint(0, C, (N,))
    want = j.T @ softmax_blocks(plain(model)(x).detach()) @ j / N
    assert off(curvature.fisher(model, x, labels, F.cross_entropy).dense(), want) < 1e-10
    assert off(curvature.fisher(model, x, labels, nn.CrossEntropyLoss()).dense(), want) < 1e-10


def test_several_batches_are_the_sum_each_coupled_inside_itself() -> None:
    model, x = make("mlp-batchnorm")
    parts = [torch.randn(N, 6, dtype=torch.float64), x]
    want = sum(oracle_jacobian(model, p).T @ oracle_jacobian(model, p) for p in parts) / (2 * N)
    for memory in (None, 0.0):
        assert off(curvature.fisher(model, data=parts, memory=memory).dense(), want) < 1e-10
        w = torch.randn(len(want), dtype=torch.float64)
        assert off(curvature.fisher(model, data=parts, memory=memory).matvec(w), want @ w) < 1e-10
    ys = [torch.randn(N, C, dtype=torch.float64) for _ in parts]
    want = sum(oracle_loss_hessian(model, p, y, "mse") for p, y in zip(parts, ys, strict=True)) / 2
    got = curvature.hessian(model, data=list(zip(parts, ys, strict=True)))
    eye = torch.eye(len(want), dtype=torch.float64)
    assert off(got.matmat(eye), want) < 1e-10


def test_unequal_batches_weigh_by_their_samples() -> None:
    model, x = make("mlp-batchnorm")
    parts = [torch.randn(N + 5, 6, dtype=torch.float64), x]
    data = [(p, torch.randn(len(p), C, dtype=torch.float64)) for p in parts]
    want = sum(oracle_jacobian(model, p).T @ oracle_jacobian(model, p) for p in parts) * 2 / ((2 * N + 5) * C)
    found = curvature.fisher(model, data=data, loss=lambda o, t: ((o - t) ** 2).mean())
    assert off(found.dense(), want) < 1e-10


def test_subsets_of_parameters_and_outputs() -> None:
    model, x = make("mlp-batchnorm")
    j = oracle_jacobian(model, x)
    sizes = [p.numel() for p in model.parameters()]
    last = j[:, -sum(sizes[-2:]) :]
    assert off(curvature.jacobian(model, x, parameters="6").dense(), last) < 1e-10
    assert off(curvature.jacobian(model, x, parameters=["6.weight", "6.bias"]).dense(), last) < 1e-10
    biases = [n.endswith("bias") for n, _ in model.named_parameters()]
    keep = torch.cat([torch.full((s,), b) for s, b in zip(sizes, biases, strict=True)])
    assert off(curvature.jacobian(model, x, parameters="*bias").dense(), j[:, keep]) < 1e-10
    rows = j.reshape(N, C, -1)[:, [2, 0]].reshape(2 * N, -1)
    assert off(curvature.jacobian(model, x, outputs=[2, 0]).dense(), rows) < 1e-10


def test_checkpoint_and_rebuilt_graphs_change_nothing() -> None:
    model, x = make("conv-batchnorm-maxpool-inplace")
    want = curvature.jacobian(model, x).dense()
    w = torch.randn(want.shape[1], 1, dtype=torch.float64)
    for more in ({"checkpoint": True}, {"memory": 0.0}):
        got = curvature.jacobian(model, x, **more)
        assert off(got.dense(), want) < 1e-12
        assert off(got.matmat(w), want @ w) < 1e-12


def test_dropout_is_one_fixed_mask() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, C)).double()
    x = torch.randn(N, 6, dtype=torch.float64)
    j = curvature.jacobian(model, x, seed=3, route="jvp")
    dense = j.dense()
    w = torch.randn(j.shape[1], dtype=torch.float64)
    assert off(j.matvec(w), dense @ w) < 1e-12
    assert off(curvature.jacobian(model, x, seed=4).dense(), dense) > 0.1
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    out = model(x)
    torch.random.set_rng_state(state)
    row = torch.cat([g.reshape(-1) for g in torch.autograd.grad(out[0, 0], list(model.parameters()))])
    assert off(dense[0], row) < 1e-12


def test_half_precision_models_are_taken_in_float32() -> None:
    model, x = make("mlp-batchnorm")
    half = copy.deepcopy(model).to(torch.bfloat16)
    exact = copy.deepcopy(half).double()
    f = curvature.fisher(half, x.to(torch.bfloat16))
    assert f.dtype is torch.float32
    assert off(f.dense().double(), curvature.fisher(exact, x.to(torch.bfloat16).double()).dense()) < 1e-5
    wide = curvature.fisher(half, x.to(torch.bfloat16), dtype=torch.float64)
    assert off(wide.dense(), curvature.fisher(exact, x.to(torch.bfloat16).double()).dense()) < 1e-10


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, a: Tensor, b: Tensor) -> object:
        return type("Out", (), {"logits": self.net(a + b)})()


def test_inputs_of_any_structure() -> None:
    model, x = make("mlp-batchnorm")
    named = Named().double()
    named.net = model
    want = oracle_jacobian(model, x)
    half = x / 2
    assert off(curvature.jacobian(named, (half, half)).dense(), want) < 1e-10
    assert off(curvature.jacobian(named, {"a": half, "b": half}).dense(), want) < 1e-10


class Language(nn.Module):
    """Scores of the next token at every position, (m, positions, c); positions see each other's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, C)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids).tanh()
        return self.head(h * (1 + h.mean(1, keepdim=True)))


def test_each_position_of_a_language_model_is_a_sample() -> None:
    torch.manual_seed(0)
    model, ids, y = Language().double(), torch.randint(0, 11, (4, 5)), torch.randint(0, C, (4, 5))
    params, n = list(model.parameters()), 20
    rows = [torch.autograd.grad(o, params, retain_graph=True) for o in model(ids).reshape(-1)]
    j = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    out = model(ids).detach().reshape(n, C)
    got = curvature.fisher(model, ids, y, loss="cross_entropy")
    assert off(got.dense(), j.T @ softmax_blocks(out) @ j / n) < 1e-10
    assert (got.facts["batch_size"], got.facts["positions"]) == (4, 5)
    slopes = (out.softmax(1) - F.one_hot(y.reshape(-1), C)).reshape(-1, 1) * j
    each = slopes.reshape(n, C, -1).sum(1)
    assert (
        off(curvature.fisher(model, ids, y, loss="cross_entropy", kind="empirical").dense(), each.T @ each / n) < 1e-10
    )
    with pytest.raises(UsageError, match=r"\(4, 5, 3\).*\(4, 4\)"):
        curvature.fisher(model, ids, y[:, :4], loss="cross_entropy")
    assert "batch 4 x 5 positions" in str(curvature.sharpness(model, ids, y, loss="cross_entropy"))


def test_each_pixel_of_a_segmentation_is_a_sample() -> None:
    torch.manual_seed(0)
    model, x = nn.Conv2d(2, C, 3, padding=1).double(), torch.randn(3, 2, 4, 5, dtype=torch.float64)
    y = torch.randint(0, C, (3, 4, 5))
    got = curvature.fisher(model, x, y, loss="cross_entropy", kind="empirical").dense()
    losses = F.cross_entropy(model(x), y, reduction="none").reshape(-1)
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(v, list(model.parameters()), retain_graph=True)])
        for v in losses
    ]
    assert off(got, torch.stack(rows).T @ torch.stack(rows) / 60) < 1e-10
    z = torch.randn(3, C, 4, 5, dtype=torch.float64)
    plain = curvature.fisher(model, x).dense()
    assert off(curvature.fisher(model, x, z, "squared_error").dense(), plain) < 1e-12
    assert off(curvature.fisher(model, x, z).dense(), plain * 2 / C) < 1e-12
    with pytest.raises(UsageError, match=r"\(3, 3, 4, 5\).*\(3, 3, 5\)"):
        curvature.fisher(model, x, y[:, :3], loss="cross_entropy")


# ---- where forward mode cannot be trusted ----------------------------------------------------------------------------


class StopGradient(nn.Module):
    """Forward mode ignores the no_grad block; reverse mode does not."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, C)

    def forward(self, x: Tensor) -> Tensor:
        out = self.lin(x)
        with torch.no_grad():
            scale = out.square().mean()
        return out / scale


def reverse_rows(model: nn.Module, x: Tensor) -> Tensor:
    """(n c, p), one plain backward pass a row."""
    params = list(model.parameters())
    rows = [torch.autograd.grad(o, params, retain_graph=True) for o in model(x).reshape(-1)]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


@pytest.mark.parametrize("route", ["auto", "jvp", "linearize"])
def test_no_grad_blocks_are_caught_by_the_adjoint_test(route: str) -> None:
    torch.manual_seed(0)
    model = StopGradient().double()
    x = torch.randn(N, 6, dtype=torch.float64)
    j = curvature.jacobian(model, x, route=route)
    w = torch.randn(j.shape[1], dtype=torch.float64)
    assert off(j.matvec(w), reverse_rows(model, x) @ w) < 1e-12
    assert off(j.dense(), reverse_rows(model, x)) < 1e-12


class NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)  # type: ignore[attr-defined]
        return x.sin()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad * x.cos()


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Conv2d(2, C, 3)

    def forward(self, x: Tensor) -> Tensor:
        return NoForwardMode.apply(self.lin(x)).mean((2, 3))


def test_an_op_without_forward_mode_falls_back_to_reverse_mode() -> None:
    torch.manual_seed(0)
    model = Custom().double()
    x = torch.randn(N, 2, 6, 6, dtype=torch.float64)
    j = curvature.jacobian(model, x)
    w = torch.randn(j.shape[1], dtype=torch.float64)
    assert off(j.matvec(w), reverse_rows(model, x) @ w) < 1e-12


# ---- no trace --------------------------------------------------------------------------------------------------------


def fingerprint(model: nn.Module) -> str:
    h = hashlib.sha256()
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        h.update(name.encode() + t.detach().numpy().tobytes() + str(t.requires_grad).encode())
        h.update(b"none" if t.grad is None else t.grad.numpy().tobytes())
    h.update(str([(m.training, len(m._forward_hooks)) for m in model.modules()]).encode())
    old = np.random.get_state()[1].tobytes()  # noqa: NPY002
    h.update(torch.get_rng_state().numpy().tobytes() + repr(random.getstate()).encode() + old)
    return h.hexdigest()


@pytest.mark.parametrize("mode", [None, "train", "eval"])
@pytest.mark.parametrize("name", ["mlp-batchnorm", "resnet", "frozen-parameters"])
def test_the_model_is_bit_identical_afterwards(name: str, mode: str | None) -> None:
    model, x = make(name)
    model(x).sum().backward()  # gradients that must stay
    next(model.children()).eval() if name == "frozen-parameters" and mode else None
    y = torch.randn(N, C, dtype=torch.float64)
    before = fingerprint(model)
    for route in ("jvp", "double_vjp", "linearize"):
        f = curvature.fisher(model, x, mode=mode, route=route)
        f.matvec(torch.ones(f.shape[0], dtype=torch.float64))
    h = curvature.hessian(model, x, y, mode=mode)
    h.matvec(torch.ones(h.shape[0], dtype=torch.float64))
    curvature.ntk(model, x, mode=mode).dense()
    assert fingerprint(model) == before


def test_the_model_is_bit_identical_after_an_error() -> None:
    model, x = make("mlp-batchnorm")
    before = fingerprint(model)
    with pytest.raises(UsageError):
        curvature.fisher(model, x, mode="eval", outputs=[99])
    with pytest.raises(RuntimeError):
        curvature.fisher(model, x[:, :2], mode="eval")
    assert fingerprint(model) == before


def test_eval_mode_is_another_network_and_must_be_asked_for() -> None:
    model, x = make("mlp-batchnorm")
    train = curvature.fisher(model, x).dense()
    model.eval()
    with pytest.raises(UsageError, match="has seen no batch"):
        curvature.fisher(model, x)
    assert off(curvature.fisher(model, x, mode="eval").dense(), train) > 0.1
    assert off(curvature.fisher(model, x, mode="train").dense(), train) < 1e-14
    assert curvature.fisher(model, x, mode="eval").facts["mode"] == "eval"


# ---- bad input -------------------------------------------------------------------------------------------------------


class Shape(nn.Module):
    def __init__(self, change: object) -> None:
        super().__init__()
        self.net, self.change = nn.Linear(6, C), change

    def forward(self, x: Tensor) -> object:
        return self.change(self.net(x))  # type: ignore[operator]


BAD = {
    "five axes": (lambda o: o[:, :, None, None, None], {}, r"\(n, c\).*\(12, 3, 1, 1, 1\)"),
    "no axis": (lambda o: o.sum(), {}, r"\(n, c\).*\(\)"),
    "a string": (lambda o: "x", {}, "must return a tensor"),
    "integers": (lambda o: o.argmax(1, keepdim=True), {}, "floating-point"),
    "detached": (lambda o: o.detach(), {}, "do not depend differentiably"),
    "non-finite": (lambda o: o / 0, {}, "non-finite"),
    "unknown loss": (lambda o: o, {"loss": "msee"}, "no loss 'msee'.*'mse'"),
    "unknown kind": (lambda o: o, {"kind": "empiric"}, "no kind of fisher"),
    "unknown parameter": (lambda o: o, {"parameters": "nett"}, "no trainable parameter 'nett'"),
    "unknown mode": (lambda o: o, {"mode": "training"}, "mode must be"),
    "targets shape": (lambda o: o, {"targets": torch.zeros(N)}, r"shape \(12, 3\).*\(12,\)"),
    "targets dtype": (lambda o: o, {"targets": torch.zeros(N, C, dtype=torch.long), "loss": "cross_entropy"}, "single "
    "one"),
    "targets of two losses": (lambda o: o, {"targets": torch.zeros(N, 2), "loss": "mse"}, r"\(12, 3\).*\(12, 2\)"),
    "targets missing": (lambda o: o, {"kind": "empirical"}, "needs targets"),
    "targets range": (lambda o: o, {"targets": torch.full((N,), 7), "loss": "cross_entropy"}, "outputs, 3; the largest "
    "is 7"),
    "targets not finite": (lambda o: o, {"targets": torch.full((N, C), torch.nan)}, "must be finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_input_is_named(name: str) -> None:
    change, more, message = BAD[name]
    with pytest.raises(UsageError, match=message):
        curvature.fisher(Shape(change), torch.randn(N, 6), **more)


def test_a_model_without_trainable_parameters_is_refused() -> None:
    model = nn.Linear(6, C).requires_grad_(False)
    with pytest.raises(UsageError, match="no trainable parameter"):
        curvature.jacobian(model, torch.randn(N, 6))


def test_vectors_of_the_wrong_length_are_refused() -> None:
    f = curvature.fisher(nn.Linear(6, C), torch.randn(N, 6))
    with pytest.raises(UsageError, match=r"\(21,\).*\(5,\)"):
        f.matvec(torch.zeros(5))
