r"""A group of chains stepped together: the state is a factor R of the Gram, one layer costs O(d n^2), not O(d^2 n).

Given H (d features, n samples as columns here), the rows of W H are i.i.d. $N(0, H^T H / d)$. With $H^T H / d = R^T
R$ they have the law of g R, g standard normal: exact, whatever norm and activation follow (daneshmand2021, section
1). R comes from the Cholesky factor of the Gram scaled to unit diagonal where that keeps its small directions, and
from the QR of H where it would not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from normscope.core.spec import Spec
from normscope.linalg import Array, contrasts
from normscope.nn.maps import LayerMap
from normscope.nn.nets import init_weights_, weight_scale
from normscope.theory._start import Start
from normscope.theory._streams import chi_stream, normal_stream

#: Smallest diagonal entry of the unit-diagonal Cholesky factor that is trusted; its square is a ratio of variances,
#: which the Gram knows to 1e-15, so directions are good to 1e-15 / LIMIT^2. Below it: QR of H.
_CHOLESKY_LIMIT = 1e-4
#: The same, above which float32 products (1e-7) still serve.
_FLOAT32_LIMIT = 0.05
#: Bytes of H up to which it is held; above, rows are streamed and R comes from a sequence of QRs.
_HELD = 1 << 31
_CHUNK = 1 << 20
#: Linear chains asked for their spectrum only are turned onto their singular directions every so many layers, and
#: directions below this share of the largest singular value are dropped: rounding (1e-16) would re-create them.
_ROTATE, _DROP = 64, 1e-12
#: Laws of W under which the rows of W H are exactly Gaussian given H, or Q^T-Haar.
_GAUSSIAN, _HAAR = ("gaussian", "xavier_normal"), ("orthogonal",)


def method_of(spec: Spec) -> str:
    """How W H is drawn: ``gaussian`` (rows g R), ``haar`` (orthonormal columns) or ``explicit`` (the weights)."""
    if spec.weights in _GAUSSIAN:
        return "gaussian"
    return "haar" if spec.weights in _HAAR else "explicit"


def is_spectral(spec: Spec, eps: float) -> bool:
    """Does the law of the spectrum depend on the spectrum alone? Then the samples may be rotated at will."""
    between = LayerMap.of(spec)
    linear = between.linear and between.row_local and not spec.bias and spec.skip is None
    return linear and method_of(spec) == "gaussian" and not eps


class Group:
    """Chains of several seeds, side by side, at the same layer.

    factor: R (runs, k, n) with R^T R = H^T H / d, times exp(-log_scale) where the process is scale-free.
    gram: (runs, n, n) the same product; rows: H (runs, d, n), kept only with a skip or explicit weights.
    """

    def __init__(
        self,
        spec: Spec,
        start: Start,
        seeds: Sequence[int],
        *,
        entropy: int = 0,
        dtype: type = np.float64,
        eps: float = 0.0,
        spectral: bool = False,
    ) -> None:
        self.spec, self.seeds, self.dtype, self.eps = spec, list(seeds), dtype, eps
        self.map, self.method = LayerMap.of(spec), method_of(spec)
        runs = len(self.seeds)
        self.layer, self.features = 0, start.features
        self.samples = self.columns = start.samples
        self.directions = self.samples  # that can be non-zero
        self.factor: Array = np.repeat(start.factor[None], runs, 0)
        self.gram: Array = np.matmul(self.factor.transpose(0, 2, 1), self.factor)
        self.pivot = np.array([_least_pivot(self.gram[:1])[0]] * runs)
        self.log_scale = np.zeros(runs)
        alone = spec.skip is None and not spec.bias
        #: Then an unnormalised chain may be rescaled at will.
        self.scale_free = self.map.homogeneous and alone
        self.lost: dict[int, int] = {}
        self.stream, self.generators = normal_stream(self.seeds, entropy, dtype)
        #: Only Gaussian matrices: the Gram is a product of Wishart factors.
        self.bartlett = self.map.plain and alone and self.method == "gaussian"
        if self.bartlett:
            self.degrees = min(self.factor.shape[1], spec.width)
            self.chi, chi_generators = chi_stream(self.seeds, entropy, spec.width, self.degrees)
            self.generators += chi_generators
        self.keeps_rows = spec.skip is not None or self.method == "explicit"
        self.rows: Array | None = None
        if self.keeps_rows and start.inputs is not None:
            self.rows = np.repeat(start.inputs.T[None], runs, 0)
        elif self.method == "explicit":
            d = max(spec.width, start.factor.shape[0])
            pad = np.pad(start.factor, ((0, d - start.factor.shape[0]), (0, 0)))
            self.rows = np.repeat(pad[None] * math.sqrt(d), runs, 0)
        self.torch_generators = [
            torch.Generator().manual_seed(int(np.random.SeedSequence([entropy, s, 1]).generate_state(1)[0]))
            for s in (self.seeds if self.method == "explicit" else ())
        ]
        self.spectral = spectral and is_spectral(spec, eps)
        self.energy = 1.0
        if self.spectral:
            self._into_contrasts()
        self.basis = contrasts(self.samples) if self.map.output_is_centred else None
        row_local = self.map.row_local
        large = spec.width * self.samples * 8 > _HELD and not self.keeps_rows
        self.streams_rows = row_local and large and self.method == "gaussian"
        per_chunk = max(64, _CHUNK // (8 * self.samples * runs))  # rows
        self.chunk = per_chunk if row_local and self.method == "gaussian" else spec.width
        self._work: dict[str, NDArray[Any]] = {}

    def step(self) -> None:
        """One layer."""
        if self.spectral and self.layer % _ROTATE == 0:
            self._rotate()
        if self.bartlett:
            self._step_bartlett()
        else:
            self._step_rows()
        self.layer, self.features = self.layer + 1, self.spec.width
        if self.scale_free:
            self._rescale()

    def _step_bartlett(self) -> None:
        r"""Vanilla linear: $g R$, $g$ (d, k) Gaussian, has the triangular factor $T R$, T that of g (Bartlett 1933)."""
        d, k = self.spec.width, self.factor.shape[1]
        rows = min(d, k)
        triangle = np.triu(self.stream.take(rows, k).astype(np.float64, copy=False), 1)
        index = np.arange(rows)
        # A chain that lost directions takes the first chis of each set: the sets stay whole, and aligned.
        triangle[:, index, index] = self.chi.take(self.degrees)[:, :rows]
        product, _ = self._law()
        self.factor = np.matmul(triangle, product) / math.sqrt(d)
        self.gram = np.matmul(self.factor.transpose(0, 2, 1), self.factor)

    def _step_rows(self) -> None:
        """Draw the rows of W H, apply norm and activation, factor the Gram of what comes out."""
        spec, d, n = self.spec, self.spec.width, self.columns
        product, dtype = self._law()
        total = np.zeros((len(self.seeds), n, n))
        h = None if self.streams_rows else self._buffer("h", (len(self.seeds), d, n), dtype)
        triangle = np.zeros((len(self.seeds), 0, n))
        residual = spec.skip is not None and self.rows is not None and self.rows.shape[1] == d
        # A skip adds rows that are not centred, so the norm has to do it.
        centred_before = self.map.recentres_first and not residual and self.method != "explicit"
        if centred_before:
            size = np.abs(product).max((1, 2), keepdims=True)
            product = product - product.mean(-1, keepdims=True)
            # Samples that are equal up to rounding have no contrast: rescaling must not blow the rounding up.
            product[np.abs(product).max((1, 2)) <= 1e-15 * self.samples * size[:, 0, 0]] = 0
        draw = self._draw(product, d, dtype)
        for at in range(0, d, self.chunk):
            size = min(self.chunk, d - at)
            z = self._buffer("z", (len(self.seeds), size, n), dtype) if h is None else h[:, at : at + size]
            draw(z, at)
            if residual:
                assert self.rows is not None
                assert spec.skip is not None
                z *= spec.skip
                z += self.rows[:, at : at + size]
            z = self.map.apply(z, self.eps, centred_before)
            total += np.matmul(z.transpose(0, 2, 1), z)
            if self.streams_rows:
                tall = np.concatenate([triangle, z.astype(np.float64, copy=False)], 1)
                triangle = _triangle(tall)
        self.gram = total * (self.energy / d)
        self._refactor(h, triangle, d / self.energy)
        if self.keeps_rows:
            assert h is not None
            self.rows = np.array(h, dtype=np.float64)

    def _into_contrasts(self) -> None:
        """Centred linear norms on n samples are uncentred ones on n-1 (daneshmand2021, section 1): change to those."""
        norm = self.map.norm
        if not norm.recenters_batch:
            return
        self.factor = self.factor @ contrasts(self.samples)
        self.columns = self.directions = self.samples - 1
        self.map = replace(self.map, norm=replace(norm, recenter=False))
        if norm.rescale:
            # Rows get mean square 1 over n-1 columns here, but over n samples there.
            self.energy = self.samples / self.columns

    def _rotate(self) -> None:
        """Turn the samples onto the singular directions; drop those that rounding has swallowed."""
        sigma = np.linalg.svd(self.factor, compute_uv=False)
        kept = sigma > _DROP * sigma[:, :1]
        size = int(kept.sum(-1).max())
        possible = min(self.directions, self.spec.width)
        for seed, count in zip(self.seeds, kept.sum(-1), strict=True):
            if count < possible and self.layer:
                self.lost.setdefault(seed, self.layer)
        self.factor = np.zeros((len(sigma), size, size))
        index = np.arange(size)
        self.factor[:, index, index] = sigma[:, :size]
        self.gram, self.columns = self.factor**2, size

    def _law(self) -> tuple[Array, type]:
        """Rows g @ product have the law of W H + b; and the precision that the product deserves."""
        spec = self.spec
        is_haar = self.method == "haar"
        gain = spec.effective_gain if is_haar else weight_scale(spec, self.features or spec.width, spec.width)
        product = gain * self.factor
        if self.method == "gaussian" and spec.bias:
            # b_k 1 is one more Gaussian direction: W H + b 1^T has row covariance gain^2 G + bias^2 1 1^T.
            product = np.concatenate([product, np.full((len(product), 1, self.columns), spec.bias)], 1)
        narrow = self.dtype is np.float32 and self.pivot.min() > _FLOAT32_LIMIT and self.method == "gaussian"
        return product, np.float32 if narrow and not self.keeps_rows else np.float64

    def _draw(self, product: Array, d: int, dtype: type) -> Any:
        """A function (z, at) that writes W H + b for rows at, at+1, ... into z."""
        if self.method == "explicit":
            return self._draw_explicit(d)
        if self.method == "haar":
            return self._draw_haar(product, d)
        k = product.shape[1]
        narrow: NDArray[Any] = np.ascontiguousarray(product, dtype)

        def draw(z: NDArray[Any], at: int) -> None:
            g = self.stream.take(z.shape[1], k)
            np.matmul(g.astype(dtype, copy=False), narrow, out=z)

        return draw

    def _draw_haar(self, product: Array, d: int) -> Any:
        r"""W with orthonormal rows or columns: W Q is the first d rows of a Haar frame, and W H = W Q R.

        A frame is $g L^{-T}$ with $g^T g = L L^T$: the Q of a QR whose R has a positive diagonal.
        """
        spec, fan_in, k = self.spec, self.features or self.spec.width, self.factor.shape[1]
        tall = max(d, fan_in)
        g = self.stream.take(tall, k).astype(np.float64, copy=False)
        if tall >= 2 * k:  # condition below 6: Cholesky loses nothing
            lower = np.linalg.cholesky(np.matmul(g.transpose(0, 2, 1), g))
            frame = np.matmul(g, np.linalg.inv(lower).transpose(0, 2, 1))
        else:
            frame, r = np.linalg.qr(g)
            frame = frame * np.sign(np.einsum("rii->ri", r))[:, None, :]
        frame = frame[:, :d]
        # H = Q R sqrt(fan_in) for R^T R = H^T H / fan_in.
        product = product * math.sqrt(fan_in)

        def draw(z: NDArray[Any], at: int) -> None:
            np.matmul(frame[:, at : at + z.shape[1]], product, out=z)
            if spec.bias:
                z += spec.bias * self.stream.take(z.shape[1], 1)

        return draw

    def _draw_explicit(self, d: int) -> Any:
        """Weights as ``build`` draws them, one seed at a time."""
        assert self.rows is not None
        rows = self.rows

        def draw(z: NDArray[Any], at: int) -> None:
            for out, h, generator in zip(z, rows, self.torch_generators, strict=True):
                linear = torch.nn.utils.skip_init(
                    torch.nn.Linear, len(h), d, bias=self.spec.bias is not None, dtype=torch.float64
                )
                init_weights_(linear, self.spec, generator, None)
                with torch.no_grad():
                    out[...] = linear(torch.from_numpy(h).T).T.numpy()

        return draw

    def _refactor(self, h: NDArray[Any] | None, triangle: Array, d: float) -> None:
        """R from the Gram, or from H where the Gram has lost its small directions."""
        gram, basis = self.gram, self.basis
        if basis is not None:
            gram = basis.T @ gram @ basis
        scale = np.sqrt(np.einsum("rii->ri", gram))
        upper, self.pivot = _unit_cholesky(gram, scale)
        factor = upper * scale[:, None, :]
        poor = self.pivot < _CHOLESKY_LIMIT
        if h is None:
            factor = _triangle(triangle) / math.sqrt(d)
            factor = factor @ basis if basis is not None else factor
        elif poor.any():
            tall = np.asarray(h[poor], np.float64)
            exact = _triangle(tall @ basis if basis is not None else tall) / math.sqrt(d)
            factor = factor[:, : exact.shape[1]] if poor.all() else factor
            factor[poor, : exact.shape[1]] = exact
            factor[poor, exact.shape[1] :] = 0
        self.factor = factor if basis is None else factor @ basis.T
        if poor.any():
            self._note_lost_rank(poor)

    def _note_lost_rank(self, poor: NDArray[np.bool_]) -> None:
        """Remember the first layer at which a run's smallest direction fell below rounding."""
        for i in np.flatnonzero(poor):
            if self.seeds[i] in self.lost:
                continue
            sigma = np.linalg.svd(self.factor[i], compute_uv=False)
            possible = min(self.directions - (self.basis is not None), self.spec.width)
            if possible > len(sigma) or not sigma[possible - 1] > 1e-14 * sigma[0]:
                self.lost[self.seeds[i]] = self.layer + 1

    def _rescale(self) -> None:
        size = np.sqrt(np.einsum("rii->r", self.gram) / self.samples)
        size = np.where(size > 0, size, 1)
        self.log_scale += np.log(size)
        self.factor /= size[:, None, None]
        self.gram /= (size**2)[:, None, None]
        if self.rows is not None:
            self.rows /= size[:, None, None]

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        key = f"{name}{np.dtype(dtype).char}"
        if key not in self._work or self._work[key].shape != shape:
            self._work[key] = np.empty(shape, dtype)
        return self._work[key]


def _unit_cholesky(gram: Array, scale: Array) -> tuple[Array, Array]:
    """Upper Cholesky factor of the Gram scaled to unit diagonal, and its smallest pivot (0 where it does not exist)."""
    safe = np.where(scale > 0, scale, 1)
    unit = gram / (safe[:, :, None] * safe[:, None, :])
    lower, info = torch.linalg.cholesky_ex(torch.from_numpy(unit))
    upper = lower.numpy().transpose(0, 2, 1)
    pivot = np.where(info.numpy() == 0, np.einsum("rii->ri", upper).min(-1), 0.0)
    return upper, np.where(np.isfinite(pivot), pivot, 0.0)


def _least_pivot(gram: Array) -> Array:
    return _unit_cholesky(gram, np.sqrt(np.einsum("rii->ri", gram)))[1]


def _triangle(tall: Array) -> Array:
    """R of the QR of (runs, d, n)."""
    return torch.linalg.qr(torch.from_numpy(np.ascontiguousarray(tall)), mode="r").R.numpy()
