"""What README shows is what the examples do."""

import json
import re
import runpy
from pathlib import Path

from normscope.findings import RULES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_python_block_is_the_example_that_runs(capsys):
    block = re.search(r"```python\n(.*?)```", README, re.S).group(1).strip()
    example = (ROOT / "examples" / "five_lines.py").read_text()
    assert block in example
    runpy.run_path(str(ROOT / "examples" / "five_lines.py"))
    assert "NS101" in capsys.readouterr().out


def test_every_finding_is_in_the_readme_and_no_other():
    assert set(re.findall(r"NS\d{3}", README.split("## What it finds")[1])) == set(RULES)


def test_generated_pages_are_up_to_date():
    page = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    assert (ROOT / "docs" / "findings.md").read_text() == page["findings_page"]()
    assert (ROOT / "docs" / "metrics.md").read_text() == page["metrics_page"]()
    assert (ROOT / "docs" / "lists.md").read_text() == page["lists_page"]()
    assert (ROOT / "docs" / "architecture.md").read_text() == page["architecture_page"]()
    index = page["_index"]
    assert json.loads(index.FILE.read_text(encoding="utf-8")) == json.loads(index.text())  # claims in any order
    page["load"]()
    for key in page["PAPERS"]:
        assert (ROOT / "docs" / "papers" / f"{key}.md").read_text() == page["paper_page"](key, *page["results"]())


def test_links_of_the_readme_exist():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
