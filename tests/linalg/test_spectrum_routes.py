"""The route that ``spectrum`` takes by itself, against Lanczos from a random block, also where the theory fails."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normscope.curvature import fisher
from normscope.linalg import lanczos, spectrum
from normscope.linalg.spectra import smaller_side

N = 300
NORMS = {"none": lambda d: [], "batch": lambda d: [nn.BatchNorm1d(d)], "layer": lambda d: [nn.LayerNorm(d)]}


def net(hidden: str, last: str, c: int, act: type[nn.Module] = nn.ReLU) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for a, b in ((30, 60), (60, 60), (60, 60)):
        layers += [nn.Linear(a, b), *NORMS[hidden](b), act()]
    return nn.Sequential(*layers, nn.Linear(60, c), *NORMS[last](c)), torch.randn(N, 30)


def reference(f: object) -> float:
    g, _ = smaller_side(f)  # type: ignore[arg-type]
    start = torch.randn(g.shape[0], 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return float(lanczos(g, start, tol=1e-5, max_products=400).values[0])


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize(
    ("hidden", "last", "c"),
    [
        ("none", "none", 5),
        ("batch", "none", 20),
        ("layer", "layer", 20),
        ("none", "batch", 5),  # the offsets after the norm are an invariant space of eigenvalue 1
        ("batch", "batch", 20),
    ],
)
def test_the_automatic_route_is_right_to_its_tolerance(hidden: str, last: str, c: int, loss: str) -> None:
    f = fisher(*net(hidden, last, c), loss=loss)
    assert f.shape[0] > N * c > 1024
    assert spectrum(f).largest == pytest.approx(reference(f), rel=1e-3)


@pytest.mark.parametrize("method", ["screened", "directions"])
def test_mean_gradients_that_are_not_the_top_are_noticed(method: str) -> None:
    f = fisher(*net("none", "batch", 5))
    s = spectrum(f, method=method)
    assert s.largest == pytest.approx(reference(f), rel=1e-3)
    assert s.method == "lanczos"


def test_few_products_where_the_theory_holds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))
    f = fisher(model, torch.randn(210, 300))
    s = spectrum(f)
    assert s.method == "screened"
    assert s.products <= 10
    assert lanczos(smaller_side(f)[0]).products > 1.3 * s.products
    assert s.largest == pytest.approx(reference(f), rel=1e-3)
    d = spectrum(f, method="directions")
    assert d.products <= 7.5
    assert d.largest == pytest.approx(reference(f), rel=1e-3)


def test_convolutional_nets_of_many_samples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 6),
    )  # fmt: skip
    f = fisher(model, torch.randn(200, 3, 8, 8))
    assert spectrum(f).largest == pytest.approx(reference(f), rel=1e-3)
