"""Findings as other programs read them: GitHub's annotations, SARIF 2.1.0, JUnit's XML.

A row is a finding as a dictionary (``code``, ``severity``, ``title``, ``name``, ``evidence``, ``meaning``, ``cure``),
with ``model`` (its label), ``state`` (``new``, ``worse``, ``known``, or "" without a baseline), ``ignored`` and its
``reason``, ``fails`` (whether the run fails for it), ``file`` and ``line`` ("" and 0 where no file is known).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from normscope.core.errors import brief
from normscope.core.words import homepage, version

Row = Mapping[str, Any]
#: Severity -> GitHub's word and SARIF's.
LEVELS = {"error": ("error", "error"), "warning": ("warning", "warning"), "info": ("notice", "note")}
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
#: What XML 1.0 has no place for.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def message(row: Row) -> str:
    """The finding in sentences, without its code: what was measured, what it means, what to do."""
    return f"{row['model']}: {row['title']}{place(row)}. {row['evidence']}. {row['meaning']}\nTo do: {row['cure']}"


def place(row: Row) -> str:
    """Words for the module; none for the whole model."""
    return f" in {row['name']}" if row["name"] else ""


def github(rows: Sequence[Row], models: Mapping[str, str]) -> str:
    """Workflow commands: an annotation a finding (a notice where the baseline knows it, none where it is ignored), then
    each model's verdict as a line of the log.
    """
    lines = []
    for row in rows:
        if row["ignored"]:
            continue
        level = "notice" if row["state"] == "known" else LEVELS[row["severity"]][0]
        where = {"file": row["file"], "line": str(row["line"])} if row["file"] else {}
        told = where | {"title": f"{row['code']} {row['title']}"}
        properties = ",".join(f"{key}={_property(value)}" for key, value in told.items())
        lines.append(f"::{level} {properties}::{_data(message(row))}")
    lines += [brief(f"normscope: {label}: {verdict}", 2000) for label, verdict in models.items()]
    return "\n".join(lines) + "\n"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def sarif(rows: Sequence[Row], rules: Mapping[str, Mapping[str, str]]) -> str:
    """A SARIF 2.1.0 log of one run; ``rules``: code -> ``title``, ``severity``, ``meaning``, ``cure``, ``text``."""
    codes = sorted({row["code"] for row in rows})
    driver = {"name": "normscope", "version": version(), "rules": [_rule(code, rules[code]) for code in codes]}
    if site := homepage():
        driver["informationUri"] = site
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [{"executionSuccessful": True}],
        "results": [_result(row, codes.index(row["code"])) for row in rows],
    }
    log = {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2, ensure_ascii=False) + "\n"


def _rule(code: str, rule: Mapping[str, str]) -> dict[str, Any]:
    helped = f"{rule['meaning']}\n\nTo do: {rule['cure']}\n\n{rule['text']}"
    made: dict[str, Any] = {
        "id": code,
        "name": "".join(word.capitalize() for word in re.findall(r"\w+", rule["title"])),
        "shortDescription": {"text": rule["title"]},
        "fullDescription": {"text": rule["meaning"]},
        "help": {"text": helped, "markdown": helped},
        "defaultConfiguration": {"level": LEVELS[rule["severity"]][1]},
    }
    if site := homepage():
        made["helpUri"] = f"{site.rstrip('/')}/findings/#{code.lower()}"
    return made


def _result(row: Row, index: int) -> dict[str, Any]:
    """One finding; its fingerprint is what a baseline knows it by, no number of its evidence."""
    key = "\0".join((row["model"], row["code"], row["name"]))
    logical = {"fullyQualifiedName": f"{row['model']}{'/' if row['name'] else ''}{row['name']}", "kind": "object"}
    location: dict[str, Any] = {"logicalLocations": [logical]}
    if row["file"]:
        physical = {"artifactLocation": {"uri": quote(row["file"])}, "region": {"startLine": max(1, row["line"])}}
        location["physicalLocation"] = physical
    made: dict[str, Any] = {
        "ruleId": row["code"],
        "ruleIndex": index,
        "level": LEVELS[row["severity"]][1],
        "message": {"text": message(row)},
        "locations": [location],
        "partialFingerprints": {"normscope/v1": hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()},
    }
    if row["state"]:
        made["baselineState"] = {"new": "new", "worse": "updated", "known": "unchanged"}[row["state"]]
    if row["ignored"]:
        made["suppressions"] = [{"kind": "external", **({"justification": row["reason"]} if row["reason"] else {})}]
    return made


def junit(rows: Sequence[Row], models: Mapping[str, str]) -> str:
    """JUnit XML: a suite a model (label -> verdict), a case a finding, or one that passes where nothing was found."""
    top = ElementTree.Element("testsuites", name="normscope")
    for label, verdict in models.items():
        mine = [row for row in rows if row["model"] == label]
        suite = ElementTree.SubElement(top, "testsuite", name=_xml(label))
        for row in mine:
            case = _case(suite, label, f"{row['code']} {row['title']}{place(row)}")
            if row["ignored"]:
                ElementTree.SubElement(case, "skipped", message=_xml(f"ignored: {row['reason'] or 'no reason given'}"))
            elif row["fails"]:
                kind = ", ".join(filter(None, (row["severity"], row["state"])))
                told = ElementTree.SubElement(case, "failure", message=_xml(row["evidence"]), type=kind)
                told.text = _xml(message(row))
            else:
                ElementTree.SubElement(case, "system-out").text = _xml(f"{row['severity']}: {message(row)}")
        if not mine:
            ElementTree.SubElement(_case(suite, label, "no findings"), "system-out").text = _xml(verdict)
        counts = {"failures": "failure", "skipped": "skipped"}
        suite.attrib |= {"tests": str(len(suite)), "errors": "0"}
        suite.attrib |= {name: str(len(suite.findall(f"testcase/{tag}"))) for name, tag in counts.items()}
    ElementTree.indent(top)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(top, encoding="unicode")}\n'


def _case(suite: ElementTree.Element, label: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=_xml(f"normscope.{label}"), name=_xml(name), time="0")


def _xml(text: Any) -> str:
    return _NOT_XML.sub("\ufffd", str(text))


#: Format -> function of (rows, label -> verdict, rules).
FORMATS: dict[str, Callable[[Sequence[Row], Mapping[str, str], Mapping[str, Mapping[str, str]]], str]] = {
    "github": lambda rows, models, rules: github(rows, models),
    "sarif": lambda rows, models, rules: sarif(rows, rules),
    "junit": lambda rows, models, rules: junit(rows, models),
}
