"""What a metric is: a function of statistics, and all that a reader or a drawing must know about its number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from normscope.core.registry import Registry
from normscope.geometry.statistic import Statistic

if TYPE_CHECKING:
    from jaxtyping import Float

#: What has to be known of a representation, each with all before it: entries alone (of the units), lengths of samples
#: and of their centred parts, the Gram matrix, its eigenvalues.
Needs = Literal["entries", "norms", "gram", "eigenvalues"]


@dataclass(frozen=True, eq=False)
class Metric:
    """A registered metric: the function, and what a reader must know about the number.

    ``title``: its name in words, ``short``: in a table's head; ``unit``; ``log``: drawn on a log axis; ``reading``: how
    to read its chart, one without has none; ``low`` and ``high``: the range of the value (inclusive); ``source``: where
    it is defined; ``needs``: how much of a representation it reads (`Needs`), ``None``: not said, so all;
    ``invariant``: what leaves it unchanged, of ``scale`` (X -> c X), ``rotation`` (X -> X Q), ``permutation`` (of the
    samples); ``signal``: what it is measured on, ``activation`` or ``gradient``; ``spectral``: whether neither a
    rotation of the samples (X -> Q X) nor directions of 1e-12 of the largest matter to it.
    """

    function: Callable[..., Tensor | float]
    name: str
    title: str
    short: str
    unit: str
    log: bool
    reading: str
    low: float
    high: float
    source: str
    needs: Needs | None
    invariant: tuple[str, ...]
    signal: str
    spectral: bool

    @property
    def scales(self) -> bool:
        """Is it a length, f(c X) = |c| f(X)?"""
        return self.unit in ("x", "loss / x")

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.function.__doc__

    def __call__(self, gram: Float[Tensor, "n n"] | Statistic, **options: float) -> float:
        """The value for a Gram matrix (n, n) or a `Statistic`; ``options`` are the metric's (``tau`` of
        `soft_rank`).
        """
        return float(self.function(gram if isinstance(gram, Statistic) else Statistic.of_gram(gram), **options))

    def null(self, n: int, d: int, draws: int = 64, seed: int = 0) -> float:
        r"""What i.i.d. standard normal entries of n samples and d features give: the mean over ``draws`` of them.

        For n <= d, $X = L Q$ with orthonormal rows Q and L lower triangular, so $G = L L^T$: $L_{ii}^2$ is $\chi^2$
        with d - i + 1 degrees of freedom and the entries below are standard normal (Bartlett). The cost does not grow
        with d.
        """
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((draws, n, min(n, d)))
        if n <= d:
            x = np.tril(x, -1) + np.eye(n) * np.sqrt(rng.chisquare(np.arange(d, d - n, -1), (draws, n)))[:, None]
        found = evaluate([Statistic(n, d, row) for row in torch.from_numpy(x)], [self])
        return float(np.mean([values[self.name] for values in found]))


METRICS: Registry[Metric] = Registry("metric")


def register(
    *,
    unit: str,
    source: str,
    title: str | None = None,
    short: str | None = None,
    log: bool = False,
    reading: str = "",
    low: float = 0.0,
    high: float = math.inf,
    needs: Needs | None = None,
    invariant: str = "scale rotation permutation",
    signal: str = "activation",
    spectral: bool = False,
) -> Callable[[Callable[..., Tensor | float]], Metric]:
    """Decorator: enrol a function of a `Statistic` as a metric under its own name, in every list, page and check.

    The arguments are those of `Metric`; title and short default to the name in words. A function that says what it
    ``needs`` takes statistics with any leading axes (...) and returns values (...), layers of one shape at once; one
    that does not is called for each representation alone.
    """

    def enrol(function: Callable[..., Tensor | float]) -> Metric:
        name = function.__name__
        words = name.replace("_", " ")
        metric = Metric(
            function, name, title or words[:1].upper() + words[1:], short or words, unit, log, reading, low, high,
            source, needs, tuple(invariant.split()), signal, spectral,
        )  # fmt: skip
        return METRICS.add(name, metric)

    return enrol


def evaluate(members: Sequence[Statistic], metrics: Sequence[Metric], finite: bool = False) -> list[dict[str, float]]:
    """metric -> value of each of several statistics of one `Statistic.kind`; ``finite``: NaN for what is not."""
    group = Statistic.stacked(members)
    found = columns(group, metrics)
    known = group.finite.tolist() if finite else [True] * len(members)
    return [{name: column[i] if known[i] else math.nan for name, column in found.items()} for i in range(len(members))]


def columns(group: Statistic, metrics: Sequence[Metric]) -> dict[str, list[float]]:
    """metric -> values of each representation of a statistic with a leading axis."""
    alone = list(group.members()) if any(m.needs is None for m in metrics) else []
    return {
        m.name: [m(s) for s in alone]
        if m.needs is None
        else torch.as_tensor(m.function(group), dtype=torch.float64).tolist()
        for m in metrics
    }
