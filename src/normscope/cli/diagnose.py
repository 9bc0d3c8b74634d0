"""``normscope diagnose``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from normscope.cli._app import app, console, print_json
from normscope.cli._outputs import attempt, check_outputs, tables
from normscope.cli._shared import DATA_HELP, MODEL_HELP, check_lr, device_named, dtype_named, load_named, moved, quiet
from normscope.core.errors import UsageError, unknown
from normscope.core.files import write
from normscope.data.datasets import Batch
from normscope.data.models import check_model
from normscope.findings import RULES
from normscope.findings.diagnosis import Diagnosis, content
from normscope.findings.diagnosis import diagnose as run


@app.command()
def diagnose(
    models: Annotated[list[str], typer.Argument(help=MODEL_HELP, metavar="MODEL...")],
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder that holds the data set.")] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "--batch", "-n", help="Samples in the batch. Default 128, all if there are fewer; 16 for a library's model."
        ),
    ] = None,
    loss: Annotated[str | None, typer.Option(help="mse or cross_entropy; default by the targets.")] = None,
    mode: Annotated[str, typer.Option(help="train: batch norm uses the batch; eval must be asked for.")] = "train",
    layers: Annotated[list[str] | None, typer.Option(help="Glob pattern of module paths; may be repeated.")] = None,
    tokens: Annotated[bool, typer.Option(help="Count the tokens of sequences as samples.")] = False,
    theory: Annotated[bool, typer.Option(help="Draw the infinite-width prediction beside a plain MLP.")] = True,
    curvature: Annotated[
        bool, typer.Option("--sharpness", help="Measure lambda_max and the largest stable learning rate too.")
    ] = False,
    lr: Annotated[float | None, typer.Option(help="A learning rate to hold against it; implies --sharpness.")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights, the batch and dropout.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32, float64, bfloat16 or float16.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one self-contained HTML file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every number as CSV.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write every number as parquet.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print facts, findings and layers as JSON.")] = False,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help="warning, error or a code such as NS101: exit with 1 if it was found; may be repeated."),
    ] = None,
) -> None:
    """Show layer by layer what a network does to a batch, what is wrong with it, and why.

    Several models are compared in one report. Exit code 0: fine, 1: --fail-on fired, 2: misuse.
    """
    _check_fail_on(fail_on or [])
    check_outputs(html=html, csv=csv, parquet=parquet)
    if html is not None:
        from normscope.report import html as _page  # noqa: F401  - a missing extra is told before the work
    check_lr(lr)
    for name in models if len(models) > 1 else ():  # a slip in the last is told before the first is measured
        check_model(name, seed=seed)
    where, kind = device_named(device), dtype_named(dtype)
    diagnoses = []
    for name in models:
        with console.status(f"probing {name} ...") if not json else quiet():
            batch, model = load_named(name, data, data_dir, n, seed)
            model.to(device=where, dtype=kind)
            inputs, targets = moved(batch.inputs, where, kind), moved(batch.targets, where, None)
            options = {
                "mode": mode, "layers": layers or None, "tokens": tokens, "theory": theory, "curvature": curvature,
                "lr": lr, "seed": seed,
            }  # fmt: skip
            diagnoses.append(_diagnosed(name, model, inputs, targets, batch, loss, options))
    report = content(diagnoses)
    written, lost = _write(report, html, csv, parquet)  # before anything is printed: a closed pipe must not lose them
    if json:
        print_json(
            {"models": [d.to_dict() | {"label": f["label"]} for d, f in zip(diagnoses, report.facts, strict=True)]}
        )
    else:
        from normscope.report import terminal

        terminal.render(report, console)
        for path in written:
            console.print(f"wrote {path.resolve()}", soft_wrap=True, highlight=False, markup=False)
    if lost is not None:
        raise lost
    if _failed(diagnoses, fail_on or []):
        raise typer.Exit(1)


def _diagnosed(
    name: str,
    model: torch.nn.Module,
    inputs: Any,
    targets: Any,
    batch: Batch,
    loss: str | None,
    options: dict[str, Any],
) -> Diagnosis:
    try:
        found = run(model, inputs, targets, loss, label=name, **options)
    except UsageError:
        raise
    except Exception as error:
        notes = " ".join(note.removeprefix("normscope: ") for note in getattr(error, "__notes__", []))
        shape = tuple(inputs.shape) if isinstance(inputs, torch.Tensor) else type(inputs).__name__
        raise UsageError(
            f"{name} could not be run on {batch.name} (inputs {shape}). {type(error).__name__}: {error}. {notes} "
            "Choose data that fits the model with --data, for instance random:3x32x32."
        ) from error
    found.facts["data"] = batch.name  # type: ignore[index]
    return found


def _check_fail_on(wanted: list[str]) -> None:
    for item in wanted:
        if item not in ("warning", "error", "info") and item not in RULES:
            raise unknown("severity or finding code", item, ["warning", "error", *RULES])


def _failed(diagnoses: list[Diagnosis], wanted: list[str]) -> bool:
    found = [f for d in diagnoses for f in d.findings]
    levels = {"error": {"error"}, "warning": {"error", "warning"}, "info": {"error", "warning", "info"}}
    return any(f.code == w or f.severity in levels.get(w, ()) for f in found for w in wanted)


def _write(
    report: Any, html: Path | None, csv: Path | None, parquet: Path | None
) -> tuple[list[Path], UsageError | None]:
    def page(path: Path) -> None:
        from normscope.report import html as pages

        write(pages.render(report), path)

    return attempt({html: page, **tables(report.table, csv, parquet)})
