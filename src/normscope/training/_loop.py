"""One run of training: step by step, its losses kept, its whole state a dictionary."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import first_tensor
from normscope.call.losses import COTANGENT, Loss
from normscope.call.step import Step
from normscope.call.targets import class_axis
from normscope.call.traceless import Traceless
from normscope.core.errors import UsageError
from normscope.training._recipe import OPTIMISERS, Recipe
from normscope.training._samples import Samples, call, permutation

#: Samples a forward pass of an evaluation; in eval mode the number changes nothing but rounding.
EVALUATION_BATCH = 512
#: Steps between two looks at the losses on a device that runs ahead of Python. A CPU does not.
LOOK_EVERY = 16


class Training:
    """A model in training on samples that are on its device.

    ``step`` counts updates done; ``losses[s]`` is the loss of batch s before update s + 1; ``diverged`` is the step
    whose loss showed divergence (see `Recipe`), or ``None``; the losses end there.
    Dropout draws from streams of the run's own, started from the recipe's seed: torch's global ones stay as they are.
    Raises ``UsageError``: fewer samples than a batch; no parameter that wants a gradient.
    """

    def __init__(self, model: nn.Module, samples: Samples, recipe: Recipe) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        if not trained:
            raise UsageError("The model has no parameter with requires_grad, so there is nothing to train.")
        if len(samples) < recipe.batch:
            raise UsageError(
                f"A step needs {recipe.batch} samples, the batch; there are {len(samples)}. "
                f"Take a batch of at most {len(samples)}, or more samples."
            )
        self.model, self.samples, self.recipe = model.train(), samples, recipe
        self.optimiser = OPTIMISERS[recipe.optimiser](trained, recipe)
        self.device = trained[0].device
        self.steps_per_epoch = len(samples) // recipe.batch
        self.steps = self.steps_per_epoch * recipe.epochs
        self.step = 0
        self.losses: list[float] = []
        self.diverged: int | None = None
        self._pending: list[Tensor] = []
        self._above = 0
        self._order: tuple[int, Tensor] | None = None
        self._plain: bool | None = None
        self._criterion: Loss | None = None
        self._random = [torch.Generator(d).manual_seed(recipe.seed).get_state() for d in self._devices()]

    def advance(self, until: int, pause: Callable[[], bool] | None = None) -> None:
        """Train up to ``until`` updates; stop before if the run diverges, or if ``pause()`` is true after a step."""
        look = 1 if self.device.type == "cpu" else LOOK_EVERY
        with self._streams():
            while self.step < until and self.diverged is None:
                self._update()
                if len(self._pending) >= look:
                    self._look()
                if pause is not None and pause():
                    break
            self._look()

    def batch(self, step: int) -> Tensor:
        """Row numbers (batch,) of the samples that step ``step`` sees."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            order = permutation(self.recipe.seed, epoch, len(self.samples))
            self._order = epoch, order.to(self.device)
        return self._order[1][place * self.recipe.batch : (place + 1) * self.recipe.batch]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, and the losses so far: tensors and plain containers."""
        saved = self.model.state_dict()
        unsaved = {name: b for name, b in self.model.named_buffers() if name not in saved}
        return {
            "model": saved,
            "buffers": unsaved,
            "optimiser": self.optimiser.state_dict(),
            "random": list(self._random),
            "step": self.step,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "diverged": self.diverged,
            "above": self._above,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`, to the same bits as if there had been no break (on a CPU)."""
        self.model.load_state_dict(state["model"])
        buffers = dict(self.model.named_buffers())
        with torch.no_grad():
            for name, value in state["buffers"].items():
                buffers[name].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
        self._random = list(state["random"])
        self.step, self.diverged, self._above = state["step"], state["diverged"], state["above"]
        self.losses = state["losses"].tolist()

    def _update(self) -> None:
        if self.step <= self.recipe.warmup or self._plain is None:  # the first step here may be one after a break
            for group in self.optimiser.param_groups:
                group["lr"] = self.recipe.rate(self.step)
        batch = self.samples.take(self.batch(self.step))
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._loss(call(self.model, batch.inputs), batch.targets)
        loss.backward()
        self.optimiser.step()
        self._pending.append(loss.detach())
        self.step += 1

    def _loss(self, whole: Any, targets: Any) -> Tensor:
        """`Loss.value` with all its checks at the first step; then, where it is nothing more, torch's cross-entropy."""
        if self._plain:
            return nn.functional.cross_entropy(whole, targets)
        if self._criterion is None:
            self._criterion = criterion(self.recipe, whole, targets)
        value = self._criterion.value(whole, targets)
        if self._plain is None:
            self._plain = self._is_plain(whole)
            if not value.requires_grad:
                raise UsageError("The loss does not depend on any parameter, so it has no gradient.")
        return value

    def _is_plain(self, whole: Any) -> bool:
        targets, loss = self.samples.targets, self._criterion
        if loss is None or loss.kind != "cross_entropy" or loss.strict:
            return False
        if not isinstance(targets, Tensor) or targets.is_floating_point():
            return False
        classes = isinstance(whole, Tensor) and whole.dim() == 2 and whole.dtype in (torch.float32, torch.float64)
        if not classes or targets.dim() != 1 or targets.dtype != torch.int64 or int(targets.min()) < 0:
            return False
        if int(targets.max()) >= whole.shape[1]:
            raise UsageError(
                f"Targets must be class indices below the number of outputs, {whole.shape[1]}; the largest is "
                f"{int(targets.max())}. Give the model that many outputs, or pass other targets."
            )
        return True

    def _look(self) -> None:
        """Fetch the losses of the last steps; note divergence at the step where it shows."""
        if not self._pending:
            return
        pending = self._pending
        values = [pending[0].item()] if len(pending) == 1 else torch.stack(pending).double().tolist()
        self._pending.clear()
        for value in values:
            self.losses.append(value)
            self._above = self._above + 1 if value > self.recipe.explosion * self.losses[0] else 0
            ended = self._above > 0 and len(self.losses) == self.steps
            if not math.isfinite(value) or self._above >= self.recipe.patience or ended:
                self.diverged = len(self.losses) - 1
                return

    def _devices(self) -> list[torch.device]:
        return [torch.device("cpu"), self.device] if self.device.type == "cuda" else [torch.device("cpu")]

    @contextmanager
    def _streams(self) -> Iterator[None]:
        """The run's own random streams in the place of the global ones."""
        cuda = [d for d in self._devices() if d.type == "cuda"]
        with torch.random.fork_rng(devices=[d.index or 0 for d in cuda]):
            torch.set_rng_state(self._random[0])
            for device in cuda:
                torch.cuda.set_rng_state(self._random[1], device)
            try:
                yield
            finally:
                self._random = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in cuda)]


def evaluate(model: nn.Module, samples: Samples, recipe: Recipe) -> dict[str, float]:
    """``loss`` and, for classes, ``accuracy`` over all samples: eval mode, running statistics; the model is untouched.

    The mean of the losses of batches of 512, weighted by their samples.
    """
    total, right, counted = 0.0, 0, 0

    @torch.no_grad()
    def work() -> None:
        nonlocal total, right, counted
        for start in range(0, len(samples), EVALUATION_BATCH):
            part = samples.take(slice(start, start + EVALUATION_BATCH))
            whole = call(model, part.inputs)
            output, targets = first_tensor(whole), part.targets
            loss = criterion(recipe, whole, targets)
            total += float(loss.value(whole, targets)) * len(part)
            if output is None or output.dim() < 2 or not isinstance(targets, Tensor) or targets.is_floating_point():
                continue
            named = output.argmax(class_axis(output, targets, loss.strict))
            if named.shape == targets.shape:
                known = targets >= 0
                right += int((named == targets)[known].sum())
                counted += int(known.sum())

    Traceless(model, mode="eval", seed=recipe.seed).run(work)
    found = {"loss": total / len(samples)}
    return found | ({"accuracy": right / counted} if counted else {})


def try_out(model: nn.Module, samples: Samples, recipe: Recipe, *, mode: str) -> list[str]:
    """What a reader must know of how these samples are read; the model is untouched.

    Raises the ``UsageError`` that every verb raises of a model that does not run on them, or has no loss there.
    """
    step = Step(model, samples.inputs, samples.targets, recipe.loss, mode=mode, seed=recipe.seed)
    notes: list[str] = []

    @torch.no_grad()
    def work() -> None:
        args, kwargs, _ = step.arguments()
        whole, targets = step.whole(args, kwargs), step.own_targets()
        loss = criterion(recipe, whole, targets)
        loss.value(whole, targets)
        notes.extend(loss.notes(whole, targets))

    step.run(work)
    return notes


def criterion(recipe: Recipe, whole: Any, targets: Any) -> Loss:
    """The recipe's loss, settled by what the model returns; there must be one."""
    loss = Loss.of(recipe.loss).settled(whole, targets)
    if loss.kind == COTANGENT:
        raise UsageError(
            "Training needs targets or a loss; got neither. Pass targets, or a model that returns its loss."
        )
    return loss
