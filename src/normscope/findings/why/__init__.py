"""``why``: run a user's training script as it is, and say of its first steps what stands in their way."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from normscope.call.traceless import Kept
from normscope.core.errors import UsageError, finite_number, flag, shown, whole_number
from normscope.core.files import expanded, path_text
from normscope.findings.diagnosis import Diagnosis, diagnose
from normscope.findings.why.games import against, out_of_reach, policy, same_way
from normscope.findings.why.made import Seen, Unclear, seen
from normscope.findings.why.patches import watching
from normscope.findings.why.watch import Enough, Watch

__all__ = ["Run", "run", "why"]

#: Why the fall of a loss is no measure.
GAME = "another optimizer trains a part of this loss in turns (a game, as of GANs): its fall is no measure, no trial"
POLICY = "the loss weighs what a policy did by its density: it rises with what is earned, its fall is no measure"
#: Trackers that would send something out: told to stay offline while the script runs.
OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "COMET_OFFLINE": "1", "NEPTUNE_MODE": "offline"}


@dataclass(frozen=True)
class Run:
    """What a script showed. diagnoses: one a pair of model and optimizer; ``missing``: why a pair has none, or why
    nothing was seen; ``crash``: the script's own exception, as its last lines; ``ended``: how the script ended.
    """

    diagnoses: list[Diagnosis]
    missing: list[str]
    crash: str
    ended: str


def why(
    script: str | os.PathLike[str], args: Sequence[str] = (), *, steps: int = 20, max_seconds: float = 300.0,
    module: bool = False, trial: bool | int | str = "auto", rates: bool | str = False,
) -> Diagnosis:  # fmt: skip
    """Run a training script unchanged, watch its first steps, and diagnose the step that it takes.

    The script runs as ``python script args`` would (``module``: as ``python -m script args``) up to ``steps`` steps of
    its optimizers, or ``max_seconds``; whatever it writes until then it writes. Model, batch, loss, optimizer and the
    loop's order of calls are worked out from what was seen, the model as it was before the first step.
    ``facts["places"]`` says where in the script they stand. trial, rates: as in `diagnose`. With several optimizers the
    diagnosis of the worst pair is returned; ``facts["pairs"]`` names all.
    Raises ``UsageError`` for a script that does not exist, or in which no step was seen, and why.
    """
    found = run(script, args, steps=steps, max_seconds=max_seconds, module=module, trial=trial, rates=rates)
    if not found.diagnoses:
        reasons = "; ".join(found.missing)
        raise UsageError(f"A training step must be seen that can be looked at; {reasons}. {found.crash}".rstrip())
    grave = {"error": 2, "warning": 1, "info": 0}
    worst = max(found.diagnoses, key=lambda d: max((grave[f.severity] for f in d.findings), default=0))
    worst.facts["pairs"] = [f"{d.label}: {d.verdict}" for d in found.diagnoses]  # type: ignore[index]
    return worst


def run(
    script: str | os.PathLike[str], args: Sequence[str] = (), *, steps: int = 20, max_seconds: float = 300.0,
    module: bool = False, trial: bool | int | str = "auto", rates: bool | str = False,
    on_step: Callable[[int], None] | None = None,
) -> Run:  # fmt: skip
    """As `why`, with everything that was seen."""
    whole_number("steps", steps, 1, "The usual number is 20.")
    finite_number("max_seconds", max_seconds, above=0, do="The usual limit is 300.")
    path, module = path_text(script, "script"), flag("module", module)
    if not module:
        expanded(path)
    if isinstance(args, str) or not isinstance(args, Sequence) or not all(isinstance(a, str) for a in args):
        raise UsageError(f"args must be a list of strings, the script's arguments; got {shown(args)}. Pass ['--lr'].")
    if not module and not Path(path).is_file():
        raise UsageError(
            f"why takes a Python script; {path!r} is no file. Give its path; a module's name goes with -m "
            "(module=True)."
        )
    watch = Watch(steps, max_seconds, on_step)
    crash, ended = "", "ended by itself"
    with _as_main(path, args, module), watching(watch):
        try:
            if module:
                runpy.run_module(path, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(path, run_name="__main__")
        except Enough:
            ended = "was stopped after enough steps"
        except SystemExit as stop:
            ended = f"left by sys.exit({stop.code!r})"
        except Exception as error:
            crash, ended = _last_lines(error), "crashed"
    diagnoses: list[Diagnosis] = []
    missing: list[str] = []
    pairs = list({id(p): p for p in watch.pairs.values()}.values())
    for pair in reversed(pairs):  # the last one that began is what the script is about
        if pair.beside is not None:
            continue
        try:
            rivals = [other for other in pairs if other is not pair and against(pair, other)]
            alike = next(filter(None, (same_way(pair, other) for other in rivals)), None)
            far = next(filter(None, (out_of_reach(pair, other) for other in rivals)), None)
            made = seen(pair, watch.held_out if len(pairs) == 1 else None)
            if rivals:
                made.observed.clear()
                made.observed["same_way"] = alike
                made.observed["out_of_reach"] = far
            else:
                made.observed["all"] = ended == "ended by itself"
            made.observed["trained"] = any(p.span[1] < pair.span[0] and p.held & pair.held for p in pairs)
            made.observed["elsewhere"] = set().union(*(p.held for p in pairs if p is not pair))
            earns = watch.drawn and policy(pair)
            made.observed |= {"policy": earns, "anew": 4 < pair.count <= pair.optimizers}
            made.observed["unloaded"] = watch.loads.left({id(p) for b in pair.before for p in b.parameters})
            made.observed["idle"] = watch.idle() if not diagnoses else None
            options = {"trial": False if rivals else trial, "rates": False if rivals else rates}
            made.notes.append(GAME if rivals else POLICY if earns else "")
            diagnoses.append(_told(made, options, pair.count))
        except Unclear as reason:
            missing.append(str(reason))
        except UsageError as error:  # a batch of one sample, a model that draws its own inputs
            missing.append(f"what the optimizer at {pair.place} trains: {str(error).rstrip('.')}")
    if not pairs:
        missing.append(
            f"the script {ended}, and no optimizer stepped"
            + (f" ({watch.backwards} backward passes were seen)" if watch.backwards else " (no backward pass was seen)")
        )
    return Run(diagnoses, missing, crash, ended)


def _told(made: Seen, options: dict[str, Any], steps: int) -> Diagnosis:
    found = diagnose(made.step, label=made.label, **options, observed=made.observed)
    found = replace(
        found,
        facts={
            **found.facts,
            "parameters": made.parameters,
            "notes": [*found.facts["notes"], *filter(None, made.notes)],
        },
    )
    named = {f.name for f in found.findings}
    places = {k: v for k, v in made.places.items() if k.startswith("the ") or k in named}
    return replace(found, facts={**found.facts, "places": places, "steps_seen": steps})


def _last_lines(error: Exception) -> str:
    """The user's last line of a traceback, and the message."""
    mine = str(Path(__file__).parents[2])
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((mine, "<frozen"))]
    own = [f for f in frames if "site-packages" not in f.filename] or frames
    where = f"{os.path.relpath(own[-1].filename)}:{own[-1].lineno}: {own[-1].line}\n" if own else ""
    return f"{where}{type(error).__name__}: {error}"


@contextmanager
def _as_main(script: str, args: Sequence[str], module: bool) -> Iterator[None]:
    """What ``python script args`` sets, and all of it back: arguments, path, directory, environment, streams of
    numbers.
    """
    argv, path, where = sys.argv, list(sys.path), os.getcwd()
    environment = dict(os.environ)
    kept: Any = Kept()
    try:
        sys.argv = [script, *args]
        sys.path.insert(0, os.getcwd() if module else str(Path(script).resolve().parent))
        for key, value in OFFLINE.items():
            os.environ.setdefault(key, value)
        with kept, kept:
            yield
    finally:
        sys.argv, sys.path[:] = argv, path
        os.chdir(where)
        os.environ.clear()
        os.environ.update(environment)
