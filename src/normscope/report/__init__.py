"""Reports: a diagnosis as an HTML page, a notebook cell or terminal text. Reads tables only, never models."""

from __future__ import annotations

from normscope.core.faces import FACES
from normscope.report._content import Content

FACES.add("diagnosis.content", "normscope.report._content:of_diagnoses")
FACES.add("diagnosis.page", "normscope.report.html:save")
FACES.add("diagnosis.cell", "normscope.report.html:fragment")
FACES.add("race.content", "normscope.report._race_content:RaceContent")
FACES.add("race.page", "normscope.report.race:save")
FACES.add("race.cell", "normscope.report.race:fragment")
FACES.add("verdicts.page", "normscope.report.claims:write_page")

__all__ = ["Content"]
