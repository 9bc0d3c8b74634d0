"""Chains for the claims: simulated metrics, Grams of simulated chains, and explicit weights through the library's
modules.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from normscope.claims._tables import Array, series
from normscope.claims.claim import Run
from normscope.core.records import Profile
from normscope.core.spec import Spec
from normscope.nn import BatchNorm, make_activation
from normscope.theory import simulate, simulated_grams


def linear(depth: int, width: int, norm: str = "batch_rescale", activation: str = "identity", **fields: object) -> Spec:
    """The papers' chain: linear layers, Gaussian weights, batch norm without recentring."""
    return Spec(depth=depth, width=width, norm=norm, activation=activation, **fields)  # type: ignore[arg-type]


def entropy(run: Run, stream: int = 0) -> int:
    """A seed of its own for each ``stream`` of a run."""
    return run.seed * 1_000_003 + stream


def simulated(
    run: Run, spec: Spec, inputs: Array, metrics: Sequence[str], *, chains: int, stream: int = 0, every: int = 1
) -> Profile:
    """`simulate` from inputs (n, features), seeded by the run."""
    return simulate(spec, inputs=inputs, seeds=chains, seed=entropy(run, stream), metrics=list(metrics), every=every)


def gaussian(run: Run, *shape: int, stream: int = 0) -> Array:
    """Standard normals."""
    return np.asarray(torch.randn(*shape, dtype=torch.float64, generator=run.generator(stream)).numpy())


def padded(values: Sequence[float] | Array, width: int) -> Array:
    """Orthogonal samples of these lengths: diag(values) with columns of zeros up to ``width``."""
    x = np.zeros((len(values), width))
    x[:, : len(values)] = np.diag(np.asarray(values, dtype=float))
    return x


def near_rank_one(n: int, d: int) -> Array:
    """The start of Fig. 2: diag(1, 1e-6, ..., 1e-6) padded to width d; rows are samples."""
    return padded([1.0] + [1e-6] * (n - 1), d)


def grams(
    run: Run, spec: Spec, inputs: Array, chains: int, *, stream: int = 0, first: int = 1, every: int = 1
) -> Iterator[Array]:
    """Grams (chains, n, n) of trace 1 after the layers ``first``, ``first + every``, ... of simulated chains."""
    steps = simulated_grams(spec, inputs=inputs, seeds=chains, seed=entropy(run, stream))
    for gram in itertools.islice(steps, first, None, every):
        yield gram / np.einsum("rii->r", gram)[:, None, None]


def gap_of(gram: Array) -> Array:
    """V of Grams (..., n, n) of trace 1, by its definition."""
    n = gram.shape[-1]
    return np.asarray(np.sqrt(np.square(gram - np.eye(n) / n).sum((-2, -1))))


def least_share(profile: Profile, samples: int, width: int, first: int = 1) -> Array:
    """Smallest squared singular value over the sum of all, (layers, seeds); needs `sigma_min` and `rms`."""
    sigma, rms = series(profile, "sigma_min", first), series(profile, "rms", first)
    return np.asarray((sigma / rms) ** 2 / (samples * width))


def side_by_side(
    x: Tensor, depth: int, draw: Callable[[], Tensor], *, recenter: bool = False, activation: str = "identity",
    argument: float = 1.0, skip: float = 0.0
) -> Iterator[Tensor]:  # fmt: skip
    r"""Explicit weights: normalised pre-activations u (chains, n, d), rms 1 a unit, of many chains stepped together.

    $h \leftarrow \varphi(c\,u)$, $u = \mathrm{BN}(W h)$, c = ``argument``, or with a ``skip`` $\mathrm{BN}(h + s W h)$;
    the norm (no epsilon) and the activation are the library's modules, ``draw`` gives the weights (chains, d, d) of a
    layer. x: (chains, n, d).
    """
    chains, n, d = x.shape
    norm = BatchNorm(chains * d, recenter=recenter, affine=False, eps=0.0, track_running_stats=False)
    phi: nn.Module = make_activation(activation)
    h = x
    for _ in range(depth):
        z = torch.bmm(h, draw().transpose(1, 2))
        if skip:
            z = h + skip * z
        u = norm(z.transpose(0, 1).reshape(n, chains * d)).reshape(n, chains, d).transpose(0, 1)
        h = phi(argument * u)
        yield u


def shifted(draw: Callable[[], Tensor], by: float) -> Callable[[], Tensor]:
    """The same draws with a mean."""
    return lambda: draw() + by


def normal_weights(chains: int, d: int, generator: torch.Generator) -> Callable[[], Tensor]:
    """Draws of N(0, 1/d) weights (chains, d, d)."""
    return lambda: torch.randn(chains, d, d, dtype=torch.float64, generator=generator) / math.sqrt(d)
