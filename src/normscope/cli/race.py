"""``normscope race``: variants of a network trained side by side."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from normscope.cli import _options as option
from normscope.cli._app import INTERRUPTED, app, console, print_json
from normscope.cli._outputs import NO_PAGES, Pages, attempt, say_written, tables, with_pages
from normscope.core.errors import UsageError, seeds_of, unknown


@app.command()
@with_pages
def race(
    models: option.Models,
    cures: Annotated[
        str | None, typer.Option(help="Cures of each model, with commas: none,orthogonal,rank,bn,identity.")
    ] = None,
    data: Annotated[str, typer.Option(help="digits (bundled), mnist, fashion-mnist, cifar10, a file, a callable.")] = (
        "digits"
    ),
    data_dir: option.DataDir = None,
    samples: Annotated[int | None, typer.Option(help="Training samples; default all.")] = None,
    test_samples: Annotated[int | None, typer.Option(help="Test samples; default all, 0 for no test.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training samples.")] = 3,
    batch: Annotated[int, typer.Option("--batch", "-n", help="Samples a step.")] = 128,
    lr: Annotated[
        list[str] | None,
        typer.Option(
            help="A rate (default 0.01), auto or auto:0.5 (trials of 20 steps: the best rate, or that share), search "
            "or search:0.01,0.1 (pilot runs on a grid), sharpness or sharpness:0.5 (a share of 2 / lambda_max), or "
            "VARIANT=one of these; may be repeated."
        ),
    ] = None,
    optimiser: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "sgd",
    momentum: Annotated[float, typer.Option(help="Of sgd.")] = 0.0,
    nesterov: Annotated[bool, typer.Option("--nesterov", help="Nesterov's form of the momentum.")] = False,
    weight_decay: Annotated[float, typer.Option(help="L2; decoupled for adamw.")] = 0.0,
    warmup: Annotated[
        int, typer.Option(metavar="STEPS", help="Raise the learning rate linearly over these steps.")
    ] = 0,
    loss: option.LossName = None,
    seeds: Annotated[int, typer.Option(help="Runs of each variant: seeds 0, 1, ...")] = 3,
    baseline: Annotated[str | None, typer.Option(help="The variant to compare with; default the first.")] = None,
    target_loss: Annotated[float | None, typer.Option(help="Count the steps to this loss; default half way down.")] = (
        None
    ),
    geometry: Annotated[
        int | None,
        typer.Option(help="Look at the layers at so many steps, 0 for never; default 12, fewer in a short race."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder or s3://... that keeps everything; the same command resumes.")
    ] = None,
    device: option.Device = "cpu",
    dtype: option.Dtype = None,
    pages: Pages = NO_PAGES,
    csv: option.Csv = None,
    parquet: option.Parquet = None,
    json: option.Json = False,
) -> None:
    """Train models, or cures of a model, side by side on the same batches: which trains, and is the difference real?

    Exit code 0: raced, 1: every run of every variant diverged, 2: misuse, 3: a model crashed, 130: stopped with Ctrl-C.
    """
    from normscope.cli._entrants import samples_of, variants_of
    from normscope.cli._shared import dtype_named, loss_named
    from normscope.core.tensors import device_of
    from normscope.racing import Bar, Interrupted, Race, Watcher
    from normscope.racing import race as run
    from normscope.training import Recipe

    pages.check(csv=csv, parquet=parquet)
    seeds_of(seeds)
    Recipe(
        epochs=epochs, batch=batch, optimiser=optimiser, momentum=momentum, nesterov=nesterov,
        weight_decay=weight_decay, warmup=warmup,
    )  # fmt: skip
    if target_loss is not None and not 0 < target_loss < math.inf:
        raise UsageError(f"--target-loss must be a loss above 0; got {target_loss}. Leave it out for half way down.")
    where, kind, criterion = device_of(device, "--device"), dtype_named(dtype), loss_named(loss)
    train, test = samples_of(data, data_dir, samples, test_samples)
    variants = variants_of(models, cures, train, batch)
    try:
        found = run(
            variants, train, test, epochs=epochs, batch=batch, lr=_rates(lr or ["0.01"], list(variants)),
            optimiser=optimiser, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, warmup=warmup,
            loss=criterion, seeds=seeds, baseline=baseline, target_loss=target_loss, geometry=geometry, out=out,
            device=where, dtype=kind, progress=Watcher() if json else Bar(),
        )  # fmt: skip
    except Interrupted as stopped:
        typer.echo(str(stopped), err=True)
        raise typer.Exit(INTERRUPTED) from None
    title = f"Race of {models[0]}" if len(models) == 1 and cures else f"Race of {len(variants)} variants"
    found = Race(found.table, {**found.facts, "title": f"{title} on {train.name}"})

    written, lost = attempt({**pages.writers(found), **tables(found.table, csv, parquet)})
    if json:
        lines = [line.to_dict() for line in found.lines()]
        print_json({"settings": dict(found.facts), "target_loss": found.target, "variants": lines})
    else:
        from normscope.report import race_terminal

        race_terminal.render(found.content(), console)
        say_written(written)
    if lost is not None:
        raise lost
    if all(line.diverged == line.seeds for line in found.lines()):
        raise typer.Exit(1)


def _rates(given: list[str], variants: list[str]) -> dict[str, float | str]:
    """``--lr 0.01 --lr bn=search`` -> the rule of every variant."""
    rest: float | str | None = None
    named: dict[str, float | str] = {}
    for text in given:
        name, eq, rule = text.rpartition("=")
        if eq and name not in variants:
            raise unknown("variant", name, variants)
        if eq:
            named[name] = _rule(rule)
        elif rest is None:
            rest = _rule(text)
        else:
            raise UsageError(f"--lr takes one rate for all variants; got {rest} and {text}. Name them: --lr bn=0.1.")
    return {v: named.get(v, 0.01 if rest is None else rest) for v in variants}


def _rule(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
