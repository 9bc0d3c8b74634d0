"""What the claims that train get: a set by name or the digits, never more samples than there are."""

import os

import pytest
import torch

from normscope.claims._training import load
from normscope.claims.claim import Run

DATA = os.environ.get("NORMSCOPE_DATA_DIR")


def test_without_a_folder_the_digits_stand_in_and_all_of_them_at_most():
    data = load(Run(), "cifar10", 50_000)
    assert data.name == "digits"
    assert data.inputs.shape == (1440, 64)


def test_fewer_samples_are_a_part_of_the_same_order():
    few, more = load(Run(seed=3), "mnist", 10), load(Run(seed=3), "mnist", 1440)
    assert torch.equal(few.inputs, more.inputs[:10])


def test_signed_pixels_lie_between_minus_one_and_one():
    data = load(Run(), "mnist", 100, signed=True)
    assert data.inputs.min() == -1
    assert data.inputs.max() == 1


@pytest.mark.skipif(not DATA, reason="needs NORMSCOPE_DATA_DIR")
def test_a_set_that_has_fewer_than_the_paper_s_gives_all_it_has():
    from pathlib import Path

    data = load(Run(data_dir=Path(str(DATA))), "cifar10", 10**6)
    assert data.name == "cifar10"
    assert 1440 < len(data.inputs) <= 50_000
