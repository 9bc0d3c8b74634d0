"""``normscope verify``: run the statements of the four papers, and say which hold."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from normscope.cli import _options as option
from normscope.cli._app import INTERRUPTED, app, console, print_json
from normscope.cli._outputs import NO_PAGES, Pages, attempt, say_written, with_pages
from normscope.core.errors import MANY, UsageError, seed_of, whole_number
from normscope.core.files import write

if TYPE_CHECKING:
    from normscope.claims import Claim, Verdict

#: Exit code where nothing fails, and a claim's errors are too large to tell.
UNDECIDED = 4


@app.command()
@with_pages
def verify(
    claims: Annotated[
        list[str] | None,
        typer.Argument(
            help="Papers, claims or patterns: nachum2024, growth, daneshmand2021/gap, '*/fig*'. Default: all."
        ),
    ] = None,
    size: Annotated[
        str,
        typer.Option(
            help="quick (minutes for all), full (the papers' sizes), reduced (full, smaller where that needs a GPU)."
        ),
    ] = "quick",
    seeds: Annotated[int, typer.Option(help="Independent repetitions, a verdict each.")] = 1,
    first_seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the data sets; without it, the bundled digits.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Folder that keeps verdicts; a second run goes on from it.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default one a core.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda ... for what runs on torch.")] = "cpu",
    timeout: Annotated[float | None, typer.Option(help="Seconds that one claim may take.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the verdicts as JSON lines, each as it ends; in order at the end.")
    ] = None,
    pages: Pages = NO_PAGES,
    allow_undecided: Annotated[bool, typer.Option(help="Exit with 0 where nothing worse than undecided is.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would run, with the estimated cost.")
    ] = False,
    json: option.Json = False,
) -> None:
    """Check the statements of the four papers: measured, compared, each with a control that must come out the other
    way.

    Exit code 0: every claim says what it should, 1: one does not, or ends in an error (a reading that is NaN is one),
    2: misuse, 4: none of these, but one is undecided (0 with --allow-undecided), 130: Ctrl-C.
    """
    from normscope import claims as science
    from normscope.claims.verification import covered, summary, tally
    from normscope.core.tensors import device_of
    from normscope.core.words import duration
    from normscope.sweeping.run import check_options

    whole_number("--seeds", seeds, 1, most=MANY)
    seed_of(first_seed, "--first-seed")
    check_options(workers=workers, timeout=timeout)
    names = claims or ["*"]
    if size not in science.SIZES:
        raise UsageError(f"--size must be one of {', '.join(science.SIZES)}; got {size!r}.")
    picked = science.chosen(names)
    cost = sum(c.cost(size) for c in picked) * seeds
    if dry_run:
        _list(picked, size, json)
        return
    pages.check(out=out)
    device_of(device, "--device")
    if not json:
        console.print(f"{len(picked)} claims, about {duration(cost)} of one core.", highlight=False)
    ended: list[Verdict] = []

    def each(verdict: Verdict) -> None:
        ended.append(verdict)
        if out is not None:
            with contextlib.suppress(OSError), out.open("a" if len(ended) > 1 else "w", encoding="utf-8") as file:
                file.write(verdict.to_json() + "\n")  # a disk that is full is told by the writer at the end
        if not json:
            _print(verdict)

    try:
        found = science.verify(
            names, size, seeds=range(first_seed, first_seed + seeds), store=store, workers=workers, device=device,
            data_dir=data_dir, timeout=timeout, each=each,
        )  # fmt: skip
    except KeyboardInterrupt:
        kept = f"The {len(ended)} verdicts of this run are in {out}. " if out and ended else ""
        more = f"Verdicts so far are in {store}; the same command goes on." if store else "To go on later pass --store."
        typer.echo(f"Stopped. {kept}{more}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    written, lost = attempt({out: lambda path: write(found.to_jsonl(), path), **pages.writers(found)})
    if json:
        print_json(summary(found))
    else:
        told = {(v.claim, v.seed) for v in ended}
        for v in found:  # of the store
            if (v.claim, v.seed) not in told:
                _print(v)
        console.print(f"\n{tally(found)}", style="bold", highlight=False)
        console.print(covered(found), highlight=False, soft_wrap=True)
        say_written(written)
    if lost is not None:
        raise lost
    if found.failed:
        raise typer.Exit(1)
    if found.undecided and not allow_undecided:
        raise typer.Exit(UNDECIDED)


def _print(v: Verdict) -> None:
    """One line."""
    from normscope.claims import CLAIMS
    from normscope.report.claims import band, mark, measured, said

    colour, r = {"good": "green", "bad": "red", "unsure": "yellow"}[mark(v)], v.worst
    told = f"{r.quantity} {measured(r)} ({band(r)})" if r else ""
    if v.error:
        told = v.error.strip().splitlines()[-1]
    if unguarded := sum(v.guard(r) == "none" for r in v.readings):
        told += f"; no control: {unguarded} of {len(v.readings)} readings"
    name = v.claim + (f" seed {v.seed}" if v.seed else "")
    console.print(
        f"[{colour}]{said(v):<18}[/] [cyan]{escape(name):<38}[/] {escape(CLAIMS[v.claim].statement)} "
        f"[dim]{escape(told)}[/]",
        highlight=False, soft_wrap=not console.is_terminal,
    )  # fmt: skip


def _list(picked: list[Claim], size: str, json: bool) -> None:
    from normscope.core.words import duration

    rows: list[dict[str, Any]] = [
        {"claim": c.name, "where": c.where, "statement": c.statement, "covers": list(c.covers),
         "seconds": c.cost(size), "needs": c.needed(size)}
        for c in picked
    ]  # fmt: skip
    if json:
        print_json(rows)
        return
    for r in rows:
        needs = f" [yellow]needs {escape(r['needs'])}[/]" if r["needs"] else ""
        console.print(
            f"[cyan]{escape(r['claim']):<34}[/] {duration(r['seconds']):>8}  {escape(r['statement'])}{needs}",
            highlight=False,
        )
    console.print(
        f"\n{len(rows)} claims, about {duration(sum(r['seconds'] for r in rows))} of one core.", highlight=False
    )
