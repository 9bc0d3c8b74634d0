"""The data: every batch that was given, the inputs as the first layer gets them, the targets, training beside
validation.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_convert

from normscope.call.arguments import first_tensor, mapped, tensors
from normscope.call.batches import Stored, pull, read_batch
from normscope.call.step import Step
from normscope.call.surroundings import Surroundings
from normscope.call.traceless import locked
from normscope.findings.checkup.samples import (
    against_valid,
    alone,
    balance,
    class_like,
    interleaved,
    leak,
    leak_of_training,
    outliers,
    per_batch,
    sentinel,
)
from normscope.findings.checkup.scene import Scene
from normscope.training.own import wants_a_closure

#: Batches read at most, and seconds after which no more are read (chosen by us: a static check must stay one). Samples
#: that are read twice.
MOST, SECONDS, SAMPLES = 64, 2.0, 64


def load(at: Step, source: Any, most: int = MOST) -> list[tuple[Any, Any]]:
    """(inputs, targets) of the first batches, as the step reads them; random streams as they were."""
    if source is None:
        return []
    if _one_batch(source):
        source = [source]
    start = time.perf_counter()

    def some() -> Any:
        for batch in itertools.islice(source, most):
            yield batch
            if time.perf_counter() - start > SECONDS:
                return

    class Source:
        dataset, num_workers = getattr(source, "dataset", None), getattr(source, "num_workers", 0)
        generator = getattr(source, "generator", None)
        sampler = getattr(source, "sampler", None)

        def __iter__(self) -> Any:
            return some()

    return [(batch, None) if at.step is not None else read_batch(batch) for batch in pull(Source())]


def _one_batch(source: Any) -> bool:
    """Whether a tuple is (inputs, targets), not two batches: as long as each other, and not pairs themselves."""
    if not isinstance(source, tuple) or len(source) != 2:
        return False
    first, second = (next(tensors(x), None) for x in source)
    pairs = all(isinstance(x, tuple | list) and len(x) == 2 for x in source)
    return first is not None and second is not None and first.shape[:1] == second.shape[:1] and not pairs


def firsts(batches: list[tuple[Any, Any]]) -> list[tuple[Tensor, Tensor | None]]:
    """(first input tensor, targets) of batches."""
    out = []
    for inputs, targets in batches:
        found = list(tensors(inputs))
        x = next((t for t in found if t.is_floating_point()), found[0] if found else None)
        if x is not None and x.dim():
            t = targets if isinstance(targets, Tensor) else first_tensor(targets) if targets is not None else None
            out.append((x.detach(), None if t is None else t.detach()))
    return out


def finite(at: Step, batches: list[tuple[Tensor, Tensor | None]]) -> dict[str, Any]:
    """Where the first values lie that are not finite: in which batch, column and share of the rows."""
    own = next((t for t in tensors((at.args, at.kwargs)) if t.is_floating_point()), None)
    everything = [(-1, own, at.targets if isinstance(at.targets, Tensor) else None)]
    everything += [(i, x, t) for i, (x, t) in enumerate(batches)]
    bad: dict[str, Any] = {}
    rows = wrong_rows = 0
    for i, x, t in everything:
        for what, v in (("inputs", x), ("targets", t)):
            if v is None or not v.is_floating_point() or not v.dim() or not len(v):
                continue
            wrong = ~torch.isfinite(v)
            if what == "inputs" and i >= 0:
                rows += len(v)
                wrong_rows += int(wrong.reshape(len(v), -1).any(1).sum())
            if not bool(wrong.any()):
                continue
            at_first = wrong.nonzero()[0].tolist()
            kind = "NaN" if bool(v.isnan().any()) else "an infinite value"
            columns = sorted(set(wrong.nonzero()[:, -1].tolist())) if v.dim() > 1 else []
            if not bad or (bad["batch"] == -1 and i >= 0):
                bad |= {"what": what, "batch": i, "kind": kind, "sample": at_first[0], "columns": columns[:5]}
    if bad:
        bad["rows"] = wrong_rows / rows if rows else float("nan")
    return bad


def finite_loss(at: Step) -> bool:
    """Whether the loss of the batch is a finite number, in spite of what the batch holds."""

    def work() -> float:
        args, kwargs, _ = at.arguments()
        with torch.no_grad():
            return float(at.value(at.whole(args, kwargs), at.own_targets()))

    try:
        return math.isfinite(at.run(work))
    except Exception:  # a model or a loss that refuses such numbers
        return False


def cleaned(at: Step) -> Step:
    """The step with 0 in the place of inputs and targets that are not finite."""
    return replace(at, inputs=clean(at.inputs), targets=clean(at.targets), data=at.data)


def _rewritten(loaders: Sequence[Any]) -> dict[str, Any] | None:
    """The data set that writes into what it holds when it is read: a sample is another one, with the same random
    numbers, once it was read with others. A cache that fills is none.
    """
    start = time.perf_counter()
    with locked():
        around, stored = Surroundings(set()), Stored(*loaders)

        def read(data: Any, i: int, seed: int) -> list[Tensor]:
            around.seed(seed)
            stored.reach.restore_generators()
            return [t.detach().clone() for t in tensors(default_convert(data[i]))]

        try:
            for data in stored.sets:
                others = done = 0
                with suppress(Exception):  # one that is not read by numbers
                    while done < min(len(data), SAMPLES) and time.perf_counter() - start < SECONDS / 4:
                        first, _, again = (read(data, done, seed) for seed in (0, 1, 0))
                        done += 1
                        others += any(map(_another, first, again))
                if others and stored.changed:
                    return {"name": type(data).__name__, "others": others, "read": done}
        finally:
            stored.restore()
            around.restore()
    return None


def _another(one: Tensor, other: Tensor) -> bool:
    """Whether numbers are others, beyond what a cache of coarser numbers makes of them."""
    if one.shape != other.shape or one.is_complex():
        return False
    a, b = torch.nan_to_num(one.double()), torch.nan_to_num(other.double())
    return bool(((a - b).abs() > 0.01 * a.abs().amax()).any()) if a.numel() else False


def clean(value: Any) -> Any:
    """0 in the place of what is not finite."""

    def cleared(t: Tensor) -> Tensor:
        return torch.where(torch.isfinite(t), t, torch.zeros_like(t)) if t.is_floating_point() else t

    return mapped(value, cleared)


#: So often an id is to be seen, on average, for its row to be learnt (chosen by us).
SPARSE = 16


def of_data(
    scene: Scene,
    batches: list[tuple[Tensor, Tensor | None]],
    valid: list[tuple[Tensor, Tensor | None]],
    loaders: Sequence[Any] = (),
) -> dict[str, Any]:
    """Numbers about the data; see the rules NS8xx. loaders: whose data sets are read."""
    found: dict[str, Any] = {"batches": len(batches), "rewritten": _rewritten(loaders)}
    found |= _first_layer(scene)
    found |= _repeats(batches)
    if found.get("repeated") == 1:
        found["all_at_once"] = _all_at_once(scene, batches[0], valid)
    found |= _tokens(scene) | _one_id(scene) | _fields(scene)
    found["small_norm"] = _norm_counts(scene, batches)
    each = [(c.module.num_embeddings, c.data.numel()) for c in scene.weighted
            if isinstance(c.module, nn.Embedding) and c.data is not None]  # fmt: skip
    share = sum(len(x) for x, _ in batches) / max(1, scene.at.rows.n)  # of all batches, to this one
    found["sparse"] = any(SPARSE * rows > share * got > 0 for rows, got in each)
    own = first_tensor(list(tensors((scene.at.args, scene.at.kwargs))))
    t = scene.targets if isinstance(scene.targets, Tensor) else None
    pooled = _pooled(batches) or ((own, t) if own is not None and t is not None else None)
    found |= _targets(t)
    several = [x.float() for x in tensors(scene.targets) if x.is_floating_point() and x.dim()]
    several = [x for x in several if len(x.flatten()[:1000].unique()) > 2]  # two numbers are a mask
    if t is None and len(list(tensors(scene.targets))) > 1 and several:
        found["largest_target"] = max(float(x.square().mean().sqrt()) for x in several)
    found |= class_like(pooled[1] if pooled is not None else t)
    found["equal_inputs"] = next((
        [i, j] for (i, a), (j, b) in itertools.combinations(enumerate(tensors((scene.at.args, scene.at.kwargs))), 2)
        if a.is_floating_point() and a.dim() > 1 and a.numel() > 32 and a.shape == b.shape and torch.equal(a, b)
        and bool((a != a.flatten()[0]).any())  # states begin as zeros
    ), None)  # fmt: skip
    few, every = found.get("distinct", [1, 1])
    again = found.get("repeated", 0.0) >= 0.5 or few < every / 2
    found["sentinel"] = sentinel(_pooled(batches[:1]) if again else pooled)
    found["alone"] = alone(own)
    found["interleaved"] = interleaved(own)
    found["closure"] = scene.at.optimizer is not None and wants_a_closure(scene.at.optimizer)  # all data at once
    if pooled is not None:
        found |= leak(*pooled) | outliers(pooled[1])
        found |= balance(*pooled, batches)
        found |= per_batch(batches)
    other = _pooled(valid)
    if pooled is not None and other is not None:
        found |= against_valid(pooled, other) | leak_of_training(pooled, other)
    return found


def _pooled(batches: list[tuple[Tensor, Tensor | None]], most: int = 2048) -> tuple[Tensor, Tensor] | None:
    pairs = [(x, t) for x, t in batches if t is not None and t.dim() and len(t) == len(x)]
    if not pairs:
        return None
    x0, t0 = pairs[0]
    pairs = [(x, t) for x, t in pairs if x.shape[1:] == x0.shape[1:] and t.shape[1:] == t0.shape[1:]]
    if x0[0].numel() * min(most, sum(len(x) for x, _ in pairs)) > 2e7:
        most = max(16, int(2e7 / x0[0].numel()))
    return torch.cat([x for x, _ in pairs])[:most], torch.cat([t for _, t in pairs])[:most]


def _first_layer(scene: Scene) -> dict[str, Any]:
    """The data as the first layer with weights gets it: row norms about the mean, rms, standard deviations of
    columns.
    """
    for c in scene.weighted:
        x = c.data
        if x is None or not x.is_floating_point() or isinstance(c.module, nn.Embedding | nn.EmbeddingBag):
            continue
        if isinstance(c.module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm):
            return {"normed_input": True}
        if not bool(torch.isfinite(x).all()) or x.dim() < 2:
            return {}
        x = x.float()
        found: dict[str, Any] = {"first_layer": {
            "module": c.name, "rms": float(x.square().mean().sqrt()), "size": x[0].numel(),
            "row": float(x.flatten(1).norm(dim=1).median()), "largest": float(x.abs().max()),
        }}  # fmt: skip
        convolution = isinstance(c.module, nn.modules.conv._ConvNd)
        if not convolution and 2 <= x.shape[-1] <= 5000:
            std = x.flatten(0, -2).std(0)
            live = std[std > 0]
            if len(live) >= 2:
                found["first_layer"] |= {
                    "column_ratio": float(live.max() / live.min()), "widest": int(std.argmax()),
                    "widest_std": float(live.max()), "narrowest_std": float(live.min()),
                }  # fmt: skip
        return found
    return {}


def _repeats(batches: list[tuple[Tensor, Tensor | None]]) -> dict[str, Any]:
    if len(batches) < 4:
        return {}
    prints = [(tuple(x.shape), float(x.double().sum()), float(x.double().square().sum())) for x, _ in batches]
    again = sum(
        p in prints[:i] and any(torch.equal(x, y) for (y, _) in batches[:i] if y.shape == x.shape)
        for i, ((x, _), p) in enumerate(zip(batches, prints, strict=True))
    )
    found: dict[str, Any] = {"repeated": again / (len(batches) - 1)}
    rows = [x.double().flatten(1) for x, _ in batches if x.is_floating_point() and x.dim() > 1 and x[0].numel() >= 4]
    if sum(map(len, rows)) >= 200 and any(bool((x != x.round()).any()) for x in rows):
        at = torch.Generator().manual_seed(0)
        mixed = {x.shape[1]: torch.rand(x.shape[1], generator=at, dtype=x.dtype) for x in rows}
        sums = torch.cat([torch.stack([x @ mixed[x.shape[1]].to(x), x.square().sum(1)], 1) for x in rows])
        found["distinct"] = [len(sums.unique(dim=0)), len(sums)]
    if rows:
        found["empty"] = sum(int((x == 0).all(1).sum()) for x in rows) / sum(map(len, rows))
    return found


def _all_at_once(scene: Scene, batch: tuple[Tensor, Tensor | None], valid: list[tuple[Tensor, Tensor | None]]) -> bool:
    """Whether the one batch is all there is, as the nodes of a graph are: the validation data are the same inputs with
    other targets, or the model holds something of each pair of its rows, or the optimizer is for whole gradients.
    """
    x, n = batch[0], len(batch[0])
    pairs = [b for b in scene.at.root.buffers() if b.shape[-2:] == (n, n)]
    whole = isinstance(scene.at.optimizer, torch.optim.Rprop)  # signs of whole gradients: all data at once
    return whole or bool(pairs) or any(v.shape == x.shape and torch.equal(v, x) for v, _ in valid)


def _tokens(scene: Scene) -> dict[str, Any]:
    """Ids as they are given beside ids as the embedding gets them."""
    given_all = list(tensors((scene.at.args, scene.at.kwargs)))
    ids = [t for t in given_all if not t.is_floating_point() and t.dtype != torch.bool]
    for c in scene.weighted:
        if c.data is None or not isinstance(c.module, nn.Embedding | nn.EmbeddingBag) or c.data.is_floating_point():
            continue
        got, rows = len(c.data.unique()), c.module.num_embeddings
        cast = {int(v) for t in given_all if t.is_floating_point() for v in t.long().clamp_min(0).unique()[:rows]}
        few = not ids and 16 <= rows <= c.data.numel() and got <= max(2, rows // 8)
        if few and cast.issuperset(c.data.unique().tolist()):
            return {"few_rows": {"module": c.name, "got": got, "rows": rows}}
        for x in ids:
            if x.numel() != c.data.numel() or x.numel() < 32:
                continue
            given, got = len(x.unique()), c.data.unique(return_counts=True)
            share = float(got[1].max()) / x.numel()
            return {"tokens": {
                "module": c.name, "given": given, "got": len(got[0]), "largest_id": int(x.max()),
                "rows": c.module.num_embeddings, "one_row": share, "row": int(got[0][got[1].argmax()]),
                "given_one": float(x.unique(return_counts=True)[1].max()) / x.numel(), "unknown": _unknown(x),
            }}  # fmt: skip
    return {}


def _fields(scene: Scene) -> dict[str, Any]:
    """Columns of ids that together have as many values as their embedding has rows, and reach its first ones alone."""
    for c in scene.weighted:
        x = c.data
        if x is None or not isinstance(c.module, nn.Embedding | nn.EmbeddingBag):
            continue
        if x.is_floating_point() or x.dim() != 2 or not 2 <= x.shape[1] <= 64 or len(x) < 32:
            continue
        rows, values = c.module.num_embeddings, int((x.amax(0) + 1).sum())
        if 0.9 * rows <= values <= rows and int(x.max()) + 1 <= 2 * rows / 3:
            told = {"rows": rows, "values": values, "columns": x.shape[1], "largest": int(x.max()), "module": c.name}
            return {"fields": told}
    return {}


def _unknown(x: Tensor) -> dict[str, float]:
    """The commonest token, and its share of all that are not padding (one token that fills an end of the rows)."""
    if x.dim() != 2 or x.shape[1] < 4:
        return {}
    inner = torch.ones_like(x, dtype=torch.bool)
    for flipped in (x.flip(1), x):
        pad = flipped[:, 0].mode().values
        run = (flipped == pad).long().cumprod(1).bool()
        if int((x == pad).sum()) <= 1.05 * int(run.sum()) + 5 + len(
            x
        ):  # at this end, and once more as a first position
            inner &= ~(run if flipped is x else run.flip(1))
    kinds, counts = x[inner].unique(return_counts=True)
    return (
        {"id": int(kinds[counts.argmax()]), "share": float(counts.max() / counts.sum()), "kinds": len(kinds)}
        if len(kinds)
        else {}
    )


def _one_id(scene: Scene) -> dict[str, Any]:
    """The first embedding of which all ids of the batch are one; or nine tenths, of ids that came as floating
    numbers.
    """
    cast = all(t.is_floating_point() for t in tensors((scene.at.args, scene.at.kwargs)))
    for c in scene.weighted:
        looked_up = [x.data for x in scene.weighted if x.module is c.module]  # a decoder begins with one id for all
        ids = [x.flatten() for x in looked_up if x is not None]
        if not isinstance(c.module, nn.Embedding) or len(ids) < len(looked_up) or sum(map(len, ids)) < 32:
            continue
        kinds, counts = torch.cat(ids).unique(return_counts=True)
        share = float(counts.max() / counts.sum())
        if c.module.num_embeddings > 3 and (len(kinds) == 1 or (cast and len(kinds) == 2 and share > 0.9)):
            row = int(kinds[counts.argmax()])
            return {"one_id": {"module": c.name, "rows": c.module.num_embeddings, "id": row, "share": share}}
    return {}


def _norm_counts(scene: Scene, batches: list[tuple[Tensor, Tensor | None]]) -> dict[str, Any]:
    """Values a channel that a batch norm in training mode averages over, in batches as the loader gives them."""
    n = scene.at.rows.n
    sizes = sorted(len(x) for x, _ in batches) or [n]
    typical = sizes[len(sizes) // 2]
    for c in scene.weighted + [c for c in scene.calls if not c.weighted]:
        if isinstance(c.module, nn.modules.batchnorm._BatchNorm):
            per_sample = c.size_in / c.module.num_features
            return {"module": c.name, "count": per_sample * typical, "batch": typical}
    return {}


def _targets(t: Tensor | None) -> dict[str, Any]:
    if t is None or not t.is_floating_point() or not t.numel():
        return {}
    return {"target_rms": float(t.float().square().mean().sqrt()), "target_std": float(t.float().std())}
