"""Findings for other programs: what GitHub's parser, a SARIF reader and a JUnit reader make of them."""

import json
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from normscope.cli._index import index
from normscope.report import formats

NASTY = "50% of it\r\nis: a, b::error::<&\"'> \x00\x1b \ud800 é"


def row(**changes):
    plain = {
        "code": "NS101", "severity": "error", "title": "rank collapse", "layer": 3, "name": "layers.2",
        "metric": "rank",
        "value": 1.0, "threshold": 2.0, "source": "us", "evidence": "it falls", "meaning": "It is bad.", "cure": "Do.",
        "model": "net.py:make", "state": "", "ignored": False, "reason": "", "fails": True, "file": "net.py", "line": 7,
    }  # fmt: skip
    return plain | changes


ROWS = [
    row(), row(code="NS201", severity="warning", state="new", title=NASTY, evidence=NASTY, file="a b/é,:.py"),
    row(code="NS301", severity="info", state="known", fails=False, name="", file="", line=0),
    row(code="NS201", ignored=True, reason=NASTY, fails=False, model=NASTY),
]  # fmt: skip
MODELS = {"net.py:make": "At risk: NASTY.", NASTY: NASTY, "quiet": "Nothing found."}


# GitHub


def commands(text):
    """As GitHub's runner reads workflow commands: (command, properties, message) of each."""

    def plain(part, more=()):
        for code, letter in (("%0D", "\r"), ("%0A", "\n"), *more, ("%25", "%")):
            part = part.replace(code, letter)
        return part

    found = []
    for line in text.split("\n"):
        if line.startswith("::"):
            head, _, message = line[2:].partition("::")
            command, _, properties = head.partition(" ")
            pairs = (p.partition("=") for p in properties.split(","))
            found.append((command, {k: plain(v, (("%3A", ":"), ("%2C", ","))) for k, _, v in pairs}, plain(message)))
    return found


def test_an_annotation_survives_any_text():
    told = commands(formats.github(ROWS, MODELS))
    assert [c for c, _, _ in told] == ["error", "warning", "notice"]
    assert told[0][1] == {"file": "net.py", "line": "7", "title": "NS101 rank collapse"}
    assert told[1][1] == {"file": "a b/é,:.py", "line": "7", "title": f"NS201 {NASTY}"}
    assert NASTY in told[1][2]


def test_an_annotation_without_a_file_has_a_title_alone():
    assert list(commands(formats.github(ROWS, MODELS))[2][1]) == ["title"]


def test_the_log_has_a_line_a_model_and_no_other_command():
    lines = formats.github(ROWS, MODELS).splitlines()
    assert len(lines) == 3 + len(MODELS)
    assert all(line.startswith("normscope: ") for line in lines[3:])


# SARIF 2.1.0: what its schema requires


def log(rows=ROWS):
    return json.loads(formats.sarif(rows, index()["rules"]))


def has(thing, **kinds):
    """Whether an object has these properties, each of its kind."""
    return all(isinstance(thing.get(key), kind) and thing[key] != "" for key, kind in kinds.items())


def test_a_log_has_what_the_schema_requires():
    found = log()
    assert found["version"] == "2.1.0"
    assert found["$schema"].endswith("sarif-2.1.0.json")
    (run,) = found["runs"]
    assert has(run["tool"]["driver"], name=str, version=str, rules=list)
    assert run["columnKind"] in ("utf16CodeUnits", "unicodeCodePoints")
    assert all(has(i, executionSuccessful=bool) for i in run["invocations"])


def test_a_rule_has_an_id_texts_and_a_level():
    rules = log()["runs"][0]["tool"]["driver"]["rules"]
    assert [r["id"] for r in rules] == ["NS101", "NS201", "NS301"]
    for r in rules:
        assert has(r["shortDescription"], text=str)
        assert has(r["fullDescription"], text=str)
        assert has(r["help"], text=str, markdown=str)
        assert r["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
        assert r["name"].isalnum()


def test_a_result_has_a_message_a_level_and_its_rule():
    run = log()["runs"][0]
    for r, wanted in zip(run["results"], ROWS, strict=True):
        assert has(r["message"], text=str)
        assert r["level"] == {"error": "error", "warning": "warning", "info": "note"}[wanted["severity"]]
        assert run["tool"]["driver"]["rules"][r["ruleIndex"]]["id"] == r["ruleId"] == wanted["code"]


def test_a_location_is_a_uri_reference_and_a_line_from_one():
    results = log()["runs"][0]["results"]
    places = [r["locations"][0].get("physicalLocation") for r in results]
    assert [p and unquote(p["artifactLocation"]["uri"]) for p in places] == ["net.py", "a b/é,:.py", None, "net.py"]
    assert all(p["artifactLocation"]["uri"].isascii() and " " not in p["artifactLocation"]["uri"] for p in places if p)
    assert all(p["region"]["startLine"] >= 1 for p in places if p)


def test_a_suppression_has_a_kind_and_the_reason():
    results = log()["runs"][0]["results"]
    assert [bool(r.get("suppressions")) for r in results] == [False, False, False, True]
    assert results[3]["suppressions"][0] == {"kind": "external", "justification": NASTY}


def test_the_state_against_a_baseline_is_sarifs_word():
    assert [r.get("baselineState") for r in log()["runs"][0]["results"]] == [None, "new", "unchanged", None]


def test_a_fingerprint_is_of_model_code_and_module_alone():
    def mark(**changes):
        return log([row(**changes)])["runs"][0]["results"][0]["partialFingerprints"]

    assert mark() == mark(evidence="other", value=9.0, severity="info", line=8)
    assert len({str(mark(**c)) for c in ({}, {"model": "m"}, {"code": "NS102"}, {"name": "x"})}) == 4


def test_a_rule_leads_into_the_page_of_findings(monkeypatch):
    assert "helpUri" not in json.dumps(log()) or formats.homepage()
    monkeypatch.setattr(formats, "homepage", lambda: "https://docs.example.org/normscope/")
    driver = log()["runs"][0]["tool"]["driver"]
    assert driver["informationUri"] == "https://docs.example.org/normscope/"
    assert driver["rules"][0]["helpUri"] == "https://docs.example.org/normscope/findings/#ns101"


# JUnit


def test_a_suite_a_model_and_a_case_a_finding():
    top = ElementTree.fromstring(formats.junit(ROWS, MODELS).encode("utf-8", "replace"))
    counts = [(s.get("tests"), s.get("failures"), s.get("skipped"), s.get("errors")) for s in top]
    assert counts == [("3", "2", "0", "0"), ("1", "0", "1", "0"), ("1", "0", "0", "0")]
    assert [len(s) for s in top] == [3, 1, 1]
    assert top[0][0].get("name") == "NS101 rank collapse in layers.2"
    assert top[0][1].find("failure").get("type") == "warning, new"


def test_any_text_is_xml():
    text = formats.junit(ROWS, MODELS)
    top = ElementTree.fromstring(text)
    assert "50% of it" in top[0][1].find("failure").text
    assert "\x00" not in text
    assert "\ud800" not in text


@pytest.mark.parametrize("name", formats.FORMATS)
def test_nothing_found_is_a_document_too(name):
    assert formats.FORMATS[name]([], {"m": "Nothing found."}, index()["rules"]).endswith("\n")
