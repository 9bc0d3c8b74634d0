"""What normalization does to the Fisher: the exact identities of the theory, on small nets in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from normscope import curvature
from normscope.linalg import spectrum

N, WIDTHS, C = 24, (20, 16, 18), 4


class Norm(nn.Module):
    """Norms from primitive operations, eps 1e-30: over the batch (axis 0) or over the features (axis 1)."""

    def __init__(self, axis: int, scale: bool, affine: int = 0) -> None:
        super().__init__()
        self.axis, self.scale = axis, scale
        self.gamma = nn.Parameter(torch.ones(affine)) if affine else None
        self.beta = nn.Parameter(torch.zeros(affine)) if affine else None

    def forward(self, u: Tensor) -> Tensor:
        u = u - u.mean(self.axis, keepdim=True)
        if self.scale:
            u = u / (u.square().mean(self.axis, keepdim=True) + 1e-30).sqrt()
        return u if self.gamma is None else u * self.gamma + self.beta


def net(
    last: str = "none",
    hidden: str = "none",
    seed: int = 0,
    act: type[nn.Module] = nn.ReLU,
    widths: tuple[int, ...] = WIDTHS,
    c: int = C,
    sw: float = 2.0,
    sb: float = 0.1,
) -> nn.Sequential:
    """Weights N(0, sw / fan_in), biases N(0, sb)."""
    g = torch.Generator().manual_seed(seed)
    kinds = {"ms": (0, False), "bn": (0, True), "layer_ms": (1, False), "ln": (1, True)}

    def norm(kind: str, d: int) -> list[nn.Module]:
        if kind == "none":
            return []
        base, _, affine = kind.partition("+")
        return [Norm(*kinds[base], affine=d if affine else 0)]

    layers: list[nn.Module] = []
    sizes = (*widths, c)
    for i, (a, b) in enumerate(pairwise(sizes)):
        lin = nn.Linear(a, b, dtype=torch.float64)
        lin.weight.data.normal_(0, math.sqrt(sw / a), generator=g)
        lin.bias.data.normal_(0, math.sqrt(sb), generator=g)
        end = i == len(sizes) - 2
        layers += [lin, *norm(last if end else hidden, b), *([] if end else [act()])]
    return nn.Sequential(*layers).double()


def data(n: int = N, d: int = WIDTHS[0], seed: int = 1) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def eig(model: nn.Module, x: Tensor | None, **more: object) -> Tensor:
    return torch.linalg.eigvalsh(curvature.fisher(model, x, **more).dense()).flip(0)


def weights_only(model: nn.Module, x: Tensor, **more: object) -> Tensor:
    """Eigenvalues in the parameters of the plain net."""
    names = [f"{i}.{p}" for i, m in enumerate(model) if isinstance(m, nn.Linear) for p in ("weight", "bias")]
    return eig(model, x, parameters=names, **more)


X = data()


@pytest.mark.parametrize(
    ("variant", "last"), [("center", "ms"), ("batch", "bn"), ("layer_center", "layer_ms"), ("layer", "ln")]
)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_a_last_layer_norm_is_a_known_matrix_on_the_gram(variant: str, last: str, loss: str) -> None:
    want = curvature.fisher(net(last), X, loss=loss).dense()
    got = curvature.last_layer(net(), X, variant, loss, eps=1e-30).dense()
    assert float((got - want).norm() / want.norm()) < 1e-11


def outer_projector(variant: str, f: Tensor, k: int, i: int) -> tuple[Tensor, Tensor]:
    """P and 1/sigma of one output over the batch (k), or of one sample over the outputs (i), by the printed formula."""
    u = f[:, k] if variant == "bn" else f[i]
    one = torch.ones_like(u)
    sigma = u.var(unbiased=False).sqrt()
    hat = (u - u.mean()) / sigma
    return torch.eye(len(u), dtype=u.dtype) - (torch.outer(one, one) + torch.outer(hat, hat)) / len(u), 1 / sigma


def test_jacobians_behind_the_last_norm_are_projections() -> None:
    f = net()(X).detach()
    j, ms, bn, ln = (
        curvature.jacobian(net(k), X).dense().reshape(N, C, -1)[..., : curvature.jacobian(net(), X).shape[1]]
        for k in ("none", "ms", "bn", "ln")
    )
    centre = torch.eye(N, dtype=j.dtype) - 1 / N
    assert torch.allclose(ms, torch.einsum("nm,mkp->nkp", centre, j), rtol=0, atol=1e-12 * float(j.abs().max()))
    for k in range(C):
        p, scale = outer_projector("bn", f, k, 0)
        assert torch.allclose(p @ p, p, atol=1e-13)
        assert int(torch.linalg.matrix_rank(p)) == N - 2
        assert torch.allclose(bn[:, k], scale * p @ j[:, k], rtol=0, atol=1e-12 * float(bn.abs().max()))
    for i in range(N):
        q, scale = outer_projector("ln", f, 0, i)
        assert torch.allclose(ln[i], scale * q @ j[i], rtol=0, atol=1e-11 * float(ln.abs().max()))


def test_frozen_statistics_only_rescale_the_gram() -> None:
    f, g = net()(X).detach(), curvature.ntk(net(), X).dense() / N
    s = f.var(0, unbiased=False).sqrt().repeat(N)
    want = torch.linalg.eigvalsh(g / s / s[:, None])
    got = torch.linalg.eigvalsh(curvature.last_layer(net(), X, "batch_frozen", eps=1e-30).dense())[-N * C :]
    assert torch.allclose(got, want, rtol=0, atol=1e-11 * float(want[-1]))


def test_rank_behind_the_last_batch_norm() -> None:
    values = eig(net("bn"), X)
    assert int((values > 1e-10 * values[0]).sum()) == C * (N - 2)


def test_a_trainable_shift_behind_mean_subtraction_adds_one_one_an_output() -> None:
    model = net("ms+affine")
    names = [n for n, _ in model.named_parameters() if not n.endswith("gamma")]
    ones = torch.cat([eig(net("ms"), X), torch.ones(C, dtype=torch.float64)]).sort(descending=True).values
    assert torch.allclose(eig(model, X, parameters=names), ones, atol=1e-10)


EVERYWHERE = [
    ("none", "none"), ("ms", "none"), ("bn", "none"), ("bn+affine", "none"), ("none", "ms"), ("none", "bn"),
    ("none", "bn+affine"), ("bn+affine", "bn+affine"), ("ln", "none"), ("none", "ln"), ("ln", "ln"),
]  # fmt: skip


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize(("last", "hidden"), EVERYWHERE)
def test_products_are_those_of_the_dense_jacobian(last: str, hidden: str, act: type[nn.Module]) -> None:
    model = net(last, hidden, act=act)
    theta = {n: p.detach() for n, p in model.named_parameters()}
    rows = torch.func.jacrev(lambda t: torch.func.functional_call(model, t, (X,)).reshape(-1))(theta)
    j = torch.cat([r.reshape(N * C, -1) for r in rows.values()], 1)
    g = torch.Generator().manual_seed(3)
    w, v = (torch.randn(size, generator=g, dtype=torch.float64) for size in (j.shape[1], N * C))
    primal, dual = j.T @ (j @ w) / N, j @ (j.T @ v)
    assert float((curvature.fisher(model, X).matvec(w) - primal).norm() / primal.norm()) < 1e-12
    assert float((curvature.ntk(model, X).matvec(v) - dual).norm() / dual.norm()) < 1e-12
    assert spectrum(curvature.fisher(model, X), method="lanczos", tol=1e-9).largest == pytest.approx(
        float(torch.linalg.eigvalsh(j @ j.T)[-1]) / N, rel=1e-12
    )


def test_subtracting_the_mean_removes_the_mean_gradients_from_the_trace() -> None:
    j = curvature.jacobian(net(), X).dense().reshape(N, C, -1)
    removed = float(j.mean(0).square().sum())
    both = float(eig(net(), X).sum()), float(eig(net("ms"), X).sum())
    assert both[0] - both[1] == pytest.approx(removed, rel=1e-10)
    s = curvature.sharpness(net(), X)
    assert s.mean_gradient_share == pytest.approx(removed / both[0], rel=1e-10)


def test_interlacing_under_mean_subtraction() -> None:
    plain, centred = eig(net(), X), eig(net("ms"), X)
    assert bool((centred <= plain + 1e-10).all())
    assert bool((plain[C:] <= centred[:-C] + 1e-10).all())


def test_a_trainable_affine_adds_two_ones_an_output_and_nothing_else() -> None:
    with_affine, without = eig(net("bn+affine"), X), eig(net("bn"), X)
    ones = torch.cat([without, torch.ones(2 * C, dtype=torch.float64)]).sort(descending=True).values
    assert torch.allclose(with_affine, ones, atol=1e-10)


def test_last_batch_norm_has_bias_and_scaling_null_directions() -> None:
    model = net("bn")
    f = curvature.fisher(model, X)
    names = list(f.facts["parameter_sizes"])
    parts = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    parts["4.bias"][1] = 1.0
    bias = torch.cat([parts[n].reshape(-1) for n in names])
    parts["4.weight"][1], parts["4.bias"][1] = model[4].weight.data[1], model[4].bias.data[1]
    scaling = torch.cat([parts[n].reshape(-1) for n in names])
    scale = float(spectrum(f).largest)
    assert float(f.matvec(bias).norm()) < 1e-12 * scale
    assert float(f.matvec(scaling).norm()) < 1e-11 * scale


def test_batch_norm_of_the_last_layer_is_below_mean_subtraction_over_the_variance() -> None:
    out = net()(X)
    least = float(out.detach().var(0, unbiased=False).min())
    assert float(eig(net("bn"), X)[0]) <= float(eig(net("ms"), X)[0]) / least * (1 + 1e-12)


def test_cross_entropy_is_at_most_half_and_of_lower_rank() -> None:
    mse, ce = eig(net(), X), eig(net(), X, loss="cross_entropy")
    assert float(ce[0]) <= float(mse[0]) / 2
    assert int((ce > 1e-10 * ce[0]).sum()) == N * (C - 1)


def test_replicas_with_their_own_mean_are_never_sharper() -> None:
    halves = [X[: N // 2], X[N // 2 :]]
    assert float(eig(net("ms"), None, data=halves)[0]) <= float(eig(net("ms"), X)[0]) * (1 + 1e-12)


def test_layer_sharpnesses_bound_the_whole_from_above_and_the_shares_from_below() -> None:
    model = net()
    whole = curvature.sharpness(model, X)
    parts = {k: float(eig(model, X, parameters=k)[0]) for k in whole.layers}
    assert sum(whole.layers.values()) == pytest.approx(1)
    assert whole.lambda_max <= sum(parts.values())
    for k, v in parts.items():
        assert whole.lambda_max * whole.layers[k] <= v * (1 + 1e-10)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize(
    ("last", "hidden"), [("none", "none"), ("bn+affine", "none"), ("none", "bn+affine"), ("none", "ln")]
)
def test_moments_of_the_spectrum(last: str, hidden: str, loss: str) -> None:
    model = net(last, hidden, act=nn.Tanh)
    values = eig(model, X, loss=loss)
    s = curvature.sharpness(model, X, loss=loss)
    assert s.lambda_max == pytest.approx(float(values[0]), rel=1e-10)
    assert s.mean == pytest.approx(float(values.mean()), rel=1e-10)
    assert s.second_moment == pytest.approx(float(values.square().mean()), rel=1e-10)


# ---- the edge of stability is real
# -------------------------------------------------------------------------------------


def stability_ratio(model: nn.Module, x: Tensor, factor: float, steps: int = 40) -> float:
    """Growth of a kick along the top eigenvector in ``steps`` of descent at factor * 2 / lambda_max.

    The targets are the model's own outputs, so that the residual vanishes where it stands and the Hessian is the
    Fisher.
    """
    f = curvature.fisher(model, x)
    s = spectrum(f, method="dense")
    lam = s.largest
    values, vectors = torch.linalg.eigh(f.dense())
    v = vectors[:, -1]
    assert float(values[-1]) == pytest.approx(lam, rel=1e-10)
    params = list(model.parameters())
    theta = torch.cat([p.detach().reshape(-1) for p in params])
    y = model(x).detach()
    t = theta + 1e-7 * v
    for _ in range(steps):
        with torch.no_grad():
            for p, part in zip(params, t.split([p.numel() for p in params]), strict=True):
                p.copy_(part.reshape(p.shape))
        grads = torch.autograd.grad((model(x) - y).square().sum() / (2 * len(x)), params)
        t = t - factor * 2 / lam * torch.cat([g.reshape(-1) for g in grads])
    return abs(float((t - theta) @ v)) / 1e-7


CASES = {
    "none": ("none", "none"), "last mean": ("ms", "none"), "last batch norm": ("bn", "none"),
    "last batch norm affine": ("bn+affine", "none"), "hidden batch norm": ("none", "bn"),
    "hidden layer norm": ("none", "ln"), "batch norm everywhere": ("bn+affine", "bn+affine"),
}  # fmt: skip


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("name", sorted(CASES))
def test_two_over_lambda_max_is_where_descent_turns_unstable(name: str, act: type[nn.Module]) -> None:
    for factor in (0.9, 0.98, 1.02, 1.1):
        model = net(*CASES[name], act=act)
        assert stability_ratio(model, X, factor) == pytest.approx(abs(1 - 2 * factor) ** 40, rel=0.01)


def test_optimiser_factors_on_a_quadratic() -> None:
    lam, wd, mu = 3.0, 0.5, 0.9

    def diverges(rate: float, **more: object) -> bool:
        x = torch.ones(1, dtype=torch.float64, requires_grad=True)
        opt = torch.optim.SGD([x], lr=rate, **more)  # type: ignore[arg-type]
        for _ in range(6000):
            opt.zero_grad()
            x.grad = lam * x.detach()
            opt.step()
            if abs(float(x.detach())) > 1e6:
                return True
        return False

    options = {
        "gradient descent": {}, "heavy ball": {"momentum": mu}, "nesterov": {"momentum": mu, "nesterov": True},
        "ema momentum": {"momentum": mu, "dampening": mu},
    }  # fmt: skip
    for name, rate in curvature.stable_rates(lam, mu, wd).items():
        assert diverges(rate * 1.01, weight_decay=wd, **options[name]), name
        assert not diverges(rate * 0.99, weight_decay=wd, **options[name]), name


def test_descent_leaves_the_model_and_sees_divergence() -> None:
    model = net()
    before = [p.clone() for p in model.parameters()]
    y = torch.randn(N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = curvature.sharpness(model, X, y, descent=15)
    assert [r.rate * s.lambda_max / 2 for r in s.descent] == pytest.approx([0.5, 1, 2])
    assert not s.descent[0].exceeded
    far = curvature.descend(model, X, y, rates=[20 * s.max_stable_lr])[0]
    assert far.exceeded
    assert far.finite == all(math.isfinite(v) for v in far.losses)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_modes_that_differ_are_said_to() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, C)).double()
    s = curvature.sharpness(model, 0.05 * X)
    assert set(s.modes) == {"train, whole batch", "eval"}
    assert any("differs by" in w for w in s.warnings)
    assert "train mode, batch 24, float64" in repr(s)
