"""The spectrum of a symmetric map: extremal eigenvalues, trace, density, by the route that is cheapest."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from normscope.core.errors import UsageError, finite_number, flag, seed_of, shown, unknown, whole_number
from normscope.core.faces import Shown
from normscope.linalg.eigen import EXPECTED, Progress, Ritz, from_directions, lanczos, orthonormalise
from normscope.linalg.maps import LinearMap, gram
from normscope.linalg.traces import Estimate, moments, rademacher

if TYPE_CHECKING:
    from jaxtyping import Float

METHODS = ("auto", "dense", "screened", "directions", "lanczos")
#: A dense solve is taken where the smaller side is at most this (chosen by us: a second of eigh) ...
DENSE_SIDE = 1024
#: ... and the factor has at most this many entries (chosen by us: 0.4 GB of float64).
DENSE_ENTRIES = 50_000_000
#: The same limit where the matrix is there without its factor (chosen by us: a few seconds of eigh).
DENSE_WRITTEN = 2048
#: At most this many directions are tried one by one; above, Lanczos from a mixture of them is cheaper.
MOST_DIRECTIONS = 16


@dataclass(frozen=True)
class Density:
    """A spectral density as weighted points, one set a probe; the weights of a probe sum to 1.

    The zeros that the map owes to its rank are not among the points: ``null`` is their exact share of the whole.
    """

    nodes: Float[Tensor, "probes steps"]
    weights: Float[Tensor, "probes steps"]
    null: float = 0.0
    #: Whether the points are the eigenvalues themselves.
    exact: bool = False

    def cumulative(self, at: Tensor) -> tuple[Tensor, Tensor]:
        r"""Share of eigenvalues <= ``at`` among those not owed to the rank, and its standard error.

        The error is that of the probes and of the quadrature: a probe's own share lies between its sum without the
        last node below and that with the first node above (Chebyshev, Markov, Stieltjes), evenly, as far as is known.
        """
        shares = (self.weights[..., None] * (self.nodes[..., None] <= at)).sum(1)
        nodes, order = self.nodes.sort(1)
        none = torch.zeros_like(nodes[:, :1])
        weights = torch.cat([none, self.weights.gather(1, order), none], 1)
        below = (nodes[..., None] <= at).sum(1)
        gap = torch.maximum(weights.gather(1, below), weights.gather(1, below + 1)).mean(0)
        return shares.mean(0), self._error(shares, gap)

    def smooth(self, grid: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """The density on ``grid``, blurred by a Gaussian of standard deviation ``width``, and its standard error: of
        the probes, and of the quadrature by how far the blur varies between two nodes and the share that may lie there.
        """

        def bump(x: Tensor) -> Tensor:
            return torch.exp(-((grid - x[..., None]) ** 2) / (2 * width**2)) / (width * math.sqrt(2 * math.pi))

        values = (self.weights[..., None] * bump(self.nodes)).sum(1)
        nodes, order = self.nodes.sort(1)
        weights = self.weights.gather(1, order)
        between = torch.maximum(weights[:, 1:], weights[:, :-1])[..., None] * bump(nodes).diff(dim=1).abs()
        return values.mean(0), self._error(values, between.square().sum(1).sqrt().mean(0))

    def _error(self, values: Tensor, gap: Tensor) -> Tensor:
        """Of a mean over the probes, if each may be off by up to ``gap``, evenly; 0 where all eigenvalues are known."""
        if self.exact:
            return torch.zeros_like(values[0])
        if len(values) < 2:
            return torch.full_like(values[0], torch.nan)
        return (values.var(0) / len(values) + gap.square() / 3).sqrt()


@dataclass(frozen=True)
class Spectrum(Shown):
    """What is known of a symmetric matrix's eigenvalues, and how it came about.

    eigenvalues: (k,) from the wanted end (all of them, descending, where ``method`` is ``dense``).
    residuals: (k,) ||A u - theta u|| of the unit Ritz vectors: an eigenvalue lies within it of each value (0: dense).
    errors: (k,) what the eigenvalues may be off by (see ``Ritz``): the residual or, with a known gap, its square over
        it.
    trace, square: tr A and tr A^2 with standard errors, or ``None`` where not asked for. The sum is over the whole
        matrix; ``size`` is its side, so that ``trace.value / size`` is the mean eigenvalue.
    method: ``dense``, ``screened``, ``directions`` or ``lanczos``; ``side``: which of the two Gram matrices was used.
    products: products spent, one with a factor or its transpose alone counting one half.
    """

    face = "spectrum"
    eigenvalues: Float[Tensor, " k"]
    residuals: Float[Tensor, " k"]
    errors: Float[Tensor, " k"]
    size: int
    side: str
    method: str
    products: float
    converged: bool
    trace: Estimate | None = None
    square: Estimate | None = None
    density: Density | None = None
    ritz: Ritz | None = field(default=None, repr=False)

    @property
    def largest(self) -> float:
        """The first eigenvalue."""
        return float(self.eigenvalues[0])

    def __repr__(self) -> str:
        shown = ", ".join(f"{v:.5g}" for v in self.eigenvalues[:6].tolist())
        more = ", ..." if self.eigenvalues.numel() > 6 else ""
        trace = "" if self.trace is None else f", trace {self.trace.value:.5g} +- {self.trace.stderr:.1g}"
        state = "" if self.converged else ", NOT converged"
        worst = float(self.errors.max())
        return (
            f"Spectrum({shown}{more}; error <= {worst:.1g}{trace}; {self.method} on the {self.side} side, "
            f"{self.products:g} products{state})"
        )


def smaller_side(a: LinearMap) -> tuple[LinearMap, str]:
    """The map itself, or its dual A^T A where a factor A (rows, m) makes that the smaller matrix of equal spectrum."""
    if a.factor is not None and a.factor.shape[1] <= a.shape[0]:
        g, side = gram(a.factor.T, directions=a.directions), "dual"
    else:
        g, side = a, "primal"
    fits = g.directions is not None and g.directions.size == g.shape[0]
    return (g if fits else replace(g, directions=None)), side


def spectrum(
    a: LinearMap,
    k: int = 1,
    *,
    tol: float = 1e-3,
    method: str = "auto",
    start: Tensor | None = None,
    largest: bool = True,
    which: str | None = None,
    trace: bool = False,
    density: bool = False,
    probes: int = 8,
    steps: int = 24,
    max_products: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> Spectrum:
    """Eigenvalues of a symmetric map with residuals, and on demand its trace and density with standard errors.

    k: how many extremal eigenvalues; ``largest=False`` takes the other end, and so does ``which="smallest"``.
    tol: relative error wanted of each eigenvalue.
    method: ``auto`` takes the smaller of the matrix and its dual; then ``dense`` if that is small, else, where the map
        knows directions that hold its top eigenvectors, ``screened`` (Lanczos from the one that a part of the batch
        names, for k = 1) or ``directions`` (Rayleigh-Ritz on all of them), else ``lanczos``.
    start: start vector or block for ``lanczos``, of the smaller side's length.
    trace: also tr A and tr A^2, from ``probes`` probes after what the solver knows is taken out.
    density: also a density by stochastic Lanczos quadrature, ``probes`` times ``steps`` products.
    """
    if method not in METHODS:
        raise unknown("method of spectrum", method, METHODS)
    if not isinstance(a, LinearMap):
        raise UsageError(
            f"spectrum() needs a LinearMap; got {type(a).__name__}. Use fisher(), hessian() or ntk(), or eigvalsh for "
            "an array."
        )
    if a.shape[0] != a.shape[1]:
        raise UsageError(f"spectrum() needs a square symmetric map; this one is {a.shape}. Use fisher() or ntk().")
    largest, trace, density = flag("largest", largest), flag("trace", trace), flag("density", density)
    if which is not None:
        if which not in ("largest", "smallest"):
            raise unknown("end of the spectrum", which, ("largest", "smallest"))
        largest = which == "largest"
    k, probes, steps = whole_number("k", k, 1), whole_number("probes", probes, 0), whole_number("steps", steps, 1)
    max_products = whole_number("max_products", max_products, 1)
    finite_number("tol", tol, least=0, below=1, do="It is a relative error; the default is 1e-3.")
    generator = torch.Generator().manual_seed(seed_of(seed))
    g, side = smaller_side(a)
    if start is not None and (not isinstance(start, Tensor) or start.numel() % g.shape[0] or not start.numel()):
        raise UsageError(f"start must be vectors of {g.shape[0]} numbers; got {shown(start)}. Leave it out.")
    size, null = g.shape[0], 1 - g.shape[0] / a.shape[0]
    chosen = _choose(g, method, k, start, largest)
    if chosen == "dense":
        return _dense(a, g, side, largest, density)
    spent, gap, expected = 0.0, None, math.inf
    if chosen == "screened":
        assert g.directions is not None
        assert g.directions.screen is not None
        found, spent = g.directions.screen(), g.directions.screen_cost
        if found is None:
            chosen = "lanczos"
        else:
            weights, gap = found
            start, expected = g.directions.make(weights[:, None]), g.directions.expected or EXPECTED[1]
    everyone = torch.empty(0)
    if chosen == "directions":
        assert g.directions is not None
        everyone = g.directions.make(torch.eye(g.directions.count, dtype=torch.float64, device=g.device))
        if not bool(everyone.any()):  # softmax outputs of one class: no direction is left
            chosen = "lanczos"
    if chosen == "directions":
        assert g.factor is not None
        ritz = from_directions(g.factor.T, everyone, k=k, tol=tol, max_products=max_products, progress=progress)
    else:
        noise = 0.0
        if start is None and g.directions is not None and largest:
            start, noise = _mixture(g, k, generator), 1 / math.sqrt(size)
        ritz = lanczos(
            g, start, k=k, tol=tol, max_products=max_products, largest=largest, gap=gap, expected=expected,
            noise=noise, generator=generator, progress=progress,
        )  # fmt: skip
    if chosen in ("directions", "screened") and not ritz.as_expected(expected if chosen == "screened" else None):
        # The theory does not describe this net: an independent search from a random start, and the larger answer.
        other = lanczos(g, None, k=k, tol=tol, max_products=max_products, generator=generator, progress=progress)
        spent += other.products
        if float(other.values[0]) >= float(ritz.values[0]) or not ritz.converged:
            spent += ritz.products - other.products
            ritz, chosen = other, "lanczos"
        else:
            above = (other.values + other.errors)[:1] - ritz.values[:1]
            ritz = replace(ritz, errors=above.clamp_min(0) if k == 1 else ritz.residuals)
    products = ritz.products + spent
    both = moments(g, ritz.basis, ritz.projected, probes, generator=generator) if trace else None
    points = slq(g, probes, steps, generator=generator, null=null) if density else None
    products += (both.products if both else 0) + (probes * min(steps, size) if density else 0)
    return Spectrum(
        ritz.values, ritz.residuals, ritz.errors, a.shape[0], side, chosen, products, ritz.converged,
        both.trace if both else None, both.square if both else None, points, ritz,
    )  # fmt: skip


def _choose(g: LinearMap, method: str, k: int, start: Tensor | None, largest: bool) -> str:
    known = g.directions is not None and g.factor is not None and largest
    if method in ("directions", "screened") and not known:
        raise UsageError(f"method={method!r} needs a map with known directions (fisher, ntk) and the largest end.")
    if method == "screened" and (g.directions is None or g.directions.screen is None or k > 1):
        raise UsageError("method='screened' is for k=1 and one batch; use method='directions'.")
    if method != "auto":
        return method
    entries = g.shape[0] * (g.factor.shape[1] if g.factor is not None else g.shape[0])
    written = g.factor is not None and g.factor.outer is not None
    fits = g.shape[0] <= DENSE_WRITTEN if written else g.shape[0] <= DENSE_SIDE and entries <= DENSE_ENTRIES
    if fits and start is None:
        return "dense"
    if not known or start is not None or g.directions is None:
        return "lanczos"
    if k == 1 and g.directions.screen is not None:
        return "screened"
    return "directions" if g.directions.count <= MOST_DIRECTIONS else "lanczos"


def _mixture(g: LinearMap, k: int, generator: torch.Generator) -> Tensor:
    """``k`` random mixtures of the directions, each with as much noise, that sees what the theory does not."""
    assert g.directions is not None
    weights = torch.randn(g.directions.count, k, generator=generator, dtype=torch.float64).to(g.device)
    mixed = orthonormalise(g.directions.make(weights).double())
    noise = torch.randn(g.shape[0], k, generator=generator, dtype=torch.float64).to(mixed)
    return (mixed if mixed.shape[1] == k else 0) + noise / math.sqrt(g.shape[0])


def _dense(a: LinearMap, g: LinearMap, side: str, largest: bool, density: bool) -> Spectrum:
    matrix = g.dense().double().cpu()
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2).flip(0)
    if not largest:
        values = torch.cat([values, values.new_zeros(min(1, a.shape[0] - len(values)))]).sort().values
    cost = g.shape[0] / (2 if g.factor is not None else 1)
    if g.factor is not None and g.factor.outer is not None:
        cost = 0.0
    total = Estimate(float(values.sum()), 0.0, cost, "exact")
    square = Estimate(float(values.square().sum()), 0.0, cost, "exact")
    points = None
    if density:
        points = Density(
            values[None], torch.full_like(values, 1 / len(values))[None], 1 - g.shape[0] / a.shape[0], True
        )
    return Spectrum(
        values, torch.zeros_like(values), torch.zeros_like(values), a.shape[0], side, "dense", cost, True, total,
        square, points
    )  # fmt: skip


def slq(
    g: LinearMap,
    probes: int = 8,
    steps: int = 24,
    *,
    generator: torch.Generator | None = None,
    null: float = 0.0,
) -> Density:
    """Spectral density of a symmetric map by stochastic Lanczos quadrature (Ubaru, Chen, Saad 2017).

    ``probes`` random start vectors, ``steps`` Lanczos steps each: nodes are the Ritz values, weights the squared first
    components of the Ritz vectors. Each probe has the exact first 2 steps - 1 moments of its own start vector.
    """
    size = g.shape[0]
    steps = min(steps, size)
    nodes, weights = torch.zeros(probes, steps, dtype=torch.float64), torch.zeros(probes, steps, dtype=torch.float64)
    like = torch.empty(0, dtype=torch.float64 if size <= 200_000 else g.dtype, device=g.device)
    for i in range(probes):
        start = rademacher(size, 1, like, generator)
        ritz = lanczos(g, start, k=size, tol=0.0, max_products=steps, generator=generator)
        theta, y = torch.linalg.eigh(ritz.projected[:steps, :steps])
        nodes[i, : len(theta)], weights[i, : len(theta)] = theta, y[0].square()
    return Density(nodes, weights, null)
