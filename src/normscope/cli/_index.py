"""What ``normscope explain`` and ``normscope list`` show, kept in a file: torch takes seconds to import, help must not.

``docs/generate.py`` writes the file again; a test compares it with what is registered.
"""

from __future__ import annotations

import inspect
import json
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("index.json")


@cache
def index() -> dict[str, Any]:
    """What is in the file: ``rules`` (code -> fields), ``lists`` (name -> entry -> one line), ``losses`` (names),
    ``axes`` (how the values of a sweep's axis are written)."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def text() -> str:
    """What the file should hold, of everything that is registered."""
    from normscope.call.losses import LOSSES
    from normscope.findings import RULES
    from normscope.sweeping.ranges import HELP

    rules = {r.code: _rule(r) for r in RULES.values()}
    made = {"rules": rules, "lists": _lists(), "losses": LOSSES, "axes": HELP}
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def write() -> None:
    """Write the file again."""
    from normscope.core import files

    files.write(text(), FILE)


def _rule(rule: Any) -> dict[str, str]:
    paragraphs = [" ".join(p.split()) for p in inspect.cleandoc(rule.text).split("\n\n")]
    fields = ("code", "title", "severity", "meaning", "cure", "source")
    return {k: getattr(rule, k) for k in fields} | {"text": "\n\n".join(paragraphs)}


def _lists() -> dict[str, dict[str, str]]:
    """What ``normscope list`` can list: name -> entry -> one line."""
    from normscope import claims
    from normscope.core.spec import ACTIVATIONS, NORMS, WEIGHTS
    from normscope.data.datasets import describe
    from normscope.data.models import SOURCES
    from normscope.findings import RULES
    from normscope.geometry.metrics import METRICS
    from normscope.init import CURES

    claims.load()
    return {
        "findings": {r.code: f"{r.title} ({r.severity}): {r.meaning}" for r in RULES.values()},
        "metrics": {m.name: f"{_summary(m.function)} [{m.unit}; {m.source}]" for m in METRICS.values()},
        "models": {name: _summary(make) for name, make in SOURCES.items()},
        "datasets": describe(),
        "norms": {name: norm.summary for name, norm in NORMS.items()},
        "activations": {name: found.summary for name, found in ACTIVATIONS.items()},
        "weights": WEIGHTS,
        "cures": {c.name: f"{c.doc} [{c.source}]" for c in CURES.values()},
        "claims": {c.name: f"{c.statement} [{c.where}]" for c in claims.CLAIMS.values()},
    }


def _summary(thing: object) -> str:
    lines = (inspect.getdoc(thing) or "").splitlines()
    return lines[0] if lines else ""
