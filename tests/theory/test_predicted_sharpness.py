"""The predicted largest Fisher eigenvalue beside the measured one."""

import pytest
import torch

import normscope as ns
from normscope.theory import predicted_sharpness


def both(norm, activation, loss, seeds=3, width=200, n=50):
    measured, predicted = [], []
    for seed in range(seeds):
        spec = ns.Spec(depth=2, width=width, norm=norm, activation=activation, outputs=3)
        model = ns.build(spec, 40, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.rand(n, 40, generator=generator), torch.randint(3, (n,), generator=generator)
        targets = y if loss == "cross_entropy" else None
        found = ns.sharpness(model, x, targets, loss, probes=0, compare_modes=False, mode="train")
        measured.append(found.lambda_max)
        predicted.append(predicted_sharpness(model, x, loss))
    return torch.tensor(measured), torch.tensor(predicted)


@pytest.mark.parametrize(
    ("norm", "activation"), [("none", "relu"), ("none", "tanh"), ("batch", "relu"), ("layer", "relu")]
)
def test_the_squared_loss_is_predicted_to_leading_order(norm, activation):
    measured, predicted = both(norm, activation, "squared_error")
    assert measured.mean().item() == pytest.approx(predicted.mean().item(), rel=0.2)  # what the docstring promises


def test_with_batch_norm_in_the_hidden_layers_it_is_the_width_over_two_pi():
    measured, predicted = both("batch", "relu", "squared_error")
    assert predicted.mean().item() == pytest.approx(200 * (1 / 6.283185 * 49 / 50 + 0.5 / 50), rel=0.03)
    assert measured.mean().item() == pytest.approx(predicted.mean().item(), rel=0.05)


def test_torchs_mean_over_the_outputs_is_predicted_too():
    measured, predicted = both("batch", "relu", "mse")
    assert measured.mean().item() == pytest.approx(predicted.mean().item(), rel=0.05)


def test_a_loss_without_a_formula_has_no_prediction():
    model = ns.build(ns.Spec(depth=2, width=20, outputs=3), 10)
    assert predicted_sharpness(model, torch.rand(8, 10), "huber") is None


def test_cross_entropy_is_predicted_within_its_excess():
    measured, predicted = both("batch", "relu", "cross_entropy")
    assert 0.9 < (measured / predicted).mean() < 1.3


def test_a_centred_net_has_no_outlier_to_predict():
    model = ns.build(ns.Spec(depth=2, width=200, activation="tanh", outputs=3), 40)
    x = torch.randn(80, 40, generator=torch.Generator().manual_seed(0))
    assert predicted_sharpness(model, x - x.mean(0), "squared_error") is None


def test_a_net_that_is_not_recognised_has_no_prediction():
    model = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32, 3))
    assert predicted_sharpness(model, torch.randn(8, 1, 10), "squared_error") is None


def test_a_net_without_a_readout_has_no_prediction():
    assert predicted_sharpness(ns.build(ns.Spec(depth=2, width=20), 10), torch.randn(8, 10), "squared_error") is None
