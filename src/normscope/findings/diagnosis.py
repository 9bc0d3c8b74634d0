"""Will it train? Probe a model on one batch, apply the rules, say what was found."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import tensors
from normscope.call.graph import NoGradient
from normscope.call.losses import LossLike
from normscope.call.step import Step
from normscope.call.traceless import alone
from normscope.core import favourites
from normscope.core.errors import UsageError, flag, shown, whole_number
from normscope.core.faces import Shown, show
from normscope.core.memory import check_room, does_not_fit
from normscope.core.records import Profile
from normscope.core.words import version
from normscope.findings import Finding, find
from normscope.findings.checkup import check_up
from normscope.findings.checkup.data import cleaned, finite, finite_loss, firsts, load
from normscope.findings.rates import numbers, tried, wanted
from normscope.findings.trial import LITTLE, ends
from normscope.probing.passes import probe
from normscope.training.handed import by_its_loop
from normscope.training.own import wants_a_closure

if TYPE_CHECKING:
    import polars

    from normscope.curvature import Sharpness
    from normscope.learning_rates import Rates


@dataclass(frozen=True, repr=False)
class Diagnosis(Shown):
    """What `diagnose` found: ``profile`` (every number), ``findings`` (rules that fired, the worst first).

    ``fisher``: the curvature of the whole batch (`normscope.Sharpness`), ``None`` unless it was asked for; ``rates``:
    the learning rates that were tried (`normscope.Rates`), one an optimizer.
    """

    face = "diagnosis"
    label: str
    profile: Profile
    findings: list[Finding]
    fisher: Sharpness | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    rates: tuple[Rates, ...] = ()

    @property
    def layers(self) -> polars.DataFrame:
        """One row a layer (and call) in the order of execution; the columns of ``favourites.DIAGNOSIS``."""
        import polars as pl

        rows: dict[tuple[int, int], dict[str, Any]] = {}
        for r in self.profile.records:
            if r.source != "measured":
                continue
            row = rows.setdefault((r.layer, r.call), {"layer": r.layer, "name": r.name, "call": r.call, "kind": r.kind})
            if favourites.DIAGNOSIS.get(r.metric) == r.signal:
                row[r.metric] = r.value
        schema = {"layer": pl.Int64, "name": pl.String, "call": pl.Int64, "kind": pl.String}
        return pl.DataFrame(list(rows.values()), schema=schema | dict.fromkeys(favourites.DIAGNOSIS, pl.Float64))

    @property
    def verdict(self) -> str:
        """One sentence: whether anything stands in the way of training, and what."""
        worst = [f for f in self.findings if f.severity == "error"] or [
            f for f in self.findings if f.severity == "warning"
        ]
        seen, unseen = self._looked_at()
        aside = f" ({'; '.join(unseen)})" if unseen else ""
        tried = self._tried()
        if not worst:
            return f"Nothing found in {seen}{aside}.{tried}"
        names = ", ".join(dict.fromkeys(f.title + f.place for f in worst))
        return (
            f"{'Will hardly train as it is' if worst[0].severity == 'error' else 'At risk'}: {names}. Looked "
            f"at {seen}{aside}.{tried}"
        )

    @property
    def trains(self) -> dict[str, bool | None]:
        """Whether the trial lowered the loss far below chance: ``sgd`` and ``adam`` at the best of several rates (what
        needs 200 steps on one batch does not count as trained, or only just), ``own`` with the optimizer and loop as
        given; ``None`` where that did not run.
        """
        trial = self.profile.facts.get("checkup", {}).get("trial", {})
        return {k: trial[k]["trains"] if k in trial else None for k in ("sgd", "adam", "own")}

    def _tried(self) -> str:
        """What the trial did, in a sentence."""
        trial = self.profile.facts.get("checkup", {}).get("trial", {})
        if "sgd" not in trial:
            return ""
        trained = [name for name, key in (("SGD", "sgd"), ("Adam", "adam")) if trial[key]["trains"]]
        unknown = any(trial[key]["trains"] is None for key in ("sgd", "adam"))
        slow = [n for n, key in (("SGD", "sgd"), ("Adam", "adam")) if trial[key].get("slow") and n not in trained]
        later = f"{' and ' if trained else ''}slowly with {' and '.join(slow)}" if slow else ""
        little = max(trial[key]["progress"] for key in ("sgd", "adam")) > LITTLE
        whom = (f"with {' and '.join(trained)} " if trained else "") + later or (
            "with neither SGD nor Adam, too few steps to tell" if unknown
            else "little, with SGD and with Adam" if little else "with neither SGD nor Adam"
        )  # fmt: skip
        most = max(trial[key]["steps"] for key in ("sgd", "adam"))
        longer = f" to {most}" if most > trial["steps"] else ""
        words = f" In a trial of {trial['steps']}{longer} steps the loss fell {whom.strip()}"
        if "own" in trial:
            own = trial["own"]
            first, last = ends(own)
            end = "diverged" if own["blown"] else f"went from {first:.3g} to {last:.3g}"
            words += f", and with your own optimizer it {end}"
            words += "" if own["steps"] == trial["steps"] else f" in {own['steps']} steps"
        return words + ("." if trial["steps"] >= 20 or not trial["auto"] else " (more steps take more than 20 s).")

    def _looked_at(self) -> tuple[str, list[str]]:
        """The families of checks that ran, in words, and what could not be looked at."""
        checkup: Mapping[str, Any] = self.profile.facts.get("checkup", {})
        gradients = any(r.signal == "gradient" for r in self.profile.records)
        seen = ["geometry", *(["gradients"] if gradients else [])]
        seen += ["wiring"] if "wiring" in checkup else []
        seen += ["loss"] if "task" in checkup.get("loss", {}) else []
        seen += ["data"] if "data" in checkup else []
        seen += ["optimizer"] if checkup.get("update") else []
        seen += ["learning rates"] if self.rates else []
        given = checkup.get("given", [])
        unseen = [] if "optimizer" in given else ["no optimizer given"]
        unseen += [] if gradients else ["no gradient"]
        unseen += [] if not gradients or "task" in checkup.get("loss", {}) else ["the loss only as a whole"]
        unseen += [f"could not look at {_SECTIONS.get(k, k)}" for k in checkup.get("left_out", {})]
        unseen += (
            [] if "sgd" in checkup.get("trial", {}) or "trial" in checkup.get("left_out", {}) else ["no trial run"]
        )
        words = f"{', '.join(seen[:-1])} and {seen[-1]}" if len(seen) > 1 else seen[0]
        return words, unseen

    def content(self) -> Any:
        """The tables a report reads."""
        return content([self])

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one self-contained HTML file (needs the extra ``report``)."""
        show("as.file", show(self.face, self), path, "html")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single numbers of ``profile``: facts, verdict, findings and layers, ready for JSON."""
        return {
            "label": self.label,
            "verdict": self.verdict,
            "facts": dict(self.facts),
            "findings": [f.__dict__ for f in self.findings],
            "layers": self.layers.to_dicts(),
            "sharpness": self.fisher.to_dict() if self.fisher else None,
            "rates": [r.to_dict() for r in self.rates],
        }

    def __repr__(self) -> str:
        codes = ", ".join(f"{f.code} {f.severity}" for f in self.findings) or "no findings"
        return f"Diagnosis({self.label}: {codes}; {self.facts.get('layers', 0)} layers, {self.facts.get('mode')} mode)"

    def __str__(self) -> str:
        return "\n".join([self.verdict, *map(str, self.findings)])


@alone
def diagnose(
    model: nn.Module | Step,
    inputs: Any = None,
    targets: Any = None,
    loss: LossLike = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    data: Any = None,
    valid: Any = None,
    step: Callable[..., Any] | None = None,
    train_step: Callable[..., Any] | None = None,
    mode: str | None = None,
    samples: int | None = None,
    label: str | None = None,
    layers: str | Sequence[str] | None = None,
    tokens: bool = False,
    theory: bool = True,
    curvature: bool = False,
    lr: float | None = None,
    trial: bool | int | str = "auto",
    rates: bool | str = False,
    steps: int | None = None,
    seed: int = 0,
    observed: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Probe a model on one batch and apply every rule of ``normscope.findings.RULES``.

    model, inputs, targets, loss, optimizer, data, valid, step, train_step, samples: a `Step`, or what one is made of
        (``docs/inputs.md``). Without targets and loss the gradient flow is that of the model's own loss, or of a random
        cotangent on the outputs. One batch of 32 to 128 samples is enough. layers, tokens, seed: as in `probe`.
    mode: ``"train"`` (the default): batch norm uses this batch, as in the first training step; ``"eval"`` must be asked
        for.
    theory: lay the infinite-width prediction beside the measurement, for the layers that have one in 1 s.
    curvature: measure the largest eigenvalue of the whole batch's Fisher matrix too, with and without centred outputs
        (about ten more passes; rules NS4xx). lr: a learning rate to hold against it; implies ``curvature``.
    trial: "auto" trains copies of the model for up to 50 steps, with the given optimizer and loop, and with SGD and
        Adam at several rates, as far as 20 s go; a number: steps of each run; ``False``: none. The geometry explains,
        the trial decides. steps: how many updates the training is meant to have. observed: what a running script showed
        (`why`).
    rates: True tries learning rates on copies (`normscope.rates`, at most 200 passes an optimizer), of the optimizer as
        given, else of SGD, momentum and Adam; the rate in use is then judged by them (NS402). "auto": where an
        optimizer is given, nothing is wrong with wiring, loss and data, and it takes no more than 20 s.
    label: the model's name in reports; default its class.
    optimizer, data, valid, train_step: each switches on the checks that it makes possible: of what the optimizer holds
    and what
        its step does (on copies), of every batch (64 at most), of training beside validation, of the order of the
        loop's calls.

    The model is left as it was, bit for bit.
    Raises ``UsageError`` for fewer than two samples, for NaN or infinity in the inputs (with ``data``: a finding), and
    in the
    parameters (which parameter, and the first layer whose output it reaches).
    """
    if lr is not None and not (isinstance(lr, int | float) and not isinstance(lr, bool) and 0 < lr < math.inf):
        raise UsageError(f"lr must be a positive number; got {shown(lr)}. Leave it out to judge no rate.")
    if label is not None and not isinstance(label, str):
        raise UsageError(f"label must be a text; got {shown(label)}. Leave it out for the model's class.")
    theory, tokens, curvature = flag("theory", theory), flag("tokens", tokens), flag("curvature", curvature)
    if observed is not None and not isinstance(observed, Mapping):
        raise UsageError(f"observed must be a mapping of what was seen; got {shown(observed)}. Leave it out.")
    trial, asked = _trial(trial), wanted(rates)
    if not isinstance(model, Step):
        mode = "train" if mode is None else mode
        if mode not in ("train", "eval"):
            raise UsageError(f"mode must be 'train' or 'eval'; got {shown(mode)}.")
    at = Step.of(
        model, inputs, targets, loss, mode=mode, seed=seed, samples=samples, optimizer=optimizer, data=data,
        valid=valid,
        step=step, train_step=train_step, steps=steps,
    )  # fmt: skip
    at = by_its_loop(at)
    model = at.root
    notes: list[str] = []
    batches = load(at, at.data)
    broken = finite(at, firsts(batches)) if at.data is not None else {}
    if broken:
        i = broken["batch"]
        raw = at if i < 0 else replace(at, inputs=batches[i][0], targets=batches[i][1])
        broken["meant"] = finite_loss(raw)
        at = cleaned(at)
        notes.append("inputs and targets that are not finite were replaced by 0 for all other checks")
    profile, note = measured(at, layers=layers, tokens=tokens)
    notes += note
    profile.facts["checkup"] = check_up(at, broken, batches, trial, observed)  # type: ignore[index]
    label = label or type(model).__name__
    facts = {"label": label, **profile.facts, "notes": [*profile.facts["notes"], *notes]}
    fisher = None
    if curvature or lr is not None:
        fisher = _curvature(at, lr, facts)
        profile.facts.update(  # type: ignore[attr-defined]
            {k: facts[k] for k in ("lambda_max", "lambda_max_centred", "learning_rate") if k in facts}
        )
    found, hindered = tried(at, asked, profile)
    profile.facts["checkup"]["rates"] = numbers(found)
    facts["notes"] += [hindered] if hindered else []
    facts["notes"] += [CLOSURE] if at.optimizer is not None and not observed and wants_a_closure(at.optimizer) else []
    left_out = profile.facts["checkup"]["left_out"].items()
    facts["notes"] += [f"could not look at {_SECTIONS.get(k, k)}: {shorten(why, 200)}" for k, why in left_out]
    findings = find(profile)
    if theory and at.mode == "train" and not tokens:
        profile = _with_prediction(at, profile, facts)
    diagnosis = Diagnosis(label, profile, findings, fisher, facts, found)
    facts["verdict"] = diagnosis.verdict
    facts["normscope"] = version()
    return diagnosis


#: Said of L-BFGS and its like.
CLOSURE = "the optimizer computes the loss inside of its step (a closure): its own steps were not looked at"
#: Sections of the check-up, as people call them.
_SECTIONS = {
    "free": "what the loss allows", "calls": "the calls", "mixing": "who sees whom", "places": "the places of inputs",
    "pull": "what pulls", "update": "the optimizer's step", "loop": "the loop", "trial": "the trial",
}  # fmt: skip


def measured(at: Step, **options: Any) -> tuple[Profile, list[str]]:
    """The profile of a step, forwards and backwards where something takes a gradient, and what had to be left out."""
    _check_inputs(at)
    notes: list[str] = []
    try:
        profile = probe(at, backward=True, **options)
    except NoGradient:
        notes.append("no parameter and no floating input takes a gradient: the backward pass was left out")
        profile = probe(at, backward=False, **options)
    _check_parameters(at.root, profile)
    return profile, notes


def _trial(value: Any) -> bool | int | str:
    """ "auto" (``True``), ``False`` or a number of steps."""
    if value is True or value == "auto":
        return "auto"
    if value is False or value is None:
        return False
    return whole_number("trial, where it is no 'auto' and no False,", value, 5, "It is how many steps a run has.")


def _curvature(at: Step, lr: float | None, facts: dict[str, Any]) -> Sharpness | None:
    """The sharpness of the batch, its numbers among the facts; ``None`` and a note where it is not defined."""
    from normscope.curvature import last_layer, sharpness
    from normscope.linalg import spectrum

    one = at if at.alone else replace(at, data=None)
    try:
        found = sharpness(one, probes=4, compare_modes=False)
    except (UsageError, MemoryError) as error:
        facts["notes"].append(f"no sharpness: {error}")
        return None
    facts |= {"lambda_max": found.lambda_max, "max_stable_lr": found.max_stable_lr, "curvature_loss": found.loss}
    facts["notes"] += [n for n in found.facts["notes"] if n not in facts["notes"]]
    if lr is not None:
        facts["learning_rate"] = lr
    if found.loss in ("mse", "cross_entropy", "squared_error"):
        facts["lambda_max_centred"] = float(spectrum(last_layer(one, None, "center"), tol=0.02).eigenvalues[0])
        if len(at.args) == 1 and isinstance(at.args[0], Tensor) and at.mode == "train":
            from normscope.theory import predicted_sharpness

            expected = at.run(lambda: predicted_sharpness(at.root, at.args[0], found.loss))
            if expected is not None:
                facts["lambda_max_predicted"] = expected
    return found


def _with_prediction(at: Step, profile: Profile, facts: dict[str, Any]) -> Profile:
    """The profile and its prediction; where there is none for want of memory, time or luck, a note among the facts."""
    from normscope.theory import overlay, program_overlay

    plain = len(at.args) == 1 and isinstance(at.args[0], Tensor) and at.args[0].is_floating_point()
    try:
        predicted = None
        if plain:
            inputs = at.args[0].detach().double()
            # In a run: reading a parametrized weight computes it, and may move the buffers it is computed with.
            predicted = at.run(lambda: overlay(at.root, inputs, profile, metrics=favourites.FEW))
        if predicted is None and at.device.type == "cpu" and at.step is None:
            predicted = program_overlay(at, profile, metrics=favourites.FEW)
    except Exception as error:  # whatever fails beside a finished measurement must not lose it
        named = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
        why = "it does not fit in memory" if does_not_fit(error) else named
        facts["notes"].append(f"no prediction beside it: {why}")
        return profile
    if predicted is None:
        return profile
    return Profile(profile.records + predicted.records, profile.parameters, profile.facts)


def content(diagnoses: Sequence[Diagnosis], title: str | None = None) -> Any:
    """Several diagnoses as the tables of one report; equal labels are told apart by a number."""
    return show("diagnosis.content", diagnoses, title)


def _check_inputs(at: Step) -> None:
    named = [(f"inputs[{k!r}]", v) for k, v in at.kwargs.items()]
    several = len(at.args) > 1
    for i, value in enumerate(at.args):
        named.append((f"inputs[{i}]" if several or not isinstance(value, Tensor) else "inputs", value))
    for name, value in ((name, x) for name, held in named for x in tensors(held)):
        if not (value.is_floating_point() and value.dim()):
            continue
        check_room(1.25 * value.numel() * value.element_size(), "A look at the batch", "Take fewer samples.")
        wrong = (
            value.isnan() if "mask" in name else ~value.isfinite()
        )  # an additive mask is minus infinity where it hides
        if wrong.any():
            bad = wrong.reshape(len(value), -1).any(1)
            first = int(bad.nonzero()[0])
            raise UsageError(
                f"{name} must be finite; {int(bad.sum())} of {len(value)} samples hold NaN or infinity, the first is "
                f"sample {first}. Clean the data."
            )


def _check_parameters(model: nn.Module, profile: Profile) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter.detach()).all():
            count = int((~parameter.detach().isfinite()).sum())
            first = next((r for r in profile.records if r.metric == "mean_norm" and r.value != r.value), None)
            reached = (
                f"its effect is first seen at layer {first.layer} ({first.name})" if first else "no output shows it"
            )
            raise UsageError(
                f"Parameters must be finite; {name} holds {count} NaN or infinite values, and {reached}. "
                "Load or initialize it again."
            )
