"""Where the solvers stop, the *value* is as near as asked: against spectra that are known, clustered tops included."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from normscope.curvature import fisher
from normscope.linalg import LinearMap, eigen, lanczos, spectrum
from normscope.linalg.spectra import smaller_side

D = torch.float64
Case = tuple[str, Tensor, Tensor | None]


def diagonal(values: Tensor) -> LinearMap:
    def product(x: Tensor) -> Tensor:
        return values[:, None] * x

    return LinearMap((len(values), len(values)), product, product)


def random(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=D)


def wishart(g: torch.Generator, c: int, m: int) -> Tensor:
    a = random(g, c, m) / m**0.5
    return torch.linalg.eigvalsh(a @ a.T)


def spectra(seed: int) -> Iterator[tuple[str, Tensor]]:
    """Tops of one, of clusters of several widths, of soft edges; bulks below."""
    g = torch.Generator().manual_seed(seed)
    bulk = 0.1 * wishart(g, 150, 300)
    yield "isolated", torch.cat([torch.ones(1, dtype=D), bulk])
    for count in (2, 5, 10, 30):
        for spread in (1e-3, 5e-3, 0.02, 0.1):
            yield f"{count} within {spread}", torch.cat([1 + spread * torch.rand(count, generator=g, dtype=D), bulk])
    yield "edge of many outliers", torch.cat([1 + wishart(g, 100, 200), bulk])
    yield "edge of a bulk", bulk
    yield "power law", torch.arange(1, 401, dtype=D) ** -1.0


def missed(confidence_free: bool = False) -> dict[str, int]:
    """How often each spectrum's top was missed by more than the tolerance, over ten random starts."""
    count: dict[str, int] = {}
    for seed in range(10):
        for name, values in spectra(seed):
            start = random(torch.Generator().manual_seed(100 + seed), len(values))
            noise = 0.0 if confidence_free else 1.0
            r = lanczos(diagonal(values), start, tol=1e-3, noise=noise)
            assert r.converged, name
            count[name] = count.get(name, 0) + (float(r.values[0]) < (1 - 1e-3) * float(values.max()))
    return count


def test_a_random_start_meets_its_tolerance_on_clusters_and_edges() -> None:
    # 200 runs at 99 %: two misses are allowed by the bound, with a standard deviation of 1.4.
    assert sum(missed().values()) <= 4


def test_the_residual_alone_misses_clusters() -> None:
    by_residual = missed(confidence_free=True)
    assert sum(n for name, n in by_residual.items() if "within" in name) >= 5


def test_the_error_bounds_the_distance_to_the_top_as_often_as_it_says() -> None:
    g = torch.Generator().manual_seed(0)
    values = torch.cat([1 + 0.05 * torch.rand(10, generator=g, dtype=D), 0.2 * torch.rand(200, generator=g, dtype=D)])
    runs, outside = 200, 0
    for _ in range(runs):
        r = lanczos(diagonal(values), tol=0.0, max_products=6, generator=g)
        outside += float(values.max() - r.values[0]) > float(r.errors[0])
    allowed = 1 - eigen.CONFIDENCE
    assert outside <= runs * allowed + 3 * math.sqrt(runs * allowed * (1 - allowed))


@pytest.mark.parametrize("largest", [True, False])
def test_the_bound_is_the_root_of_the_residual_polynomial(largest: bool) -> None:
    values = torch.linspace(-1, 2, 40, dtype=D)
    start = random(torch.Generator().manual_seed(0), 40)
    r = lanczos(diagonal(values), start, tol=0.0, max_products=7, noise=1.0, largest=largest)
    t = torch.linalg.eigvalsh(r.projected)
    x = r.values[0] + (r.errors[0] if largest else -r.errors[0])
    # The monic characteristic polynomial of T applied to the start has norm beta_1 ... beta_7 |start|.
    product = torch.stack([values - theta for theta in t]).prod(0) * start / start.norm()
    p = (x - t).prod().abs() / product.norm()
    quantile = math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - eigen.CONFIDENCE, dtype=D)))
    assert float(p) == pytest.approx(float(start.norm()) / quantile, rel=1e-6)


def test_progress_foresees_the_end() -> None:
    values = torch.cat([torch.linspace(0, 1, 300, dtype=D), torch.tensor([1.3], dtype=D)])
    calls: list[tuple[float, float, float, float]] = []
    r = lanczos(
        diagonal(values), tol=1e-6, generator=torch.Generator().manual_seed(0), progress=lambda *a: calls.append(a)
    )
    assert calls[-1][3] == 0
    assert calls[-1][2] == pytest.approx(float(r.errors[0]))
    third = calls[2 * len(calls) // 3]
    assert third[0] + third[3] == pytest.approx(r.products, rel=0.3)


NORMS = {"none": lambda d: [], "batch": lambda d: [nn.BatchNorm1d(d)], "layer": lambda d: [nn.LayerNorm(d)]}


@pytest.mark.parametrize("method", ["screened", "directions"])
@pytest.mark.parametrize(
    ("norm", "c", "act", "loss", "seed"),
    [
        ("batch", 10, nn.ReLU, "mse", 2),  # ten eigenvalues within 1 %
        ("none", 10, nn.ReLU, "mse", 1),
        ("layer", 10, nn.GELU, "mse", 0),
        ("batch", 10, nn.Tanh, "cross_entropy", 1),
    ],
)
def test_starts_from_mean_gradients_meet_their_tolerance(
    method: str, norm: str, c: int, act: type[nn.Module], loss: str, seed: int
) -> None:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in ((30, 60), (60, 60)):
        layers += [nn.Linear(a, b), *NORMS[norm](b), act()]
    model = nn.Sequential(*layers, nn.Linear(60, c)).double()
    f = fisher(model, torch.randn(80, 30, dtype=D), loss=loss)
    top = float(torch.linalg.eigvalsh(smaller_side(f)[0].dense())[-1])
    s = spectrum(f, method=method)
    assert (1 - 1e-3) * top <= s.largest <= (1 + 1e-9) * top


def narrow(seed: int, norm: str, loss: str, m: int = 40, n: int = 50) -> tuple[LinearMap, float]:
    """A net so narrow that its mean gradients hardly stand out of the bulk, and its dense top."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Linear(m, m), *NORMS[norm](m), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(m, 10 if seed % 2 else 2)).double()
    f = fisher(model, torch.randn(n, m, dtype=D), loss=loss)
    return f, float(torch.linalg.eigvalsh(smaller_side(f)[0].dense())[-1])


def small_nets() -> Iterator[tuple[LinearMap, float]]:
    for seed in range(3):
        for norm in NORMS:
            for loss in ("mse", "cross_entropy"):
                yield narrow(seed, norm, loss)


@pytest.mark.parametrize(("seed", "loss", "tol"), [(3, "mse", 1e-3), (10, "cross_entropy", 1e-2)])
def test_a_part_of_the_batch_is_not_believed_where_the_bulk_reaches_high(seed: int, loss: str, tol: float) -> None:
    f, top = narrow(seed, "layer", loss, m=50, n=60)  # ten times further off than said, if it were
    s = spectrum(f, method="screened", tol=tol, seed=seed)
    assert (1 - tol) * top <= s.largest <= (1 + 1e-9) * top
    assert top - s.largest <= float(s.errors[0])


@pytest.mark.parametrize("method", ["lanczos", "screened", "directions"])
def test_a_loose_tolerance_does_not_settle_on_another_eigenvalue(method: str) -> None:
    for i, (f, top) in enumerate(small_nets()):
        if method != "screened" or (f.directions is not None and f.directions.screen is not None):
            s = spectrum(f, method=method, tol=1e-2, seed=i)
            assert s.converged
            assert top - 1e-2 * top <= s.largest <= top * (1 + 1e-9), i
            assert top - s.largest <= float(s.errors[0]) * 1.01 + 1e-9 * top, i
