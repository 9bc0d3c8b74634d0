"""Eigenvalues, traces and densities against dense matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from normscope.core.errors import UsageError
from normscope.linalg import LinearMap, from_directions, hutchinson, hutchpp, lanczos, moments, slq, spectrum
from normscope.linalg.maps import Directions, from_matrix, gram
from normscope.linalg.spectra import Spectrum


def symmetric(values: Tensor, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64))
    return q @ torch.diag(values.double()) @ q.T


def outliers_and_bulk(n: int = 300, p: int = 500, top: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A (p, n) whose dual has ``top`` near-equal outliers near the columns of the second matrix, and a bulk."""
    g = torch.Generator().manual_seed(seed)
    a = 0.05 * torch.randn(p, n, generator=g, dtype=torch.float64)
    left = torch.linalg.qr(torch.randn(p, top, generator=g, dtype=torch.float64))[0] * torch.linspace(5, 5.3, top)
    right = torch.linalg.qr(torch.randn(n, top, generator=g, dtype=torch.float64))[0]
    return a + left @ right.T, right


def as_map(a: Tensor, directions: Tensor | None = None) -> LinearMap:
    known = (
        None if directions is None else Directions(directions.shape[1], a.shape[1], lambda w: directions @ w.double())
    )
    return gram(from_matrix(a), directions=known)


def test_lanczos_finds_both_ends_of_an_indefinite_matrix() -> None:
    values = torch.cat([torch.linspace(-2, 1, 198), torch.tensor([-3.0, 5.0])])
    m = from_matrix(symmetric(values))
    g = torch.Generator().manual_seed(0)
    assert float(lanczos(m, tol=1e-8, generator=g).values[0]) == pytest.approx(5, abs=1e-9)
    assert float(lanczos(m, tol=1e-8, largest=False, generator=g).values[0]) == pytest.approx(-3, abs=1e-9)


def test_lanczos_residuals_are_the_true_ones() -> None:
    matrix = symmetric(torch.linspace(0, 1, 200))
    r = lanczos(from_matrix(matrix), k=3, tol=1e-2, generator=torch.Generator().manual_seed(1))
    true = (matrix @ r.vectors - r.vectors * r.values).norm(dim=0)
    assert torch.allclose(true, r.residuals, atol=1e-12)
    assert r.converged
    assert float(r.residuals.max()) <= 1e-2


def test_lanczos_of_a_block_sees_multiplicity() -> None:
    values = torch.cat([torch.full((3,), 7.0), torch.linspace(0, 1, 150)])
    m = from_matrix(symmetric(values))
    start = torch.randn(153, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    block = lanczos(m, start, k=4, tol=1e-10)
    assert torch.allclose(block.values[:3], torch.full((3,), 7.0, dtype=torch.float64), atol=1e-9)
    single = lanczos(m, start[:, :1], k=2, tol=0, max_products=12)
    assert float(single.values[1]) < 1.1


def test_lanczos_says_when_its_budget_ends_it() -> None:
    r = lanczos(from_matrix(symmetric(torch.linspace(0, 1, 300))), tol=1e-12, max_products=5)
    assert not r.converged
    assert r.products == 5


def test_lanczos_ends_on_an_invariant_space() -> None:
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64))
    start = torch.tensor([1.0, 1.0, 0, 0], dtype=torch.float64)
    r = lanczos(from_matrix(matrix), start, tol=0.0)
    assert float(r.values[0]) == pytest.approx(3, abs=1e-14)
    zero = lanczos(from_matrix(torch.zeros(4, 4, dtype=torch.float64)), start)
    assert float(zero.values[0]) == 0


def test_directions_need_no_random_start() -> None:
    a, top = outliers_and_bulk()
    want = torch.linalg.eigvalsh(a.T @ a).flip(0)
    r = from_directions(from_matrix(a), top, k=4, tol=1e-6)
    assert torch.allclose(r.values, want[:4], rtol=1e-9)
    true = (a.T @ (a @ r.vectors) - r.vectors * r.values).norm(dim=0)
    assert torch.allclose(true, r.residuals, atol=1e-9)
    assert torch.allclose(r.projected, r.basis.T @ (a.T @ a) @ r.basis, atol=1e-9)


def test_directions_in_the_null_space_do_not_mislead() -> None:
    a, top = outliers_and_bulk()
    a = a - a @ top @ top.T
    want = float(torch.linalg.eigvalsh(a.T @ a)[-1])
    s = spectrum(as_map(a, top), method="directions", tol=1e-4)
    assert s.largest == pytest.approx(want, rel=1e-4)
    assert s.method == "lanczos"


def test_directions_that_are_an_invariant_space_below_the_top_do_not_mislead() -> None:
    a, top = outliers_and_bulk()
    bulk = a - a @ top @ top.T
    edge = float(torch.linalg.eigvalsh(bulk.T @ bulk)[-1])
    extra = 0.5 * math.sqrt(edge) * torch.eye(4, dtype=torch.float64)
    both = torch.cat([bulk, extra @ top.T])
    s = spectrum(as_map(both, top), method="directions", tol=1e-4)
    assert s.largest == pytest.approx(edge, rel=1e-4)


def test_a_wrong_transpose_is_noticed() -> None:
    a, top = outliers_and_bulk()
    wrong = LinearMap(a.shape and (500, 300), lambda x: a @ x, lambda x: 1.1 * (a.T @ x))
    assert from_directions(wrong, top, max_products=9).asymmetry > 0.05
    assert lanczos(gram(wrong.T), max_products=9).asymmetry > 0.05
    right = from_matrix(a)
    assert from_directions(right, top).asymmetry < 1e-12


@pytest.mark.parametrize("method", ["dense", "directions", "lanczos"])
def test_every_route_agrees(method: str) -> None:
    a, top = outliers_and_bulk()
    want = float(torch.linalg.eigvalsh(a.T @ a)[-1])
    s = spectrum(as_map(a, top), method=method, tol=1e-5)
    assert s.largest == pytest.approx(want, rel=1e-5)
    assert s.method == method
    assert s.side == "dual"
    assert s.size == 500
    assert float(s.errors[0]) <= 1e-5 * want


def test_the_smaller_side_is_taken() -> None:
    wide = torch.randn(20, 90, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert spectrum(as_map(wide)).side == "primal"
    assert spectrum(as_map(wide.T)).side == "dual"


def test_trace_and_square_are_unbiased_and_their_errors_honest() -> None:
    a, top = outliers_and_bulk()
    matrix = a.T @ a
    inside = 0
    for seed in range(30):
        s = spectrum(as_map(a, top), method="directions", trace=True, probes=10, seed=seed)
        assert s.trace is not None
        assert s.square is not None
        inside += abs(s.trace.value - float(matrix.trace())) < 2.3 * s.trace.stderr  # t law, 9 degrees: 95 %
        assert abs(s.square.value - float(matrix.square().sum())) < 6 * s.square.stderr
    assert inside >= 24  # 30 trials at 95 %: P(< 24) = 4e-4


def test_deflated_trace_beats_hutchpp_and_hutchinson() -> None:
    a, top = outliers_and_bulk(top=6)
    exact = float(a.square().sum())

    def spread(estimate: object) -> float:
        errors = [estimate(torch.Generator().manual_seed(s)).value - exact for s in range(60)]  # type: ignore[operator]
        return math.sqrt(sum(e * e for e in errors) / len(errors))

    m = from_matrix(a)
    deflated = spread(lambda g: hutchinson(m, 18, basis=top, generator=g))  # 24 forms, as below
    plus = spread(lambda g: hutchpp(gram(m.T), 24, generator=g))
    plain = spread(lambda g: hutchinson(m, 24, generator=g))
    assert deflated < plus / 1.5
    assert plus < plain


def test_moments_with_the_whole_space_known_are_exact() -> None:
    matrix = symmetric(torch.linspace(-1, 2, 12))
    q = torch.eye(12, dtype=torch.float64)
    both = moments(from_matrix(matrix), q, matrix)
    assert both.trace.stderr == 0
    assert both.trace.value == pytest.approx(float(matrix.trace()))
    assert both.square.value == pytest.approx(float(matrix.square().sum()))


def test_density_matches_the_eigenvalues_within_its_error() -> None:
    values = torch.cat([torch.linspace(0, 1, 360), torch.linspace(4, 5, 40)]).double()
    d = slq(from_matrix(symmetric(values)), probes=20, steps=30, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(d.weights.sum(1), torch.ones(20, dtype=torch.float64))
    share, error = d.cumulative(torch.tensor([2.0], dtype=torch.float64))
    assert abs(float(share) - 0.9) < 4 * float(error)
    assert 0 < float(error) < 0.02
    grid = torch.linspace(-1, 6, 400, dtype=torch.float64)
    curve, _ = d.smooth(grid, 0.1)
    assert float(torch.trapezoid(curve, grid)) == pytest.approx(1, abs=1e-3)


def test_the_null_space_is_reported_apart() -> None:
    a, _ = outliers_and_bulk()
    s = spectrum(as_map(a), density=True)
    assert s.density is not None
    assert s.density.null == pytest.approx(1 - 300 / 500)


def test_dense_and_scipy_views() -> None:
    a, _ = outliers_and_bulk()
    m = as_map(a)
    assert torch.allclose(m.dense(), a @ a.T)
    assert torch.allclose(from_matrix(a).dense(chunk=7), a)
    assert torch.allclose(from_matrix(a).T.dense(chunk=7), a.T)
    x = torch.ones(500, dtype=torch.float64)
    assert torch.allclose(torch.as_tensor(m.scipy() @ x.numpy()), a @ (a.T @ x))
    assert torch.allclose(m @ x, m.matvec(x))


def test_bad_requests_are_refused() -> None:
    a, _ = outliers_and_bulk()
    with pytest.raises(UsageError, match="square"):
        spectrum(from_matrix(a))
    with pytest.raises(UsageError, match=r"no method of spectrum 'lancsos'.*lanczos"):
        spectrum(as_map(a), method="lancsos")
    with pytest.raises(UsageError, match="directions"):
        spectrum(as_map(a), method="directions")


@pytest.mark.parametrize("converged", [True, False])
def test_a_spectrum_says_whether_it_converged(converged: bool) -> None:
    values = torch.tensor([3.0, 2.0], dtype=torch.float64)
    found = Spectrum(values, 0.01 * values, 0.001 * values, 5, "samples", "lanczos", 7.5, converged)
    said = repr(found)
    assert ("NOT converged" in said) is not converged
    assert said.startswith("Spectrum(3, 2; error <= 0.003; lanczos on the samples side, 7.5 products")


def test_a_rectangular_map_takes_vectors_of_its_columns_and_its_transpose_those_of_its_rows() -> None:
    matrix = torch.arange(15, dtype=torch.float64).reshape(3, 5)
    m = from_matrix(matrix)
    columns, rows = torch.linspace(1, 2, 5, dtype=torch.float64), torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)
    assert torch.allclose(m.matvec(columns), matrix @ columns)
    assert torch.allclose(m.rmatvec(rows), matrix.T @ rows)
    for call, wrong, length in ((m.matvec, rows, 5), (m.rmatvec, columns, 3)):
        with pytest.raises(UsageError, match=rf"multiplies vectors \({length},\)"):
            call(wrong)


def test_one_product_is_a_budget_and_none_is_not() -> None:
    m = from_matrix(symmetric(torch.linspace(0, 1, 300)))
    assert spectrum(m, method="lanczos", max_products=1).products <= 1
    with pytest.raises(UsageError, match="max_products"):
        spectrum(m, method="lanczos", max_products=0)
