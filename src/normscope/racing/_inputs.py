"""What a race is given, checked, and what it will come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from normscope.core.errors import UsageError, shown
from normscope.core.words import duration
from normscope.data.datasets import Batch
from normscope.racing._rates import Rate
from normscope.training import Samples

#: A function of the seed that returns a fresh module; or a module, copied for each seed.
Variant = Callable[[int], nn.Module] | nn.Module


@dataclass(frozen=True)
class Plan:
    """What will run: ``runs`` of ``steps`` steps in all, of which ``done`` are behind; ``seconds``: about, for the
    rest.
    """

    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    steps_per_run: int
    steps: int
    done: int
    seconds: float
    rates: Mapping[str, Rate]

    def __str__(self) -> str:
        runs = len(self.variants) * len(self.seeds)
        done = f", {100 * self.done / self.steps:.0f} % already done" if self.done else ""
        counts = [
            f"{n} {what}{'s' * (n != 1)}" for n, what in ((len(self.variants), "variant"), (len(self.seeds), "seed"))
        ]
        size = f"{' x '.join(counts)} = {runs} run{'s' * (runs != 1)} of {self.steps_per_run} steps"
        return f"{size}{done}; about {duration(self.seconds)}"


def names_of(variants: Mapping[str, Variant]) -> list[str]:
    """The names of the variants, in order; each must be a module or a function of the seed."""
    if not isinstance(variants, Mapping) or not variants:
        raise UsageError(
            "variants must be a mapping of at least one name to a module or a function of the seed; got "
            f"{shown(variants)}. Pass {{'plain': net}}."
        )
    for name, make in variants.items():
        if not isinstance(name, str) or not name:
            raise UsageError(f"The name of a variant must be a non-empty string; got {name!r}.")
        if not isinstance(make, nn.Module) and (isinstance(make, type) or not callable(make)):
            raise UsageError(
                f"Variant {name!r} must be a module or a function of the seed; it is a {type(make).__name__}. "
                "Write lambda seed: Net()."
            )
    return list(variants)


def samples_of(data: Batch | Samples | tuple[Any, Any]) -> Samples:
    """The samples of a batch or a pair."""
    if isinstance(data, Batch):
        return Samples(data.inputs, data.targets)
    if isinstance(data, Samples):
        return data
    if isinstance(data, tuple) and len(data) == 2:
        return Samples(*data)
    raise UsageError(
        f"data must be a Batch (normscope.data.datasets.load) or a pair (inputs, targets); got a {type(data).__name__}."
    )
