"""One measured step of a tracker: hooks on the layers of one forward pass, and on the backward pass through it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from normscope.call.arguments import first_tensor, length
from normscope.call.samples import Samples, read_samples
from normscope.call.step import Step
from normscope.call.taps import Tap, observed
from normscope.core.errors import UsageError
from normscope.geometry.metrics import METRICS, Metric, metric_names
from normscope.probing.recorder import (
    OF_WEIGHTS,
    RELATIVE_GRADIENT,
    RELATIVE_UPDATE,
    WEIGHT_NORM,
    Recorder,
    Seen,
    frobenius,
    numbers,
    of_weights,
)

if TYPE_CHECKING:
    import polars

#: Entries of a parameter, evenly spaced, whose moves stand for those of all: 16 kB each (chosen by us).
ENTRIES = 4096


class Key(NamedTuple):
    """The coordinates of a number within its step."""

    samples: int
    layer: int
    name: str
    call: int
    kind: str
    signal: str
    metric: str


def key_schema() -> dict[str, Any]:
    """Column -> polars type of the coordinates."""
    import polars as pl

    return {name: pl.Int64 if name in ("samples", "layer", "call") else pl.String for name in Key._fields}


@dataclass(frozen=True)
class Plan:
    """What is measured: metrics of outputs and of gradients."""

    activation: tuple[Metric, ...]
    gradient: tuple[Metric, ...]
    weights: frozenset[str]

    @classmethod
    def of(cls, metrics: str | Iterable[str]) -> Plan:
        """From names, or ``"all"``."""
        if metrics == "all":
            metrics = [*(m.name for m in METRICS.values() if m.signal != "weight"), *OF_WEIGHTS]
        names = metric_names(metrics, *OF_WEIGHTS)
        spectral = [name for name in names if name in METRICS and METRICS[name].signal == "weight"]
        if spectral:
            raise UsageError(
                f"A tracker measures outputs, gradients and sizes; {spectral[0]} is of weights. Ask normscope.probe."
            )
        chosen = [METRICS[name] for name in names if name not in OF_WEIGHTS]
        activation, gradient = (tuple(m for m in chosen if m.signal == s) for s in ("activation", "gradient"))
        return cls(activation, gradient, frozenset(names).intersection(OF_WEIGHTS))

    @property
    def spectrum(self) -> bool:
        """Whether any metric looks at eigenvalues."""
        return any(m.needs == "eigenvalues" for m in self.activation)

    @property
    def gradients(self) -> bool:
        """Whether the norms of gradients are wanted."""
        return any(m.name == "gradient_norm" for m in self.gradient)


class Watching(Protocol):
    """What a measurement needs of the tracker that it is for."""

    scaler: Any
    _root: nn.Module
    _plan: Plan
    _order: dict[str, int]
    _rows: int
    _tokens: bool
    _clock: Any

    def note(self, text: str) -> None:
        """Remember once what could not be measured."""


class Measurement:
    """The hooks of one step and what they saw; nothing in it keeps an activation or a gradient alive."""

    def __init__(self, tracker: Watching, step: int, taps: list[Tap], samples: Samples | None) -> None:
        self.step, self.samples = step, samples
        self.open = self.backward_came = self.finished = False
        self._tracker = tracker
        self._taps = [Tap(tap.name, tap.module) for tap in taps]
        self._forward = ExitStack()
        #: Parameters and the hooks that are on them, or are about to be: an interrupt comes between any two lines.
        self._backward: list[tuple[nn.Parameter, Callable[[Tensor], None]]] = []
        plan = tracker._plan
        metrics = (*plan.activation, *plan.gradient)
        self._recorder = Recorder(self._rows, metrics, gradients=bool(plan.gradient), sequences=self._sequences)
        self._weights: dict[nn.Parameter, tuple[float, float]] = {}
        self._before: dict[nn.Parameter, Tensor] = {}

    def begin(self) -> None:
        """Set the hooks."""
        self.open = True
        root = self._tracker._root
        self._look_into_compiled(root)
        self._forward.enter_context(observed([t for t in self._taps if t.module is not root], self._watch))
        if self._tracker._plan.gradients or self._tracker._plan.weights:
            for p in dict.fromkeys(p for tap in self._taps for p in tap.module.parameters()):
                if p.requires_grad and not nn.parameter.is_lazy(p):
                    self._backward.append((p, self._of_parameter(p)))
                    p.register_hook(self._backward[-1][1])

    def _look_into_compiled(self, root: nn.Module) -> None:
        """Compiled modules run eagerly in this step: a compiled graph calls no hooks."""
        modules = [root, *root.modules()]
        if not any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None for m in modules):
            return
        self._tracker.note("compiled modules run eagerly in measured steps, which changes their last digits")
        self._forward.enter_context(torch.compiler.set_stance("force_eager"))

    def root_returned(self, output: Any) -> None:
        """The output of the tracked model itself, where that is one layer: its own hook must stay where it is."""
        for tap in self._taps:
            tensor = first_tensor(output)
            if tap.module is self._tracker._root and tensor is not None and tensor.dim():
                tap.calls += 1
                self._watch(tap, tap.calls - 1, tensor)

    def shut(self) -> None:
        """Take the hooks of the forward pass off."""
        self.open = False
        self._forward.close()

    def finish(self) -> None:
        """Take the hooks of the backward pass off; what comes later is not looked at."""
        self.finished = True
        for p, hook in self._backward:
            hooks: dict[int, Any] = p._backward_hooks or {}
            for key in [k for k, own in hooks.items() if own is hook]:
                hooks.pop(key, None)
        if not self._recorder.seen:
            self._tracker.note(
                f"step {self.step}: no observed layer ran. Layers inside a compiled graph, a scripted module or the "
                "replicas of DataParallel cannot be seen: give the tracker the compiled model, or use one device a "
                "process"
            )

    def _watch(self, tap: Tap, call: int, x: Tensor) -> None:
        if not self.open or in_backward():
            return
        self._safely(tap.name, x, lambda: self._look(tap, call, x))

    def _look(self, tap: Tap, call: int, x: Tensor) -> None:
        tracker = self._tracker
        order = tracker._order
        known = tap.name in order
        seen = self._recorder.look(tap, order.setdefault(tap.name, len(order) + 1), call, x)
        if seen is None:
            tracker.note(f"{tap.name}: not measured, its output has no axis of the batch's length")
            if not known:
                del order[tap.name]
            return
        if x.requires_grad and self._recorder.gradients:

            def keep(grad: Tensor) -> None:
                if not self.finished:
                    self.backward_came = True
                    self._safely(tap.name, grad, lambda: self._recorder.look_back(seen, self._unscaled(grad)))

            x.register_hook(keep)

    def _of_parameter(self, p: nn.Parameter) -> Callable[[Tensor], None]:
        def keep(grad: Tensor) -> None:
            if not self.finished and p not in self._weights:
                self.backward_came = True
                self._safely("a parameter", grad, lambda: self._look_at(p, grad))

        return keep

    def _look_at(self, p: nn.Parameter, grad: Tensor) -> None:
        self._weights[p] = frobenius(self._unscaled(grad)), frobenius(p)
        if RELATIVE_UPDATE in self._tracker._plan.weights:
            self._before[p] = _entries(p).clone()

    def _moves(self) -> dict[nn.Parameter, float]:
        """How far each parameter was moved since its gradient came; none if nothing moved: no step was made yet."""
        moved: dict[nn.Parameter, float] = {}

        def look(p: nn.Parameter, before: Tensor) -> None:
            moved[p] = frobenius(_entries(p) - before) * (p.numel() / max(len(before), 1)) ** 0.5

        for p, before in self._before.items():
            self._safely("a parameter", before, partial(look, p, before))
        self._before.clear()
        return moved if any(moved.values()) else {}

    def _rows(self, tap: Tap, x: Tensor) -> Tensor | None:
        """At most so many rows as the tracker takes: the first samples, or tokens spread over the batch."""
        tracker = self._tracker
        samples = Samples(x.shape[0]) if self.samples is None else self.samples
        rows = samples.of(x, tap.module, tokens=tracker._tokens)
        if rows is None:
            return None
        stride = max(1, len(rows) // tracker._rows) if tracker._tokens and x.dim() == 3 else 1
        return rows[::stride][: tracker._rows]

    def _sequences(self, tap: Tap, x: Tensor) -> Tensor | None:
        samples = Samples(x.shape[0]) if self.samples is None else self.samples
        return samples.sequences(x, tap.module)

    def _unscaled(self, grad: Tensor) -> Tensor:
        scale = 1.0 if self._tracker.scaler is None else float(self._tracker.scaler.get_scale())
        return grad.detach() if scale == 1 else grad.detach().float() / scale

    def _safely(self, name: str, x: Tensor, look: Callable[[], None]) -> None:
        """Run it timed, outside autograd and autocast; training goes on whatever happens in it."""
        with self._tracker._clock, torch.no_grad():
            try:
                with torch.autocast(x.device.type, enabled=False):
                    look()
            except Exception as error:
                self._tracker.note(f"{name or 'the model'}: not measured, {type(error).__name__}: {error}")

    def rows(self) -> list[tuple[Key, float]]:
        """The numbers of the step with their coordinates, in the order of the forward pass."""
        self._recorder.finish()
        moves = self._moves()
        return [row for seen in self._recorder.seen for row in self._of(seen, moves)]

    def _of(self, seen: Seen, moves: Mapping[nn.Parameter, float]) -> Iterable[tuple[Key, float]]:
        plan, tap = self._tracker._plan, seen.tap
        here = Key(seen.samples, seen.layer, tap.name, seen.call, tap.kind, "activation", "")
        whole = here._replace(samples=self.samples.n if self.samples else seen.samples)
        for signal, name, value in numbers(seen, (*plan.activation, *plan.gradient)):
            yield (whole if name == "gradient_norm" else here)._replace(signal=signal, metric=name), value
        own = [p for p in tap.module.parameters() if p in self._weights]
        both = of_weights(self._weights[p] for p in own)
        if both is not None and seen.call == 0:
            weight = whole._replace(signal="weight")
            if plan.gradients:
                yield weight._replace(metric="gradient_norm"), both[0]
            size = math.hypot(*(self._weights[p][1] for p in own))
            known = {RELATIVE_GRADIENT: both[1], WEIGHT_NORM: size}
            if moves and size:
                known[RELATIVE_UPDATE] = math.hypot(*(moves[p] for p in own if p in moves)) / size
            yield from ((weight._replace(metric=m), value) for m, value in known.items() if m in plan.weights)


class Store:
    """The table in little memory: the coordinates of the rows once, 8 bytes a number."""

    def __init__(self) -> None:
        self._keys: dict[tuple[Key, ...], polars.DataFrame] = {}
        self._parts: list[Callable[[], polars.DataFrame]] = []

    def add(
        self, step: int, rows: list[tuple[Key, float]], told: polars.DataFrame | None = None
    ) -> Callable[[], polars.DataFrame]:
        """Keep the rows of a step, and those of no layer that were ``told`` since; returns what makes its table."""
        import polars as pl

        keys = tuple(key for key, _ in rows)
        if keys not in self._keys:
            self._keys[keys] = pl.DataFrame(list(keys), schema=key_schema(), orient="row")
        frame, values = self._keys[keys], torch.tensor([value for _, value in rows], dtype=torch.float64).numpy()

        def part() -> pl.DataFrame:
            table = frame.with_columns(
                source=pl.lit("measured"), step=pl.lit(step, pl.Int64), value=pl.Series(values, dtype=pl.Float64)
            )
            table = table.select("source", "step", "samples", *Key._fields[1:], "value")
            return table if told is None else pl.concat([table, told])

        self._parts.append(part)
        return part

    def frame(self) -> polars.DataFrame:
        """All steps."""
        import polars as pl

        if not self._parts:
            schema = {"source": pl.String, "step": pl.Int64, **key_schema(), "value": pl.Float64}
            return pl.DataFrame(schema=schema)
        return pl.concat([part() for part in self._parts])


def _entries(p: Tensor) -> Tensor:
    """At most `ENTRIES` of its entries, or a few more, evenly spaced."""
    flat = p.detach().reshape(-1)
    return flat[:: max(1, len(flat) // ENTRIES)]


def count_samples(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], axis: int | None
) -> Samples | None:
    """The samples of a call's arguments, as far as these tell; ``None`` if they hold no tensor with an axis."""
    if not any(length(v) for v in (*args, *kwargs.values())):
        return None
    found = read_samples(model, args, kwargs, None, axis)
    if found is None:  # only the model's layout can tell: one pass that leaves no trace
        found = Step(model, args if args else kwargs, mode=None).rows
    return found if found.n else None


def in_backward() -> bool:
    """Whether this runs inside a backward pass, as the second forward pass of checkpointing does."""
    return torch._C._current_graph_task_id() != -1  # what torch.utils.checkpoint itself asks
