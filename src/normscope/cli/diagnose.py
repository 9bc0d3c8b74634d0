"""``normscope diagnose``: the main job."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from normscope.cli import _options as option
from normscope.cli._app import app, console
from normscope.cli._outputs import NO_PAGES, Pages, Writer, absolute, attempt, tables, with_pages
from normscope.core.errors import UsageError


@app.command()
@with_pages
def diagnose(
    ctx: typer.Context,
    models: option.ModelsOrConfig = None,
    data: option.Data = None,
    data_dir: option.DataDir = None,
    n: option.Count = None,
    loss: option.LossName = None,
    optimizer: option.Optimizer = None,
    samples: option.Axis = None,
    mode: option.Mode = None,
    layers: Annotated[list[str] | None, typer.Option(help="Glob pattern of module paths; may be repeated.")] = None,
    tokens: Annotated[bool, typer.Option(help="Count the tokens of sequences as samples.")] = False,
    theory: Annotated[
        bool, typer.Option(help="Draw the infinite-width prediction beside the layers that have one.")
    ] = True,
    curvature: Annotated[
        bool, typer.Option("--sharpness", help="Measure lambda_max and the largest stable learning rate too.")
    ] = False,
    trial: option.Trial = "auto",
    rates: option.Rates = False,
    lr: Annotated[float | None, typer.Option(help="A learning rate to hold against it; implies --sharpness.")] = None,
    seed: option.Seed = 0,
    device: option.Device = "cpu",
    dtype: option.Dtype = None,
    pages: Pages = NO_PAGES,
    csv: option.Csv = None,
    parquet: option.Parquet = None,
    json: option.Json = False,
    fail_on: option.FailOn = None,
    baseline: option.Baseline = None,
    write_baseline: option.WriteBaseline = None,
    output_format: option.OutputFormat = None,
    output_file: option.OutputFile = None,
    config: option.ConfigFile = None,
    no_config: option.NoConfig = False,
) -> None:
    """Show layer by layer what a network does to a batch, what is wrong with it, and why.

    Several models are compared in one report; without MODEL those of the configuration are. Exit code 0: fine, 1:
    --fail-on or --baseline fired, 2: misuse, 3: the model crashed.
    """
    from normscope.cli._config import OPTIONS, configuration, settled
    from normscope.cli._guard import Guard
    from normscope.cli._places import place_of
    from normscope.cli._shared import Given, check_lr, quiet, running
    from normscope.data.models import check_model
    from normscope.findings.diagnosis import content
    from normscope.findings.diagnosis import diagnose as run

    check_lr(lr)
    read = configuration(config, no_config)
    guard = Guard.of(
        read, fail_on, baseline, write_baseline, output_format, output_file, json, some=bool(models)
    )  # fmt: skip
    chosen = read.chosen(models or [])
    pages, csv, parquet = pages.absolute(), absolute(csv), absolute(parquet)
    pages.check(csv=csv, parquet=parquet, **{"write-baseline": guard.write_to, "output-file": guard.file})
    # Models of the configuration alone are looked at from its folder, wherever the command was given.
    folder = read.path.parent if read.path and not models else Path.cwd()
    line = {key: ctx.params[key] for key, _ in OPTIONS.values()}
    typed = {k: v for k, v in line.items() if getattr(ctx.get_parameter_source(k), "name", "") == "COMMANDLINE"}
    jobs = [settled(entry, read, line, typed, folder) for entry in chosen]
    with contextlib.chdir(folder):
        for name, options in jobs if len(jobs) > 1 else ():  # a slip in the last is told before the first is measured
            check_model(name, seed=options["seed"])
        diagnoses = []
        for entry, (name, options) in zip(chosen, jobs, strict=True):
            asked = {**options, "layers": options["layers"] or None, "trial": trial_of(options["trial"])}
            given = Given(**{key: asked.pop(key) for key in GIVEN})
            with console.status(f"probing {entry.label} ...") if guard.talks else quiet():
                step, source = given.step(name)
                with running(name, source, step):
                    made_up = source.startswith("tokens:") and asked["trial"] is True  # nothing to be learnt
                    found = run(step, label=entry.label, **asked | ({"trial": False} if made_up else {}))
            diagnoses.append(replace(found, facts={**found.facts, "data": source}))
        places = [place_of(name) for name, _ in jobs]
    judged = guard.judge(diagnoses, lambda i, _: places[i])
    report = content(judged.diagnoses)
    # Before anything is printed: a closed pipe must not lose them.
    made = {**writers(report, pages), **tables(report.table, csv, parquet), **guard.files(judged)}
    written, lost = attempt(made)
    guard.show(judged, report, written)
    if lost is not None:
        raise lost
    if judged.fails:
        raise typer.Exit(1)


#: What says how a model is looked at; the other options say what is measured.
GIVEN = ("data", "data_dir", "n", "loss", "samples", "mode", "device", "dtype", "optimizer", "seed")


def trial_of(value: str) -> str | int | bool:
    """What --trial says."""
    if value in ("auto", "none"):
        return value == "auto"
    if not value.isdecimal() or int(value) < 5:
        raise UsageError(f"--trial is auto, none or a number of steps from 5 on; got {value!r}. Leave it out for auto.")
    return int(value)


def writers(report: Any, pages: Pages) -> dict[Path | None, Writer]:
    """Writers of the files that show diagnoses side by side, for `attempt`."""

    def made() -> Any:
        from normscope.report.html import sheet_of

        return sheet_of(report)

    return pages.writers(made)
