"""Proof that claims can fail: the library is broken in one place at a time, and the matching claim must notice.

Each break is a wrong sign, a wrong factor or a missing recentring, patched into the library; the claim holds without
it.
"""

import importlib
import math
import types

import numpy as np
import pytest
import torch

from normscope import claims
from normscope.claims import judge
from normscope.geometry.metrics import METRICS
from normscope.nn import norms
from normscope.nn.maps import LayerMap
from normscope.nn.norms import integrals
from normscope.theory import _chain
from normscope.theory import fisher as fisher_theory
from normscope.theory.laws import odd_point, orthogonality, rank

configuration = importlib.import_module("normscope.geometry.shapes")  # the package has a function of this name
directions = importlib.import_module("normscope.curvature._directions")
moments = importlib.import_module("normscope.linalg.traces")


@pytest.fixture(scope="module", autouse=True)
def papers():
    claims.load()


@pytest.fixture
def patch(monkeypatch):
    """``patch(owner, name, broken)``: ``broken(original, *arguments)`` stands in for ``owner.name``."""

    def replace(owner, name, broken):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **options: broken(original, *args, **options))

    return replace


@pytest.fixture
def patch_metric(monkeypatch):
    """A metric whose value is changed; it lives in the registry."""

    def replace(name, change):
        metric = METRICS[name]
        original = metric.function
        object.__setattr__(metric, "function", lambda *a, **k: change(original(*a, **k)))
        restore.append((metric, original))

    restore = []
    yield replace
    for metric, original in restore:
        object.__setattr__(metric, "function", original)


def notices(name):
    """The claim no longer says what it should."""
    verdict = judge(name)
    assert verdict.status in ("fails", "rejected"), verdict
    return verdict


@pytest.mark.parametrize(
    "name",
    [
        "daneshmand2021/gap", "daneshmand2020/lemma1", "nachum2024/odd-score", "nachum2024/equiangular",
        "nachum2024/gram-integral", "nachum2024/parts", "daneshmand2021/normalization", "daneshmand2021/contraction",
        "daneshmand2021/lemma8", "nachum2024/winner-takes-all", "nachum2024/detector-planted",
        "karakida2019/dense-is-matrix-free", "karakida2019/order-parameters",
    ],
)  # fmt: skip
def test_the_claim_holds_while_nothing_is_broken(name):
    verdict = judge(name)
    assert (verdict.status, verdict.control) == ("holds", "fails"), verdict


def test_a_gap_off_by_a_factor(patch_metric):
    patch_metric("orthogonality_gap", lambda v: 1.1 * v)
    notices("daneshmand2021/gap")


def test_a_rank_off_by_a_factor(patch_metric):
    patch_metric("participation_rank", lambda v: 1.2 * v)
    notices("daneshmand2020/lemma1")


def test_an_odd_point_score_off_by_a_factor(patch_metric):
    patch_metric("odd_point_score", lambda v: 0.9 * v)
    notices("nachum2024/odd-score")


def test_chains_without_their_recentring(patch, monkeypatch):
    monkeypatch.setattr(LayerMap, "recentres_first", False)
    patch(LayerMap, "apply", lambda original, self, z, eps, centred=False: original(self, z, eps, True))
    notices("nachum2024/equiangular")


def test_batch_norm_without_its_recentring(monkeypatch):
    forward = norms.BatchNorm.forward

    def broken(self, x):
        was, self.recenter = self.recenter, False
        try:
            return forward(self, x)
        finally:
            self.recenter = was

    monkeypatch.setattr(norms.BatchNorm, "forward", broken)
    notices("nachum2024/parts")


def test_batch_norm_off_by_a_percent(monkeypatch):
    forward = norms.BatchNorm.forward
    monkeypatch.setattr(norms.BatchNorm, "forward", lambda self, x: 1.01 * forward(self, x))
    notices("daneshmand2021/normalization")


def test_a_wrong_kernel_in_the_gram_map(patch):
    patch(integrals, "half_plane", lambda original, c: 1.02 * original(c))
    notices("nachum2024/gram-integral")


def test_a_wrong_tilt_of_the_spectrum(patch):
    patch(integrals, "_tilted", lambda original, v: (original(v)[0], original(v)[1] ** 1.02))
    notices("daneshmand2021/contraction")


def test_a_law_that_forgets_the_norm(patch):
    patch(orthogonality, "mean_spectrum", lambda original, v: np.asarray(v) / np.sum(v))
    notices("daneshmand2021/lemma8")


def test_a_drift_of_the_wrong_sign(patch):
    patch(rank, "drift", lambda original, m, gamma: -original(m, gamma))
    notices("daneshmand2020/drift")


def test_a_map_of_excess_off_by_a_percent(patch):
    patch(odd_point, "winner_takes_all", lambda original, u, *a: 1.01 * original(u, *a))
    notices("nachum2024/winner-takes-all")


def test_a_detector_that_never_sees_the_odd_point(patch):
    patch(configuration, "is_odd", lambda original, odd, samples: False)
    notices("nachum2024/detector-planted")


def test_a_fisher_matrix_that_forgets_its_samples(monkeypatch):
    forgetful = types.SimpleNamespace(**(vars(math) | {"sqrt": lambda n: 1.0}))  # of 1 / sqrt(n)
    monkeypatch.setattr(directions, "math", forgetful)
    notices("karakida2019/dense-is-matrix-free")


def test_order_parameters_with_a_wrong_derivative(patch):
    patch(
        fisher_theory,
        "product_moment",
        lambda original, *a, **k: original(*a, **k) * (1.1 if k.get("derivative") else 1),
    )
    notices("karakida2019/order-parameters")


def test_probes_that_are_not_signs(monkeypatch):
    original = moments.rademacher
    monkeypatch.setattr(
        moments, "rademacher", lambda size, count, like, generator: 1.2 * original(size, count, like, generator)
    )
    notices("karakida2019/deflated-trace")


def test_the_weights_of_a_chain_at_a_wrong_scale(monkeypatch):
    # A net without norm: twice the variance a layer leaves the angles, not the determinant.
    original = _chain.Group._step_bartlett

    def broken(self):
        original(self)
        self.factor = self.factor * torch.tensor(2.0).sqrt().item()
        self.gram = self.gram * 2

    monkeypatch.setattr(_chain.Group, "_step_bartlett", broken)
    notices("daneshmand2021/vanilla-law")
