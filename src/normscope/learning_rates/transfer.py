"""Transfer: whether a learning rate that was found on small nets holds for a wider and deeper one."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from normscope.call.arguments import check_copy, tensors
from normscope.call.batches import check_batches, pull
from normscope.call.losses import LossLike
from normscope.core.errors import MANY, UsageError, flag, gives_items, shown, whole_number
from normscope.core.faces import Shown
from normscope.core.load import user_error
from normscope.core.spec import Spec
from normscope.data.datasets import Batch
from normscope.data.models import load_model
from normscope.learning_rates._laws import Law, a_layer, fitted, quantile, said
from normscope.learning_rates._parametrisation import advice
from normscope.learning_rates._sizes import Make, Sizes
from normscope.nn import build
from normscope.sweeping import Grid, Store, sweep

if TYPE_CHECKING:
    import polars as pl

#: Numbers of one metric, by (width, depth, seed).
Cells = dict[tuple[int, int, int], float]
#: A rate and its 90 % interval.
Told = tuple[float, float, float]
NOTHING: Told = (math.nan, math.nan, math.nan)
#: How many times wider and deeper the net is that is asked about, by default.
WIDER, DEEPER = 8, 4


@dataclass(frozen=True, repr=False)
class Transfer(Shown):
    """What small nets say of the best learning rate of a large one. Print it, or read the fields.

    width, depth: of the large net. rate, interval: its best rate and 90 % interval, ``measured`` or foretold by its
    edge (`transfer`). by_edge, by_law: (rate, lower, upper) as foretold, by the edge and by the power law of the small
    nets' best rates alone. NaN where ``reason`` says why.
    laws: power laws over width and depth (`Law`), of the ``best`` and ``largest`` rate, of ``edge`` and ``reach``, and
    of the sizes of activations (``activation first``, ``hidden``, ``outputs``), of their changes and of the relative
    updates of the weights after a few steps at one rate (``change ...``, ``update ...``).
    verdict: in words. advice: which parametrisation would make it transfer, a line a kind of layer.
    table: every number, one a row: ``width, depth, seed, metric, value``.
    """

    face = "transfer"
    name: str
    optimizer: str
    width: int
    depth: int
    rate: float
    interval: tuple[float, float]
    measured: bool
    by_edge: Told
    by_law: Told
    laws: Mapping[str, Law]
    verdict: str
    advice: tuple[str, ...]
    table: pl.DataFrame = field(repr=False)
    failed: tuple[str, ...] = ()
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, strings and lists."""
        plain = {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in ("table", "laws")}
        laws = {name: asdict(law) for name, law in self.laws.items()}
        return {**plain, "laws": laws, "numbers": self.table.to_dicts()}

    def __repr__(self) -> str:
        return f"Transfer({self.name}, {self.optimizer}: {self.verdict})"

    def __str__(self) -> str:
        return "\n".join([self.verdict, *(f"  {line}" for line in self.advice)])


def transfer(
    make: Callable[[int, int], nn.Module] | Spec | str,
    inputs: Any,
    targets: Any = None,
    loss: LossLike = None,
    optimizer: str | Callable[[nn.Module], torch.optim.Optimizer] = "sgd",
    *,
    widths: Sequence[int] = (16, 32, 64),
    depths: Sequence[int] = (2, 4, 8),
    to: tuple[int, int] | None = None,
    data: Any = None,
    seeds: int = 3,
    steps: int = 20,
    budget: int = 200,
    measure: bool = True,
    store: Store | str | os.PathLike[str] | None = None,
    **sweeping: Any,
) -> Transfer:
    r"""Whether the best learning rate of small nets is that of a wider and deeper one, and what it is there.

    Each net of ``widths`` x ``depths`` x ``seeds`` gets its best rate over ``steps`` updates by `rates`, and a
    coordinate check (Yang et al. 2022, arXiv 2203.03466, app. D.1): the sizes of activations, outputs and updates over
    the first five steps at one rate. Laws $\log q = c + a\log\mathrm{depth} + b\log\mathrm{width}$ are fitted to
    them by least squares; their intervals are t-intervals (90 %) of the seeds' and sizes' scatter.

    The rate of the large net is measured too, in about 200 passes a seed; ``measure=False`` foretells it alone. It is
    foretold by its *edge*, the largest rate at which the loss does not rise within eight updates, in about 50 passes a
    seed; best rate over edge is taken from the small nets, of which each counts by its width times depth. Beyond the
    small sizes the interval widens by exponents that may be others by 1/4. Nothing is foretold, and ``reason`` says
    why, where the *reach* of a step of the large net, the largest relative change of a layer's outputs a unit of the
    rate, lies outside of what that of the small ones foretells, as where gradients grow exponentially with depth.
    Beside it stands the law of the rate alone. How near this comes: docs/transfer.md. For ReLU nets at the start
    (depth x width)^-p is known (arXiv 2212.07295), and depth^-3/2 with the effective depth (arXiv 2602.07494).

    make: a function (width, depth) -> module with fresh random weights; a `Spec`, whose width and depth are replaced;
        or a MODEL of the command line, ``path/net.py:make``, whose callable takes them by name.
    inputs, targets, loss, data: as in `diagnose`; all nets get the same, n samples a batch.
    optimizer: a name as in `rates`, or a function of a module that returns a ``torch.optim`` optimizer: rates of its
        groups keep their ratios, and the rate is that of the group with the largest.
    to: (width, depth) of the large net; default 8 times the largest width, 4 times the largest depth.
    measure: whether the large net is tried like the small ones, or no more than its first eight steps are.
    store, sweeping: where finished nets are kept, and further options of `sweep` (``workers``, ``executor``,
        ``progress`` ...): the same call goes on where it stopped. A store knows ``make`` by its name alone.
    Raises ``UsageError`` for widths, depths, seeds and sizes that are no whole numbers >= 1, fewer than two seeds with
    one size, and what `rates` cannot use.
    """
    widths, depths = _axis("widths", widths), _axis("depths", depths)
    if to is not None and not (isinstance(to, Sequence) and not isinstance(to, str) and len(to) == 2):
        raise UsageError(f"to must be (width, depth) of the large net; got {shown(to)}. Pass to=(512, 32).")
    width, depth = (WIDER * max(widths), DEEPER * max(depths)) if to is None else to
    whole_number("The width that to= asks for", width, 1), whole_number("The depth that to= asks for", depth, 1)
    whole_number("seeds", seeds, 1, "The usual number is 3.")
    whole_number("steps", steps, 2, "The usual number is 20.")
    whole_number("budget", budget, 3 * steps, "It is in forward and backward passes; the usual number is 200.")
    measure = flag("measure", measure)
    check_batches("data", data)
    check_copy((inputs, targets))
    given = [] if data is None else pull(data, steps + 1)
    named = optimizer if isinstance(optimizer, str) else getattr(optimizer, "__name__", type(optimizer).__name__)
    name, maker = _maker(make, inputs, targets)
    task = Sizes(maker, inputs, targets, loss, given, None if isinstance(optimizer, str) else optimizer)
    task.trials(min(widths), min(depths), 0, named, steps)  # what is misused is told before the sweep
    about = {"of": f"{name} {_digest(inputs, targets, given)} {loss if isinstance(loss, str) else ''}",
             "optimizer": named, "steps": steps}  # fmt: skip
    small = Grid(width=widths, depth=depths, seed=list(range(seeds)))
    large = Grid(width=width, depth=depth, seed=list(range(seeds)))
    kept = store if isinstance(store, Store) else Store(store)
    first = small * Grid(**about, budget=budget) + large * Grid(**about, budget=budget if measure else 0)
    table = _run(first, task, kept, sweeping)
    sizes = set(itertools.product(widths, depths))
    rate = _common(table, sizes)
    if math.isfinite(rate):
        more = _run(small * Grid(**about, budget=budget, rate=rate), task, kept, sweeping)
        table = _joined(table, more)
    return _told(name, named, table, sizes, width, depth)


def _told(
    name: str, optimizer: str, table: pl.DataFrame, sizes: set[tuple[int, int]], width: int, depth: int
) -> Transfer:
    """What the numbers say."""
    failed = tuple(str(e).strip().splitlines()[-1] for e in table["error"].drop_nulls())
    table = table.filter(table["metric"].is_not_null()).select("width", "depth", "seed", "metric", "value")
    cells: dict[str, Cells] = {}
    for w, d, s, metric, value in table.iter_rows():
        cells.setdefault(metric, {})[w, d, s] = value
    small = {m: {k: v for k, v in c.items() if k[:2] in sizes} for m, c in cells.items()}
    large = {m: [math.log(v) for k, v in c.items() if k[:2] == (width, depth) and 0 < v < math.inf]
             for m, c in cells.items()}  # fmt: skip
    laws = {m: law for m, c in small.items() if (law := fitted((w, d, v) for (w, d, _), v in c.items()))}
    if "best" not in laws:
        reason = "too few of the small nets have a rate that trains"
        verdict = f"Nothing can be said of the rate of {optimizer}: {reason}."
        return Transfer(name, optimizer, width, depth, math.nan, NOTHING[1:], False, NOTHING, NOTHING, laws, verdict,
                        (), table, failed, reason)  # fmt: skip
    law = laws["best"]
    by_law = _ends(*law.beyond(width, depth))
    by_edge, reason = _by_edge(small, large, width, depth)
    own = large.get("best", [])
    if own:
        rate, *ends = _ends(statistics.fmean(own), _of_one_more(cells["best"], len(own), law))
    elif by_edge[0] > 0 or reason:
        rate, *ends = by_edge
    else:
        rate, *ends = by_law
        reason = "the large net could not be measured: the power law alone"
    both = ("depth", law.depth, law.depth_interval), ("width", law.width, law.width_interval)
    axes = [axis for axis in both if axis[2] != (0.0, 0.0)]
    words = " and ".join(said(*axis) for axis in axes) or "is of one size only"
    what = f"it is {_in_words(rate, *ends)}" if rate > 0 else f"it cannot be told {reason}"
    if own:
        what += " as measured"
    if own and by_edge[0] > 0:
        what += f"; {_in_words(*by_edge)} is foretold"
    elif rate > 0 and reason:
        what += f"; it cannot be told {reason}" if own else f"; {reason}"
    verdict = f"The best rate of {optimizer} {words}; at width {width} and depth {depth} {what}."
    off = {a for a, e, i in axes if not said(a, e, i).startswith("transfers")}
    return Transfer(name, optimizer, width, depth, rate, (ends[0], ends[1]), bool(own), by_edge, by_law, laws, verdict,
                    advice(optimizer, off), table, failed, reason)  # fmt: skip


def _ends(middle: float, half: float) -> Told:
    """A rate and its interval from their logarithms."""
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def _in_words(rate: float, low: float, high: float) -> str:
    return f"{rate:.3g} ({low:.3g} to {high:.3g})"


def _of_one_more(best: Cells, seeds: int, law: Law) -> float:
    """Half the interval of one more net where the mean of some seeds is known: by the scatter of the seeds of each
    size, that of all sizes together; of one seed a size, by the scatter of the law.
    """
    of: dict[tuple[int, int], list[float]] = {}
    for (w, d, _), rate in best.items():
        if 0 < rate < math.inf:
            of.setdefault((w, d), []).append(math.log(rate))
    free = sum(len(logs) - 1 for logs in of.values())
    if not free:
        return law.quantile * law.scatter * math.sqrt(1 + 1 / seeds)
    squares = sum((x - statistics.fmean(logs)) ** 2 for logs in of.values() for x in logs)
    return quantile(free) * math.sqrt(squares / free * (1 + 1 / seeds))


def _by_edge(small: Mapping[str, Cells], large: Mapping[str, list[float]], width: int, depth: int) -> tuple[Told, str]:
    """The rate of the large net as foretold by its edge; why it cannot be. large: logarithms.

    1. Best rate over edge depends on the size little, and how it does, small sizes do not say: exponents that are
       fitted to it lead further astray than none. So it is a number, and the scatter about it that of sizes and seeds;
       `Law.beyond` widens the interval with the distance.
    2. Small nets count by width x depth. Of a net of width n and depth L the corrections to what holds of large ones
       are of the order 1/n and 1/L, and its seeds scatter the more, the narrower it is.
    3. The mean log edge of the large net is that of a few seeds: its t-interval adds to the law's.
    4. The reach of the large net is measured, and its own law foretells it, by a fit over the same distance. Where it
       lies outside of that interval, the small nets are of another regime and there is no number: so it is where
       gradients grow exponentially with depth, which looks like a power of it as long as nets are shallow.
    """
    best, edges, reaches = (small.get(name, {}) for name in ("best", "edge", "reach"))
    near = [(w, d, reaches[w, d, s]) for w, d, s in best if (w, d, s) in reaches]
    shares = [(w, d, v / edges[w, d, s]) for (w, d, s), v in best.items() if (w, d, s) in edges]
    law, far = fitted(near, larger_count_more=True), large.get("reach", [])
    share, logs = fitted(shares, larger_count_more=True, flat=True), large.get("edge", [])
    if law is None or share is None or not far or not logs:
        return NOTHING, ""
    measured, (foretold, allowed) = statistics.fmean(far), law.beyond(width, depth)
    if abs(measured - foretold) > math.hypot(allowed, _noise(far, law)):
        growth = a_layer([*near, *((width, depth, math.exp(x)) for x in far)])
        return NOTHING, (
            f"from these nets, for a step of it reaches {math.exp(measured - foretold):.2g} times as far as the law of "
            f"theirs says{'' if growth is None else f', by {growth:.2f} times a layer: exponentially with depth'}"
        )
    middle, half = share.beyond(width, depth)
    return _ends(middle + statistics.fmean(logs), math.hypot(half, _noise(logs, share))), ""


def _noise(logs: list[float], law: Law) -> float:
    """Half the interval of the mean of a few seeds; of one, by the scatter of the law."""
    several = len(logs) > 1
    half = quantile(len(logs) - 1) * statistics.stdev(logs) if several else law.quantile * law.scatter
    return half / math.sqrt(len(logs))


def _common(table: pl.DataFrame, sizes: set[tuple[int, int]]) -> float:
    """The rate of the coordinate check: half the least best rate, so that it trains at every size; of two digits."""
    rows = table.filter(table["metric"] == "best").select("width", "depth", "value").iter_rows()
    best = [rate for width, depth, rate in rows if (width, depth) in sizes and math.isfinite(rate)]
    return float(f"{min(best) / 2:.2g}") if best else math.nan


def _run(grid: Grid, task: Sizes, store: Store, sweeping: Mapping[str, Any]) -> pl.DataFrame:
    found = sweep(grid, task, store, **sweeping)
    return found.lazy().collect()


def _joined(*tables: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    return pl.concat(tables, how="diagonal_relaxed")


def _axis(name: str, values: Sequence[int]) -> list[int]:
    if not gives_items(values):
        raise UsageError(f"{name} must be whole numbers, as (16, 32, 64); got {shown(values)}.")
    sizes = itertools.islice(values, MANY)
    found = sorted({whole_number(f"Each of {name}", v, 1, "Pass (16, 32, 64).") for v in sizes})
    if not found:
        raise UsageError(f"{name} must hold at least one size; it is empty. Pass (16, 32, 64).")
    return found


def _digest(*what: Any) -> str:
    """Eight letters that tell one batch from another."""
    found = hashlib.sha256()
    for t in tensors(what):
        found.update(str((t.dtype, tuple(t.shape))).encode() + t.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:8]


@dataclass(frozen=True)
class _Called:
    make: Callable[[int, int], nn.Module]

    def __call__(self, width: int, depth: int, seed: int) -> nn.Module:
        try:
            model = self.make(width, depth)
        except Exception as error:
            raise user_error(f"make({width}, {depth}), of width and depth,", error) from error
        if not isinstance(model, nn.Module):
            raise UsageError(f"make(width, depth) must return an nn.Module; got {type(model).__name__}.")
        return model


@dataclass(frozen=True)
class _Named:
    name: str
    batch: Batch

    def __call__(self, width: int, depth: int, seed: int) -> nn.Module:
        own = f"{self.name}{'' if self.name.endswith(':') else ','}width={width},depth={depth}"
        return load_model(own, self.batch, seed=seed)


@dataclass(frozen=True)
class _Built:
    spec: Spec
    shape: tuple[int, ...]

    def __call__(self, width: int, depth: int, seed: int) -> nn.Module:
        return build(replace(self.spec, width=width, depth=depth), self.shape, seed=seed)


def _maker(make: Any, inputs: Any, targets: Any) -> tuple[str, Make]:
    """A name for the nets, and what makes one of them."""
    classes = None
    whole = isinstance(targets, torch.Tensor) and not (targets.is_floating_point() or targets.is_complex())
    if whole and targets.numel():
        classes = int(targets.max()) + 1
    if isinstance(make, Spec):
        if not isinstance(inputs, torch.Tensor):
            raise UsageError("The nets of a Spec take one tensor; give inputs of shape (n, ...).")
        width_out = classes or (targets.shape[-1] if isinstance(targets, torch.Tensor) and targets.dim() > 1 else 1)
        spec = make if make.outputs is not None else replace(make, outputs=width_out)
        return str(make), _Built(spec, tuple(inputs.shape[1:]))
    if isinstance(make, str):
        return make, _Named(make, Batch(inputs, targets, "given", classes))
    if not callable(make):
        raise UsageError(f"make must be a function (width, depth) -> module, a Spec or a name; got {make!r}.")
    return f"{getattr(make, '__module__', '')}:{getattr(make, '__qualname__', type(make).__qualname__)}", _Called(make)
