"""The rules over the steps: each fires on a run that has its symptom, none on one without; and on trained nets."""

import math

import numpy as np
import polars as pl
import pytest
from trainings import BROKEN, HEALTHY, followed

from normscope.findings import RULES
from normscope.findings.course import Course, Series
from normscope.findings.review import review
from normscope.probing.measurement import key_schema
from normscope.probing.runs import Run
from normscope.probing.scalars import frame

OVER_STEPS = [code for code, rule in RULES.items() if rule.over == "steps"]
LAYERS, STEPS = 4, range(0, 200, 4)


def noise(step, seed=0):
    return float(np.random.default_rng([seed, step]).normal())


def falls(step):
    return 2.3 * math.exp(-step / 60) + 0.01 * noise(step)


def flat(step):
    return math.log(10) + 0.003 * noise(step)


#: A run where all is well: signal, metric -> value of (layer, step).
WELL = {
    ("activation", "rms"): lambda at, s: 1.0,
    ("activation", "participation_rank"): lambda at, s: 6.0 - at,
    ("activation", "dead_units"): lambda at, s: 0.3,
    ("gradient", "gradient_norm"): lambda at, s: 0.1 * math.exp(-s / 60),
    ("weight", "gradient_norm"): lambda at, s: math.exp(-s / 60),
    ("weight", "relative_gradient"): lambda at, s: 0.1 * math.exp(-s / 60),
    ("weight", "weight_norm"): lambda at, s: 8.0 + 0.001 * s,
    ("weight", "relative_update"): lambda at, s: 0.003,
    ("run", "loss"): lambda s: falls(s),
    ("run", "val_loss"): lambda s: falls(s) + 0.1,
    ("run", "lr"): lambda s: 0.1,
}


def made(changes=None, *, without=(), steps=STEPS):
    """The healthy run, some of it changed or left out."""
    known = {k: v for k, v in {**WELL, **(changes or {})}.items() if k not in without and k[0] not in without}
    told = frame((s, metric, value(s)) for (signal, metric), value in known.items() if signal == "run" for s in steps)
    rows = [
        {"source": "measured", "step": s, "samples": 64, "layer": at, "name": f"l{at}", "call": 0, "kind": "Linear",
         "signal": signal, "metric": metric, "value": float(value(at, s))}
        for (signal, metric), value in known.items() if signal != "run" for s in steps for at in range(1, LAYERS + 1)
    ]  # fmt: skip
    schema = {"source": pl.String, "step": pl.Int64, **key_schema(), "value": pl.Float64}
    return Run("made", pl.concat([pl.DataFrame(rows, schema=schema), told]))


def codes(run):
    return {f.code: f for f in review(run).findings}


STILL = {("run", "loss"): flat, ("gradient", "gradient_norm"): lambda at, s: 0.1}
#: Code -> what is changed in the healthy run; severity, step and layer of the finding.
FIRES = {
    "NS911": ({("activation", "rms"): lambda at, s: math.nan if s >= 100 and at >= 3 else 1.0}, "error", 100, 3),
    "NS912": (
        STILL | {("activation", "participation_rank"): lambda at, s: 1.001 if s >= 80 and at >= 2 else 5.0},
        "error", 80, 2,
    ),
    "NS913": (
        STILL | {("activation", "dead_units"): lambda at, s: 1.0 if s >= 60 and at == 2 else 0.3}, "error", 60, 2,
    ),
    "NS914": (
        STILL | {("weight", "gradient_norm"): lambda at, s: 1e4 * at if s >= 120 else 1.0}, "error", 120, 4,
    ),
    "NS915": (STILL | {("weight", "gradient_norm"): lambda at, s: 1e-5 if s >= 40 else 1.0}, "warning", 40, None),
    "NS916": (STILL | {("weight", "relative_update"): lambda at, s: 0.2 + 0.1 * at}, "error", 0, 4),
    "NS917": (STILL | {("weight", "relative_update"): lambda at, s: 1e-8 * at}, "warning", 0, 4),
    "NS918": (STILL | {("weight", "weight_norm"): lambda at, s: 8 * math.exp(-s * at / 200)}, "error", 72, 4),
    "NS919": ({("weight", "relative_update"): lambda at, s: 0.0 if at == 3 else 0.003}, "warning", 0, 3),
    "NS921": ({("run", "loss"): lambda s: falls(s) if s < 100 else 9.0}, "error", 100, None),
    "NS922": (STILL, "warning", 0, None),
    "NS923": ({("run", "val_loss"): lambda s: 1 + abs(s - 80) / 80}, "warning", 80, None),
    "NS924": ({("run", "lr"): lambda s: 0.1 if s < 100 else 0.0}, "warning", 100, None),
    "NS925": ({("run", "loss"): lambda s: 6.0 if s == 120 else falls(s)}, "info", 120, None),
}  # fmt: skip


@pytest.mark.parametrize("code", OVER_STEPS)
def test_a_rule_fires_where_its_symptom_begins(code):
    changes, severity, step, layer = FIRES[code]
    found = codes(made(changes))
    assert code in found, found
    f = found[code]
    assert (f.severity, f.layer) == (severity, layer)
    assert abs(f.step - step) <= 8
    assert f"from step {f.step} on" in f.evidence


def test_no_rule_fires_where_all_is_well():
    assert codes(made()) == {}


@pytest.mark.parametrize("code", [c for c in OVER_STEPS if c not in ("NS911", "NS921", "NS923", "NS924", "NS925")])
def test_a_rule_that_lacks_its_numbers_says_what_it_needs(code):
    unseen = review(made(without=("run", "activation", "gradient", "weight"))).unseen
    assert set(unseen) == set(OVER_STEPS)
    assert unseen[code]


#: What looks like a symptom and is none, because the net learns.
HARMLESS = {
    "features of a regression": {("activation", "participation_rank"): lambda at, s: 1.01 if s >= 80 else 4.0},
    "gradients that fall with the loss": {("weight", "gradient_norm"): lambda at, s: 10 ** (-s / 20)},
    "units that die": {("activation", "dead_units"): lambda at, s: 0.9 if s >= 80 else 0.3},
    "weights that shrink": {("weight", "weight_norm"): lambda at, s: 8 * math.exp(-s / 100)},
    "large steps": {("weight", "relative_update"): lambda at, s: 0.5},
    "a warm-up from zero, and a decay to zero": {("run", "lr"): lambda s: min(s, 40) / 40 * (1 - s / 196)},
    "an overflow that a scaler leaves out": {
        ("weight", "gradient_norm"): lambda at, s: math.inf if s == 40 else math.exp(-s / 60)
    },
    "a loss of small batches": {("run", "loss"): lambda s: max(0.02, falls(s) * math.exp(0.5 * noise(s)))},
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_net_that_learns_may_do_is_at_most_a_note(name):
    assert [f for f in codes(made(HARMLESS[name])).values() if f.severity != "info"] == []


def test_no_loss_known_the_gradient_at_the_outputs_tells_whether_it_learns():
    still = {("gradient", "gradient_norm"): lambda at, s: 0.1}
    assert Course(made(without=("run",))).learnt is True
    assert Course(made(still, without=("run",))).learnt is False


def test_a_few_steps_are_not_judged():
    changes = FIRES["NS912"][0] | {("run", "loss"): flat}
    assert codes(made(changes, steps=range(90, 110, 4))) == {}


def test_the_noise_of_a_curve_knows_no_trend():
    steps = np.arange(200)
    line = Series(steps, 5.0 - 0.02 * steps)
    assert line.noise == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_training_gets_no_alarm(name):
    found = followed(HEALTHY[name], steps=49, every=6)
    assert [(f.code, f.evidence) for f in found.findings if f.severity != "info"] == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_training_gets_the_finding_of_its_cause(name):
    make, causes = BROKEN[name]
    found = followed(make, steps=49, every=6)
    assert [f for f in found.findings if f.code in causes and f.severity != "info"], found.findings
