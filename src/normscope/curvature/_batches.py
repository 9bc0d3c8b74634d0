"""Several batches as one function, each coupled inside itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normscope.call.step import Step
from normscope.core.errors import UsageError
from normscope.curvature._batch import Batch
from normscope.curvature._chain import chain_gram
from normscope.curvature._form import Form
from normscope.curvature._options import Options, memory_budget


class Batches:
    """The batches of a step (its ``data``, or its one batch), each coupled inside itself: outputs stacked into (N,
    c).
    """

    def __init__(self, step: Step, options: Options, default: str = "squared_error", what: str = "This") -> None:
        if step.step is not None:
            raise UsageError(
                f"{what} needs the model's outputs; a step= gives a loss alone. Use spectrum(hessian(...)), or pass "
                "inputs, targets and a loss."
            )
        steps = list(step.each())
        self.step, self.model, self.options = steps[0], steps[0].root, options
        first = Batch(steps[0], options, default=default)
        keep = 2 * first.saved_bytes * len(steps) <= memory_budget(options.memory, first.device)
        if not keep:
            first.release()
        self.parts = [first] + [Batch(item, options, keep=keep, default=default) for item in steps[1:]]
        self.c, self.p, self.dtype, self.device = first.c, first.p, first.dtype, first.device
        self.loss = first.loss
        if any(part.c != self.c for part in self.parts):
            raise UsageError(f"All batches must have the same outputs; got {[part.c for part in self.parts]} columns.")
        self.sizes = [part.n for part in self.parts]
        self.n = sum(self.sizes)

    def form(self) -> Form:
        """The loss as the matrices need it, for all batches; its targets checked batch by batch."""
        if not self.loss.named:
            raise UsageError(
                f"This needs the loss by name: mse, cross_entropy or squared_error; got {self.loss.name!r}."
            )
        forms = [Form.of(p.loss, p.value, p.value if p.raw is None else p.raw, p.targets) for p in self.parts]
        return forms[0] if len(forms) == 1 else Form.stacked(forms)

    def curve(self, tangents: Tensor) -> Tensor:
        """Hessian of the loss in the outputs times columns (N c, k): the mean over batches, weighted by their
        samples.
        """
        pieces = tangents.split([n * self.c for n in self.sizes])
        return torch.cat([part.curve(x) * (part.n / self.n) for part, x in zip(self.parts, pieces, strict=True)])

    @property
    def value(self) -> Tensor:
        """The outputs, (N, c)."""
        return torch.cat([part.value for part in self.parts])

    def vjp(self, v: Tensor) -> Tensor:
        """J^T v: (N c, k) -> (p, k), the sum over the batches."""
        pieces = v.split([n * self.c for n in self.sizes])
        total = self.parts[0].vjp(pieces[0])
        for part, piece in zip(self.parts[1:], pieces[1:], strict=True):
            total = total + part.vjp(piece)
        return total

    def jvp(self, w: Tensor) -> Tensor:
        """J w: (p, k) -> (N c, k)."""
        return torch.cat([part.jvp(w) for part in self.parts])

    def gram(self) -> Callable[[], Tensor] | None:
        """How to write J J^T (N c, N c) down without J, for one batch of a plain multilayer perceptron; else
        ``None``.
        """
        return chain_gram(self.parts[0]) if len(self.parts) == 1 else None

    def facts(self) -> dict[str, Any]:
        """How the numbers came about."""
        facts = self.parts[0].facts()
        sizes = dict(zip(self.parts[0].names, self.parts[0].sizes, strict=True))
        more = {
            "batches": len(self.parts),
            "samples": sum(part.step.rows.n for part in self.parts),
            "parameter_sizes": sizes,
        }
        lost = list(dict.fromkeys(name for part in self.parts for name in part.unreached))
        notes = list(dict.fromkeys(note for part in self.parts for note in part.notes))
        if lost:
            notes.append(
                f"{len(lost)} of {len(sizes)} parameter tensors do not reach the outputs, so their curvature is 0: "
                f"{', '.join(lost[:6])}{', ...' if len(lost) > 6 else ''}"
            )
        return {**facts, **more, "unreached": lost, "loss": self.loss.name, "notes": notes}
