"""What stands in the place of a norm of the batch: groups of features, and a curve (DyT). Laws of ours."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from normscope.claims._tables import mean_and_error
from normscope.claims.claim import Run
from normscope.claims.daneshmand2021.paper import PAPER
from normscope.claims.reading import Reading, at_least, at_most, between, near
from normscope.gaussian import second_moment
from normscope.nn.norms import DyT


@PAPER.claim(
    "group-norm", "A group norm leaves m - 2 of the m numbers of a group; the squared gradient grows by (m-2)/(m-3) a "
    "layer, and smaller groups keep samples further apart.",
    where="follow-ups (Lubana, Dick, Tanaka 2021); the law is ours", covers="F-groups",
    quick={"width": 384, "rows": 6000, "depth": 12, "nets": 6},
    full={"width": 1536, "rows": 12000, "depth": 24, "nets": 12},
    control=({"layer": True}, {"none": True}),
    because="one group of all features does none of it, nor does no norm", seconds=(4, 60),
)  # fmt: skip
def group_norm(
    run: Run, width: int, rows: int, depth: int, nets: int, layer: bool = False, none: bool = False
) -> Iterable[Reading]:
    """Rank of the Jacobian of one group, and the mean of |J^T v|^2 / |v|^2 over standard normal inputs and cotangents;
    then ReLU nets: mean cosine between 16 samples behind groups of 4 less that behind one group, and the growth of the
    gradient over groups of 4 in linear layers.
    """
    generator = run.generator(71)

    def norm(m: int) -> nn.Module:
        return nn.Identity() if none else nn.GroupNorm(1 if layer else width // m, width, eps=0.0, affine=False)

    for m in (8, 16, 32):
        z = torch.randn(rows, width, dtype=torch.float64, generator=generator, requires_grad=True)
        v = torch.randn(rows, width, dtype=torch.float64, generator=generator)
        pulled = torch.autograd.grad(norm(m)(z), z, v)[0]
        factor, error = mean_and_error((pulled.square().sum(1) / v.square().sum(1)).numpy())
        yield near(f"factor on the squared gradient, m = {m}", factor, (m - 2) / (m - 3), 0.007, stderr=error,
                   reason="E of an inverse chi square")  # fmt: skip
    for m in (2, 4):
        one = torch.randn(1, width, dtype=torch.float64, generator=generator)
        jacobian = torch.func.jacrev(norm(m))(one).reshape(width, width)[:m]
        rank = int(torch.linalg.matrix_rank(jacobian, atol=1e-9))
        yield near(f"numbers left of {m}", rank, m - 2, 0.1, reason="mean and size are gone")
    apart, growth = [], []
    for _ in range(nets):
        x = torch.randn(16, width, dtype=torch.float64, generator=generator)
        weights = [torch.randn(width, width, dtype=torch.float64, generator=generator) / width**0.5
                   for _ in range(depth)]  # fmt: skip
        apart.append(_cosine(x, weights, norm(4)) - _cosine(x, weights, norm(width)))
        growth.append(_growth(x, weights, norm(6)))
    mean, error = mean_and_error(np.array(apart))
    yield at_most("cosine between samples, groups of 4 less one group", mean, -0.02, stderr=error,
                  reason="chosen by us: by how much a reader would care")  # fmt: skip
    mean, error = mean_and_error(np.array(growth))
    yield at_least("growth of log |gradient|^2 a layer, groups of 6", mean, 0.8 * math.log(4 / 3), stderr=error,
                   reason="the law is of the mean, above that of the logarithms")  # fmt: skip


def _cosine(x: Tensor, weights: list[Tensor], norm: nn.Module) -> float:
    for w in weights:
        x = torch.relu(norm(x @ w.T))
    x = nn.functional.normalize(x)
    return float((x @ x.T).triu(1).sum() / (len(x) * (len(x) - 1) / 2))


def _growth(x: Tensor, weights: list[Tensor], norm: nn.Module) -> float:
    h = first = x.requires_grad_()
    for w in weights:
        h = norm(h @ w.T)
    signs = torch.randn(h.shape, dtype=h.dtype, generator=torch.Generator().manual_seed(len(weights))).sign()
    g = torch.autograd.grad(h, first, signs)[0]
    return float(g.square().sum().log() - math.log(h.numel())) / len(weights)


@PAPER.claim(
    "dyt", "tanh(alpha x) for a norm: with alpha x at rms 1 signal and gradient of a plain net last; at alpha = 0.5 "
    "the signal dies, at rms 5 the gradient explodes.",
    where="follow-ups (Zhu, Chen, He, LeCun, Liu 2025); the law is ours", covers="F-dyt",
    quick={"width": 256, "depth": 12, "nets": 12}, full={"width": 1024, "depth": 24, "nets": 10},
    control=({"curve": "erf"}, {"shift": 4.0}),
    because="erf bends at another scale; and alphas four times as large do not keep it", seconds=(3, 20),
)  # fmt: skip
def dyt(run: Run, width: int, depth: int, nets: int, curve: str = "tanh", shift: float = 1.0) -> Iterable[Reading]:
    """Mean square and squared slope of a module at alpha x of rms a, against sums over a Gaussian; then linear layers
    with N(0, 1/width) weights and a module behind each: rms of the last output, and the log of the growth of the
    gradient norm a layer, alpha fixed at 0.5, and at a over the rms of its input.
    """
    generator = run.generator(72)
    z = np.linspace(-12, 12, 200001)
    weight = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    for a in (0.5, 1.0, 4.0):
        module = DyT(1, alpha=shift * a, curve=curve, affine=False).double()
        x = torch.from_numpy(z)[:, None].requires_grad_()
        y = module(x)
        slopes = (torch.autograd.grad(y.sum(), x)[0][:, 0] / (shift * a)).numpy()
        yield near(f"mean square, a = {a:g}", float((weight * y.detach().numpy()[:, 0] ** 2).sum()),
                   float(second_moment("tanh", a * a)), 1e-6, reason="E tanh(a z)^2")  # fmt: skip
        yield near(f"squared slope, a = {a:g}", float((weight * slopes**2).sum()),
                   float(second_moment("tanh", a * a, derivative=True)), 1e-6, reason="E sech(a z)^4")  # fmt: skip
    weights = [[torch.randn(width, width, dtype=torch.float64, generator=generator) / width**0.5 for _ in range(depth)]
               for _ in range(nets)]  # fmt: skip
    x = torch.randn(16, width, dtype=torch.float64, generator=generator)
    found = {a: [_through(x, w, a, curve, shift) for w in weights] for a in (None, 1.0, 5.0)}
    size, error = mean_and_error(np.array([s for s, _ in found[None]]))
    yield at_most("rms behind alpha = 0.5", size, 2 * 0.5**depth, stderr=error, reason="a factor alpha a layer")
    size, error = mean_and_error(np.array([s for s, _ in found[1.0]]))
    yield between("rms behind alpha x at rms 1", size, 0.5, 0.7, stderr=error, reason="0.63 = sqrt(E tanh(z)^2)")
    for a in (1.0, 5.0):
        grown, error = mean_and_error(np.array([g for _, g in found[a]]))
        passed, left = (float(second_moment("tanh", a * a, derivative=slope)) for slope in (True, False))
        law = 0.5 * math.log(a * a * passed / left)
        yield near(f"growth of log |gradient| a layer, alpha x at rms {a:g}", grown, law, 0.03, stderr=error,
                   reason="half the log of a^2 E sech(a z)^4 / E tanh(a z)^2")  # fmt: skip


def _through(x: Tensor, weights: list[Tensor], a: float | None, curve: str, shift: float) -> tuple[float, float]:
    """The rms behind the last layer, and the growth of log |gradient| a layer."""
    h, outputs = x, []
    for w in weights:
        u = h @ w.T
        alpha = 0.5 if a is None else a / float(u.detach().square().mean().sqrt())
        h = DyT(1, alpha=shift * alpha, curve=curve, affine=False).double()(u)
        outputs.append(h.requires_grad_())
    first = torch.autograd.grad(h, outputs[0], torch.ones_like(h))[0]
    size = float(first.square().mean().sqrt().log())
    return float(h.detach().square().mean().sqrt()), size / (len(weights) - 1)
