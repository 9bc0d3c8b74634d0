"""The check-up runs the user's loader, loss, optimizer and loop body, and leaves them as they were."""

import copy

import pytest
import torch
from torch import nn

from normscope import diagnose


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    return model, torch.randn(96, 6), torch.randint(3, (96,))


def loop(model, optimizer, schedule, times=1):
    def step(model, optimizer, loss_fn, x, t):
        optimizer.zero_grad()
        loss = loss_fn(model(x), t)
        loss.backward()
        optimizer.step()
        schedule.step()
        times_called.append(1)
        return loss

    times_called: list[int] = []
    return step


def trained(look, kind):
    model, x, t = make()
    optimizer = kind(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    step, loader = (
        loop(model, optimizer, schedule),
        torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, t), 16, shuffle=True, generator=torch.Generator().manual_seed(5)
        ),
    )
    for i, (a, b) in enumerate(loader):
        if look and i == 2:
            diagnose(
                model, x, t, nn.CrossEntropyLoss(), optimizer=optimizer, data=loader, valid=[(x, t)], train_step=step
            )
        step(model, optimizer, nn.CrossEntropyLoss(), a, b)
    return model.state_dict(), copy.deepcopy(optimizer.state_dict()), schedule.state_dict()


KINDS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_as_if_nothing_had_been_looked_at(kind):
    one, two = trained(False, KINDS[kind]), trained(True, KINDS[kind])
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_a_step_that_uses_its_own_optimizer_trains_the_copies():
    model, x, t = make()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    before = copy.deepcopy(model.state_dict())

    def step(_model, _optimizer, loss_fn, x, t):
        optimizer.zero_grad()
        loss = loss_fn(model(x), t)
        loss.backward()
        optimizer.step()
        return loss

    diagnose(model, x, t, nn.CrossEntropyLoss(), optimizer=optimizer, train_step=step)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_gradients_that_were_there_stay():
    model, x, t = make()
    nn.CrossEntropyLoss()(model(x), t).backward()
    grads = [p.grad for p in model.parameters()]
    values = [g.clone() for g in grads]
    optimizer = torch.optim.Adam(model.parameters())
    diagnose(model, x, t, optimizer=optimizer, data=[(x, t)])
    assert [p.grad for p in model.parameters()] == grads or all(
        a is b for a, b in zip([p.grad for p in model.parameters()], grads, strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(grads, values, strict=True))


def test_a_profiler_is_put_back():
    import sys

    def profiler(*_):
        return None

    model, x, t = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(model, optimizer, loss_fn, x, t):
        optimizer.zero_grad()
        loss_fn(model(x), t).backward()
        optimizer.step()

    sys.setprofile(profiler)
    try:
        diagnose(model, x, t, nn.CrossEntropyLoss(), optimizer=optimizer, train_step=step)
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
