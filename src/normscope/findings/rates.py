"""The learning rates of a diagnosis: tried where they are asked for, and kept as plain numbers for the rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from normscope.call.step import Step
from normscope.core.errors import UsageError, flag
from normscope.core.records import Profile
from normscope.findings._rules import at_fault, find
from normscope.learning_rates import Rates, of_kinds
from normscope.training.own import wants_a_closure

#: Seconds that "auto" may take, as the trial; passes of one optimizer at most, of which an update has one.
SECONDS, PASSES = 20.0, 200


def wanted(rates: Any) -> bool | str:
    """What ``rates`` says: ``False``, ``True`` or "auto"."""
    return rates if isinstance(rates, str) and rates == "auto" else flag("rates, where it is not 'auto',", rates)


def tried(at: Step, rates: bool | str, profile: Profile) -> tuple[tuple[Rates, ...], str]:
    """The rates of the step's own optimizer, else of SGD, momentum and Adam; and why there are none, or ''.

    "auto": only where an optimizer is given, nothing is wrong with wiring, loss and data, and ``SECONDS`` suffice.
    """
    if not rates:
        return (), ""
    if rates == "auto" and (hindered := _hindered(at, profile)):
        return (), f"no learning rates were tried: {hindered}"
    try:
        return tuple(of_kinds(at)), ""
    except UsageError as error:  # no targets, or an optimizer that takes no single steps
        return (), f"no learning rates were tried: {error}"


def _hindered(at: Step, profile: Profile) -> str:
    """What stands in the way of trials that nobody asked for expressly; '' where nothing does."""
    if at.optimizer is None or wants_a_closure(at.optimizer):
        return "there is no optimizer that takes single steps"
    if at_fault(find(profile)):
        return "wiring, loss or data are at fault"
    second = profile.facts.get("checkup", {}).get("trial", {}).get("second_a_step", 0.0)
    return f"they would take {PASSES * second:.0f} s" if PASSES * second > SECONDS else ""


def numbers(found: tuple[Rates, ...]) -> Mapping[str, Any]:
    """What the rules read: by optimizer the fields of its rates, without the runs."""
    kept = [f.name for f in fields(Rates) if f.name != "runs"]
    return {r.optimizer: {name: getattr(r, name) for name in kept} for r in found}
