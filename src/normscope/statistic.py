"""What is kept of a representation: enough for every metric, O(n^2) numbers a layer, and how accurate it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from normscope._errors import UsageError

T = TypeVar("T")

#: Up to this many features per sample the representation itself is kept: no arithmetic, no rounding, O(n^2) memory.
COPY = 4
#: Elements of one float64 block while streaming over features (16 MiB).
BLOCK = 2**21
#: A float32 Gram has eigenvalues good to about 1e-6 of the largest: below this ratio it is formed again in float64.
FLOAT32_RATIO = 1e-3
#: A float64 Gram has eigenvalues good to about 1e-15 of the largest: below this ratio singular values come from a QR.
FLOAT64_RATIO = 1e-10


@dataclass(frozen=True)
class Statistic:
    r"""Sufficient statistic of a representation $X$ (n samples as rows, d features).

    Either a ``factor`` $F$ (n, k) with $F F^T = X X^T$ exactly up to float64 rounding ($X$ itself when $d \le 4n$,
    else the triangular factor of a QR), or the ``product`` $X X^T$ alone, where a QR would not change a digit that
    the metrics use. ``dead``: share of units that are 0 for every sample and position; ``saturated``: share of
    entries within 2.5 % of the activation's range from one of its ends; both NaN where that was not asked for.
    ``finite``: no NaN or infinity among the products.
    """

    samples: int
    features: int
    factor: Tensor | None = None
    product: Tensor | None = None
    dead: float = float("nan")
    saturated: float = float("nan")
    finite: bool = True

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "n ..."],
        *,
        exact: bool = False,
        spectrum: bool = True,
        units: int | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> Statistic:
        """The statistic of ``x``, batch first.

        exact: float64 throughout, and a QR whatever the condition. Otherwise float32 or narrower data with
            many features are multiplied in float32 and summed in float64, and done again in float64 (then by QR)
            only where the eigenvalues turn out to be close to that rounding.
        spectrum: False if only norms and angles will be asked for: they never need the second look.
        units: the axis of the units (channels, neurons) for ``dead``; ``None``: do not look.
        bounds: the ends of the activation's range for ``saturated``.
        """
        x = x.detach()
        if x.dim() < 2:
            x = x.reshape(len(x), 1) if x.dim() else x.reshape(1, 1)
        if x.is_complex() or not x.is_floating_point():
            x = x.to(torch.float64) if not x.is_complex() else torch.view_as_real(x)
        flat = x.reshape(len(x), -1)
        n, d = flat.shape
        if n == 0 or d == 0:
            raise UsageError(f"A representation needs at least one sample and one feature; got shape {tuple(x.shape)}.")
        shares = (_dead(x, units), _saturated(x, bounds))
        if d <= COPY * n:
            copy = flat.clone()
            return cls(n, d, copy, None, *shares, finite=bool(copy.isfinite().all()))
        narrow = not exact and flat.dtype != torch.float64
        gram = _product(flat, torch.float32 if narrow else torch.float64)
        if not gram.isfinite().all():  # NaN in x, or squares beyond float32
            gram = _product(flat, torch.float64)
            if not gram.isfinite().all():
                return cls(n, d, None, gram, *shares, finite=False)
            narrow = False
        if spectrum or exact:
            if narrow and _ratio(gram) < FLOAT32_RATIO:
                gram = _product(flat, torch.float64)
            if exact or _ratio(gram) < FLOAT64_RATIO:
                return cls(n, d, _triangle(flat), None, *shares)
        return cls(n, d, None, gram, *shares)

    @classmethod
    def of_gram(cls, gram: Float[Tensor, "n n"]) -> Statistic:
        """The statistic of a Gram matrix $X X^T$; the number of features is not known and taken as n."""
        if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or len(gram) == 0:
            raise UsageError(
                f"A Gram matrix must be square, (n, n); got shape {tuple(gram.shape)}. "
                "For a representation (n, d) call normscope.measure(x), or pass x @ x.T."
            )
        gram = gram.detach().to(torch.float64)
        return cls(len(gram), len(gram), None, (gram + gram.T) / 2, finite=bool(gram.isfinite().all()))

    def cached(self, function: Callable[[Statistic], T]) -> T:
        """``function(self)``, computed once: what several metrics share."""
        memo = self.__dict__.setdefault("_memo", {})
        if function not in memo:
            memo[function] = function(self)
        return memo[function]

    @cached_property
    def gram(self) -> Float[Tensor, "n n"]:
        """$X X^T$ in float64."""
        if self.product is not None:
            return self.product
        assert self.factor is not None
        f = self.factor.to(torch.float64)
        return f @ f.T

    @cached_property
    def centred(self) -> Float[Tensor, "n n"]:
        r"""$P X X^T P$ with $P = I - 11^T/n$: the mean is taken off before squaring wherever a factor is there."""
        if self.factor is not None:
            f = self.factor.to(torch.float64)
            f = f - f.mean(0)
            return f @ f.T
        gram = self.gram - self.gram.mean(0)
        return gram - gram.mean(1, keepdim=True)

    @cached_property
    def squared_norms(self) -> Float[Tensor, " n"]:
        """Squared norm of each sample."""
        return self.gram.diagonal()

    @cached_property
    def eigenvalues(self) -> Float[Tensor, " n"]:
        """Eigenvalues of $X X^T$, all n, descending, never negative: the squares of the singular values."""
        return self.singular_values.square()

    @cached_property
    def singular_values(self) -> Float[Tensor, " n"]:
        """Singular values of $X$, padded with zeros to n, descending; from $X$ where the Gram cannot resolve them."""
        if not self.finite:
            return torch.full((self.samples,), float("nan"), dtype=torch.float64, device=self.gram.device)
        if self.factor is None or self.samples <= self.features:
            values = torch.linalg.eigvalsh(self.gram).flip(0)
            if self.factor is None or values[-1] > FLOAT64_RATIO * values[0]:
                return values.clamp_min(0).sqrt()
        assert self.factor is not None
        sigma = torch.linalg.svdvals(self.factor.to(torch.float64))
        return torch.nn.functional.pad(sigma, (0, self.samples - len(sigma)))

    @cached_property
    def cosines(self) -> Float[Tensor, " pairs"]:
        """Cosine of every pair of samples, i < j; pairs with a zero sample are left out."""
        gram, norms = self.gram, self.squared_norms.clamp_min(0).sqrt()
        keep = norms > 0
        gram, norms = gram[keep][:, keep], norms[keep]
        i, j = torch.triu_indices(len(norms), len(norms), 1, device=gram.device)
        return (gram[i, j] / (norms[i] * norms[j])).clamp(-1, 1)


def _blocks(flat: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    n, d = flat.shape
    width = max(n, BLOCK // n)
    for start in range(0, d, width):
        yield flat[:, start : start + width].to(dtype)


def _product(flat: Tensor, dtype: torch.dtype) -> Tensor:
    """$X X^T$: blocks multiplied in ``dtype``, summed in float64."""
    n = len(flat)
    gram = torch.zeros(n, n, dtype=torch.float64, device=flat.device)
    for block in _blocks(flat, dtype):
        gram += (block @ block.T).to(torch.float64)
    return gram


def _triangle(flat: Tensor) -> Tensor:
    """R^T of the QR of $X^T$, streamed over features (TSQR), float64."""
    carry: Tensor | None = None
    for block in _blocks(flat, torch.float64):
        tall = block.T if carry is None else torch.cat([carry, block.T])
        carry = torch.linalg.qr(tall, mode="r").R
    assert carry is not None
    return carry.T


def _ratio(gram: Tensor) -> float:
    """Smallest over largest eigenvalue; 0 for a zero matrix."""
    values = torch.linalg.eigvalsh(gram)
    return (values[0] / values[-1]).item() if values[-1] > 0 else 0.0


def _dead(x: Tensor, axis: int | None) -> float:
    if axis is None:
        return float("nan")
    over = [i for i in range(x.dim()) if i != axis % x.dim()]
    return ((x.amax(over) == 0) & (x.amin(over) == 0)).double().mean().item()


def _saturated(x: Tensor, bounds: tuple[float, float] | None) -> float:
    if bounds is None:
        return float("nan")
    low, high = bounds
    margin = 0.025 * (high - low)
    return ((x < low + margin) | (x > high - margin)).double().mean().item()
