"""`predict` of a model works on the user's own parameters and never writes to one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normscope import Step, predict


class Writing(nn.Module):
    """A model that writes to its own weight in its forward pass."""

    def __init__(self, write):
        super().__init__()
        self.one, self.two, self.write = nn.Linear(6, 8), nn.Linear(8, 5), write

    def forward(self, x):
        h = self.one(x)
        self.write(self.two.weight, h)
        return self.two(h)


def caught(w, h):
    try:
        w.add_(1.0)
    except BaseException:
        return


def backward(w, h):
    with torch.enable_grad():
        F.linear(h.detach(), w).sum().backward()


def added(w, h):
    w += 1.0


WRITES = {
    "add_": lambda w, h: w.add_(1.0),
    "+=": added,
    "item": lambda w, h: w.__setitem__(0, 1.0),
    "a row": lambda w, h: w[0].zero_(),
    "data": lambda w, h: w.data.mul_(2),
    "other data": lambda w, h: setattr(w, "data", w + 1),
    "detach": lambda w, h: w.detach().view(-1).zero_(),
    "out": lambda w, h: torch.add(w, 1.0, out=w),
    "foreach": lambda w, h: torch._foreach_add_([w], 1.0),
    "embedding": lambda w, h: F.embedding(torch.tensor([0, 1]), w, max_norm=1e-3),
    "running mean": lambda w, h: F.batch_norm(h.detach(), w[0], h.detach().var(0), training=True),
    "init": lambda w, h: nn.init.normal_(w),
    "numpy": lambda w, h: w.detach().numpy().fill(0),
    "backward": backward,
    "and catches what it is told": caught,
}


@pytest.mark.parametrize("write", WRITES)
def test_a_model_that_writes_to_its_weights_has_them_back(write):
    torch.manual_seed(0)
    model = Writing(WRITES[write])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    places = [(id(p), p.data_ptr(), p._version) for p in model.parameters()]
    predict(model, torch.randn(4, 6))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert places == [(id(p), p.data_ptr(), p._version) for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())


def test_a_model_that_only_reads_runs_once_on_its_own_weights(monkeypatch):
    model, given = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)), []
    run = Step.run
    monkeypatch.setattr(Step, "run", lambda at, work, own=None: given.append(own) or run(at, work, own))
    predict(model, torch.randn(4, 6))
    assert [set(own) for own in given] == [set(map(id, model.parameters()))]
