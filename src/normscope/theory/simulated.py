"""Random chains at finite width, exact in law, without drawing their weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController, threadpool_limits

from normscope.core.errors import UsageError, finite_number, function_of, seed_of, seeds_of, shown, whole_number
from normscope.core.files import expanded
from normscope.core.records import Profile, Record, flat
from normscope.core.spec import Spec
from normscope.core.tensors import checked_generator
from normscope.linalg import Array
from normscope.theory import _checkpoint
from normscope.theory._chain import Group, is_spectral
from normscope.theory._start import Start, check_samples, checked_spec, read_start
from normscope.theory._values import chosen_metrics, evaluate, need_factors, spectral

#: Bytes of representations worked on at a time by one group of seeds: about a second-level cache.
_GROUP = 1 << 20
#: Layers between two writes of a checkpoint.
_SEGMENT = 2000

_LAW = {
    "gaussian": "exact: rows of W H drawn as g R, H = Q R",
    "haar": "exact: W H drawn as a Haar frame times R, H = Q R",
    "explicit": "explicit weights (no shortcut is exact for this law of W)",
}


def simulate(
    spec: Spec,
    gram: Any = None,
    *,
    inputs: Any = None,
    seeds: int | Iterable[int] = 1,
    seed: int = 0,
    generator: torch.Generator | None = None,
    metrics: str | Sequence[str] | None = None,
    every: int = 1,
    normals: str = "float64",
    eps: float = 0.0,
    progress: Callable[[int, int], object] | None = None,
    checkpoint: str | Path | None = None,
) -> Profile:
    r"""Metrics of random chains of a spec at every layer, with the law that explicit weights would give.

    The rows of $W H$ are Gaussian given $H$, so a layer costs $O(d n^2)$ operations and d n normals (daneshmand2021,
    section 1): exact for Gaussian weights (with bias, skip, any norm and activation) and, by Haar frames, for
    orthogonal ones. Other laws of the weights are drawn explicitly, and ``facts["law"]`` says so.

    spec: an MLP; ``spec.depth`` layers of ``spec.width``.
    gram: (n, n) Gram $X X^T$ / features of n samples, or inputs (n, features) if it is no Gram matrix.
    inputs: X itself, rows are samples. Inputs of another width than the spec's pass through a first layer without
        skip, as does a Gram.
    seeds: how many chains (seeds 0, 1, ...), or which; a seed's numbers do not depend on the others (up to rounding).
    seed, generator: the entropy shared by all seeds (a generator is asked for one number).
    metrics: names; default a handful of them. Spectral metrics of linear chains take the cheapest route.
    every: layers between two records; layer 0 (the input) and the last layer are always there.
    normals: "float64", or "float32": faster draws and products where the batch is well conditioned (tails beyond 5.8
        standard deviations are cut), all algebra on the n x n side in float64.
    eps: added to variances inside norms; the papers have 0, the modules of ``build`` ``normscope.nn.norms.EPS`` (1e-5).
    progress: called with (layers done, layers in all) now and then.
    checkpoint: a file to resume from if it exists, and to write every few thousand layers; a deeper spec continues
        it.

    Returns a `Profile` of source ``simulated``, one record per (layer, seed, metric); values are those of one chain
        (stderr 0). Numeric trouble is data: ``facts["rank_lost"]`` maps seeds to the layer at which a direction was
        lost.
    Memory: O(d n) a group of seeds, whatever the depth. Raises ``UsageError`` for bad shapes, Grams or options.
    """
    began = time.perf_counter()
    spec, start = checked_spec(spec, "simulate"), read_start(gram, inputs)
    names = chosen_metrics(metrics)
    which, seed = list(seeds_of(seeds)), seed_of(seed)
    every = whole_number("every", every, 1)
    eps = finite_number("eps", eps, least=0)
    if normals not in ("float64", "float32"):
        raise UsageError(f"normals must be 'float64' or 'float32'; got {shown(normals)}. Leave it out for 'float64'.")
    check_samples(spec, start)
    function_of("progress", progress)
    checkpoint = None if checkpoint is None else expanded(checkpoint)
    if generator is not None:
        seed = int(torch.randint(2**31, (), generator=checked_generator(generator)))
    turned = spectral(names)
    groups = [
        Group(spec, start, part, entropy=seed, dtype=np.dtype(normals).type, eps=eps, spectral=turned)
        for part in _parts(which, spec, start)
    ]
    tables: list[tuple[int, Sequence[int], dict[str, Array]]] = []
    key = f"{replace(spec, depth=1)}|{which}|{seed}|{names}|{every}|{normals}|{eps}|{start.factor.tobytes().hex()[:64]}"
    if checkpoint is not None:
        tables = _checkpoint.load(checkpoint, groups, key)
    resumed = groups[0].layer
    if resumed > spec.depth:
        raise UsageError(f"{checkpoint} is at layer {resumed}, beyond depth {spec.depth}; delete it to start again.")
    total, done = spec.depth * len(groups), resumed * len(groups)
    with threadpool_limits(1):  # these matrices are too small to share
        if not tables:
            tables += [(0, g.seeds, _measured([_snapshot(g, True)], g, names)) for g in groups]
        segment = spec.depth if checkpoint is None else _SEGMENT
        for stop in range(resumed + segment, spec.depth + segment, segment):
            for g in groups:
                tables += _advance(g, min(stop, spec.depth), spec.depth, names, every, progress, done, total)
                done += min(stop, spec.depth) - max(resumed, stop - segment)
            if checkpoint is not None:
                _checkpoint.save(checkpoint, groups, key, tables)
    records = [
        Record(layer, name, float(values[i]), seed=s, source="simulated")
        for layer, part, table in tables
        for i, s in enumerate(part)
        for name, values in table.items()
    ]
    records.sort(key=lambda r: (r.seed, r.layer))
    lost = {s: layer for g in groups for s, layer in g.lost.items()}
    facts = {
        "law": _LAW[groups[0].method],
        "shortcut": _shortcut(spec, groups[0]),
        "samples": start.samples,
        "normals": normals,
        "eps": eps,
        "seed": seed,
        "rank_lost": lost,
        "notes": [f"seed {s}: rank lost at layer {layer}" for s, layer in sorted(lost.items())],
        "seconds": time.perf_counter() - began,
    }
    return Profile(tuple(records), flat(spec.parameters()), facts)


def simulated_grams(
    spec: Spec, gram: Any = None, *, inputs: Any = None, seeds: int | Iterable[int] = 1, seed: int = 0
) -> Iterator[Array]:
    """The Grams of the chains of `simulate` themselves, layer by layer: (seeds, n, n) for layers 0 (the input) to
    depth.

    Gram = X X^T / features; the same seeds give the same chains as `simulate` does, up to rounding and for its metrics
    that take no shortcut. Without norm the scale grows or fades with depth, and entries beyond 1e308 are infinite.

    Memory: all chains at once, O(seeds d n). Raises ``UsageError`` as `simulate` does, before the first layer.
    """
    spec, start = checked_spec(spec, "simulated_grams"), read_start(gram, inputs, "simulated_grams")
    check_samples(spec, start)
    which = list(seeds_of(seeds))
    return _grams([Group(spec, start, part, entropy=seed_of(seed)) for part in _parts(which, spec, start)], spec.depth)


def _grams(groups: list[Group], depth: int) -> Iterator[Array]:
    threads = ThreadpoolController()  # looks at all loaded libraries: once, not at every layer
    for layer in range(depth + 1):
        with threads.limit(limits=1), np.errstate(over="ignore"):
            if layer:
                for g in groups:
                    g.step()
            now = np.concatenate([g.gram * np.exp(2 * g.log_scale)[:, None, None] for g in groups])
        yield now


def _parts(seeds: list[int], spec: Spec, start: Start) -> list[list[int]]:
    """Seeds that step together: as many as fit the cache, but not more than share the work evenly."""
    size = max(1, _GROUP // (8 * spec.width * start.samples))
    return [seeds[i : i + size] for i in range(0, len(seeds), size)]


def _advance(
    g: Group,
    stop: int,
    depth: int,
    names: Sequence[str],
    every: int,
    progress: Callable[[int, int], object] | None,
    done: int,
    total: int,
) -> list[tuple[int, Sequence[int], dict[str, Array]]]:
    """Step a group to layer ``stop``; its metrics, evaluated many layers at a time."""
    factors = need_factors(names)
    out: list[tuple[int, Sequence[int], dict[str, Array]]] = []
    layers: list[int] = []
    kept: list[_Snapshot] = []
    first, told = g.layer, time.perf_counter()

    def flush() -> None:
        if not layers:
            return
        values = _measured(kept, g, names)
        runs = len(g.seeds)
        for i, layer in enumerate(layers):
            out.append((layer, g.seeds, {k: v[i * runs : (i + 1) * runs] for k, v in values.items()}))
        layers.clear()
        kept.clear()

    while g.layer < stop:
        g.step()
        if g.layer % every == 0 or g.layer == depth:
            now = _snapshot(g, factors)
            if kept and kept[-1].gram.shape != now.gram.shape:
                flush()
            layers.append(g.layer)
            kept.append(now)
            if g.samples**2 * 8 * len(g.seeds) * len(kept) > 1 << 22:
                flush()
        if progress is not None and time.perf_counter() - told > 0.1:
            told = time.perf_counter()
            progress(done + g.layer - first, total)
    flush()
    if progress is not None:
        progress(done + g.layer - first, total)
    return out


@dataclass(frozen=True)
class _Snapshot:
    gram: Array
    factor: Array | None
    log_scale: Array


def _snapshot(g: Group, factors: bool) -> _Snapshot:
    alike = g.factor.shape[-1] == g.gram.shape[-1]  # the start of a chain in contrasts has its factor in them already
    return _Snapshot(g.gram.copy(), g.factor.copy() if factors and alike else None, g.log_scale.copy())


def _measured(kept: Sequence[_Snapshot], g: Group, names: Sequence[str]) -> dict[str, Array]:
    """Metrics of snapshots of one shape."""
    factors = [k.factor for k in kept if k.factor is not None]
    tall = max((f.shape[1] for f in factors), default=0)
    padded = [np.pad(f, ((0, 0), (0, tall - f.shape[1]), (0, 0))) for f in factors]
    return evaluate(
        names, np.concatenate([k.gram for k in kept]), np.concatenate(padded) if padded else None, samples=g.samples,
        features=g.features or g.spec.width, log_scale=np.concatenate([k.log_scale for k in kept]),
    )  # fmt: skip


def _shortcut(spec: Spec, g: Group) -> str:
    if g.bartlett:
        return "Bartlett: the triangular factor of a Gaussian matrix is drawn directly, O(n^3) a layer whatever d"
    if g.spectral and is_spectral(spec, g.eps):
        return "spectrum only: directions below 1e-12 of the largest singular value are dropped"
    return "none"
