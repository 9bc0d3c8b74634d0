"""``normscope sharpness``: the largest curvature, and the largest stable learning rate."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from normscope.cli._app import app, console, print_json
from normscope.cli._shared import DATA_HELP, MODEL_HELP, check_lr, device_named, dtype_named, load_named, moved, quiet
from normscope.core.errors import UsageError
from normscope.curvature import Sharpness, stable_rates
from normscope.curvature import sharpness as run


@app.command()
def sharpness(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL")],
    lr: Annotated[float | None, typer.Option(help="A learning rate to judge; exit code 1 if it is too large.")] = None,
    momentum: Annotated[float, typer.Option(help="Of heavy ball, Nesterov and EMA momentum.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Adds to the curvature.")] = 0.0,
    optimiser: Annotated[str, typer.Option(help="gd, heavy-ball, nesterov or ema: what --lr belongs to.")] = "gd",
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder that holds the data set.")] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "--batch", "-n", help="Samples in the batch. Default 128, all if there are fewer; 16 for a library's model."
        ),
    ] = None,
    loss: Annotated[str | None, typer.Option(help="mse (1/2n sum of squares) or cross_entropy.")] = None,
    mode: Annotated[str, typer.Option(help="train: batch norm uses the batch; eval must be asked for.")] = "train",
    tol: Annotated[float, typer.Option(help="Relative error wanted of lambda_max.")] = 1e-3,
    what_if: Annotated[bool, typer.Option(help="Also with each norm put after the last layer.")] = False,
    descent: Annotated[int, typer.Option(help="Steps of a descent check at 0.5, 1 and 2 times the rate.")] = 0,
    budget: Annotated[
        float, typer.Option(help="Seconds for what lies beside lambda_max: moments, other modes.")
    ] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the weights, the batch and dropout.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32, float64, bfloat16 or float16.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Measure lambda_max of the whole batch's Fisher matrix, and the largest stable learning rate 2 / lambda_max.

    2 / lambda_max is where linearised gradient descent turns unstable; nets may catapult past it. Exit code 0: fine,
    1: --lr is above the threshold, 2: misuse.
    """
    names = {"gd": "gradient descent", "heavy-ball": "heavy ball", "nesterov": "nesterov", "ema": "ema momentum"}
    if optimiser not in names:
        raise UsageError(f"--optimiser must be one of {', '.join(names)}; got {optimiser!r}.")
    check_lr(lr)
    stable_rates(1.0, momentum, weight_decay)  # refuses what it cannot use before the solve, not after
    if descent < 0:
        raise UsageError(f"--descent must be a number of steps >= 0; got {descent}. 0 leaves the check out.")
    where, kind = device_named(device), dtype_named(dtype)
    batch, net = load_named(model, data, data_dir, n, seed)
    net.to(device=where, dtype=kind)
    inputs, targets = moved(batch.inputs, where, kind), moved(batch.targets, where, None)
    chosen = loss or ("cross_entropy" if targets is None or not targets.is_floating_point() else "mse")
    with _Bar() if not json else quiet() as bar:
        progress = None if bar is None else bar.update
        found = _run(model, net, inputs, targets, chosen, mode, tol, what_if, descent, budget, seed, progress)
    rates = found.rates(momentum, weight_decay)
    expected = _expected(net, inputs, chosen, mode)
    limit = rates[names[optimiser]]
    above = lr is not None and lr > limit
    if json:
        verdict = {"lr": lr, "optimiser": names[optimiser], "limit": limit, "stable": not above} if lr else {}
        print_json(
            {
                "model": model,
                "data": batch.name,
                **found.to_dict(),
                "rates": rates,
                "lambda_max_predicted": expected,
                **verdict,
            }
        )
    else:
        console.print(f"[bold]{model}[/] on {batch.name}", highlight=False)
        console.print(str(found), highlight=False, markup=False, soft_wrap=True)
        if expected is not None:
            console.print(
                f"  theory          lambda_max {expected:.4g} at infinite width, leading order", highlight=False
            )
        console.print("  rates           " + _rates(rates, momentum, weight_decay), highlight=False, soft_wrap=True)
        if lr is not None:
            word = "[red]above[/]" if above else "[green]below[/]"
            console.print(
                f"lr {lr:g} is {word} the threshold {limit:.4g} of {names[optimiser]} ({lr / limit:.2g} of it)."
            )
            console.print(
                "It is a linear-stability threshold: training above it may catapult to a flatter place or diverge."
            )
    if above:
        raise typer.Exit(1)


def _rates(rates: dict[str, float], momentum: float, weight_decay: float) -> str:
    """The threshold of every optimiser, with the momentum that it is for."""
    said = [f"{k}{'' if k == 'gradient descent' else f' (momentum {momentum:g})'} {v:.4g}" for k, v in rates.items()]
    return ", ".join(said) + (f"; weight decay {weight_decay:g}" if weight_decay else "")


class _Bar:
    """A progress bar on standard error: products, the value and its error so far, the time left."""

    def __enter__(self) -> _Bar:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = RichProgress(
            *columns, TextColumn("{task.fields[left]}"), console=Console(stderr=True), transient=True
        )
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


def _expected(net: torch.nn.Module, inputs: Any, loss: str, mode: str) -> float | None:
    """The prediction beside the measurement, for a plain MLP in training mode."""
    from normscope.theory import predicted_sharpness

    if mode != "train" or not isinstance(inputs, torch.Tensor) or loss not in ("mse", "cross_entropy"):
        return None
    return predicted_sharpness(net, inputs, loss == "cross_entropy")


def _run(
    name: str, net: torch.nn.Module, inputs: Any, targets: Any, loss: str, mode: str, tol: float, what_if: bool,
    descent: int, budget: float, seed: int, progress: Any,
) -> Sharpness:  # fmt: skip
    with torch.no_grad():
        classes = None if targets is None or targets.is_floating_point() or loss != "mse" else int(targets.max()) + 1
    if classes is not None:
        targets = torch.nn.functional.one_hot(targets, max(classes, _width(net, inputs))).to(
            next(net.parameters()).dtype
        )
    try:
        return run(
            net,
            inputs,
            targets,
            loss,
            tol=tol,
            what_if=what_if,
            descent=descent,
            budget=budget,
            seed=seed,
            progress=progress,
            mode=mode,
        )
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{name} could not be run on this batch. {type(error).__name__}: {error}. Choose data that fits the model "
            "with --data, for instance random:3x32x32."
        ) from error


def _width(net: torch.nn.Module, inputs: Any) -> int:
    """Number of outputs, without a trace on the model."""
    from normscope.curvature import jacobian

    return int(jacobian(net, inputs, mode="train").facts["outputs"])
