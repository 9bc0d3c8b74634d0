"""The sharpest direction of the loss, and the learning rate it allows, with batch norm as it trains.

The largest eigenvalue of the Fisher matrix is exact in training mode. In eval mode, before any training, a net has no
batch norm at all: another net, another rate.
"""

import torch

import normscope as ns

model = ns.build(ns.Spec(depth=6, width=64, norm="batch", outputs=4), 16, seed=0)
generator = torch.Generator().manual_seed(0)
x, y = torch.randn(64, 16, generator=generator), torch.arange(64) % 4

found = ns.sharpness(model, x, y, descent=10)
found.save("sharpness.svg")

assert found.modes["eval"] > 2 * found.lambda_max
