"""What a tracker does with a run while it goes on: findings are told, training is stopped, a page is kept up."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope.core import files
from normscope.core.errors import TrainingStopped, UsageError, function_of, shown, whole_number
from normscope.core.faces import SUFFIXES, pictured, show

if TYPE_CHECKING:
    import polars

    from normscope.probing.tracker import Tracker

#: From the worst to the mildest that training can be stopped on.
STOPS = ("error", "warning")
#: Measured steps after each of which the rules run; of more, after each twentieth part of them (chosen by us: the rules
#: read the whole table, so that their cost grows with it).
EACH = 50
#: Metrics that are finite wherever all is well.
ALWAYS = ("rms", "gradient_norm", "weight_norm", "loss")


class Watch:
    """on_finding: called with each finding once, and again where it got worse. stop_on: the severity from which on
    training is stopped. report: a page that is written again every ``report_every`` measured steps.
    """

    def __init__(
        self,
        on_finding: Callable[[Any], object] | None,
        stop_on: str | None,
        report: str | Path | None,
        report_every: int,
    ) -> None:
        if stop_on is not None and stop_on not in STOPS:
            raise UsageError(f"stop_on must be 'error' or 'warning'; got {shown(stop_on)}. Leave it out to go on.")
        self.every = whole_number("report_every", report_every, 1, "It counts measured steps; the default is 10.")
        if report is not None:
            if not pictured(files.path_text(report, "report")):
                raise UsageError(f"report must end in {', '.join(SUFFIXES)}; got {shown(report)}. Pass 'run.html'.")
            files.check(report)
        self._tell, self._stop, self._report = function_of("on_finding", on_finding), stop_on, report
        self._told: dict[str, str] = {}
        self._due = False

    def measured(self, tracker: Tracker, part: Callable[[], polars.DataFrame]) -> None:
        """A step was measured: its page is written if it is time, and the rules are to run if it is."""
        count = tracker.measured
        if self._report is not None and (count % self.every == 0 or count == 1):
            self.write(tracker)
        if self._tell is None and self._stop is None:
            return
        soon = count <= EACH or count % max(1, count // 20) == 0
        self._due |= soon or _broken(part())

    def write(self, tracker: Tracker) -> None:
        """The page as it is now; what stands in its way never stops training."""
        if self._report is None:
            return
        try:
            tracker.save(self._report)
        except Exception as error:  # a full disk, a missing extra: training goes on whatever it is
            tracker.note(f"the page {self._report} was not written: {type(error).__name__}: {error}")

    def judge(self, tracker: Tracker) -> None:
        """Run the rules if a step came since, and tell what is new. Raises `TrainingStopped`, the hooks taken off."""
        if not self._due:
            return
        self._due = False
        worst = None
        for finding in _found(tracker):
            before = self._told.get(finding.code)
            if before is not None and _rank(finding.severity) >= _rank(before):
                continue
            self._told[finding.code] = finding.severity
            if self._stop is not None and _rank(finding.severity) <= _rank(self._stop):
                worst = worst or finding
            self._call(tracker, finding)
        if worst is not None:
            raise TrainingStopped(f"{worst.code} {worst.title}: {worst.evidence}. {worst.cure}", worst)

    def _call(self, tracker: Tracker, finding: Any) -> None:
        if self._tell is None:
            return
        try:
            self._tell(finding)
        except Exception as error:  # of the user's function: told, as a writer's is
            tracker.note(f"on_finding raised {type(error).__name__}: {error}")


def _found(tracker: Tracker) -> list[Any]:
    try:
        return list(tracker.findings())
    except Exception as error:  # the rules must not stop a training
        tracker.note(f"no findings at step {tracker.steps}: {type(error).__name__}: {error}")
        return []


def _broken(part: polars.DataFrame) -> bool:
    """Whether a number that every layer has is not finite: that is told at once."""
    return any(not math.isfinite(v) for m, v in part.select("metric", "value").iter_rows() if m in ALWAYS)


def _rank(severity: str) -> int:
    return STOPS.index(severity) if severity in STOPS else len(STOPS)


def review(run: Any) -> Any:
    """The run with its findings, made on a higher floor."""
    return show("run.review", run)
