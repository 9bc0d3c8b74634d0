"""``normscope why``: a training script, run as it is, and what stands in the way of its training."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from normscope.cli import _options as option
from normscope.cli._app import CRASHED, app, console, errors, say
from normscope.cli._outputs import NO_PAGES, Pages, attempt, with_pages
from normscope.cli.diagnose import trial_of, writers

if TYPE_CHECKING:
    from normscope.findings import Finding
    from normscope.findings.diagnosis import Diagnosis

#: Exit code where nothing can be said: no training step was seen.
UNCLEAR = 4
#: Of what ``why --json`` prints: that of ``diagnose`` and what is known of the script.
SCHEMA = "normscope.why/1"


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
    baseline: option.Baseline = None,
    write_baseline: option.WriteBaseline = None,
    output_format: option.OutputFormat = None,
    output_file: option.OutputFile = None,
    config: option.ConfigFile = None,
    no_config: option.NoConfig = False,
) -> None:
    """Run a training script unchanged up to its first steps, and say why it does not train.

    Options of normscope stand before SCRIPT, the script's own behind it. The script really runs until it is stopped:
    files that it writes until then are written; trackers are told to stay offline. Exit code 0: fine, 1: --fail-on
    fired, 2: misuse, 3: the script crashed, 4: no training step was seen.
    """
    from normscope.cli._config import configuration
    from normscope.cli._guard import Guard
    from normscope.cli._shared import quiet
    from normscope.findings.diagnosis import content
    from normscope.findings.why import run

    read = configuration(config, no_config)
    guard = Guard.of(read, fail_on, baseline, write_baseline, output_format, output_file, json)
    pages.check(**{"write-baseline": guard.write_to, "output-file": guard.file})
    tried = trial_of(trial)
    alone = os.environ.get("RANK", "0") == "0"  # of several processes one speaks
    if alone:
        errors.print(
            f"running {script} as it is: {steps} optimizer steps are recorded, and the losses behind them for 20 s at "
            "most; what it writes until then it writes",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    with quiet() if guard.talks else redirect_stdout(sys.stderr):
        found = run(script, args or [], steps=steps, max_seconds=max_seconds, module=module, trial=tried, rates=rates)
    if not alone:
        return
    diagnoses = [replace(d, facts={**d.facts, "data": script}) for d in found.diagnoses]
    told = {"schema": SCHEMA, "script": script, "ended": found.ended, "crash": found.crash, "missing": found.missing}

    judged = guard.judge(diagnoses, lambda i, finding: _place(diagnoses[i], finding, script))
    report = content(judged.diagnoses) if diagnoses else None
    made = writers(report, pages) if report else {}
    written, lost = attempt({**made, **guard.files(judged, **told)})
    guard.show(judged, report, written, **told)
    if guard.talks:
        _places(judged.diagnoses)
    reasons = "" if found.crash else "; ".join(found.missing)
    if reasons and diagnoses and guard.talks:
        console.print(f"  not looked at: {reasons}", soft_wrap=True, highlight=False, markup=False)
    elif reasons and not diagnoses:
        say(f"A training step must be seen that can be looked at; {reasons}.")
    if found.crash:
        say(f"The script crashed{'' if diagnoses else ' before a training step was seen'}. {found.crash}")
    if lost is not None:
        raise lost
    if found.crash:
        raise typer.Exit(CRASHED)
    if not diagnoses:
        raise typer.Exit(UNCLEAR)
    if judged.fails:
        raise typer.Exit(1)


def _places(diagnoses: Sequence[Diagnosis]) -> None:
    """Where in the script what was found stands."""
    for d in diagnoses:
        for what, where in d.facts["places"].items():
            named = what if what.startswith("the ") else f"module {what}"
            console.print(f"  {d.label}: {named} at {where}", soft_wrap=True, highlight=False, markup=False)


def _place(d: Diagnosis, finding: Finding, script: str) -> tuple[str, int]:
    """File and line for a finding: of its module's class, of the loss, of the optimizer, or the script's first."""
    from normscope.cli._places import shown

    places = d.facts["places"]
    usual = "the loss" if finding.code.startswith("NS7") else "the optimizer"
    file, _, rest = (places.get(finding.name) or places.get(usual, "")).partition(":")
    line = rest.partition(" ")[0]
    if line.isdecimal():
        return shown(file), int(line)
    return (shown(script), 1) if os.path.isfile(script) else ("", 0)
