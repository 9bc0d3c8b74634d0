"""A claim: one statement of a paper as an object that runs, measures, compares, and has a control that must fail.

One claim is one decorated function in the file of its paper::

    @paper.claim(
        "fig2b", "the stationary gap of linear batch norm falls as width to the power -1/2", where="Fig. 2b",
        covers="C8", quick={"widths": (16, 64, 256), "layers": 200}, full={"widths": (16, ..., 4096), "layers": 500},
        control={"norm": "none"}, because="without batch norm the gap grows with depth", seconds=(1, 60),
    )
    def fig2b(run, widths, layers, norm="batch_rescale"):
        ...
        return [near("slope", slope, -0.51, 0.02, stderr=error, printed=-0.46, reason="three s.d. of five seeds")]
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from normscope.claims.reading import Reading
from normscope.core.registry import Registry

#: Quick: minutes for all. Full: the papers' sizes. Reduced: those too, but smaller where they need a GPU.
SIZES = ("quick", "reduced", "full")


@dataclass(frozen=True)
class Curve:
    """Points of a figure, in the paper's axes; ``role``: ``ours``, ``theory``, ``printed`` or ``control``.

    ``low`` and ``high`` bound an interval at each point (empty: none); ``panel`` names the part of a figure.
    """

    series: str
    x: Sequence[float]
    y: Sequence[float]
    role: str = "ours"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    panel: str = ""


@dataclass(frozen=True)
class Axes:
    """The axes of a figure: titles (with units; an empty ``y``: the panel's name), and which are logarithmic."""

    x: str
    y: str
    x_log: bool = False
    y_log: bool = False


@dataclass(frozen=True)
class Evidence:
    """What one run of a claim measured: readings to judge, curves to draw, notes (one sentence each)."""

    readings: tuple[Reading, ...]
    curves: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """How a claim runs: all its randomness comes from ``seed``, its data from ``data_dir``."""

    seed: int = 0
    device: str = "cpu"
    data_dir: Path | None = None

    def generator(self, stream: int = 0) -> torch.Generator:
        """A CPU generator of its own for each ``stream``."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + stream)

    def data(self, name: str) -> str:
        """``name`` if its files are in ``data_dir``, else ``digits``."""
        return name if self.data_dir is not None else "digits"


@dataclass(frozen=True)
class Claim:
    """A statement and how to check it.

    ``name`` is ``paper/claim``; ``where`` the place in the paper; ``covers`` the short names of the paper's statements.
    ``quick``, ``reduced`` and ``full`` are the arguments of ``measure`` at each size (``reduced``: those of ``full``
    where no GPU is needed), ``seconds`` their estimated cost on one core.
    Each of the ``controls`` is a set of arguments that breaks what the statement rests on (``because``): the claim must
    then fail. ``should`` is ``hold``, or ``fail`` for a statement that is wrong as printed; its control then must hold.
    """

    name: str
    statement: str
    where: str
    covers: tuple[str, ...]
    measure: Callable[..., Evidence | Iterable[Reading]]
    quick: Mapping[str, Any]
    reduced: Mapping[str, Any]
    full: Mapping[str, Any]
    controls: tuple[Mapping[str, Any], ...]
    because: str
    seconds: tuple[float, float, float]
    should: str = "hold"
    axes: Axes | None = None
    needs: str = ""
    text: str = ""

    def arguments(self, size: str, control: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The arguments of ``measure`` at ``size``; with a ``control``, those that must make it fail."""
        return {**getattr(self, size), **(control or {})}

    def cost(self, size: str) -> float:
        """Estimated seconds of one core at ``size``."""
        return self.seconds[SIZES.index(size)]

    def needed(self, size: str) -> str:
        """What it needs at ``size`` beside a core; empty if nothing."""
        return self.needs if size == "full" or (size == "reduced" and self.reduced == self.full) else ""

    def run(self, size: str, run: Run, control: Mapping[str, Any] | None = None) -> Evidence:
        """Measure once."""
        found = self.measure(run, **self.arguments(size, control))
        return found if isinstance(found, Evidence) else Evidence(tuple(found))


#: ``paper/claim`` -> claim, in the order of the papers.
CLAIMS: Registry[Claim] = Registry("claim")


@dataclass(frozen=True)
class Paper:
    """A paper: key, title, authors, venue. ``PAPER.claim(...)`` enrols a claim."""

    key: str
    title: str
    authors: str
    venue: str
    summary: str
    #: Statements that no claim covers, each with the reason.
    left_out: Mapping[str, str] = field(default_factory=dict)

    def claim(
        self, name: str, statement: str, *, where: str, covers: str, quick: Mapping[str, Any],
        full: Mapping[str, Any] | None = None, control: Mapping[str, Any] | Sequence[Mapping[str, Any]], because: str,
        seconds: tuple[float, float], should: str = "hold", axes: Axes | None = None, needs: str = "",
        reduced: Mapping[str, Any] | None = None, reduced_seconds: float | None = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # fmt: skip
        """Enrol the decorated function ``measure(run, **arguments)`` as the claim ``paper/name``; ``control`` is one
        control or several. ``full`` changes arguments of ``quick``, ``reduced`` those of ``full``.
        """
        if should not in ("hold", "fail"):
            raise ValueError(f"a claim should 'hold' or 'fail', not {should!r}")

        def enrol(measure: Callable[..., Any]) -> Callable[..., Any]:
            key = f"{self.key}/{name}"
            known = set(inspect.signature(measure).parameters)
            larger = dict(quick) | dict(full or {})
            controls = (control,) if isinstance(control, Mapping) else tuple(control)
            smaller = larger | dict(reduced or {})
            if unknown := set(smaller).union(*controls) - known:
                raise TypeError(f"{key}: {measure.__name__}() takes no {', '.join(sorted(unknown))}")
            CLAIMS.add(key, Claim(
                key, statement, where, tuple(covers.split()), measure, dict(quick), smaller, larger, controls, because,
                (seconds[0], reduced_seconds or seconds[1], seconds[1]), should, axes, needs,
                inspect.getdoc(measure) or "",
            ))  # fmt: skip
            return measure

        return enrol


#: Key -> paper.
PAPERS: Registry[Paper] = Registry("paper")
