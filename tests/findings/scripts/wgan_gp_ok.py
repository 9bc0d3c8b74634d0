"""A critic with a penalty on its gradient between real and generated samples, differentiated in the samples."""

import torch
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
of_generator = torch.optim.Adam(generator.parameters(), 1e-3, betas=(0.5, 0.9))
of_critic = torch.optim.Adam(critic.parameters(), 1e-3, betas=(0.5, 0.9))


def penalty(real, fake):
    share = torch.rand(len(real), 1)
    between = (share * real + (1 - share) * fake).requires_grad_(True)
    out = critic(between)
    slope = torch.autograd.grad(out, between, torch.ones_like(out), create_graph=True, retain_graph=True)[0]
    return ((slope.norm(2, dim=1) - 1) ** 2).mean()


for step in range(120):
    real = torch.randn(64, 2) * torch.tensor([1.0, 0.3]) + 1
    fake = generator(torch.randn(64, 4)).detach()
    loss = critic(fake).mean() - critic(real).mean() + 10 * penalty(real, fake)
    of_critic.zero_grad()
    loss.backward()
    of_critic.step()
    if step % 3 == 2:
        loss = -critic(generator(torch.randn(64, 4))).mean()
        of_generator.zero_grad()
        loss.backward()
        of_generator.step()
