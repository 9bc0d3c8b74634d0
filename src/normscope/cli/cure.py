"""``normscope cure``: new weights for a model, with what they change."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from normscope.cli import _options as option
from normscope.cli._app import app, console, print_json
from normscope.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from normscope.call.step import Step
    from normscope.findings.cures import Course, Reading, Trial

#: Row of the table -> field of a `Reading`.
ROWS = {
    "participation rank, input": "input",
    "participation rank, first layer": "first",
    "participation rank, least": "least",
    "participation rank, deepest layer": "deepest",
    "orthogonality gap, deepest layer": "gap",
    "similarities of the input kept": "kept",
    "gradient, first / last layer": "gradient_growth",
    "gradient, largest / smallest": "gradient_spread",
    "lambda_max": "lambda_max",
    "max stable learning rate": "max_stable_lr",
}


@app.command()
def cure(
    model: option.Model,
    how: Annotated[
        str,
        typer.Option(help="A cure (normscope list cures), several joined by +, or auto: try them and take the best."),
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="Write the cured model's state dict as .safetensors.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --out if it exists.")] = False,
    data: option.Data = None,
    data_dir: option.DataDir = None,
    n: Annotated[
        int | None,
        typer.Option("--batch", "-n", help="Samples for the cure; as many others are measured. Default 128, or 16."),
    ] = None,
    loss: option.LossName = None,
    samples: option.Axis = None,
    curvature: Annotated[bool, typer.Option("--sharpness/--no-sharpness", help="Measure lambda_max too.")] = True,
    seed: option.Seed = 0,
    device: option.Device = "cpu",
    dtype: option.Dtype = None,
    json: option.Json = False,
) -> None:
    """Give a model weights with which it can train, and show what changed.

    Half of the samples are for the cure, the other half for the measurements before and after. Exit code 0: fine, 2:
    misuse, 3: the model crashed.
    """
    from normscope.cli._shared import BATCH, Given, check_runs, quiet, running
    from normscope.findings.cures import follow, parts_of

    parts_of(how)
    if n is not None and n < 2:
        raise UsageError(f"-n must be at least 2, because a cure compares samples; got {n}. The default is {BATCH}.")
    if out is not None:
        _check_out(out, force)
    given = Given(data, data_dir, n, loss, samples, None, seed, device, dtype, times=2)
    step, source = given.step(model)
    with console.status("") if not json else quiet() as status, running(model, source, step):

        def progress(name: str) -> None:
            if status is not None:
                status.update(f"{name} ...")

        check_runs(step)
        own, fresh = _halves(step)
        course = follow(own, how, fresh=fresh, curvature=curvature, progress=progress)
    written = _save(course, out, model, source, seed) if out is not None else None
    if json:
        print_json({"model": model, "data": source, **course.to_dict(), "out": written})
        return
    console.print(f"[bold]{escape(model)}[/] on {escape(source)}: cure [bold]{escape(course.how)}[/]", highlight=False)
    if course.trials:
        _show_trials(course)
    _show(course, n)
    if written is not None:
        console.print(f"wrote {written}", soft_wrap=True, highlight=False, markup=False)
        console.print(_how_to_load(course, written), soft_wrap=True, highlight=False, markup=False)


def _halves(step: Step) -> tuple[Step, tuple[Any, Any] | None]:
    """The batch cut in two along its samples; whole, and nothing fresh, where it cannot be cut or is under 4
    samples.
    """
    from normscope.call.arguments import mapped, tensors

    n, axis = step.rows.n, step.rows.axis
    inputs, targets = list(tensors(step.inputs)), list(tensors(step.targets))
    whole = [*(x.shape[axis : axis + 1] for x in inputs), *(x.shape[:1] for x in targets)]
    if n < 4 or step.step is not None or any(size != (n,) for size in whole):
        return step, None

    def part(of: slice) -> tuple[Any, Any]:
        def cut(x: Tensor) -> Tensor:
            return x[(slice(None),) * axis + (of,)]

        return mapped(step.inputs, cut), mapped(step.targets, lambda x: x[of])

    (first, wanted), fresh = part(slice(n // 2)), part(slice(n // 2, n))
    return replace(step, inputs=first, targets=wanted, data=None), fresh


def _check_out(out: Path, force: bool) -> None:
    from normscope.core.files import check

    if out.suffix != ".safetensors":
        raise UsageError(f"--out must end in .safetensors; got {str(out)!r}.")
    check(out)
    if out.exists() and not force:
        raise UsageError(f"{str(out)!r} exists already. Choose another name, or pass --force to replace it.")


def _save(course: Course, out: Path, model: str, data: str, seed: int) -> str:
    """The state dict, every tensor under its own key (tied ones twice), written whole or not at all."""
    from safetensors.torch import save

    from normscope.core.files import write

    state = {k: v.detach().cpu().contiguous().clone() for k, v in course.treatment.model.state_dict().items()}
    facts = {"normscope": "cure", "model": model, "data": data, "cure": course.how, "seed": str(seed)}
    return str(write(save(state, facts), out).resolve())


def _how_to_load(course: Course, path: str) -> str:
    wrap = {
        "center-outputs": "net = normscope.nn.CenterOutputs(net, outputs); ",
        "last-batch-norm": "net = normscope.nn.NormalizeOutputs(net, outputs); ",
        "bn": 'net = normscope.cure(net, "bn", inputs); ',
        "shape": 'net = normscope.cure(net, "shape", inputs); ',
        "fold-batch-norm": 'net = normscope.cure(net, "fold-batch-norm", inputs); ',
    }
    before = "".join(text for name, text in wrap.items() if name in course.how.split("+"))
    return f"load it: {before}net.load_state_dict(safetensors.torch.load_file({path!r}))"


#: Headings that let the table fit 80 columns.
SHORT = {"sharpness": "sharp-\nness", "warnings": "warn-\nings", "errors": "er-\nrors"}


def _show_trials(course: Course) -> None:
    terms = next(t.reading.terms for t in course.trials if t.reading)
    table = Table(
        title="candidates, the best first: cost in decades",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    table.add_column("cure", no_wrap=True)
    for column in ("loss left", "errors", *terms, "cost"):
        table.add_column(SHORT.get(column, column.replace(" ", "\n")), justify="right", vertical="bottom")
    for t in course.trials:
        table.add_row(*_trial(t, len(terms)))
    console.print(table)
    for t in course.trials:
        if t.reading is None:
            console.print(f"[dim]{escape(t.name)}: {escape(t.reason)}[/]", highlight=False)
    best = course.trials[0]
    console.print(f"Chosen: [bold]{escape(best.name)}[/]{_why(course)}", highlight=False)
    console.print(
        "[dim]Loss left: decades below chance after short races of SGD and Adam on the batch, added; it decides, and "
        "is not a promise. Which race is chosen by signs at initialization, each a factor that training must make up: "
        "contrast lost between the input and the flattest hidden layer, similarities of the input scrambled, largest "
        "over smallest gradient, 2 / lambda_max below 0.1, one decade a warning. haar is a control.[/]"
    )


def _trial(t: Trial, terms: int) -> list[str]:
    name = f"{escape(t.name)}{' (control)' if t.control else ''}"
    if t.reading is None:
        return [name, *["-"] * (terms + 3)]
    left = "-" if math.isnan(t.left) else f"{t.left:.2f}"
    return [name, left, str(t.reading.errors), *(f"{v:.2f}" for v in (*t.reading.terms.values(), t.reading.cost))]


def _why(course: Course) -> str:
    plain = next((t for t in course.trials if t.name == "none"), None)
    best = course.trials[0]
    if plain is None or plain.reading is None or best.reading is None:
        return ""
    if best is plain:
        return ": nothing was found that beats the model as it is by a factor of 2"
    if not math.isnan(best.left) and not math.isnan(plain.left):
        return f": short races leave {10 ** (best.left - plain.left):.2g} of what they leave of the model as it is"
    gains = {k: plain.reading.terms[k] - v for k, v in best.reading.terms.items()}
    term = max(gains, key=lambda k: gains[k])
    fewer = plain.reading.errors - best.reading.errors
    errors = f"{fewer} error finding{'s' if fewer > 1 else ''} less, and " if fewer > 0 else ""
    return f": {errors}{_number(gains[term])} decades better in {term} than the model as it is"


def _show(course: Course, asked: int | None) -> None:
    own, others = course.facts["samples"], course.facts["samples_measured"]
    fresh = course.facts["measured_on"] == "fresh samples"
    short = f" ({asked} + {asked} were asked for; there are not so many)" if asked is not None and own < asked else ""
    console.print(
        f"cured on {own} samples, measured on {f'{others} others' if fresh else 'the same'}{short}; "
        f"loss {course.facts['loss']}",
        highlight=False, markup=False,
    )  # fmt: skip
    table = Table()
    for column in ("", "before", "after"):
        table.add_column(column, justify="left" if not column else "right")
    for title, name in ROWS.items():
        values = [getattr(r, name) for r in (course.before, course.after)]
        if name not in ("lambda_max", "max_stable_lr") or not all(math.isnan(v) for v in values):
            table.add_row(title, *map(_number, values))
    table.add_row("findings", *(_codes(r) for r in (course.before, course.after)))
    console.print(table)
    t = course.treatment
    console.print(f"treated: {len(t.treated)} layers{_some(t.treated)}", highlight=False, markup=False)
    for reason in dict.fromkeys(t.left_alone.values()):
        names = [n or "(the model)" for n, r in t.left_alone.items() if r == reason]
        console.print(f"left alone: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}: {reason}", markup=False)
    for note in t.notes:
        console.print(f"note: {note}", highlight=False, markup=False)


def _some(names: tuple[str, ...]) -> str:
    return f" ({names[0]} ... {names[-1]})" if len(names) > 2 else f" ({', '.join(names)})" if names else ""


def _codes(reading: Reading) -> str:
    return " ".join(reading.codes) or "none"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else "inf" if math.isinf(value) else f"{value:.3g}"
