"""A GAN whose samples are made once and serve both steps, as in the DCGAN tutorial."""

import torch
from torch import nn

torch.manual_seed(0)
G = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
D = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
opt_g = torch.optim.Adam(G.parameters(), 1e-3)
opt_d = torch.optim.Adam(D.parameters(), 1e-3)
loss = nn.BCEWithLogitsLoss()
for _ in range(200):
    real, fake = torch.randn(64, 2) + 2.0, G(torch.randn(64, 4))
    opt_d.zero_grad()
    (loss(D(real), torch.ones(64, 1)) + loss(D(fake.detach()), torch.zeros(64, 1))).backward()
    opt_d.step()
    opt_g.zero_grad()
    loss(D(fake), torch.ones(64, 1)).backward()
    opt_g.step()
