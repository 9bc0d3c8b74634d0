"""Mixup: two targets for one answer, weighed by a share that is drawn anew for each batch."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
centers = 2 * torch.randn(5, 16)
model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 5))
optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
shares = torch.distributions.Beta(0.2, 0.2)
for _ in range(120):
    y = torch.randint(5, (64,))
    x = centers[y] + torch.randn(64, 16)
    order, share = torch.randperm(64), shares.sample().item()
    out = model(share * x + (1 - share) * x[order])
    loss = share * F.cross_entropy(out, y) + (1 - share) * F.cross_entropy(out, y[order])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
