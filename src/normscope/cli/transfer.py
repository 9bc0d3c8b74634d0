"""``normscope transfer``: whether the best learning rate of small nets holds for a wider and deeper one."""

from __future__ import annotations

from typing import Annotated

import typer

from normscope.cli import _options as option
from normscope.cli._app import app, console, errors, print_json, say
from normscope.cli._outputs import NO_PAGES, Pages, attempt, say_written, tables, with_pages
from normscope.core.errors import MANY, UsageError, whole_number


@app.command()
@with_pages
def transfer(
    model: option.Model,
    width: Annotated[str, typer.Option(help="Widths of the small nets: 16,32,64 or 16:64:log2.")] = "16,32,64",
    depth: Annotated[str, typer.Option(help="Their depths.")] = "2,4,8",
    to: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxDEPTH", help="The large net. Default: 8 times as wide, 4 times as deep."),
    ] = None,
    optimizer: Annotated[str, typer.Option(help="sgd, momentum, nesterov, adam or adamw.")] = "sgd",
    seeds: Annotated[int, typer.Option(help="Nets of each size.")] = 3,
    steps: Annotated[int, typer.Option(help="Updates after which a rate is best.")] = 20,
    measure: Annotated[
        bool, typer.Option(help="Try the large net too, 200 passes a seed; else its first eight steps foretell it.")
    ] = True,
    data: option.Data = None,
    data_dir: option.DataDir = None,
    n: option.Count = None,
    loss: option.LossName = None,
    seed: Annotated[int, typer.Option(help="Of the batch.")] = 0,
    store: Annotated[str | None, typer.Option(help="Folder or s3://..., keeps every net; run again to go on.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes, one thread each. Default: one a core.")] = None,
    pages: Pages = NO_PAGES,
    csv: option.Csv = None,
    json: option.Json = False,
) -> None:
    """Find the best learning rate of small nets, and say what it is for a wider and deeper one.

    MODEL takes width and depth by these names: mlp:norm=batch, or path/net.py:make of def make(width, depth). Each
    small net is tried at rates on copies, and its activations and updates are measured over the first steps (coordinate
    check); so is the large one, beside what is foretold of it, with --no-measure no more than eight steps of it. Exit
    code 0: fine, 1: nets failed or the sweep stopped, 2: misuse, 4: no rate can be told, 130: Ctrl-C (with --store run
    it again to go on).
    """
    from normscope.cli._shared import Given
    from normscope.learning_rates.transfer import transfer as run
    from normscope.sweeping import SweepStopped
    from normscope.sweeping.ranges import axis
    from normscope.sweeping.run import check_options

    pages.check(csv=csv)
    whole_number("--seeds", seeds, 1, most=MANY)
    whole_number("--steps", steps, 2)
    check_options(workers=workers)
    widths, depths = axis(width, "--width"), axis(depth, "--depth")
    large = _size(to) if to is not None else None
    small = f"{model}{'' if model.endswith(':') else ','}width={min(widths)},depth={min(depths)}"
    step, source = Given(data, data_dir, n, loss, seed=seed).step(small)
    try:
        found = run(
            model, step.inputs, step.targets, step.loss, optimizer, widths=widths, depths=depths, to=large, seeds=seeds,
            steps=steps, measure=measure, store=store, workers=workers, progress=errors.is_terminal and not json,
        )  # fmt: skip
    except SweepStopped as stop:
        errors.print(str(stop), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    written, lost = attempt({**pages.writers(found), **tables(found.table, csv, None)})
    if json:
        print_json({"model": model, "data": source, **found.to_dict()})
    else:
        _print(found, f"{model} on {source}")
        say_written(written)
    for line in found.failed[:5]:
        say(f"A net failed. {line}")
    if lost is not None:
        raise lost
    if found.failed:
        raise typer.Exit(1)
    if found.reason and found.rate != found.rate:
        raise typer.Exit(4)


def _size(text: str) -> tuple[int, int]:
    """``512x32``: width and depth."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.strip().isdecimal() for p in parts):
        raise UsageError(f"--to is WIDTHxDEPTH; got {text!r}. Write it as 512x32.")
    return int(parts[0]), int(parts[1])


def _print(found: object, head: str) -> None:
    """The verdict, the exponents and what would make the rate transfer."""
    from rich.table import Table

    from normscope.report.transfer import HEAD, rows

    console.print(head, highlight=False, markup=False)
    table = Table(box=None, header_style="dim", pad_edge=True, padding=(0, 1, 0, 1))
    for i, name in enumerate(HEAD):
        table.add_column(name, justify="right" if i in (1, 3, 5) else "left")
    for row in rows(found):  # type: ignore[arg-type]
        table.add_row(*row)
    console.print(table)
    console.print(str(found), highlight=False, markup=False, soft_wrap=True)
