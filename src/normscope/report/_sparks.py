"""A curve in one line of text: ``█▇▅▃▂▁▁``."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"


def curve(values: Sequence[float | None], *, log: bool = False, width: int = 40) -> str:
    """At most ``width`` bars from the least value to the largest; ``!`` where a value has no place; empty for none."""
    known = [v for v in values if v is not None]
    if len(known) > width:
        known = [known[round(i * (len(known) - 1) / (width - 1))] for i in range(width)]
    heights = [math.log10(v) if log and v > 0 else math.nan if log else v for v in known]
    finite = [h for h in heights if math.isfinite(h)]
    if not finite:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or math.inf  # a flat curve stays low
    return "".join(_BARS[round((h - low) / span * 7)] if math.isfinite(h) else "!" for h in heights)
