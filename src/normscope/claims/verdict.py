"""Run one claim and its control, and say: holds, fails, undecided."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from normscope.claims.claim import CLAIMS, SIZES, Claim, Curve, Evidence, Run
from normscope.claims.reading import Reading, worst
from normscope.core.errors import UsageError
from normscope.core.faces import Shown

#: How often a claim is measured at most before it is called undecided, and how far apart the seeds of these lie.
LOOKS = 4
_APART = 1_000_003


@dataclass(frozen=True)
class Verdict(Shown):
    """What one run of a claim said.

    ``status``: ``holds``, ``fails`` or ``undecided``; ``rejected`` if the control did not do the opposite, so that the
    check proves nothing (with several controls: if one of them did not); ``error`` if it raised, or if a reading of it
    or of its control is NaN. ``expected`` is the status the claim should have.
    """

    face = "verdicts"
    claim: str
    size: str
    seed: int
    status: str
    expected: str
    control: str
    readings: tuple[Reading, ...] = ()
    control_readings: tuple[Reading, ...] = ()
    curves: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = math.nan
    device: str = "cpu"
    data: str = ""
    torch: str = ""
    normscope: str = ""
    error: str = ""

    @property
    def as_expected(self) -> bool:
        """Whether the claim said what it should, and its control did the opposite."""
        return self.status == self.expected

    @property
    def worst(self) -> Reading | None:
        """The reading that decides: of the worst status the one nearest to (or farthest beyond) its band's edge."""
        of_status = [r for r in self.readings if r.status == worst(self.readings)]
        return min(of_status, key=_margin, default=None)

    def guard(self, reading: Reading) -> str:
        """What shows that one of the readings can fail: ``control``, where it comes out the other way; ``exact``, an
        identity that none can break; or ``none``.

        It is told by its quantity, or else by the words before the comma (``slope, n = 4``).
        """
        other = [r for r in self.control_readings if r.quantity == reading.quantity] or [
            r for r in self.control_readings if _label(r) == _label(reading)
        ]
        if any(r.status in ("holds", "fails") and r.status != reading.status for r in other):
            return "control"
        return "exact" if reading.exact else "none"

    def to_json(self) -> str:
        """As one JSON document; `from_json` reads it back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Verdict:
        """The verdict of `to_json`."""
        raw = json.loads(text)
        for name in ("readings", "control_readings"):
            raw[name] = tuple(Reading(**r) for r in raw[name])
        raw["curves"] = tuple(Curve(**c) for c in raw["curves"])
        raw["notes"] = tuple(raw["notes"])
        return cls(**raw)


def _label(reading: Reading) -> str:
    return reading.quantity.partition(",")[0]


def _margin(reading: Reading) -> float:
    """Distance from the value to the nearer edge of its band, in the band's half width or else the value's size."""
    if reading.fault:
        return -math.inf
    room = min(reading.value - reading.low, reading.high - reading.value)
    width = (reading.high - reading.low) / 2
    return room / (width if math.isfinite(width) and width > 0 else max(abs(reading.value), 1e-300))


def blank(name: str, size: str, seed: int, device: str = "cpu", data_dir: Path | None = None) -> Verdict:
    """The verdict on a claim that did not get to its end."""
    return Verdict(
        name, size, seed, "error", "holds" if CLAIMS[name].should == "hold" else "fails", "not run", device=device,
        data="digits" if data_dir is None else "files", torch=torch.__version__, normscope=version("normscope"),
    )  # fmt: skip


def judge(
    name: str, size: str = "quick", seed: int = 0, *, device: str = "cpu", data_dir: Path | None = None
) -> Verdict:
    """Run the claim ``name`` and its control at ``size``. A claim that raises is a verdict of status ``error``."""
    claim = CLAIMS[name]
    if size not in SIZES:
        raise UsageError(f"The size of a claim must be one of {', '.join(SIZES)}; got {size!r}.")
    run, began = Run(seed, device, data_dir), time.perf_counter()
    verdict = blank(name, size, seed, device, data_dir)
    try:
        found = _measured(claim, size, run)
        against = [_measured(claim, size, run, control) for control in claim.controls]
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        return replace(verdict, seconds=time.perf_counter() - began, error=text)
    control = _least([worst(a.readings) for a in against], "fails" if claim.should == "hold" else "holds")
    broken = tuple(r for a in against for r in a.readings)
    faults = [r.fault for r in found.readings] + [r.fault and f"in the control {r.fault}" for r in broken]
    return replace(verdict, status=_weighed(claim, worst(found.readings), control),
                   error="; ".join(filter(None, faults)), control=control, readings=found.readings,
                   control_readings=broken,
                   curves=(*found.curves, *(replace(c, role="control") for c in against[0].curves if c.role == "ours")),
                   notes=found.notes, seconds=time.perf_counter() - began)  # fmt: skip


def _measured(claim: Claim, size: str, run: Run, control: Mapping[str, Any] | None = None) -> Evidence:
    """What the claim measures; where its errors leave it open, again with other draws, up to `LOOKS` times in all: the
    means decide, with their smaller errors. A reading without an error stays as it was first measured.
    """
    first = pooled = claim.run(size, run, control)
    looks = [first.readings]
    while worst(pooled.readings) == "undecided" and len(looks) < LOOKS:
        looks.append(claim.run(size, replace(run, seed=run.seed + len(looks) * _APART), control).readings)
        if any([r.quantity for r in look] != [r.quantity for r in first.readings] for look in looks):
            return first
        note = f"Its errors left it open: the means of {len(looks)} measurements decide."
        means = tuple(map(_mean, zip(*looks, strict=True)))
        pooled = replace(first, readings=means, notes=(*first.notes, note))
    return pooled


def _mean(readings: tuple[Reading, ...]) -> Reading:
    """The mean of one reading's measurements, held against the mean of their bands; one at fault stands for all."""
    if faulty := [r for r in readings if r.fault]:
        return faulty[0]
    if not all(r.stderr for r in readings):
        return readings[0]
    stderr = math.hypot(*(r.stderr for r in readings)) / len(readings)
    value, low, high = (fmean(getattr(r, name) for r in readings) for name in ("value", "low", "high"))
    return replace(readings[0], value=value, low=low, high=high, stderr=stderr)


def _least(statuses: list[str], wanted: str) -> str:
    """The status that stands for all controls: an error if there is one, else any that is not the ``wanted`` one."""
    return "error" if "error" in statuses else next((s for s in statuses if s != wanted), wanted)


def _weighed(claim: Claim, status: str, control: str) -> str:
    """The claim's status, or ``rejected`` if its control did not come out the other way; ``error`` if one has that."""
    if "error" in (status, control):
        return "error"
    other = "fails" if claim.should == "hold" else "holds"
    return status if control == other else "rejected"
