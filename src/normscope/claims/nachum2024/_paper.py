"""The paper, and the states that its claims start from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from normscope.claims._tables import Array, lowest
from normscope.claims.claim import PAPERS, Paper
from normscope.core.spec import Spec
from normscope.linalg import centred
from normscope.nn import build
from normscope.theory import predicted_grams

_OURS = "our own laws against each other, so a test (tests/theory/test_odd_point_laws.py) and no claim: "
PAPER = PAPERS.add(
    "nachum2024",
    Paper(
        "nachum2024",
        "Batch Normalization Decomposed",
        "Nachum, Bondaschi, Gastpar, Khina",
        "arXiv 2412.02843",
        "Recentring and a non-linearity such as ReLU turn a random deep net's batch into one cluster and one odd "
        "point, orthogonal to it; rescaling as well (complete batch norm) leads to equal angles instead. Our analysis "
        "of the phenomenon: the paper's own theorems and figures could not be read.",
        {
            "S0.7": "the paper's own theorems, hypotheses and constants, its sizes and data: no readable copy",
            "S4": "the paper's own figures: none could be seen; the six figures drawn in their place are F1 to F6",
            "D6": f"{_OURS}the same states and other rates for leaky slopes",
            "3.2.slopes": f"{_OURS}the same",
            "3.2.asymptotics": f"{_OURS}what the state becomes for many samples",
            "3.3.basin": f"{_OURS}the edge of the odd state's basin",
            "3.3.saddle": f"{_OURS}the one growing deviation of the saddle",
            "3.5.depth": f"{_OURS}layers until a sample separates",
            "3.6.heavy": f"{_OURS}heavy samples and their threshold under complete batch norm",
            "F5a": f"{_OURS}the figure of that threshold",
            "S6.cost": "timings of one machine; a benchmark, not a statement",
            "3.8.d10000": "widths of 10000 (n = 16, 32, 64): the full size of odd-point covers n = 64, d = 10000",
        },
    ),
)


def kernel(c: Array, slope: float = 0.0) -> Array:
    """E phi(u) phi(v) at unit variances and correlation c, by the arc-cosine formula."""
    c = np.clip(c, -1, 1)
    half = (np.sqrt(1 - c**2) + (np.pi - np.arccos(c)) * c) / (2 * np.pi)
    return np.asarray(slope * c + (1 - slope) ** 2 * half)


def odd_state(n: int, t: float) -> Array:
    """Centred Gram of one odd sample (variance 1) and n - 1 exchangeable ones (variance t)."""
    tau = (t - 1 / (n - 1) ** 2) * (n - 1) / (n - 2)
    state = np.full((n, n), 1 / (n - 1) ** 2 - tau / (n - 1))
    state[0, :] = state[:, 0] = -1 / (n - 1)
    np.fill_diagonal(state, [1.0] + [t] * (n - 1))
    return state


def follow(spec: Spec, gram: Array) -> Array:
    """The Gram after ``spec.depth`` infinitely wide layers without a scale of their own, kept from underflow."""
    for at in range(0, spec.depth, 100):
        gram = predicted_grams(replace(spec, depth=lowest(100, spec.depth - at)), gram)[-1]
        gram = gram / np.trace(gram)
    return gram


def variance_ratio(gram: Array) -> float:
    """t: mean centred variance of the others over that of the sample with the largest."""
    v = np.diag(centred(gram))
    return float(np.delete(v, v.argmax()).mean() / v.max())


def share(gram: Array) -> float:
    """R2: share of the centred energy in the largest contrast of one sample against the rest."""
    v = np.diag(centred(gram))
    return float(len(v) / (len(v) - 1) * v.max() / v.sum())


def cosines(gram: Array) -> Array:
    """Cosine of every pair i < j."""
    r = np.sqrt(np.diag(gram))
    return np.asarray((gram / np.outer(r, r))[np.triu_indices(len(gram), 1)])


def activation_of(slope: float) -> str:
    """Name of the leaky activation of this slope."""
    return {0.0: "relu", 1.0: "identity", -1.0: "abs"}.get(slope, f"leaky_relu({slope})")


def representations(spec: Spec, x: Array, generator: torch.Generator) -> Iterator[Array]:
    """Layer outputs (n, width) of a net with explicit weights, layer by layer; scaled to rms 1 where nothing
    rescales.
    """
    h, one = torch.from_numpy(x), replace(spec, depth=1)
    for _ in range(spec.depth):
        with torch.no_grad():
            h = build(one, h.shape[1], generator=generator, dtype=torch.float64)(h)
        if spec.norm in ("none", "batch_recenter"):
            h = h / h.square().mean().sqrt()
        yield h.numpy()
