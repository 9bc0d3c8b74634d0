"""A network as a dict of tensors, trained with torch.func and a hand-written Adam."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch.func import grad_and_value, vmap


def init_params(sizes, generator):
    params = {}
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        params[f"w{i}"] = torch.randn(b, a, generator=generator) * math.sqrt(2.0 / a)
        params[f"b{i}"] = torch.zeros(b)
    return params


def forward(params, x):
    depth = len(params) // 2
    for i in range(depth):
        x = F.linear(x, params[f"w{i}"], params[f"b{i}"])
        if i < depth - 1:
            x = F.gelu(x)
    return x


def loss_fn(params, x, y):
    return F.cross_entropy(forward(params, x), y)


def adam_step(params, grads, state, lr=3e-3, b1=0.9, b2=0.999, eps=1e-8):
    t = state["t"] + 1
    m = {k: b1 * state["m"][k] + (1 - b1) * grads[k] for k in params}
    v = {k: b2 * state["v"][k] + (1 - b2) * grads[k] ** 2 for k in params}
    new = {k: p - lr * (m[k] / (1 - b1**t)) / ((v[k] / (1 - b2**t)).sqrt() + eps) for k, p in params.items()}
    return new, {"t": t, "m": m, "v": v}


def spirals(n, generator):
    y = torch.arange(n) % 3
    r = torch.rand(n, generator=generator)
    theta = 4 * r + y * (2 * math.pi / 3) + 0.15 * torch.randn(n, generator=generator)
    return torch.stack([r * theta.cos(), r * theta.sin()], 1), y


def main():
    g = torch.Generator().manual_seed(0)
    x, y = spirals(1500, g)
    xv, yv = spirals(600, g)
    params = init_params([2, 64, 64, 3], g)
    zeros = {k: torch.zeros_like(p) for k, p in params.items()}
    state = {"t": 0, "m": dict(zeros), "v": dict(zeros)}
    step = grad_and_value(loss_fn)

    for epoch in range(20):
        order = torch.randperm(len(x), generator=g)
        total = 0.0
        for idx in order.split(50):
            grads, loss = step(params, x[idx], y[idx])
            params, state = adam_step(params, grads, state)
            total += loss.item() * len(idx)
        pred = vmap(lambda row, params=params: forward(params, row))(xv).argmax(1)
        acc = (pred == yv).float().mean().item()
        print(f"epoch {epoch:2d}: loss {total / len(x):.4f} val acc {acc:.3f}")


if __name__ == "__main__":
    main()
