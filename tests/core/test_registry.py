"""Named things: found by name, in order, and a miss names the nearest hit."""

import sys

import pytest

from normscope import UsageError
from normscope.core.registry import Registry


@pytest.fixture
def fruits():
    registry = Registry("fruit")
    registry.add("apple", 1)
    registry.add("banana", 2)
    return registry


def test_a_thing_is_found_by_its_name(fruits):
    assert fruits["banana"] == 2


def test_names_keep_the_order_in_which_they_came(fruits):
    fruits.add("aardvark", 3)
    assert list(fruits) == ["apple", "banana", "aardvark"]


def test_a_registry_counts_its_things(fruits):
    assert len(fruits) == 2


def test_adding_returns_the_thing(fruits):
    assert fruits.add("cherry", 3) == 3


def test_a_function_is_registered_under_its_own_name(fruits):
    @fruits.register()
    def cherry():
        return None

    assert fruits["cherry"] is cherry


def test_a_name_can_be_given(fruits):
    @fruits.register("dried-cherry")
    def cherry():
        return None

    assert fruits["dried-cherry"] is cherry
    assert "cherry" not in fruits


def test_a_miss_names_the_nearest_hit(fruits):
    with pytest.raises(UsageError, match=r"no fruit 'bananna'\. Did you mean 'banana'"):
        fruits["bananna"]


def test_a_miss_lists_what_is_known(fruits):
    with pytest.raises(UsageError, match="Known: apple, banana"):
        fruits["xyz"]


def test_a_far_miss_offers_nothing(fruits):
    with pytest.raises(UsageError) as caught:
        fruits["xyz"]
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", [None, 3, ["apple"]])
def test_a_name_that_is_no_text_is_a_miss(fruits, name):
    with pytest.raises(UsageError, match="no fruit"):
        fruits[name]


def test_membership_does_not_raise(fruits):
    assert "bananna" not in fruits


def test_a_thing_may_be_asked_for_that_is_not_there(fruits):
    assert (fruits.get("banana"), fruits.get("bananna"), fruits.get("bananna", 0)) == (2, None, 0)


def test_a_name_is_taken_once(fruits):
    with pytest.raises(RuntimeError, match="'apple' is registered twice"):
        fruits.add("apple", 4)


def test_a_registry_imports_its_home_when_it_is_first_used(tmp_path, monkeypatch):
    (tmp_path / "orchard_of_this_test.py").write_text("import sys\nsys.fruits.add('plum', 3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    fruits = Registry("fruit", home="orchard_of_this_test")
    monkeypatch.setattr("sys.fruits", fruits, raising=False)
    assert "orchard_of_this_test" not in sys.modules
    assert list(fruits) == ["plum"]


def test_a_name_taken_twice_keeps_the_first(fruits):
    with pytest.raises(RuntimeError):
        fruits.add("apple", 4)
    assert fruits["apple"] == 1
