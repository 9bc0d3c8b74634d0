"""Grids: which cells, in which order, and keys that depend on the content alone."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from normscope import Grid, UsageError
from normscope.sweeping.grid import Cell, canonical


def points(grid):
    return [dict(c.parameters) for c in grid]


def test_a_product_has_its_last_axis_fastest():
    assert points(Grid(depth=[1, 2], norm=["none", "batch"])) == [
        {"depth": 1, "norm": "none"},
        {"depth": 1, "norm": "batch"},
        {"depth": 2, "norm": "none"},
        {"depth": 2, "norm": "batch"},
    ]


def test_axes_side_by_side():
    assert points(Grid.zip(depth=[1, 2], lr=[0.5, 0.25], norm="batch")) == [
        {"depth": 1, "lr": 0.5, "norm": "batch"},
        {"depth": 2, "lr": 0.25, "norm": "batch"},
    ]
    with pytest.raises(UsageError, match="depth 2, lr 3"):
        Grid.zip(depth=[1, 2], lr=[1, 2, 3])


def test_explicit_cells_sums_and_products_of_grids():
    explicit = Grid([{"depth": 1}, {"depth": 4, "lr": 1}])
    assert explicit.names == ("depth", "lr")
    assert points(explicit * Grid(seed=[0, 1]))[1] == {"depth": 1, "seed": 1}
    assert points(Grid(depth=[1, 2]) + Grid(depth=[2, 3])) == [{"depth": 1}, {"depth": 2}, {"depth": 3}]
    with pytest.raises(UsageError, match="both have depth"):
        Grid(depth=1) * Grid(depth=2)


def test_a_value_may_be_a_list_within_an_axis():
    assert points(Grid(hidden=[[64, 64], [32]])) == [{"hidden": [64, 64]}, {"hidden": [32]}]


@pytest.mark.parametrize("values", [[64, 64], [1, 1.0], [[1, 2], (1, 2)]])
def test_a_value_twice_on_an_axis_is_refused(values):
    with pytest.raises(UsageError, match="twice"):
        Grid(width=values)


def test_scalars_of_numpy_and_torch_become_plain():
    grid = Grid(width=np.array([8, 16]), gain=torch.tensor([0.5]), seed=range(2), bias=np.float64(0.25))
    assert points(grid)[0] == {"width": 8, "gain": 0.5, "seed": 0, "bias": 0.25}
    assert {type(v) for p in points(grid) for v in p.values()} == {int, float}


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"x": [float("nan")]}, "NaN"),
        ({"x": [object()]}, "JSON"),
        ({"x": []}, "at least one"),
        ({"metric": ["a"]}, "column"),
        ({"x": [{1: 2}]}, "strings as keys"),
    ],
)
def test_what_cannot_be_a_parameter(axes, words):
    with pytest.raises(UsageError, match=words):
        Grid(**axes)


def key(**parameters):
    return Cell(parameters).key("t")


def test_equal_content_has_equal_keys():
    assert key(a=1, b=2) == key(b=2, a=1)
    assert key(a=1) == key(a=1.0) == key(a=np.int64(1)) == key(a=np.float32(1))
    assert key(a=-0.0) == key(a=0)
    assert key(a=(1, 2)) == key(a=[1, 2])
    assert key(a={"x": 1, "y": 2}) == key(a={"y": 2, "x": 1})


def test_different_content_has_different_keys():
    contents = [
        1,
        2,
        True,
        "1",
        None,
        0.1,
        0.1 + 1e-16,
        float("inf"),
        -float("inf"),
        [1],
        [[1]],
        {"x": 1},
        1e300,
        2**53,
    ]
    assert len({key(a=c) for c in contents}) == len(contents)
    assert len({key(a=1), key(b=1), key(a=1, b=None), Cell({"a": 1}).key("u")}) == 4


def test_the_key_and_the_seed_are_what_the_documentation_says():
    """Written again from docs/sweeps.md, so that keys never change unnoticed."""
    cell = Cell({"width": 8.0, "gain": 0.5, "norm": "batch"})
    text = json.dumps({"gain": 0.5, "norm": "batch", "width": 8}, separators=(",", ":"))
    assert cell.text == text
    digest = hashlib.sha256(f'normscope 1\ncell\n"train"\n{text}'.encode()).hexdigest()
    assert cell.key("train") == digest[:32]
    seed = int(hashlib.sha256(f"normscope 1\nseed\n{text}".encode()).hexdigest()[:16], 16) // 2
    assert cell.seed == seed < 2**63


def test_keys_and_seeds_are_the_same_in_processes_with_other_hash_seeds():
    code = (
        "from normscope.sweeping.grid import Cell; c = Cell({'b': 0.1, 'a': {'z': 1, 'y': [True, None]}});"
        "print(c.key('t'), c.seed)"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "12345")
    }
    here = Cell({"a": {"y": [True, None], "z": 1}, "b": 0.1})
    assert said == {f"{here.key('t')} {here.seed}\n"}


def test_the_seed_of_a_cell_depends_on_its_parameters_alone():
    small, large = Grid(depth=[1, 2]), Grid(depth=[2, 3, 4])
    assert small[1].seed == large[0].seed
    seeds = [c.seed for c in Grid(depth=range(100), width=range(100))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)


def test_seeds_look_random():
    """Every bit is set in half of the cells, within 5 standard errors."""
    seeds = np.array([c.seed for c in Grid(x=range(4000))])
    share = np.array([((seeds >> b) & 1).mean() for b in range(63)])
    assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(len(seeds))


def test_canonical_text_is_ascii_and_sorted():
    assert canonical({"é": 1.5, "a": [1.0, "ü"]}) == '{"a":[1,"\\u00fc"],"\\u00e9":1.5}'
