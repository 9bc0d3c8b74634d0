"""How the metrics are called and written in reports: from the registry of metrics, and the number format."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from normscope.geometry.metrics import METRICS


class Label(NamedTuple):
    """title and unit of a metric in a report; ``log``: drawn on a log axis; ``reading``: how to read its chart."""

    title: str
    unit: str = ""
    short: str = ""
    log: bool = False
    reading: str = ""

    @property
    def heading(self) -> str:
        """Title and unit in one line."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


#: Columns of the layer table (``_layers.column``) that are no registered metrics.
LABELS: dict[str, Label] = {
    "weight_gradient_norm": Label(
        "Gradient of the weights", "norm", "weight grad", True,
        "Norm of the loss gradient with respect to the parameters of each layer: what the first step sees.",
    ),
    "attention_entropy": Label(
        "Attention entropy", "nat", "att. entropy", False,
        "Mean over heads, samples and queries. 0: each query looks at one key. Dotted: uniform attention, log T.",
    ),
    "attention_entropy_null": Label("Uniform attention", "nat", "uniform"),
    "head_rank": Label(
        "Rank of a head", "dimensions", "head rank", True,
        "Participation rank of what a head returns over all tokens, averaged over heads. Dotted: i.i.d. entries.",
    ),
    "head_rank_null": Label("Rank without structure", "dimensions", "head rank, i.i.d.", True),
    "weight_relative_update": Label(
        "Size of a step over the weights", "1", "update", True,
        "How far the step moved the layer's parameters, over their norm; 0.001 to 0.01 is usual.",
    ),
    "weight_relative_gradient": Label("Gradient over the weights", "1", "grad / w", True),
    "weight_weight_norm": Label("Norm of the weights", "norm", "weights", True),
    "gradient_growth": Label("Gradient growth", "per layer", "growth", True),
}  # fmt: skip


def charted(but: Iterable[str]) -> list[str]:
    """Registered metrics that say how their chart is read, so have one, and a column; less those named."""
    return [m.name for m in METRICS.values() if m.reading and m.name not in but]


def label(column: str) -> Label:
    """The label of a column; its own name, in words, if it has none."""
    if column in METRICS:
        m = METRICS[column]
        return Label(m.title, "" if m.unit == "1" else m.unit, m.short, m.log, m.reading)
    words = column.replace("_", " ")
    return LABELS.get(column, Label(words[:1].upper() + words[1:], short=words))


def number(value: float | None, digits: int = 3) -> str:
    """A number with ``digits`` significant digits, short: ``1.02``, ``128``, ``3.1e-9``, ``inf``; empty for none."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 10**5:
        return str(int(value))
    if not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    rounded = float(f"{value:.{digits}g}")
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"
