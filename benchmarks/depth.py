"""Deep nets behind batch norm: what `shape` makes of them in training.

python benchmarks/depth.py [--depth 60] [--steps 150]      # a minute a table; digits, width 100
"""

from __future__ import annotations

import argparse
import copy
import math

import torch
from torch import Tensor, nn

from normscope.data.datasets import load
from normscope.findings.cures import treat
from normscope.nn import make_activation

WIDTH, BATCH, RATES = 100, 128, (0.01, 0.1)
CURES = ("none", "shape", "delta-orthogonal+shape")


def net(depth: int, name: str, width: int, inputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for i in range(depth):
        parts += [nn.Linear(width if i else inputs, width, bias=False), nn.BatchNorm1d(width), make_activation(name)]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def log_growth(model: nn.Module, x: Tensor) -> float:
    """Log of the gradient's norm at the second layer's weight over that at the last hidden one's."""
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    out = model(x)
    slopes = torch.autograd.grad(out, weights, torch.randn(out.shape, generator=torch.Generator().manual_seed(1)))
    return math.log(slopes[1].norm() / slopes[-2].norm())


def accuracy(model: nn.Module, x: Tensor, y: Tensor, rate: float, steps: int) -> float:
    """After so many steps of SGD, in training mode, on 512 of the samples."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    order = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(x), (BATCH,), generator=order)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        return float((model(x[:512]).argmax(1) == y[:512]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=60)
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args()
    torch.set_num_threads(1)
    digits = load("digits", n=1440)
    x, y = digits.inputs.flatten(1), digits.targets
    print(f"| net, {args.depth} layers | cure | log growth | accuracy at {', '.join(f'{r:g}' for r in RATES)} |")
    print("|---|---|---|---|")
    for name in ("tanh", "relu", "gelu"):
        for how in CURES:
            model = treat(net(args.depth, name, WIDTH, x.shape[1]), how, x[:BATCH]).model
            told = ", ".join(f"{accuracy(model, x, y, rate, args.steps):.2f}" for rate in RATES)
            print(f"| {name} | {how} | {log_growth(model, x[:256]):.2f} | {told} |")


if __name__ == "__main__":
    main()
