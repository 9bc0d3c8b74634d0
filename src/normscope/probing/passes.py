"""One forward and one backward pass, every layer measured, nothing left behind."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.losses import Loss, loss_name, loss_value
from normscope.call.taps import (
    Tap,
    as_call,
    as_rows,
    batch_size,
    find_taps,
    first_tensor,
    has_samples,
    no_trace,
    normalizers,
    observed,
    own_copy,
    untrained_statistics,
    unwrap,
)
from normscope.core.errors import UsageError
from normscope.core.records import Profile, Record
from normscope.geometry import metrics as _metrics
from normscope.geometry.metrics import METRICS, unit_axis
from normscope.geometry.shapes import configuration
from normscope.geometry.statistic import Statistic

#: Ends of the activations that have them.
_BOUNDS: dict[str, tuple[float, float]] = {
    "Tanh": (-1, 1), "Sigmoid": (0, 1), "Hardtanh": (-1, 1), "Hardsigmoid": (0, 1), "Softsign": (-1, 1), "Erf": (-1, 1),
}  # fmt: skip
_ACTIVATIONS = {
    "ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Softplus", "Hardswish", "Abs",
    "NewGELUActivation", "GELUActivation", "Sin", *_BOUNDS,
}  # fmt: skip


@dataclass
class _Seen:
    """What was collected at one call of one tap."""

    tap: Tap
    call: int
    activation: Statistic
    gradient: Statistic | None = None


@dataclass
class Collection:
    """What the passes brought: statistics in the order of execution, parameter gradients, drift of running statistics."""

    seen: list[_Seen] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)
    loss: float = math.nan
    without_batch: list[str] = field(default_factory=list)


def probe(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    loss: Loss = None,
    layers: str | Sequence[str] | None = None,
    metrics: Iterable[str] | None = None,
    *,
    mode: str | None = None,
    tokens: bool = False,
    backward: bool | None = None,
    seed: int = 0,
) -> Profile:
    """Measure every layer of a model on one batch.

    inputs: what ``forward`` takes: a tensor (n, ...), a tuple of arguments, or a dict of keyword arguments.
    targets, loss: ``"mse"``, ``"cross_entropy"`` or a callable (outputs, targets) -> scalar; with targets alone the
        loss is cross-entropy for integers, mse for floats.
    layers: glob patterns of module paths; default: all layers (`normscope.call.taps.find_taps`).
    metrics: names; default all. See ``normscope.geometry.metrics.METRICS``.
    mode: ``"train"`` (batch norm uses the batch), ``"eval"``, or ``None``: as each module is set.
    tokens: sequence activations (n, t, d) count as n*t samples; default: n samples of t*d features.
    backward: whether to run the backward pass; default: if there are targets or a loss. With neither,
        ``backward=True`` takes a random cotangent on the outputs.
    seed: of the random streams inside (dropout); the caller's streams are untouched.

    Returns a `Profile`: per (layer, call) the metrics of the output (signal ``activation``), of the loss gradient
    with respect to it (``gradient``), and the norms of the loss gradient with respect to the layer's parameters
    (``weight``: ``gradient_norm``, and ``relative_gradient`` = that over the norm of the parameters). Layer 0 is the
    input. ``gradient_growth`` is the ratio of a layer's gradient norm to that of the next one that ran, above 1 where
    gradients grow on their way back (norms: its square is the factor of the papers). ``gradient_collinearity`` is there
    for layers with weights only. Values are exact to float64 rounding of what the model computed, except that
    eigenvalues of wide float32 layers (d > 4 n) carry an error up to 1e-6 of the largest where all are above 1e-3 of it.

    The model is left as it was, bit for bit: buffers, gradients, flags, hooks and random streams, also when its
    forward raises (the exception passes through with a note that names the layer).
    Raises ``UsageError`` for fewer than two samples, or eval mode over batch norm that has never seen data unless
    ``mode="eval"`` asks for it.
    """
    start = time.perf_counter()
    metrics = [metrics] if isinstance(metrics, str) else metrics
    chosen = list(METRICS.values()) if metrics is None else [METRICS[name] for name in metrics]
    if not isinstance(model, nn.Module):
        raise UsageError(f"model must be an nn.Module; got {getattr(model, '__name__', type(model).__name__)}.")
    model, notes = unwrap(model)
    samples = batch_size(inputs)
    if samples < 2:
        raise UsageError(f"A probe compares samples, so it needs a batch of at least 2; got {samples}.")
    if mode not in (None, "train", "eval"):
        raise UsageError(f"mode must be 'train', 'eval' or None; got {mode!r}.")
    _refuse_lazy(model)
    if mode is None and any(not m.training and untrained_statistics(m) for _, m in normalizers(model)):
        raise UsageError(
            "The model is in eval mode and its batch norms have never seen data (running mean 0, variance 1), so they "
            "would do nothing at all. Pass mode='train' to measure the network that trains, or mode='eval' to insist."
        )
    backward = (targets is not None or loss is not None) if backward is None else backward
    name = loss_name(loss, targets) if backward else "none"
    frozen = [name for name, m in normalizers(model) if not m.training] if mode == "train" and model.training else []
    if frozen:
        notes.append(
            f"in eval mode inside a model in training mode, but measured in training mode ({len(frozen)} norms, the first is "
            f"{frozen[0]}): pass mode=None to measure each module as it is set"
        )
    taps = find_taps(model, layers)
    versions = {n: p._version for n, p in model.named_parameters()}
    spectrum = any(m.signal == "activation" for m in chosen)
    collected = collect(
        model, inputs, targets, loss, taps, mode, backward=backward, tokens=tokens, seed=seed, spectrum=spectrum
    )
    notes += [
        f"parameter {n} was changed in place by the forward pass itself; that was not undone"
        for n, p in model.named_parameters()
        if p._version != versions[n]
    ]
    if collected.without_batch:
        names = list(dict.fromkeys(collected.without_batch))
        notes.append(f"not measured, their outputs have no axis of {samples} samples: {', '.join(names[:8])}")
    silent = [t.name for t in taps if not t.calls]
    if not collected.seen or all(s.tap.layer == 0 for s in collected.seen):
        raise UsageError("No observed layer ran in the forward pass, so there is nothing to report.")
    if silent and layers is not None:
        notes.append(f"never ran in this forward pass: {', '.join(silent[:8])}")
    records = [r for seen in collected.seen for r in _records(seen, chosen, collected)]
    if metrics is None and backward:
        records += _growth(records)
    first = next((p for p in model.parameters()), None)
    modes = {m.training for m in model.modules()} if mode is None else {mode == "train"}
    facts = {
        "mode": "mixed" if len(modes) > 1 else ("train" if modes.pop() else "eval"),
        "batch_size": samples,
        "dtype": str(first.dtype).removeprefix("torch.") if first is not None else "none",
        "device": str(first.device) if first is not None else "cpu",
        "loss": name,
        "loss_value": collected.loss,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": sum(t.calls > 0 for t in taps),
        "batch_norms": len(normalizers(model)),
        "untrained_batch_norms": sum(untrained_statistics(m) for _, m in normalizers(model)),
        "shape": _shape(collected.seen[-2 if len(collected.seen) > 2 else -1].activation),
        "seed": seed,
        "seconds": time.perf_counter() - start,
        "torch": torch.__version__,
        "notes": notes,
    }
    return Profile(tuple(records), {}, facts)


def collect(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    loss: Loss,
    taps: list[Tap],
    mode: str | None,
    *,
    backward: bool,
    tokens: bool = False,
    seed: int = 0,
    spectrum: bool = True,
) -> Collection:
    """The passes themselves: one forward, and one backward if asked for; the statistics of every tap."""
    out = Collection()
    recording = True  # a checkpointed segment runs again inside the backward pass

    samples = batch_size(inputs)

    def rows(x: Tensor) -> Tensor:
        return as_rows(x, samples, tokens=tokens)

    def watch(tap: Tap, call: int, x: Tensor) -> None:
        if not recording:
            return
        if not has_samples(x, samples):
            out.without_batch.append(tap.name)
            return
        seen = _Seen(tap, call, output_statistic(tap, x, rows(x), spectrum=spectrum))
        out.seen.append(seen)
        if backward and x.requires_grad:
            angles = has_angles(tap)

            def keep(grad: Tensor) -> None:
                seen.gradient = Statistic.of(rows(grad) if angles else grad.reshape(1, -1), spectrum=False)

            x.register_hook(keep)

    with no_trace(model, mode=mode, seed=seed), torch.set_grad_enabled(backward):
        args, kwargs, leaves = as_call(inputs, grad=backward)
        source = Tap("", nn.Identity())
        entry = leaves[0] if leaves else first_tensor([*args, *kwargs.values()])
        if entry is not None and has_samples(entry, samples):
            out.seen.append(_Seen(source, 0, Statistic.of(rows(entry), spectrum=spectrum)))
        running = list(_drift_hooks(model, out.drift))
        try:
            with observed(taps, watch):
                try:
                    whole = model(*args, **kwargs)
                except Exception as error:
                    last = out.seen[-1].tap.name if out.seen and out.seen[-1].tap.name else None
                    after = f"after layer {last!r}" if last else "before the first layer returned"
                    error.add_note(f"normscope: the model's forward raised this, {after}.")
                    raise
                recording = False
        finally:
            for handle in running:
                handle.remove()
        if backward:
            _differentiate(model, whole, own_copy(targets), loss, leaves, out, source, rows)
    return out


def output_statistic(tap: Tap, x: Tensor, rows: Tensor, *, spectrum: bool) -> Statistic:
    """The statistic of ``rows`` of the output ``x`` of a tap; dead and saturated units where it is an activation."""
    inner = tap.module.activation if getattr(tap.module, "normscope_layer", False) else tap.module
    kind = type(inner).__name__
    units = unit_axis(x) if kind in _ACTIVATIONS else None
    return Statistic.of(rows, spectrum=spectrum, units=units, bounds=_BOUNDS.get(kind))


def has_angles(tap: Tap) -> bool:
    """Whether angles between gradients are measured: where there are weights to be moved; elsewhere the norm alone."""
    return any(p.dim() > 1 for p in tap.module.parameters())


def _differentiate(
    model: nn.Module,
    whole: Any,
    targets: Any,
    loss: Loss,
    leaves: list[Tensor],
    out: Collection,
    source: Tap,
    rows: Callable[[Tensor], Tensor],
) -> None:
    """The backward pass, through ``autograd.grad``: nobody's ``.grad`` is touched."""
    output = first_tensor(whole)
    if output is None:
        raise UsageError(f"A loss needs an output tensor; the model returned {type(whole).__name__}.")
    value = loss_value(loss, output, whole, targets)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    wanted = [p for _, p in named] + leaves
    if not value.requires_grad or not wanted:
        raise UsageError("The loss does not depend on any parameter or floating input, so it has no gradient.")
    try:
        grads = torch.autograd.grad(value, wanted, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise UsageError(
            "Reentrant checkpointing allows no look at single gradients. Switch checkpointing off to probe, or call "
            "checkpoint with use_reentrant=False (Hugging Face: gradient_checkpointing_kwargs)."
        ) from error
    out.loss = value.item()
    out.weights = {n: g for (n, _), g in zip(named, grads, strict=False) if g is not None}
    for leaf, grad in zip(leaves, grads[len(named) :], strict=True):
        if grad is not None and leaf is leaves[0] and out.seen and out.seen[0].tap is source:
            out.seen[0].gradient = Statistic.of(rows(grad), spectrum=False)


def _drift_hooks(model: nn.Module, drift: dict[str, float]) -> Iterable[Any]:
    r"""Hooks on normalizers that have seen data: how far the batch's statistics are from the running ones.

    Mean over channels of KL(N(batch) || N(running)) = ((mu_B - mu_R)^2 + v_B)/v_R - 1 - log(v_B / v_R), halved, nat.
    In training mode the batch's statistics are read off the step that the running ones take (no pass over the data).
    """
    for name, module in normalizers(model):
        if not untrained_statistics(module):
            old = (module.running_mean.clone(), module.running_var.clone())  # type: ignore[operator]
            yield module.register_forward_hook(partial(_note_drift, drift, name, old))


def _note_drift(
    drift: dict[str, float], name: str, old: tuple[Tensor, Tensor], module: nn.Module, args: Any, _output: Any
) -> None:
    mean, var = (b.double() for b in old)
    if name in drift:
        return
    tracked, momentum = getattr(module, "num_batches_tracked", None), getattr(module, "momentum", None)
    weight = momentum if momentum is not None or not isinstance(tracked, Tensor) else 1 / max(int(tracked), 1)
    if module.training and weight:  # new = (1 - weight) old + weight batch
        m = mean + (module.running_mean.double() - mean) / weight  # type: ignore[operator]
        v = var + (module.running_var.double() - var) / weight  # type: ignore[operator]
    else:
        x = args[0].detach() if args and isinstance(args[0], Tensor) else None
        if x is None or x.dim() < 2 or x.shape[1] != len(mean):
            return
        v, m = (t.double() for t in torch.var_mean(x, [i for i in range(x.dim()) if i != 1], correction=0))
    eps = getattr(module, "eps", 0.0)
    v, var = v.clamp_min(0) + eps, var + eps
    kl = ((m - mean).square() + v) / var - 1 - (v / var).log()
    drift[name] = kl.mean().item() / 2


def _records(seen: _Seen, chosen: list[_metrics.Metric], collected: Collection) -> Iterable[Record]:
    tap = seen.tap
    here = Record(
        layer=tap.layer, metric="", value=0.0, name=tap.name, call=seen.call, kind=tap.kind if tap.layer else "input"
    )
    for metric in chosen:
        for signal, statistic in (("activation", seen.activation), ("gradient", seen.gradient)):
            if metric.signal == signal and statistic is not None:
                value = metric(statistic) if statistic.finite else math.nan
                if math.isnan(value) and metric.name in ("dead_units", "saturated_units", "gradient_collinearity"):
                    continue  # was not looked for: not an activation, not a bounded one, no weights
                yield here._replace(metric=metric.name, value=value, signal=signal)
    wanted = {m.name for m in chosen}
    if tap.layer and seen.call == 0:
        own = {f"{tap.name}.{n}" if tap.name else n: p for n, p in tap.module.named_parameters()}
        grads = [collected.weights[n].double().norm().item() for n in own if n in collected.weights]
        if grads:
            norm = math.hypot(*grads)
            size = math.hypot(*[p.detach().double().norm().item() for n, p in own.items() if n in collected.weights])
            weight = here._replace(signal="weight")
            if "gradient_norm" in wanted:
                yield weight._replace(metric="gradient_norm", value=norm)
            if len(wanted) == len(METRICS):
                yield weight._replace(metric="relative_gradient", value=norm / size if size else math.inf)
        for name, value in collected.drift.items():
            if name == tap.name or (name.startswith(f"{tap.name}.") and getattr(tap.module, "normscope_layer", False)):
                yield here._replace(metric="running_statistics_distance", value=value)


def _growth(records: list[Record]) -> Iterable[Record]:
    norms = [r for r in records if r.metric == "gradient_norm" and r.signal == "gradient"]
    for here, after in pairwise(norms):
        if after.value:
            yield here._replace(metric="gradient_growth", value=here.value / after.value)


def _shape(hidden: Statistic) -> str:
    """The batch at the last hidden layer, in words."""
    c = configuration(hidden)
    words = {
        "point": "all samples are one point",
        "odd": f"one cluster and an odd point, sample {c.index}",
        "ray": f"one ray (mean cosine {c.cosine:.3f})",
        "line": "one line, with both signs",
        "clusters": f"two clusters, {c.clusters} samples against {hidden.samples - c.clusters}",
        "heavy": f"some heavy samples over a bulk (mean cosine {c.cosine:.2f})",
        "equiangular": f"equiangular (mean cosine {c.cosine:.2f})",
    }
    if c.label == "equiangular" and abs(c.cosine) <= 0.1:
        return f"orthogonal (mean cosine {c.cosine:.2f})"
    return words.get(c.label, f"no simple shape (mean cosine {c.cosine:.2f})")


def _refuse_lazy(model: nn.Module) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise UsageError(f"{name!r} has no shape yet (a lazy module): run one forward pass first.")
