"""A diffusion model: any training step will do.

A small U-Net that removes noise, trained by a step of its own: noise and times are drawn inside, so ``step=`` hands the
whole step over.
"""

import torch
from torch import nn

import normscope as ns


class UNet(nn.Module):
    """Two scales, with a skip between them and the time added as a channel."""

    def __init__(self, c=16):
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(2, c, 3, padding=1), nn.GroupNorm(4, c), nn.SiLU())
        self.down = nn.Sequential(nn.Conv2d(c, 2 * c, 3, 2, 1), nn.GroupNorm(4, 2 * c), nn.SiLU())
        self.up = nn.ConvTranspose2d(2 * c, c, 2, 2)
        self.leave = nn.Sequential(nn.Conv2d(2 * c, c, 3, padding=1), nn.SiLU(), nn.Conv2d(c, 1, 1))

    def forward(self, x, t):
        h = self.enter(torch.cat([x, t.view(-1, 1, 1, 1).expand_as(x)], 1))
        return self.leave(torch.cat([h, self.up(self.down(h))], 1))


def step(model, images):
    """One step of denoising: the mean squared error of the noise."""
    t, noise = torch.rand(len(images)), torch.randn_like(images)
    angle = (t * torch.pi / 2).view(-1, 1, 1, 1)
    return (model(angle.cos() * images + angle.sin() * noise, t) - noise).square().mean()


torch.manual_seed(0)
found = ns.diagnose(UNet(), data=[torch.randn(32, 1, 16, 16)], step=step, trial=False, label="U-Net")
found.save("diffusion.svg")

assert not [f for f in found.findings if f.severity == "error"]
