"""What a cell of a sweep can do: profiles measured, simulated and predicted, sharpness, short training, a phase
diagram.

Every task is a pure function of its parameters; the fields of `Spec` are parameters of each.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from normscope.core.errors import UsageError, finite_number, unknown, whole_number
from normscope.core.favourites import BRIEF, FEW
from normscope.core.records import Profile, Record
from normscope.core.spec import Spec
from normscope.sweeping import TASKS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from normscope.data.datasets import Batch

__all__ = ["TASKS", "phase", "predict", "probe", "sharpness", "simulate", "train"]

_LAYERS = ("last", "all")
_LOSSES = ("squared_error", "mse", "cross_entropy")
#: The weights' stream is not the data's.
_WEIGHTS = 0x5EED
#: A loss that has fallen below this share of its first value counts as trained (chosen by us).
TRAINED = 0.5


def spec_task(function: Callable[..., Any]) -> Callable[..., Any]:
    """Enrol ``function(spec, *, ...)`` as a task that takes the fields of `Spec` beside its own parameters."""
    own = dict(list(inspect.signature(function).parameters.items())[1:])
    fields = {f.name: f for f in dataclasses.fields(Spec)}

    def split(given: dict[str, Any]) -> tuple[Spec, dict[str, Any]]:
        spec = Spec(**{k: v for k, v in given.items() if k in fields})
        return spec, {k: v for k, v in given.items() if k not in fields}

    @functools.wraps(function)
    def task(**parameters: Any) -> Any:
        spec, rest = split(parameters)
        return function(spec, **rest)

    def check(**parameters: Any) -> None:
        spec, rest = split(parameters)
        fewest = 2 if "metrics" in own or function.__name__ == "phase" else 1  # a geometry compares samples
        _check(spec, fewest, **{**{k: p.default for k, p in own.items()}, **rest})

    described = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for name, f in fields.items()
    ]
    task.__signature__ = inspect.Signature([*described, *own.values()])  # type: ignore[attr-defined]
    task.check = check  # type: ignore[attr-defined]
    return TASKS.add(function.__name__, task)


def _check(spec: Spec, fewest: int, **given: Any) -> None:
    """What can be told before a cell runs."""
    from normscope.data.datasets import DATASETS
    from normscope.geometry.metrics import METRICS

    if given.get("layers", "last") not in _LAYERS:
        raise unknown("choice of layers", given["layers"], _LAYERS)
    for name in _names(given.get("metrics")) or ():
        METRICS[name]
    data = given.get("data")
    if data is not None and not set(":/\\.") & set(data):
        DATASETS[data.lower().replace("_", "-")]
    for name, least in (("batch", 1), ("n", fewest), ("steps", 0), ("seed", 0), ("average_from", 0)):
        if given.get(name) is not None:
            whole_number(name, given[name], least)
    finite_number("tol", given.get("tol", 0.5), above=0, below=1)
    finite_number("lr", given.get("lr", 1), above=0)
    if data is None and given.get("cosine") is not None and not -1 <= given["cosine"] <= 1:
        raise UsageError(f"cosine must lie in [-1, 1]; got {given['cosine']!r}.")
    if given.get("loss", "mse") not in _LOSSES:
        raise unknown("loss", given["loss"], _LOSSES)


@spec_task
def simulate(
    spec: Spec, *, n: int = 16, cosine: float | None = None, data: str | None = None, data_dir: str | None = None,
    metrics: str | None = None, layers: str = "last", average_from: int | None = None, eps: float = 0.0, seed: int = 0,
) -> list[Record]:  # fmt: skip
    """A random chain of finite width, exact in law (`normscope.simulate`).

    n: samples of the start; ``cosine``: all pairs have it; ``data``: a data set by name; default standard Gaussian
        samples of the spec's width. metrics: names joined by ``+``. layers: ``last`` or ``all``; ``average_from``: the
        mean over the layers from this one on, instead.
    """
    from normscope.theory.simulated import simulate as run

    names = _names(metrics)
    every = 1 if layers == "all" or average_from is not None else spec.depth
    found = run(spec, **_start(spec, n, cosine, data, data_dir, seed), seed=seed, metrics=names, every=every, eps=eps)
    return _chosen(found, spec.depth, layers, average_from)


@spec_task
def predict(
    spec: Spec, *, n: int = 16, cosine: float | None = None, data: str | None = None, data_dir: str | None = None,
    metrics: str | None = None, layers: str = "last", average_from: int | None = None, gradients: bool = True,
    seed: int = 0,
) -> list[Record]:  # fmt: skip
    """The infinitely wide chain (`normscope.predict`); parameters as of ``simulate``."""
    from normscope.theory.predicted import predict as run

    start = _start(spec, n, cosine, data, data_dir, seed)
    found = run(spec, **start, metrics=_names(metrics), gradients=gradients, seed=seed)
    return _chosen(found, spec.depth, layers, average_from)


@spec_task
def probe(
    spec: Spec, *, model: str | None = None, n: int = 64, data: str | None = None, data_dir: str | None = None,
    metrics: str | None = None, layers: str = "last", average_from: int | None = None, backward: bool = True,
    seed: int = 0,
) -> list[Record]:  # fmt: skip
    """A measured net in training mode (`normscope.probing.passes`), forwards and backwards.

    model: a model by name (``path/net.py:make``, ``timm:...``) in the place of the spec. ``data`` as of ``simulate``;
        other parameters too. ``last`` is the last hidden layer of a spec, the output of a named model.
    """
    from normscope.probing.passes import probe as run

    net, batch = _net(spec, model, n, data, data_dir, seed)
    found = run(net, batch.inputs, metrics=_names(metrics), mode="train", backward=backward, seed=seed)
    return _chosen(found, spec.depth if model is None else None, layers, average_from)


@spec_task
def sharpness(
    spec: Spec, *, model: str | None = None, n: int = 64, data: str | None = None, data_dir: str | None = None,
    loss: str = "squared_error", tol: float = 1e-3, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Largest eigenvalue of the batch's Fisher matrix, and the learning rate it allows (`normscope.sharpness`)."""
    from normscope.curvature import sharpness as run

    net, batch = _net(spec, model, n, data, data_dir, seed, readout=True)
    found = run(net, batch.inputs, None, loss, tol=tol, compare_modes=False, mode="train", seed=seed)
    share = math.nan if found.mean_gradient_share is None else found.mean_gradient_share
    return {
        "lambda_max": found.lambda_max,
        "max_stable_lr": found.max_stable_lr,
        "mean_eigenvalue": found.mean,
        "mean_gradient_share": share,
    }


@spec_task
def train(
    spec: Spec, *, model: str | None = None, n: int = 512, data: str | None = "digits", data_dir: str | None = None,
    loss: str = "cross_entropy", lr: float = 0.01, momentum: float = 0.0, steps: int = 100, batch: int | None = 32,
    seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    r"""A short run of SGD: ``initial_loss``, ``final_loss`` (training mode, all n samples), ``loss_ratio``, ``trained``
    (1 if the loss has halved), ``diverged`` (1 if it is above its first value), ``accuracy``. A run that
    `normscope.training` calls diverged, or that ends above ten times its first loss, has infinite loss.

    batch: samples a step; ``None``: all (gradient descent). loss: ``cross_entropy``, torch's ``mse``, or
    ``squared_error``, $\frac1{2n}\sum\|f-y\|^2$.
    data: a data set by name; ``None``: standard Gaussian samples and targets.
    """
    net, samples = _net(spec, model, n, data, data_dir, seed, readout=True)
    return _trained(net, samples, loss, lr, momentum, steps, batch, seed)


@spec_task
def phase(
    spec: Spec, *, n: int = 64, data: str | None = "digits", data_dir: str | None = None, lr: float = 0.02,
    steps: int = 60, batch: int | None = 32, curvature: bool = True, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """What a phase diagram shows of one net: rank, gap and cosine of the last hidden layer, the gradient's growth from
    the last hidden layer to the first (per layer), lambda_max, and the outcome of a short training run (`train`).
    """
    from normscope.curvature import sharpness as measure
    from normscope.probing.passes import probe as run

    net, samples = _net(spec, None, n, data, data_dir, seed, readout=True)
    found = run(net, samples.inputs, samples.targets, "cross_entropy", metrics=BRIEF, mode="train", seed=seed)
    numbers = {name: found.series(name)[spec.depth] for name in FEW}
    norms = found.series("gradient_norm", "gradient")
    first, last = norms.get(1, math.nan), norms.get(spec.depth, math.nan)
    if spec.depth > 1:
        numbers["gradient_growth"] = (first / last) ** (1 / (spec.depth - 1)) if last > 0 else math.nan
    if curvature:
        curve = measure(
            net, samples.inputs, None, "cross_entropy", probes=0, tol=1e-2, compare_modes=False, mode="train"
        )
        numbers |= {"lambda_max": curve.lambda_max, "max_stable_lr": curve.max_stable_lr}
    many, more = _net(spec, None, 512, data, data_dir, seed, readout=True)
    return numbers | _trained(many, more, "cross_entropy", lr, 0.0, steps, batch, seed)


def _trained(
    net: nn.Module, data: Batch, loss: str, lr: float, momentum: float, steps: int, batch: int | None, seed: int
) -> dict[str, float]:
    """The outcome of a few steps of SGD (`normscope.training`)."""
    import torch

    from normscope.call.losses import Loss
    from normscope.call.traceless import Traceless
    from normscope.training import Recipe, Samples, Training

    inputs, targets = data.inputs, data.targets
    _check_targets(loss, targets)
    size = min(batch or len(inputs), len(inputs))
    epochs = max(1, math.ceil(steps / (len(inputs) // size)))
    recipe = Recipe(epochs=epochs, batch=size, lr=lr, momentum=momentum, loss=loss, seed=seed)
    run, value = Training(net, Samples(inputs, targets), recipe), Loss.of(loss).value
    look = torch.no_grad()(lambda: net(inputs))
    initial = float(value(Traceless(net, mode="train", seed=seed).run(look), targets))
    run.advance(steps)
    outputs = Traceless(net, mode="train", seed=seed).run(look)
    final = float(value(outputs, targets))
    if run.diverged is not None or not final <= recipe.explosion * initial:
        final = math.inf
    found = {
        "initial_loss": initial,
        "final_loss": final,
        "loss_ratio": final / initial if initial > 0 else math.inf,
        "trained": float(final < TRAINED * initial),
        "diverged": float(final > initial),
    }
    if data.classes and targets is not None:
        found["accuracy"] = float((outputs.argmax(1) == targets).double().mean())
    return found


def _check_targets(loss: str, targets: Tensor | None) -> None:
    if targets is None:
        raise UsageError(
            "Training needs targets; the data has none. Choose another, or data = None for random targets."
        )
    if loss == "cross_entropy" and targets.is_floating_point():
        raise UsageError("cross_entropy needs data with classes; these have real targets. Use loss = 'mse'.")


def _net(
    spec: Spec, model: str | None, n: int, data: str | None, data_dir: str | None, seed: int, readout: bool = False
) -> tuple[nn.Module, Batch]:
    """The net of a cell and its batch. A readout of its own where the data has classes, or one is needed."""
    import torch

    from normscope.data.datasets import Batch, load
    from normscope.data.models import load_model, synthetic
    from normscope.nn import build

    if data is None:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, spec.width, generator=generator)
        batch = Batch(x, torch.randn(n, spec.outputs or 1, generator=generator), "gaussian", None)
    elif data.partition(":")[0] in ("random", "tokens"):
        batch = synthetic(data, n=n, seed=seed)
    else:
        batch = load(data, data_dir, n=n, seed=seed)
    if model is not None:
        return load_model(model, batch, seed=seed), batch
    if spec.outputs is None and (batch.classes or readout):
        spec = dataclasses.replace(spec, outputs=batch.classes or 1)
    return build(spec, tuple(batch.inputs.shape[1:]), seed=seed ^ _WEIGHTS), batch


def _start(
    spec: Spec, n: int, cosine: float | None, data: str | None, data_dir: str | None, seed: int
) -> dict[str, Any]:
    import numpy as np

    if data is not None:
        from normscope.data.datasets import load

        return {"inputs": load(data, data_dir, n=n, seed=seed, flatten=True).inputs}
    if cosine is not None:
        if not -1 / (n - 1) <= cosine <= 1:
            raise UsageError(f"{n} samples can share a cosine from {-1 / (n - 1):.3g} to 1; got {cosine}.")
        return {"gram": (1 - cosine) * np.eye(n) + cosine}
    return {"inputs": np.random.default_rng([seed, 1]).standard_normal((n, min(spec.width, 4096)))}


def _names(metrics: str | None) -> tuple[str, ...] | None:
    return None if metrics is None else tuple(metrics.split("+"))


def _chosen(found: Profile, last: int | None, layers: str, average_from: int | None) -> list[Record]:
    """The records of the last layer, of all, or the mean over the layers from one on (stderr: NaN, they correlate)."""
    if average_from is None:
        end = max((r.layer for r in found.records), default=0) if last is None else last
        return [r._replace(seed=0) for r in found.records if layers == "all" or r.layer == end]
    groups: dict[tuple[str, str], list[Record]] = {}
    for r in found.records:
        if r.layer >= average_from and r.call == 0:
            groups.setdefault((r.signal, r.metric), []).append(r)
    return [_mean(rows) for rows in groups.values()]


def _mean(rows: Sequence[Record]) -> Record:
    value = (
        math.fsum(r.value for r in rows) / len(rows) if all(map(math.isfinite, (r.value for r in rows))) else math.nan
    )
    return rows[-1]._replace(value=value, seed=0, stderr=0.0 if len(rows) == 1 else math.nan, name="", kind="")
