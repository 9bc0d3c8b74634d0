"""What the curvature shows: a spectrum with its errors and density, and the sharpness of a batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from normscope.report import _labels
from normscope.report.grammar import Axis, Chart, Colour, Table, fits, lines, measure, tip
from normscope.report.sheet import Section, Sheet

if TYPE_CHECKING:
    from normscope.curvature import Sharpness
    from normscope.linalg import Spectrum

#: Points of a drawn share of eigenvalues.
_POINTS = 120
_RANK: dict[str, Any] = {"scale": {"nice": False, "zero": False}, "ticks": {"tickMinStep": 1, "format": "d"}}


def of_spectrum(spectrum: Spectrum, brief: bool = False) -> Sheet:
    """Eigenvalues in order with what they may be off by, and how they are spread where that was asked for."""
    values, errors = spectrum.eigenvalues.tolist(), spectrum.errors.tolist()
    rows = [
        {"rank": i, "value": v, "low": v - e, "high": v + e, "error": f"± {_labels.number(e, 2)}"}
        for i, (v, e) in enumerate(zip(values, errors, strict=True), 1)
    ]
    log = all(v > 0 for v in values) and max(values) > 100 * min(values)
    if log:
        rows = [{**r, "low": max(r["low"], r["value"] / 10)} for r in rows]
    y = measure("value", "eigenvalue (loss per unit of parameters squared)", [r["value"] for r in rows], log=log)
    told = [tip("rank"), tip("value", "eigenvalue", ".5~g"), tip("error")]
    said = "From the wanted end on; band: what each may be off by."
    drawn = [
        lines("Eigenvalues", rows, Axis("rank", "rank", **_RANK), y, band=("low", "high"), told=told, reading=said)
    ]
    if spectrum.density is not None:
        drawn.append(_spread(spectrum))
    facts = {
        "largest": _labels.number(spectrum.largest, 5), "side": spectrum.size, "method": spectrum.method,
        "products": f"{spectrum.products:g}", "converged": "yes" if spectrum.converged else "no",
    }  # fmt: skip
    if spectrum.trace is not None:
        facts["trace"] = f"{_labels.number(spectrum.trace.value, 5)} ± {spectrum.trace.stderr:.1g}"
    return Sheet("Spectrum", [Section("", facts=facts, charts=drawn)])


def _spread(spectrum: Spectrum) -> Chart:
    """The share of eigenvalues up to each value."""
    assert spectrum.density is not None
    nodes = spectrum.density.nodes
    low, high = float(nodes.min()), float(nodes.max())
    at = nodes.new_tensor([low + (high - low) * i / (_POINTS - 1) for i in range(_POINTS)])
    share, error = (t.tolist() for t in spectrum.density.cumulative(at))
    rows = [
        {"value": v, "share": s, "low": s - 2 * e if e == e else s, "high": s + 2 * e if e == e else s}
        for v, s, e in zip(at.tolist(), share, error, strict=True)
    ]
    said = f"Of those not owed to the rank (a share of {spectrum.density.null:.3g} is); band: two standard errors."
    y = measure("share", "share of eigenvalues below", (), domain=[0, 1])
    return lines(
        "Distribution", rows, Axis("value", "eigenvalue", scale={"nice": False}), y, band=("low", "high"), reading=said
    )


def of_sharpness(sharpness: Sharpness, brief: bool = False) -> Sheet:
    """The largest curvature: where in the net it sits, what other modes have, what steps along it did."""
    s = sharpness
    facts = {
        "λ_max": f"{_labels.number(s.lambda_max, 5)} ± {s.error:.1g}",
        "largest stable rate": _labels.number(s.max_stable_lr, 4),
        "loss": s.loss,
        **{k.replace("_", " "): str(s.facts[k]) for k in ("mode", "batch_size", "dtype") if k in s.facts},
    }  # fmt: skip
    if not math.isnan(s.mean):
        facts["mean eigenvalue"] = _labels.number(s.mean, 4)
    shares = [{"module": name or "(parameters)", "share": v} for name, v in s.layers.items()]
    modules = Axis("module", "module", "nominal", ticks={"labelAngle": -45, "labelLimit": 140}, sort=None)
    y = measure("share", "share of the top eigenvector", ())
    said = "λ_max times a share is a lower bound of that module's own sharpness."
    drawn = [lines("Where the curvature sits", shares, modules, y, joined="false", reading=said)] if shares else []
    drawn += [made for made in (_compared(s), _descents(s)) if made is not None]
    rates = Table(
        ["optimiser", "largest stable rate"], [[k, _labels.number(v, 4)] for k, v in s.rates().items()], numeric=[1]
    )
    notes = [*s.warnings, *(f"not computed: {what} ({why})" for what, why in s.skipped.items())]
    found = f"λ_max {_labels.number(s.lambda_max)}, largest stable rate {_labels.number(s.max_stable_lr)}"
    return Sheet(f"Sharpness: {found if s.lambda_max > 0 else 'no curvature is left'}", [
        Section("", facts=facts, charts=drawn, notes=notes),
        Section("Linear stability (momentum 0.9)", table=rates),
    ])  # fmt: skip


def _compared(s: Sharpness) -> Chart | None:
    """λ_max in other modes, and with another last layer."""
    others = {**s.modes, **s.what_if}
    if not others:
        return None
    found = {"as measured": (s.lambda_max, s.error), **{k: (v, s.errors.get(k, 0.0)) for k, v in others.items()}}
    rows = [{"case": k, "value": v, "error": f"± {_labels.number(e, 2)}"} for k, (v, e) in found.items()]
    told = [tip("case"), tip("value", "λ_max", ".5~g"), tip("error")]
    y = measure("value", "λ_max (loss per unit of parameters squared)", [v for v, _ in found.values()])
    x = Axis("case", "case", "nominal", ticks={"labelAngle": -45, "labelLimit": 140}, sort=None)
    return lines("Other modes and last layers", rows, x, y, told=told, joined="false")


def _descents(s: Sharpness) -> Chart | None:
    """The loss of a few steps at and around the threshold."""
    rows: list[dict[str, Any]] = [
        {"step": i, "loss": v, "rate": _labels.number(run.rate)}
        for run in s.descent for i, v in enumerate(run.losses) if fits(v, False)
    ]  # fmt: skip
    if not rows:
        return None
    colour = Colour("rate", list(dict.fromkeys(r["rate"] for r in rows)), legend=True, title="rate")
    y = measure("loss", f"loss ({s.loss})", [r["loss"] for r in rows], log=all(r["loss"] > 0 for r in rows))
    return lines("Steps of gradient descent", rows, Axis("step", "step", **_RANK), y, colour=colour,
                 reading="At 0.5, 1 and 2 times the threshold of linear stability.")  # fmt: skip
