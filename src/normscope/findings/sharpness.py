"""NS401, NS402: the curvature of the whole batch (``diagnose(..., curvature=True)``), and the rate in use."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from normscope.findings._rules import Hit, View, rule

GAIN_INFO, GAIN_WARNING, RATE = 5.0, 20.0, 1.0
#: A rate is too small below this share of the best one: a note, a warning.
SMALL_INFO, SMALL_WARNING = 1e-2, 1e-3


@rule(
    "NS401",
    "pathological sharpness",
    severity="warning",
    meaning="A few directions, the mean gradients of the outputs, are far steeper than all others and cap the learning "
    "rate.",
    cure="Subtract the batch mean of the outputs (`normscope cure MODEL --how center-outputs`), or put batch norm "
    "after the last layer (`--how last-batch-norm`). Centred outputs cannot have a mean: with squared loss subtract "
    "the targets' too.",
    source="chosen by us; both values are measured on this batch",
)
def pathological_sharpness(view: View) -> Iterator[Hit]:
    """The largest eigenvalue of the Fisher matrix falls more than fivefold when the outputs are centred over the batch.

    Without a norm after the last layer λ_max grows like the width, while the mean eigenvalue falls: its eigenvectors
    are the mean gradients of the outputs. Mean subtraction or batch norm in the last layer removes them; batch norm in
    hidden layers of a ReLU net does not (λ_max ≈ width / 2π), nor does layer norm. Plain gradient descent is linearly
    stable up to the rate 2 / λ_max. Info from a factor of 5, warning from 20, nothing while 2 / λ_max is above 1: then
    it caps no rate in use. Few samples for the width leave less to gain.

    Reference: Karakida, Akaho, Amari 2019.
    """
    top, centred = view.facts.get("lambda_max"), view.facts.get("lambda_max_centred")
    if top and centred and top > GAIN_INFO * centred and 2 / top < RATE:
        yield Hit(
            None,
            "lambda_max",
            top,
            GAIN_INFO * centred,
            f"λ_max is {top:.4g}; with the outputs centred over the batch it is {centred:.4g}: the largest stable rate "
            f"goes from {2 / top:.2g} to {2 / centred:.2g}",
            "warning" if top > GAIN_WARNING * centred else "info",
        )


@rule(
    "NS402",
    "learning rate too large or too small",
    severity="warning",
    meaning="Above the largest rate that trains the loss rises from the first steps on, or jumps about; far below the "
    "best one training takes hundreds of times as long.",
    cure="Take the best rate of `diagnose MODEL --rates` (`rates=True`, `normscope why --rates train.py`), or warm up "
    "to yours. Where only 2 / λ_max is known: try it, or lower the sharpness first (NS401).",
    source="trials of 20 steps (docs/rates.md), chosen by us: a thousandth of the best rate, a note from a hundredth "
    "on; without trials 2 / λ_max, linear stability of gradient descent",
)
def rate_off(view: View) -> Iterator[Hit]:
    """The learning rate in use is above the interval of the largest one that trains, by trials of the user's own
    optimizer (``rates=True``); or far below the best one and all that are as good.

    A note where the trial of the user's own steps trained, where a warm-up leads to the rate, and where the loop clips:
    trials are plain updates at one rate. Not judged where wiring, loss or data are at fault, and no rate is named where
    none trains.

    Without trials a rate that is given (``lr=``) is held against 2 / λ_max of this batch: the linear stability of
    full-batch gradient descent. It is no bound on the rates that train. From initialization nets can pass through it to
    flatter places, or rise below it; momentum β makes it 2 (1 + β) / λ_max, and of Adam it says nothing. How far it is
    off was measured on small nets: docs/rates.md.

    Reference: Karakida, Akaho, Amari 2019, section on the learning rate; Cohen et al. 2021 (edge of stability).
    """
    top, given = view.facts.get("lambda_max"), view.facts.get("learning_rate")
    if (trial := _trial_of(view, given)) is not None:
        yield from _by_trial(view, trial, given)
    elif top and given and given > 2 / top:
        text = f"the rate {given:.3g} is {given * top / 2:.3g} times 2 / λ_max = {2 / top:.3g}"
        yield Hit(None, "learning_rate", given, 2 / top, text)


def _trial_of(view: View, given: float | None) -> Mapping[str, Any] | None:
    """The trials that a rate is held against: of the user's own optimizer, or of SGD where only a rate was given."""
    rates = view.section("rates")
    own = next((r for r in rates.values() if not math.isnan(r["own"])), None)
    return own or (rates.get("sgd") if given else None)


def _by_trial(view: View, trial: Mapping[str, Any], given: float | None) -> Iterator[Hit]:
    rate, most, best = given or trial["own"], trial["largest_interval"][1], trial["best"]
    own, steps = view.section("trial").get("own", {}), trial["steps"]
    if given is None and own.get("trains"):
        excuse = "its own trial trained"
    elif own.get("warms_up"):
        excuse = "a warm-up leads to it"
    else:
        excuse = "the loop clips" if any("clip" in e for e in view.section("loop").get("events", ())) else ""
    yet, note = (f" (yet {excuse})", "info") if excuse else ("", "")
    name = trial["optimizer"]
    if rate > most:
        text = (
            f"the rate {rate:.3g} is too large: in trials of {steps} steps {name} trains up to {trial['largest']:.3g} "
            f"({trial['largest_interval'][0]:.3g} to {most:.3g}), best at {best:.3g}{yet}"
        )
        yield Hit(None, "learning_rate", rate, most, text, note)
    elif 0 < rate < SMALL_INFO * best and rate < trial["best_interval"][0]:
        text = f"the rate {rate:.3g} is {best / rate:.0f} times below the best of {name} in trials of {steps} steps, "
        small = note or ("" if rate < SMALL_WARNING * best else "info")
        yield Hit(None, "learning_rate", rate, SMALL_INFO * best, text + f"{best:.3g}: it is too small{yet}", small)
