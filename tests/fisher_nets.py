"""Nets and an oracle for the laws of the Fisher matrix: explicit norms, and a layer-wise Gram without autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Norm(nn.Module):
    """Mean (and scale) over the batch (axis 0) or over the features (axis 1), from primitive operations."""

    def __init__(self, axis: int, scale: bool) -> None:
        super().__init__()
        self.axis, self.scale = axis, scale

    def forward(self, u: Tensor) -> Tensor:
        u = u - u.mean(self.axis, keepdim=True)
        return u / (u.square().mean(self.axis, keepdim=True) + 1e-12).sqrt() if self.scale else u


KINDS = {"ms": (0, False), "bn": (0, True), "ln": (1, True)}


def net(
    widths: Sequence[int],
    seed: int,
    *,
    act: str = "relu",
    sw: float = 2.0,
    sb: float = 0.0,
    hidden: str | Sequence[str] = "none",
    last: str = "none",
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Weights N(0, sw / fan_in), biases N(0, sb); ``widths`` from input to outputs; ``hidden`` for all layers or
    each.
    """
    g = torch.Generator().manual_seed(seed)
    inner = [hidden] * (len(widths) - 2) if isinstance(hidden, str) else list(hidden)
    layers: list[nn.Module] = []
    for (a, b), kind in zip(pairwise(widths), [*inner, last], strict=True):
        lin = nn.Linear(a, b, bias=bias, dtype=dtype)
        lin.weight.data = (torch.randn(b, a, generator=g, dtype=torch.float64) * math.sqrt(sw / a)).to(dtype)
        if bias:
            lin.bias.data = (torch.randn(b, generator=g, dtype=torch.float64) * math.sqrt(sb)).to(dtype)
        layers += [lin, *([] if kind == "none" else [Norm(*KINDS[kind])])]
        layers.append({"relu": nn.ReLU, "tanh": nn.Tanh, "linear": nn.Identity}[act]())
    return nn.Sequential(*layers[:-1])


def data(n: int, d: int, seed: int, *, shift: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
    g = torch.Generator().manual_seed(10_000 + seed)
    return (torch.randn(n, d, generator=g, dtype=torch.float64) + shift).to(dtype)


def layer_grams(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    r"""Each layer's part of $G = JJ^T/n$, (c, c, n, n), of a plain net:
    $\delta_k(i)\cdot\delta_{k'}(j)\,(h_i\cdot h_j + b)$.
    """
    inputs, slopes, weights, h = [], [], [], x
    for module in model:
        if isinstance(module, nn.Linear):
            inputs.append((h, float(module.bias is not None)))
            weights.append(module.weight.data)
            h = h @ module.weight.data.T + (0 if module.bias is None else module.bias.data)
        elif isinstance(module, nn.ReLU):
            slopes.append((h > 0).to(h))
            h = h * slopes[-1]
        elif isinstance(module, nn.Tanh):
            h = h.tanh()
            slopes.append(1 - h * h)
        elif isinstance(module, nn.Identity):
            slopes.append(torch.ones_like(h))
        else:
            raise TypeError(f"no plain net: {module}")
    c, n = h.shape[1], len(x)
    delta, grams = torch.eye(c, dtype=x.dtype)[:, None].expand(c, n, c), []
    for at in range(len(weights) - 1, -1, -1):
        if at < len(weights) - 1:
            delta = (delta @ weights[at + 1]) * slopes[at]
        below, bias = inputs[at]
        kernel = (below @ below.T + bias) / n
        flat = delta.reshape(c * n, -1)
        grams.insert(0, (flat @ flat.T).reshape(c, n, c, n).transpose(1, 2) * kernel)
    return grams


def flat(gram: Tensor) -> Tensor:
    """(c, c, n, n) as the matrix (c n, c n), output-major."""
    c, _, n, _ = gram.shape
    return gram.transpose(1, 2).reshape(c * n, c * n)
