"""``normscope selfcheck``: what automatic differentiation can be trusted with here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from normscope.cli import _options as option
from normscope.cli._app import app, console, print_json
from normscope.core.errors import unknown

DTYPES = ("float32", "float64")


@app.command()
def selfcheck(
    device: option.Device = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float64",
    seed: Annotated[int, typer.Option(help="Of the small nets that are used.")] = 0,
    json: option.Json = False,
) -> None:
    """Check forward and reverse mode through batch and layer norm on this torch, device and dtype.

    Some second-order compositions through torch's fused norms are silently wrong in some versions. normscope does not
    use them; code of yours may. Exit code 1: something that normscope relies on is not exact here.
    """
    import torch

    from normscope.core.tensors import device_of
    from normscope.curvature import selfcheck as run

    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    checks = run(device_of(device, "--device"), getattr(torch, dtype), seed)
    failed = [c for c in checks if c.relied_on and c.status != "exact"]
    if json:
        about = {"torch": torch.__version__, "device": device, "dtype": dtype, "trusted": not failed}
        print_json({**about, "checks": [asdict(c) for c in checks]})
    else:
        from rich.table import Table

        table = Table(title=f"torch {torch.__version__}, {device}, {dtype}")
        for column in ("layer", "composition", "relied on", "relative error", "verdict"):
            table.add_column(column)
        colours = {"exact": "green", "WRONG": "red", "raises": "yellow"}
        for c in checks:
            size = "" if c.error != c.error else f"{c.error:.0e}"
            verdict = f"[{colours[c.status]}]{c.status}[/]"
            table.add_row(c.layer, c.composition, "yes" if c.relied_on else "no", size, verdict)
        console.print(table)
        wrong = sum(c.status == "WRONG" for c in checks if not c.relied_on)
        if failed:
            console.print(f"[red]{len(failed)} compositions that normscope relies on are not exact here.[/]")
        else:
            console.print("Everything that normscope relies on is exact here.", highlight=False)
        if wrong:
            console.print(f"{wrong} other compositions are silently wrong here: keep them out of your own code.")
    if failed:
        raise typer.Exit(1)
