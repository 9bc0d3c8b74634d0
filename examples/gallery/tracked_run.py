"""What happens in every layer while a net trains: one line before the loop.

The tracker measures each layer at every sixteenth step, in the passes that the loop makes anyway.
"""

import torch
from torch import nn

import normscope as ns

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 64), *[m for _ in range(4) for m in (nn.Tanh(), nn.Linear(64, 64))])
model.append(nn.Linear(64, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)

tracker = ns.Tracker(model, every=16)  # the one line
losses = []
for _ in range(100):
    y = torch.randint(4, (64,))
    loss = nn.functional.cross_entropy(model(torch.randn(64, 16) + 3 * torch.eye(16)[y]), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
tracker.save("tracked_run.svg")

assert losses[-1] < losses[0] / 2
assert tracker.measured == 7
