"""Does the rate of a small net hold for a larger one?

Small nets are tried at several widths and depths; the law of their best rates says what the rate of a wider, deeper net
is, with an interval, though that net is never trained.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

import normscope as ns


def make(width, depth):
    """A plain ReLU net of this size."""
    hidden = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), *hidden, nn.Linear(width, 1))


x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
y = x[:, :1] * x[:, 1:2]
sizes = {"widths": (8, 16, 32), "depths": (1, 2), "to": (64, 4)}
with ThreadPoolExecutor(1) as executor:  # without it: processes, one a core
    found = ns.transfer(make, x, y, **sizes, seeds=2, steps=10, budget=50, executor=executor)
found.save("transfer.svg")

low, high = found.interval
assert low < found.rate < high
