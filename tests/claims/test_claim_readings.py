"""Readings that can fail: NaN is an error by name wherever it comes from, and every reading says what guards it."""

import ast
import importlib
import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from normscope import claims
from normscope.claims import CLAIMS, Reading, Verdict, Verdicts, at_least, at_most, between, judge, near, verify
from normscope.claims._tables import highest, indicator, lowest
from normscope.claims._training import Data, accuracy
from normscope.claims.verification import coverage, fingerprint
from normscope.cli.verify import UNDECIDED
from normscope.geometry.metrics import METRICS
from normscope.nn import norms
from normscope.nn.norms import integrals

NAN, INF = math.nan, math.inf
KINDS = {
    "near": lambda v, **more: near("q", v, 1.0, 0.5, **more),
    "near, relative": lambda v, **more: near("q", v, 1.0, relative=0.5, **more),
    "at_most": lambda v, **more: at_most("q", v, 1.0, **more),
    "at_least": lambda v, **more: at_least("q", v, 1.0, **more),
    "between": lambda v, **more: between("q", v, 0.5, 1.5, **more),
    "Reading": lambda v, **more: Reading("q", v, **more),
}


@pytest.fixture(scope="module", autouse=True)
def papers():
    claims.load()


@pytest.fixture
def judged(monkeypatch):
    """The verdict on readings: ``mine`` those of a claim, ``control`` those of its control (one that fails)."""

    def measured(*mine, control=()):
        against = control or (at_most("q", 9, 1),)
        claim = replace(
            CLAIMS["daneshmand2021/gap"], measure=lambda run, broken=False: against if broken else mine, quick={},
            controls=({"broken": True},),
        )  # fmt: skip
        monkeypatch.setitem(CLAIMS._enrolled, claim.name, claim)
        return judge(claim.name)

    return measured


# NaN and infinity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_in_its_band_holds(kind, judged):
    assert judged(KINDS[kind](1.0)).status == "holds"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("value", "stderr", "named"), [(NAN, 0.0, "value is nan"), (1.0, NAN, "stderr is nan")])
def test_nan_is_an_error_that_names_the_reading(kind, value, stderr, named, judged):
    verdict = judged(at_most("sound", 0, 1), KINDS[kind](value, stderr=stderr))
    assert verdict.status == "error"
    assert verdict.error == f"'q': {named}"
    assert Verdicts((verdict,)).failed


@pytest.mark.parametrize(
    "reading",
    [near("q", 1.0, NAN, 0.1), near("q", 1.0, 1.0, NAN), at_most("q", 1.0, NAN), at_least("q", 1.0, NAN),
     between("q", 1.0, NAN, 2.0), between("q", 1.0, 0.0, NAN), near("q", INF, INF, 0.1)],
)  # fmt: skip
def test_nothing_holds_in_a_band_that_is_nan(reading, judged):
    assert reading.status != "holds"
    assert judged(reading).status in ("error", "fails", "rejected")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [INF, -INF])
def test_infinity_holds_nowhere(kind, value):
    assert KINDS[kind](value).status in ("fails", "error")


def test_nan_in_a_control_is_an_error_too(judged):
    verdict = judged(at_most("q", 0, 1), control=(at_most("q", NAN, 1), at_most("r", 9, 1)))
    assert verdict.status == "error"
    assert verdict.error == "in the control 'q': value is nan"


def test_the_words_for_an_error_are_kept_with_the_readings(judged):
    verdict = judged(at_most("q", NAN, 1))
    assert str(Verdict.from_json(verdict.to_json()).readings) == str(verdict.readings)
    assert verdict.worst.quantity == "q"


# Numbers of many numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("series", [[0.0, NAN], [NAN, 0.0], np.array([1.0, NAN, 2.0])])
def test_the_largest_and_smallest_of_a_series_with_nan_are_nan(series):
    assert math.isnan(highest(series))
    assert math.isnan(lowest(series))
    assert math.isnan(highest(*series))


def test_without_nan_they_are_what_python_says():
    assert (highest([1, 3, 2]), lowest(3, 1, 2), highest(iter([0.5]))) == (3, 1, 0.5)


def test_a_comparison_with_nan_is_nan():
    x = np.array([1.0, NAN, 3.0])
    np.testing.assert_array_equal(indicator(x > 2, x), [0, NAN, 1])
    assert math.isnan(indicator(x > 2, x).mean())


def test_no_claim_takes_a_largest_or_smallest_that_may_lose_nan():
    lost = {"nanmax", "nanmin", "nanmean", "nanmedian", "nanstd", "nansum", "fmax", "fmin", "nan_to_num"}
    found = []
    for path in Path(claims.__file__).parent.glob("*/*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = node.func if isinstance(node, ast.Call) else None
            if isinstance(name, ast.Name) and name.id in ("max", "min"):
                found.append(f"{path.name}:{node.lineno} {name.id}(): highest() or lowest()")
            if isinstance(name, ast.Attribute) and name.attr in lost:
                found.append(f"{path.name}:{node.lineno} {name.attr}()")
    assert not found


# NaN in the library -------------------------------------------------------------------------------------------------


def error_of(name):
    verdict = judge(name)
    assert verdict.status == "error", verdict
    return verdict.error


def metric_is_nan(monkeypatch, name, only=lambda count: True):
    metric, count = METRICS[name], iter(range(10**9))
    original = metric.function
    nan = lambda *a, **k: original(*a, **k) * (NAN if only(next(count)) else 1.0)  # noqa: E731
    object.__setattr__(metric, "function", nan)
    return lambda: object.__setattr__(metric, "function", original)


@pytest.mark.parametrize("only", [lambda count: True, lambda count: count == 3], ids=["always", "once"])
@pytest.mark.parametrize(
    ("metric", "claim"),
    [("sigma_min", "daneshmand2021/gap"), ("orthogonality_gap", "daneshmand2021/gap"),
     ("participation_rank", "daneshmand2020/lemma1"), ("soft_rank", "daneshmand2020/lemma1")],
)  # fmt: skip
def test_a_metric_that_is_nan_is_an_error_of_its_claim(metric, claim, only, monkeypatch):
    mend = metric_is_nan(monkeypatch, metric, only)
    try:
        assert "nan" in error_of(claim)
    finally:
        mend()


@pytest.mark.parametrize("claim", ["daneshmand2021/normalization", "nachum2024/parts"])
def test_a_norm_that_returns_nan_is_an_error_of_its_claim(claim, monkeypatch):
    forward = norms.BatchNorm.forward
    monkeypatch.setattr(norms.BatchNorm, "forward", lambda self, x: NAN * forward(self, x))
    assert "nan" in error_of(claim)


@pytest.mark.parametrize("claim", ["daneshmand2021/lemma8", "daneshmand2021/contraction"])
def test_a_spectrum_that_is_nan_is_an_error_of_its_claim(claim, monkeypatch):
    original = integrals.rescaled_spectrum
    for room in ("normscope.nn.norms.integrals", "normscope.theory.predicted", "normscope.theory.laws.orthogonality"):
        monkeypatch.setattr(importlib.import_module(room), "rescaled_spectrum", lambda v: NAN * original(v))
    assert "nan" in error_of(claim)


def test_the_accuracy_of_a_net_whose_outputs_are_nan_is_nan():
    data = Data(torch.zeros(256, 3), torch.zeros(256, dtype=torch.long), "none")
    net = torch.nn.Linear(3, 2)
    assert 0 <= accuracy(net, data) <= 1
    torch.nn.init.constant_(net.bias, NAN)
    assert math.isnan(accuracy(net, data))


# What guards a reading ----------------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch):
    """The verdict on readings that ``draw(how many came before)`` gives, and the seeds it was measured with."""

    def measured(draw):
        seeds = []

        def measure(run, broken=False):
            if broken:
                return (at_most("q", 9, 1),)
            seeds.append(run.seed)
            return draw(len(seeds) - 1)

        claim = replace(CLAIMS["daneshmand2021/gap"], measure=measure, quick={}, controls=({"broken": True},))
        monkeypatch.setitem(CLAIMS._enrolled, claim.name, claim)
        return judge(claim.name, seed=3), seeds

    return measured


def test_a_claim_that_its_errors_leave_open_is_measured_again_and_the_means_decide(measured):
    """1.1, .9 and 1.0 of error .3 each: 1.1 +- .6 leaves [.5, 1.5] open, and so does 1 +- .42; 1 +- .35 does not."""
    verdict, seeds = measured(lambda i: (near("q", (1.1, 0.9, 1.0)[i], 1.0, 0.4, stderr=0.3), near("exact", i, 0, 0.5)))
    noisy, first = verdict.readings
    assert verdict.status == "holds"
    assert len(set(seeds)) == 3
    assert seeds[0] == 3
    assert (noisy.value, noisy.stderr) == (pytest.approx(1.0), pytest.approx(0.3 / math.sqrt(3)))
    assert first.value == 0, "a reading without an error stays as first measured"
    assert "means of 3" in verdict.notes[0]


def test_the_means_can_fail_too(measured):
    verdict, seeds = measured(lambda i: (near("q", (1.4, 2.0)[i], 1.0, 0.4, stderr=0.1),))
    assert (verdict.status, len(seeds)) == ("fails", 2)


def test_what_stays_open_is_undecided_after_four_measurements(measured):
    verdict, seeds = measured(lambda i: (near("q", 1.4, 1.0, 0.4, stderr=0.1),))
    assert (verdict.status, len(set(seeds))) == ("undecided", 4)


def test_a_band_that_the_draws_set_is_averaged_with_them(measured):
    verdict, _ = measured(lambda i: (near("q", 1.0 + i, 1.2 + i, 0.4, stderr=0.12),))
    (reading,) = verdict.readings
    assert (reading.value, reading.low, reading.high) == pytest.approx((1.5, 1.3, 2.1))


@pytest.mark.parametrize("stderr", [0.0, 0.01])
def test_nan_in_a_later_measurement_is_an_error(stderr, measured):
    verdict, _ = measured(
        lambda i: (near("open", 1.4, 1.0, 0.4, stderr=0.1), near("q", (1.0, NAN)[i], 1.0, 0.4, stderr=stderr))
    )
    assert verdict.status == "error"
    assert "'q'" in verdict.error


def test_one_measurement_decides_where_another_one_has_other_readings(measured):
    verdict, _ = measured(lambda i: (near(f"q{i}", 1.4, 1.0, 0.4, stderr=0.1),))
    assert verdict.status == "undecided"
    assert verdict.readings[0].quantity == "q0"


def test_a_reading_is_guarded_by_a_control_that_turns_it_or_exact_or_by_none():
    mine = (at_most("turns", 0, 1), at_most("stays", 0, 1), near("identity", 1, 1, 1e-9, exact="algebra"))
    control = (at_most("turns", 9, 1), at_most("stays", 0, 1), near("identity", 1, 1, 1e-9, exact="algebra"))
    verdict = Verdict("daneshmand2021/gap", "quick", 0, "holds", "holds", "fails", mine, control)
    assert [verdict.guard(r) for r in mine] == ["control", "none", "exact"]
    assert coverage([verdict]) == {"control": 1, "none": 1, "exact": 1}


def test_a_control_at_other_parameters_is_found_by_the_words_before_the_comma():
    verdict = Verdict(
        "daneshmand2021/gap", "quick", 0, "holds", "holds", "fails", (at_most("slope, n = 4", 0, 1),),
        (at_most("slope, n = 8", 9, 1),),
    )  # fmt: skip
    assert verdict.guard(verdict.readings[0]) == "control"


def test_a_statement_that_is_wrong_as_printed_is_guarded_by_a_control_that_holds():
    verdict = Verdict(
        "daneshmand2021/gap", "quick", 0, "fails", "fails", "holds", (at_most("q", 9, 1), at_most("r", 0, 1)),
        (at_most("q", 0, 1), at_most("r", 0, 1)),
    )  # fmt: skip
    assert [verdict.guard(r) for r in verdict.readings] == ["control", "none"]


def test_an_exact_reading_says_why():
    assert at_most("q", 0, 1, exact="algebra").reason == "algebra"
    with pytest.raises(ValueError, match="reason"):
        Reading("q", 0.0, exact=True)


def test_verdicts_of_an_older_version_can_be_read():
    verdict = Verdict("daneshmand2021/gap", "quick", 0, "holds", "holds", "fails", (at_most("q", 0, 1),), seconds=1.0)
    raw = json.loads(verdict.to_json())
    del raw["readings"][0]["exact"]
    assert Verdict.from_json(json.dumps(raw)) == verdict


# The command --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "more", "code"),
    [("holds", [], 0), ("fails", [], 1), ("error", [], 1), ("rejected", [], 1), ("undecided", [], UNDECIDED),
     ("undecided", ["--allow-undecided"], 0), ("fails", ["--allow-undecided"], 1)],
)  # fmt: skip
def test_the_exit_code_says_the_worst(status, more, code, monkeypatch, run):
    verdict = Verdict("daneshmand2021/gap", "quick", 0, status, "holds", "fails")
    monkeypatch.setattr(claims, "verify", lambda *a, each, **k: each(verdict) or Verdicts((verdict,)))
    assert run("verify", "daneshmand2021/gap", *more)[0] == code


def test_a_pattern_stands_for_its_claims():
    assert [c.name for c in claims.chosen("daneshmand2021/fig5*")] == [
        "daneshmand2021/fig5a", "daneshmand2021/fig5b", "daneshmand2021/fig5-plateaus",
    ]  # fmt: skip


@pytest.mark.parametrize("pattern", ["nachum2024/zzz*", "[x]", "?"])
def test_a_pattern_of_nothing_is_misuse(pattern, run):
    code, out, err = run("verify", "daneshmand2021/gap", pattern)
    assert (code, out) == (2, "")
    assert f"{pattern!r} matches none" in err


def test_the_examples_of_the_help_are_claims():
    from typer.main import get_command

    from normscope.cli._app import app

    argument = next(p for p in get_command(app).commands["verify"].params if p.name == "claims")
    examples = argument.help.partition(":")[2].partition(". ")[0].split(",")
    assert all(claims.chosen(e.strip(" '")) for e in examples)


def test_each_verdict_is_told_as_it_ends_and_not_again_from_the_store(tmp_path):
    names = ["daneshmand2021/isometry", "nachum2024/odd-score"]
    first, again = [], []
    found = verify(names, workers=1, store=tmp_path / "s", each=first.append)
    verify(names, workers=1, store=tmp_path / "s", each=again.append)
    assert {v.claim for v in first} == set(names)
    assert {v.to_json() for v in first} == {v.to_json() for v in found}
    assert again == []


def test_a_verdict_of_other_code_is_not_taken_from_the_store(tmp_path, monkeypatch):
    name, told = "nachum2024/odd-score", []
    verify(name, workers=1, store=tmp_path)
    monkeypatch.setattr(claims.verification, "fingerprint", lambda claim: "changed")
    verify(name, workers=1, store=tmp_path, each=told.append)
    assert len(told) == 1


def _limit() -> float:
    return LIMIT


def _measure(run: object) -> list[float]:
    return [_limit() for _ in range(2)]


LIMIT = 1.0


def test_a_claim_is_known_by_its_code_that_of_its_helpers_and_what_they_read(monkeypatch):
    claim = replace(CLAIMS["nachum2024/odd-score"], measure=_measure)
    known = fingerprint(claim)
    assert fingerprint(replace(claim)) == known
    assert fingerprint(replace(claim, full={"d": 7})) != known
    monkeypatch.setitem(globals(), "LIMIT", 2.0)
    assert fingerprint(claim) != known
    monkeypatch.setitem(globals(), "LIMIT", 1.0)
    monkeypatch.setitem(globals(), "_limit", lambda: LIMIT + 1)
    assert fingerprint(claim) != known


@pytest.mark.parametrize(("name", "found"), [("odd-score", ["nachum2024/odd-score"]),
                                             ("odd-activations", ["daneshmand2021/odd-activations",
                                                                  "nachum2024/odd-activations"])])  # fmt: skip
def test_a_claim_is_found_without_its_paper(name, found):
    assert [claim.name for claim in claims.chosen(name)] == found


def test_what_ended_is_said_and_kept_when_the_command_is_stopped(tmp_path):
    out, said = tmp_path / "v.jsonl", tmp_path / "said"
    names = ["daneshmand2020/lemma1", "nachum2024/detector-on-nets", "karakida2019/last-batch-norm"]
    with said.open("w") as file:
        run = subprocess.Popen(
            [sys.executable, "-m", "normscope", "verify", *names, "--workers", "1", "--out", str(out)], stdout=file,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            for _ in range(600):
                if "holds" in said.read_text():
                    break
                with pytest.raises(subprocess.TimeoutExpired):
                    run.wait(0.1)
            run.send_signal(signal.SIGINT)
            _, err = run.communicate(timeout=60)
        finally:
            run.kill()
    kept = Verdicts.load(out)
    assert run.returncode == 130
    assert 1 <= len(kept) < len(names)
    assert str(out) in err.replace("\n", "")


def test_the_file_has_the_order_of_the_claims_at_the_end(tmp_path):
    out = tmp_path / "v.jsonl"
    out.write_text("of another run\n")
    run = [sys.executable, "-m", "normscope", "verify", "nachum2024/odd-score", "daneshmand2021/isometry", "--out"]
    done = subprocess.run([*run, str(out), "--workers", "1"], capture_output=True, text=True, check=True)
    assert [v.claim for v in Verdicts.load(out)] == ["daneshmand2021/isometry", "nachum2024/odd-score"]
    assert "turn under a control" in done.stdout
