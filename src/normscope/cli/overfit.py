"""``normscope overfit``: whether a network learns one batch by heart."""

from __future__ import annotations

from typing import Annotated

import typer

from normscope.cli import _options as option
from normscope.cli._app import app, console, counted, print_json
from normscope.cli._outputs import NO_PAGES, Pages, attempt, say_written, with_pages
from normscope.core.errors import MANY, finite_number, whole_number


@app.command()
@with_pages
def overfit(
    model: option.Model,
    optimizer: Annotated[
        str | None,
        typer.Option(help="sgd, momentum, nesterov, adam or adamw. Default: the Step's own, else adam."),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Its rate. Default: the best of short runs.")] = None,
    steps: Annotated[int, typer.Option(help="Updates at most.")] = 200,
    share: Annotated[float, typer.Option(help="The floor: this share of the loss at the start.")] = 0.05,
    data: option.Data = None,
    data_dir: option.DataDir = None,
    n: option.Count = None,
    loss: option.LossName = None,
    samples: option.Axis = None,
    mode: option.Mode = None,
    seed: option.Seed = 0,
    device: option.Device = "cpu",
    dtype: option.Dtype = None,
    pages: Pages = NO_PAGES,
    json: option.Json = False,
    fail: Annotated[bool, typer.Option("--fail", help="Exit with 1 where the batch was not learnt by heart.")] = False,
) -> None:
    """Train on one batch again and again, on copies: does the network learn it by heart?

    Exit code 0: fine, 1: it was not learnt and --fail was given, 2: misuse, 3: the model crashed, 130: Ctrl-C.
    """
    from normscope.cli._shared import Given, check_lr, running
    from normscope.learning_rates import overfit as run

    pages.check()
    check_lr(lr)
    whole_number("--steps", steps, 10, "The usual number is 200.", most=10 * MANY)
    finite_number("--share", share, above=0, below=1, do="It is a share of the loss at the start.")
    step, source = Given(data, data_dir, n, loss, samples, mode, seed, device, dtype).step(model)
    name = optimizer or (None if step.optimizer is not None else "adam")
    with counted("overfitting", shown=not json) as progress, running(model, source, step):
        found = run(step, optimizer=name, rate=lr, steps=steps, share=share, progress=progress)
    written, lost = attempt(pages.writers(found))
    if json:
        print_json({"model": model, "data": source, **found.to_dict()})
    else:
        from normscope.report.terminal import spark

        console.print(f"{model} on {source}", highlight=False, markup=False)
        drawn = spark(found.losses, log=all(x > 0 for x in found.losses))
        console.print(f"  {drawn}  {found.start:.3g} → {found.end:.3g}", highlight=False)
        console.print(f"  {found}", highlight=False, markup=False, soft_wrap=True)
        say_written(written)
    if lost is not None:
        raise lost
    if fail and not found.reached:
        raise typer.Exit(1)
