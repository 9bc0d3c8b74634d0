"""A model on a batch, in the numbers that cures are judged by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import first_tensor
from normscope.call.losses import LossLike
from normscope.call.step import Step
from normscope.call.taps import Tap, find_taps, observed
from normscope.core.errors import UsageError
from normscope.curvature import sharpness
from normscope.findings import View, find
from normscope.findings.diagnosis import diagnose, measured

#: 2 / lambda_max below this counts as a cost: the rate that plain SGD on image nets usually starts from.
USUAL_RATE = 0.1


@dataclass(frozen=True)
class Reading:
    """A model on a batch, in the numbers that cures are judged by; ``codes``: its findings, the worst first.

    Over the hidden layers of the commonest kind: participation rank of the ``input`` and of the ``first``, ``least``
    and ``deepest`` layer; ``gap``: orthogonality gap of the deepest; ``kept``: how far the deepest layer's similarities
    between samples are the input's (cosine of their centred Gram matrices, 0 to 1); ``gradient_growth``: gradient norm
    at the first layer over that at the last, ``gradient_spread``: largest over smallest. ``lambda_max`` is NaN where
    not measured.
    """

    input: float
    first: float
    least: float
    deepest: float
    gap: float
    kept: float
    gradient_growth: float
    gradient_spread: float
    lambda_max: float
    codes: tuple[str, ...]
    errors: int
    warnings: int
    loss: str = field(default="", compare=False)

    @property
    def max_stable_lr(self) -> float:
        """2 / lambda_max."""
        return 2 / self.lambda_max if self.lambda_max else math.inf

    @property
    def terms(self) -> dict[str, float]:
        """The cost of starting from here, term by term, in decades (a factor of 10 is 1). See `cost`."""
        before, after = (math.nan if math.isnan(r) else 1 - 1 / max(r, 1 + 1e-7) for r in (self.input, self.least))
        return {
            "contrast lost": max(0.0, math.log10(before / after)),
            "structure lost": -math.log10(max(self.kept, 1e-10)),
            "gradient spread": math.log10(self.gradient_spread),
            "sharpness": max(0.0, math.log10(self.lambda_max * USUAL_RATE / 2)) if self.lambda_max else 0.0,
            "warnings": float(self.warnings),
        }

    @property
    def cost(self) -> float:
        """Sum of the terms; smaller is better. A ranking by signs at initialization, not a promise.

        Chosen by us, because each term is a factor that training must make up, and factors multiply: the share of the
        batch's energy off its main line (1 - 1/r) that is lost between the input and the flattest hidden layer; how
        much of the input's similarities, which labels follow, the deepest layer has scrambled; the largest over the
        smallest gradient, which one learning rate must serve; how far 2 / lambda_max lies below 0.1. A warning costs
        one decade, because of nets with one 29 % trained, of quiet ones 95 % (docs/findings.md). A term that is not
        finite counts as 10, one that was not measured as 0.
        """
        return sum(10.0 if math.isnan(v) or math.isinf(v) else v for v in self.terms.values())

    def to_dict(self) -> dict[str, Any]:
        """The numbers, ready for JSON."""
        names = (
            "input",
            "first",
            "least",
            "deepest",
            "gap",
            "kept",
            "gradient_growth",
            "gradient_spread",
            "lambda_max",
        )
        rest = {"max_stable_lr": self.max_stable_lr, "terms": self.terms, "cost": self.cost}
        return {n: getattr(self, n) for n in names} | rest | {"findings": list(self.codes)}


def read(
    model: nn.Module | Step, inputs: Any = None, targets: Any = None, loss: LossLike = None, *, curvature: bool = True,
    checkup: bool = True, seed: int = 0,
) -> Reading:  # fmt: skip
    """Measure a model on a batch, in training mode; nothing is changed. checkup: look at wiring, loss and data too."""
    at = Step.of(model, inputs, targets, loss, mode="train", seed=seed)
    if checkup:
        found = diagnose(at, theory=False, trial=False)
        profile, findings, settled = found.profile, found.findings, str(found.facts["loss"])
    else:
        profile, _ = measured(at)
        findings, settled = find(profile), str(profile.facts["loss"])
    view = View(profile)
    ranks = [r.value for r in view.alike("participation_rank")]
    gaps = [r.value for r in view.alike("orthogonality_gap")]
    slopes = [r.value for r in view.alike("gradient_norm", "gradient")]
    start = view.at_input("participation_rank")
    small = min(slopes, default=math.nan)
    severities = [f.severity for f in findings]
    return Reading(
        input=ranks[0] if math.isnan(start) else start,
        first=ranks[0],
        least=min(ranks, key=lambda r: -math.inf if math.isnan(r) else r),
        deepest=ranks[-1],
        gap=gaps[-1],
        kept=_kept(at, view.alike("participation_rank")[-1].name),
        gradient_growth=slopes[0] / slopes[-1] if slopes and slopes[-1] else math.nan,
        gradient_spread=max(slopes) / small if slopes and small else math.inf,
        lambda_max=lambda_max(at) if curvature else math.nan,
        codes=tuple(dict.fromkeys(f.code for f in findings if f.severity != "info")),
        errors=severities.count("error"),
        warnings=severities.count("warning"),
        loss=settled,
    )


def _kept(at: Step, deepest: str) -> float:
    """Centred alignment (CKA) of the input, or the first layer where that is no floating tensor, and the named
    layer.
    """
    grams: dict[str, Tensor] = {}

    def centred(rows: Tensor) -> Tensor:
        rows = rows.detach().reshape(len(rows), -1).double()
        rows = rows - rows.mean(0)
        return rows @ rows.T

    def watch(tap: Tap, call: int, x: Tensor) -> None:
        rows = at.rows.of(x, tap.module)
        if rows is not None and len(rows) == at.rows.n and (not grams or tap.name == deepest):
            grams["input" if not grams else "deep"] = centred(rows)

    @torch.no_grad()
    def work() -> None:
        args, kwargs, _ = at.arguments()
        entry = first_tensor([*args, *kwargs.values()])
        rows = None if entry is None else at.rows.of(entry)
        if rows is not None:
            grams["input"] = centred(rows)
        with observed(find_taps(at.root), watch, at.root):
            at.whole(args, kwargs)

    at.run(work)
    a, b = grams["input"], grams.get("deep", grams["input"])
    return float((a * b).sum() / (a.norm() * b.norm()))


def lambda_max(at: Step) -> float:
    """Largest eigenvalue of the Fisher matrix of the loss to about 5 %; NaN where it is not defined."""
    try:
        return sharpness(at, tol=0.05, probes=0, compare_modes=False).lambda_max
    except (UsageError, ValueError, RuntimeError):
        return math.nan
