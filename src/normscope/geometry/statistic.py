"""What is kept of a representation: enough for every metric, O(n^2) numbers a layer, and how accurate it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from normscope.core.errors import UsageError
from normscope.core.memory import check_room
from normscope.geometry import pairs, spectra
from normscope.geometry.tokens import token_cosine

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

T = TypeVar("T")

#: Up to this many features per sample the representation itself is kept: no arithmetic, no rounding, O(n^2) memory.
COPY = 4
#: Elements of one float64 block while streaming over features (16 MiB).
BLOCK = 2**21
#: Numbers that are taken to float64 at a time where only a sum is wanted (2 MiB: it stays in the cache).
PIECE = 2**18
#: Squares of float32 numbers that are summed in float32 (chosen by us: of `PIECE` numbers and more, 5e-10 is off).
CHUNK = 128
#: A float32 Gram has eigenvalues good to about 1e-6 of the largest: below this ratio it is formed again in float64.
FLOAT32_RATIO = 1e-3
#: A float64 Gram has eigenvalues good to about 1e-15 of the largest: below this ratio singular values come from a QR.
FLOAT64_RATIO = spectra.FLOAT64_RATIO


@dataclass(frozen=True)
class Statistic:
    r"""Sufficient statistic of a representation $X$ (n samples as rows, d features), or of m with a leading axis.

    Either a ``factor`` $F$ (..., n, k) with $F F^T = X X^T$ exactly up to float64 rounding ($X$ itself when $d \le 4n$,
    else the triangular factor of a QR), or the ``product`` $X X^T$ alone, where a QR would not change a digit that
    the metrics use. ``silent``: share of units that are 0 for every sample and position, NaN where that was not asked
    for; ``units``: whether it is to be counted on the columns of the factor when it is read (`dead`). ``saturated``:
    share of entries within 2.5 % of the activation's range from one of its ends, or NaN. ``tokens``: mean cosine
    between the tokens of one sequence, or NaN.
    What follows from these has the same leading axes and is computed once, when it is first read.
    """

    samples: int
    features: int
    factor: Tensor | None = None
    product: Tensor | None = None
    silent: float | Float[Tensor, " *m"] = math.nan
    units: bool | Bool[Tensor, " *m"] = False
    saturated: float | Float[Tensor, " *m"] = math.nan
    tokens: float | Float[Tensor, " *m"] = math.nan

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "n ..."],
        *,
        exact: bool = False,
        spectrum: bool = True,
        units: int | None = None,
        bounds: tuple[float, float] | None = None,
        sequences: Float[Tensor, "n t d"] | None = None,
    ) -> Statistic:
        """The statistic of ``x``, batch first.

        exact: float64 throughout, and a QR whatever the condition. Otherwise float32 or narrower data with
            many features are multiplied in float32 and summed in float64, and done again in float64 (then by QR)
            only where the eigenvalues turn out to be close to that rounding.
        spectrum: False if only norms and angles will be asked for: they never need the second look.
        units: the axis of the units (channels, neurons) for ``dead``; ``None``: do not look.
        bounds: the ends of the activation's range for ``saturated``.
        sequences: the tokens of each sample for ``tokens``; ``None``: it has none.
        """
        x = x.detach()
        if x.numel() == 0:
            raise UsageError(f"A representation needs at least one sample and one feature; got shape {tuple(x.shape)}.")
        if x.dim() < 2:
            x = x.reshape(len(x), 1) if x.dim() else x.reshape(1, 1)
        if x.is_complex() or not x.is_floating_point():
            x = x.to(torch.float64) if not x.is_complex() else torch.view_as_real(x)
        flat = x.reshape(len(x), -1)
        n, d = flat.shape
        if d >= n:  # of fewer features a factor does
            check_room(24 * n * n, f"The comparison of {n} samples with each other", "Take fewer: -n, rows=.")
        saturated = _saturated(x, bounds)
        alike = math.nan if sequences is None else token_cosine(sequences)
        if d <= COPY * n:
            columns = units is not None and x.dim() == 2
            silent = math.nan if columns else _silent(x, units)
            return cls(n, d, flat.clone(), None, silent, columns, saturated, alike)
        shares = (_silent(x, units), False, saturated, alike)
        narrow = not exact and flat.dtype != torch.float64
        gram = _product(flat, torch.float32 if narrow else torch.float64)
        # NaN in x, or squares beyond float32: below 1e-28 the 1e-45 a feature that underflows could be seen
        if not gram.isfinite().all() or (narrow and gram.diagonal().min() < 1e-28):
            gram = _product(flat, torch.float64)
            if not gram.isfinite().all():
                return cls(n, d, None, gram, *shares)
            narrow = False
        found = cls(n, d, None, gram, *shares)
        if spectrum or exact:
            ratio = 0.0 if exact else _ratio(found.ascending)
            if narrow and ratio < FLOAT32_RATIO:
                found = cls(n, d, None, _product(flat, torch.float64), *shares)
                ratio = 0.0 if exact else _ratio(found.ascending)
            if ratio < FLOAT64_RATIO:
                return cls(n, d, _triangle(flat), None, *shares)
        return found

    @classmethod
    def of_gram(cls, gram: Float[Tensor, "n n"]) -> Statistic:
        """The statistic of a Gram matrix $X X^T$; the number of features is not known and taken as n."""
        if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or len(gram) == 0:
            raise UsageError(
                f"A Gram matrix must be square, (n, n); got shape {tuple(gram.shape)}. "
                "For a representation (n, d) call normscope.measure(x), or pass x @ x.T."
            )
        gram = gram.detach().to(torch.float64)
        return cls(len(gram), len(gram), None, (gram + gram.T) / 2)

    @classmethod
    def stacked(cls, members: Sequence[Statistic]) -> Statistic:
        """Statistics of one `kind` as one, with a leading axis; what is known of eigenvalues goes with them."""
        first = members[0]
        silent, saturated, alike = (
            torch.tensor([getattr(s, name) for s in members], dtype=torch.float64)
            for name in ("silent", "saturated", "tokens")
        )
        units = torch.tensor([bool(s.units) for s in members])
        factor, product = (
            None if getattr(first, name) is None else torch.stack([getattr(s, name) for s in members])
            for name in ("factor", "product")
        )
        found = cls(first.samples, first.features, factor, product, silent, units, saturated, alike)
        if all("ascending" in vars(s) for s in members):
            vars(found)["ascending"] = torch.stack([s.ascending for s in members])
        return found

    def members(self) -> Iterator[Statistic]:
        """What `stacked` put together."""
        for i in range(len(self.kept)):
            factor, product = (None if x is None else x[i] for x in (self.factor, self.product))
            silent, saturated, alike = (
                float(x if isinstance(x, float) else x[i]) for x in (self.silent, self.saturated, self.tokens)
            )
            units = bool(self.units if isinstance(self.units, bool) else self.units[i])
            yield Statistic(self.samples, self.features, factor, product, silent, units, saturated, alike)

    @property
    def kept(self) -> Tensor:
        """The factor, or the product where there is none."""
        kept = self.product if self.factor is None else self.factor
        assert kept is not None
        return kept

    @property
    def kind(self) -> Hashable:
        """What statistics must have in common to be stacked."""
        kept = self.kept
        return self.samples, self.features, self.factor is None, kept.shape, kept.dtype, kept.device

    @property
    def tall(self) -> bool:
        """Whether the factor has fewer columns than samples, so that the Gram over columns is the smaller one."""
        return self.factor is not None and self.factor.shape[-1] < self.samples

    def cached(self, function: Callable[[Statistic], T]) -> T:
        """``function(self)``, computed once: what several metrics share."""
        memo = self.__dict__.setdefault("_memo", {})
        if function not in memo:
            memo[function] = function(self)
        return memo[function]

    # Units

    @cached_property
    def alive(self) -> Bool[Tensor, "*m k"]:
        """Which columns of the factor are not all 0."""
        assert self.factor is not None
        return self.factor.abs().amax(-2) != 0

    @cached_property
    def dead(self) -> Float[Tensor, " *m"]:
        """Share of units that are 0 for every sample and position; NaN where that was not asked for."""
        silent, units = torch.as_tensor(self.silent, dtype=torch.float64), torch.as_tensor(self.units)
        return torch.where(units.cpu(), 1 - self.alive.double().mean(-1).cpu(), silent) if units.any() else silent

    # Lengths

    @cached_property
    def factor64(self) -> Float[Tensor, "*m n k"]:
        """The factor in float64."""
        assert self.factor is not None
        return self.factor.to(torch.float64)

    @cached_property
    def squared_norms(self) -> Float[Tensor, "*m n"]:
        """Squared norm of each sample."""
        if self.factor is None:
            return self.gram.diagonal(dim1=-2, dim2=-1)
        return squared_lengths(self.factor64)

    @cached_property
    def finite(self) -> Bool[Tensor, " *m"]:
        """Whether there is no NaN and no infinity in what was kept, nor in the squares of it."""
        found = self.squared_norms.isfinite().all(-1)
        return found if self.factor is not None else found & self.gram.isfinite().flatten(-2).all(-1)

    @cached_property
    def norms(self) -> Float[Tensor, "*m n"]:
        """Norm of each sample."""
        return self.squared_norms.clamp_min(0).sqrt()

    @cached_property
    def trace(self) -> Float[Tensor, " *m"]:
        """Sum of the squared norms."""
        return self.squared_norms.sum(-1)

    @cached_property
    def shares(self) -> Float[Tensor, "*m n"]:
        r"""$G_{ii} / \mathrm{tr}\,G$."""
        return self.squared_norms / self.trace[..., None]

    @cached_property
    def spreads(self) -> Float[Tensor, "*m n"]:
        r"""Squared distance of each sample from the mean, the diagonal of $P X X^T P$, $P = I - 11^T/n$."""
        if self.factor is None:
            return self.centred.diagonal(dim1=-2, dim2=-1)
        f = self.factor64 - self.factor64.mean(-2, keepdim=True)
        return squared_lengths(f)

    # Products of pairs

    @cached_property
    def gram(self) -> Float[Tensor, "*m n n"]:
        """$X X^T$ in float64."""
        return squared(self.factor64) if self.product is None else self.product

    @cached_property
    def centred(self) -> Float[Tensor, "*m n n"]:
        r"""$P X X^T P$: the mean is taken off before squaring wherever a factor is there."""
        if self.factor is not None:
            f = self.factor64 - self.factor64.mean(-2, keepdim=True)
            return squared(f)
        gram = self.gram - self.gram.mean(-2, keepdim=True)
        return gram - gram.mean(-1, keepdim=True)

    @cached_property
    def pairs(self) -> pairs.Pairs:
        """What metrics read of all pairs of samples."""
        return pairs.over_pairs(self)

    # The spectrum

    @cached_property
    def ascending(self) -> Float[Tensor, "*m n"]:
        """Eigenvalues of the Gram as they come, below 1e-15 of the largest rounding; 0 where it is not finite."""
        return torch.linalg.eigvalsh(torch.where(self.finite[..., None, None], self.gram, 0.0))

    @cached_property
    def singular_values(self) -> Float[Tensor, "*m n"]:
        """Singular values of $X$, padded with zeros to n, descending; from $X$ where the Gram cannot resolve them."""
        finite = self.finite
        found = torch.full_like(self.squared_norms, math.nan)
        if not finite.any():
            return found
        every = bool(finite.all())

        def known(x: Tensor, axes: int = 2) -> Tensor:
            return x.reshape(-1, *x.shape[x.dim() - axes :]) if every else x[finite]

        if self.factor is None:
            values = spectra.of_grams(known(self.ascending, 1))
        else:
            grams = None if self.tall else known(self.gram)
            values = spectra.of_factors(known(self.factor64), known(self.alive, 1), grams, self.features)
        found[finite] = values
        return found

    @cached_property
    def variances(self) -> Float[Tensor, "*m r"]:
        """Eigenvalues of $P X X^T P$, descending, 0 where it is not finite; from the smaller of the two Grams, of r
        samples or units that are not all 0: the others are 0.
        """
        most = self.samples if self.factor is None else int(self.alive.sum(-1).max())
        if most < self.samples:
            units = self.alive.to(torch.uint8).argsort(dim=-1, descending=True)[..., None, :most]
            f = torch.take_along_dim(self.factor64, units, dim=-1)
            f -= f.mean(-2, keepdim=True)
            product = f.mT @ f
        else:
            product = self.centred
        return torch.linalg.eigvalsh(torch.where(self.finite[..., None, None], product, 0.0)).flip(-1)

    @cached_property
    def eigenvalues(self) -> Float[Tensor, "*m n"]:
        """Eigenvalues of $X X^T$, all n, descending, never negative: the squares of the singular values."""
        return self.singular_values.square()


def squared_lengths(x: Float[Tensor, "*m n k"]) -> Float[Tensor, "*m n"]:
    """Squared norm of each row, without a temporary of the size of ``x``."""
    return torch.linalg.vector_norm(x, dim=-1).square()


def _blocks(flat: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    n, d = flat.shape
    width = max(n, min(BLOCK // n, 2**15))  # a float32 sum of more terms loses digits
    for start in range(0, d, width):
        yield flat[:, start : start + width].to(dtype)


def squared(x: Float[Tensor, "*m n k"]) -> Float[Tensor, "*m n n"]:
    """$X X^T$ in its own dtype; numpy sees that both factors are one array and takes BLAS's symmetric routine: half the
    work.
    """
    if x.is_cpu:
        array = x.numpy()
        with np.errstate(all="ignore"):  # what is not finite shows in the result
            return torch.from_numpy(array @ array.swapaxes(-2, -1))
    with torch.autocast(x.device.type, enabled=False):
        return x @ x.mT


def _product(flat: Tensor, dtype: torch.dtype) -> Tensor:
    """$X X^T$: blocks multiplied in ``dtype``, summed in float64."""
    n = len(flat)
    gram = torch.zeros(n, n, dtype=torch.float64, device=flat.device)
    for block in _blocks(flat, dtype):
        gram += squared(block)
    return gram


def _triangle(flat: Tensor) -> Tensor:
    """R^T of the QR of $X^T$, streamed over features (TSQR), float64."""
    carry: Tensor | None = None
    for block in _blocks(flat, torch.float64):
        tall = block.T if carry is None else torch.cat([carry, block.T])
        carry = torch.linalg.qr(tall, mode="r").R
    assert carry is not None
    return carry.T


def _ratio(values: Tensor) -> float:
    """Smallest over largest eigenvalue of ascending ones; 0 for a zero matrix."""
    return (values[0] / values[-1]).item() if values[-1] > 0 else 0.0


def _silent(x: Tensor, axis: int | None) -> float:
    if axis is None:
        return float("nan")
    by_unit = x.movedim(axis, 1)
    if x.numel() <= BLOCK // 8:
        return (by_unit == 0).transpose(0, 1).flatten(1).all(1).double().mean().item()
    count = by_unit.shape[1]
    units = torch.arange(count, device=x.device)
    start, stop = 0, 1
    while len(units) and start < len(x):  # most units show a sign of life in the first samples: look at the rest alone
        block = by_unit[start:stop, units]
        units = units[(block == 0).transpose(0, 1).flatten(1).all(1)]
        start, stop = stop, 4 * stop
    return len(units) / count


def _saturated(x: Tensor, bounds: tuple[float, float] | None) -> float:
    if bounds is None:
        return float("nan")
    low, high = bounds
    margin = 0.025 * (high - low)
    return ((x < low + margin) | (x > high - margin)).double().mean().item()


def squared_norm(x: Tensor) -> float:
    """Sum of the squares of all entries, in float64; of many in float32, `CHUNK` at a time are summed in float32."""
    flat = x.reshape(-1)
    if flat.dtype == torch.float32 and len(flat) > PIECE:
        whole = len(flat) // CHUNK * CHUNK
        lengths = torch.linalg.vector_norm(flat[:whole].view(-1, CHUNK), dim=-1)
        value = squared_norm(lengths.double()) + squared_norm(flat[whole:])
        if math.isfinite(value) and value >= 1e-28:  # below, squares that underflow in float32 could be seen
            return value
    pieces = (piece.double() for piece in (flat.split(PIECE) if flat.numel() > PIECE else (flat,)))
    return math.fsum(torch.dot(piece, piece).item() for piece in pieces)
