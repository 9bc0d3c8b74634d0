"""Two views of each sample, called one after the other; the diagonal of their similarities is filled in place."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 8))
optimizer = torch.optim.Adam(net.parameters(), 1e-3)
data = torch.randn(512, 10)
for _ in range(100):
    x = data[torch.randperm(512)[:64]]
    views = [net(x + 0.1 * torch.randn_like(x)) for _ in range(2)]
    z = F.normalize(torch.cat(views), dim=1)
    alike = z @ z.T / 0.2
    alike.fill_diagonal_(-1e9)
    loss = F.cross_entropy(alike, (torch.arange(128) + 64) % 128)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
