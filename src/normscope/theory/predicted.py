"""Infinite width: the Gram recursion forwards, the gradient recursion backwards."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from normscope.call.step import Step
from normscope.core.errors import UsageError, flag, seed_of, whole_number
from normscope.core.memory import check_room
from normscope.core.records import Profile, Record, flat
from normscope.core.spec import Spec
from normscope.linalg import Array, contrasts
from normscope.nn.maps import LayerMap
from normscope.nn.norms.integrals import rescaled_spectrum
from normscope.theory._start import Start, check_samples, checked_spec, read_start
from normscope.theory._values import chosen_metrics, evaluate
from normscope.theory.grams import WideLayer, check_weights, check_wide, closes, quasi_normals

#: Independent sets of quasi-random points: their spread is the standard error.
_REPLICATES = 8

#: Bytes that the records of one layer take, about.
ROW = 10_000


def predict(
    spec: Spec | nn.Module | Step,
    gram: Any = None,
    *,
    inputs: Any = None,
    metrics: str | Sequence[str] | None = None,
    gradients: bool = True,
    log2_points: int = 12,
    seed: int = 0,
    sites: int = 2048,
) -> Profile:
    r"""What a spec, or a model's own program, does to a batch, layer by layer, when the width goes to infinity first.

    Forward: $G_{l+1} = E\,h h^T$ (`normscope.theory.grams`): closed forms or quadrature without batch rescaling, a
        one-dimensional integral for batch norm and the leaky family (identity, relu, leaky_relu, abs), averages over
        8 x 2^log2_points quasi-random neurons elsewhere (``stderr``: from the spread of the 8). Backward, alike: the
        gradient's second moments (`WideLayer.backward`), gradient independence assumed, from loss gradients
        of equal size that are independent between samples at the last layer.

    spec: an MLP; weights i.i.d. of mean zero or orthogonal; eps is 0. ``spec.width`` enters only the unit of
        `sigma_min`, and the first layer's weights where their law and the number of features of ``inputs`` say so.
    gram: (n, n) Gram $X X^T$ / features of n samples, or inputs (n, features); ``inputs``: X itself. Only inputs as
        wide as the spec pass a skip connection in the first layer, as in ``simulate``.
    metrics: as in ``simulate``; ``gradients``: the backward recursion too.

    Returns a `Profile` of source ``predicted``: the metrics of every layer (0: the input); and with signal
    ``gradient`` ``gradient_norm`` (1 at the last layer) and ``gradient_growth``, a layer's gradient norm over that of
    the next layer (its square is the factor of the papers). stderr is 0 for closed forms and quadrature. At finite
    width the batch-norm recursion stays close at every depth; a plain net drifts away from it after about depth ~
    width layers, and metastable states (cluster + odd point) are reached that this recursion never leaves. Raises
    ``UsageError`` for a spec without such a recursion (`check_weights`).

    With a skip connection around a nonlinearity or a norm of the batch no recursion closes on Gram matrices: then it
        goes by the program of the net that is built, at ``spec.width``, sums that are not Gaussian averaged over draws.

    **A model** (or a `Step`) in the place of the spec is run once on ``inputs`` (the second argument), in training mode
        and without a trace, and every tensor of its program stands for its law at infinite width
        (`normscope.theory.program`; ``docs/theory.md`` has the rules, their approximations and errors). Weights count
        by their mean squares as they are. The profile has the layers of `probe`; gradients are those of random
        cotangents on the output. sites: samples x positions up to which a tensor has a law. ``facts["measured"]``
        names the layers that have none, ``facts["no_rule"]`` why: their numbers are measured.
    """
    if isinstance(spec, nn.Module | Step):
        from normscope.theory.program import predict_model

        given = gram if inputs is None else inputs
        return predict_model(spec, given, metrics=metrics, gradients=gradients, seed=seed, sites=sites)
    began = time.perf_counter()
    spec, start = checked_spec(spec, "predict"), read_start(gram, inputs, "predict")
    check_weights(spec)
    gradients = flag("gradients", gradients)
    check_samples(spec, start, spec.depth + 3 if gradients else 3)
    check_room(ROW * spec.depth, f"The records of {spec.depth} layers", "Take a smaller depth.")
    names = chosen_metrics(metrics)
    if not closes(spec):
        from normscope.theory.program import predict_spec

        return predict_spec(spec, start, names, gradients, seed_of(seed))
    log2_points, seed = _options(log2_points, seed)
    through = LayerMap.of(spec)
    n, sampled = start.samples, through.samples
    layers = _layers(spec, n, log2_points, seed, sampled)
    tables, runs = [], []
    for layer in layers:
        grams, table = _follow(spec, start, layer, names, keep=gradients)
        tables.append(table)
        if gradients:
            runs.append(_backward(layer, grams, start.features))
    records = _activation_records(tables) + (_gradient_records(runs) if gradients else [])
    method = "quasi-Monte Carlo over neurons" if sampled else "closed form or quadrature"
    facts: dict[str, Any] = {
        "samples": n,
        "method": method,
        "gradient_method": method,
        "points": len(layers) * 2**log2_points if sampled else 0,
        "seed": seed,
        "seconds": time.perf_counter() - began,
        "notes": [],
    }
    if gradients and sampled and through.phi.slope == 0:
        facts["notes"].append(
            "batch norm after ReLU: neurons alive on two samples only make the mean squared gradient diverge "
            "(logarithmically, cut off by eps in practice); gradient numbers are a typical value"
        )
    return Profile(tuple(records), flat(spec.parameters()), facts)


def predicted_grams(spec: Spec, gram: Any = None, *, inputs: Any = None, log2_points: int = 12, seed: int = 0) -> Array:
    """The Grams of the recursion themselves, (depth + 1, n, n), Gram = X X^T / features; averages over replicates."""
    spec, start = checked_spec(spec, "predict"), read_start(gram, inputs, "predict")
    check_wide(spec)
    check_samples(spec, start, 2 * spec.depth + 3)
    log2_points, seed = _options(log2_points, seed)
    layers = _layers(spec, start.samples, log2_points, seed, LayerMap.of(spec).samples)
    chains = [[gram for gram, _ in _forward(spec, start, layer)] for layer in layers]
    return np.asarray(np.mean(chains, axis=0))


def _options(log2_points: int, seed: int) -> tuple[int, int]:
    do = "2**log2_points neurons are averaged; the default is 12."
    return whole_number("log2_points", log2_points, 0, do, most=24), seed_of(seed)


def _layers(spec: Spec, samples: int, log2_points: int, seed: int, sampled: bool) -> list[WideLayer]:
    """The layer; where it is ``sampled``, one for each set of points."""
    sets = quasi_normals(samples, log2_points, _REPLICATES, seed) if sampled else [None]
    return [WideLayer(spec, points) for points in sets]


def _follow(
    spec: Spec, start: Start, layer: WideLayer, names: Sequence[str], keep: bool
) -> tuple[list[Array], dict[str, Array]]:
    """The Grams of layers 0..depth, where they are to be kept, and the metrics of each, (depth + 1,)."""
    grams: list[Array] = []
    rows: list[dict[str, Array]] = []
    before: Array | None = None
    for at, (gram, factor) in enumerate(_forward(spec, start, layer)):
        features = spec.width if at or start.features is None else start.features
        if gram is before and at > 1:
            rows.append(rows[-1])
        else:
            rows.append(evaluate(names, gram[None], factor, samples=start.samples, features=features))
        before = gram
        if keep:
            grams.append(gram)
    return grams, {name: np.concatenate([row[name] for row in rows]) for name in names}


def _forward(spec: Spec, start: Start, layer: WideLayer) -> Iterator[tuple[Array, Array | None]]:
    """Grams of layers 0..depth; and factors (1, k, n), where the small directions are known better than that.

    From a fixed point on the same array.
    """
    if layer.map.norm.rescales_batch and layer.map.phi.linear and not spec.bias:
        yield from _linear_batch_norm(spec, start, layer.map.norm.recenter)
        return
    gram, settled = start.gram, False
    yield gram, None
    for at in range(1, spec.depth + 1):
        if not settled:
            with np.errstate(over="ignore", invalid="ignore"):
                after = (layer if at > 1 else layer.reading(start.features)).forward(gram)
            if not np.isfinite(after).all():
                raise UsageError(f"The recursion overflows at layer {at}; lower the gain ({layer.gain:g}).")
            settled = at > 1 and bool(np.abs(after - gram).max() <= 1e-16 * np.abs(after).max())
            gram = after
        yield gram, None


def _linear_batch_norm(spec: Spec, start: Start, recenter: bool) -> Iterator[tuple[Array, Array | None]]:
    """Eigenvectors stay, eigenvalues follow ``rescaled_spectrum``:
    directions of 1e-12 are followed in full precision.
    """
    n = start.samples
    basis = contrasts(n) if recenter else np.eye(n)  # so that rounding cannot feed the direction of the mean
    _, sigma, vectors = np.linalg.svd(start.factor @ basis, full_matrices=False)
    if not sigma[0] > 1e-14 * np.abs(start.factor).max():
        raise UsageError("All samples are equal, so batch norm has nothing to rescale.")
    values = np.where(sigma > 1e-15 * sigma[0], sigma**2, 0)
    yield start.gram, start.factor[None]
    for _ in range(spec.depth):
        values = rescaled_spectrum(values) * (n / len(values))
        root = (np.sqrt(values)[:, None] * vectors) @ basis.T
        yield root.T @ root, root[None]


def _backward(layer: WideLayer, grams: Sequence[Array], features: int | None) -> tuple[Array, Array]:
    """log of the squared gradient norm at layers 0..depth relative to the last, and growth of the norm per layer."""
    depth, n = len(grams) - 1, len(grams[0])
    pi, log = np.eye(n), np.zeros(depth + 1)
    for at in range(depth, 0, -1):
        pi = (layer if at > 1 else layer.reading(features)).backward(grams[at - 1], pi)
        size = np.trace(pi) / n
        if not math.isfinite(size) or size <= 0:
            log[:at] = math.inf if not size <= 0 else -math.inf
            break
        log[at - 1], pi = log[at] + math.log(size), pi / size
    with np.errstate(invalid="ignore", over="ignore"):
        return log, np.exp(0.5 * (log[:-1] - log[1:]))


def _activation_records(tables: Sequence[dict[str, Array]]) -> list[Record]:
    records = [
        Record(layer, name, value, stderr=stderr if layer else 0.0, source="predicted")
        for name in tables[0]
        for layer, (value, stderr) in enumerate(_mean_and_error(np.stack([t[name] for t in tables])))
    ]
    return sorted(records, key=lambda r: r.layer)


def _gradient_records(runs: Sequence[tuple[Array, Array]]) -> list[Record]:
    with np.errstate(over="ignore"):
        columns = {"gradient_norm": np.stack([np.exp(0.5 * log) for log, _ in runs])}
    columns["gradient_growth"] = np.stack([growth for _, growth in runs])
    return [
        Record(layer, name, value, signal="gradient", stderr=stderr, source="predicted")
        for name, values in columns.items()
        for layer, (value, stderr) in enumerate(_mean_and_error(values))
    ]


def _mean_and_error(values: Array) -> list[tuple[float, float]]:
    """Mean over the first axis and its standard error (0 for one exact run)."""
    with np.errstate(invalid="ignore"):
        error = values.std(0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else np.zeros(values.shape[1])
        return list(zip(values.mean(0).tolist(), error.tolist(), strict=True))
