"""Does the best rate of small nets foretell that of a large one: `normscope.transfer` against a sweep of the large net.

python benchmarks/transfer.py [--tables]     # an hour of one core; resumed where it stopped

A large net whose swept rate stands in the results is not swept again; what is predicted is, from the store.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import math
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import torch
import torch.nn.functional as F
from torch import nn
from unseen import KINDS, LATER

import normscope as ns
from normscope.data.datasets import load

RESULTS = Path(__file__).parents[1] / "results" / "transfer.csv"
STORE = Path(__file__).parents[1] / "runs" / "transfer"
STEPS, SEEDS = 20, 2
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD, "momentum": functools.partial(torch.optim.SGD, momentum=0.9), "adam": torch.optim.Adam,
}  # fmt: skip
LOSSES = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss}


def linear(a: int, b: int, gain: float = 2.0) -> nn.Linear:
    made = nn.Linear(a, b)
    nn.init.normal_(made.weight, std=math.sqrt(gain / a))
    nn.init.zeros_(made.bias)
    return made


def relu(width: int, depth: int) -> nn.Module:
    sizes = [64] + [width] * depth
    layers = [m for a, b in itertools.pairwise(sizes) for m in (linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, linear(width, 10, 1.0))


def batch_norm(width: int, depth: int) -> nn.Module:
    sizes = [64] + [width] * depth
    layers = [m for a, b in itertools.pairwise(sizes) for m in (linear(a, b), nn.BatchNorm1d(b), nn.ReLU())]
    return nn.Sequential(*layers, linear(width, 10, 1.0))


def tanh(width: int, depth: int) -> nn.Module:
    sizes = [64] + [width] * depth
    layers = [m for a, b in itertools.pairwise(sizes) for m in (linear(a, b, 1.0), nn.Tanh())]
    return nn.Sequential(*layers, linear(width, 10, 1.0))


class Block(nn.Module):
    """A residual branch behind a layer norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.LayerNorm(width), linear(width, width), nn.ReLU(), linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


def pre_norm(width: int, depth: int) -> nn.Module:
    blocks = [Block(width) for _ in range(depth)]
    return nn.Sequential(linear(64, width, 1.0), *blocks, nn.LayerNorm(width), linear(width, 10, 1.0))


def conv(width: int, depth: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8)), nn.AvgPool2d(2)]
    for i in range(depth):
        made = nn.Conv2d(width if i else 1, width, 3, padding=1)
        nn.init.kaiming_normal_(made.weight)
        layers += [made, nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(width, 10, 1.0))


class Scaled(nn.Module):
    """x W^T / fan_in: a step of Adam moves W by the rate, so that the rate times 1 / fan_in is built in."""

    def __init__(self, a: int, b: int, std: float) -> None:
        super().__init__()
        self.weight, self.a = nn.Parameter(torch.randn(b, a) * std), a

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T / self.a


def mu_p(width: int, depth: int) -> nn.Module:
    """Maximal update parametrisation for Adam (Yang et al. 2022, table 3): hidden variance 2 / n, output 1 / n^2."""
    layers = [m for _ in range(depth - 1) for m in (Scaled(width, width, math.sqrt(2 * width)), nn.ReLU())]
    return nn.Sequential(linear(64, width), nn.ReLU(), *layers, Scaled(width, 10, 1.0))


#: What makes the nets, the optimizer, widths and depths, of nets looked at before the fit was fixed.
FAMILIES: dict[str, tuple[Callable[[int, int], nn.Module], str, tuple[int, ...], tuple[int, ...]]] = {
    "mlp relu, sgd": (relu, "sgd", (16, 32, 64), (2, 4, 8)),
    "mlp relu, adam": (relu, "adam", (16, 32, 64), (2, 4, 8)),
    "mlp batch norm, sgd": (batch_norm, "sgd", (16, 32, 64), (2, 4, 8)),
    "mlp tanh, sgd": (tanh, "sgd", (16, 32, 64), (2, 4, 8)),
    "pre-norm residual mlp, adam": (pre_norm, "adam", (16, 32, 64), (2, 4, 8)),
    "conv relu, sgd": (conv, "sgd", (4, 8, 16), (2, 3, 4)),
    "mlp relu in muP, adam": (mu_p, "adam", (16, 32, 64), (2, 4, 8)),
}


def swept(model: nn.Module, inputs: Any, targets: Any, loss: str, optimizer: str, near: float) -> float:
    """The rate with the least loss after the steps, of those below the lowest that rises: a plain loop, 2^.25 apart."""
    ends: dict[float, float] = {}

    def end(k: float) -> float:
        if k not in ends:
            net = copy.deepcopy(model)
            own = OPTIMIZERS[optimizer](net.parameters(), near * 2**k)
            losses: list[float] = []
            for _ in range(STEPS + 1):
                own.zero_grad()
                value = LOSSES[loss](net(inputs), targets)
                losses.append(value.item())
                if not losses[-1] <= losses[0] * (1 + 1e-6):
                    break
                value.backward()
                own.step()
            ends[k] = losses[-1] if len(losses) == STEPS + 1 and losses[-1] <= losses[0] else math.inf
        return ends[k]

    def least() -> float:
        edge = min((k for k, x in ends.items() if math.isinf(x)), default=math.inf)
        return min((k for k in ends if k < edge), key=lambda k: ends[k], default=min(ends))

    end(0.0)
    for apart in (2.0, 1.0, 0.5, 0.25):
        while True:
            k = least()
            missing = [x for x in (k - apart, k + apart) if x not in ends]
            if not missing or abs(k) > 30:
                break
            for x in missing:
                end(x)
    return float(near * 2 ** least())


def family(name: str, done: dict[tuple[str, int], str]) -> list[dict[str, Any]]:
    """Two rows; ``done``: swept rates of the seeds, by family and how many times wider."""
    seen, told = name in FAMILIES, "before" if name in FAMILIES else "after" if name in KINDS else "later"
    if seen:
        (make, optimizer, widths, depths), loss = FAMILIES[name], "cross_entropy"
        batch = load("digits", n=64, seed=0, flatten=True)
        inputs, targets = batch.inputs, batch.targets
    else:
        make, optimizer, widths, depths, data, loss = (KINDS | LATER)[name]
        inputs, targets = data()
    rows = []
    for wider, deeper in ((2, 2), (8, 4)):
        to = wider * widths[-1], deeper * depths[-1]
        found = ns.transfer(
            make, inputs, targets, loss, optimizer, widths=widths, depths=depths, to=to, store=STORE,
            executor=ThreadPoolExecutor(1),
        )  # fmt: skip
        rates = [float(x) for x in done.get((name, wider), "").split()]
        for seed in range(len(rates), SEEDS):
            torch.manual_seed((100 if seen else 500) + seed)
            near = found.by_edge[0] if found.by_edge[0] > 0 else found.by_law[0]
            rates.append(swept(make(*to), inputs, targets, loss, optimizer, near))
        law = found.laws["best"]
        assert found.measured
        rate = {"measured": (found.rate, *found.interval), "predicted": found.by_edge, "law": found.by_law}
        rows.append({
            "family": name, "seen": told, "wider": wider, "deeper": deeper,
            "swept": math.exp(statistics.fmean(map(math.log, rates))), "seeds": " ".join(f"{x:.4g}" for x in rates),
            **{c: x for of, three in rate.items() for c, x in zip(columns(of), three, strict=True)},
            "depth": law.depth, "width": law.width, "verdict": found.verdict,
        })  # fmt: skip
        print(name, to, f"{rate}, swept {rates}", flush=True)
    return rows


def columns(of: str) -> tuple[str, str, str]:
    return of, f"{of}_low", f"{of}_high"


def off(row: dict[str, Any], value: str) -> float:
    """The factor by which a prediction is off; NaN where there is none."""
    return math.exp(abs(math.log(row[value] / row["swept"])))


def tables(frame: pl.DataFrame) -> str:
    head = "| nets | wider, deeper | swept best |"
    for of in ("measured", "foretold by the edge", "by the power law alone"):
        head += f" {of} | factor | covers |"
    lines = []
    for seen in ("before", "after", "later"):
        part = frame.filter(frame["seen"] == seen)
        lines += ["", f"Seen {seen}:", "", head, "|" + "---|" * 12]
        for r in part.iter_rows(named=True):
            cells = [r["family"], f"{r['wider']} x, {r['deeper']} x", f"{r['swept']:.2g}"]
            for value, low, high in map(columns, ("measured", "predicted", "law")):
                if math.isnan(r[value]):
                    cells += ["cannot be told", "", ""]
                    continue
                inside = "yes" if r[low] <= r["swept"] <= r[high] else "no"
                cells += [f"{r[value]:.2g} ({r[low]:.2g} to {r[high]:.2g})", f"{off(r, value):.3g}", inside]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *counts(frame)])


def counts(frame: pl.DataFrame) -> list[str]:
    """How many are within a factor, and covered."""
    head = "| seen | wider, deeper | | kinds | told | within 1.5 | within 2 | covers | half an interval |"
    lines = [head, "|" + "---|" * 9]
    for (seen, wider, deeper), part in frame.group_by("seen", "wider", "deeper", maintain_order=True):
        for of, words in (("measured", "measured"), ("predicted", "foretold")):
            value, low, high = columns(of)
            told = [r for r in part.iter_rows(named=True) if r[value] > 0]
            within = [sum(off(r, value) <= most for r in told) for most in (1.5, 2)]
            inside = sum(r[low] <= r["swept"] <= r[high] for r in told)
            half = statistics.median(math.sqrt(r[high] / r[low]) for r in told)
            cells = [seen, f"{wider} x, {deeper} x", words, len(part), len(told), *within, inside, f"x {half:.2g}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", action="store_true", help="print the tables of docs/transfer.md, run nothing")
    frame = pl.read_csv(RESULTS) if RESULTS.exists() else None
    if not parser.parse_args().tables:
        done = {} if frame is None else {(r["family"], r["wider"]): r["seeds"] for r in frame.iter_rows(named=True)}
        rows: list[dict[str, Any]] = []
        for name in (*FAMILIES, *KINDS, *LATER):
            rows += family(name, done)
            kept = [r for r in ([] if frame is None else frame.iter_rows(named=True))
                    if "seen" in r and r["family"] not in {x["family"] for x in rows}]  # fmt: skip
            frame = pl.DataFrame([*rows, *kept], infer_schema_length=None)
            frame.write_csv(RESULTS)
    if frame is not None:
        print(tables(frame))


if __name__ == "__main__":
    main()
