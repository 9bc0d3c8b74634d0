"""What is measured of each layer that runs: its output, and the gradient that comes back to it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from normscope.call.taps import LastAxis, Tap
from normscope.core.spec import POINTWISE
from normscope.geometry.metric import evaluate
from normscope.geometry.metrics import METRICS, Metric, metric_names, unit_axis
from normscope.geometry.pool import Pool
from normscope.geometry.statistic import Statistic, squared_norm

#: Metrics of a layer's parameters, not of one representation: their gradient over themselves.
RELATIVE_GRADIENT = "relative_gradient"
#: Those that only a training has: their norm, and how far the step that followed moved them, over it.
WEIGHT_NORM, RELATIVE_UPDATE = "weight_norm", "relative_update"
OF_WEIGHTS = (RELATIVE_GRADIENT, WEIGHT_NORM, RELATIVE_UPDATE)
#: Rows (n, ...) of what a tap returned, or ``None`` where no axis runs over the samples.
Rows = Callable[[Tap, Tensor], Tensor | None]


@dataclass
class Seen:
    """What was collected at one call of one tap; ``samples``: rows that entered the numbers.

    activation, gradient: metric -> value, filled when the statistics are measured, at the latest in `Recorder.finish`.
    """

    tap: Tap
    layer: int
    call: int
    samples: int
    activation: dict[str, float] = field(default_factory=dict)
    gradient: dict[str, float] = field(default_factory=dict)
    gradient_norm: float | None = None


class Recorder:
    """Metrics of the taps' outputs, in the order of execution, and of the loss gradients with respect to them.

    rows: how an output becomes rows of samples; sequences: how it becomes (n, tokens, d). metrics: what is wanted, of
        outputs and of gradients; nothing is computed
    that none of them needs. gradients: whether any are looked at. ``seen`` fills as the passes run; nothing in it keeps
    an activation or a gradient alive, and what waits to be measured is bounded (`Pool`). last: how many of the latest
    outputs' statistics are kept in ``latest``, with all that was computed of them.
    """

    def __init__(
        self, rows: Rows, metrics: Iterable[Metric], *, gradients: bool, last: int = 0, sequences: Rows | None = None
    ) -> None:
        wanted = tuple(metrics)
        self.rows, self.sequences, self.gradients = rows, sequences, gradients
        self.outputs = tuple(m for m in wanted if m.signal == "activation")
        self.angles = tuple(m for m in wanted if m.signal == "gradient" and m.name != "gradient_norm")
        self.spectrum = any(m.needs in ("eigenvalues", None) for m in self.outputs)
        self.entries = any(m.needs in ("entries", None) for m in self.outputs)
        self.seen: list[Seen] = []
        self.latest: deque[Statistic] = deque(maxlen=last)
        self._pool, self._last_axis = Pool(), LastAxis()

    def look(self, tap: Tap, layer: int, call: int, x: Tensor) -> Seen | None:
        """Take an output; ``None`` if no axis of it runs over the samples."""
        with _plainly(x):
            rows = self.rows(tap, x)
            if rows is None:
                return None
            inner = tap.module.activation if getattr(tap.module, "normscope_layer", False) else tap.module
            bends = POINTWISE.get(type(inner).__name__) if self.entries else None
            units = unit_axis(x) if bends is not None else None
            seen = Seen(tap, layer, call, len(rows))
            if self.outputs or self.latest.maxlen:
                statistic = Statistic.of(
                    rows, spectrum=self.spectrum, units=units, bounds=bends and bends.ends,
                    sequences=self._sequences(tap, layer, x, rows),
                )  # fmt: skip
                self.latest.append(statistic)
                self._pool.add(statistic, self.outputs, seen.activation.update)
            self.seen.append(seen)
        return seen

    def _sequences(self, tap: Tap, layer: int, x: Tensor, rows: Tensor) -> Tensor | None:
        """The output as (n, tokens, d); ``None`` where nobody asked, and at the input: no layer says what it holds."""
        if self.sequences is None or not self.entries or layer == 0 or 3 not in (x.dim(), rows.dim()):
            return None
        return self.sequences(tap, x) if self._last_axis.features(tap, x) else None

    def look_back(self, seen: Seen, grad: Tensor | None) -> None:
        """Take the gradient with respect to an output: of several backward passes the first; ``None`` where none
        came.
        """
        if seen.gradient_norm is not None or grad is None:
            return
        with _plainly(grad):
            rows = self.rows(seen.tap, grad) if self.angles and has_angles(seen.tap) else None
            if rows is not None:
                self._pool.add(Statistic.of(rows, spectrum=False), self.angles, seen.gradient.update)
            seen.gradient_norm = frobenius(grad)

    def finish(self) -> None:
        """Measure what still waits."""
        self._pool.flush()


@contextmanager
def _plainly(x: Tensor) -> Iterator[None]:
    """Outside autocast, and unseen by modes that watch torch's functions: ours are not the model's."""
    with torch._C.DisableTorchFunction():
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                yield
        else:
            yield


def has_angles(tap: Tap) -> bool:
    """Whether angles between gradients are measured: where there are weights to be moved, and at the input."""
    return tap.weighted or any(p.dim() > 1 for p in tap.module.parameters())


def frobenius(x: Tensor) -> float:
    """Frobenius norm, summed in float64."""
    x = x.detach()
    x = x.coalesce().values() if x.is_sparse else x
    x = torch.view_as_real(x) if x.is_complex() else x
    if not x.numel():
        return 0.0
    value = squared_norm(x)
    return math.sqrt(value) if math.isfinite(value) else math.nan


def numbers(seen: Seen, metrics: Iterable[Metric]) -> Iterator[tuple[str, str, float]]:
    """(signal, metric, value) of one call, those that were not looked for left out."""
    for metric in metrics:
        if metric.signal == "gradient" and metric.name == "gradient_norm":
            if seen.gradient_norm is not None:
                yield "gradient", metric.name, seen.gradient_norm
            continue
        values = seen.activation if metric.signal == "activation" else seen.gradient
        value = values.get(metric.name)
        # NaN of entries, or of a gradient, says that it was not looked for: no activation, no bounded one, no weights
        optional = metric.needs == "entries" or metric.signal == "gradient"
        if value is not None and not (optional and math.isnan(value)):
            yield metric.signal, metric.name, value


def of_weights(pairs: Iterable[tuple[float, float]]) -> tuple[float, float] | None:
    """(gradient norm, relative gradient) of a layer from (gradient norm, norm) of each of its parameters."""
    pairs = list(pairs)
    if not pairs:
        return None
    norm, size = (math.hypot(*column) for column in zip(*pairs, strict=True))
    return norm, norm / size if size else math.inf


def of_matrix(parameters: Iterable[Tensor], metrics: Iterable[Metric]) -> dict[str, float]:
    """The metrics of weights, of the first parameter that is a matrix: (out, in times kernel), the smaller side first.

    What is no finite number is NaN."""
    wanted = [m for m in metrics if m.signal == "weight"]
    matrix = next((p.detach().flatten(1) for p in parameters if p.dim() > 1 and p.is_floating_point()), None)
    if not wanted or matrix is None or not matrix.numel():
        return {}
    rows = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    return evaluate([Statistic.of(rows, exact=True)], wanted, finite=True)[0]


def chosen(names: Iterable[str] | str | None) -> list[Metric]:
    """Metrics by name; if ``None`` all but those of weights. Raises ``UsageError`` for an unknown one."""
    if names is None:
        return [m for m in METRICS.values() if m.signal != "weight"]
    return [METRICS[name] for name in metric_names(names)]
