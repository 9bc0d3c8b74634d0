"""A net whose derivatives are to fulfil an equation: Adam first, L-BFGS for the rest."""

import math

import torch
from torch import nn

torch.manual_seed(0)


class Heat(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))

    def forward(self, x, t):
        return self.net(torch.cat([x, t], 1))


def slope(y, x):
    return torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)[0]


model = Heat()
x = (torch.rand(200, 1) * 2 - 1).requires_grad_(True)
t = torch.rand(200, 1).requires_grad_(True)
x_start, t_ends = torch.rand(50, 1) * 2 - 1, torch.rand(50, 1)


def objective():
    u = model(x, t)
    inside = slope(u, t) - 0.1 * slope(slope(u, x), x)
    start = model(x_start, torch.zeros_like(x_start)) - torch.sin(math.pi * x_start)
    ends = torch.cat([model(torch.ones_like(t_ends), t_ends), model(-torch.ones_like(t_ends), t_ends)])
    return inside.square().mean() + start.square().mean() + ends.square().mean()


optimizer = torch.optim.Adam(model.parameters(), 5e-3)
for _ in range(150):
    optimizer.zero_grad()
    loss = objective()
    loss.backward()
    optimizer.step()

optimizer = torch.optim.LBFGS(model.parameters(), max_iter=20, line_search_fn="strong_wolfe")


def closure():
    optimizer.zero_grad()
    loss = objective()
    loss.backward()
    return loss


optimizer.step(closure)
