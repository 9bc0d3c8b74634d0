"""Options that several commands have, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normscope.cli._index import index

#: Panels of the help.
FILES, GUARD = "Files", "Guard in CI"
MODEL_HELP = (
    "mlp:depth=32,norm=batch (also vgg:, resnet:), transformers:gpt2, timm:NAME, torchvision:NAME, or a callable, "
    "path/to/file.py:make or package.module:make, with arguments make,depth=3: it returns a module, a normscope.Step "
    "or a dict of its fields."
)
DATA_HELP = (
    "digits (bundled), mnist, fashion-mnist, cifar10 (with --data-dir), a .npz / .safetensors / .pt file, file.py:fn "
    "or package.module:fn that returns (inputs, targets), random:3x32x32 or tokens:32x50257. Default: the batch of the "
    "Step, digits, or what a library's config asks for."
)
LOSS_HELP = (
    f"{', '.join(index()['losses'])}, or file.py:fn, package.module:fn: a callable (outputs, targets), a torch loss "
    "module or its class. Default: the model's own, else by the targets."
)

Model = Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL")]
Models = Annotated[list[str], typer.Argument(help=MODEL_HELP, metavar="MODEL...")]
ModelsOrConfig = Annotated[
    list[str] | None,
    typer.Argument(help=f"{MODEL_HELP} Default: those of the table tool.normscope in pyproject.toml.", metavar="MODEL"),
]
Data = Annotated[str | None, typer.Option(help=DATA_HELP)]
DataDir = Annotated[Path | None, typer.Option(help="Folder that holds the data set.")]
Count = Annotated[
    int | None,
    typer.Option(
        "--batch", "-n", help="Samples in the batch. Default 128, all if there are fewer; 16 for a library's model."
    ),
]
LossName = Annotated[str | None, typer.Option("--loss", help=LOSS_HELP)]
Mode = Annotated[str | None, typer.Option(help="train (default): batch norm uses the batch; eval must be asked for.")]
Axis = Annotated[
    int | None,
    typer.Option("--samples", metavar="AXIS", min=0, help="Axis of the inputs that runs over samples; default found."),
]
Seed = Annotated[int, typer.Option(help="Of the weights, the batch and dropout.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")]
Dtype = Annotated[str | None, typer.Option(help="float32, float64, bfloat16 or float16.")]
Optimizer = Annotated[
    str | None,
    typer.Option(
        help="A class of torch.optim with its arguments, adamw,lr=0.001, or file.py:fn, package.module:fn: a function "
        "of the model that returns the optimizer. Default: the Step's own, else none."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]
Csv = Annotated[Path | None, typer.Option(help="Write every number as CSV.", rich_help_panel=FILES)]
Parquet = Annotated[Path | None, typer.Option(help="Write every number as parquet.", rich_help_panel=FILES)]
Rates = Annotated[
    bool,
    typer.Option(
        "--rates",
        help="Try learning rates on copies, 20 steps each, of the Step's own optimizer, else of sgd, momentum 0.9 and "
        "Adam: the largest that trains and the best, with intervals.",
    ),
]
Trial = Annotated[str, typer.Option(help="auto: up to 50 steps on copies (20 s); a number of steps; none.")]
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        help="warning, error or a code such as NS101: exit with 1 if it was found; may be repeated.",
        rich_help_panel=GUARD,
    ),
]
Baseline = Annotated[
    Path | None,
    typer.Option(help="Fail only for what is new or worse than in this file.", rich_help_panel=GUARD),
]
WriteBaseline = Annotated[
    Path | None, typer.Option(help="Write what is found into this file, and accept it.", rich_help_panel=GUARD)
]
OutputFormat = Annotated[
    str | None,
    typer.Option(help="text (default), json, github (annotations), sarif or junit.", rich_help_panel=GUARD),
]
OutputFile = Annotated[
    Path | None,
    typer.Option(help="Write that format into this file; the text goes to the terminal.", rich_help_panel=GUARD),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file with the table tool.normscope. Default: the nearest pyproject.toml that has one.",
        rich_help_panel=GUARD,
    ),
]
NoConfig = Annotated[bool, typer.Option("--no-config", help="Read no configuration.", rich_help_panel=GUARD)]
