"""Growth of the gradient over L layers behind batch norm: what `predict` says, beside nets of orthogonal weights.

    python benchmarks/growth.py            # half an hour on one core, most of it quadrature; writes results/growth.md

All activations take the same weights and inputs. A net of L layers has five more at either end, which are not counted:
the random cotangent at the outputs is not yet like the gradients of deeper layers.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from normscope import Spec, predict
from normscope.nn import make_activation
from normscope.nn.growth import growth

OUT = Path(__file__).resolve().parents[1] / "results" / "growth.md"
WIDTH, SAMPLES, ENDS, NETS = 512, 32, 5, 8
DEPTHS = (10, 30, 100, 300, 1000)
ACTIVATIONS = ("relu", "leaky_relu(0.3)", "tanh", "erf", "sin", "elu", "selu", "gelu", "silu", "softplus")


def layer(phi: nn.Module, h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Pre-activations, and what the layer returns."""
    z = h @ w.T
    return z, phi(nn.functional.batch_norm(z, None, None, training=True, eps=1e-10))


def measured(phi: nn.Module, x: Tensor, weights: list[Tensor]) -> float:
    """Log of the gradient's growth, its length taken out at every layer: its exponent may be beyond float32."""
    hidden = [x]
    with torch.no_grad():
        for w in weights:
            hidden.append(layer(phi, hidden[-1], w)[1])
    gradient, scale, logs = torch.randn_like(x), 0.0, [0.0] * len(weights)
    for i in reversed(range(len(weights))):
        z, out = layer(phi, hidden[i].detach().requires_grad_(), weights[i])
        (at,) = torch.autograd.grad(out, z, gradient)
        logs[i] = scale + math.log(at.norm())
        gradient = at @ weights[i]
        scale += math.log(gradient.norm())
        gradient /= gradient.norm()
    return logs[ENDS] - logs[-ENDS]


def predicted(name: str, x: np.ndarray, depth: int) -> float:
    """The same by the recursion of the Gram matrix."""
    spec = Spec(depth=depth + 2 * ENDS, width=WIDTH, norm="batch", activation=name, weights="orthogonal")
    factors = predict(spec, x, metrics=["rms"]).series("gradient_growth", signal="gradient")
    return float(np.log(list(factors.values()))[ENDS + 1 : ENDS + 1 + depth].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=max(DEPTHS), help="the deepest net")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    depths = [depth for depth in DEPTHS if depth <= args.most]
    x = torch.randn(SAMPLES, WIDTH)
    weights = [nn.init.orthogonal_(torch.empty(WIDTH, WIDTH)) for _ in range(max(depths) + 2 * ENDS)]
    lines = [
        "# Growth of gradients behind batch norm", "",
        "Made by `python benchmarks/growth.py`: log of the gradient's norm at the first of L layers over that at the "
        f"last, each cell measured, predicted. Nets of width {WIDTH}, orthogonal weights, {SAMPLES} Gaussian samples; "
        f"measured: the mean over up to {NETS} nets, three at L = 300 and one at L = 1000; predicted: `predict(Spec)`, "
        "the recursion of the Gram matrix. Error: predicted over measured, less 1. A layer: by the formula of "
        "`normscope.nn.growth`, which is of many samples of equal length.", "",
        "| activation | a layer | " + " | ".join(f"L = {d}" for d in depths) + " | largest error |",
        "|---|---:|" + "---:|" * (len(depths) + 1),
    ]  # fmt: skip
    for name in ACTIVATIONS:
        phi, cells, errors = make_activation(name), [], []
        for depth in depths:
            size = depth + 2 * ENDS
            stretches = [weights[i * size : (i + 1) * size] for i in range(min(NETS, len(weights) // size))]
            there = sum(measured(phi, x, stretch) for stretch in stretches) / len(stretches)
            told = predicted(name, x.double().numpy(), depth)
            errors.append(told / there - 1)
            cells.append(f"{there:.2f}, {told:.2f}")
        lines.append(f"| {name} | {growth(name):.3f} | {' | '.join(cells)} | {max(errors, key=abs):+.1%} |")
        print(lines[-1], flush=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
