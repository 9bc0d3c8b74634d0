"""`rates` beside a brute-force sweep of rates, 2 / lambda_max and a learning-rate finder, on small nets of ten kinds.

    python benchmarks/rates.py --out STORE                     # 103 nets -> results/rates.csv, and the tables
    python benchmarks/rates.py --out STORE --tuned             # the 30 other nets, on which the constants were chosen
    python benchmarks/rates.py --out STORE --long 40           # the best of 200 steps, on so many of the nets
    python benchmarks/rates.py --tables                        # only say again what the csv holds

The sweep shares no code with the library: a plain loop over rates a factor 4 apart, then ever closer around the first
that does not train, 1.05 at last. *Trains* is what it is in the docstring of `rates`. The true largest rate is the
upper end of the lowest window that trains, the rates that `rates` tried included (``differ``: of how many the loop
says another thing); the highest that trains anywhere is noted too. Every other net has one batch. The rest have 21
fresh ones; there a second sweep, on 21 others, says what that answer is worth there.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import polars.selectors
import torch
from torch import Tensor, nn

import normscope as ns

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parent / "zoo"))
import families  # noqa: E402
from nets import Net, drawn  # noqa: E402
from rates_tables import tables  # noqa: E402
from tasks import Task  # noqa: E402

STEPS, BATCH, LONG = 20, 32, 200
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD, "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), "adam": torch.optim.Adam,
}  # fmt: skip
#: (reach, ratio) of the rates that are swept around the first that does not train.
STAGES = (16, 1.5), (4, 1.2), (1.3, 1.05)
Batches = list[tuple[Tensor, Tensor]]


#: Nets of each kind that are reported; the slower ones fewer.
COUNTS = {"mlp": 14, "mlp batch": 10, "mlp layer": 10, "tabular": 14, "autoencoder": 12, "cnn": 9, "resnet": 8,
          "transformer pre": 8, "transformer post": 8, "recurrent": 10}  # fmt: skip


def nets(called: str, n: int | None = None) -> list[Net]:
    """So many of each kind, by default ``COUNTS``; another name draws others."""
    same = {"act": ["relu", "relu", "tanh", "gelu", "silu"], "gain": [1.0, 1.0, 1.0, 0.7, 1.4],
            "law": ["torch", "he", "xavier", "orthogonal", "lecun"]}  # fmt: skip
    deep, digits = (
        {"depth": [2, 3, 4, 6, 8, 12, 16, 24, 50], "width": [8, 16, 32, 64]},
        {"task": ["digits", "clusters"]},
    )
    words = {"task": ["digits", "recall", "majority", "waves"], "depth": [1, 1, 2, 3], "width": [8, 16]}
    image = {"task": ["digits"], "width": [4, 8]}

    def kind(name: str, build: Callable[..., nn.Module], **axes: object) -> list[Net]:
        return drawn(name, n or COUNTS[name], build, f"{name} {called}", **axes)  # type: ignore[arg-type]

    return [
        *kind("mlp", families.mlp, **digits, **deep, **same, skip=["none", "none", "plain"]),
        *kind("mlp batch", families.mlp, **digits, **deep, **same, norm=["batch"], skip=["none", "none", "plain"]),
        *kind("mlp layer", families.mlp, **digits, **deep, **same, norm=["layer", "rms", "group"]),
        *kind("tabular", families.mlp, **same, task=["friedman", "diabetes", "cancer"], depth=[1, 2, 4, 8],
              width=[16, 32], norm=["none", "none", "batch", "layer"]),
        *kind("autoencoder", families.autoencoder, **same, task=["digits pixels"], depth=[1, 2, 3, 5], width=[32],
              code=[8], norm=["none", "none", "batch", "layer"]),
        *kind("cnn", families.cnn, **image, **same, depth=[2, 3, 4, 8], norm=["none", "none", "batch", "group"]),
        *kind("resnet", families.resnet, **image, **same, depth=[1, 2, 3, 5], form=["pre", "post"],
              norm=["batch", "batch", "none", "group", "layer"], skip=["plain", "plain", "scaled"]),
        *kind("transformer pre", families.transformer, **words, **same, form=["pre"], norm=["layer", "layer", "rms"],
              std=[None, 0.02], read=["mean", "last"]),
        *kind("transformer post", families.transformer, **words, **same, form=["post"], norm=["layer", "layer", "rms"],
              std=[None, 0.02], read=["mean", "last"]),
        *kind("recurrent", families.recurrent, **(words | {"depth": [1, 2]}), cell=["lstm", "lstm", "gru", "rnn"],
              norm=["none", "none", "layer"]),
    ]  # fmt: skip


NETS = {net.name: net for net in [*nets("told"), *nets("tuned", 3)]}


def fresh(net: str) -> bool:
    """Whether a net has fresh batches."""
    return int(net.split()[-1]) % 2 == 1


def loss_of(model: nn.Module, task: Task, batch: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return task.loss(model(batch[0]), batch[1]).item()


def course(
    model: nn.Module, task: Task, optimizer: torch.optim.Optimizer, batches: Batches, steps: int,
    rises: Callable[[list[float]], bool],
) -> tuple[list[float], bool]:  # fmt: skip
    """The losses before each update and after the last, and whether none rose; it ends at the first that does."""
    losses: list[float] = []
    for i in range(steps + 1):
        x, y = batches[i % len(batches)]
        optimizer.zero_grad()
        loss = task.loss(model(x), y)
        losses.append(loss.item())
        if rises(losses):
            return losses, False
        if i < steps:
            loss.backward()
            optimizer.step()
    return losses, True


class Truth:
    """The sweep of one optimizer's rates: ``tried`` is rate -> (trains, loss at the end)."""

    def __init__(self, model: nn.Module, task: Task, name: str, batches: Batches) -> None:
        self.model, self.task, self.make, self.batches = model, task, OPTIMIZERS[name], batches
        self.state = {k: v.clone() for k, v in model.state_dict().items()}
        self.starts = [loss_of(model, task, batches[i % len(batches)]) for i in range(STEPS + 1)]
        self.noise = 2 * statistics.pstdev(self.starts) if len(batches) > 1 and math.isfinite(sum(self.starts)) else 0.0
        self.tried: dict[float, tuple[bool, float]] = {}

    def rises(self, losses: list[float]) -> bool:
        """Whether the last loss, or the mean of the last five of fresh batches, is above what they had at the start."""
        n = len(losses)
        if not self.noise:
            return not losses[-1] <= self.starts[-1] + 1e-6 * abs(self.starts[-1])
        first = max(0, n - 5)
        return not statistics.fmean(losses[first:]) <= statistics.fmean(self.starts[first:n]) + self.noise

    def at(self, rate: float) -> bool:
        if rate not in self.tried:
            self.model.load_state_dict(self.state)
            optimizer = self.make(self.model.parameters(), lr=rate)
            losses, trains = course(self.model, self.task, optimizer, self.batches, STEPS, self.rises)
            last = losses[-5:] if self.noise else losses[-1:]
            self.tried[rate] = trains, statistics.fmean(last) if trains else math.inf
        return self.tried[rate][0]

    @property
    def edge(self) -> float:
        """The least rate that does not train."""
        return min((r for r, (trains, _) in self.tried.items() if not trains), default=math.inf)

    @property
    def largest(self) -> float:
        return max((r for r, (trains, _) in self.tried.items() if trains and r < self.edge), default=math.nan)

    def sweep(self, stages: Sequence[tuple[float, float]], low: float = 1e-5) -> Truth:
        """Rates a factor 4 apart from ``low`` on, then around the least that does not train, stage by stage."""
        for rate in grid(low, 1e4, 4):
            self.at(rate)
        for reach, ratio in stages if math.isfinite(self.edge) else ():
            edge = math.inf
            while self.edge < edge:  # where a finer grid finds a gap, around that
                edge = self.edge
                for rate in grid(edge / reach, edge * reach, ratio):
                    self.at(rate)
        return self

    def told(self) -> dict[str, float]:
        whole = {r: end for r, (trains, end) in self.tried.items() if trains}
        best = min(whole, key=lambda r: whole[r], default=math.nan)
        below = [r for r in whole if r <= self.largest]
        return {
            "true": self.largest, "edge": self.edge, "highest": max(whole, default=math.nan), "true best": best,
            "true best below": min(below, key=lambda r: whole[r], default=math.nan),
        }  # fmt: skip


def grid(low: float, high: float, ratio: float) -> list[float]:
    return [low * ratio**k for k in range(round(math.log(high / low) / math.log(ratio)) + 1)]


def finder(model: nn.Module, task: Task, name: str, batches: Batches) -> dict[str, float]:
    """Smith's range test as in fastai: 100 rates from 1e-7 to 10, smoothed losses, its end at four times the least."""
    optimizer = OPTIMIZERS[name](model.parameters(), lr=1e-7)
    seen: list[tuple[float, float]] = []
    mean = 0.0
    for i, batch in zip(range(100), itertools.cycle(batches), strict=False):
        rate = 1e-7 * 1e8 ** (i / 99)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = task.loss(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        mean = 0.98 * mean + 0.02 * loss.item()
        smooth = mean / (1 - 0.98 ** (i + 1))
        if not smooth <= 4 * min((s for _, s in seen), default=math.inf):
            break
        seen.append((rate, smooth))
    if len(seen) < 3:
        return {"finder min": math.nan, "finder slope": math.nan}
    least = min(range(len(seen)), key=lambda k: seen[k][1])
    slopes = [(seen[k + 1][1] - seen[k - 1][1], seen[k][0]) for k in range(1, len(seen) - 1)]
    return {"finder min": seen[least][0], "finder slope": min(slopes)[1]}


def compare(net: str, recipe: str) -> dict[str, float]:
    """One net: all that was said and what is so."""
    del recipe  # stands in the key
    begun, told = time.process_time(), {}
    model, task = NETS[net].make(0)
    count = STEPS + 1 if fresh(net) else 1
    given, others = ([task.batch(BATCH, 1000 * k + i) for i in range(count)] for k in (1, 2))
    x, y = given[0]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for name in OPTIMIZERS:
        model.load_state_dict(state)
        where = {"data": given} if fresh(net) else {"inputs": x, "targets": y}
        at = time.process_time()
        found = ns.rates(model, loss=task.loss, optimizer=name, steps=STEPS, **where)  # type: ignore[arg-type]
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        row = {
            "largest": found.largest, "low": found.largest_interval[0], "high": found.largest_interval[1],
            "best": found.best, "cost": found.cost, "seconds": time.process_time() - at, "runs": len(found.runs),
            "first": found.runs[0][0] if found.runs else math.nan,
        }  # fmt: skip
        truth = Truth(model, task, name, given)
        row["differ"] = sum(truth.at(rate) != stayed for rate, _, stayed in found.runs)
        row |= truth.sweep(STAGES).told()
        if fresh(net):
            model.load_state_dict(state)
            low = row["true"] / 16 if row["true"] > 0 else 1e-5
            row["other true"] = Truth(model, task, name, others).sweep(STAGES[1:2], low).largest
        model.load_state_dict(state)
        row |= finder(model, task, name, given)
        told |= {f"{name} {k}": v for k, v in row.items()}
    model.load_state_dict(state)
    return told | {"2/lambda": stable(model, task, x, y), "cpu": time.process_time() - begun}


def stable(model: nn.Module, task: Task, x: Tensor, y: Tensor) -> float:
    try:
        found = ns.sharpness(model, x, y, task.loss, tol=1e-2, probes=0, compare_modes=False, mode="train")
    except ValueError:  # a loss that is no number
        return math.nan
    return found.max_stable_lr


def long(net: str, recipe: str, largest: dict[str, float], rates: dict[str, float]) -> dict[str, float]:
    """The best of rates a factor 2 apart after 200 steps, and of the two that are told, by the mean of the last ten
    losses, by optimizer; the sweep goes on to lower ones while the lowest is the best.

    Beside it ``horizon best``, of `rates` with that horizon, where there are fresh batches on others; and the loss at
    the start, the least after 200 steps, and where the two rates that are told (``rates``: of 20 steps) end.
    """
    del recipe
    model, task = NETS[net].make(0)
    count = LONG + 1 if fresh(net) else 1
    batches = [task.batch(BATCH, 3000 + i if fresh(net) else 1000 + i) for i in range(count)]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    told = {}
    for name, top in largest.items():
        model.load_state_dict(state)
        start = loss_of(model, task, batches[0])

        def end(rate: float, name: str = name, most: float = 100 * abs(start)) -> float:
            model.load_state_dict(state)
            optimizer = OPTIMIZERS[name](model.parameters(), lr=rate)
            losses, whole = course(model, task, optimizer, batches, LONG, lambda seen: not seen[-1] <= most)
            return statistics.fmean(losses[-10:]) if whole else math.inf

        ends = {rate: end(rate) for rate in grid(top / 16, top * 8, 2)}
        while (low := min(ends)) == min(ends, key=lambda r: ends[r]) and low > top / 4096:
            ends[low / 2] = end(low / 2)
        model.load_state_dict(state)
        given = [task.batch(BATCH, 1000 + i) for i in range(count)]
        where = {"data": given} if fresh(net) else {"inputs": given[0][0], "targets": given[0][1]}
        found = ns.rates(model, loss=task.loss, optimizer=name, horizon=LONG, **where)  # type: ignore[arg-type]
        told |= {f"{name} horizon best": found.best, f"{name} horizon cost": found.cost}
        ends |= {rate: end(rate) for rate in (found.best, rates[name]) if rate > 0}
        told |= {f"{name} best {LONG}": min(ends, key=lambda r: ends[r]), f"{name} {LONG} least": min(ends.values())}
        told |= {f"{name} {LONG} start": start, f"{name} {LONG} horizon": ends.get(found.best, math.inf)}
        told |= {f"{name} {LONG} short": ends.get(rates[name], math.inf)}
    return told


def swept(cells: list[dict[str, object]], task: str, out: str) -> pl.DataFrame:
    """The rows of the store, a net each; what failed is printed."""
    table = ns.sweep(ns.Grid(cells), f"{HERE}:{task}", out, ThreadPoolExecutor(1)).collect()
    for cell in table.filter(pl.col("error").is_not_null()).iter_rows(named=True):
        print(f"{cell['net']}: {cell['error']}")
    done = table.filter(pl.col("error").is_null())
    return done.pivot("metric", index="net", values="value", aggregate_function="first")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="the store")
    parser.add_argument("--csv", default="results/rates.csv")
    parser.add_argument("--tuned", action="store_true", help="the nets on which the constants were chosen")
    parser.add_argument("--long", type=int, default=0, help="so many nets for 200 steps")
    parser.add_argument("--tables", action="store_true", help="only say what the csv holds")
    args = parser.parse_args()
    if not args.tables:
        if args.out is None:
            parser.error("--out names the store")
        mine = [n for n in NETS.values() if n.name.split()[-2] == ("tuned" if args.tuned else "told")]
        mine.sort(key=lambda n: int(n.name.split()[-1]))  # of each kind one, then of each the next
        if args.long:
            measure_long(mine, args)
        else:
            found = swept([{"net": n.name, "recipe": f"{n.task}: {n.words}"} for n in mine], "compare", args.out)
            write(found, args.csv)
    print(tables(pl.read_csv(args.csv)))


def measure_long(mine: list[Net], args: argparse.Namespace) -> None:
    """Adds the columns of 200 steps to the csv."""
    known = pl.read_csv(args.csv).drop(polars.selectors.contains(" best 200", " 200 ", " horizon "))
    rows = {row["net"]: row for row in known.iter_rows(named=True)}
    some = [mine[i * len(mine) // args.long] for i in range(args.long)]
    cells = [
        {"net": n.name, "recipe": f"{n.task}: {n.words}",
         "largest": {o: rows[n.name][f"{o} true"] for o in OPTIMIZERS},
         "rates": {o: rows[n.name][f"{o} best"] for o in OPTIMIZERS}}
        for n in some if all(math.isfinite(rows[n.name][f"{o} true"] or math.nan) for o in OPTIMIZERS)
    ]  # fmt: skip
    found = swept(cells, "long", args.out)
    known.join(found, on="net", how="left").write_csv(args.csv)


def write(found: pl.DataFrame, csv: str) -> None:
    about = pl.DataFrame(
        [
            {"net": n.name, "kind": n.kind, "task": n.task, "fresh": fresh(n.name), "recipe": n.words}
            for n in NETS.values()
        ]
    )
    Path(csv).parent.mkdir(parents=True, exist_ok=True)
    about.join(found, on="net").with_columns(polars.selectors.float().round_sig_figs(5)).write_csv(csv)


if __name__ == "__main__":
    main()
