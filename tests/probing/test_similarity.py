"""Similarities of layers against slow sums over samples."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import normscope as ns


def hsic(k, l):  # noqa: E741
    """The unbiased estimate as a mean over all four-tuples of different samples (Song et al. 2012, its definition)."""
    n = len(k)
    total = 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def cka(x, y):
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def rdm(x, y):
    pairs = list(itertools.combinations(range(len(x)), 2))
    return np.corrcoef([[np.sum((z[i] - z[j]) ** 2) for i, j in pairs] for z in (x, y)])[0, 1]


@pytest.mark.parametrize(("kind", "oracle"), [("cka", cka), ("rdm", rdm)])
def test_a_similarity_is_that_of_its_definition(kind, oracle):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)).double(), torch.randn(7, 5).double()
    found = ns.similarity(model, x, kind=kind)
    with torch.no_grad():
        outputs = [model[: i + 1](x).numpy() for i in range(3)]
    expected = [[oracle(a, b) for b in outputs] for a in outputs]
    np.testing.assert_allclose(found.values, expected, rtol=1e-9, atol=1e-12)
    assert found.names == ("0", "1", "2")


@pytest.mark.parametrize("kind", ["cka", "rdm"])
def test_layers_without_anything_in_common_have_zero_on_average(kind):
    from normscope.probing.similarity import _PAIRS, _PREPARED

    rng = torch.Generator().manual_seed(3)
    drawn = []
    for _ in range(300):
        grams = [(lambda x: x @ x.T)(torch.randn(8, d, generator=rng, dtype=torch.float64)) for d in (50, 20)]
        drawn.append(float(_PAIRS[kind](torch.stack([_PREPARED[kind](g) for g in grams]))[0, 1]))
    assert abs(np.mean(drawn)) < 4 * np.std(drawn) / np.sqrt(300)  # four standard errors


def test_the_places_have_the_distances_where_two_axes_hold_them():
    from normscope.probing.similarity import _plane

    angles = torch.tensor([0.0, 0.3, 0.7], dtype=torch.float64)
    points = torch.stack([angles.cos(), angles.sin()], 1)
    found = _plane(points @ points.T)
    torch.testing.assert_close(torch.cdist(found, found), torch.cdist(points, points))


def test_a_similarity_needs_four_samples():
    with pytest.raises(ns.UsageError, match="at least 4 samples"):
        ns.similarity(nn.Linear(3, 2), torch.randn(3, 3))


def test_a_similarity_is_drawn_as_a_map(tmp_path):
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4))
    ns.similarity(model, torch.randn(9, 5)).save(tmp_path / "a.html")
    assert "CKA of layers" in (tmp_path / "a.html").read_text()
