"""A finding's code never changes its meaning: configurations, baselines and scripts of other people name it."""

import json
from pathlib import Path

import pytest

from normscope.findings import RULES

#: code -> title, as released. A new code is added with the release; a title is changed here only if it means the same.
RELEASED = json.loads(Path(__file__).with_name("released_codes.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("code", RELEASED)
def test_a_released_code_means_what_it_meant(code):
    assert RULES[code].title == RELEASED[code]


def test_no_title_stands_under_two_codes():
    titles = [rule.title for rule in RULES.values()]
    assert len(set(titles)) == len(titles)
