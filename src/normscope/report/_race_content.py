"""What a report of a race shows, and how its numbers are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True)
class RaceContent:
    """The content of one race's report.

    table: tidy, ``variant, seed, step, epoch, signal, metric, layer, name, value``. lines: the final table, one mapping
    a variant (fields of ``normscope.racing``'s ``Line``). facts: settings, ``variants`` in order, ``baseline``,
    ``rates``, ``target``, ``notes``.
    """

    table: polars.DataFrame
    lines: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]

    @property
    def title(self) -> str:
        """One line for the head of a page."""
        return str(self.facts.get("title") or "Race: " + ", ".join(self.variants))

    @property
    def variants(self) -> list[str]:
        """In the order they were given."""
        return list(self.facts["variants"])

    @property
    def target(self) -> str:
        """The loss that steps are counted to, as written."""
        value = self.facts.get("target")
        return "" if value is None else f"{value:.3g}"

    @property
    def tested(self) -> bool:
        """Whether some variant has a test accuracy."""
        return any(not math.isnan(line["test_accuracy"]) for line in self.lines)


def cells(line: Mapping[str, Any]) -> dict[str, str]:
    """A line of the final table as written."""
    out = line["diverged"] == line["seeds"]
    steps = line["steps_to_target"]
    return {
        "variant": line["variant"],
        "lr": f"{line['lr']:.3g}",
        "train_loss": "diverged" if out else spread(line["train_loss"], line["train_loss_half"]),
        "test_accuracy": "" if out else spread(100 * line["test_accuracy"], 100 * line["test_accuracy_half"]),
        "steps": "never" if steps is None else f"{steps:.0f}",
        "diverged": f"{line['diverged']} of {line['seeds']}"
        + (f", step {line['steps_to_divergence']:.0f}" if line["diverged"] else ""),
        "p_loss": chance(line["p_loss"]),
        "p_accuracy": chance(line["p_accuracy"]),
        "verdict": line["verdict"],
        "milliseconds": f"{1000 * line['seconds_per_step']:.3g}",
    }


def spread(mean: float, half: float) -> str:
    """``0.943 ± 0.15``: the mean to the digits that its interval leaves; four digits where there is no interval."""
    if math.isnan(mean):
        return "–"
    if not half > 0:
        return f"{mean:.4g}"
    digits = max(0, 1 - math.floor(math.log10(half)))
    if digits > 5:
        return f"{mean:.4g} ± {half:.0e}"
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def chance(p: float) -> str:
    """A p-value as written: empty where there is none."""
    if math.isnan(p):
        return ""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def explained(content: RaceContent) -> list[str]:
    """What the columns of the final table are, in sentences."""
    facts, seeds = content.facts, len(content.facts["seeds"])
    said = [
        "Train loss: mean batch loss of the last 5 % of the steps (at least 10), in training mode"
        + (f"; mean over {seeds} seeds ± half of its 95 % t-interval." if seeds > 1 else "; one seed, no interval."),
    ]
    if content.tested:
        said.append("Test accuracy: at the end, in eval mode with running statistics.")
    if content.target:
        said.append(f"Steps to {content.target}: median over seeds, trailing mean of 10 batch losses.")
    compared = len(content.lines) > 1
    if compared and seeds > 2:
        said.append(
            f"p: against {facts['baseline']}, paired by seed (t-test; exact sign test where a run diverged), Holm over "
            "the variants. The verdict goes by the train loss, at 0.05."
        )
    elif compared and seeds == 2:
        said.append("Two seeds are too few to tell: no p-values.")
    if any(line["diverged"] for line in content.lines):
        said.append("Diverged runs stop early and are in no mean; they are counted in their column.")
    return said
