"""What the page on how a batch is read says is refused is refused in those words; its blocks run with all others."""

import re
from pathlib import Path

import pytest
import torch

from normscope import UsageError

PAGE = (Path(__file__).parents[2] / "docs" / "inputs.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
#: (call, what its message must contain) of the table of refusals.
REFUSED = [
    (call, re.findall(r"`([^`]+)`", remedy))
    for call, remedy in re.findall(r"^\| `(ns\.[^`]+)` \| (.+) \|$", PAGE.split("## What is refused")[1], re.M)
]


@pytest.fixture(scope="module")
def names():
    """The names that the page's blocks leave behind."""
    found = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for block in BLOCKS:
            exec(re.sub(r"^(check|assert)\b.*\n", "", block, flags=re.M), found)
    return found


@pytest.mark.parametrize(("call", "words"), REFUSED, ids=[call for call, _ in REFUSED])
def test_what_the_page_says_is_refused_is_refused_in_those_words(names, call, words):
    with pytest.raises(UsageError) as caught:
        eval(call, dict(names))
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"


def test_the_page_has_its_refusals():
    assert len(REFUSED) >= 12
    assert all(words for _, words in REFUSED)
