"""Ignores and baselines, as pure records."""

import pytest

from normscope.core.errors import UsageError
from normscope.findings import Finding
from normscope.findings.guard import Baseline, Ignore, check_wanted, named


def finding(code="NS101", severity="warning", name="layers.3", value=1.0):
    return Finding(code, severity, "a title", 3, name, "rank", value, 2.0, "us", "evidence", "meaning", "cure")


@pytest.mark.parametrize(
    ("ignore", "covered"),
    [
        (Ignore("NS101"), True), (Ignore("NS102"), False), (Ignore("NS101", "net.py:*"), True),
        (Ignore("NS101", "other"), False), (Ignore("NS101", module="layers.*"), True),
        (Ignore("NS101", module="head"), False),
    ],
)  # fmt: skip
def test_an_ignore_covers_its_code_in_its_models_and_modules(ignore, covered):
    assert ignore.covers("net.py:make", finding()) is covered


def test_a_pattern_of_modules_leaves_the_whole_model_alone():
    assert not Ignore("NS101", module="layers.*").covers("m", finding(name=""))


def test_a_code_that_there_is_not_is_refused():
    with pytest.raises(UsageError, match="Did you mean 'NS101'"):
        Ignore("ns101")


@pytest.mark.parametrize(("wanted", "fires"), [("info", True), ("warning", True), ("error", False), ("NS101", True)])
def test_a_severity_names_those_that_are_graver_too(wanted, fires):
    assert named(finding(), [wanted]) is fires


def test_wanted_is_a_severity_or_a_code():
    check_wanted(["error", "NS101"], ["NS101"])
    with pytest.raises(UsageError, match="'error'"):
        check_wanted(["eror"], ["NS101"])
    with pytest.raises(UsageError, match="fail_on must"):
        check_wanted([3], ["NS101"])


@pytest.mark.parametrize(
    ("now", "state"),
    [
        (finding(value=99.0), "known"), (finding(severity="info"), "known"), (finding(severity="error"), "worse"),
        (finding(name="layers.4"), "new"), (finding(code="NS102"), "new"),
    ],
)  # fmt: skip
def test_a_finding_is_known_by_model_code_and_module_and_worse_by_severity(now, state):
    baseline = Baseline.of([("m", finding())])
    assert baseline.state("m", now) == state
    assert baseline.state("another", now) == "new"


def test_what_is_gone_is_of_models_that_were_looked_at():
    baseline = Baseline.of([("m", finding()), ("m", finding("NS102")), ("left out", finding())])
    assert baseline.gone([("m", finding())], ["m"]) == [("m", "NS102", "layers.3")]


def test_of_two_with_one_key_the_gravest_counts():
    assert Baseline.of([("m", finding(severity="info")), ("m", finding(severity="error"))]).known == {
        ("m", "NS101", "layers.3"): "error"
    }


@pytest.mark.parametrize("found", [[], [("m", finding()), ('net, "é"', finding("NS102", "error"))]])
def test_a_baseline_is_read_as_it_was_written(tmp_path, found):
    baseline = Baseline.of(found)
    (tmp_path / "b.json").write_text(baseline.text())
    assert Baseline.read(tmp_path / "b.json") == baseline
    assert len(baseline.text().splitlines()) == (len(found) + 4 if found else 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be JSON"), ("{", "must be JSON"), ("[]", "a list"), ('{"findings": []}', "schema"),
        ('{"schema": "normscope.baseline/2", "findings": []}', "normscope.baseline/2"),
        ('{"schema": "normscope.baseline/1"}', "must have model"),
        ('{"schema": "normscope.baseline/1", "findings": [{"model": "m"}]}', "must have model"),
        ('{"schema": "normscope.baseline/1", "findings": [{"model": "m", "code": "NS101", "module": "",'
         ' "severity": "bad"}]}', "must have model"),
    ],
)  # fmt: skip
def test_what_is_no_baseline_is_one_line(tmp_path, text, says):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(UsageError) as told:
        Baseline.read(tmp_path / "b.json")
    assert says in str(told.value)
    assert len(str(told.value).splitlines()) == 1
