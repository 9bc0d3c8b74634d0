"""Rank-raising pre-training (Daneshmand et al. 2020, figures 4 and 6), with a step that can only raise the rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import first_tensor
from normscope.call.step import Step
from normscope.core.errors import UsageError, unknown
from normscope.core.tensors import rms
from normscope.init._cures import in_place, register
from normscope.init._layers import (
    Layer,
    Treatment,
    all_or_nothing,
    generator_of,
    in_order,
    kept,
    require,
    step_of,
)

if TYPE_CHECKING:
    from jaxtyping import Float

VARIANTS = ("A", "B")
#: Step of a weight's entries over their root mean square: the first of a stage, the largest and the smallest (chosen by
#: us: ReLU nets of depth 15 to 75 take 0.03 at the start of a stage and 5e-4 to 5e-3 later).
FIRST, LARGEST, SMALLEST = 0.03, 0.1, 1e-5
#: Adam's forgetting rates (Kingma and Ba 2015).
BETAS = (0.9, 0.999)
#: (stage, stages, step, participation rank) after every step.
Progress = Callable[[int, int, int, float], None]


@register(
    "rank", "daneshmand2020, figure 6", auto="slow",
    doc="Gradient steps that raise the participation rank layer by layer; scale kept at 1.",
)  # fmt: skip
def rank(
    model: nn.Module,
    inputs: Any,
    variant: str = "B",
    *,
    steps: int | None = None,
    every: int = 4,
    goal: float | None = None,
    seconds: float | None = None,
    scale: str = "rms",
    progress: Progress | None = None,
    generator: torch.Generator | None = None,
) -> Treatment:
    r"""Descent on $\log(1/r)$, r the participation rank of a layer on this batch, before any training; in place.

    $r = \mathrm{tr}(G)^2 / \|G\|_F^2$ with $G = H H^T$ the Gram matrix (n, n) of the layer's representation H, samples
    as rows.

    variant: ``"A"``: one objective, the input of the last layer (the last hidden representation), all hidden layers
        move; ``"B"``: stages, the output of hidden layer ``every``, then 2 ``every``, ... and last the last hidden
        representation; a stage moves only the layers since the one before. (The paper's stages move all layers up to
        their own. That raised r less: 1.9 against 2.6 to 3.1, mean over 45 layers on fresh samples, He, 2 seeds.)
    steps: most accepted steps a stage; default 100 for A, 10 for B.
    goal: stop a stage when r reaches it. seconds: stop altogether after that long (the state is always usable).
    scale: ``"rms"``: every hidden layer is kept at outputs of root mean square 1 (the last one's weights are never
        touched); ``"keep"``: at the root mean square it has. r cannot see a signal that fades with depth, training can.
    progress: called after each step with (stage, stages, step, r).

    Only weights of Linear and Conv layers move, never biases: their gradient grows as the signal shrinks, and moving
    them left nets untrainable. A step is Adam's direction times a share of the weight's root mean square, is followed
    by the rescaling, and is kept only if r of the objective then is higher; otherwise the share is halved. If after all
    stages r of the last hidden representation is lower than after the first rescaling, the steps are undone (the scale
    stays).

    Misleads: r is measured on one batch. On fresh samples it is lower (a ReLU net of depth 45 and width 100, 64
        samples, B: 20
    there, 2 to 4 on others), and it can be raised by spreading samples that training wants together. A random net that
    spreads samples also magnifies gradients: with ``every=1, steps=5`` they grew a thousandfold over those 45 layers,
    and SGD diverged. More is not better: plain nets of depth 30 trained after 5 or 10 steps a stage, and hardly after
    15 (digits, 3 seeds). High rank is no promise of training: compare with `lsuv_` and `identity_`. Cost: a step takes
    one forward and one backward pass for the gradient and one forward pass per tried share (1.2 to 1.5 in the mean),
    all up to the objective's layer.
    """
    if variant not in VARIANTS:
        raise unknown("variant of raise_rank_", variant, VARIANTS)
    if scale not in ("rms", "keep"):
        raise unknown("scale", scale, ("rms", "keep"))
    if every < 1 or (steps is not None and steps < 1):
        raise UsageError(f"steps and every must be at least 1; got steps={steps}, every={every}.")
    model, order, left, seed = in_order(model, inputs, generator_of(generator))
    if order:
        left[order[-1].name] = "the last layer keeps its law"
    require(order[:-1], left)
    step = step_of(model, inputs, seed)
    climb = _Climb(step, order, scale)
    ends = [] if variant == "A" else list(range(every - 1, len(order) - 2, every))
    steps = (100 if variant == "A" else 10) if steps is None else steps
    until = None if seconds is None else time.monotonic() + seconds

    def work() -> list[str]:
        start = climb.start()
        before = climb.rank(len(order) - 1)
        begin = 0
        for stage, end in enumerate([*ends, len(order) - 1]):
            told = partial(progress, stage, len(ends) + 1) if progress else _silent
            climb.stage(end, order[begin : min(end + 1, len(order) - 1)], steps, goal, until, told)
            begin = end + 1
        after = climb.rank(len(order) - 1)
        notes = [f"participation rank of the last hidden representation: {before:.4g} -> {after:.4g} on this batch"]
        if after < before:
            write(order, start)
            notes = [
                f"nothing was kept: the rank of the last hidden representation would have gone {before:.4g} -> "
                f"{after:.4g}"
            ]
        if until is not None and time.monotonic() > until:
            notes.append(f"stopped after {seconds:g} seconds")
        return notes

    with all_or_nothing(order):
        notes = step.run(work, kept(order))
    return Treatment(model, tuple(layer.name for layer in order[:-1]), left, tuple(notes))


raise_rank_ = in_place(rank, "raise_rank_")


def _silent(_step: int, _rank: float) -> None:
    """No progress wanted."""


class _Stop(Exception):
    """The forward pass has come as far as it is needed."""


@dataclass
class _Climb:
    """The layers in order; passes over the batch that stop at one of them."""

    step: Step
    order: list[Layer]
    scale: str

    def start(self) -> list[Tensor]:
        """Bring the hidden layers to their scale; their weights before any step."""
        self.wanted: dict[str, float] = {}
        if self.scale == "keep":
            self._run(len(self.order) - 1, lambda layer, x: self.wanted.__setitem__(layer.name, rms(layer.linear(x))))
        self.rank(len(self.order) - 1)
        return [layer.weight.detach().clone() for layer in self.order]

    def rank(self, target: int, layers: Sequence[Layer] | None = None) -> float:
        """r at a layer, after these layers (default: all hidden ones before it) have been brought to their scale."""
        names = {layer.name for layer in (self.order[:-1] if layers is None else layers)}

        def rescale(layer: Layer, x: Tensor) -> None:
            if layer.name not in names:
                return
            size, wanted = rms(layer.linear(x)), self.wanted.get(layer.name, 1.0)
            if 0 < size < float("inf") and abs(size / wanted - 1) > 1e-6:
                layer.set(layer.weight.double() * (wanted / size), bias=False)

        with torch.no_grad():
            return 1 / float(inverse_rank(self._run(target, rescale)))

    def slopes(self, target: int, layers: Sequence[Layer]) -> list[Tensor]:
        """Gradient of log(1/r) with respect to these layers' weights, float64; 0 where r does not depend on a
        weight.
        """
        weights = [layer.module.weight for layer in layers]
        with torch.enable_grad():
            value = inverse_rank(self._run(target, None)).log()
            if not value.requires_grad:
                return [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
            found = torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True)
        return [slope.double().nan_to_num(0.0, 0.0, 0.0) for slope in found]

    def stage(
        self,
        target: int,
        moved: Sequence[Layer],
        steps: int,
        goal: float | None,
        until: float | None,
        told: Callable[[int, float], Any],
    ) -> None:
        """Up to ``steps`` accepted steps of the layers ``moved`` on r at ``target``."""
        r, share, adam = self.rank(target), FIRST, _Adam()
        for step in range(1, steps + 1):
            if (goal is not None and r >= goal) or (until is not None and time.monotonic() > until):
                return
            slopes = self.slopes(target, moved)
            new, share = self.climb(target, moved, adam.directions(slopes), r, share)
            if new <= r:  # the running mean may point downhill; the signs of the gradient alone do not
                adam = _Adam()
                new, share = self.climb(target, moved, adam.directions(slopes), r, FIRST)
            if new <= r:
                return
            r, share = new, min(1.2 * share, LARGEST)
            told(step, r)

    def climb(
        self, target: int, moved: Sequence[Layer], directions: Sequence[Tensor], r: float, share: float
    ) -> tuple[float, float]:
        """One step with the share halved until r is higher: the new r and that share; the old r and weights if none
        is.
        """
        if not any(direction.any() for direction in directions):
            return r, share
        here = [layer.weight.detach().clone() for layer in moved]
        while share >= SMALLEST:
            for layer, weight, direction in zip(moved, here, directions, strict=True):
                layer.set(weight.double() - share * rms(weight) * direction, bias=False)
            new = self.rank(target, moved)
            if new > r:
                return new, share
            write(moved, here)
            share /= 2
        return r, share

    def _run(self, target: int, before: Callable[[Layer, Tensor], None] | None) -> Tensor:
        """The representation (n, features): the output of hidden layer ``target``, or the input of the last layer."""
        found: list[Tensor] = []
        seen: set[str] = set()
        last, samples = self.order[-1], self.step.rows

        def enter(layer: Layer, x: Tensor | None) -> None:
            if layer.name in seen or x is None:
                return
            seen.add(layer.name)
            if layer is last and target == len(self.order) - 1:
                found.append(x)
                raise _Stop
            if before is not None:
                before(layer, x.detach())

        def leave(_module: nn.Module, _args: Any, output: Any) -> None:
            found.append(output)
            raise _Stop

        torch.default_generator.manual_seed(self.step.seed)  # the same dropout in every pass
        args, kwargs, _ = self.step.arguments()
        handles = [
            layer.module.register_forward_pre_hook(
                lambda _m, a, k, layer=layer: enter(layer, first_tensor([*a, *k.values()])), with_kwargs=True
            )
            for layer in self.order
        ]
        if target < len(self.order) - 1:
            handles.append(self.order[target].module.register_forward_hook(leave))
        try:
            self.step.root(*args, **kwargs)
        except _Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
        rows = samples.of(found[0], self.order[target].module) if found else None
        if rows is None:
            raise UsageError(
                f"The rank is one of {samples.n} samples; the output of {self.order[target].name!r} has no axis of "
                "that length. Pass a batch that the model keeps together."
            )
        return rows.reshape(len(rows), -1)


def write(layers: Sequence[Layer], weights: Sequence[Tensor]) -> None:
    """Give layers back their weights."""
    for layer, weight in zip(layers, weights, strict=True):
        layer.set(weight, bias=False)


@dataclass
class _Adam:
    """Adam's directions, entries of about 1, without its epsilon."""

    steps: int = 0
    means: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)

    def directions(self, slopes: Sequence[Tensor]) -> list[Tensor]:
        self.means = self.means or [torch.zeros_like(slope) for slope in slopes]
        self.squares = self.squares or [torch.zeros_like(slope) for slope in slopes]
        self.steps += 1
        for slope, mean, square in zip(slopes, self.means, self.squares, strict=True):
            mean.lerp_(slope, 1 - BETAS[0])
            square.lerp_(slope.square(), 1 - BETAS[1])
        whole, whole_square = 1 - BETAS[0] ** self.steps, 1 - BETAS[1] ** self.steps
        return [
            mean / whole / (square / whole_square).sqrt().clamp_min(1e-150)
            for mean, square in zip(self.means, self.squares, strict=True)
        ]


def inverse_rank(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    r"""$1/r = \|G\|_F^2 / \mathrm{tr}(G)^2$ of $G = x x^T$, in float64."""
    x = x.double()
    gram = x @ x.T
    return gram.square().sum() / gram.trace().square()
