"""A small GAN on a ring of eight Gaussians."""

import math

import torch
from torch import nn

LATENT, BATCH, STEPS = 8, 256, 2000


def sample_ring(n):
    angle = torch.randint(0, 8, (n,)) * (2 * math.pi / 8)
    centres = torch.stack([angle.cos(), angle.sin()], dim=1)
    return centres + 0.05 * torch.randn(n, 2)


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(LATENT, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, z):
        return self.net(z)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)
        )

    def forward(self, x):
        return self.net(x).squeeze(1)


def mean_distance_to_ring(points):
    return (points.norm(dim=1) - 1.0).abs().mean().item()


def main():
    torch.manual_seed(0)
    G, D = Generator(), Discriminator()
    opt_g = torch.optim.Adam(G.parameters(), lr=5e-4, betas=(0.5, 0.99))
    opt_d = torch.optim.Adam(D.parameters(), lr=2e-3, betas=(0.5, 0.99))
    bce = nn.BCEWithLogitsLoss()
    ones, zeros = torch.ones(BATCH), torch.zeros(BATCH)

    with torch.no_grad():
        print(f"before: distance to ring {mean_distance_to_ring(G(torch.randn(1000, LATENT))):.3f}")
    for step in range(1, STEPS + 1):
        # discriminator
        real = sample_ring(BATCH)
        fake = G(torch.randn(BATCH, LATENT)).detach()
        d_loss = bce(D(real), ones) + bce(D(fake), zeros)
        opt_d.zero_grad()
        d_loss.backward()
        opt_d.step()

        # generator
        g_loss = bce(D(G(torch.randn(BATCH, LATENT))), ones)
        opt_g.zero_grad()
        g_loss.backward()
        opt_g.step()

        if step % 250 == 0:
            with torch.no_grad():
                pts = G(torch.randn(1000, LATENT))
            modes = (torch.atan2(pts[:, 1], pts[:, 0]) / (math.pi / 4)).round().remainder(8).unique().numel()
            print(
                f"step {step}: D {d_loss.item():.3f} G {g_loss.item():.3f} "
                f"distance {mean_distance_to_ring(pts):.3f} modes {modes}"
            )


if __name__ == "__main__":
    main()
