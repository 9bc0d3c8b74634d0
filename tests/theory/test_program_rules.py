"""Each rule of a program's laws against weights drawn again and again, and the moments by three routes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normscope.theory.program.attention
import normscope.theory.program.norms  # noqa: F401
from normscope.gaussian import product_moment
from normscope.nn import make_norm
from normscope.theory.program.interpreter import Program
from normscope.theory.program.kernels import first_moment, recognised, second_moments
from normscope.theory.program.laws import Field, canonical, of_draws
from normscope.theory.program.predict import predict_model  # noqa: F401  (enrols the rules)
from normscope.theory.program.reading import law_of

#: Standard errors that a mean over seeds may be off: one of 1000 entries, and their root mean square.
ONE, ALL = 5.0, 1.8


def gram(x, features):
    rows = canonical(x.double(), features)
    return rows @ rows.T / rows.shape[1]


def law(make, x, seed=0):
    """The law of what a fresh net returns."""
    torch.manual_seed(seed)
    net = make()
    with torch.no_grad(), Program(seed):
        found = law_of(net(x))
    assert isinstance(found, Field)
    return found


def against_seeds(make, x, seeds=60, bias=0.0):
    """Predicted moments, averaged over the nets (their weights' mean squares differ), against the measured ones."""
    differences = []
    for seed in range(seeds):
        torch.manual_seed(1000 + seed)
        net = make()
        with torch.no_grad():
            out = net(x)
            with Program(seed):
                found = law_of(net(x))
        assert isinstance(found, Field)
        differences.append((gram(out, found.features) - found.moments[1].double()).numpy())
    d = np.array(differences)
    size = np.abs(found.moments[1].double().numpy()).max()
    mean, error = d.mean(0), d.std(0, ddof=1) / math.sqrt(seeds) + 1e-6 * size
    z = np.maximum(np.abs(mean) - bias * size, 0) / error
    # One entry of many may be off by more than three; all together, by mean squares, may not.
    assert z.max() < ONE, f"an entry is off by {z.max():.1f} s.e."
    assert np.sqrt(np.square(z).mean()) < ALL


X = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
X = X + 0.5 * X.mean(0)
IMAGES = F.interpolate(torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(2)), 6, mode="bilinear")
WIDE = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(4))
TOKENS = torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(3))


class Function(nn.Module):
    def __init__(self, f, *parts):
        super().__init__()
        self.f, self.parts = f, nn.ModuleList(parts)

    def forward(self, x):
        return self.f(x, *self.parts)


class Product(nn.Module):
    """A weight without a layer: x times w by ``product``."""

    def __init__(self, product):
        super().__init__()
        self.product, self.w = product, nn.Parameter(torch.randn(20, 64) / 20**0.5)

    def forward(self, x):
        return self.product(x, self.w)


def chain(*parts):
    return lambda: nn.Sequential(*[p() for p in parts])


def dense(a=20, b=64):
    return lambda: nn.Linear(a, b)


EXACT = {
    "linear": chain(dense()),
    "relu": chain(dense(), nn.ReLU),
    "matmul": chain(lambda: Product(torch.matmul), nn.ReLU, dense(64, 64)),
    "mm": chain(lambda: Product(torch.mm), nn.ReLU, dense(64, 64)),
    "gelu": chain(dense(), nn.GELU),
    "hardswish": chain(dense(), nn.Hardswish),
    "user's own": lambda: Function(lambda x, a: torch.sin(2 * a(x)) + 0.3, nn.Linear(20, 64)),
    "gate of itself": lambda: Function(lambda x, a: (lambda u: u * torch.sigmoid(u))(a(x)), nn.Linear(20, 64)),
    "residual": lambda: Function(lambda x, a, b: a(x) + 0.5 * torch.relu(b(x)), nn.Linear(20, 64), nn.Linear(20, 64)),
    "gated": lambda: Function(lambda x, a, b: torch.sigmoid(a(x)) * b(x), nn.Linear(20, 64), nn.Linear(20, 64)),
    "halves": lambda: Function(lambda x, a: (lambda u, v: u * torch.tanh(v))(*a(x).chunk(2, -1)), nn.Linear(20, 128)),
    "beside": lambda: Function(lambda x, a, b: torch.cat([a(x), torch.relu(b(x))], 1), nn.Linear(20, 32),
                               nn.Linear(20, 64)),
    "batch norm": chain(dense(), lambda: nn.BatchNorm1d(64), nn.ReLU),
    "batch norm, tanh": chain(dense(), lambda: nn.BatchNorm1d(64), nn.Tanh),
    "our batch norm": chain(dense(), lambda: make_norm("batch_rescale", 64), nn.ReLU),
    "recentred": chain(dense(), lambda: make_norm("batch_recenter", 64), nn.ReLU),
    "dropout": chain(dense(), lambda: nn.Dropout(0.3), dense(64, 64)),
    "deep": chain(dense(), nn.ReLU, dense(64, 64)),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_moments_of_vectors_are_those_of_drawn_weights(name):
    against_seeds(EXACT[name], X)


def conv(a=3, b=32, **more):
    return lambda: nn.Conv2d(a, b, 3, **more)


IMAGED = {
    "conv": chain(conv(padding=1)),
    "stride, relu": chain(conv(padding=1, stride=2), nn.ReLU),
    "mean pool": chain(conv(), nn.ReLU, lambda: nn.AvgPool2d(2)),
    "global mean": chain(conv(), nn.ReLU, lambda: nn.AdaptiveAvgPool2d(1)),
    "two": chain(conv(padding=1), nn.ReLU, conv(32, 32)),
    "flat": chain(conv(), nn.ReLU, nn.Flatten, dense(512, 64)),
    "dilated": chain(conv(dilation=2, padding=1)),
}


@pytest.mark.parametrize("name", IMAGED)
def test_moments_of_images_are_those_of_drawn_weights(name):
    against_seeds(IMAGED[name], IMAGES, 50)


#: Approximations: the share of the largest moment that they may be off by, beside the error of the seeds.
APPROXIMATE = {
    "max pool, by draws": (chain(conv(b=128), lambda: nn.MaxPool2d(2)), IMAGES, 0.06),
    "layer norm": (chain(dense(b=256), lambda: nn.LayerNorm(256)), X, 0.02),
    "batch norm of maps": (chain(conv(b=64), lambda: nn.BatchNorm2d(64), nn.ReLU), IMAGES, 0.05),
    "group norm": (chain(conv(b=256), lambda: nn.GroupNorm(4, 256), nn.ReLU), IMAGES, 0.02),
    "sum of what is not Gaussian": (lambda: Function(
        lambda x, a, b: torch.relu(torch.relu(a(x)) - 0.4 * b(x)), nn.Linear(20, 256), nn.Linear(20, 256)), X, 0.05),
    "attention": (lambda: Attention(64, 8), WIDE, 0.02),
    "attention with large logits": (lambda: Attention(64, 8, 3.0), WIDE, 0.1),
}  # fmt: skip


class Attention(nn.Module):
    def __init__(self, d, heads, size=1.0, how="sdpa"):
        super().__init__()
        self.qkv, self.heads, self.how = nn.Linear(d, 3 * d, bias=False), heads, how
        with torch.no_grad():
            self.qkv.weight[: 2 * d] *= size

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        if self.how == "sdpa":
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), -1) @ v
        return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximations_keep_their_error(name):
    make, x, bias = APPROXIMATE[name]
    against_seeds(make, x, 24, bias)


def test_attention_written_out_is_attention():
    x = torch.randn(4, 5, 64)
    a, b = (law(lambda how=how: Attention(64, 8, how=how), x) for how in ("sdpa", "written out"))
    assert torch.allclose(a.moments[1], b.moments[1], rtol=1e-4)


NETS = {
    "conv": (chain(conv(b=64, padding=1), lambda: nn.BatchNorm2d(64), nn.ELU, lambda: nn.AvgPool2d(2),
                   conv(64, 64, padding=1), nn.Dropout), IMAGES),
    "attention": (lambda: Attention(256, 8), torch.randn(4, 5, 256, generator=torch.Generator().manual_seed(0))),
    "vectors": (lambda: Function(lambda x, a, n, b: b(torch.cat([n(a(x)), a(x).tanh()[:, :64]], 1)) * 0.5,
                                 nn.Linear(20, 256), nn.LayerNorm(256), nn.Linear(320, 256)), X),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_draws_have_the_moments_of_the_rules(name):
    make, x = NETS[name]
    torch.manual_seed(0)
    program = Program(0)
    net = make().train()
    with torch.no_grad(), program:
        net(x)
    for field in program.nodes:
        if isinstance(field, Field) and not field.sampled:
            (m, k), (drawn, other) = field.moments, of_draws(field)
            size, neurons = k.diagonal().mean(), field.size * field.draws.count
            assert ((k - other).square().mean().sqrt() / size) < 4 / math.sqrt(neurons)
            assert (m - drawn).abs().mean() < 4 * math.sqrt(size / neurons)


def test_weights_along_positions_are_taken_as_they_are():
    mixer = nn.Linear(5, 7)
    torch.manual_seed(0)
    net = Function(lambda x, a, b: b(a(x).transpose(1, 2)).transpose(1, 2), nn.Linear(32, 256), mixer)
    against_seeds(lambda: Function(net.f, nn.Linear(32, 64), mixer), TOKENS, 60)


def test_three_routes_to_the_moments_agree():
    c = torch.tensor([[1.0, 0.6, -0.3], [0.6, 2.0, 0.5], [-0.3, 0.5, 0.7]], dtype=torch.float64)
    u = (
        torch.randn(400_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        @ torch.linalg.cholesky(c).T
    )
    zero = torch.zeros(3, dtype=torch.float64)
    for name, f in {"relu": lambda x: x.clamp(min=0), "gelu": F.gelu, "tanh": torch.tanh, "erf": torch.erf}.items():
        found = second_moments(f, zero, c)
        assert np.allclose(found, product_moment(name, c.numpy(), "quadrature"), atol=2e-3 if name == "relu" else 1e-6)
        drawn = f(u)
        products = drawn[:, :, None] * drawn[:, None, :]
        error = products.std(0) / math.sqrt(len(u))
        assert (((products.mean(0) - found) / error).abs() < 4).all()
        assert torch.allclose(first_moment(f, zero, c.diagonal()), drawn.mean(0), atol=5e-3)


def test_series_holds_for_means_that_are_not_zero_and_for_slopes():
    c = torch.tensor([[1.0, 0.6], [0.6, 2.0]], dtype=torch.float64)
    m = torch.tensor([0.7, -1.1], dtype=torch.float64)
    u = torch.randn(400_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = m + u @ torch.linalg.cholesky(c).T
    for f, slope in ((torch.tanh, lambda x: 1 - torch.tanh(x) ** 2), (F.relu, lambda x: (x > 0).double())):
        for derivative, g in ((False, f), (True, slope)):
            drawn = g(u)
            products = drawn[:, :, None] * drawn[:, None, :]
            error = products.std(0) / math.sqrt(len(u))
            found = second_moments(f, m, c, derivative)
            assert ((products.mean(0) - found).abs() < 4 * error + 3e-3).all()


def test_functions_are_recognised_by_what_they_do():
    assert recognised(lambda x: torch.maximum(x, 0.2 * x) * 3).function.slope == pytest.approx(0.2)
    assert recognised(lambda x: (-x).clamp(min=0)).function.slope == 0
    assert recognised(lambda x: 2 * torch.sin(x)).scale == pytest.approx(2)
    assert recognised(F.gelu) is None
