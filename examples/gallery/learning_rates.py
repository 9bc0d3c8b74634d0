"""Which learning rates train, measured before training.

Trials of twenty steps on copies find the largest rate that trains and the best one, with intervals: the
shaded bracket holds the largest.
"""

import torch
from torch import nn

import normscope as ns

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))
x = torch.randn(64, 16)
y = x[:, :1] * x[:, 1:2]

found = ns.rates(model, x, y)
found.save("learning_rates.svg")

low, high = found.largest_interval
assert low <= found.largest <= high
assert found.best <= high
