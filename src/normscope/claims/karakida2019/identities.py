"""What holds exactly, for any net: projections, interlacing, null directions, traces, products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from normscope.claims._tables import highest, indicator, lowest
from normscope.claims.claim import Run
from normscope.claims.karakida2019._paper import PAPER, RELU, batch, net, plain
from normscope.claims.reading import Reading, at_least, at_most, near
from normscope.curvature import fisher, jacobian
from normscope.linalg import LinearMap, hutchinson, hutchpp, spectrum
from normscope.linalg.maps import from_matrix, gram
from normscope.nn import BatchNorm

N, WIDTHS, C = 24, (20, 16, 18, 4), 4


class Norm(nn.Module):
    """Norms from primitive operations, eps 1e-30: over the batch (axis 0) or over the features (axis 1).

    ``frozen``: mean and variance are constants to the derivative.
    """

    def __init__(self, axis: int, scale: bool, affine: int = 0) -> None:
        super().__init__()
        self.axis, self.scale, self.frozen = axis, scale, False
        self.gamma = nn.Parameter(torch.ones(affine)) if affine else None
        self.beta = nn.Parameter(torch.zeros(affine)) if affine else None

    def forward(self, u: Tensor) -> Tensor:
        """(n, d) -> (n, d)."""
        mean = u.mean(self.axis, keepdim=True)
        variance = u.var(self.axis, unbiased=False, keepdim=True)
        u = u - (mean.detach() if self.frozen else mean)
        if self.scale:
            u = u / ((variance.detach() if self.frozen else variance) + 1e-30).sqrt()
        return u if self.gamma is None or self.beta is None else u * self.gamma + self.beta


def small(run: Run, last: str = "none", hidden: str = "none", activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A net 20-16-18-4 with norms ``none``, ``ms``, ``bn``, ``ln``, with ``+`` for a trainable affine."""

    def maker(kind: str) -> Callable[[int], nn.Module] | None:
        if kind == "none":
            return None
        axis, scale = {"ms": (0, False), "bn": (0, True), "ln": (1, True)}[kind.rstrip("+")]
        return lambda d: Norm(axis, scale, d if kind.endswith("+") else 0)

    return plain(WIDTHS, activation, 2.0, 0.1, run.generator(1), hidden=maker(hidden), last=maker(last))


def eigenvalues(model: nn.Module, x: object, **more: object) -> np.ndarray:
    """All eigenvalues of the Fisher matrix, descending."""
    return np.asarray(torch.linalg.eigvalsh(fisher(model, x, **more).dense()).flip(0))  # type: ignore[arg-type]


@PAPER.claim(
    "projector", "The Jacobian behind the last batch norm is the plain one, projected and scaled.",
    where="Theorem 3 (exact)", covers="7.8.exact T2.projector T3.projector", quick={}, control={"scaled": False},
    because="without the second projection and 1/sigma it is not the same", seconds=(0.1, 0.3)
)  # fmt: skip
def projector(run: Run, scaled: bool = True) -> Iterator[Reading]:
    """J_bn = (1/sigma_k)(I - 11^T/N - u u^T/N) J for each output, and J_ms = (I - 11^T/N) J: dense Jacobians of nets in
    training mode against the plain net's.
    """
    x = batch(run, N, WIDTHS[0], 2, torch.float64)
    j = jacobian(small(run), x).dense().reshape(N, C, -1)
    f = small(run)(x).detach()
    centred = j - j.mean(0)
    yield near("mean subtraction", _off(jacobian(small(run, "ms"), x).dense().reshape(N, C, -1), centred), 0, 1e-11,
               exact="a projection of J: rounding")  # fmt: skip
    sigma = (f - f.mean(0)).square().mean(0).sqrt()
    u = (f - f.mean(0)) / sigma
    expected = (centred - u[..., None] * (u[..., None] * centred).mean(0)) / sigma[:, None] if scaled else centred
    found = jacobian(small(run, "bn"), x, parameters=["?.weight", "?.bias"]).dense().reshape(N, C, -1)
    yield near("batch norm", _off(found, expected), 0, 1e-11, reason="rounding")


def _off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@PAPER.claim(
    "exact-spectra", "Mean subtraction removes the mean gradients from the trace and interlaces; an affine adds 2C "
    "ones.",
    where="Theorems 2 and 3 (exact parts, ours)", covers="7.14 T2.trace T2.interlacing T3.affine T3.bound", quick={},
    control={"last": "none"}, because="without the norm there is nothing of the sort", seconds=(1, 1),
)  # fmt: skip
def exact_spectra(run: Run, last: str = "bn") -> Iterator[Reading]:
    """On one small net in float64: tr F - tr F_ms = sum ||E grad f_k||^2; lambda_{i+C}(F) <= lambda_i(F_ms) <=
    lambda_i(F); a trainable gamma and beta add exactly 2C eigenvalues 1; lambda_max(F_bn) <= lambda_max(F_ms) max
    1/sigma^2.
    """
    x = batch(run, N, WIDTHS[0], 2, torch.float64)
    plainly, ms = eigenvalues(small(run), x), eigenvalues(small(run, "ms" if last == "bn" else "none"), x)
    removed = float(jacobian(small(run), x).dense().reshape(N, C, -1).mean(0).square().sum())
    yield near("trace identity", (plainly.sum() - ms.sum()) / removed, 1.0, 1e-10, reason="algebra")
    slack = highest(float((ms - plainly).max()), float((plainly[C:] - ms[:-C]).max()))
    yield at_most("interlacing violated by", slack, 1e-10, exact="an inequality: rounding")
    without, affine = eigenvalues(small(run, last), x), eigenvalues(small(run, f"{last}+" if last == "bn" else last), x)
    ones = np.sort(np.append(without, np.ones(2 * C)))[::-1]
    size = lowest(len(ones), len(affine))
    yield at_most("2C ones", float(np.abs(ones[:size] - affine[:size]).max()), 1e-9)
    variance = float(small(run)(x).detach().var(0, unbiased=False).min())
    yield at_most("batch norm over its bound", float(without[0] / (ms[0] / variance)), 1 + 1e-10,
                  exact="an inequality: rounding")  # fmt: skip
    rank = float(indicator(without > 1e-9 * without[0], without).sum())
    yield at_most("rank behind batch norm", rank, C * (N - 2), reason="C(N-2)")


@PAPER.claim(
    "null-directions", "Behind the last batch norm the output bias and the joint scaling of its weights do nothing.",
    where="Theorem 3 (exact, ours)", covers="T3.null", quick={}, control={"last": "none"},
    because="without the norm both move the outputs", seconds=(0.1, 0.2),
)  # fmt: skip
def null_directions(run: Run, last: str = "bn") -> Iterator[Reading]:
    """F w = 0 for w the bias of one output, and for w = (its weights, its bias)."""
    model, x = small(run, last), batch(run, N, WIDTHS[0], 2, torch.float64)
    f = fisher(model, x)
    readout = [m for m in model if isinstance(m, nn.Linear)][-1]
    for name in ("bias", "scaling"):
        parts = {id(p): torch.zeros_like(p) for p in model.parameters()}
        if name == "scaling":
            parts[id(readout.weight)][1] = readout.weight.detach()[1]
        parts[id(readout.bias)][1] = 1.0 if name == "bias" else readout.bias.detach()[1]
        w = torch.cat([parts[id(p)].reshape(-1) for p in model.parameters()])
        found = float(f.matvec(w).norm() / w.norm()) / spectrum(f).largest
        yield at_most(f"F on the {name} direction", found, 1e-11, reason="2e-15 in the reference runs")


@PAPER.claim(
    "dense-is-matrix-free", "Matrix-free products are the dense matrix, for every normalizer, samples coupled.",
    where="section 6", covers="7.17 S6.semantics", quick={}, control={"frozen": True},
    because="with statistics held constant it is another matrix", seconds=(0.4, 1),
)  # fmt: skip
def dense_is_matrix_free(run: Run, frozen: bool = False) -> Iterator[Reading]:
    """F w on eleven nets x two activations against J^T J w / N with J from torch's reverse mode over the whole batch.
    With frozen statistics (the control) normalised nets give another, much sharper matrix.
    """
    x = batch(run, N, WIDTHS[0], 2, torch.float64)
    cases = [(last, hidden) for last in ("none", "ms", "bn", "bn+", "ln") for hidden in ("none",)]
    cases += [("none", "ms"), ("none", "bn"), ("none", "bn+"), ("none", "ln"), ("bn", "bn"), ("ln", "ln")]
    for last, hidden in cases:
        worst = 0.0
        for activation in (nn.ReLU, nn.Tanh):
            model = small(run, last, hidden, activation)
            size = sum(p.numel() for p in model.parameters())
            w = torch.randn(size, generator=run.generator(9), dtype=torch.float64)
            product = fisher(model, x).matvec(w)
            for module in model.modules():
                if isinstance(module, Norm):
                    module.frozen = frozen
            out = model(x).reshape(-1)
            unit = torch.eye(len(out), dtype=torch.float64)
            rows = torch.autograd.grad(out, list(model.parameters()), unit, is_grads_batched=True)
            j = torch.cat([g.flatten(1) for g in rows], 1)
            expected = j.T @ (j @ w) / N
            worst = highest(worst, float((product - expected).norm() / expected.norm()))
        yield at_most(f"relative difference, last {last}, hidden {hidden}", worst, 1e-12,
                      exact="one product, twice; 3e-15 seen")  # fmt: skip


@PAPER.claim(
    "softmax-exact", "The cross-entropy Fisher is at most half the squared loss's, of rank N(C-1).",
    where="PS21 (exact)", covers="T6.exact", quick={}, control={"loss": "squared_error"},
    because="the squared loss is not half of itself", seconds=(0.2, 0.2)
)  # fmt: skip
def softmax_exact(run: Run, loss: str = "cross_entropy") -> Iterator[Reading]:
    """Largest eigenvalue and rank on a small net: rank 72 of 96."""
    model, x = small(run), batch(run, N, WIDTHS[0], 2, torch.float64)
    squared, cross = eigenvalues(model, x), eigenvalues(model, x, loss=loss)
    yield at_most("largest over half the squared loss's", float(cross[0] / squared[0]) * 2, 1 + 1e-12)
    yield near("rank", float(indicator(cross > 1e-10 * cross[0], cross).sum()), N * (C - 1), 0.1, reason="a count")


@PAPER.claim(
    "deflated-trace", "Taking out the mean directions makes trace estimates twice as good as Hutch++.",
    where="section 6 (ours)", covers="7.20", quick={"width": 150, "outputs": 4, "repeats": 150},
    full={"width": 150, "outputs": 4, "repeats": 1000},
    control=({"deflated": False, "repeats": 60}, {"exactly": False, "repeats": 60}),
    because="without them the outliers' noise stays; and left out altogether they are missing", seconds=(5.8, 22),
)  # fmt: skip
def deflated_trace(
    run: Run, width: int, outputs: int, repeats: int, deflated: bool = True, exactly: bool = True
) -> Iterator[Reading]:
    """Standard deviation of tr F over repeated draws, at 24 products: Hutch++ over the estimator that takes the C mean
    directions out exactly. The reference runs: 72.6 plain, 26.4 Hutch++, 12.9 deflated; all unbiased.
    """
    model = net(RELU, width, outputs, run.generator(0), torch.float64)
    j = fisher(model, batch(run, width, width, 1, torch.float64)).factor
    assert j is not None
    dense = j.dense()
    matrix = dense.T @ dense
    values, vectors = torch.linalg.eigh(matrix)
    a: LinearMap = from_matrix((vectors * values.clamp_min(0).sqrt()).T.contiguous())
    basis = torch.eye(outputs, dtype=torch.float64).repeat(width, 1) / math.sqrt(width)
    known = basis if deflated else None
    probes = 24 - outputs if deflated else 24
    left_out = 0.0 if exactly else float((matrix @ basis).mul(basis).sum())
    own = [hutchinson(a, probes, basis=known, generator=run.generator(10 + r)).value - left_out for r in range(repeats)]
    other = [hutchpp(gram(a.T), 24, generator=run.generator(5000 + r)).value for r in range(repeats)]
    ratio = float(np.std(other) / np.std(own))
    yield at_least("sd of Hutch++ over deflated", ratio, 1.5, stderr=ratio / math.sqrt(repeats), reason="26.4 / 12.9")
    trace = float(matrix.trace())
    bias = (np.mean(own) - trace) / (np.std(own) / math.sqrt(repeats))
    yield near("bias in standard errors", float(bias), 0.0, 4, reason="unbiased")


@PAPER.claim(
    "library-batch-norm", "The library's batch norm of the last layer is the projected one, with the built nets too.",
    where="section 6", covers="S6.shortcuts", quick={}, control={"recenter": False},
    because="the variance alone leaves the mean gradients in", seconds=(0.2, 0.2),
)  # fmt: skip
def library_batch_norm(run: Run, recenter: bool = True) -> Iterator[Reading]:
    """Spectra with ``nn.BatchNorm`` (eps 1e-30) against the one written from primitive operations."""
    x = batch(run, N, WIDTHS[0], 2, torch.float64)
    own = plain(WIDTHS, nn.ReLU, 2.0, 0.1, run.generator(1),
                last=lambda d: BatchNorm(d, affine=False, eps=1e-30, recenter=recenter))  # fmt: skip
    difference = np.abs(eigenvalues(own, x) - eigenvalues(small(run, "bn"), x)).max()
    yield at_most("largest difference of eigenvalues", float(difference), 1e-10)
