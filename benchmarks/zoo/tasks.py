"""What the nets of the zoo learn: image sets, tables, sequences and tokens, each with its loss, score and chance.

``TASKS[name]()`` makes a `Task`. The folder with MNIST, Fashion-MNIST and CIFAR-10 is the environment variable
ZOO_DATA.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from normscope.data.datasets import load

#: Samples that are kept of an image set.
KEPT = 6400
#: Four classes, where ten are too many for 200 steps: automobile, deer, frog, ship; of MNIST and of Fashion-MNIST
#: these.
CIFAR, FOUR = (1, 4, 6, 8), (0, 1, 2, 3)
Sampler = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """Training samples without end: ``draw(n, generator)`` gives inputs and targets.

    outputs: classes, or numbers to predict.
    tokens: how many different ones there are, 0 where the inputs are numbers.
    """

    name: str
    draw: Sampler
    outputs: int
    shape: tuple[int, ...]
    kind: str = "classes"
    tokens: int = 0

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Torch's: cross entropy or the mean squared error."""
        return F.cross_entropy if self.kind == "classes" else F.mse_loss

    def batch(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """n training samples, the same for the same seed."""
        return self.draw(n, torch.Generator().manual_seed(seed))

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Accuracy; for numbers the explained share of their variance, 1 - mse/var, at least -1."""
        if self.kind == "classes":
            return (outputs.argmax(1) == targets).double().mean().item()
        error, spread = (
            (outputs - targets).double().square().mean(),
            (targets - targets.mean(0)).double().square().mean(),
        )
        return max(-1.0, 1 - (error / spread).item()) if torch.isfinite(error) else math.nan

    @property
    def chance(self) -> float:
        """The score of the best constant answer, on many samples."""
        if self.kind == "numbers":
            return 0.0
        targets = self.batch(4096, 10**9)[1].flatten()
        return (torch.bincount(targets).max() / len(targets)).item()


def rows(inputs: Tensor, targets: Tensor) -> Sampler:
    """Draw with replacement from stored samples."""

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        pick = torch.randint(len(inputs), (n,), generator=generator)
        return inputs[pick], targets[pick]

    return draw


def standardized(x: Tensor, over: tuple[int, ...] | int | None = None) -> Tensor:
    """Mean 0 and variance 1: of all numbers together, or over an axis."""
    if over is None:
        return (x - x.mean()) / x.std()
    return (x - x.mean(over, keepdim=True)) / x.std(over, keepdim=True).clamp_min(1e-6)


@functools.cache
def images(name: str, size: int, classes: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
    """Averaged down to ``size`` pixels a side, standardized as a whole."""
    given = {"data_dir": os.environ.get("ZOO_DATA", "data"), "n": KEPT if classes is None else None}
    batch = load(name, **({} if name == "digits" else given))  # type: ignore[arg-type]
    x, y = batch.inputs, batch.targets
    assert y is not None
    if classes is not None:
        keep = torch.isin(y, torch.tensor(classes))
        x, y = x[keep][:KEPT], torch.searchsorted(torch.tensor(classes), y[keep][:KEPT])
    if x.shape[-1] != size:
        x = F.adaptive_avg_pool2d(x, size)
    return standardized(x), y


def image_task(name: str, size: int, classes: tuple[int, ...] | None = None) -> Task:
    x, y = images(name, size, classes)
    return Task(name if classes is None else f"{name} 4", rows(x, y), int(y.max()) + 1, tuple(x.shape[1:]))


def pixels_task(name: str, size: int) -> Task:
    """Say again what was seen."""
    x, _ = images(name, size)
    return Task(f"{name} pixels", rows(x, x.flatten(1)), x[0].numel(), tuple(x.shape[1:]), "numbers")


def digits_255() -> Task:
    """Pixels as cameras give them, 0 to 255, neither centred nor scaled."""
    batch = load("digits")
    assert batch.targets is not None
    return Task("digits 0-255", rows(batch.inputs * 255, batch.targets), 10, (1, 8, 8))


def _table(name: str, x: Tensor, y: Tensor, kind: str) -> Task:
    outputs = int(y.max()) + 1 if kind == "classes" else y.shape[1]
    return Task(name, rows(x, y), outputs, tuple(x.shape[1:]), kind)


def cancer(*, raw: bool = False) -> Task:
    """Breast cancer, 569 patients, 30 columns (sklearn); ``raw``: in their units, 0.001 to 4254."""
    from sklearn.datasets import load_breast_cancer

    data, target = load_breast_cancer(return_X_y=True)
    x, y = torch.from_numpy(data).float(), torch.from_numpy(target).long()
    return _table("cancer raw" if raw else "cancer", x if raw else standardized(x, 0), y, "classes")


def diabetes() -> Task:
    """442 patients, 10 columns: how the illness goes on, standardized (sklearn)."""
    from sklearn.datasets import load_diabetes

    data, target = load_diabetes(return_X_y=True)
    x, y = torch.from_numpy(data).float(), torch.from_numpy(target).float()[:, None]
    return _table("diabetes", standardized(x, 0), standardized(y, 0), "numbers")


def clusters(*, raw: bool = False) -> Task:
    """Five classes of two Gaussian clouds each in 16 dimensions; ``raw``: columns of scales 1e-2 to 1e3, off centre."""
    g = torch.Generator().manual_seed(11)
    centres = 1.6 * torch.randn(10, 16, generator=g)
    which = torch.randint(10, (KEPT,), generator=g)
    x = standardized(centres[which] + torch.randn(KEPT, 16, generator=g), 0)
    if raw:
        x = (x + 2) * torch.logspace(-2, 3, 16)
    return _table("clusters raw" if raw else "clusters", x, which % 5, "classes")


def friedman() -> Task:
    """Friedman's first function of 10 uniform columns, with noise, standardized (Friedman 1991)."""
    g = torch.Generator().manual_seed(12)
    u = torch.rand(KEPT, 10, generator=g)
    y = 10 * torch.sin(math.pi * u[:, 0] * u[:, 1]) + 20 * (u[:, 2] - 0.5) ** 2 + 10 * u[:, 3] + 5 * u[:, 4]
    y = standardized(y + torch.randn(KEPT, generator=g), 0)[:, None]
    return _table("friedman", standardized(u, 0), y, "numbers")


def waves(n: int, generator: torch.Generator, steps: int = 20) -> tuple[Tensor, Tensor]:
    """Noisy waves (n, steps, 2) of four frequencies: which one?"""
    y = torch.randint(4, (n,), generator=generator)
    phase = 2 * math.pi * torch.rand(n, 1, generator=generator)
    angle = phase + (0.25 + 0.4 * y[:, None]) * torch.arange(steps)
    x = torch.stack([angle.sin(), angle.cos()], 2) * math.sqrt(2)
    return x + 0.5 * torch.randn(x.shape, generator=generator), y


def recall(n: int, generator: torch.Generator, steps: int = 6, tokens: int = 6) -> tuple[Tensor, Tensor]:
    """Which token stood first?"""
    x = torch.randint(tokens, (n, steps), generator=generator)
    return x, x[:, 0].clone()


def majority(n: int, generator: torch.Generator, steps: int = 16, tokens: int = 6) -> tuple[Tensor, Tensor]:
    """Which token is drawn more often than the others?"""
    y = torch.randint(tokens, (n,), generator=generator)
    noise = torch.randint(tokens, (n, steps), generator=generator)
    return torch.where(torch.rand(n, steps, generator=generator) < 0.45, y[:, None], noise), y


def markov(n: int, generator: torch.Generator, steps: int = 16, tokens: int = 12) -> tuple[Tensor, Tensor]:
    """The next token of a chain in which one of 12 follows with a chance of about 0.8."""
    law = (5.5 * torch.randn(tokens, tokens, generator=torch.Generator().manual_seed(13))).softmax(1)
    chain = torch.empty(n, steps + 1, dtype=torch.long)
    chain[:, 0] = torch.randint(tokens, (n,), generator=generator)
    for t in range(steps):
        chain[:, t + 1] = torch.multinomial(law[chain[:, t]], 1, generator=generator)[:, 0]
    return chain[:, :-1].contiguous(), chain[:, 1:].contiguous()


TASKS: dict[str, Callable[[], Task]] = {
    "digits": lambda: image_task("digits", 8),
    "digits 0-255": digits_255,
    "mnist": lambda: image_task("mnist", 14),
    "fashion": lambda: image_task("fashion-mnist", 14),
    "mnist 4": lambda: image_task("mnist", 14, FOUR),
    "fashion 4": lambda: image_task("fashion-mnist", 14, FOUR),
    "cifar 4": lambda: image_task("cifar10", 16, CIFAR),
    "digits pixels": lambda: pixels_task("digits", 8),
    "mnist pixels": lambda: pixels_task("mnist", 14),
    "fashion pixels": lambda: pixels_task("fashion-mnist", 14),
    "cancer": cancer,
    "cancer raw": functools.partial(cancer, raw=True),
    "clusters": clusters,
    "clusters raw": functools.partial(clusters, raw=True),
    "diabetes": diabetes,
    "friedman": friedman,
    "waves": lambda: Task("waves", waves, 4, (20, 2)),
    "waves 50": lambda: Task("waves 50", functools.partial(waves, steps=50), 4, (50, 2)),
    "recall": lambda: Task("recall", recall, 6, (6,), tokens=6),
    "majority": lambda: Task("majority", majority, 6, (16,), tokens=6),
    "markov": lambda: Task("markov", markov, 12, (16,), tokens=12),
}
#: Tasks that need no folder of data.
BUNDLED = {name for name in TASKS if not name.startswith(("mnist", "fashion", "cifar"))}


@functools.cache
def task(name: str) -> Task:
    """The task of this name, made once."""
    return TASKS[name]()


def group(name: str) -> str:
    """The tasks among whose nets the best is looked for."""
    return {"digits 0-255": "digits", "cancer raw": "cancer", "clusters raw": "clusters"}.get(name, name)
