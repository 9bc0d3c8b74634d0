"""Reports: what a result shows, as a page, a notebook cell, a chart or terminal text. Reads tables only, never models.

Each result has one function here that makes its `Sheet`; the forms of a sheet are the same for all of them.
"""

from __future__ import annotations

from normscope.core.faces import FACES
from normscope.report._content import Content

FACES.add("diagnosis", "normscope.report.html:of_diagnosis")
FACES.add("profile", "normscope.report.html:of_profile")
FACES.add("rates", "normscope.report.rates:of_rates")
FACES.add("range", "normscope.report.runs:of_range")
FACES.add("overfit", "normscope.report.runs:of_overfit")
FACES.add("similarity", "normscope.report.similarity:of_similarity")
FACES.add("race", "normscope.report.race:of_race")
FACES.add("verdicts", "normscope.report.claims:of_verdicts")
FACES.add("sharpness", "normscope.report.curvature:of_sharpness")
FACES.add("spectrum", "normscope.report.curvature:of_spectrum")
FACES.add("transfer", "normscope.report.transfer:of_transfer")
FACES.add("tracker", "normscope.report.tracker:of_tracker")
FACES.add("review", "normscope.report.tracker:of_review")
FACES.add("run.review", "normscope.findings.review:review")

FACES.add("as.chart", "normscope.report.sheet:chart")
FACES.add("as.cell", "normscope.report.sheet:cell")
FACES.add("as.file", "normscope.report.sheet:save")

FACES.add("diagnosis.content", "normscope.report._content:of_diagnoses")
FACES.add("race.content", "normscope.report._race_content:RaceContent")

__all__ = ["Content"]
