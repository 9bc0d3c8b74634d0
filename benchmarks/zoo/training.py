"""Train every net of the zoo with SGD and Adam at several rates; what was measured goes to a store that can be resumed.

    python benchmarks/zoo/training.py --data-dir DIR --out STORE [--seeds 1] [--subset 40]
        [--csv results/zoo_training.csv] [--add]

``--add`` keeps the rows of the table that is there and trains only what it lacks. A cell is a pure function of the
net's name, its recipe and the seed. Scores and losses are stored as they are: what "trains" means is said afterwards,
in table.py. One core needs about two hours a seed.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import polars.selectors
import torch
from nets import NETS, Net
from tasks import BUNDLED, Task
from torch import Tensor, nn

from normscope import Grid, sweep

HERE = Path(__file__).resolve()
STEPS, BATCH, SEEN = 200, 64, 512
#: Factors of five to six. A mean squared error divides by the number of outputs too, so its gradients are smaller.
SGD = {"classes": (0.001, 0.006, 0.03, 0.18, 1.0), "numbers": (0.01, 0.06, 0.3, 1.0, 2.5)}
ADAM = (1e-4, 1e-3, 1e-2)
#: Steps after which the loss is noted too.
NOTED = (10, 25, 50)
#: A run ends early where the last five batches were answered this well.
SOLVED = 0.995


def train(net: str, seed: int, recipe: str, steps: int = STEPS) -> dict[str, float]:
    """Every run of a net: ``"sgd 0.03 score"`` and the like -> number; NaN where the loss became NaN or infinite.

    score: in training mode, on 512 fresh training samples; end: the loss on them; at10 ...: the mean training loss of
        five
    steps up to that one; steps: how many were made. ``start``: the loss on them before.
    """
    del recipe  # stands in the key: another recipe under the same name is another cell
    begun = time.perf_counter()
    model, task = NETS[net].make(seed)
    batches = [task.batch(BATCH, 100_000 * (seed + 1) + i) for i in range(steps)]
    fresh = task.batch(SEEN, 10_000_000 + seed)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    told = {"start": seen(model, task, fresh)[1], "chance": task.chance}
    for name, kind, rates in (("sgd", torch.optim.SGD, SGD[task.kind]), ("adam", torch.optim.Adam, ADAM)):
        for rate in rates:
            model.load_state_dict(state)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                run = course(model, task, kind(model.parameters(), lr=rate), batches, fresh)
            told |= {f"{name} {rate:g} {k}": v for k, v in run.items()}
    return told | {"seconds": time.perf_counter() - begun}


@torch.no_grad()
def seen(model: nn.Module, task: Task, fresh: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Score and loss in training mode; the statistics that norms keep are not looked at by anything here."""
    outputs = model(fresh[0])
    return task.score(outputs, fresh[1]), task.loss(outputs, fresh[1]).item()


def course(
    model: nn.Module, task: Task, optimizer: torch.optim.Optimizer, batches: list[tuple[Tensor, Tensor]],
    fresh: tuple[Tensor, Tensor],
) -> dict[str, float]:  # fmt: skip
    """One run."""
    losses: list[float] = []
    scores: list[float] = []
    for x, y in batches:
        outputs = model(x)
        loss = task.loss(outputs, y)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        if loss.requires_grad:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scores.append(task.score(outputs.detach(), y))
        if len(scores) > 25 and sum(scores[-5:]) / 5 >= SOLVED:
            break
    score, end = seen(model, task, fresh)
    if not math.isfinite(losses[-1]) or not math.isfinite(end):
        score = end = math.nan
    noted = {f"at{k}": sum(losses[k - 5 : k]) / 5 if len(losses) >= k else math.nan for k in NOTED}
    return {"score": score, "end": end, "steps": len(losses)} | noted


def chosen(subset: int | None, *, bundled: bool = False) -> list[Net]:
    """All nets, or every so-manieth of each kind in turn; ``bundled``: those that need no folder of data."""
    nets = [n for n in NETS.values() if not bundled or n.task in BUNDLED]
    if subset is None or subset >= len(nets):
        return nets
    return [nets[i * len(nets) // subset] for i in range(subset)]


def cells(nets: Sequence[Net], seeds: int, **more: object) -> Grid:
    """All nets with the first seed, then with the next."""
    return Grid(
        [{"seed": s, "net": n.name, "recipe": f"{n.task}: {n.words}", **more} for s in range(seeds) for n in nets]
    )


def wide(table: pl.DataFrame) -> pl.DataFrame:
    """A row a net and seed, a column a number; names, kinds and recipes first."""
    done = table.filter(pl.col("error").is_null())
    values = done.pivot("metric", index=["net", "seed"], values="value", aggregate_function="first")
    rows = [{"net": n.name, "kind": n.kind, "task": n.task, "group": n.group, "recipe": n.words} for n in NETS.values()]
    place = pl.col("net").replace_strict({n: i for i, n in enumerate(NETS)}, return_dtype=pl.Int64)
    return pl.DataFrame(rows).join(values, on="net").sort(place, "seed")


def lacking(grid: Grid, there: pl.DataFrame) -> tuple[Grid, Callable[[pl.DataFrame], pl.DataFrame]]:
    """The cells that a table has no row of, nets without any row first; and how the new rows join the old ones."""
    keys = {
        (net, f"{task}: {recipe}", seed)
        for net, task, recipe, seed in there.select("net", "task", "recipe", "seed").iter_rows()
    }
    known = {net for net, *_ in keys}
    every = [dict(c.parameters) for c in grid]
    cells = [c for c in every if (c["net"], c["recipe"], c["seed"]) not in keys]
    cells.sort(key=lambda c: (c["net"] in known, c["seed"]))
    place = pl.col("net").replace_strict({n: i for i, n in enumerate(NETS)}, return_dtype=pl.Int64)

    def finish(table: pl.DataFrame) -> pl.DataFrame:
        return pl.concat([there, wide(table)], how="diagonal_relaxed").sort(place, "seed")

    return Grid(cells), finish


def options(text: str | None, csv: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--data-dir", default=None, help="folder with mnist, fashion and cifar10")
    parser.add_argument("--out", required=True, help="the store")
    parser.add_argument("--csv", default=csv)
    parser.add_argument("--subset", type=int, default=None, help="so many nets")
    parser.add_argument(
        "--bundled", action="store_true", help="only nets whose data comes with scikit-learn or is drawn"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes; 0: none but this one")
    return parser


def run(args: argparse.Namespace, grid: Grid, task: str, finish: Callable[[pl.DataFrame], pl.DataFrame] = wide) -> None:
    """Sweep, then write the table."""
    if args.data_dir is not None:
        os.environ["ZOO_DATA"] = str(Path(args.data_dir).resolve())
    executor = ThreadPoolExecutor(1) if args.workers == 0 else None
    found = sweep(grid, task, args.out, executor, workers=args.workers or 1, progress=args.workers > 0)
    table = found.collect() if isinstance(found, pl.LazyFrame) else found
    for cell in table.filter(pl.col("error").is_not_null()).iter_rows(named=True):
        print(f"{cell['net']}, seed {cell['seed']}: {cell['error']}")
    Path(args.csv).parent.mkdir(parents=True, exist_ok=True)
    finish(table).with_columns(polars.selectors.float().round_sig_figs(6)).write_csv(args.csv)


def main() -> None:
    parser = options(__doc__, "results/zoo_training.csv")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--add", action="store_true", help="train only what the table lacks")
    args = parser.parse_args()
    nets = chosen(args.subset, bundled=args.bundled)
    grid, finish = cells(nets, args.seeds, steps=args.steps), wide
    if args.add:
        grid, finish = lacking(grid, pl.read_csv(args.csv, infer_schema_length=None))
    run(args, grid, f"{HERE}:train", finish)


if __name__ == "__main__":
    main()
