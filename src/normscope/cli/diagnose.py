"""``normscope diagnose``: the main job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normscope.cli import _options as option
from normscope.cli._app import app, console, print_json
from normscope.cli._index import index
from normscope.cli._outputs import NO_PAGES, Pages, Writer, attempt, say_written, tables, with_pages
from normscope.core.errors import UsageError, unknown

if TYPE_CHECKING:
    from normscope.findings.diagnosis import Diagnosis
    from normscope.findings.review import Review


@app.command()
@with_pages
def diagnose(
    models: option.Models,
    data: option.Data = None,
    data_dir: option.DataDir = None,
    n: option.Count = None,
    loss: option.LossName = None,
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
) -> None:
    """Show layer by layer what a network does to a batch, what is wrong with it, and why.

    Several models are compared in one report. Exit code 0: fine, 1: --fail-on fired, 2: misuse, 3: the model crashed.
    """
    from normscope.cli._shared import Given, check_lr, quiet, running
    from normscope.data.models import check_model
    from normscope.findings.diagnosis import content
    from normscope.findings.diagnosis import diagnose as run

    check_fail_on(fail_on or [])
    pages.check(csv=csv, parquet=parquet)
    check_lr(lr)
    for name in models if len(models) > 1 else ():  # a slip in the last is told before the first is measured
        check_model(name, seed=seed)
    given = Given(data, data_dir, n, loss, samples, mode, seed, device, dtype)
    options: dict[str, Any] = {
        "layers": layers or None, "tokens": tokens, "theory": theory, "curvature": curvature, "lr": lr,
        "trial": trial_of(trial), "rates": rates,
    }  # fmt: skip
    diagnoses = []
    for name in models:
        with console.status(f"probing {name} ...") if not json else quiet():
            step, source = given.step(name)
            with running(name, source, step):
                found = run(step, label=name, **options)
            diagnoses.append(replace(found, facts={**found.facts, "data": source}))
    report = content(diagnoses)
    # Before anything is printed: a closed pipe must not lose them.
    written, lost = attempt({**writers(report, pages), **tables(report.table, csv, parquet)})
    if json:
        print_json(
            {"models": [d.to_dict() | {"label": f["label"]} for d, f in zip(diagnoses, report.facts, strict=True)]}
        )
    else:
        from normscope.report import terminal

        terminal.render(report, console)
        say_written(written)
    if lost is not None:
        raise lost
    if failed(diagnoses, fail_on or []):
        raise typer.Exit(1)


def trial_of(value: str) -> str | int | bool:
    """What --trial says."""
    if value in ("auto", "none"):
        return value == "auto"
    if not value.isdecimal() or int(value) < 5:
        raise UsageError(f"--trial is auto, none or a number of steps from 5 on; got {value!r}. Leave it out for auto.")
    return int(value)


def check_fail_on(wanted: list[str]) -> None:
    """What --fail-on names exists."""
    codes = index()["rules"]
    for item in wanted:
        if item not in ("warning", "error", "info") and item not in codes:
            raise unknown("severity or finding code", item, ["warning", "error", *codes])


def failed(diagnoses: Sequence[Diagnosis | Review], wanted: list[str]) -> bool:
    """Whether any of what --fail-on names was found."""
    found = [f for d in diagnoses for f in d.findings]
    levels = {"error": {"error"}, "warning": {"error", "warning"}, "info": {"error", "warning", "info"}}
    return any(f.code == w or f.severity in levels.get(w, ()) for f in found for w in wanted)


def writers(report: Any, pages: Pages) -> dict[Path | None, Writer]:
    """Writers of the files that show diagnoses side by side, for `attempt`."""

    def made() -> Any:
        from normscope.report.html import sheet_of

        return sheet_of(report)

    return pages.writers(made)
