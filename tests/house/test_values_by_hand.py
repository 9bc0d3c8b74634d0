"""Numbers worked out by hand, one for each line of arithmetic that is easily got wrong (benchmarks/breaks.py)."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import normscope as ns
from normscope import Spec
from normscope.linalg.traces import mean_and_error
from normscope.theory import order_parameters, predict, predicted_grams
from normscope.theory.laws import orthogonality
from normscope.training import Recipe, Samples, Training

GRAM = np.array([[1.0, 0.3], [0.3, 2.0]])


def test_rank_counts_against_the_larger_of_both_sizes():
    x = torch.zeros(4, 100, dtype=torch.float64)
    x[0, 0], x[1, 1] = 1, 20 * torch.finfo(torch.float64).eps  # above 4 eps, below 100 eps
    assert ns.measure(x, ["numerical_rank"])["numerical_rank"] == 1
    x[1, 1] = 20 * torch.finfo(torch.float32).eps
    assert ns.measure(x, ["numerical_rank_float32"])["numerical_rank_float32"] == 1


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_distance_of_running_statistics_is_half_the_divergence_with_eps(eps):
    torch.manual_seed(0)
    norm, x = nn.BatchNorm1d(3, eps=eps).eval(), 2 * torch.randn(64, 3) + 1
    norm.running_mean.fill_(0.5)
    norm.running_var.fill_(3.0)
    mean, var = x.double().mean(0), x.double().var(0, correction=0) + eps
    expected = (((mean - 0.5) ** 2 + var) / (3 + eps) - 1 - (var / (3 + eps)).log()).mean() / 2
    found = ns.probe(nn.Sequential(nn.Identity(), norm), x, mode="eval")
    values = [r.value for r in found.records if r.metric == "running_statistics_distance"]
    assert values == pytest.approx([float(expected)], rel=1e-6)


def test_a_skip_scales_the_weights_by_gain_and_strength_both_squared():
    spec = Spec(depth=2, width=8, activation="identity", norm="none", skip=0.5, gain=2.0)
    _, one, two = predicted_grams(spec, GRAM)  # a bare Gram is no input of that width: no skip in the first layer
    assert two == pytest.approx((1 + 0.25 * 4) * one, rel=1e-12)


def test_a_bias_adds_its_variance():
    spec = Spec(depth=1, width=8, activation="identity", norm="none", bias=0.5)
    assert predicted_grams(spec, GRAM)[1] == pytest.approx(GRAM + 0.25, rel=1e-12)


def test_the_first_layer_has_the_fan_in_of_the_input():
    spec = Spec(depth=1, width=40, activation="identity", norm="none", weights="xavier")
    x = np.eye(2, 10)
    # gain^2 2 fan_in / (fan_in + fan_out), of X X^T / 10
    assert predicted_grams(spec, inputs=x)[1] == pytest.approx(2 * 10 / 50 * x @ x.T / 10, rel=1e-12)


@pytest.mark.parametrize(("skip", "factor"), [(None, 2.0), (0.5, math.sqrt(2))])
def test_gradients_grow_by_the_gain(skip, factor):
    spec = Spec(depth=3, width=8, activation="identity", norm="none", gain=2.0, skip=skip)
    growth = predict(spec, GRAM, metrics=["rms"]).series("gradient_growth", signal="gradient")
    assert growth[1] == pytest.approx(factor, rel=1e-12)


def test_a_skip_s_gradient_grows_by_gain_and_strength_both_squared():
    spec = Spec(depth=3, width=8, activation="identity", norm="none", gain=3.0, skip=0.5)
    growth = predict(spec, GRAM, metrics=["rms"]).series("gradient_growth", signal="gradient")
    assert growth[1] == pytest.approx(math.sqrt(1 + 2.25), rel=1e-12)


def test_a_readout_of_variance_one_halves_what_the_layers_before_it_count():
    spec = Spec(depth=2, width=50, activation="relu", gain=math.sqrt(2), outputs=1)
    kappa = [order_parameters(spec, readout_gain=g).kappa[0] for g in (math.sqrt(2), 1.0)]
    assert kappa == pytest.approx([3.0, 2.0], rel=1e-9)  # one a layer; the readout's own stays


def test_lemma_8_as_stated_and_as_proved():
    found = [orthogonality.contraction_bound(0.1, 4, sharp) for sharp in (False, True)]
    assert found == pytest.approx([(1 - 0.2 / 3) * 0.15, (1 - 0.8 / 6) * 0.15], rel=1e-12)


def test_a_standard_error_divides_by_one_less():
    assert mean_and_error([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, math.sqrt(14 / 3 / 2 / 3)))


def test_each_draw_of_a_monte_carlo_fisher_is_another():
    torch.manual_seed(0)
    model, x = nn.Linear(20, 4).double(), torch.randn(3, 20, dtype=torch.float64)
    for loss in ("squared_error", "cross_entropy"):
        one, many = (ns.fisher(model, x, loss=loss, kind="monte_carlo", draws=d, seed=1).dense() for d in (1, 4))
        assert torch.linalg.matrix_rank(one) == 3
        assert torch.linalg.matrix_rank(many) > 3


def test_the_hessian_of_unequal_batches_weighs_them_by_their_samples():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    batches = [(torch.randn(n, 3, dtype=torch.float64), torch.randn(n, 2, dtype=torch.float64)) for n in (2, 6)]
    both = ns.hessian(model, data=batches, loss="mse")
    few, many = (ns.hessian(model, x, y, loss="mse") for x, y in batches)
    eye = torch.eye(8, dtype=torch.float64)
    assert torch.allclose(both.matmat(eye), few.matmat(eye) / 4 + 3 * many.matmat(eye) / 4)


class Given(nn.Module):
    """A loss for every step, whatever the samples."""

    def __init__(self, values):
        super().__init__()
        self.weight, self.values, self.calls = nn.Parameter(torch.ones(())), values, 0

    def forward(self, x):
        self.calls += 1
        return self.weight.detach() * 0 + self.values[self.calls - 1] + 0 * self.weight


def test_a_resumed_run_counts_the_high_losses_before_it():
    values = [1.0, *[50.0] * 5]

    def made():
        recipe = Recipe(epochs=1, batch=1, loss=lambda out, _: out, patience=4)
        return Training(Given(values), Samples(torch.zeros(len(values), 1), None), recipe)

    first, second = made(), made()
    first.advance(3)
    second.load_state_dict(first.state_dict())
    second.model.calls = 3
    second.advance(6)
    assert second.diverged == 4
