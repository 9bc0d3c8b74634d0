"""``normscope sweep``: a grid of cells from a file or from the command line, and pictures of what came out."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normscope.cli import _options as option
from normscope.cli._app import app, console, errors, print_json
from normscope.cli._index import index
from normscope.cli._outputs import NO_PAGES, Pages, attempt, say_written, tables, with_pages
from normscope.core.errors import UsageError
from normscope.core.memory import size
from normscope.core.words import duration

if TYPE_CHECKING:
    import polars as pl

    from normscope.sweeping import Grid, Store
    from normscope.sweeping.plan import Plan, Plot

_EXTRA = {"ignore_unknown_options": True}
#: A comma between models, not between a model's arguments (``net.py:make,depth=3,timm:resnet18``).
_NEXT_MODEL = re.compile(r",(?=[^,=]*:)")


@app.command(context_settings=_EXTRA, epilog=f"Axes: --PARAMETER {index()['axes']}. Parameters: those of the task.")
@with_pages
def sweep(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="A TOML file (see docs/sweeps.md), axes, or both.", metavar="[FILE.toml] [--PARAMETER VALUES]..."
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="probe, simulate, predict, sharpness, train, phase, file.py:function.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="This many seeds a cell: an axis seed = 0, 1, ...")] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", "--out", help="Folder or s3://..., keeps every cell; run again to go on."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes, one thread each. Default: one a core.")] = None,
    dask: Annotated[bool, typer.Option(help="Run them as a local Dask cluster, with its dashboard.")] = False,
    scheduler: Annotated[str | None, typer.Option(help="A running Dask cluster, tcp://host:port.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds a cell may take.")] = None,
    memory: Annotated[str | None, typer.Option(help="What a cell may add to its worker, as 500MB or 2GB.")] = None,
    retries: Annotated[int | None, typer.Option(help="How often a cell that raised is run again.")] = None,
    retry_failed: Annotated[bool, typer.Option(help="Run the failures of former runs again.")] = False,
    compact: Annotated[bool, typer.Option(help="Merge the store's files at the end.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Only say how many cells there are, and which are done.")] = False,
    pages: Pages = NO_PAGES,
    csv: option.Csv = None,
    metrics: Annotated[
        str | None, typer.Option("--plot", help="Metrics to draw, a,b,c. Default: the main ones.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="lines, heat or auto (both where they fit).")] = None,
    json: option.Json = False,
) -> None:
    """Run a task on every cell of a grid; kept, resumed and drawn.

    normscope sweep --task simulate --depth 1:64:log2 --norm none,batch,layer --seeds 5 --store runs --html out.html

    Exit code 0: fine, 1: cells failed or the sweep stopped, 2: misuse, 130: Ctrl-C (run it again to go on).
    """
    from normscope.sweeping import Store, plan
    from normscope.sweeping.run import check_options
    from normscope.sweeping.task import Task

    pages.check(csv=csv)
    check_options(retries=retries or 0, timeout=timeout, workers=workers, memory=size(memory))
    plan.checked_plot(plan.Plot(kind=kind or "auto"))
    drawn = tuple(m.strip() for m in metrics.split(",")) if metrics else None
    planned = _planned(
        task, words or [], seeds=plan.checked_seeds(seeds), store=store,
        workers=workers, dask=dask or None, scheduler=scheduler, timeout=timeout, memory=memory, retries=retries,
        metrics=drawn, kind=kind,
    )  # fmt: skip
    grid = planned.grid()
    Task.of(planned.task).check(grid)
    kept = Store(planned.store)
    if dry_run:
        _dry(planned, grid, kept, json)
        return
    table = _run(planned, grid, kept, retry_failed, json)
    if compact:
        kept.compact()
    failed = table.filter(table["error"].is_not_null())
    # Before anything is printed: a closed pipe must not lose them.
    written, lost = _write(table, grid, planned, pages, csv)
    if json:
        print_json({"task": planned.task, "cells": len(grid), "failed": len(failed), "records": table.to_dicts()})
    else:
        _print(table, grid, failed)
        say_written(written)
    if lost is not None:
        raise lost
    if len(failed):
        raise typer.Exit(1)


def _planned(task: str | None, words: list[str], **options: Any) -> Plan:
    from normscope.sweeping import plan

    file = words.pop(0) if words and not words[0].startswith("--") else None
    if file is None and task is None:
        raise UsageError("Give a file (normscope sweep FILE.toml) or --task; see normscope sweep --help.")
    base = plan.read(file) if file is not None else plan.Plan(task or "")
    base = dataclasses.replace(base, task=task or base.task)
    return plan.changed(base, _axes(words, base.task), **options)


def _axes(words: list[str], task: str) -> dict[str, Any]:
    """``--depth 1:64:log2 --norm=none,batch`` as axes; the names are checked against the task's later."""
    from normscope.sweeping import plan
    from normscope.sweeping.ranges import HELP, axis

    kinds = plan.kinds_of(task)
    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise UsageError(f"After the file stand options, --PARAMETER VALUES; got {word!r}.")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"--{name} needs values: {HELP}.")
            value = rest.pop(0)
        name = name.replace("-", "_")
        if name in found:
            raise UsageError(f"An axis is given once; --{name} stands twice. Join its values with commas.")
        named = name == "model" and ":" in value
        values = _NEXT_MODEL.split(value) if named else axis(value, f"--{name}", kinds.get(name, ""))
        found[name] = values if len(values) > 1 else values[0]
    return found


def _dry(planned: Plan, grid: Grid, kept: Store, json: bool) -> None:
    from normscope.sweeping.run import state

    counts = state(grid, planned.task, kept)
    took = _typical_seconds(kept, planned.task)
    count = planned.executor.workers or _cores()
    estimate = counts["missing"] * took / count if took else None
    if json:
        print_json({"task": planned.task, "cells": len(grid), **counts, "workers": count, "seconds": estimate})
        return
    console.print(f"{planned.task}: {len(grid)} cells of {', '.join(grid.names)}", highlight=False, markup=False)
    for name in grid.names:
        values = list(dict.fromkeys(str(c.parameters.get(name)) for c in grid))
        shown = ", ".join(values[:12]) + (f", ... {values[-1]}" if len(values) > 12 else "")
        console.print(f"  {name:<14} {len(values):>4}   {shown}", highlight=False, markup=False, soft_wrap=True)
    told = f"{counts['done']} done, {counts['failed']} failed, {counts['missing']} to do"
    if estimate is not None:
        told += f": about {duration(estimate)} on {count} worker{'s' * (count > 1)}, from the cells done so far"
    console.print(told, highlight=False)


def _typical_seconds(kept: Store, task: str) -> float | None:
    import polars as pl

    of_task = kept.scan().filter((pl.col("task") == task) & pl.col("error").is_null() & (pl.col("row") == 0))
    return of_task.select(pl.col("seconds").mean()).collect().item()


def _cores() -> int:
    from normscope.sweeping.executors import cores

    return cores()


def _run(planned: Plan, grid: Grid, kept: Store, retry_failed: bool, json: bool) -> pl.DataFrame:
    from normscope.sweeping import SweepStopped, executors
    from normscope.sweeping import sweep as run
    from normscope.sweeping.run import state

    e = planned.executor
    began = time.monotonic()
    seen: list[Any] = []
    with ExitStack() as stack:
        executor = None
        if (e.scheduler or e.dask) and state(grid, planned.task, kept)["missing"] + retry_failed:
            executor = stack.enter_context(executors.dask(e.scheduler, e.workers))
            if not json and (link := executors.dashboard(executor)):
                console.print(f"Dask dashboard: {link}", highlight=False, soft_wrap=True)
        from normscope.sweeping.progress import shown

        try:
            with shown(errors.is_terminal and not json) as bar:

                def tell(progress: Any) -> None:
                    if not seen:
                        for line in progress.set_aside:
                            errors.print(f"set aside: {line}", markup=False, highlight=False, soft_wrap=True)
                    seen[:] = [progress]
                    bar(progress)

                found = run(
                    grid, planned.task, kept, executor, workers=e.workers, in_flight=e.in_flight, retries=e.retries,
                    timeout=e.timeout, memory=size(e.memory), retry_failed=retry_failed, progress=tell,
                )  # fmt: skip
        except SweepStopped as stop:
            errors.print(str(stop), markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from None
    table = found.lazy().collect()
    if not json:
        p = seen[0] if seen else None
        new = p.finished if p else 0
        told = (
            f"{len(grid)} cells: {new} computed in {duration(time.monotonic() - began)}, {len(grid) - new} from "
            "the store"
        )
        console.print(told, highlight=False)
    return table


def _print(table: pl.DataFrame, grid: Grid, failed: pl.DataFrame) -> None:
    """Means over seeds of the main metrics, a row a cell; failures by their last line."""
    from rich.table import Table

    from normscope.report import sweeps

    summary = sweeps.summary(table, grid.names)
    axes = [n for n in (*grid.names, "layer") if n != "seed" and n in summary.columns]
    names = [n for n in axes if summary[n].n_unique() > 1]
    width = max(2, (console.width - 12 * len(names)) // 16)
    metrics = sweeps.main_metrics(table)[:width]
    shown = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in [*names, *(m.replace("_", "\n", 1) for m in metrics)]:
        shown.add_column(name, justify="right")
    rows = sweeps.rows(summary, names, metrics)
    most = 40
    for row in rows[:most]:
        shown.add_row(*[str(row[n]) for n in names], *[_cell(row.get(m)) for m in metrics])
    console.print(shown)
    if len(rows) > most:
        console.print(f"[dim]{len(rows) - most} more rows: --csv, --html[/]")
    for row in failed.head(5).iter_rows(named=True):
        what = ", ".join(f"{n}={row[n]}" for n in grid.names if n in row)
        errors.print(f"failed: {what}: {sweeps.last_line(row['error'])}", markup=False, highlight=False, soft_wrap=True)
    if len(failed):
        errors.print(f"{len(failed)} cells failed; their tracebacks are in the table's column error.", highlight=False)


def _cell(value: tuple[float, float, int] | None) -> str:
    if value is None or math.isnan(value[0]):
        return "-" if value is None else "nan"
    mean, sd, _ = value
    return f"{mean:.4g}" + (f" +- {sd:.1g}" if sd > 1e-3 * abs(mean) and math.isfinite(mean) else "")


def _write(
    table: pl.DataFrame, grid: Grid, planned: Plan, pages: Pages, csv: Path | None
) -> tuple[list[Path], UsageError | None]:
    from normscope.report import sweeps

    plot: Plot = planned.plot

    def swept() -> Any:
        return sweeps.Sweep(
            table, tuple(grid.names), planned.task, x=plot.x, y=plot.y, metrics=plot.metrics, colour=plot.colour,
            facet=plot.facet, kind=plot.kind, title=plot.title, log=plot.log,
        )  # fmt: skip

    written, lost = attempt({**pages.writers(lambda: sweeps.sheet_of(swept())), **tables(table, csv, None)})
    try:
        swept()  # a metric to draw that is in no cell is told, drawn or not
    except UsageError as error:
        lost = lost or error
    return written, lost
