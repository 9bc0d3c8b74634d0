"""Which nets train, and what a probe says of them before: the evidence behind the thresholds of `diagnose`.

Every net below is probed once at initialization on 128 samples, then trained with plain SGD at each rate of a small
grid; it "trains" if its best final training accuracy (over the rates) reaches 80 % of the best net's on that data.

    python benchmarks/trainability.py --data-dir DIR --out results/trainability.csv
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import polars as pl
import torch
from torch.nn.functional import cross_entropy

from normscope.core.spec import Spec
from normscope.data.datasets import load
from normscope.findings import find
from normscope.nn import build
from normscope.probing.passes import probe

NETS = {
    "relu He": {},
    "relu torch": {"weights": "torch", "bias": 0.0},
    "relu xavier": {"weights": "xavier", "gain": 1.0},
    "relu He skip 0.3": {"skip": 0.3, "gain": 1.0},
    "relu BN": {"norm": "batch"},
    "relu BN U[0,2a]": {"norm": "batch", "weights": "positive"},
    "relu recentred": {"norm": "batch_recenter"},
    "relu rescaled": {"norm": "batch_rescale"},
    "relu layer norm": {"norm": "layer"},
    "relu group norm": {"norm": "group"},
    "tanh": {"activation": "tanh"},
    "tanh gain 3": {"activation": "tanh", "gain": 3.0},
    "tanh orthogonal": {"activation": "tanh", "weights": "orthogonal"},
    "tanh BN": {"activation": "tanh", "norm": "batch"},
    "relu gain 0.7": {"gain": 0.7},
    "relu gain 2.5": {"gain": 2.5},
    "relu identity": {"weights": "identity", "gain": 1.0},
    "identity BN": {"activation": "identity", "norm": "batch"},
}
METRICS = (
    "participation_rank", "entropy_rank", "numerical_rank_float32", "soft_rank", "orthogonality_gap", "mean_cosine",
    "mean_shift", "rms", "dead_units", "saturated_units", "odd_point_score", "norm_spread",
)  # fmt: skip
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)


def train(spec: Spec, x: torch.Tensor, y: torch.Tensor, rate: float, steps: int, seed: int) -> tuple[float, float]:
    """Training accuracy and loss (in training mode, on 512 samples) after plain SGD."""
    model = build(spec, tuple(x.shape[1:]), seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        pick = torch.randint(len(x), (64,), generator=generator)
        loss = cross_entropy(model(x[pick]), y[pick])
        if not torch.isfinite(loss):
            return 0.1, float("nan")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits = model(x[:512])
    return (logits.argmax(1) == y[:512]).double().mean().item(), cross_entropy(logits, y[:512]).item()


def describe(spec: Spec, x: torch.Tensor, y: torch.Tensor, seed: int) -> dict[str, float | str]:
    """What the probe says at initialization: worst and last values over the hidden layers."""
    model = build(spec, tuple(x.shape[1:]), seed=seed)
    profile = probe(model, x[:128], y[:128], mode="train")
    out: dict[str, float | str] = {"findings": " ".join(f"{f.code}:{f.severity}" for f in find(profile))}
    for metric in METRICS:
        values = [v for k, v in profile.series(metric).items() if 0 < k <= spec.depth]
        if values:
            out |= {metric: values[-1], f"min_{metric}": min(values), f"max_{metric}": max(values)}
        if 0 in profile.series(metric):
            out[f"input_{metric}"] = profile.series(metric)[0]
    norms = list(profile.series("gradient_norm", "gradient").values())
    out["gradient_ratio"] = norms[1] / norms[-2] if norms[-2] else float("nan")
    weights = list(profile.series("gradient_norm", "weight").values())
    out["weight_gradient_ratio"] = weights[0] / weights[-2] if weights[-2] else float("nan")
    relative = list(profile.series("relative_gradient", "weight").values())
    out["min_relative_gradient"], out["max_relative_gradient"] = min(relative), max(relative)
    out["collinearity"] = list(profile.series("gradient_collinearity", "gradient").values())[-2]
    out["shape"] = str(profile.facts["shape"])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--out", default="results/trainability.csv")
    parser.add_argument("--data", default="digits,fashion-mnist")
    parser.add_argument("--depths", default="4,16,32,64")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    depths = [int(d) for d in args.depths.split(",")]
    for data, (name, fields), depth, seed in itertools.product(
        args.data.split(","), NETS.items(), depths, range(args.seeds)
    ):
        batch = load(data, None if data == "digits" else args.data_dir, n=1437 if data == "digits" else 6400)
        spec = Spec(depth=depth, width=args.width, outputs=10, **fields)
        runs = [(*train(spec, batch.inputs, batch.targets, rate, args.steps, seed), rate) for rate in RATES]
        accuracy, loss, rate = max(runs)
        rows.append(
            {"data": data, "net": name, "depth": depth, "seed": seed, "accuracy": accuracy, "loss": loss, "rate": rate}
            | describe(spec, batch.inputs, batch.targets, seed)
        )
        print(f"{data:14} {name:18} depth {depth:3}: accuracy {accuracy:.3f} at rate {rate}", flush=True)
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(rows, infer_schema_length=None).write_csv(args.out)


if __name__ == "__main__":
    main()
