"""``normscope sharpness``: the largest curvature, and the largest stable learning rate."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from normscope.cli import _options as option
from normscope.cli._app import app, console, errors, print_json
from normscope.cli._outputs import NO_PAGES, Pages, attempt, say_written, with_pages
from normscope.core.errors import MANY, UsageError, finite_number, whole_number
from normscope.core.words import amount

if TYPE_CHECKING:
    from normscope.call.step import Step
    from normscope.curvature import Sharpness
    from normscope.learning_rates import Rates

#: Optimizers of --rates as `normscope.curvature.stable_rates` calls them.
STABILITY = {"sgd": "gradient descent", "momentum": "heavy ball"}


@app.command()
@with_pages
def sharpness(
    model: option.Model,
    lr: Annotated[float | None, typer.Option(help="A learning rate to judge; exit code 1 if it is too large.")] = None,
    momentum: Annotated[float, typer.Option(help="Of heavy ball, Nesterov and EMA momentum.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Adds to the curvature.")] = 0.0,
    optimiser: Annotated[str, typer.Option(help="gd, heavy-ball, nesterov or ema: what --lr belongs to.")] = "gd",
    data: option.Data = None,
    data_dir: option.DataDir = None,
    n: option.Count = None,
    loss: option.LossName = None,
    samples: option.Axis = None,
    mode: option.Mode = None,
    tol: Annotated[float, typer.Option(help="Relative error wanted of lambda_max.")] = 1e-3,
    what_if: Annotated[bool, typer.Option(help="Also with each norm put after the last layer.")] = False,
    descent: Annotated[int, typer.Option(help="Steps of a descent check at 0.5, 1 and 2 times the rate.")] = 0,
    rates: option.Rates = False,
    budget: Annotated[
        float, typer.Option(help="Seconds for what lies beside lambda_max: moments, other modes.")
    ] = 60.0,
    seed: option.Seed = 0,
    device: option.Device = "cpu",
    dtype: option.Dtype = None,
    pages: Pages = NO_PAGES,
    json: option.Json = False,
) -> None:
    """Measure lambda_max of the whole batch's Fisher matrix, and the largest stable learning rate 2 / lambda_max.

    It belongs to the loss that is printed with it. 2 / lambda_max is where linearised full-batch gradient descent turns
    unstable; nets may catapult past it. --rates tries which rates train, and --html writes those. Exit code 0: fine,
    1: --lr is above the threshold, 2: misuse, 3: the model crashed.
    """
    from normscope.cli._shared import Given, check_lr, quiet, running
    from normscope.curvature import sharpness as run
    from normscope.curvature import stable_rates

    names = {"gd": "gradient descent", "heavy-ball": "heavy ball", "nesterov": "nesterov", "ema": "ema momentum"}
    if optimiser not in names:
        raise UsageError(f"--optimiser must be one of {', '.join(names)}; got {optimiser!r}.")
    check_lr(lr)
    pages.check()
    stable_rates(1.0, momentum, weight_decay)  # refuses what it cannot use before the solve, not after
    whole_number("--descent", descent, do="It counts steps; 0 leaves the check out.", most=MANY)
    finite_number("--tol", tol, above=0, below=1, do="It is a relative error; the default is 1e-3.")
    if budget != math.inf:
        finite_number("--budget", budget, least=0, do="It is in seconds; inf for everything.")
    step, source = Given(data, data_dir, n, loss, samples, mode, seed, device, dtype).step(model)
    if step.step is not None:
        raise UsageError(
            f"sharpness needs the outputs of the model; {model} gives a loss alone, by step= or its training_step. "
            "Pass --loss for a Lightning module, or return inputs, targets and loss in the place of step=."
        )
    with _Bar() if not json else quiet() as bar, running(model, source, step):
        progress = None if bar is None else bar.update
        found = run(step, tol=tol, what_if=what_if, descent=descent, budget=budget, progress=progress)
        expected = _expected(step, found)
        tried = _tried(step, found) if rates else []
    stable = found.rates(momentum, weight_decay)
    limit = stable[names[optimiser]]
    written, lost = attempt(pages.writers((lambda: _sheet(found, tried)) if tried else found))
    above = lr is not None and lr > limit
    if json:
        verdict = {"lr": lr, "optimiser": names[optimiser], "limit": limit, "stable": not above} if lr else {}
        about = {"model": model, "data": source, **found.to_dict()}
        trials = {"trials": [r.to_dict() for r in tried]} if rates else {}
        print_json({**about, "rates": stable, "lambda_max_predicted": expected, **verdict, **trials})
    else:
        console.print(f"{model} on {source}", highlight=False, markup=False)
        console.print(str(found), highlight=False, markup=False, soft_wrap=True)
        if expected is not None:
            console.print(
                f"  theory          lambda_max {amount(expected, 4)} at infinite width, leading order", highlight=False
            )
        console.print("  rates           " + _rates(stable, momentum, weight_decay), highlight=False, soft_wrap=True)
        if lr is not None:
            word = "[red]above[/]" if above else "[green]below[/]"
            console.print(
                f"lr {lr:g} is {word} the threshold {limit:.4g} of {names[optimiser]} ({lr / limit:.2g} of it)."
            )
            console.print(
                "It is a linear-stability threshold: training above it may catapult to a flatter place or diverge."
            )
        _print(tried)
        say_written(written)
    if lost is not None:
        raise lost
    if above:
        raise typer.Exit(1)


def _tried(step: Step, found: Sharpness) -> list[Rates]:
    """The rates of the step's optimizer, or of each usual one, beside those of linear stability."""
    from normscope.learning_rates import of_kinds

    stable = found.rates()
    return [replace(r, stability=stable.get(STABILITY.get(r.optimizer, ""), math.nan)) for r in of_kinds(step)]


def _print(tried: Sequence[Rates]) -> None:
    """A table of them."""
    from normscope.report.rates import TRIED
    from normscope.report.terminal import rates_table

    if tried:
        console.print("  " + TRIED.format(steps=tried[0].steps), highlight=False)
        console.print(rates_table(tried))


def _sheet(found: Sharpness, tried: Sequence[Rates]) -> Any:
    from normscope.report.rates import with_sharpness

    return with_sharpness(found, tried)


def _rates(rates: dict[str, float], momentum: float, weight_decay: float) -> str:
    """The threshold of every optimiser, with the momentum that it is for."""
    said = [f"{k}{'' if k == 'gradient descent' else f' (momentum {momentum:g})'} {v:.4g}" for k, v in rates.items()]
    return ", ".join(said) + (f"; weight decay {weight_decay:g}" if weight_decay else "")


class _Bar:
    """A progress bar on standard error: products, the value and its error so far, the time left."""

    def __enter__(self) -> _Bar:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        left = TextColumn("{task.fields[left]}")
        self._bar = RichProgress(*columns, left, console=errors, transient=True, disable=not errors.is_terminal)
        self._task = self._bar.add_task("preparing", total=None, left="")
        self._bar.start()
        self._before = time.monotonic()
        return self

    def update(self, products: float, value: float, error: float, left: float) -> None:
        """After each product."""
        known = left == left  # not NaN
        seconds = (time.monotonic() - self._before) / max(products, 1) * left if known else 0.0
        self._bar.update(
            self._task,
            description=f"{products:g} products: lambda_max {value:.4g} +- {error:.1g}",
            total=products + left if known else None,
            completed=products,
            left=f"about {seconds:.0f} s left" if known else "",
        )

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _expected(step: Step, found: Sharpness) -> float | None:
    """The prediction beside the measurement, for a plain MLP in training mode."""
    from torch import Tensor

    from normscope.theory import predicted_sharpness

    if step.mode != "train" or len(step.args) != 1 or not isinstance(step.args[0], Tensor):
        return None
    return step.run(lambda: predicted_sharpness(step.root, step.args[0], found.loss))
