"""The numbers that one looks for first stand at the head: of the terminal, of the page, of the picture."""

import torch
from torch import nn

import normscope as ns
from normscope.core.words import amount
from normscope.report import _rows
from normscope.report.curvature import of_sharpness
from normscope.report.html import of_diagnosis


def test_lambda_max_and_the_rates_stand_beside_the_verdict():
    torch.manual_seed(0)
    net, x, y = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(16, 4), torch.arange(16) % 2
    found = ns.diagnose(net, x, y, trial=False, curvature=True)
    (card,) = of_diagnosis(found).cards
    assert card.headline == _rows.headline(found.content().facts[0])
    assert f"λ_max {found.fisher.lambda_max:.3g}" in card.headline[0]
    assert f"the rate {found.fisher.max_stable_lr:.3g}" in card.headline[0]
    assert f"λ_max {found.fisher.lambda_max:.3g}" in of_sharpness(found.fisher).title


def test_without_curvature_there_is_no_headline():
    assert _rows.headline({"lambda_max": None}) == []


def test_a_saturated_softmax_has_no_rate_instead_of_an_infinite_one():
    spec = ns.Spec(depth=60, width=64, gain=3.0, outputs=10)  # logits of 1e20
    x, y = torch.randn(128, 64, generator=torch.Generator().manual_seed(0)), torch.arange(128) % 10
    found = ns.sharpness(ns.build(spec, 64), x, y, "cross_entropy")
    assert found.lambda_max == 0
    assert "cannot be told: no curvature is left" in repr(found)


def test_numbers_that_hardly_fit_are_words():
    assert [amount(x) for x in (0.952, 5e37, 1e-38, 0.0)] == ["0.95", "beyond 1e30", "below 1e-30", "0"]
