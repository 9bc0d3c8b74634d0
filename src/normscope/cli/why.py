"""``normscope why``: a training script, run as it is, and what stands in the way of its training."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from normscope.cli import _options as option
from normscope.cli._app import CRASHED, app, console, errors, print_json, say
from normscope.cli._outputs import NO_PAGES, Pages, attempt, say_written, with_pages
from normscope.cli.diagnose import check_fail_on, failed, trial_of, writers

if TYPE_CHECKING:
    from normscope.findings.diagnosis import Diagnosis

#: Exit code where nothing can be said: no training step was seen.
UNCLEAR = 4


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})
@with_pages
def why(
    script: Annotated[str, typer.Argument(help="The training script, as python would be given it.")],
    args: Annotated[list[str] | None, typer.Argument(help="Its own arguments, passed on as they are.")] = None,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module, as for python -m.")] = False,
    steps: Annotated[int, typer.Option(help="Optimizer steps after which the script is stopped.")] = 20,
    max_seconds: Annotated[float, typer.Option(help="Seconds after which it is stopped at the next step.")] = 300.0,
    trial: option.Trial = "auto",
    rates: option.Rates = False,
    pages: Pages = NO_PAGES,
    json: option.Json = False,
    fail_on: option.FailOn = None,
) -> None:
    """Run a training script unchanged up to its first steps, and say why it does not train.

    Options of normscope stand before SCRIPT, the script's own behind it. The script really runs until it is stopped:
    files that it writes until then are written; trackers are told to stay offline. Exit code 0: fine, 1: --fail-on
    fired, 2: misuse, 3: the script crashed, 4: no training step was seen.
    """
    from normscope.cli._shared import quiet
    from normscope.findings.diagnosis import content
    from normscope.findings.why import run

    check_fail_on(fail_on or [])
    pages.check()
    tried = trial_of(trial)
    alone = os.environ.get("RANK", "0") == "0"  # of several processes one speaks
    if alone:
        errors.print(
            f"running {script} as it is, up to {steps} optimizer steps; what it writes until then it writes",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    with redirect_stdout(sys.stderr) if json else quiet():
        found = run(script, args or [], steps=steps, max_seconds=max_seconds, module=module, trial=tried, rates=rates)
    if not alone:
        return
    diagnoses = [replace(d, facts={**d.facts, "data": script}) for d in found.diagnoses]
    lost = None
    if diagnoses:
        report = content(diagnoses)
        written, lost = attempt(writers(report, pages))
        if not json:
            from normscope.report import terminal

            terminal.render(report, console)
            _places(diagnoses)
            say_written(written)
    if json:
        told = {"script": script, "ended": found.ended, "crash": found.crash, "missing": found.missing}
        print_json(told | {"models": [d.to_dict() for d in diagnoses]})
    if reasons := "" if found.crash else "; ".join(found.missing):
        say(f"A training step must be seen; {reasons}. Let the script get to optimizer.step(), or raise --max-seconds.")
    if found.crash:
        say(f"The script crashed{'' if diagnoses else ' before a training step was seen'}. {found.crash}")
    if lost is not None:
        raise lost
    if found.crash:
        raise typer.Exit(CRASHED)
    if not diagnoses:
        raise typer.Exit(UNCLEAR)
    if failed(diagnoses, fail_on or []):
        raise typer.Exit(1)


def _places(diagnoses: list[Diagnosis]) -> None:
    """Where in the script what was found stands."""
    for d in diagnoses:
        for what, where in d.facts["places"].items():
            named = what if what.startswith("the ") else f"module {what}"
            console.print(f"  {d.label}: {named} at {where}", soft_wrap=True, highlight=False, markup=False)
