"""Random numbers, one stream a seed: what a seed draws does not depend on the other seeds or on how it is cut up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

#: Numbers drawn at a time: at most for one seed, and for all seeds of a group.
_BLOCK, _ALL = 1 << 15, 1 << 20


class Stream:
    """Numbers for a group of seeds, drawn ahead in blocks; ``take`` hands them out in order.

    fill: one function a seed that fills a one-dimensional array with the next numbers of that seed.
    step: requests are rounded up to a multiple of it (torch's vectorised normals come in sixteens).
    """

    def __init__(self, fill: Sequence[Callable[[NDArray[Any]], object]], dtype: type, step: int = 1) -> None:
        self.fill, self.dtype, self.step = list(fill), dtype, step
        self.buffer: NDArray[Any] = np.empty((len(self.fill), 0), dtype)
        self.at = 0

    def take(self, *shape: int) -> NDArray[Any]:
        """The next numbers of every seed, (seeds, *shape); a view that the next call may overwrite."""
        count = int(np.prod(shape))
        need = -(-count // self.step) * self.step
        if self.buffer.shape[1] - self.at < need:
            self._refill(need)
        out = self.buffer[:, self.at : self.at + count].reshape(len(self.fill), *shape)
        self.at += need
        return out

    def _refill(self, need: int) -> None:
        left = self.buffer[:, self.at :]
        # Twice the last block, so that short chains draw little more than they use.
        most = min(_BLOCK, _ALL // len(self.fill), 2 * self.buffer.shape[1])
        size = need * max(1, most // need)
        if left.shape[1] == 0 and self.buffer.shape[1] == size:
            fresh = self.buffer
        else:
            size = max(size, left.shape[1] + need)
            size += -(size - left.shape[1]) % self.step
            fresh = np.empty((len(self.fill), size), self.dtype)
            fresh[:, : left.shape[1]] = left
        for row, fill in zip(fresh, self.fill, strict=True):
            fill(row[left.shape[1] :])
        self.buffer, self.at = fresh, 0


def normal_stream(seeds: Sequence[int], entropy: int, dtype: type, purpose: int = 0) -> tuple[Stream, list[Any]]:
    """Standard normals, and the generators behind them (their states are what a resumed chain needs).

    float64: numpy's ziggurat on SFC64. float32: torch's vectorised Box-Muller (24-bit uniforms: no value beyond 5.8).
    """
    roots = [np.random.SeedSequence([entropy, seed, purpose]) for seed in seeds]
    if dtype is np.float32:
        torches = [torch.Generator().manual_seed(int(r.generate_state(1, np.uint64)[0] >> 1)) for r in roots]

        def filler(generator: torch.Generator) -> Callable[[NDArray[Any]], object]:
            return lambda out: torch.from_numpy(out).normal_(generator=generator)

        return Stream([filler(g) for g in torches], np.float32, step=16), list(torches)
    numpys = [np.random.Generator(np.random.SFC64(r)) for r in roots]

    def ziggurat(generator: np.random.Generator) -> Callable[[NDArray[Any]], object]:
        return lambda out: generator.standard_normal(out=out)

    return Stream([ziggurat(g) for g in numpys], np.float64), list(numpys)


def chi_stream(seeds: Sequence[int], entropy: int, features: int, k: int) -> tuple[Stream, list[Any]]:
    """Chi variables with features, features - 1, ..., features - k + 1 degrees of freedom, over and over."""
    degrees = features - np.arange(k, dtype=float)
    generators = [np.random.Generator(np.random.SFC64(np.random.SeedSequence([entropy, s, 2]))) for s in seeds]

    def filler(generator: np.random.Generator) -> Callable[[NDArray[Any]], object]:
        def fill(out: NDArray[Any]) -> None:
            out.reshape(-1, k)[...] = np.sqrt(generator.chisquare(degrees, (len(out) // k, k)))

        return fill

    return Stream([filler(g) for g in generators], np.float64), list(generators)
