"""The paper, its nets as users would build them, and its recursions in plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn.utils import skip_init

from normscope.claims._tables import Array, highest, lowest
from normscope.claims.claim import PAPERS, Paper, Run
from normscope.core.spec import Spec
from normscope.curvature import fisher, ntk
from normscope.linalg import spectrum
from normscope.nn import BatchNorm

PAPER = PAPERS.add(
    "karakida2019",
    Paper(
        "karakida2019",
        "The Normalization Method for Alleviating Pathological Sharpness in Wide Neural Networks",
        "Karakida, Akaho, Amari",
        "NeurIPS 2019, arXiv 1906.02926",
        "The Fisher matrix of a wide random net has a few eigenvalues that grow with the width and cap the learning "
        "rate; batch norm in the last layer removes them, in hidden layers it mostly does not.",
        {
            "Fig.C": "loss after one epoch of stochastic gradient descent on MNIST over a grid of widths to 4000: its "
            "red line is claim fig-c-line, the map itself is training of days on a core",
            "Fig.H": "input and feature metric: another matrix than the parameters' Fisher",
            "S9": "theorem numbers, constants and appendix of the paper: no readable copy; ours are derived and "
            "checked",
            "7.21.ddp": "distributed data parallel on four ranks: whole-batch lists stand in for replicas",
            "7.13.cnn": "a convolutional net's frozen statistics: no reference run of it",
        },
    ),
)


@dataclass(frozen=True)
class Kind:
    """A net of the paper: activation, variances of weights and biases, norms, weight layers."""

    activation: str = "relu"
    sw2: float = 2.0
    sb2: float = 0.0
    hidden: str = "none"
    last: str = "none"
    layers: int = 3


RELU, TANH, LINEAR = Kind(), Kind("tanh", 3.0, 0.64), Kind("identity", 1.0, 0.1)


def spec_of(kind: Kind, width: int, outputs: int) -> Spec:
    """The spec of a net of equal widths."""
    return Spec(depth=kind.layers - 1, width=width, activation=kind.activation, gain=math.sqrt(kind.sw2),
                bias=math.sqrt(kind.sb2), norm=kind.hidden, outputs=outputs, output_norm=kind.last)  # fmt: skip


#: Activations and norms by the names of a `Spec`; norms as in the paper, gamma = 1 and beta = 0 held fixed.
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "identity": nn.Identity}
NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": lambda d: BatchNorm(d, affine=False),
            "batch_recenter": lambda d: BatchNorm(d, rescale=False, affine=False),
            "layer": lambda d: nn.LayerNorm(d, elementwise_affine=False)}  # fmt: skip


def net(
    kind: Kind, width: int, outputs: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """A net of equal widths; its parameters are weights and biases only, as in the paper."""
    return plain((width,) * kind.layers + (outputs,), ACTIVATIONS[kind.activation], kind.sw2, kind.sb2, generator,
                 hidden=NORMS.get(kind.hidden), last=NORMS.get(kind.last), dtype=dtype)  # fmt: skip


def batch(run: Run, samples: int, features: int, stream: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard Gaussian inputs."""
    return torch.randn(samples, features, generator=run.generator(stream), dtype=torch.float64).to(dtype)


def tops(
    run: Run, kind: Kind, width: int, samples: int, outputs: int, nets: int, stream: int = 0, tol: float = 3e-3
) -> list[float]:
    """Largest Fisher eigenvalue of independent nets on independent batches, by the library's products."""
    found = []
    for r in range(nets):
        at = stream + 10_000 * r + width
        model = net(kind, width, outputs, run.generator(at)).to(run.device)
        x = batch(run, samples, width, at + 500_000).to(run.device)
        found.append(spectrum(fisher(model, x), tol=tol, method="lanczos").largest)
    return found


def grams(
    run: Run, kind: Kind, widths: Sequence[int], samples: int, nets: int, stream: int = 0, mean: float = 0.0
) -> Iterator[tuple[Array, Array]]:
    """Of independent nets without norms on independent batches: J J^T / N (n c, n c), sample by sample, and outputs (n,
    c).

    The non-zero eigenvalues are those of the Fisher matrix. The library writes it layer by layer, without J.
    """
    for r in range(nets):
        at = stream + 10_000 * r + widths[1]
        model = plain(widths, ACTIVATIONS[kind.activation], kind.sw2, kind.sb2, run.generator(at),
                      dtype=torch.float32).to(run.device)  # fmt: skip
        x = (batch(run, samples, widths[0], at + 500_000) + mean).to(run.device)
        kernel = ntk(model, x).dense().double().cpu().numpy() / samples
        yield kernel, model(x).detach().double().cpu().numpy()


def behind(kernel: Array, outputs: Array, norm: str) -> Array:
    """J J^T / N of the same net with a norm put after its outputs: B (J J^T / N) B^T with the norm's Jacobian B.

    Over the batch, for each output: ``batch_recenter``, ``batch``, ``frozen`` (batch norm with constant statistics).
    Over the outputs, for each sample: ``layer_recenter``, ``layer``.
    """
    n, c = outputs.shape
    if norm == "none":
        return kernel
    axis, size = (1, c) if norm.startswith("layer") else (0, n)
    centred = outputs - outputs.mean(axis, keepdims=True)
    sigma = np.sqrt(np.square(centred).mean(axis))
    maps = []
    for u, s in zip(centred.T if axis == 0 else centred, sigma, strict=True):
        project = np.eye(size) - 1 / size
        if norm in ("batch", "layer"):
            project = (project - np.outer(u, u) / s**2 / size) / s
        maps.append(np.eye(size) / s if norm == "frozen" else project)
    blocks = kernel.reshape(n, c, n, c).copy()
    if axis == 0:
        for k in range(c):
            for other in range(c):
                blocks[:, k, :, other] = maps[k] @ blocks[:, k, :, other] @ maps[other]
        return np.asarray(blocks.reshape(n * c, n * c))
    stack = np.array(maps)
    return np.asarray(np.einsum("nab,nbmd,mde->name", stack, blocks, stack, optimize=True).reshape(n * c, n * c))


def eigenvalues(kernel: Array) -> Array:
    """All of them, descending."""
    return np.asarray(np.linalg.eigvalsh(kernel)[::-1])


def largest(kernel: Array) -> float:
    """The largest alone, to 1e-5."""
    start = np.arange(len(kernel)) + 1.0  # any: scipy's own is drawn from the global generator
    return float(eigsh(kernel, 1, which="LA", tol=1e-5, v0=start, return_eigenvectors=False)[0])


def in_place(run: Run, kind: Kind, width: int, outputs: int, projected: str) -> float:
    """lambda_max of a net with the norm of its outputs in place, training mode, over that of the Gram behind
    ``projected``.
    """
    kernel, f = next(grams(run, kind, (width,) * kind.layers + (outputs,), width, 1))
    model = net(kind, width, outputs, run.generator(width))
    found = spectrum(fisher(model, batch(run, width, width, width + 500_000)), tol=1e-4, method="lanczos").largest
    return found / largest(behind(kernel, f, projected))


def plain(
    widths: Sequence[int], activation: type[nn.Module], sw2: float, sb2: float, generator: torch.Generator,
    hidden: Callable[[int], nn.Module] | None = None, last: Callable[[int], nn.Module] | None = None,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:  # fmt: skip
    """A net of any widths and norms, written as a user would."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        linear = skip_init(nn.Linear, a, b, dtype=dtype)
        with torch.no_grad():
            linear.weight.normal_(0, math.sqrt(sw2 / a), generator=generator)
            linear.bias.normal_(0, math.sqrt(sb2), generator=generator)
        end = i == len(widths) - 2
        norm = last if end else hidden
        layers += [linear, *([] if norm is None else [norm(b).to(dtype)]), *([] if end else [activation()])]
    return nn.Sequential(*layers)


# The recursions of the paper, in plain arithmetic ------------------------------------------------------------------


def moments(name: str, q1: float, q2: float) -> tuple[float, float, float, float]:
    """E phi^2, E phi phi, E phi'^2, E phi' phi' of two Gaussians of variance q1 and covariance q2."""
    c = highest(-1.0, lowest(1.0, q2 / q1))
    if name == "relu":
        arc = math.pi - math.acos(c)
        return q1 / 2, q1 / (2 * math.pi) * (math.sqrt(1 - c * c) + c * arc), 0.5, arc / (2 * math.pi)
    if name == "identity":
        return q1, q2, 1.0, 1.0
    z = np.arange(-10, 10.0001, 0.04)
    w = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * 0.04
    from scipy.special import erf

    phi: Callable[[Array], Array] = np.tanh if name == "tanh" else erf
    u = math.sqrt(q1) * z
    v = math.sqrt(q1) * (c * z[:, None] + math.sqrt(1 - c * c) * z[None, :])

    def slope(x: Array) -> Array:
        return np.asarray(1 - np.tanh(x) ** 2 if name == "tanh" else 2 / math.sqrt(math.pi) * np.exp(-(x**2)))

    pair = float((w * phi(u)) @ (phi(v) @ w)), float((w * slope(u)) @ (slope(v) @ w))
    return float(w @ phi(u) ** 2), pair[0], float(w @ slope(u) ** 2), pair[1]


@dataclass(frozen=True)
class Theory:
    """alpha kappa_t (per layer: ``terms1``, ``terms2``) in units of the hidden width, and the output's q_1, q_2."""

    terms1: tuple[float, ...]
    terms2: tuple[float, ...]
    q1: float
    q2: float

    @property
    def k1(self) -> float:
        """alpha kappa_1."""
        return sum(self.terms1)

    @property
    def k2(self) -> float:
        """alpha kappa_2."""
        return sum(self.terms2)

    def top(self, width: float, samples: int) -> float:
        """alpha M ((N-1)/N kappa_2 + kappa_1/N)."""
        return width * ((samples - 1) / samples * self.k2 + self.k1 / samples)


def theory(kind: Kind, ratios: Sequence[float] | None = None, second: float = 1.0, overlap: float = 0.0) -> Theory:
    """The order parameters; ``ratios``: M_{l-1} over the hidden width for each weight layer."""
    ratios = [1.0] * kind.layers if ratios is None else ratios
    qhat, slopes = [(second, overlap)], []
    q1 = q2 = 0.0
    for layer in range(kind.layers):
        q1, q2 = (kind.sw2 * h + kind.sb2 for h in qhat[-1])
        if layer == kind.layers - 1:
            break
        a, b, factor = q1, q2, 1.0
        if kind.hidden == "batch_recenter":
            a, b = q1 - q2, 0.0
        elif kind.hidden == "batch":
            a, b, factor = 1.0, 0.0, 1 / (q1 - q2)
        elif kind.hidden == "layer":
            a, b, factor = 1.0, q2 / q1, 1 / q1
        e1, e2, d1, d2 = moments(kind.activation, a, b)
        qhat.append((e1, e2))
        slopes.append((factor * d1, factor * d2))
    tilde = [(1.0, 1.0)]
    for d1, d2 in reversed(slopes):
        tilde.insert(0, (kind.sw2 * tilde[0][0] * d1, kind.sw2 * tilde[0][1] * d2))
    first, pair = [], []
    for layer, ((h1, h2), (t1, t2), ratio) in enumerate(zip(qhat, tilde, ratios, strict=True)):
        centred = kind.hidden.startswith("batch") and layer < kind.layers - 1
        first.append(ratio * t1 * (h1 - h2 if centred else h1))
        pair.append(0.0 if centred else ratio * t2 * h2)
    return Theory(tuple(first), tuple(pair), q1, q2)
