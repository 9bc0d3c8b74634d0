"""`predict` for a model: its program run once with laws, the layers of a probe, forwards and backwards."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscope.call.arguments import first_tensor, tensors
from normscope.call.step import Step
from normscope.call.taps import Tap, find_taps, observed
from normscope.core.errors import UsageError
from normscope.core.favourites import CHAINS
from normscope.core.records import Profile, Record
from normscope.geometry.metrics import metric_names
from normscope.geometry.statistic import Statistic
from normscope.theory._values import evaluate
from normscope.theory.program.interpreter import DRAWS, Program
from normscope.theory.program.laws import Field, canonical
from normscope.theory.program.lent import lending
from normscope.theory.program.moves import distinct
from normscope.theory.program.reading import law_of, places

#: Metrics beside those of chains that a model's layers have.
_MORE = ("mean_cosine", "rms")


@dataclass
class Seen:
    """A layer as it ran: its numbers, and its law, where it has one."""

    tap: Tap
    call: int
    values: dict[str, float]
    law: Field | None


def predict_model(
    model: nn.Module | Step, inputs: Any = None, *, metrics: str | Sequence[str] | None = None, gradients: bool = True,
    seed: int = 0, sites: int = 2048, budget: float = math.inf, partly: bool = False,
    draws: int = DRAWS,
) -> Profile:  # fmt: skip
    """See `normscope.predict`.

    budget: seconds after which it gives up with a ``UsageError``. partly: a model none of whose layers has a theory is
    no error. draws: of fields that have no moments in closed form, tensors of the program's own shapes.
    """
    import normscope.theory.program.attention
    import normscope.theory.program.norms
    import normscope.theory.program.weights  # noqa: F401  (their rules)

    began = time.perf_counter()
    names = metric_names((*CHAINS, *_MORE) if metrics is None else metrics)
    at = Step.of(model, inputs, mode="train", seed=seed)
    if at.rows.n < 2:
        raise UsageError(f"A prediction compares samples, so it needs a batch of at least 2; got {at.rows.n}.")
    if not all(bool(torch.isfinite(x).all()) for x in tensors((at.args, at.kwargs)) if x.is_floating_point()):
        raise UsageError("The inputs must be finite; they hold NaN or infinity. Clean the data.")
    programs: list[Program] = []

    def work(lent: bool) -> tuple[list[Seen], dict[int, float]]:
        programs.append(Program(seed, sites, began + budget, draws, lent))
        return _followed(at, programs[-1], names, gradients)

    seen, grads = lending(at, work, lambda: programs[-1].refused)
    program = programs[-1]
    layers = [s for s in seen if s.tap.layer]
    if not partly and not any(s.law is not None for s in layers):
        raise UsageError(
            f"No layer of this model has a theory here: {_said(program) or 'no product of the inputs with weights'}. "
            "Use probe()."
        )
    records = [r for s in seen for r in _of(s)]
    if gradients:
        records += _growth([(s, grads[id(s.law)]) for s in layers if s.law is not None and id(s.law) in grads])
    measured = [s.tap.name for s in layers if s.law is None]
    notes = list(at.notes)
    if measured:
        notes.append(f"measured, not predicted ({_said(program) or 'data alone'}): {', '.join(measured[:8])}")
    notes += program.noted
    facts = {
        "samples": at.rows.n,
        "method": "the model's program, a law for every tensor",
        "gradient_method": "the same walk backwards; random cotangents on the output",
        "layers": len({s.tap.layer for s in layers}),
        "measured": measured,
        "no_rule": dict(program.unknown),
        "seed": seed,
        "seconds": time.perf_counter() - began,
        "notes": notes,
    }
    return Profile(tuple(sorted(records, key=lambda r: (r.layer, r.call))), {}, facts)


def _said(program: Program) -> str:
    return ", ".join(f"{name}: {why}" for name, why in program.unknown.items())


def _followed(at: Step, program: Program, names: Sequence[str], gradients: bool) -> tuple[list[Seen], dict[int, float]]:
    """The pass itself; and the squared gradient norms by the ``id`` of the law."""
    seen: list[Seen] = []

    def watch(tap: Tap, call: int, x: Tensor) -> None:
        with torch._C.DisableTorchFunction():  # ours are no calls of the model's
            found = _seen(at, tap, call, x, names)
        if found is not None:
            seen.append(found)

    with torch.no_grad():
        args, kwargs, _ = at.arguments()
        entry = next((x for x in tensors((args, kwargs)) if x.is_floating_point()), None)
        first = None if entry is None else _seen(at, Tap("", nn.Identity()), 0, entry, names)
        seen += [] if first is None else [first]
        try:
            with program, observed(find_taps(at.root), watch, at.root):
                whole = at.whole(args, kwargs)
            law = law_of(first_tensor(whole))
        finally:
            program.forget()
        grads: dict[int, float] = {}
        if gradients and isinstance(law, Field):
            grads = program.backward(law, torch.eye(law.count, dtype=law.moments[1].dtype) / law.count)
        program.draws.clear()
        return seen, grads


def _seen(at: Step, tap: Tap, call: int, x: Tensor, names: Sequence[str]) -> Seen | None:
    """What a layer returned, as a probe reads it."""
    law = law_of(x)
    if not isinstance(law, Field):
        rows = at.rows.of(x, tap.module)
        if rows is None or not rows.is_floating_point():
            return None
        statistic = Statistic.of(rows, spectrum=False)
        gram, features = statistic.gram / statistic.features, statistic.features
        return Seen(tap, call, _values(tap, gram, features, names), None)
    marks = at.rows.of(places(law.shape), tap.module)
    if marks is None:
        return None
    place = torch.empty(law.shape.numel(), dtype=torch.long)
    place[canonical(places(law.shape).long() - 1, law.features).reshape(-1)] = torch.arange(
        law.count
    ).repeat_interleave(law.size)
    sites = place[marks.long().reshape(len(marks), -1) - 1]
    columns, counts = distinct(sites)
    k = law.moments[1]
    total = torch.zeros(len(sites), len(sites), dtype=torch.float64)
    for column, count in zip(columns.T, counts.tolist(), strict=True):
        total += count * k[column][:, column].double()
    return Seen(tap, call, _values(tap, total / sites.shape[1], sites.shape[1], names), law)


def _values(tap: Tap, gram: Tensor, features: int, names: Sequence[str]) -> dict[str, float]:
    found = gram.double().numpy()
    if not np.isfinite(found).all():
        raise UsageError(f"The moments overflow at {tap.name!r}; lower the scale of the weights.")
    return {k: float(v[0]) for k, v in evaluate(names, found[None], samples=len(found), features=features).items()}


def _of(seen: Seen) -> list[Record]:
    tap = seen.tap
    here = Record(tap.layer, "", 0.0, "activation", tap.name, seen.call, tap.kind if tap.layer else "input")
    error = 0.0 if seen.law is None or not seen.law.sampled else math.nan
    return [here._replace(metric=k, value=v, stderr=error, source="predicted") for k, v in seen.values.items()]


def _growth(sizes: list[tuple[Seen, float]]) -> list[Record]:
    """Gradient norms relative to that of the last layer, and the ratio of each to the next that ran."""
    if not sizes:
        return []
    norms = [(s, math.sqrt(size / sizes[-1][1]) if sizes[-1][1] > 0 else math.nan) for s, size in sizes]

    def record(s: Seen, name: str, value: float) -> Record:
        return Record(s.tap.layer, name, value, "gradient", s.tap.name, s.call, s.tap.kind, source="predicted")

    found = [record(s, "gradient_norm", norm) for s, norm in norms]
    return found + [record(s, "gradient_growth", a / b) for (s, a), (_, b) in pairwise(norms) if b > 0]
