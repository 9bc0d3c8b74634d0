"""Do the cures work? Nets that stall, raced with and without a cure, its controls and its rivals.

Every group below is one `normscope.racing`: same batches, same order, plain SGD; the learning rate of each arm is
searched (pilot runs of 100 steps on the grid of its part), so that no arm runs at another one's rate.

    python benchmarks/cures.py --data-dir DIR --work runs/cures --parts mlp:fashion-mnist,centring
    python benchmarks/cures_tables.py --work runs/cures --out results/cures

What is finished lies in the work folder, a line of rows.jsonl a run; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normscope import Race, Spec, build, cure, race, sharpness
from normscope.data.datasets import Batch, load
from normscope.findings.cures import rank_cures
from normscope.init import orthogonal_representations_, raise_rank_, xavier_

#: Laws of plain nets, and what is done to the net of He's law.
LAWS: dict[str, dict[str, Any]] = {
    "xavier": {"weights": "xavier", "gain": 1.0},
    "torch": {"weights": "torch", "bias": 0.0},
    "he": {"weights": "gaussian"},
}
CURES = ("orthogonal", "identity", "haar", "lsuv", "delta-orthogonal", "rank", "bn")
#: Samples that a cure sees: three times the width of the MLPs, as in the paper; fewer for `rank`, which takes many
#: passes.
SEEN, RANKED = 300, 64
DEPTHS = (15, 45, 75)
#: Races of these many seeds, at rates searched on these grids.
SEEDS = 4
MLP_RATES, CONV_RATES = "search:0.001,0.004,0.015,0.06,0.25", "search:0.0003,0.001,0.003,0.01,0.03,0.1,0.3"


@functools.cache
def images(name: str, data_dir: str | None, n: int, split: str = "train", size: int | None = None) -> Batch:
    """n samples; of ``digits``, which has 1440, as many copies as needed; averaged down to ``size`` pixels a side."""
    if name == "digits":
        batch = load(name, split=split)
        pick = torch.arange(n) % len(batch) if split == "train" else torch.arange(len(batch))
        return Batch(batch.inputs[pick], batch.targets[pick], name, 10)
    batch = load(name, data_dir, split=split, n=n)
    if size is None or size == batch.inputs.shape[-1]:
        return batch
    return Batch(nn.functional.adaptive_avg_pool2d(batch.inputs, size), batch.targets, name, batch.classes)


def variant(spec: Spec, batch: Batch, how: str = "none") -> Callable[[int], nn.Module]:
    """A net of the spec, cured on the first samples of the training data."""
    seen = slice(0, RANKED if how == "rank" else SEEN)

    def make(seed: int) -> nn.Module:
        model = build(spec, tuple(batch.inputs.shape[1:]), seed=seed)
        return cure(model, how, batch.inputs[seen], batch.targets[seen], seed=seed)

    return make


def arms(spec: Mapping[str, Any], batch: Batch, cures: tuple[str, ...] = CURES) -> dict[str, Any]:
    """The plain nets of the three laws, then the cures of He's."""
    plain = {f"none ({law})": variant(Spec(**spec, **fields), batch) for law, fields in LAWS.items()}
    return plain | {how: variant(Spec(**spec, **LAWS["he"]), batch, how) for how in cures}


class Log:
    """rows.jsonl: one JSON object a line; ``done`` are the groups whose rows are all there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / "rows.jsonl"
        rows = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []
        self.done = {row["group"] for row in rows}
        self.rates = {(row["group"], row["arm"]): row["lr"] for row in rows if "lr" in row}

    def write(self, group: str, rows: list[dict[str, Any]]) -> None:
        """All rows of a group at once."""
        with self.path.open("a") as file:
            file.write("".join(json.dumps({"group": group, **row}) + "\n" for row in rows))
        self.done.add(group)
        self.rates |= {(group, row["arm"]): row["lr"] for row in rows if "lr" in row}


def compete(
    log: Log, group: str, facts: Mapping[str, Any], variants: Mapping[str, Any], *args: Any, **options: Any
) -> None:
    """One race, kept in a folder of its own; a row an arm and seed."""
    if group in log.done:
        return
    start = time.process_time()
    # The epoch's accuracy is all that is asked for; the layers are looked at by the part on ``auto``.
    found = race(variants, *args, out=log.folder / group.replace("/", "_"), progress=True, **{"geometry": 0, **options})
    used = time.process_time() - start
    log.write(group, [{**facts, **row, "cpu_seconds": round(used, 1)} for row in runs(found)])
    print(
        found.summary().select("variant", "lr", "diverged", "train_loss", "test_accuracy", "steps_to_target"),
        flush=True,
    )
    print(f"{group}: {used:.0f} CPU s", flush=True)


def runs(found: Race) -> Iterator[dict[str, Any]]:
    """(arm, seed): rate, loss at the end (mean of the last batches), accuracies, first step at the target,
    divergence.
    """
    import polars as pl

    steps, target = found.facts["steps"], found.target
    for (arm, seed), part in found.table.group_by("variant", "seed", maintain_order=True):
        losses = part.filter(signal="batch").sort("step")["value"].to_numpy()
        last = {(s, m): v for s, m, v in part.sort("step").select("signal", "metric", "value").iter_rows()}
        diverged = last.get(("run", "diverged")) is not None
        window = max(10, round(0.05 * steps))
        rate = found.facts["rates"][arm]
        reached = None
        if target is not None and len(losses) >= 10:
            means = pl.Series(losses).rolling_mean(10).to_numpy()
            reached = next((i + 1 for i, m in enumerate(means) if m <= target), None)
        yield {
            "arm": arm, "seed": seed, "steps": steps, "batch": found.facts["batch"], "lr": rate["lr"],
            "how": rate["how"], "note": rate["note"], "first_loss": float(losses[0]),
            "loss": math.nan if diverged else float(losses[-window:].mean()), "highest": float(losses.max()),
            "train_accuracy": last.get(("train", "accuracy")), "test_accuracy": last.get(("test", "accuracy")),
            "target": target, "steps_to_target": reached, "diverged": diverged, "ran": len(losses),
        }  # fmt: skip


def mlp(log: Log, data_dir: str, data: str = "fashion-mnist", depths: tuple[int, ...] = DEPTHS) -> None:
    """Plain deep ReLU MLPs of width 100. Each arm's rate is searched on Fashion-MNIST and taken over by the other
    data.
    """
    size = 16 if data == "cifar10" else None
    train, test = images(data, data_dir, 19200, size=size), images(data, data_dir, 1000, "test", size)
    for depth in depths:
        facts = {"part": "mlp", "data": data, "net": f"mlp {depth} x 100", "depth": depth}
        variants = arms({"depth": depth, "width": 100, "outputs": 10}, train)
        lr = {arm: log.rates.get((f"mlp/fashion-mnist/{depth}", arm), MLP_RATES) for arm in variants}
        compete(
            log, f"mlp/{data}/{depth}", facts, variants, train, test,
            epochs=1, batch=64, lr=lr, seeds=SEEDS, baseline="none (he)",
        )  # fmt: skip


def auto(log: Log, data_dir: str, data: str = "fashion-mnist", depths: tuple[int, ...] = DEPTHS) -> None:
    """What `cure --how auto` says of the same arms before any training: candidates of He's net, on 128 samples."""
    train = images(data, data_dir, 19200, size=16 if data == "cifar10" else None)
    fresh = train.inputs[SEEN : SEEN + 128], train.targets[SEEN : SEEN + 128]
    for depth in depths:
        group = f"auto/{data}/{depth}"
        if group in log.done:
            continue
        start, rows = time.process_time(), []
        spec = Spec(depth=depth, width=100, outputs=10, **LAWS["he"])
        model = build(spec, tuple(train.inputs.shape[1:]), seed=0)
        trials = rank_cures(
            model, train.inputs[:128], train.targets[:128], fresh=fresh, seed=0,
            candidates=("none", "xavier", "torch", *CURES), progress=lambda name: print(name, flush=True),
        )  # fmt: skip
        for place, t in enumerate(trials, 1):
            r = t.reading
            assert r is not None, t.reason
            rows.append(
                {"part": "auto", "data": data, "depth": depth, "arm": t.name, "place": place, "cost": r.cost,
                 "errors": r.errors, "warnings": r.warnings, "lambda_max": r.lambda_max, "findings": " ".join(r.codes),
                 "control": t.control}
            )  # fmt: skip
        log.write(group, [row | {"cpu_seconds": round(time.process_time() - start, 1)} for row in rows])


def centring(log: Log, data_dir: str) -> None:
    """Output centring of ReLU MLPs: lambda_max before and after, then races at rates around the two thresholds."""
    size = 256
    train = images("fashion-mnist", data_dir, 60 * size)
    centred = train.targets.new_zeros(len(train), 10).float().scatter_(1, train.targets[:, None], 1.0) - 0.1
    for (depth, width), loss in itertools.product(((4, 512), (10, 256)), ("mse", "cross_entropy")):
        spec = Spec(depth=depth, width=width, outputs=10, **LAWS["he"])
        targets = centred if loss == "mse" else train.targets
        chosen: Any = nn.MSELoss() if loss == "mse" else loss
        wanted = None if loss == "mse" else train.targets[:size]
        options: dict[str, Any] = {"tol": 1e-2, "probes": 0, "compare_modes": False, "mode": "train"}
        models = {how: [variant(spec, train, how)(s) for s in range(SEEDS)] for how in ("none", "center-outputs")}
        tops = {
            how: [sharpness(m, train.inputs[:size], wanted, chosen, **options).lambda_max for m in ms]
            for how, ms in models.items()
        }
        low, high = (2 / max(tops[how]) for how in models)
        rates = {"half of the plain one": low / 2, "geometric mean of the two": math.sqrt(low * high),
                 "half of the centred one": high / 2, "0.9 of the centred one": 0.9 * high}  # fmt: skip
        if depth > 4:  # below its own threshold neither arm has anything to show
            rates = dict(list(rates.items())[1::2])
        for name, rate in rates.items():
            facts = {"part": "centring", "data": "fashion-mnist", "net": f"mlp {depth} x {width}", "depth": depth,
                     "training": loss, "rate": name, "lambda_plain": tops["none"],
                     "lambda_centred": tops["center-outputs"]}  # fmt: skip
            compete(
                log, f"centring/{depth}/{loss}/{name}", facts, {how: variant(spec, train, how) for how in models},
                (train.inputs, targets), epochs=1, batch=size, lr=rate, seeds=SEEDS, loss=loss,
            )  # fmt: skip


def conv(log: Log, data_dir: str, family: str, depth: int, steps: int = 200) -> None:
    """The built-in VGG or ResNet without a norm on 12 x 12 images of CIFAR-10, its cures, and its batch-norm
    version.
    """
    train, test = images("cifar10", data_dir, 32 * steps, size=12), images("cifar10", data_dir, 500, "test", 12)
    facts = {"part": "conv", "data": "cifar10", "net": f"{family} {depth} x 8", "depth": depth}
    spec = {"family": family, "depth": depth, "width": 8, "outputs": 10}
    branches = ("zero-branches",) if family == "resnet" else ()
    variants = arms(spec, train, (*branches, "orthogonal", "identity", "lsuv", "delta-orthogonal", "bn"))
    del variants["none (xavier)"]
    compete(
        log, f"{family}/cifar10/{depth}", facts, variants, train, test,
        epochs=1, batch=32, lr=CONV_RATES, seeds=SEEDS, baseline="none (he)",
    )  # fmt: skip


def longer(log: Log, data_dir: str) -> None:
    """The ResNet's best arms for five passes instead of one, each at its own rate."""
    train, test = images("cifar10", data_dir, 6400, size=12), images("cifar10", data_dir, 500, "test", 12)
    spec = Spec(family="resnet", depth=51, width=8, outputs=10, **LAWS["he"])
    variants = {how: variant(spec, train, how) for how in ("zero-branches", "identity", "bn")}
    facts = {"part": "conv", "data": "cifar10", "net": "resnet 51 x 8, 5 epochs", "depth": 51}
    lr = {how: log.rates["resnet/cifar10/51", how] for how in variants}
    compete(log, "resnet/cifar10/51 longer", facts, variants, train, test, epochs=5, batch=32, lr=lr, seeds=SEEDS)


def pyramid(depth: int) -> nn.Sequential:
    """The net of Daneshmand et al. 2021, appendix G, narrower: nearly all of its convolutions see 4 x 4 pixels."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1), nn.MaxPool2d(2), nn.ReLU()]
    layers += [nn.Conv2d(32, 32, 3, 1, 1), nn.MaxPool2d(2), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def depths(log: Log, data_dir: str, steps: int = 300) -> None:
    """Shallow and deep convolutional nets: the proposed weights against Xavier's of gain sqrt(2), and the identity."""
    train, test = images("cifar10", data_dir, 32 * steps), images("cifar10", data_dir, 500, "test")

    def base(depth: int, seed: int) -> nn.Module:
        return xavier_(pyramid(depth), gain=math.sqrt(2), generator=torch.Generator().manual_seed(seed))

    def treated(depth: int, how: str) -> Callable[[int], nn.Module]:
        def make(seed: int) -> nn.Module:
            model, x = base(depth, seed), train.inputs[:128]
            if how == "orthogonal, scale as printed":
                return orthogonal_representations_(model, x, scale="paper")
            return cure(model, how, x, seed=seed)

        return make

    for depth in (8, 40):
        names = ("none", "orthogonal", "orthogonal, scale as printed", "identity")
        variants = {("xavier" if how == "none" else how): treated(depth, how) for how in names}
        facts = {"part": "depths", "data": "cifar10", "net": f"pyramid {depth} x 32", "depth": depth}
        compete(
            log, f"depths/{depth}", facts, variants, train, test,
            epochs=1, batch=32, lr=CONV_RATES, seeds=SEEDS,
        )  # fmt: skip


def figure6(log: Log, data_dir: str) -> None:
    """The arms of the rank paper's figure 6 on 6400 images of MNIST: 30 x 128, rate 0.01, batch 32, 5 epochs."""
    train, test = images("mnist", data_dir, 6400), images("mnist", data_dir, 1000, "test")
    plain = Spec(depth=30, width=128, outputs=10, weights="xavier_normal", gain=1.0, bias=0.0)
    normed = Spec(depth=30, width=128, outputs=10, weights="torch", bias=0.0, norm="batch", activation="tanh")

    def raised(*levels: int, how: str = "keep", goal: float | None = None) -> Callable[[int], nn.Module]:
        def make(seed: int) -> nn.Module:
            model: Any = build(plain, (1, 28, 28), seed=seed)
            generator = torch.Generator().manual_seed(seed)
            for m in model.modules():
                if isinstance(m, nn.Linear):  # torch's law of the biases, as in the paper's code
                    a = 1 / math.sqrt(m.in_features)
                    nn.init.uniform_(m.bias, -a, a, generator=generator)
            for steps in levels:
                if how == "printed":
                    as_printed(model, train.inputs[:32], steps)
                else:
                    raise_rank_(model, train.inputs[:32], "B", steps=steps, scale=how, goal=goal, generator=generator)
            return model

        return make

    variants = {
        "none": raised(), "high, the paper's steps": raised(5, 75, how="printed"),
        "its scale without steps": raised(5, how="rms", goal=0.0),
        "low, raise_rank_": raised(5, how="rms"), "high, raise_rank_": raised(5, 75, how="rms"),
        "high, raise_rank_(scale='keep')": raised(5, 75), "low, raise_rank_(scale='keep')": raised(5),
        "low, the paper's steps": raised(5, how="printed"),
        "bn tanh": variant(normed, train), "bn tanh, U[0, 2a]": variant(normed, train, "break"),
    }  # fmt: skip
    facts = {"part": "figure6", "data": "mnist", "net": "mlp 30 x 128", "depth": 30}
    for seed, (name, make) in itertools.product(range(SEEDS), variants.items()):
        group = f"figure6/{seed}/{name}"
        if group not in log.done:
            here = {**facts, "ranks": [mean_rank(make(seed), train.inputs[:32])]}
            compete(log, group, here, {name: make}, train, test, epochs=5, batch=32, lr=0.01, seeds=(seed,))


def as_printed(model: Any, x: Tensor, steps: int, rate: float = 0.1) -> None:
    """Rank-raising as in the paper's code: plain gradient steps on 1/r of the pre-activation of layers 4, 8, ... 28."""
    layers = list(model.layers)
    for last in range(4, len(layers) - 1, 4):
        weights = [layer.linear.weight for layer in layers[: last + 1]]
        for _ in range(steps):
            h = x.flatten(1)
            for layer in layers[: last + 1]:
                u = layer.linear(h)
                h = layer.activation(u)
            gram = u @ u.T
            slopes = torch.autograd.grad(gram.square().sum() / gram.trace() ** 2, weights)
            with torch.no_grad():
                for weight, slope in zip(weights, slopes, strict=True):
                    weight -= rate * slope


def mean_rank(model: nn.Module, x: Tensor) -> float:
    """Participation rank, mean over hidden layers 1, 5, 9, 15, 20, 25, 29, in training mode."""
    from normscope import probe

    series = probe(model, x, metrics=("participation_rank",), mode="train", backward=False).series("participation_rank")
    return sum(series[layer] for layer in (1, 5, 9, 15, 20, 25, 29)) / 7


PARTS: dict[str, Callable[..., None]] = {
    "mlp": mlp, "auto": auto, "centring": centring, "depths": depths, "figure6": figure6,
    "vgg": functools.partial(conv, family="vgg", depth=50),
    "resnet": functools.partial(conv, family="resnet", depth=51),
    "longer": longer,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/cures"))
    parser.add_argument(
        "--parts",
        default="mlp,mlp:digits,mlp:cifar10,auto,auto:digits,auto:cifar10,centring,vgg,figure6,depths,resnet,longer",
        help="PART or PART:DATA, ...",
    )
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    log = Log(args.work)
    for part in args.parts.split(","):
        name, _, data = part.partition(":")
        PARTS[name](log, args.data_dir, **({"data": data} if data else {}))


if __name__ == "__main__":
    main()
