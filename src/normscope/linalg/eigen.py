"""Extremal eigenvalues: Lanczos with full reorthogonalisation, and Rayleigh-Ritz from known directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from normscope.linalg.maps import LinearMap

if TYPE_CHECKING:
    from jaxtyping import Float

#: Called after each product with (products so far, value, its error, products left or NaN while that is unknown).
Progress = Callable[[float, float, float, float], None]
#: First relative residuals outside of this range mean that the given directions are not what the theory says (chosen by
#: us: where it holds they are 0.02-0.17). Above: no eigenvectors. Below: an invariant space of their own, as the
#: offsets after a last-layer norm, from which no Krylov space sees anything else.
EXPECTED = (1e-3, 0.2)
#: The tolerance of a residual, at most, from a start that is worse than ``EXPECTED`` (chosen by us: of language models
#: and classifiers one in 20 was missed by 3 % at 1e-2 and with the gap, of 60 at 1e-3 none).
STRICT = 1e-3
#: Where the residuals' own form is larger than this share of the top value, there may be eigenvalues outside of the
#: directions beside it (chosen by us: on 144 small nets the error of every value that was too small had 0.29 or more,
#: and wide ReLU nets have 0.05-0.1).
OUTSIDE = 0.25
#: The gap between two Ritz values is divided by this (chosen by us: the eigenvalue below the top is larger than its
#: Ritz value, which made errors up to 1.2 times too small on the same nets).
GAP_SAFETY = 1.5
#: How sure the error of a value from a random start is (chosen by us; the bound is loose: on 400 spectra, clustered
#: tops included, the tolerance was missed in none at 0.95 and in 3 at 0.8, where the plain residual missed it in 15. At
#: 0.9 a ResNet-50 was once said to be within 1 % with 1.5 % missing; 0.99 costs one to five products of twenty).
CONFIDENCE = 0.99
#: A start that has not converged after so many products was not what the gap was estimated for: from then on the plain
#: residual decides (chosen by us: where the theory holds 2-5 are enough).
GAP_PRODUCTS = 8


@dataclass(frozen=True)
class Ritz:
    """What a Krylov (or Rayleigh-Ritz) space says about a symmetric matrix G (m, m).

    values: (k,) eigenvalues, the wanted end first; ``residuals``: (k,) norms ||G u - theta u|| of unit vectors u,
        NaN where not computed. There is an eigenvalue of G within ``residuals[i]`` of ``values[i]``.
    vectors: (m, k). ``basis``: (m, j) orthonormal, ``projected``: (j, j) = basis^T G basis.
    errors: (k,) what the eigenvalues may be off by: for one eigenvalue from a random start how far above it the
        extremal one may lie, with probability ``CONFIDENCE`` (``above``); residual^2 / gap where the gap to the rest of
        the spectrum is known well enough (Kato, Temple; Parlett 1998, Thm 11.7.1); else the residual.
    products: products with G spent; a product with A or A^T alone, where G = A^T A, counts one half.
    first: relative residual of the first step (NaN for k > 1), see ``EXPECTED``; ``outside``: the largest form on what
        the residuals added to the given directions, relative to the top value, see ``OUTSIDE`` (0 where not known).
    asymmetry: worst relative gap between <u, G u> and ||A u||^2 seen on the way (0 where never tested).
    """

    values: Float[Tensor, " k"]
    residuals: Float[Tensor, " k"]
    errors: Float[Tensor, " k"]
    vectors: Float[Tensor, "m k"]
    basis: Float[Tensor, "m j"]
    projected: Float[Tensor, "j j"]
    products: float
    converged: bool
    asymmetry: float = 0.0
    first: float = math.nan
    outside: float = 0.0

    def as_expected(self, most: float | None = None) -> bool:
        """Whether the start behaved as an approximate top eigenvector, so that the space can be trusted to hold it.

        most: the largest relative first residual, instead of the one in ``EXPECTED``.
        """
        return EXPECTED[0] <= self.first <= (most or EXPECTED[1]) and self.outside <= OUTSIDE


def orthonormalise(x: Tensor, against: Tensor | None = None, drop: float = 1e-6) -> Tensor:
    """Orthonormal columns spanning x (m, b) outside the span of ``against``; dependent columns are dropped.

    Two passes of Gram-Schmidt ("twice is enough", Parlett 1998, section 6.9), then a QR whose small pivots go.
    """
    size = x.norm(dim=0)
    x = x[:, size > 0] / size[size > 0]
    for _ in range(2):
        if against is not None and against.shape[1]:
            x = x - against @ (against.T @ x)
    kept: list[Tensor] = []
    for column in x.unbind(1):
        for _ in range(2):
            for q in kept:
                column = column - q * (q @ column)
        length = column.norm()
        if length > drop:
            kept.append(column / length)
    out = torch.stack(kept, 1) if kept else x[:, :0]
    if against is not None and against.shape[1] and kept:  # the division may have let rounding back in
        out = out - against @ (against.T @ out)
        out = out / out.norm(dim=0)
    return out


def lanczos(
    g: LinearMap,
    start: Tensor | None = None,
    *,
    k: int = 1,
    tol: float = 1e-3,
    max_products: int = 200,
    largest: bool = True,
    gap: float | None = None,
    expected: float = math.inf,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Ritz:
    """The ``k`` extremal eigenvalues of a symmetric map by block Lanczos with full reorthogonalisation.

    start: (m,) or (m, b), default one random vector. An eigenvalue of multiplicity r shows r times only from a block of
        at least r columns.
    tol: stops when each wanted eigenvalue's error is <= tol * max |theta|. For k = 1 from one random vector that is an
        error of the *value*, see ``above``: with a cluster of top eigenvalues the residual says too little (it belongs
        to the one that was found) and, with many of them, too much. Otherwise it is the residual ||G u - theta u||, or,
        with ``gap``, the relative distance from the top eigenvalue to the next one, residual^2 / (gap theta) if
        smaller; both presuppose that the start sees the eigenvector at all.
    expected: the relative first residual above which the start is not what it was said to be: what one product gave is
        returned, with ``converged=False``. Between ``EXPECTED`` and that the plain residual decides, to ``STRICT``.
    noise: standard deviation of the isotropic Gaussian part of each entry of one ``start`` vector (0: not random).
    max_products: budget; what was reached by then is returned with ``converged=False``.
    """
    size = g.shape[0]
    small = torch.float64  # the projected matrix; a float32 one costs 1e-8
    work = torch.float64 if size <= 200_000 else g.dtype
    if start is None:
        start, noise = torch.randn(size, 1, generator=generator, dtype=torch.float64).to(g.device), 1.0
    start = start.reshape(size, -1)
    noise = noise / float(start.norm()) if k == 1 and start.shape[1] == 1 else 0.0
    block = orthonormalise(start.to(g.device, work))
    basis = block
    columns = torch.zeros(0, 0, dtype=small)
    products, asymmetry = 0.0, 0.0
    best, before, first = math.inf, 0.0, math.nan
    seen: list[tuple[float, float]] = []
    while True:
        image, off = _product(g, block)
        products, asymmetry = products + block.shape[1], max(asymmetry, off)
        known = (basis.T @ image).to(small).cpu()  # (j, b)
        j, b = known.shape
        grown = torch.zeros(j, j, dtype=small)
        grown[: j - b, : j - b] = columns
        grown[:, j - b :] = known
        grown[j - b :, :] = known.T
        columns = (grown + grown.T) / 2
        rest = image - basis @ (basis.T @ image)
        theta, y = torch.linalg.eigh(columns)
        order = torch.argsort(theta, descending=largest)[:k]
        theta, y = theta[order], y[:, order]
        # G (basis y) - theta (basis y) lives in the new block's complement only: earlier images lie inside the basis.
        last = y[j - b :].to(rest.device, work)
        residuals = (rest @ last).norm(dim=0).to(small).cpu()
        scale = float(theta.abs().max().clamp_min(torch.finfo(small).tiny))
        if math.isnan(first):
            first = float(residuals[0]) / scale
            if EXPECTED[1] < first <= expected < math.inf:
                gap, tol = None, min(tol, STRICT)
        errors = residuals
        if gap is not None and k == 1 and products <= GAP_PRODUCTS:
            # Ritz values only rise: what bounded an earlier one bounds this one all the more.
            best = min(best - (float(theta[0]) - before), float(residuals[0]) ** 2 / (gap * scale))
            before = float(theta[0])
            if best >= 0:
                errors = residuals.clamp_max(best)
            else:  # the value rose by more than the bound had allowed: the gap was not what it was said to be
                gap = None
        if noise > 0:
            flip = columns if largest else -columns
            errors = above(flip, float(rest.norm()), noise, scale)[None]
        if progress is not None:
            seen.append((products, float(errors[0]) / scale))
            progress(products, float(theta[0]), float(errors[0]), left(seen, tol))
        done = theta.numel() >= min(k, size) and bool((errors <= tol * scale).all())
        fresh = orthonormalise(rest, basis, drop=1e-4) if not done else rest[:, :0]
        exhausted = fresh.shape[1] == 0 or basis.shape[1] >= size or _negligible(rest, scale, g.dtype)
        if not done and exhausted and theta.numel() < min(k, size):
            more = torch.randn(size, 1, generator=generator, dtype=torch.float64).to(g.device, work)
            fresh, exhausted = orthonormalise(more, basis), False
            exhausted = fresh.shape[1] == 0
        if done or exhausted or first > expected or products + fresh.shape[1] > max_products:
            vectors = basis @ y.to(basis.device, work)
            return Ritz(
                theta, residuals, errors, vectors, basis, columns, products, done or exhausted, asymmetry, first
            )
        block = fresh
        basis = torch.cat([basis, block], 1)


def left(seen: list[tuple[float, float]], tol: float) -> float:
    """Products until the relative error is ``tol`` if it goes on falling as in the last six; NaN where it does not
    fall.
    """
    (start, first), (now, last) = seen[-6:][0], seen[-1]
    if last <= tol:
        return 0.0
    if not 0 < last < first:
        return math.nan
    return (now - start) * math.log(last / tol) / math.log(first / last)


def above(projected: Tensor, beta: float, noise: float, scale: float) -> Float[Tensor, ""]:
    r"""How far the largest eigenvalue may lie above the largest Ritz value, with probability ``CONFIDENCE``.

    The next Lanczos vector is $p_j(G) v$ with the residual polynomial $p_j$ of the tridiagonal ``projected`` (j, j) and
    the next off-diagonal ``beta``, and has length 1. So the component $\gamma$ of the start v on the top eigenvector
    has $|\gamma|\, p_j(\lambda_{max}) \le 1$, and $p_j$ rises above its largest zero, the Ritz value: $\lambda_{max}$
    lies below the point where $p_j = 1/|\gamma|$. For a start with isotropic Gaussian noise of standard deviation
    ``noise`` an entry, $|\gamma| \ge$ noise $\sqrt2\,\mathrm{erfinv}(1 - \mathrm{confidence})$ with probability
    ``CONFIDENCE``, whatever the spectrum (van Dorsselaer, Hochstenbach, van der Vorst 2000, section 3). ``scale``: of
    the values; at most 9 times it.
    """
    small = torch.tensor(1 - CONFIDENCE, dtype=torch.float64)
    wanted = -math.log(noise * math.sqrt(2) * float(torch.erfinv(small)))
    diagonal, off = projected.diagonal().tolist(), [*projected.diagonal(-1).abs().tolist(), beta]
    theta = float(torch.linalg.eigvalsh(projected)[-1])
    if min(off) <= 0:
        return torch.zeros((), dtype=torch.float64)

    def log_p(x: float) -> float:
        ratio, total = math.inf, 0.0
        for i, (a, b) in enumerate(zip(diagonal, off, strict=True)):
            ratio = (x - a - (off[i - 1] / ratio if i else 0.0)) / b
            if ratio <= 0:
                return -math.inf
            total += math.log(ratio)
        return total

    low, high = 0.0, 9 * scale
    if log_p(theta + high) < wanted:
        return torch.tensor(high, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if log_p(theta + middle) < wanted else (low, middle)
    return torch.tensor(high, dtype=torch.float64)


def _product(g: LinearMap, block: Tensor) -> tuple[Tensor, float]:
    """G block, and how far <x, G x> is from ||A^T x||^2 where G = A A^T: forward against reverse mode, for free."""
    if g.factor is None:
        return g.matmat(block).to(block.dtype), 0.0
    half = g.factor.rmatmat(block)
    image = g.factor.matmat(half).to(block.dtype)
    energy = half.square().sum(0).to(block.dtype)
    off = ((block * image).sum(0) - energy).abs().max() / energy.max().clamp_min(torch.finfo(block.dtype).tiny)
    return image, float(off)


def _negligible(rest: Tensor, scale: float, dtype: torch.dtype) -> bool:
    """Whether what is left of the images is rounding: the space is invariant."""
    return float(rest.norm(dim=0).max()) <= 50 * torch.finfo(dtype).eps * scale


def from_directions(
    a: LinearMap,
    directions: Tensor,
    *,
    k: int = 1,
    tol: float = 1e-3,
    max_products: int = 200,
    progress: Progress | None = None,
) -> Ritz:
    """The ``k`` largest eigenvalues of G = A^T A (m, m), A (p, m), by Rayleigh-Ritz that starts on known directions.

    The first step needs products with A alone (for a Fisher: one VJP a direction, no JVP): with V the orthonormal
    directions and Y = A V, the Ritz values are the eigenvalues of Y^T Y. Then the space grows by the residual
    G u - theta u of the worst wanted Ritz vector u, at one product with A^T (the residual) and one with A (the new
    column of Y) a step. From a single direction this is Lanczos: every Ritz residual is parallel to the next Lanczos
    vector (Parlett 1998, section 12.1). For k = 1 the gap to the next Ritz value tightens the error, see ``Ritz``, and
    the first residual's column may end the search without another residual, see ``_left_over``; ``residuals`` is then
    that of the vector before. Stops after the first step with ``converged=False`` where the directions turn out to be
    no eigenvectors (last-layer batch norm removes the mean gradients).
    """
    work = torch.float64 if a.shape[1] <= 200_000 else a.dtype
    basis = orthonormalise(directions.to(a.device, work))
    rows = [a.matmat(basis).T]  # blocks of Y^T, (b, p): rows keep each long vector in one piece
    projected = _small(rows[0] @ rows[0].T)
    products, asymmetry, first = basis.shape[1] / 2, 0.0, math.nan
    seen: list[tuple[float, float]] = []
    while True:
        theta, q = torch.linalg.eigh(projected)
        theta, q = theta.flip(0), q.flip(1)
        wanted = min(k, theta.numel())
        u = basis @ q[:, :wanted].to(basis)
        parts = q[:, :wanted].to(rows[0]).split([len(r) for r in rows])
        pulled = sum((r.T @ part for r, part in zip(rows[1:], parts[1:], strict=True)), rows[0].T @ parts[0])
        image = a.rmatmat(pulled).to(work)
        products += wanted / 2
        rest = image - u * theta[:wanted].to(u)
        residuals = rest.norm(dim=0).double().cpu()
        scale = float(theta[0].clamp_min(torch.finfo(torch.float64).tiny))
        asymmetry = max(asymmetry, float(((u * image).sum(0).double().cpu() - theta[:wanted]).abs().max()) / scale)
        first = float(residuals[0]) / scale if math.isnan(first) else first
        tight = k == 1 < len(theta)
        errors = torch.minimum(residuals, GAP_SAFETY * residuals**2 / (theta[0] - theta[1])) if tight else residuals
        if progress is not None:
            seen.append((products, float(errors[0]) / scale))
            progress(products, float(theta[0]), float(errors[0]), left(seen, tol))
        late = errors > tol * scale
        done = not bool(late.any()) and wanted == min(k, a.shape[1])
        stop = done or not first <= EXPECTED[1]
        fresh = orthonormalise(rest[:, late.to(rest.device)], basis) if not stop else basis[:, :0]
        if stop or fresh.shape[1] == 0 or products + fresh.shape[1] / 2 > max_products:
            b = len(rows[0])
            outside = float(torch.linalg.eigvalsh(projected[b:, b:])[-1]) / scale if len(projected) > b else 0.0
            return Ritz(
                theta[:wanted], residuals, errors, u, basis, projected, products, done, asymmetry, first, outside
            )
        new = a.matmat(fresh).T
        side = torch.cat([r @ new.T for r in rows]).double().cpu()
        corner = _small(new @ new.T)
        projected = torch.cat([torch.cat([projected, side], 1), torch.cat([side.T, corner], 1)])
        rows.append(new)
        products += fresh.shape[1] / 2
        basis = torch.cat([basis, fresh], 1)
        if k == 1 and len(rows) == 2 and (more := _left_over(theta, projected, float(corner[0, 0]))) <= tol * scale:
            theta, q = torch.linalg.eigh(projected)
            u, error = basis @ q[:, -1:].to(basis), torch.tensor([more], dtype=torch.float64)
            return Ritz(theta[-1:], residuals, error, u, basis, projected, products, True, asymmetry, first)


def _left_over(before: Tensor, projected: Tensor, corner: float) -> float:
    r"""What the top value may still rise after the first residual has joined the directions; infinite where unknown.

    Let the eigenvalues outside of the directions be at most $\mu = \theta/2$ (chosen by us; 0.06-0.2 of theta where the
    theory holds). The next Lanczos off-diagonal has $\beta^2 \le \alpha(\mu - \alpha)$, the largest variance on
    $[0, \mu]$ with mean $\alpha$, the form G takes on the residual (Bhatia, Davis 2000); so a rise d of theta is
    followed by at most about $d\,\beta^2 / ((\theta-\alpha)(\theta-\mu))$, doubled here. The other directions' own
    rises are not known: they do not matter if three times d leaves them below theta.
    """
    theta = torch.linalg.eigvalsh(projected).flip(0)
    top, rise = float(theta[0]), float(theta[0] - before[0])
    limit = top / 2
    if corner >= OUTSIDE * top or (len(before) > 1 and float(before[1]) + 3 * rise > top):
        return math.inf
    return 2 * rise * corner * (limit - corner) / ((top - corner) * (top - limit))


def _small(gram: Tensor) -> Tensor:
    gram = gram.double().cpu()
    return (gram + gram.T) / 2
