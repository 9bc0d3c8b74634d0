"""``normscope diagnose``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from normscope._errors import UsageError, unknown
from normscope.cli._app import app, console, print_json
from normscope.datasets import Batch, load
from normscope.diagnose import Diagnosis, content
from normscope.diagnose import diagnose as run
from normscope.findings import RULES
from normscope.models import fitting_data, load_model, synthetic

#: Samples of a batch when none were asked for.
BATCH = 128
MODEL_HELP = (
    "mlp:depth=32,norm=batch (also vgg:, resnet:), path/to/file.py:callable, package.module:callable, "
    "transformers:gpt2, timm:NAME, torchvision:NAME."
)
DATA_HELP = (
    "digits (bundled), mnist, fashion-mnist, cifar10 (with --data-dir), a .npz / .safetensors / .pt file, "
    "package.module:callable, random:3x32x32 or tokens:32x50257. Default: digits, or what a library's config asks for."
)


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
    _check_outputs(html, csv, parquet)
    where, kind = _device(device), _dtype(dtype)
    diagnoses = []
    for name in models:
        with console.status(f"probing {name} ...") if not json else _quiet():
            batch, model = _load(name, data, data_dir, n, seed)
            model.to(device=where, dtype=kind)
            inputs, targets = _moved(batch.inputs, where, kind), _moved(batch.targets, where, None)
            diagnoses.append(_diagnosed(name, model, inputs, targets, batch, loss, mode, layers, tokens, theory, seed))
    report = content(diagnoses)
    if json:
        print_json(
            {"models": [d.to_dict() | {"label": f["label"]} for d, f in zip(diagnoses, report.facts, strict=True)]}
        )
    else:
        from normscope.report import terminal

        terminal.render(report, console)
    _write(report, html, csv, parquet, say=not json)
    if _failed(diagnoses, fail_on or []):
        raise typer.Exit(1)


def _load(
    name: str, data: str | None, data_dir: Path | None, n: int | None, seed: int
) -> tuple[Batch, torch.nn.Module]:
    """The model, and the batch that was named or that fits it."""
    if data is None:
        if name.partition(":")[0] in ("mlp", "vgg", "resnet"):
            batch = _read("digits", None, n, seed)
            return batch, load_model(name, batch, seed=seed)
        model = load_model(name, None, seed=seed)
        # A library's model at 224 x 224 or 32 tokens: 16 samples tell, 128 would take minutes.
        made_up = fitting_data(model)
        batch = synthetic(made_up, n=16 if n is None else n, seed=seed) if made_up else _read("digits", None, n, seed)
        return batch, model
    if data.partition(":")[0] in ("random", "tokens"):
        batch = synthetic(data, n=BATCH if n is None else n, seed=seed)
    else:
        batch = _read(data, data_dir, n, seed)
    return batch, load_model(name, batch, seed=seed)


def _read(data: str, data_dir: Path | None, n: int | None, seed: int) -> Batch:
    """``n`` samples; where n was left open, `BATCH` of them, or all of a smaller file."""
    if n is not None:
        return load(data, data_dir, n=n, seed=seed)
    try:
        return load(data, data_dir, n=BATCH, seed=seed)
    except UsageError:
        batch = load(data, data_dir, seed=seed)
        if len(batch) >= BATCH:
            raise
        return batch


def _diagnosed(
    name: str, model: torch.nn.Module, inputs: Any, targets: Any, batch: Batch, loss: str | None, mode: str,
    layers: list[str] | None, tokens: bool, theory: bool, seed: int,
) -> Diagnosis:  # fmt: skip
    try:
        found = run(
            model,
            inputs,
            targets,
            loss,
            mode=mode,
            label=name,
            layers=layers or None,
            tokens=tokens,
            theory=theory,
            seed=seed,
        )
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


def _check_outputs(*paths: Path | None) -> None:
    """An output that cannot be written is told before the work, not after."""
    from normscope.report._files import check

    for path in paths:
        if path is not None:
            check(path)


def _write(report: Any, html: Path | None, csv: Path | None, parquet: Path | None, *, say: bool) -> None:
    import io

    from normscope.report._files import write

    if html is not None:
        from normscope.report import html as page

        write(page.render(report), html)
    if csv is not None:
        write(report.table.write_csv(), csv)
    if parquet is not None:
        buffer = io.BytesIO()
        report.table.write_parquet(buffer)
        write(buffer.getvalue(), parquet)
    for path in (html, csv, parquet):
        if path is not None and say:
            console.print(f"wrote {path.resolve()}", soft_wrap=True, highlight=False, markup=False)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:
        raise UsageError(
            f"--device must be one that works here; {name!r} does not ({str(error).splitlines()[0]})."
        ) from None
    return device


def _dtype(name: str | None) -> torch.dtype | None:
    known = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name is not None and name not in known:
        raise unknown("dtype", name, known)
    return known[name] if name else None


def _moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, dict):
        return {k: _moved(v, device, dtype) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_moved(v, device, dtype) for v in value)
    return value


def _quiet() -> Any:
    import contextlib

    return contextlib.nullcontext()
