"""What a race's numbers are worth, against textbook values and other formulas."""

import math

import polars as pl
import pytest

from normscope.racing._run import Row, table
from normscope.racing._statistics import default_target, holm, interval, summarise


def raced(losses, accuracies=None, diverged=()):
    """A table from {variant: {seed: [losses]}}."""
    frames = []
    for variant, seeds in losses.items():
        for seed, values in seeds.items():
            rows = [Row(i, "batch", "loss", v) for i, v in enumerate(values)]
            if (variant, seed) in diverged:
                rows.append(Row(len(values) - 1, "run", "diverged", values[-1]))
            elif accuracies:
                rows.append(Row(len(values), "test", "accuracy", accuracies[variant][seed]))
            rows += [Row(0, "run", "lr", 0.1), Row(len(values), "run", "seconds_per_step", 0.01)]
            frames.append(table(variant, seed, rows, 10))
    return pl.concat(frames)


def flat(**ends):
    """{variant: {seed: ten losses that start at 4}} from final values."""
    return {v: {s: [4.0] + [end] * 20 for s, end in enumerate(values)} for v, values in ends.items()}


def test_an_interval_is_the_textbook_one():
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.302653 / math.sqrt(3), rel=1e-6))  # t(0.975, 2) = 4.302653


def test_intervals_of_few_values():
    assert math.isnan(interval([])[0])
    assert interval([2.0])[0] == 2.0
    assert math.isnan(interval([2.0])[1])
    assert interval([1.0, math.nan, 3.0])[0] == 2.0


def test_holm_is_the_textbook_one():
    """0.01, 0.04, 0.03: three times 0.01, then twice 0.03, then 0.04 raised to what stands before it."""
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    found = holm({"a": math.nan, "b": 0.04})
    assert math.isnan(found["a"])
    assert found["b"] == 0.04


def test_p_is_the_paired_t_test_corrected_for_the_number_of_variants():
    """Differences -1, -2, -3: t = -2 sqrt(3), two degrees of freedom, p = 1 - |t| / sqrt(2 + t^2)."""
    lines = summarise(
        raced(flat(base=[1.5, 2.6, 3.7], a=[0.5, 0.6, 0.7], b=[1.6, 2.5, 3.8])), ["base", "a", "b"], "base", None
    )
    t = 2 * math.sqrt(3)
    assert lines[1].p_loss == pytest.approx(2 * (1 - t / math.sqrt(2 + t * t)), rel=1e-9)
    assert lines[1].verdict == lines[2].verdict == "no difference seen"
    assert math.isnan(lines[0].p_loss)


def test_verdicts_follow_p_and_the_direction():
    data = raced(flat(base=[1.0, 1.01, 0.99], low=[0.5, 0.52, 0.49], high=[1.5, 1.52, 1.49]))
    assert [x.verdict for x in summarise(data, ["base", "low", "high"], "base", None)] == [
        "baseline",
        "better",
        "worse",
    ]


def test_two_seeds_are_too_few():
    (_, a) = summarise(raced(flat(base=[1.0, 1.1], a=[0.1, 0.2])), ["base", "a"], "base", None)
    assert a.verdict == "too few seeds to tell"
    assert math.isnan(a.p_loss)


def test_equal_runs_differ_in_nothing():
    (_, a) = summarise(raced(flat(base=[1.0, 1.1, 1.2], a=[1.0, 1.1, 1.2])), ["base", "a"], "base", None)
    assert (a.p_loss, a.verdict) == (1.0, "no difference seen")


def test_where_runs_diverged_the_signs_are_counted():
    """Six seeds; the baseline diverges in two, the other is lower everywhere: p = 2 / 2^6."""
    data = raced(flat(base=[1.0] * 6, a=[0.5] * 6), diverged={("base", 0), ("base", 1)})
    base, a = summarise(data, ["base", "a"], "base", None)
    assert a.p_loss == pytest.approx(2 / 64)
    assert (base.diverged, base.train_loss, a.verdict) == (2, 1.0, "better")


def test_a_run_that_diverged_is_worse_than_any_that_ended():
    data = raced(flat(base=[1.0] * 6, a=[0.5] * 6), diverged={("a", s) for s in range(6)})
    _, a = summarise(data, ["base", "a"], "base", None)
    assert (a.p_loss, a.verdict) == (pytest.approx(2 / 64), "diverged")


def test_both_diverged_is_a_tie():
    both = {("a", 0), ("base", 0)}
    _, a = summarise(raced(flat(base=[1.0] * 6, a=[0.5] * 6), diverged=both), ["base", "a"], "base", None)
    assert a.p_loss == pytest.approx(2 / 32)


def test_accuracy_is_better_the_larger_it_is():
    right = {"base": {0: 0.1, 1: 0.12, 2: 0.14}, "a": {0: 0.8, 1: 0.83, 2: 0.84}}
    _, a = summarise(raced(flat(base=[1.0, 1.1, 1.2], a=[1.0, 1.2, 1.1]), right), ["base", "a"], "base", None)
    assert a.p_accuracy < 0.001
    assert a.p_loss > 0.5
    assert a.test_accuracy == pytest.approx(0.82333, rel=1e-4)


def test_the_final_loss_is_the_mean_of_the_last_twentieth_or_of_ten():
    (a,) = summarise(raced({"a": {0: [9.0] * 10 + [1.0] * 10}}), ["a"], "a", None)
    assert a.train_loss == 1.0
    (a,) = summarise(raced({"a": {0: [9.0] * 380 + [1.0] * 10 + [3.0] * 10}}), ["a"], "a", None)
    assert a.train_loss == 2.0


def test_steps_to_a_loss_are_of_the_trailing_mean_and_the_median_seed():
    falling = [5.0] * 20 + [0.0] * 20
    seeds = {0: falling, 1: falling[10:] + [0.0] * 10, 2: [5.0] * 40}
    (a,) = summarise(raced({"a": seeds}), ["a"], "a", 2.5)
    assert a.steps_to_target == 25  # five of the last ten are 0; seed 1 after 15, seed 2 never
    (a,) = summarise(raced({"a": {0: seeds[2], 1: seeds[2], 2: falling}}), ["a"], "a", 2.5)
    assert a.steps_to_target is None


def test_the_default_target_is_half_way_down_on_a_log_axis():
    assert default_target(raced(flat(base=[4.0], a=[0.25])), ["base", "a"]) == pytest.approx(1.0)
    assert default_target(raced(flat(base=[4.0])), ["base"]) is None
