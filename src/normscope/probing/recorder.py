"""What is kept of each layer that runs: one statistic of its output, one of the gradient that comes back to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from normscope.call.taps import Tap
from normscope.geometry.metrics import METRICS, Metric, metric_names, unit_axis
from normscope.geometry.statistic import Statistic

#: Metrics of a layer's parameters, not of one representation: their gradient over themselves.
RELATIVE_GRADIENT = "relative_gradient"
#: NaN in these says that they were not looked for: no activation, no bounded one, no weights.
OPTIONAL = ("dead_units", "saturated_units", "gradient_collinearity")
#: Ends of the activations that have them.
_BOUNDS: dict[str, tuple[float, float]] = {
    "Tanh": (-1, 1), "Sigmoid": (0, 1), "Hardtanh": (-1, 1), "Hardsigmoid": (0, 1), "Softsign": (-1, 1), "Erf": (-1, 1),
}  # fmt: skip
_ACTIVATIONS = {
    "ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Softplus", "Hardswish", "Abs",
    "NewGELUActivation", "GELUActivation", "Sin", *_BOUNDS,
}  # fmt: skip
#: Rows (n, ...) of what a tap returned, or ``None`` where no axis runs over the samples.
Rows = Callable[[Tap, Tensor], Tensor | None]


@dataclass
class Seen:
    """What was collected at one call of one tap; ``samples``: rows that entered the numbers."""

    tap: Tap
    layer: int
    call: int
    samples: int
    activation: Statistic
    gradient: Statistic | None = None
    gradient_norm: float | None = None


class Recorder:
    """Statistics of the taps' outputs, in the order of execution, and of the loss gradients with respect to them.

    rows: how an output becomes rows of samples. spectrum: whether eigenvalues will be asked for. angles: whether angles
    between the gradients of samples are wanted, where a layer has weights; else the norm alone. ``seen`` fills as the
    passes run; nothing in it keeps an activation or a gradient alive.
    """

    def __init__(self, rows: Rows, *, spectrum: bool, gradients: bool, angles: bool = True) -> None:
        self.rows, self.spectrum, self.gradients, self.angles = rows, spectrum, gradients, angles
        self.seen: list[Seen] = []

    def look(self, tap: Tap, layer: int, call: int, x: Tensor) -> Seen | None:
        """Keep an output; ``None`` if no axis of it runs over the samples."""
        rows = self.rows(tap, x)
        if rows is None:
            return None
        inner = tap.module.activation if getattr(tap.module, "normscope_layer", False) else tap.module
        kind = type(inner).__name__
        units = unit_axis(x) if kind in _ACTIVATIONS else None
        with torch.autocast(x.device.type, enabled=False):
            statistic = Statistic.of(rows, spectrum=self.spectrum, units=units, bounds=_BOUNDS.get(kind))
        seen = Seen(tap, layer, call, len(rows), statistic)
        self.seen.append(seen)
        return seen

    def look_back(self, seen: Seen, grad: Tensor | None) -> None:
        """Keep the gradient with respect to an output: of several backward passes the first; ``None`` where none came."""
        if seen.gradient_norm is not None or grad is None:
            return
        with torch.autocast(grad.device.type, enabled=False):
            rows = self.rows(seen.tap, grad) if self.angles and has_angles(seen.tap) else None
            seen.gradient = None if rows is None else Statistic.of(rows, spectrum=False)
            seen.gradient_norm = frobenius(grad)


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
    value = Statistic.of(x.reshape(1, -1), spectrum=False).gram.trace().clamp_min(0).sqrt().item()
    return value if math.isfinite(value) else math.nan


def numbers(seen: Seen, metrics: Iterable[Metric]) -> Iterator[tuple[str, str, float]]:
    """(signal, metric, value) of one call, those that were not looked for left out."""
    for metric in metrics:
        if metric.signal == "gradient" and metric.name == "gradient_norm":
            if seen.gradient_norm is not None:
                yield "gradient", metric.name, seen.gradient_norm
            continue
        statistic = seen.activation if metric.signal == "activation" else seen.gradient
        if statistic is None:
            continue
        value = metric(statistic) if statistic.finite else math.nan
        if not (math.isnan(value) and metric.name in OPTIONAL):
            yield metric.signal, metric.name, value


def of_weights(pairs: Iterable[tuple[float, float]]) -> tuple[float, float] | None:
    """(gradient norm, relative gradient) of a layer from (gradient norm, norm) of each of its parameters."""
    pairs = list(pairs)
    if not pairs:
        return None
    norm, size = (math.hypot(*column) for column in zip(*pairs, strict=True))
    return norm, norm / size if size else math.inf


def asks_for_eigenvalues(metric: Metric) -> bool:
    """Whether a metric looks at eigenvalues, found by asking it."""
    asked = False

    class Asked(Statistic):
        @property
        def singular_values(self) -> Tensor:
            nonlocal asked
            asked = True
            return torch.ones(4, dtype=torch.float64)

    metric(Asked(4, 4, torch.eye(4, dtype=torch.float64)))
    return asked


def chosen(names: Iterable[str] | str | None) -> list[Metric]:
    """Metrics by name; all if ``None``. Raises ``UsageError`` for an unknown one."""
    if names is None:
        return list(METRICS.values())
    return [METRICS[name] for name in metric_names(names)]
