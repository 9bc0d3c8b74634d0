"""The expectations of batch norm's backward pass, against draws."""

import numpy as np
import pytest

from normscope.nn.norms.integrals import linear_batch_norm_pull


@pytest.mark.parametrize("recenter", [True, False])
def test_the_pull_of_a_linear_batch_norm_is_the_mean_over_draws(recenter):
    """E[J^T G J], J = (P - u u^T / |u|^2) / sigma of 5 samples whose Gram has a common part."""
    rng, n, draws = np.random.default_rng(4), 5, 200_000
    factor = rng.standard_normal((n, n)) + 2
    outer = rng.standard_normal((n, n))
    covariance, outer = factor @ factor.T / n, outer @ outer.T
    p = np.eye(n) - recenter * np.ones((n, n)) / n
    u = rng.standard_normal((draws, n)) @ np.linalg.cholesky(covariance).T @ p
    size = np.square(u).sum(1)[:, None, None]
    jacobian = (p - u[:, :, None] * u[:, None, :] / size) / np.sqrt(size / n)
    found = jacobian.swapaxes(1, 2) @ outer @ jacobian
    error = found.std(0) / np.sqrt(draws)
    z = (linear_batch_norm_pull(covariance, outer, recenter) - found.mean(0)) / error
    assert np.abs(z).max() < 5
    assert np.abs(found.mean(0) / error).max() > 100, "the draws tell nothing"
