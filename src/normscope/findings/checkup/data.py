"""The data: every batch that was given, the inputs as the first layer gets them, the targets, training beside
validation.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import first_tensor, mapped, tensors
from normscope.call.batches import pull, read_batch
from normscope.call.step import Step
from normscope.findings.checkup.scene import Scene

#: Batches read at most, and seconds after which no more are read (chosen by us: a static check must stay one).
MOST, SECONDS = 64, 2.0


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


def clean(value: Any) -> Any:
    """0 in the place of what is not finite."""

    def cleared(t: Tensor) -> Tensor:
        return torch.where(torch.isfinite(t), t, torch.zeros_like(t)) if t.is_floating_point() else t

    return mapped(value, cleared)


def of_data(
    scene: Scene, batches: list[tuple[Tensor, Tensor | None]], valid: list[tuple[Tensor, Tensor | None]]
) -> dict[str, Any]:
    """Numbers about the data; see the rules NS8xx."""
    found: dict[str, Any] = {"batches": len(batches)}
    found |= _first_layer(scene)
    found |= _repeats(batches)
    found |= _tokens(scene) | _one_id(scene)
    found["small_norm"] = _norm_counts(scene, batches)
    own = first_tensor(list(tensors((scene.at.args, scene.at.kwargs))))
    t = scene.targets if isinstance(scene.targets, Tensor) else None
    pooled = _pooled(batches) or ((own, t) if own is not None and t is not None else None)
    found |= _targets(t)
    several = [x.float() for x in tensors(scene.targets) if x.is_floating_point() and x.dim()]
    if t is None and len(list(tensors(scene.targets))) > 1 and several:
        found["largest_target"] = max(float(x.square().mean().sqrt()) for x in several)
    found |= _class_like(pooled[1] if pooled is not None else t)
    found["equal_inputs"] = next((
        [i, j] for (i, a), (j, b) in itertools.combinations(enumerate(tensors((scene.at.args, scene.at.kwargs))), 2)
        if a.is_floating_point() and a.dim() > 1 and a.numel() > 32 and a.shape == b.shape and torch.equal(a, b)
    ), None)  # fmt: skip
    found["sentinel"] = _sentinel(pooled if found.get("repeated", 0.0) < 0.5 else _pooled(batches[:1]))
    if pooled is not None:
        found |= _leak(*pooled)
        found |= _balance(*pooled, batches)
    other = _pooled(valid)
    if pooled is not None and other is not None:
        found |= _against_valid(pooled, other) | _leak_of_training(pooled, other)
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
    return {"repeated": again / (len(batches) - 1)}


def _tokens(scene: Scene) -> dict[str, Any]:
    """Ids as they are given beside ids as the embedding gets them."""
    ids = [t for t in tensors((scene.at.args, scene.at.kwargs)) if not t.is_floating_point() and t.dtype != torch.bool]
    for c in scene.weighted:
        if c.data is None or not isinstance(c.module, nn.Embedding | nn.EmbeddingBag) or c.data.is_floating_point():
            continue
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


def _unknown(x: Tensor) -> dict[str, float]:
    """The commonest token, and its share of all that are not padding (one token that fills an end of the rows)."""
    if x.dim() != 2 or x.shape[1] < 4:
        return {}
    inner = torch.ones_like(x, dtype=torch.bool)
    for flipped in (x.flip(1), x):
        pad = flipped[:, 0].mode().values
        run = (flipped == pad).long().cumprod(1).bool()
        if int((x == pad).sum()) <= 1.05 * int(run.sum()) + 5:  # it stands at this end only
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
        if not isinstance(c.module, nn.Embedding) or c.data is None or c.data.numel() < 32:
            continue
        kinds, counts = c.data.unique(return_counts=True)
        share = float(counts.max()) / c.data.numel()
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


def _sentinel(pooled: tuple[Tensor, Tensor] | None) -> dict[str, Any]:
    """A value, far outside of all others, that stands again and again in a column of the inputs or of the targets:
    -999.
    """
    for what, v in (("inputs", pooled[0]), ("targets", pooled[1])) if pooled is not None else ():
        if not v.is_floating_point() or v.dim() > 2 or len(v) < 64 or v.numel() > 1000 * len(v):
            continue
        table = v.reshape(len(v), -1)
        for end in (table.min(0).values, table.max(0).values):
            there = table == end
            often = there.float().mean(0)
            rest = torch.where(there, torch.nan, table)
            middle = rest.nanmedian(0).values
            wide = (rest - middle).abs().nan_to_num(0.0).amax(0)
            far = (end - middle).abs() > 10 * wide.clamp_min(1e-12)
            hit = (often >= max(2 / len(table), 0.002)) & (often < 0.5) & far & (wide > 0)
            if bool(hit.any()):
                j = int(hit.long().argmax())
                return {
                    "what": what,
                    "column": j,
                    "value": float(end[j]),
                    "share": float(often[j]),
                    "wide": float(wide[j]),
                }
    return {}


def _class_like(t: Tensor | None) -> dict[str, Any]:
    """How many classes the targets look like: the whole numbers from 0 on, about equally often, to the noise of the
    sample.
    """
    if t is None or not t.is_floating_point() or t.numel() < 32 or t.numel() != len(t):
        return {}
    values, counts = t.unique(return_counts=True)
    k = len(values)
    if k < 3 or t.numel() < 8 * k or not bool((values == torch.arange(k).to(values)).all()):
        return {}
    fewest = float(counts.min())
    return {"class_like": k if fewest + 2 * math.sqrt(fewest) > 0.6 * t.numel() / k else 0}


def _leak(x: Tensor, t: Tensor) -> dict[str, Any]:
    """The input column that an affine function turns into the target, in every sample."""
    if not x.is_floating_point() or x.dim() != 2 or not 2 <= x.shape[1] <= 5000 or len(x) < 32:
        return {}
    y = t.double().reshape(len(t), -1)
    if y.shape[1] != 1 or float(y.std()) == 0 or (not t.is_floating_point() and len(t.unique()) > 2):
        return {}
    a = x.double() - x.double().mean(0)
    b = y - y.mean(0)
    r = (a * b).sum(0) / (a.norm(dim=0) * b.norm()).clamp_min(1e-30)
    best = int(r.abs().nan_to_num(0).argmax())
    return {"leak": {"column": best, "correlation": float(r[best].abs().nan_to_num(0))}}


def _leak_of_training(train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """The column that goes with the target in the training data, and not in the validation data."""
    both = _leak(*train).get("leak"), _leak(*valid).get("leak")
    if both[0] is None or both[1] is None:
        return {}
    x, t = valid[0].double(), valid[1].double().reshape(len(valid[1]), -1)
    column = x[:, both[0]["column"]]
    there = abs(float(torch.corrcoef(torch.stack([column, t[:, 0]]))[0, 1].nan_to_num(0.0)))
    return {"leak_of_training": both[0] | {"valid": there}}


def _balance(x: Tensor, t: Tensor, batches: list[tuple[Tensor, Tensor | None]]) -> dict[str, Any]:
    if t.is_floating_point() or t.dim() != 1 or len(t) < 64 or t.dtype is torch.bool:
        return {}
    values, counts = t.unique(return_counts=True)
    found: dict[str, Any] = {"majority": float(counts.max()) / len(t), "classes": len(values)}
    pure = [len(b.unique()) == 1 for _, b in batches if b is not None and b.dim() == 1 and len(b) >= 4]
    if len(pure) >= 3:
        found["pure_batches"] = sum(pure) / len(pure)
        alike = [
            float((b[:, None] == b).float().mean())
            for _, b in batches
            if b is not None and b.dim() == 1 and len(b) >= 4
        ]
        found["alike"] = {"within": sum(alike) / len(alike), "overall": float((counts / len(t)).square().sum())}
    return found


def _against_valid(train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]) -> dict[str, Any]:
    (x, t), (xv, tv) = train, valid
    found: dict[str, Any] = {}
    if x.shape[1:] != xv.shape[1:]:
        return found
    if x.is_floating_point() and len(x) >= 32 and len(xv) >= 32:
        a, b = x.float(), xv.float()
        if (
            bool(torch.isfinite(a).all())
            and bool(torch.isfinite(b).all())
            and float(a.std()) > 0
            and float(b.std()) > 0
        ):
            found["valid"] = {
                "shift": abs(float(a.mean() - b.mean())) / float(a.std()),
                "ratio": float(b.std() / a.std()),
            }
    classes = not t.is_floating_point() and t.dim() == 1 and 2 <= len(t.unique()) <= 50
    if not classes or not x.is_floating_point() or len(xv) < 64 or len(x) < 200 or x[0].numel() > 20_000:
        return found
    a, b = x.float().flatten(1), xv.float().flatten(1)
    if not (bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all())):
        return found
    mean, std = a.mean(0), a.std(0).clamp_min(1e-6)
    a, b = (a - mean) / std, (b - mean) / std
    from_train = float((t[torch.cdist(b, a).argmin(1)] == tv).float().mean())
    d = torch.cdist(b, b).fill_diagonal_(math.inf)
    from_valid = float((tv[d.argmin(1)] == tv).float().mean())
    k = min(len(a), 800)
    d = torch.cdist(a[:k], a[:k]).fill_diagonal_(math.inf)
    among_train = float((t[:k][d.argmin(1)] == t[:k]).float().mean())
    share = tv.unique(return_counts=True)[1].float() / len(tv)
    mine = t.unique(return_counts=True)[1].float() / len(t)
    chance = float(share.square().sum())
    found["neighbours"] = {
        "train_to_valid": from_train, "valid": from_valid, "train": among_train, "chance": chance,
        "train_chance": float(mine.square().sum()), "n_valid": len(tv), "n_train": k,
    }  # fmt: skip
    return found
