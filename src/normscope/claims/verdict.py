"""Run one claim and its control, and say: holds, fails, undecided."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from normscope._errors import UsageError
from normscope.claims.claim import CLAIMS, Claim, Curve, Evidence, Run
from normscope.claims.reading import Reading, worst


@dataclass(frozen=True)
class Verdict:
    """What one run of a claim said.

    ``status``: ``holds``, ``fails`` or ``undecided``; ``rejected`` if the control did not do the opposite, so that the
    check proves nothing; ``error`` if it raised. ``expected`` is the status the claim should have.
    """

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


def _margin(reading: Reading) -> float:
    """Distance from the value to the nearer edge of its band, in the band's half width or else the value's size."""
    room = min(reading.value - reading.low, reading.high - reading.value)
    width = (reading.high - reading.low) / 2
    return room / (width if math.isfinite(width) and width > 0 else max(abs(reading.value), 1e-300))


def judge(name: str, size: str = "quick", seed: int = 0, **how: Any) -> Verdict:
    """Run the claim ``name`` and its control at ``size``; ``how``: ``device``, ``data_dir`` (see `Run`).

    A claim that raises is a verdict of status ``error`` with the traceback, except for ``UsageError``s of the names.
    """
    claim = CLAIMS[name]
    if size not in ("quick", "full"):
        raise UsageError(f"The size of a claim must be quick or full; got {size!r}.")
    run, began = Run(seed, **how), time.perf_counter()
    blank = Verdict(
        name, size, seed, "error", "holds" if claim.should == "hold" else "fails", "not run", device=run.device,
        data="" if run.data_dir is None else "files", torch=torch.__version__, normscope=_version(),
    )  # fmt: skip
    try:
        found = claim.run(size, run)
        against = claim.run(size, run, control=True)
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        return replace(blank, seconds=time.perf_counter() - began, error=text)
    status, control = worst(found.readings), worst(against.readings)
    return replace(
        blank,
        status=_weighed(claim, status, control),
        control=control,
        readings=found.readings,
        control_readings=against.readings,
        curves=(*found.curves, *(replace(c, role="control") for c in against.curves if c.role == "ours")),
        notes=found.notes,
        seconds=time.perf_counter() - began,
    )


def _weighed(claim: Claim, status: str, control: str) -> str:
    """The claim's status, or ``rejected`` if its control did not come out the other way."""
    other = "fails" if claim.should == "hold" else "holds"
    return status if control == other else "rejected"


def _version() -> str:
    from importlib.metadata import version

    return version("normscope")


def cell(claim: str, size: str = "quick", seed: int = 0, **how: Any) -> Mapping[str, Any]:
    """One claim as the row of a store."""
    verdict = judge(claim, size, seed, **how)
    return {"status": verdict.status, "verdict": verdict.to_json()}


__all__ = ["Evidence", "Verdict", "cell", "judge"]
