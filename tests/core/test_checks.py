"""The checks that arguments go through: what passes comes back as Python's own number, what does not is named."""

import math
from decimal import Decimal

import numpy as np
import pytest
import torch

from normscope import UsageError
from normscope.core.errors import finite_number, seed_of, seeds_of, shown, whole_number
from normscope.core.tensors import check_plain, floating_dtype

nan, inf = math.nan, math.inf


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)], ids=repr)
def test_a_whole_number_comes_back_as_pythons(value):
    assert type(whole_number("k", value, 3)) is int
    assert whole_number("k", value, 3) == 3


@pytest.mark.parametrize(
    "value", [2, 3.0, np.float64(3), True, np.True_, "3", None, nan, [3], torch.tensor(3)], ids=repr
)
def test_what_is_no_whole_number_or_too_small_is_named(value):
    with pytest.raises(UsageError) as caught:
        whole_number("k", value, 3, "Pass 4.")
    assert str(caught.value) == f"k must be a whole number >= 3; got {value!r}. Pass 4."


@pytest.mark.parametrize("value", [0, 0.5, np.float32(0.5), np.int64(0)], ids=repr)
def test_a_finite_number_comes_back_as_pythons(value):
    found = finite_number("x", value, least=0, below=1)
    assert isinstance(found, int | float)
    assert found == value


@pytest.mark.parametrize("value", [-0.1, 1, nan, inf, -inf, True, "0.5", None, 0.5j, Decimal("0.5"), 10**400], ids=repr)
def test_what_is_no_finite_number_or_out_of_bounds_is_named(value):
    with pytest.raises(UsageError, match=r"^x must be a finite number >= 0 and < 1; got .*\. Leave it out") as caught:
        finite_number("x", value, least=0, below=1)
    assert shown(value) in str(caught.value)


def test_a_bound_that_is_open_is_said_so():
    with pytest.raises(UsageError, match="a finite number > 0; got 0"):
        finite_number("x", 0, above=0)
    with pytest.raises(UsageError, match="a finite number; got nan"):
        finite_number("x", nan)


@pytest.mark.parametrize("seed", [0, 7, np.int32(7), 2**64 - 1])
def test_every_seed_that_passes_is_one_that_the_generators_take(seed):
    torch.Generator().manual_seed(seed_of(seed))
    np.random.default_rng([seed_of(seed), 0])


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "0", None, True])
def test_another_seed_is_refused(seed):
    with pytest.raises(UsageError, match="seed must be"):
        seed_of(seed)


@pytest.mark.parametrize(
    ("value", "found"),
    [(3, (0, 1, 2)), ([4, 2], (4, 2)), (range(2), (0, 1)), (np.arange(2), (0, 1)), (iter([5]), (5,))],
    ids=["count", "list", "range", "array", "iterator"],
)  # fmt: skip
def test_seeds_are_so_many_or_those_given(value, found):
    assert seeds_of(value) == found


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "two", None, [], [1, 1], [-1], ["a"], {}], ids=repr)
def test_other_seeds_are_refused(value):
    with pytest.raises(UsageError, match="seeds must be"):
        seeds_of(value)


def test_a_long_value_is_shown_by_its_type():
    assert shown([0] * 100) == "a list"
    assert shown(torch.zeros(2, 2)) == "a Tensor"
    assert shown("adam") == "'adam'"


ODD = {
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse one of shape (3, 3)": lambda: torch.eye(3).to_sparse_csr(),
    "meta tensor of shape (3,)": lambda: torch.ones(3, device="meta"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_a_tensor_without_plain_numbers_is_named(kind):
    with pytest.raises(UsageError, match="targets must ") as caught:
        check_plain("targets", torch.ones(2), ODD[kind]())
    assert kind in str(caught.value)


def test_plain_tensors_pass():
    check_plain("x", torch.ones(2), torch.ones(2, dtype=torch.long), torch.ones(0), torch.ones(2, 2).T)


@pytest.mark.parametrize("dtype", ["float32", float, torch.int64, torch.complex64, np.float32, None])
def test_a_dtype_that_is_no_floating_one_is_refused(dtype):
    with pytest.raises(UsageError, match="dtype must be a floating torch dtype; got "):
        floating_dtype(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_floating_dtype_passes(dtype):
    assert floating_dtype(dtype) is dtype
