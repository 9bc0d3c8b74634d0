"""``normscope rates``: which learning rates train, tried on copies; or the range test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from normscope.cli import _options as option
from normscope.cli._app import app, console, counted, print_json
from normscope.cli._outputs import NO_PAGES, Pages, attempt, say_written, with_pages
from normscope.core.errors import UsageError, whole_number

if TYPE_CHECKING:
    from normscope.learning_rates import RateRange


@app.command()
@with_pages
def rates(
    model: option.Model,
    optimizer: Annotated[
        str | None,
        typer.Option(help="sgd, momentum, nesterov, adam or adamw. Default: the Step's own, else three of them."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Updates of a run, 20; of the range test, 100.")] = None,
    horizon: Annotated[int | None, typer.Option(help="After how many updates the best rate is best.")] = None,
    budget: Annotated[int, typer.Option(help="Forward and backward passes at most, an optimizer.")] = 200,
    test: Annotated[
        bool, typer.Option("--range", help="One run whose rate grows at every step, in place of the trials.")
    ] = False,
    low: Annotated[float, typer.Option(help="First rate of the range test.")] = 1e-7,
    high: Annotated[float, typer.Option(help="Its last rate.")] = 10.0,
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
) -> None:
    """Try which learning rates train, on copies: the largest and the best, with intervals.

    With --range it is the classic range test: one run, the rate growing from --low to --high. Exit code 0: fine, 2:
    misuse, 3: the model crashed, 4: no rate can be told, 130: Ctrl-C.
    """
    from normscope.cli._shared import Given, quiet, running
    from normscope.learning_rates import of_kinds, rate_range
    from normscope.learning_rates import rates as run

    pages.check()
    if test and horizon is not None:
        raise UsageError("--horizon is for trials; --range is one run. Leave one of them out.")
    steps = whole_number("--steps", (100 if test else 20) if steps is None else steps, 10 if test else 2)
    step, source = Given(data, data_dir, n, loss, samples, mode, seed, device, dtype).step(model)
    if test:
        with counted("range test", shown=not json) as progress, running(model, source, step):
            found: Any = rate_range(step, optimizer=optimizer, low=low, high=high, steps=steps, progress=progress)
        tried = [found]
    else:
        with console.status(f"trying rates of {model} ...") if not json else quiet(), running(model, source, step):
            alone = optimizer is not None or step.optimizer is not None or steps != 20 or horizon or budget != 200
            names = [optimizer] if alone else []
            tried = [run(step, optimizer=k, steps=steps, budget=budget, horizon=horizon) for k in names] or of_kinds(
                step
            )
    written, lost = attempt(pages.writers(tried[0] if len(tried) == 1 else lambda: _sheet(tried)))
    if json:
        told = tried[0].to_dict() if test else {"trials": [r.to_dict() for r in tried]}
        print_json({"model": model, "data": source, **told})
    else:
        console.print(f"{model} on {source}", highlight=False, markup=False)
        if test:
            _print(tried[0])
        else:
            _table(tried)
        say_written(written)
    if lost is not None:
        raise lost
    rate = (
        tried[0].suggested if test else max((r.largest for r in tried if r.largest == r.largest), default=float("nan"))
    )
    if rate != rate:
        raise typer.Exit(4)


def _sheet(tried: list[Any]) -> Any:
    from normscope.report.rates import section
    from normscope.report.sheet import Sheet

    return Sheet("Learning rates", [section(tried)])


def _table(tried: list[Any]) -> None:
    from normscope.report.rates import TRIED
    from normscope.report.terminal import rates_table

    console.print("  " + TRIED.format(steps=tried[0].steps), highlight=False)
    console.print(rates_table(tried))


def _print(found: RateRange) -> None:
    """The curve in one line, and the rates."""
    from normscope.report.terminal import spark

    shown = [x for x in found.smoothed if x <= 2 * max(abs(found.start), 1e-12)]
    console.print(f"  {spark(shown)}  {found.rates[0]:.3g} → {found.rates[-1]:.3g}", highlight=False)
    console.print("  " + str(found), highlight=False, markup=False, soft_wrap=True)
