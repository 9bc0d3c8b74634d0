"""The page on how a batch is read is a program that runs, and what it says is refused is refused in those words."""

import ast
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
def page():
    """The names that the blocks leave behind, and the first error of each block that raised: (statement, error)."""
    names, raised = {}, {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for number, block in enumerate(BLOCKS):
            for statement in ast.parse(block).body:  # one by one, so that a failure leaves the names of the others
                text = ast.unparse(statement)
                try:
                    exec(text, names)
                except Exception as error:
                    raised.setdefault(number, (text, error))
    return names, raised


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_each_block_runs_after_those_before_it(page, number):
    _names, raised = page
    if number in raised:
        statement, error = raised[number]
        error.add_note(f"in block {number} of docs/inputs.md: {statement}")
        raise error


@pytest.mark.parametrize(("call", "words"), REFUSED, ids=[call for call, _ in REFUSED])
def test_what_the_page_says_is_refused_is_refused_in_those_words(page, call, words):
    names, _raised = page
    with pytest.raises(UsageError) as caught:
        eval(call, dict(names))
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"


def test_the_page_has_its_blocks_and_its_refusals():
    assert len(BLOCKS) >= 9
    assert len(REFUSED) >= 12
    assert all(words for _, words in REFUSED)
