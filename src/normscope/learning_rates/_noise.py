"""The gradient noise scale: how large a batch must be before its gradient is no longer mostly noise."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import mapped, tensors
from normscope.call.batches import pull, read_batch
from normscope.call.losses import COTANGENT, LossLike
from normscope.call.step import Step
from normscope.call.traceless import alone
from normscope.core.errors import UsageError, whole_number
from normscope.core.memory import check_room
from normscope.training.short import ShortRuns


@dataclass(frozen=True)
class GradientNoise:
    r"""What disjoint parts of a batch said of the gradient. Print it, or read the fields.

    scale: the simple noise scale $B = \mathrm{tr}(\Sigma) / |G|^2$, in samples: far smaller batches waste steps, far
    larger ones samples. Infinite where |G|^2 is not told from zero. stderr: its standard error, by leaving out each
    part in turn (jackknife), as are the others. signal: $|G|^2$, unbiased. noise: $\mathrm{tr}(\Sigma)$, of one sample.
    parts, size: how many parts of how many samples. reason: what is not known, "" where all is.
    """

    scale: float
    stderr: float
    signal: float
    signal_stderr: float
    noise: float
    noise_stderr: float
    parts: int
    size: int
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers and strings."""
        return asdict(self)

    def __str__(self) -> str:
        text = f"gradient noise scale {self.scale:.3g} ± {self.stderr:.2g} samples: tr(Σ) {self.noise:.3g}, |G|² "
        text += f"{self.signal:.3g} ± {self.signal_stderr:.2g}, of {self.parts} parts of {self.size}"
        return text + (f"; {self.reason}" if self.reason else "")


@alone
def gradient_noise(
    model: nn.Module | Step,
    inputs: Any = None,
    targets: Any = None,
    loss: LossLike = None,
    *,
    data: Any = None,
    parts: int = 8,
    mode: str | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> GradientNoise:
    r"""The simple noise scale $\mathrm{tr}(\Sigma) / |G|^2$ of the loss gradient (McCandlish et al. 2018).

    From the gradients $g_1 \dots g_K$ of K disjoint parts of b samples each: $|G|^2$ is the mean of $g_i \cdot g_j$
    over pairs, $\mathrm{tr}(\Sigma) = b \frac{1}{K-1} \sum_k |g_k - \bar g|^2$; both are unbiased, which the
    difference of a small and a large batch that contains it would be too, but not with batch norm. In training mode
    batch norm couples the samples of a batch, so that it has no gradients of single samples: each part is a batch of
    its own here, and the answer is that of batches of b. The loss must be a mean over samples.

    Null value: of gradients that are noise alone the estimate of |G|^2 is as often below zero as above, and the scale
    infinite; hold ``signal`` against ``signal_stderr``.
    parts: how many (at least 3; more tell the error better). data: each of its batches is a part, ``parts`` at most.
    model, inputs, targets, loss, mode, samples, seed: as in `diagnose`. Nothing is left behind.
    Raises ``UsageError`` without a loss, and where the batch does not divide into parts of equal size.
    """
    whole_number("parts", parts, 3, "An error needs three of them; the usual number is 8.", most=10_000)
    if not isinstance(model, Step):
        mode = "train" if mode is None else mode
    at = Step.of(model, inputs, targets, loss, mode=mode, seed=seed, samples=samples, data=data)
    runs, size = _parts(at, parts)
    count = len(runs.batches)
    room = sum(p.numel() * p.element_size() for p in at.root.parameters() if p.requires_grad)
    check_room(count * room, f"{count} gradients of this model", "Take fewer: parts=3.")
    grams = torch.zeros(count, count, dtype=torch.float64)

    def work() -> None:
        kept: list[list[Tensor]] = []
        wanted = [p for p in at.root.parameters() if p.requires_grad]
        if not wanted:
            raise UsageError("A gradient needs a parameter that takes one; all of this model are frozen. Unfreeze one.")
        for i in range(count):
            args, kwargs, own = runs.batch(i)
            whole = at.whole(args, kwargs)
            if at.step is None and at.criterion.settled(whole, own).kind == COTANGENT:
                raise UsageError("A gradient needs a loss; there are no targets and no loss. Pass targets=....")
            value = at.value(whole, own)
            found = torch.autograd.grad(value, wanted, allow_unused=True) if value.requires_grad else []
            kept.append([torch.zeros(()) if g is None else g.detach().flatten() for g in found])
        for each in zip(*kept, strict=True):
            if each[0].dim():
                stacked = torch.stack([g.to_dense() if g.is_sparse else g for g in each]).double()
                grams.add_((stacked @ stacked.T).cpu())

    at.run(work)
    return _told(grams, size)


def _told(grams: Tensor, size: int) -> GradientNoise:
    """The numbers, from the products of all pairs of gradients."""
    count = len(grams)
    signal, noise, scale = _estimates(grams, size)
    left = [_estimates(_without(grams, k), size) for k in range(count)]
    errors = [math.sqrt((count - 1) / count * sum((x - sum(column) / count) ** 2 for x in column))
              for column in zip(*left, strict=True)]  # fmt: skip
    reason = "" if signal > 2 * errors[0] else "the mean gradient is hardly told from noise: take larger parts, or more"
    fine = all(math.isfinite(x) for _, _, x in left) and math.isfinite(scale)
    return GradientNoise(
        scale, errors[2] if fine else math.inf, signal, errors[0], noise, errors[1], count, size, reason
    )


def _without(grams: Tensor, k: int) -> Tensor:
    keep = [i for i in range(len(grams)) if i != k]
    return grams[keep][:, keep]


def _estimates(grams: Tensor, size: int) -> tuple[float, float, float]:
    """|G|^2, tr(Sigma) of one sample, and their ratio; infinite where the first is not positive."""
    k, own, every = len(grams), float(grams.trace()), float(grams.sum())
    signal = (every - own) / (k * (k - 1))
    noise = size * (own - every / k) / (k - 1)
    return signal, noise, noise / signal if signal > 0 else math.inf


def _parts(at: Step, parts: int) -> tuple[ShortRuns, int]:
    """The disjoint parts as batches, and the samples of each."""
    if not at.alone:
        given = pull(at.data, parts)
        runs = ShortRuns(at, [(b, None) if at.step is not None else read_batch(b) for b in given])
        sizes = {next(tensors((x, y)), torch.zeros(1)).shape[at.rows.axis] for x, y, _ in runs.batches}
        if len(given) < 3 or len(sizes) > 1:
            raise UsageError(
                f"data must give three batches of one size at least; got {len(given)} of sizes {sorted(sizes)}. Use "
                "drop_last=True, or pass inputs and targets."
            )
        return runs, sizes.pop()
    whole = list(tensors((at.args, at.kwargs)))
    if any(not x.numel() for x in whole):
        raise UsageError("The batch must hold samples; an input is empty. Pass inputs (n, ...) with n of them.")
    rows, size = at.rows, at.rows.n // parts
    if size < 1 or rows.rows is not None or any(x.dim() <= rows.axis or x.shape[rows.axis] != rows.n for x in whole):
        raise UsageError(
            f"The batch must divide into {parts} parts along its samples; it has {rows.n} of them. Take fewer parts, "
            "or give the parts as data=[(x, y), ...]."
        )
    runs = ShortRuns(at)

    def part(i: int) -> tuple[Any, Any, Any]:
        args, kwargs = mapped((at.args, at.kwargs), lambda x: x.narrow(rows.axis, i * size, size))
        own = mapped(at.targets, lambda x: x.narrow(0, i * size, size) if x.dim() and len(x) == rows.n else x)
        return args, kwargs, own

    runs.batches = [part(i) for i in range(parts)]
    return runs, size
