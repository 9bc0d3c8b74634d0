r"""What stands for a tensor of the program: the law of its entries when the width goes to infinity.

A tensor has axes of *sites* (samples, positions) and axes of *features* (neurons, channels, heads). Over the features
its entries are exchangeable, so its law is that of one neuron over all sites: a mean m (N,) and second moments K (N,
N). Beside them it can be drawn, as tensors of the shape that the program has, features independent: what has no rule
in K is done to draws. Backwards the law of the loss gradient is $\Pi$ (N, N), summed over features.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from normscope.theory.program.kernels import Scalar

#: (parent, its share of the gradient): the moments of a `Field`'s, or cotangents of the draws.
Pulled = list[tuple["Law", Any]]
#: Sites up to which moments are kept in float64.
_DOUBLE = 512
#: Numbers of draws, and of moments that are soon found again, that are kept, the latest ones.
_HELD, _LATELY = 10 * 2**20, 2**22
#: Sites above which the half of K is kept, as it is symmetric, and the whole made when it is asked for.
_HALVED = 256


class Latest:
    """The latest tensors of laws, as many as there is room for."""

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._kept: OrderedDict[tuple[int, int], tuple[Law, tuple[Tensor, ...]]] = OrderedDict()

    def of(self, law: Law, i: int, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The i-th of a law, kept or made (again: the same numbers)."""
        found = self._kept.get((id(law), i))
        if found is None:
            found = self._kept[id(law), i] = law, make()
            self._size += _numbers(found[1])
            while self._size > self._most and len(self._kept) > 1:
                self._size -= _numbers(self._kept.popitem(last=False)[1][1])
        return found[1]

    def clear(self) -> None:
        """Keep none."""
        self._kept.clear()
        self._size = 0


def _numbers(tensors: Sequence[Tensor]) -> int:
    return sum(x.numel() for x in tensors)


class Draws:
    """How many draws of each law there are, and the latest of them, and of moments that are not kept."""

    def __init__(self, count: int) -> None:
        self.count, self.latest, self.moments = count, Latest(_HELD), Latest(_LATELY)

    def clear(self) -> None:
        """Keep none."""
        self.latest.clear()
        self.moments.clear()


class Law:
    """A node of the program: a tensor that depends on random weights.

    of, by: it is ``by`` of these laws' tensors; with no ``by`` it is drawn by itself, ``draw`` its i-th draw.
    sources: names of the independent random fields that it is a function of. pull: from its gradient to theirs.
    """

    def __init__(
        self, shape: Sequence[int], draws: Draws, *, of: Sequence[Law] = (), by: Callable[..., Tensor] | None = None,
        draw: Callable[[int], Tensor] | None = None, source: int | None = None,
        pull: Callable[[Any], Pulled] | None = None,
    ) -> None:  # fmt: skip
        self.shape, self.draws, self.of, self.by, self._draw = torch.Size(shape), draws, tuple(of), by, draw
        own = frozenset[int]() if source is None else frozenset({source})
        self.sources: frozenset[int] = own.union(*[x.sources for x in of])
        self.pull = pull or (lambda grad: [])

    def draw(self, i: int) -> Tensor:
        """The i-th draw, a tensor of its shape; the same one each time: kept for a while, then made again."""
        return self.draws.latest.of(self, i, lambda: (self._made(i),))[0]

    def _made(self, i: int) -> Tensor:
        if self.by is not None:
            return self.by(*[x.draw(i) for x in self.of])
        assert self._draw is not None
        return self._draw(i)


class Known(Law):
    """A tensor that is the same for all random weights of infinite width: a mean over features, say."""

    def __init__(self, value: Tensor) -> None:
        super().__init__(value.shape, Draws(1), draw=lambda _: value)
        self.value = value


class Scores(Law):
    """Random numbers without an axis of features: products of two fields over theirs, heads beside each other."""


class Field(Law):
    """Exchangeable features over sites.

    features: axes of the features. moments: m (N,) and K (N, N), when asked for; ``None``: of the draws. gaussian: is
    it Gaussian? kept: are its moments kept, or cheaper to find again?
    base, function: it is ``function`` of each entry of that Gaussian field (itself: the identity).
    gains: (size,) mean squares of the features over their mean, where they differ: rows of a weight of several scales.
    normed: the field, the norm and the gain of a batch norm that made it; see `norms`.
    """

    def __init__(
        self, shape: Sequence[int], features: tuple[int, ...], draws: Draws, *,
        moments: Callable[[], tuple[Tensor, Tensor]] | None = None, gaussian: bool = False, kept: bool = True,
        **more: Any,
    ) -> None:  # fmt: skip
        super().__init__(shape, draws, **more)
        self.features, self.gaussian = features, gaussian
        self._moments, self._kept = moments, kept
        self._found: tuple[Tensor, Tensor] | None = None  # of many sites the upper half of K alone
        self.sampled = moments is None
        self.base: Field | None = self if gaussian else None
        self.function: Scalar = lambda x: x
        self.gains: Tensor | None = None
        self.normed: tuple[Field, Any, float | None] | None = None

    def with_moments(self, moments: Callable[[], tuple[Tensor, Tensor]]) -> Field:
        """Itself, its moments better known than of its draws; gradients go through these."""
        self._moments = moments
        return self

    @property
    def sites(self) -> tuple[int, ...]:
        """The axes of sites."""
        return tuple(i for i in range(len(self.shape)) if i not in self.features)

    @property
    def count(self) -> int:
        """N."""
        return math.prod(self.shape[i] for i in self.sites)

    @property
    def size(self) -> int:
        """How many features a site has."""
        return math.prod(self.shape[i] for i in self.features)

    def canonical(self, x: Tensor) -> Tensor:
        """A tensor of this layout as (N, size)."""
        return canonical(x, self.features)

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """m (N,) and K (N, N)."""
        if self._kept and self.count <= _HALVED:
            self._found = self._found or self._work_out()
            return self._found
        m, k = self.draws.moments.of(self, 0, self._whole if self._kept else self._work_out)
        return m, k

    def _whole(self) -> tuple[Tensor, Tensor]:
        """K from its upper half, which is kept the first time."""
        upper = torch.ones(self.count, self.count, dtype=torch.bool).triu_()
        if self._found is None:
            m, k = (x.to(dtype_of(self.count)) for x in self._work_out())
            self._found = m, k[upper]
            return m, k
        m, half = self._found
        k = torch.zeros(upper.shape, dtype=half.dtype).masked_scatter_(upper, half)
        return m, k.add_(k.triu(1).T)

    def _work_out(self) -> tuple[Tensor, Tensor]:
        return self._moments() if self._moments is not None else of_draws(self)

    def release(self) -> None:
        """Keep no moments any longer."""
        self._found = None

    @property
    def covariance(self) -> Tensor:
        """K - m m^T."""
        m, k = self.moments
        return k - torch.outer(m, m) if bool(m.any()) else k

    @property
    def root(self) -> Tensor:
        """R with R R^T = `covariance`, kept for a while."""
        return self.draws.moments.of(self, 1, lambda: (root_of(self.covariance),))[0]


def canonical(x: Tensor, features: tuple[int, ...]) -> Tensor:
    """(N, size), sites in the order of their axes."""
    sites = [i for i in range(x.dim()) if i not in features]
    n = math.prod(x.shape[i] for i in sites)
    return x.permute(*sites, *features).reshape(n, -1)


def uncanonical(x: Tensor, shape: Sequence[int], features: tuple[int, ...]) -> Tensor:
    """The tensor of that shape whose `canonical` form is ``x``."""
    order = [i for i in range(len(shape)) if i not in features] + list(features)
    inverse = [order.index(i) for i in range(len(shape))]
    return x.reshape([shape[i] for i in order]).permute(inverse)


def dtype_of(count: int) -> torch.dtype:
    """In which moments of so many sites are kept."""
    return torch.float64 if count <= _DOUBLE else torch.float32


def of_data(x: Tensor, features: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """m and K of numbers as they are: averages over the features."""
    rows = canonical(x.detach(), features)
    rows = rows.to(dtype_of(len(rows)))
    return rows.mean(1), rows @ rows.T / rows.shape[1]


def of_draws(field: Field) -> tuple[Tensor, Tensor]:
    """m and K as averages over all features of all draws."""
    parts = [of_data(field.draw(i), field.features) for i in range(field.draws.count)]
    return sum(m for m, _ in parts) / len(parts), sum(k for _, k in parts) / len(parts)  # type: ignore[return-value]


def normals(root: Tensor, size: int, generator: torch.Generator, mean: Tensor | None = None) -> Tensor:
    """(N, size): columns N(mean, root root^T); see `root_of`."""
    u = root @ torch.randn(len(root), size, generator=generator, dtype=root.dtype)
    return u if mean is None else u + mean[:, None]


def root_of(covariance: Tensor) -> Tensor:
    """R with R R^T = covariance; sums of moments and averages over draws may be a little less than positive: then of
    what is positive in it, with the variances as they are.
    """
    scale = covariance.diagonal().mean()
    if not scale > 0:
        return torch.zeros_like(covariance)
    for jitter in (1e-10, 1e-6, 1e-4) if covariance.dtype == torch.float64 else (1e-5, 1e-4):
        moved = covariance.clone()
        moved.diagonal().add_(jitter * scale)
        lower, info = torch.linalg.cholesky_ex(moved)
        if not info:
            return lower
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt()
    found, wanted = root.square().sum(1), covariance.diagonal().clamp_min(0)
    return root * torch.where(found > 0, wanted / found, 0).sqrt()[:, None]
