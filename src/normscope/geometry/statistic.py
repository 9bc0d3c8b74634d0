"""What is kept of a representation: enough for every metric, O(n^2) numbers a layer, and how accurate it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from normscope.core.errors import UsageError

if TYPE_CHECKING:
    from jaxtyping import Float

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
    """

    samples: int
    features: int
    factor: Tensor | None = None
    product: Tensor | None = None
    dead: float = float("nan")
    saturated: float = float("nan")

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
        if x.numel() == 0:
            raise UsageError(f"A representation needs at least one sample and one feature; got shape {tuple(x.shape)}.")
        if x.dim() < 2:
            x = x.reshape(len(x), 1) if x.dim() else x.reshape(1, 1)
        if x.is_complex() or not x.is_floating_point():
            x = x.to(torch.float64) if not x.is_complex() else torch.view_as_real(x)
        flat = x.reshape(len(x), -1)
        n, d = flat.shape
        shares = (_dead(x, units), _saturated(x, bounds))
        if d <= COPY * n:
            return cls(n, d, flat.clone(), None, *shares)
        narrow = not exact and flat.dtype != torch.float64
        gram = _product(flat, torch.float32 if narrow else torch.float64)
        # NaN in x, or squares beyond float32: below 1e-28 the 1e-45 a feature that underflows could be seen
        if not gram.isfinite().all() or (narrow and gram.diagonal().min() < 1e-28):
            gram = _product(flat, torch.float64)
            if not gram.isfinite().all():
                return cls(n, d, None, gram, *shares)
            narrow = False
        if spectrum or exact:
            ratio = 0.0 if exact else _ratio(gram)
            if narrow and ratio < FLOAT32_RATIO:
                gram = _product(flat, torch.float64)
                ratio = 0.0 if exact else _ratio(gram)
            if ratio < FLOAT64_RATIO:
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
        return cls(len(gram), len(gram), None, (gram + gram.T) / 2)

    def cached(self, function: Callable[[Statistic], T]) -> T:
        """``function(self)``, computed once: what several metrics share."""
        memo = self.__dict__.setdefault("_memo", {})
        if function not in memo:
            memo[function] = function(self)
        return memo[function]

    @cached_property
    def finite(self) -> bool:
        """Whether there is no NaN and no infinity in what was kept."""
        kept = self.product if self.factor is None else self.factor
        assert kept is not None
        return bool(kept.isfinite().all() and self.squared_norms.isfinite().all())

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
                return _zeroed(values, self.samples).sqrt()
        assert self.factor is not None
        sigma = _zeroed(torch.linalg.svdvals(self.factor.to(torch.float64)), max(self.samples, self.features))
        return torch.nn.functional.pad(sigma, (0, self.samples - len(sigma)))

    @cached_property
    def cosines(self) -> Float[Tensor, " pairs"]:
        """Cosine of every pair of samples, i < j; pairs with a zero sample are left out."""
        gram, norms = self.gram, self.squared_norms.clamp_min(0).sqrt()
        keep = norms != 0  # NaN stays, and shows
        if not keep.all():
            gram, norms = gram[keep][:, keep], norms[keep]
        above = torch.ones_like(gram, dtype=torch.bool).triu(1)
        return (gram / norms / norms[:, None]).masked_select(above).clamp(-1, 1)


def _zeroed(values: Tensor, size: int) -> Tensor:
    """Descending values, those that are rounding of the largest (numpy's rule for the rank) set to zero."""
    return torch.where(values > values[0] * size * torch.finfo(values.dtype).eps, values, 0.0)


def _blocks(flat: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    n, d = flat.shape
    width = max(n, min(BLOCK // n, 2**15))  # a float32 sum of more terms loses digits
    for start in range(0, d, width):
        yield flat[:, start : start + width].to(dtype)


def _product(flat: Tensor, dtype: torch.dtype) -> Tensor:
    """$X X^T$: blocks multiplied in ``dtype``, summed in float64."""
    n = len(flat)
    gram = torch.zeros(n, n, dtype=torch.float64, device=flat.device)
    for block in _blocks(flat, dtype):
        if (
            block.is_cpu
        ):  # numpy sees that both factors are one array and takes the symmetric BLAS routine: half the work
            array = block.numpy()
            with np.errstate(all="ignore"):  # what is not finite shows in the result
                gram += torch.from_numpy(array @ array.T)
        else:
            with torch.autocast(block.device.type, enabled=False):
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
