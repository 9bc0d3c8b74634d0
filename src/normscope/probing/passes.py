"""One forward and one backward pass, every layer measured, nothing left behind."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import first_tensor, tensors
from normscope.call.attention import Attention
from normscope.call.functional import Functions, refuse_untrained
from normscope.call.graph import NoGradient, refuse_reentrant
from normscope.call.losses import LossLike
from normscope.call.step import Step
from normscope.call.taps import Tap, find_taps, normalizers, observed, untrained_statistics
from normscope.call.traceless import alone
from normscope.core.errors import UsageError, flag
from normscope.core.memory import LEAST, check_copies, check_room
from normscope.core.records import Profile, Record
from normscope.geometry.attention import attention_entropy, head_rank
from normscope.geometry.metrics import Metric
from normscope.geometry.shapes import configuration
from normscope.geometry.statistic import Statistic
from normscope.probing.drift import drift_hooks
from normscope.probing.recorder import Recorder, Seen, chosen, frobenius, numbers, of_matrix, of_weights


@dataclass
class Collection:
    """What the passes brought: numbers in the order of execution, parameter gradients, drift of running statistics.

    hidden: the statistic of the last hidden layer, for the shape of the batch; there if anything was seen.
    """

    seen: list[Seen] = field(default_factory=list)
    hidden: Statistic = field(init=False, repr=False)
    weights: dict[str, tuple[float, float]] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)
    loss: float = math.nan
    loss_name: str = "none"
    without_batch: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    functional_norms: int = 0
    #: Name of a layer -> the part it plays around a residual stream; of each attention (layer, its name, what is told).
    parts: dict[str, str] = field(default_factory=dict)
    attention: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)


@alone
def probe(
    model: nn.Module | Step,
    inputs: Any = None,
    targets: Any = None,
    loss: LossLike = None,
    layers: str | Sequence[str] | None = None,
    metrics: Iterable[str] | None = None,
    *,
    data: Any = None,
    step: Callable[..., Any] | None = None,
    mode: str | None = None,
    samples: int | None = None,
    tokens: bool = False,
    backward: bool | None = None,
    seed: int = 0,
) -> Profile:
    """Measure every layer of a model on one batch.

    model, inputs, targets, loss, data, step, samples: a `Step`, or what one is made of (``docs/inputs.md``); of
        ``data`` the first batch. With neither targets nor loss: the model's own loss if it returns one.
    layers: glob patterns of module paths; default: all layers (`normscope.call.taps.find_taps`), and what runs by
        functions (``F.relu``, products with the model's own parameters).
    metrics: names; default all but those of weights. See ``normscope.geometry.metrics.METRICS``.
    mode: ``"train"`` (batch norm uses the batch), ``"eval"``, or ``None``: as each module is set.
    tokens: sequence activations (n, t, d) count as n*t samples; default: n samples of t*d features.
    backward: whether to run the backward pass; default: if there are targets, a loss, or the model returns its own.
        With none of these, ``backward=True`` takes a random cotangent on the outputs.
    seed: of the random streams inside (dropout); the caller's streams are untouched.

    Returns a `Profile`: per (layer, call) the metrics of the output (signal ``activation``), of the loss gradient
    with respect to it (``gradient``), of its weight matrix where they are asked for by name (``weight``), and the norms
    of the loss gradient with respect to the layer's parameters
    (``weight``: ``gradient_norm``, and ``relative_gradient`` = that over the norm of the parameters). Layer 0 is the
    input. ``gradient_growth`` is the ratio of a layer's gradient norm to that of the next one that ran, above 1 where
    gradients grow on their way back (norms: its square is the factor of the papers). ``gradient_collinearity`` is there
    for layers with weights only. Values are exact to float64 rounding of what the model computed, except that
    eigenvalues of wide float32 layers (d > 4 n) carry an error up to 1e-6 of the largest where all are above 1e-3 of
    it.

    The model is left as it was, bit for bit (`normscope.call.traceless`), also when its forward raises: the user's own
    exception passes through with a note, one of torch's layers becomes a ``UsageError`` that names the layer.
    Raises ``UsageError`` for fewer than two samples, or eval mode over batch norm that has never seen data unless
    ``mode="eval"`` asks for it.
    """
    start = time.perf_counter()
    picked, tokens = chosen(metrics), flag("tokens", tokens)
    backward = None if backward is None else flag("backward", backward)
    at = Step.of(model, inputs, targets, loss, mode=mode, seed=seed, data=data, step=step, samples=samples)
    root, n, mode = at.root, at.rows.n, at.mode
    if n < 2:
        raise UsageError(f"A probe compares samples, so it needs a batch of at least 2; got {n}.")
    _refuse_untrained(root, mode)
    taps = find_taps(root, layers)
    found = collect(
        at, taps, picked, backward=backward, tokens=tokens, functions=layers is None, attention=metrics is None
    )
    notes = [*at.notes, *found.notes, *_notes(at, taps, found, layers)]
    if not found.seen or all(s.layer == 0 for s in found.seen):
        raise UsageError(
            "No observed layer ran in the forward pass, so there is nothing to report. Layers inside a scripted "
            "function, or under other names than those asked for, are not seen."
        )
    parameters = dict(root.named_parameters())
    whole = {m.name for m in picked} >= {m.name for m in chosen(None)}
    records = [r for seen in found.seen for r in _records(seen, picked, found, parameters, whole)]
    records += _attention(found) if metrics is None else []
    if metrics is None and found.loss_name != "none":
        records += _growth(records)
    first = next(iter(parameters.values()), None)
    norms = normalizers(root)
    modes = {m.training for m in root.modules()} if mode is None else {mode == "train"}
    facts = {
        "mode": "mixed" if len(modes) > 1 else ("train" if modes.pop() else "eval"),
        "batch_size": n,
        "dtype": str(first.dtype).removeprefix("torch.") if first is not None else "none",
        "device": str(first.device) if first is not None else "cpu",
        "loss": found.loss_name,
        "loss_value": found.loss,
        "parameters": sum(p.numel() for p in parameters.values()),
        "layers": len({s.layer for s in found.seen if s.layer}),
        "batch_norms": len(norms) + found.functional_norms,
        "untrained_batch_norms": sum(untrained_statistics(m) for _, m in norms),
        "shape": _shape(found.hidden),
        "odd_samples": list(configuration(found.hidden).odds),
        "parts": {s.layer: found.parts[s.tap.name] for s in found.seen if s.tap.name in found.parts},
        "attention": [{"layer": layer, "name": name, **told} for layer, name, told in found.attention],
        "seed": at.seed,
        "seconds": time.perf_counter() - start,
        "torch": torch.__version__,
        "notes": notes,
    }
    return Profile(tuple(records), {}, facts)


def _refuse_untrained(root: nn.Module, mode: str | None) -> None:
    if mode is None and any(not m.training and untrained_statistics(m) for _, m in normalizers(root)):
        raise UsageError(
            "The model is in eval mode and its batch norms have never seen data (running mean 0, variance 1), so they "
            "would do nothing at all. Pass mode='train' to measure the network that trains, or mode='eval' to insist."
        )


def _notes(at: Step, taps: list[Tap], found: Collection, layers: Any) -> list[str]:
    """What a reader must know about what was measured."""
    notes = [
        *[
            f"parameter {n} was changed in place by the forward pass itself; it was put back"
            for n in at.trace.rewritten
        ],
        *[
            f"parameter {n} was changed in place by the forward pass itself; that was not undone"
            for n in at.trace.changed
        ],
    ]
    frozen = [name for name, m in normalizers(at.root) if not m.training and at.mode == "train" and at.root.training]
    if frozen:
        notes.append(
            f"in eval mode inside a model in training mode, but measured in training mode ({len(frozen)} norms, the "
            f"first is {frozen[0]}): pass mode=None to measure each module as it is set"
        )
    measured = {s.tap.name for s in found.seen}  # in another call
    if names := [n for n in dict.fromkeys(found.without_batch) if n not in measured]:
        notes.append(f"not measured, their outputs have no axis of {at.rows.n} samples: {', '.join(names[:8])}")
    if found.split:
        names = list(dict.fromkeys(found.split))
        notes.append(
            f"outputs with a multiple of {at.rows.n} rows were split, samples outermost: {', '.join(names[:8])}"
        )
    silent = [t.name for t in taps if not t.calls]
    if silent and layers is not None:
        notes.append(f"never ran in this forward pass: {', '.join(silent[:8])}")
    if hidden := [name for name, m in at.root.named_modules() if isinstance(m, nn.RNNBase)]:
        notes.append(f"not looked at: the steps inside {', '.join(hidden[:8])} (their outputs are)")
    return notes


def collect(
    at: Step,
    taps: list[Tap],
    metrics: Iterable[Metric],
    *,
    backward: bool | None,
    tokens: bool = False,
    functions: bool = False,
    attention: bool = False,
) -> Collection:
    """The passes themselves: one forward, and one backward if asked for; the metrics of every tap."""
    out = Collection()
    samples, root = at.rows, at.root
    own = at.step is not None or at.targets is not None or bool(at.criterion.kind)
    kept: list[int] = []  # bytes of outputs since memory was last looked at
    recording = True  # a checkpointed segment runs again inside the backward pass

    def rows(tap: Tap, x: Tensor) -> Tensor | None:
        return samples.of(x, tap.module, tokens=tokens)

    def sequences(tap: Tap, x: Tensor) -> Tensor | None:
        return samples.sequences(x, tap.module)

    recorder = Recorder(rows, metrics, gradients=backward is not False, last=2, sequences=sequences)
    out.seen = recorder.seen

    def work() -> None:
        nonlocal recording

        def keep(seen: Seen, x: Tensor) -> None:
            if backward is not False and x.requires_grad:
                x.register_hook(lambda grad: recorder.look_back(seen, grad))

        def watch(tap: Tap, call: int, x: Tensor) -> None:
            if not recording:
                return
            _room_behind(tap, x, kept)
            seen = recorder.look(tap, tap.layer, call, x)
            if seen is None:
                out.without_batch.append(tap.name)
                return
            if samples.split(x):
                out.split.append(tap.name)
            keep(seen, x)

        def attended(tap: Tap, attention: Attention) -> None:
            if recording:
                out.attention.append((tap.layer, tap.name, _heads(attention)))

        args, kwargs, leaves = at.arguments(grad=backward is not False)
        source = Tap("", nn.Identity(), weighted=True)
        entry = next((x for x in leaves if rows(source, x) is not None), None)
        entry = entry if entry is not None else first_tensor(list(tensors((args, kwargs))))
        if entry is not None:
            _room_behind(source, entry, kept)
        first = None if entry is None else recorder.look(source, 0, 0, entry)
        drift = list(drift_hooks(root, out.drift))
        with torch.set_grad_enabled(backward is not False):
            try:
                with observed(taps, watch, root if functions else None) as mode:
                    if mode is not None:
                        mode.untrained = refuse_untrained if at.mode is None else None
                        if mode.streams is not None and attention:
                            mode.streams.attended = attended
                    whole = at.whole(args, kwargs)
                    recording = False
                    if mode is not None:
                        _functional_norms(mode, root, out)
                        out.parts = mode.streams.parts() if mode.streams is not None else {}
            finally:
                for handle in drift:
                    handle.remove()
            if backward is False or (backward is None and not own and at.settled(whole).kind == "random cotangent"):
                return
            _differentiate(at, whole, leaves, entry, first, recorder, out)

    parts = list(root.parameters())
    moved = [p for p in parts if p.requires_grad and backward is not False]
    check_copies([*parts, *moved], 1, "a copy, and gradients" if moved else "a copy")
    at.run(work)
    recorder.finish()
    if recorder.latest:
        out.hidden = recorder.latest[0 if len(out.seen) > 2 else -1]
    return out


def _room_behind(tap: Tap, x: Tensor, kept: list[int]) -> None:
    """``UsageError`` where the layers behind this one would fill the memory: an output like its own, a gradient, and
    what measures both, in float64.
    """
    kept.append(x.numel() * x.element_size() if x.device.type == "cpu" else 0)
    if sum(kept) > LEAST:
        behind = f"What the layers behind {tap.name or 'the input'} put out, and its measurement,"
        check_room(max(4 * kept[-1], LEAST + 1), behind, "Take fewer samples: -n, rows of the inputs.")
        kept.clear()


def _heads(attention: Attention) -> dict[str, Any]:
    """Entropy and rank of each head of one attention, each with its null value."""
    with torch.no_grad(), torch._C.DisableTorchFunction():
        entropy, uniform = attention_entropy(attention.weights, attention.allowed)
        told: dict[str, Any] = {"entropy": entropy.tolist(), "entropy_null": uniform}
        if attention.heads is not None:
            rank, null = head_rank(attention.heads)
            told |= {"rank": rank.tolist(), "rank_null": null}
    return told


def _functional_norms(mode: Functions, root: nn.Module, out: Collection) -> None:
    """Batch norms that ran by function count, and their drift is that of the module around them."""
    names = {m: n for n, m in root.named_modules()}
    out.functional_norms = len(mode.norms)
    out.drift |= {names[m]: value for m, value in mode.drift.items() if m in names}


def _differentiate(
    at: Step, whole: Any, leaves: list[Tensor], entry: Tensor | None, first: Seen | None, recorder: Recorder,
    out: Collection,
) -> None:  # fmt: skip
    """The backward pass, through ``autograd.grad``: nobody's ``.grad`` is touched."""
    targets = at.own_targets()
    loss = at.settled(whole)
    value = loss.value(whole, targets, at.seed)
    out.notes += loss.notes(whole, targets)
    named = [(n, p) for n, p in at.root.named_parameters() if p.requires_grad]
    wanted = [p for _, p in named] + leaves
    if not value.requires_grad or not wanted:
        raise NoGradient("The loss does not depend on any parameter or floating input, so it has no gradient.")
    refuse_reentrant(value)
    grads = torch.autograd.grad(value, wanted, allow_unused=True)
    out.loss, out.loss_name = value.item(), loss.name
    out.weights = {n: (frobenius(g), frobenius(p)) for (n, p), g in zip(named, grads, strict=False) if g is not None}
    for leaf, grad in zip(leaves, grads[len(named) :], strict=True):
        if grad is not None and leaf is entry and first is not None:
            recorder.look_back(first, grad)


def _records(
    seen: Seen, metrics: list[Metric], found: Collection, parameters: dict[str, nn.Parameter], whole: bool
) -> Iterable[Record]:
    tap = seen.tap
    kind = tap.kind if seen.layer else "input"
    for signal, name, value in numbers(seen, metrics):
        yield Record(seen.layer, name, value, signal, tap.name, seen.call, kind)
    here = Record(layer=seen.layer, metric="", value=0.0, name=tap.name, call=seen.call, kind=kind)
    if seen.layer and seen.call == 0:
        own = tap.parameters or [f"{tap.name}.{n}" if tap.name else n for n, _ in tap.module.named_parameters()]
        both = of_weights([found.weights[n] for n in own if n in found.weights])
        if both is not None:
            weight = here._replace(signal="weight")
            if any(m.name == "gradient_norm" for m in metrics):
                yield weight._replace(metric="gradient_norm", value=both[0])
            if whole:
                yield weight._replace(metric="relative_gradient", value=both[1])
        held = [parameters[n] for n in own if n in parameters] if any(m.signal == "weight" for m in metrics) else []
        for name, value in of_matrix(held, metrics).items():
            yield here._replace(signal="weight", metric=name, value=value)
        for name, value in found.drift.items():
            inside = name.startswith(f"{tap.name}.") and getattr(tap.module, "normscope_layer", False)
            if name == tap.name or inside:
                yield here._replace(metric="running_statistics_distance", value=value)


def _attention(found: Collection) -> Iterable[Record]:
    """Means over heads, and their null values, at the layer that the heads went to."""
    kinds = {s.layer: s.tap.kind for s in found.seen}
    for (layer, name), group in groupby(found.attention, key=lambda one: one[:2]):
        for call, (_, _, told) in enumerate(group):
            here = Record(layer, "", 0.0, name=name, call=call, kind=kinds.get(layer, ""))
            for what in ("entropy", "rank"):
                if what in told:
                    metric = "attention_entropy" if what == "entropy" else "head_rank"
                    yield here._replace(metric=metric, value=math.fsum(told[what]) / len(told[what]))
                    yield here._replace(metric=f"{metric}_null", value=told[f"{what}_null"])


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
        "odd": f"one cluster and an odd point, sample {c.index}"
        if len(c.odds) < 2
        else f"one cluster and {len(c.odds)} odd points",
        "ray": f"one ray (mean cosine {c.cosine:.3f})",
        "line": "one line, with both signs",
        "clusters": f"two clusters, {c.clusters} samples against {hidden.samples - c.clusters}",
        "heavy": f"some heavy samples over a bulk (mean cosine {c.cosine:.2f})",
        "equiangular": f"equiangular (mean cosine {c.cosine:.2f})",
    }
    if c.label == "equiangular" and abs(c.cosine) <= 0.1:
        return f"orthogonal (mean cosine {c.cosine:.2f})"
    return words.get(c.label, f"no simple shape (mean cosine {c.cosine:.2f})")
