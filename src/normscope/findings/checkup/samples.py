"""What samples hold: their targets among the features, classes, and training beside validation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

#: Columns from which on they are taken for pixels, all of one kind (chosen by us).
MANY = 64
#: Outliers: so many standard deviations (of the middle half) away, at most this share of the rows, of so many columns.
OUT, FEW, COLUMNS = 100.0, 0.01, 16


def outliers(t: Tensor) -> dict[str, Any]:
    """A few targets so far from all others that they make nearly all of the squared error: the worst column."""
    table = t.double().reshape(len(t), -1)
    if not t.is_floating_point() or len(t) < 64 or table.shape[1] > COLUMNS or not bool(torch.isfinite(table).all()):
        return {}
    apart = (table - table.median(0).values).abs()
    wide = 1.4826 * apart.median(0).values
    out = (apart > OUT * wide) & (wide > 0)
    share = (apart.square() * out).sum(0) / apart.square().sum(0).clamp_min(1e-300)
    few = (out.double().mean(0) <= FEW) & (share > 0.9)
    if not bool(few.any()):
        return {}
    j = int((share * few).argmax())
    told = {"count": int(out[:, j].sum()), "of": len(t), "column": j, "share": float(share[j])}
    return {"outliers": told | {"largest": float(apart[:, j].max() / wide[j])}}


def alone(x: Tensor | None) -> bool:
    """Whether each sample has mean 0 and standard deviation 1 by itself, over all its entries or over its time axis."""
    if x is None or not x.is_floating_point() or x.dim() < 2 or len(x) < 16 or x[0].numel() < 16:
        return False
    x = x.detach()
    ways = [x.double().flatten(1)] + ([x.double().transpose(1, 2).flatten(0, 1)] if x.dim() == 3 else [])
    for rows in (w for w in ways if w.shape[1] >= 8):
        std = rows.std(1)
        if float((std - std.mean()).abs().max()) < 1e-3 and bool((rows.mean(1).abs() < 1e-3).all()):
            return bool(std.mean() > 0.5)
    return False


def sentinel(pooled: tuple[Tensor, Tensor] | None) -> dict[str, Any]:
    """A value, far outside of all others, that stands again and again in a column of the inputs or of the targets:
    -999.
    """
    if pooled is None:
        return {}
    for what, v in (("inputs", pooled[0]), ("targets", pooled[1])):
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
            if table.shape[1] > MANY:  # pixels, of which one is nearly always the same: no value that others have
                hit &= (end == table.max()) | (end == table.min())
            if bool(hit.any()):
                j = int(hit.long().argmax())
                if (
                    len(pooled[0][there[:, j]].reshape(int(there[:, j].sum()), -1).unique(dim=0)) < 2
                ):  # one sample, drawn again
                    continue
                return {
                    "what": what,
                    "column": j,
                    "value": float(end[j]),
                    "share": float(often[j]),
                    "wide": float(wide[j]),
                }
    return {}


def class_like(t: Tensor | None) -> dict[str, Any]:
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


def leak(x: Tensor, t: Tensor) -> dict[str, Any]:
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


def leak_of_training(train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """The column that goes with the target in the training data, and not in the validation data."""
    both = leak(*train).get("leak"), leak(*valid).get("leak")
    if both[0] is None or both[1] is None:
        return {}
    x, t = valid[0].double(), valid[1].double().reshape(len(valid[1]), -1)
    column = x[:, both[0]["column"]]
    there = abs(float(torch.corrcoef(torch.stack([column, t[:, 0]]))[0, 1].nan_to_num(0.0)))
    return {"leak_of_training": both[0] | {"valid": there}}


def _labels(t: Tensor) -> Tensor | None:
    """One class a sample: integers (n,), or zeros and ones of any type, one a sample."""
    if t.dtype is torch.bool or t.is_floating_point():
        return t.flatten().long() if t.numel() == len(t) and bool(((t == 0) | (t == 1)).all()) else None
    return t if t.dim() == 1 else None


def balance(x: Tensor, t: Tensor, batches: list[tuple[Tensor, Tensor | None]]) -> dict[str, Any]:
    """The share of the commonest class, batches of one class, and how often two samples are of one class."""
    labels = _labels(t)
    if labels is None or len(t) < 64:
        return {}
    values, counts = labels.unique(return_counts=True)
    found: dict[str, Any] = {"majority": float(counts.max()) / len(t), "classes": len(values)}
    parts = [b for b in (_labels(b) for _, b in batches if b is not None and len(b) >= 4) if b is not None]
    if len(parts) >= 3:
        found["pure_batches"] = sum(len(b.unique()) == 1 for b in parts) / len(parts)
        alike = [float((b[:, None] == b).float().mean()) for b in parts]
        found["alike"] = {"within": sum(alike) / len(alike), "overall": float((counts / len(t)).square().sum())}
    return found


def per_batch(batches: list[tuple[Tensor, Tensor | None]]) -> dict[str, Any]:
    """How often the nearest neighbour of a sample has its label: within its own batch, and among all other batches."""
    pairs = [
        (x.float().reshape(len(x), -1), t)
        for x, t in batches
        if t is not None and t.dim() == 1 and len(t) == len(x) >= 16
    ]
    classes = [t for _, t in pairs if not t.is_floating_point()]
    if len(pairs) < 4 or len(classes) < len(pairs) or pairs[0][0].shape[1] > 20_000:
        return {}
    pairs = [p for p in pairs if p[0].shape[1] == pairs[0][0].shape[1]][: max(4, 512 // len(pairs[0][0]))]
    x, t = torch.cat([x for x, _ in pairs]), torch.cat([t for _, t in pairs])
    if not 2 <= len(t.unique()) <= 50 or not bool(torch.isfinite(x).all()):
        return {}
    of = torch.cat([torch.full((len(t),), i) for i, (_, t) in enumerate(pairs)])
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    gaps = torch.cdist(x, x)
    gaps.fill_diagonal_(math.inf)
    same = of[:, None] == of
    within, across = (
        float((t[gaps.masked_fill(hide, math.inf).argmin(1)] == t).float().mean()) for hide in (~same, same)
    )
    chance = float((t.unique(return_counts=True)[1] / len(t)).square().sum())
    return {"per_batch": {"within": within, "across": across, "chance": chance, "n": len(t)}}


def against_valid(train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Scale and offset of the validation inputs, and whose nearest neighbour has their label: of which data."""
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
            found["valid"] = _beside(a, b)
    if t.is_floating_point() and min(len(t), len(tv)) >= 32 and t.shape[1:] == tv.shape[1:] and float(t.std()) > 0:
        found["valid_targets"] = _beside(t.float(), tv.float())
    classes = not t.is_floating_point() and t.dim() == 1 and 2 <= len(t.unique()) <= 50
    if not classes or not x.is_floating_point() or len(xv) < 64 or len(x) < 200 or x[0].numel() > 20_000:
        return found
    a, b = x.float().reshape(len(x), -1), xv.float().reshape(len(xv), -1)
    if not (bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all())):
        return found
    mean, std = a.mean(0), a.std(0).clamp_min(1e-6)
    a, b = (a - mean) / std, (b - mean) / std
    near = t[torch.cdist(b, a).argmin(1)]
    from_train = float((near == tv).float().mean())
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
    names = {int(c): near[tv == c].mode().values for c in tv.unique() if int((tv == c).sum()) >= 8}
    pure = [float((near[tv == c] == m).float().mean()) for c, m in names.items()]
    others = {c: int(m) for c, m in names.items() if int(m) != c}
    if len(names) > 1 and min(pure) > 0.5 and len({int(m) for m in names.values()}) == len(names) and others:
        found["renamed"] = {"classes": others, "of": len(names), "purity": min(pure)}
    return found


def _beside(a: Tensor, b: Tensor) -> dict[str, float]:
    """How far the mean of ``b`` is from that of ``a``, and how wide it is, in standard deviations of ``a``."""
    return {"shift": abs(float(a.mean() - b.mean())) / float(a.std()), "ratio": float(b.std() / a.std())}


def interleaved(x: Tensor | None) -> dict[str, float]:
    """Of images (n, c, h, w), c 3 or 4: the correlation of a pixel with the next row, and with the c-th row below.

    In photographs the next row is always the more alike; in pixels (h, w, c) that were only viewed as (c, h, w) it is
    the c-th, for it holds the pixel below.
    """
    if (
        x is None
        or not x.is_floating_point()
        or x.dim() != 4
        or x.shape[1] not in (3, 4)
        or x.shape[2] < 3 * x.shape[1]
    ):
        return {}
    x = x[:256].float()
    x = x - x.mean((2, 3), keepdim=True)
    size = float(x.square().mean())

    def alike(rows: int) -> float:
        return float((x[:, :, rows:] * x[:, :, :-rows]).mean()) / max(size, 1e-30)

    return {"next": alike(1), "below": alike(x.shape[1])}
