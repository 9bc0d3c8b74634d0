"""The list of planted breaks: each can be planted in the library as it is, and names a claim and tests that exist."""

import importlib.util
import sys
from pathlib import Path

import pytest

from normscope.claims import CLAIMS, load
from normscope.geometry.metrics import METRICS

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("breaks", ROOT / "benchmarks" / "breaks.py")
breaks = importlib.util.module_from_spec(spec)
sys.modules["breaks"] = breaks  # dataclasses look their module up
spec.loader.exec_module(breaks)
LIST = breaks.breaks()
load()


@pytest.mark.parametrize("one", LIST, ids=lambda b: b.name)
def test_a_break_is_a_change_of_the_library_as_it_is(one):
    text = (breaks.PACKAGE / one.file).read_text("utf-8")
    assert not one.old or text.count(one.old) == 1
    assert one.old != one.new
    assert not one.claim or one.claim in CLAIMS
    assert all((ROOT / folder).exists() for folder in one.tests.split())


def test_the_list_is_long_and_has_every_metric():
    assert len(breaks.WRONG) >= 60
    assert len({b.name for b in LIST}) == len(LIST)
    assert set(breaks.NAN_METRICS) == set(METRICS)
