"""How the metrics are called and written in reports: one table, and the number format."""

from __future__ import annotations

import math
from typing import NamedTuple


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


#: Column of the layer table (``_layers.column``) -> label. A metric without one is shown by its own name.
LABELS: dict[str, Label] = {
    "participation_rank": Label(
        "Participation rank", "dimensions", "rank", True,
        "How many directions the batch fills. Near 1, all samples look alike; the batch size is the most there can be.",
    ),
    "orthogonality_gap": Label(
        "Orthogonality gap", "", "gap", False,
        "0 when the samples are orthogonal, near 1 when they are aligned. Dotted: the least that its rank allows.",
    ),
    "mean_abs_cosine": Label(
        "Mean |cosine|", "", "|cos|", False,
        "Alignment of two samples, averaged over pairs. 1 when all point the same way or the opposite way.",
    ),
    "numerical_rank": Label(
        "Numerical rank", "dimensions", "num. rank", False,
        "Directions that survive rounding in float64. Dotted: as seen in float32.",
    ),
    "gradient_norm": Label(
        "Gradient by layer", "norm", "grad", True,
        "Norm of the loss gradient with respect to the output of each layer. Flat is healthy.",
    ),
    "weight_gradient_norm": Label(
        "Gradient of the weights", "norm", "weight grad", True,
        "Norm of the loss gradient with respect to the parameters of each layer: what the first step sees.",
    ),
    "mean_norm": Label(
        "Activation scale", "mean norm", "scale", True,
        "Mean norm of a sample. Growth or decay by a factor each layer is a straight line here.",
    ),
    "odd_point_score": Label(
        "Odd point", "score", "odd point", False,
        "Near 1 when one sample stands apart while all others have merged into a cluster.",
    ),
    "dead_units": Label(
        "Dead and saturated units", "share", "dead", False,
        "Units that are silent on the whole batch. Dotted: share of entries at the flat ends of a bounded activation.",
    ),
    "orthogonality_gap_floor": Label("Floor of the orthogonality gap", "", "gap floor"),
    "numerical_rank_float32": Label("Numerical rank in float32", "dimensions", "num. rank f32"),
    "saturated_units": Label("Saturated units", "share", "saturated"),
    "soft_rank": Label("Soft rank", "dimensions", "soft rank", True),
    "entropy_rank": Label("Entropy rank", "dimensions", "entropy rank", True),
    "isometry_gap": Label("Isometry gap", "nat", "isometry gap"),
    "sigma_min": Label("Smallest singular value", "", "sigma min", True),
    "mean_cosine": Label("Mean cosine", "", "cos"),
    "max_abs_cosine": Label("Largest |cosine|", "", "max |cos|"),
    "norm_spread": Label("Spread of the norms", "", "spread"),
    "mean_shift": Label("Mean shift", "", "shift"),
    "odd_point_index": Label("Odd point's index", "", "odd index"),
    "odd_point_coherence": Label("Coherence of the cluster", "", "coherence"),
    "gradient_growth": Label("Gradient growth", "per layer", "growth", True),
    "gradient_collinearity": Label("Gradient collinearity", "", "grad |cos|"),
}  # fmt: skip

#: Columns of the per-layer tables, in order; those that a report does not have are left out.
TABLE = (
    "participation_rank", "orthogonality_gap", "mean_abs_cosine", "numerical_rank", "mean_norm", "odd_point_score",
    "dead_units", "saturated_units", "gradient_norm", "gradient_collinearity", "weight_gradient_norm",
)  # fmt: skip
#: The few that a terminal or a notebook cell has room for.
BRIEF = ("participation_rank", "orthogonality_gap", "mean_abs_cosine", "gradient_norm")


def label(column: str) -> Label:
    """The label of a column; its own name, in words, if it has none."""
    words = column.replace("_", " ")
    found = LABELS.get(column, Label(words[:1].upper() + words[1:], short=words))
    return found if found.short else found._replace(short=words)


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
