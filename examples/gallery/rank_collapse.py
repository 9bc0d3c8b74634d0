"""A plain deep net merges its samples.

Fourteen layers of ReLU without a norm: layer by layer the samples of the batch come closer, until the deep layers see
nearly one vector for every input. NS101 says so before a step is taken.
"""

import torch
from torch import nn

import normscope as ns

torch.manual_seed(0)
model = nn.Sequential(*[m for _ in range(14) for m in (nn.Linear(64, 64), nn.ReLU())], nn.Linear(64, 10))

found = ns.diagnose(model, torch.rand(96, 64), trial=False, label="14 layers without a norm")
found.save("rank_collapse.svg")

assert "NS101" in {finding.code for finding in found.findings}
