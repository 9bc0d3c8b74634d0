"""Losses of one's own that are healthy: nothing is wrong with what they see."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_checkup_healthy import mlp, setup, table
from torch import Tensor, nn

from normscope import diagnose

QUANTILES = torch.tensor([0.1, 0.5, 0.9])


def focal(o: Tensor, t: Tensor) -> Tensor:
    cost = F.cross_entropy(o, t, reduction="none")
    return ((1 - (-cost).exp()) ** 2 * cost).mean()


def triplet(o: Tensor, _: Tensor) -> Tensor:
    return F.triplet_margin_loss(o[::2], o[1::2], o.roll(3, 0)[::2])


def contrast(o: Tensor, t: Tensor) -> Tensor:
    z = F.normalize(o, dim=1)
    alike = (t[:, None] == t).float().fill_diagonal_(0)
    return F.cross_entropy(z @ z.t() / 0.1 - 1e9 * torch.eye(len(z)), alike / (alike.sum(1, keepdim=True) + 1e-6))


def distil(o: Tensor, t: Tensor) -> Tensor:
    return F.kl_div(o.log_softmax(1), t.softmax(1), reduction="batchmean")


def quantiles(o: Tensor, t: Tensor) -> Tensor:
    return torch.maximum(QUANTILES * (t - o), (QUANTILES - 1) * (t - o)).mean()


def gaussian(o: Tensor, t: Tensor) -> Tensor:
    return F.gaussian_nll_loss(o[:, :1], t, o[:, 1:2].exp())


def mixture(o: Tensor, t: Tensor) -> Tensor:
    log = o[:, 6:9]
    return -(o[:, :3].log_softmax(1) - 0.5 * ((t - o[:, 3:6]) / log.exp()) ** 2 - log).logsumexp(1).mean()


def policy(o: Tensor, t: Tensor) -> Tensor:
    return -(o.log_softmax(1).gather(1, t[:, :1].long())[:, 0] * t[:, 1]).mean()


def ranks(o: Tensor, t: Tensor) -> Tensor:
    return F.softplus(-(o - o.t()) * torch.sign(t - t.t())).mean()


def moments(o: Tensor, t: Tensor) -> Tensor:
    return (o.mean(0) - t.mean(0)).square().sum() + (o.std(0) - t.std(0)).square().sum()


def critic(o: Tensor, t: Tensor) -> Tensor:
    return -(o * t).mean()


def two_classes(x: Tensor, t: Tensor) -> Tensor:
    return (t[:, 0] > 0).long()


LOSSES: dict[str, tuple[int, Callable, Callable]] = {
    "soft labels": (3, lambda x, t: torch.softmax(3 * torch.randn(len(x), 3), 1), nn.CrossEntropyLoss()),
    "focal": (2, two_classes, focal),
    "triplet": (16, two_classes, triplet),
    "contrast": (16, two_classes, contrast),
    "distillation": (3, lambda x, t: torch.randn(len(x), 3), distil),
    "hinge": (3, two_classes, nn.MultiMarginLoss()),
    "quantiles": (3, lambda x, t: t, quantiles),
    "gaussian": (2, lambda x, t: t, gaussian),
    "mixture of gaussians": (9, lambda x, t: t, mixture),
    "policy gradient": (4, lambda x, t: torch.stack([torch.randint(4, (len(x),)), torch.randn(len(x))], 1), policy),
    "ranks": (1, lambda x, t: t, ranks),
    "moments": (2, lambda x, t: torch.randn(len(x), 2), moments),
    "critic": (1, lambda x, t: torch.sign(torch.randn(len(x), 1)), critic),
    "ratings": (1, lambda x, t: torch.distributions.Binomial(4, 0.5).sample((len(x), 1)), nn.MSELoss()),
    "one-hot squares": (3, lambda x, t: F.one_hot(two_classes(x, t), 3).float(), nn.MSELoss()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_healthy_loss_gets_no_warning(name):
    outputs, targets, loss = LOSSES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        x, t = table()
        found = diagnose(**setup(mlp(12, 32, outputs), x, targets(x, t), loss), trial=False)
    assert [(f.code, f.evidence) for f in found.findings if f.severity != "info"] == []
    assert found.profile.facts["checkup"]["left_out"] == {}


def test_an_optimizer_that_wants_a_closure_is_left_out():
    model = mlp(12, 32, 1)
    x, t = table()
    found = diagnose(**setup(model, x, t, nn.MSELoss(), torch.optim.LBFGS(model.parameters())), trial=False)
    assert found.profile.facts["checkup"]["left_out"] == {}
    assert found.verdict.startswith("Nothing found in geometry, gradients, wiring, loss and data (")
