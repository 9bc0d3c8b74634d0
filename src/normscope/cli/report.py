"""``normscope report``: what a training that was recorded says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from normscope.cli import _options as option
from normscope.cli._app import app, console, print_json
from normscope.cli._index import index
from normscope.cli._outputs import NO_PAGES, Pages, attempt, say_written, tables, with_pages

if TYPE_CHECKING:
    from normscope.findings.review import Review

#: Exit code where nothing can be said: none of the checks could run.
UNCLEAR = 4


@app.command()
@with_pages
def report(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="What a Tracker wrote (a folder of parquet parts, or a CSV file), Hugging Face's trainer_state.json, "
            "a CSV file of losses (step or epoch, loss, val_loss, lr, grad_norm), or a folder that holds one of them.",
        ),
    ],
    pages: Pages = NO_PAGES,
    csv: option.Csv = None,
    parquet: option.Parquet = None,
    json: option.Json = False,
    fail_on: option.FailOn = None,
) -> None:
    """Show a training that was recorded: its curves, its layers over the steps, and what went wrong where.

    Exit code 0: fine, 1: --fail-on fired, 2: misuse, or no record of a training, 4: none of the checks could run.
    """
    from normscope.findings.guard import check_wanted, named
    from normscope.findings.review import review

    check_wanted(fail_on or [], index()["rules"])
    pages.check(csv=csv, parquet=parquet)

    found = review(run)
    written, lost = attempt({**pages.writers(found), **tables(found.run.table, csv, parquet)})
    if json:
        print_json(found.to_dict())
    else:
        from normscope.report import terminal

        terminal.render_review(found, console)
        say_written(written)
    if lost is not None:
        raise lost
    if any(named(finding, fail_on or []) for finding in found.findings):
        raise typer.Exit(1)
    if _silent(found):
        raise typer.Exit(UNCLEAR)


def _silent(found: Review) -> bool:
    """Whether no check could run."""
    from normscope.findings import RULES

    return len(found.unseen) == sum(r.over == "steps" for r in RULES.values())
