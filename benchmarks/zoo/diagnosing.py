"""What normscope says of every net of the zoo before it is trained, with and without a trial.

    python benchmarks/zoo/diagnosing.py --data-dir DIR --out STORE [--trial no,one,many] [--fresh] [--subset 40]

Each net is diagnosed as it is made, on 128 training samples with torch's loss and no optimizer. ``no``: without a
trial, a few minutes for all nets; ``one``: with the trial on these 128 samples; ``many``: on 16 more batches of 64,
given as ``data``. Rules change: ``--fresh`` empties the store first. Training is not repeated, see training.py.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import torch
from blocks import Whole
from nets import NETS
from training import cells, chosen, options, run, wide

import normscope
from normscope.core.records import Profile

HERE = Path(__file__).resolve()
SAMPLES, BATCH, BATCHES = 128, 64, 16
LEVELS = {"info": 1, "warning": 2, "error": 3}
TRIALS = ("no", "one", "many")
#: Numbers of the probe that are stored too: their least, largest and last over the layers.
METRICS = {
    "participation_rank": "activation", "numerical_rank_float32": "activation", "mean_abs_cosine": "activation",
    "orthogonality_gap": "activation", "rms": "activation", "dead_units": "activation", "saturated_units": "activation",
    "odd_point_score": "activation", "gradient_norm": "gradient", "relative_gradient": "weight",
}  # fmt: skip


class Passes:
    """How many passes of the whole net, and how many backward."""

    def __init__(self) -> None:
        self.forwards = self.backwards = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        forward, backward, grad = Whole.forward, torch.autograd.backward, torch.autograd.grad

        def counting_forward(whole: Whole, x: torch.Tensor) -> torch.Tensor:
            self.forwards += 1
            return forward(whole, x)

        def counting(function: Any) -> Any:
            def called(*args: Any, **kwargs: Any) -> Any:
                self.backwards += 1
                return function(*args, **kwargs)

            return called

        with (
            mock.patch.object(Whole, "forward", counting_forward),
            mock.patch("torch.autograd.backward", counting(backward)),
            mock.patch("torch.autograd.grad", counting(grad)),
        ):
            yield


def say(net: str, seed: int, recipe: str, trial: str = "no") -> dict[str, float]:
    """Codes with their severity (1 info, 2 warning, 3 error), seconds, passes, the trial's outcome, and what was
    probed.

    ``refused``: 1 where normscope declines to diagnose it.
    """
    del recipe
    model, task = NETS[net].make(seed)
    x, y = task.batch(SAMPLES, 20_000_000 + seed)
    more = [task.batch(BATCH, 30_000_000 + 1000 * seed + i) for i in range(BATCHES)] if trial == "many" else None
    passes = Passes()
    begun = time.perf_counter()
    try:
        with passes.counted():
            found = normscope.diagnose(
                model, x, y, task.loss, data=more, trial=False if trial == "no" else "auto", seed=seed
            )
    except normscope.UsageError as error:
        print(f"{net}, seed {seed}: {error}")
        return {"refused": 1.0, "seconds": time.perf_counter() - begun}
    told: dict[str, float] = {
        "refused": 0.0, "seconds": time.perf_counter() - begun, "forwards": passes.forwards,
        "backwards": passes.backwards,
    }  # fmt: skip
    for finding in found.findings:
        told[finding.code] = max(told.get(finding.code, 0), LEVELS[finding.severity])
    return told | _tried(found.profile.facts["checkup"].get("trial", {})) | _probed(found.profile)


def _tried(trial: dict[str, Any]) -> dict[str, float]:
    """The numbers of the trial, ``trial sgd trains`` and the like."""
    told = {f"trial {k}": float(v) for k, v in trial.items() if isinstance(v, int | float)}
    for name in ("sgd", "adam"):
        told |= {f"trial {name} {k}": float(v) for k, v in trial.get(name, {}).items() if isinstance(v, int | float)}
    return told


def _probed(profile: Profile) -> dict[str, float]:
    told: dict[str, float] = {}
    for metric, signal in METRICS.items():
        values = [v for layer, v in profile.series(metric, signal).items() if layer > 0]
        if values:
            every = torch.tensor(values, dtype=torch.float64)
            told |= {
                f"min {metric}": every.min().item(),
                f"max {metric}": every.max().item(),
                f"last {metric}": values[-1],
            }
    norms = list(profile.series("gradient_norm", "gradient").values())
    if len(norms) > 2:
        told["gradient_ratio"] = norms[1] / norms[-2] if norms[-2] else math.nan
    return told


def ordered(table: pl.DataFrame) -> pl.DataFrame:
    """The codes beside each other, then the rest; one row a net, seed and trial."""
    parts = []
    for trial in TRIALS:
        part = table.filter(pl.col("trial") == trial)
        if len(part):
            parts.append(wide(part).with_columns(trial=pl.lit(trial)))
    out = pl.concat(parts, how="diagonal")
    first = ["net", "kind", "task", "group", "recipe", "seed", "trial", "refused", "seconds", "forwards", "backwards"]
    codes = sorted(c for c in out.columns if c.startswith("NS"))
    return out.select([*first, *codes, *(c for c in out.columns if c not in {*first, *codes})])


def main() -> None:
    parser = options(__doc__, "results/zoo_diagnosis.csv")
    parser.add_argument("--trial", default="no", help="some of no, one, many, by commas")
    parser.add_argument("--fresh", action="store_true", help="forget what the store holds")
    args = parser.parse_args()
    if args.fresh and (Path(args.out) / "normscope-store.json").exists():
        shutil.rmtree(args.out)
    nets = chosen(args.subset, bundled=args.bundled)
    trials = args.trial.split(",")
    grid = cells(nets, args.seeds, trial=trials[0])
    for trial in trials[1:]:
        grid = grid + cells(nets, args.seeds, trial=trial)
    run(args, grid, f"{HERE}:say", ordered)


if __name__ == "__main__":
    main()
