"""The output options of a command: ``--html``, ``--png``, ``--csv`` ... checked before the work, written after it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normscope.cli._app import console
from normscope.cli._options import FILES
from normscope.core.errors import UsageError
from normscope.core.faces import Shown, show
from normscope.core.files import check, write
from normscope.core.records import csv as csv_of

if TYPE_CHECKING:
    import polars as pl

Writer = Callable[[Path], Any]

#: How the files of an option may end; other ends of this list, or of other programs' files, are mistakes.
ENDS = {
    "html": (".html", ".htm"), "csv": (".csv",), "parquet": (".parquet",), "png": (".png",), "svg": (".svg",),
    "pdf": (".pdf",),
}  # fmt: skip
_FOREIGN = {end for ends in ENDS.values() for end in ends} | {".jpg", ".xlsx", ".json", ".jsonl", ".txt"}
#: The options of every command that has a result to show.
PAGES = {
    "html": "Write charts and numbers as one self-contained HTML file.",
    "png": "Write the main charts as a PNG picture.",
    "svg": "Write them as an SVG picture.",
    "pdf": "Write them as a PDF.",
}


@dataclass(frozen=True)
class Pages:
    """The files that show a result, as they were asked for."""

    html: Path | None = None
    png: Path | None = None
    svg: Path | None = None
    pdf: Path | None = None

    def check(self, **others: Path | None) -> None:
        """What stands in the way of these outputs and the ``others``, told before the work: a missing extra too."""
        check_outputs(**asdict(self), **others)
        if any(asdict(self).values()):
            from normscope.report import html as _page  # noqa: F401

    def absolute(self) -> Pages:
        """The same files, for a command that works in another folder."""
        return Pages(**{kind: absolute(path) for kind, path in asdict(self).items()})

    def writers(self, made: Shown | Callable[[], Any]) -> dict[Path | None, Writer]:
        """Writers of a result, or of the sheet that is made when it is needed, for `attempt`."""

        def writer(kind: str) -> Writer:
            return lambda path: show(
                "as.file", show(made.face, made) if isinstance(made, Shown) else made(), path, kind
            )

        return {path: writer(kind) for kind, path in asdict(self).items()}


def absolute(path: Path | None) -> Path | None:
    """A path that holds in any folder."""
    return path.absolute() if path is not None else None


NO_PAGES = Pages()


def with_pages(command: Callable[..., None]) -> Callable[..., None]:
    """The command with ``--html``, ``--png``, ``--svg`` and ``--pdf`` in the place of its argument ``pages``."""
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name != "pages":
            parameters.append(parameter)
            continue
        for kind, text in PAGES.items():
            asked = Annotated[Path | None, typer.Option(f"--{kind}", help=text, rich_help_panel=FILES)]
            parameters.append(parameter.replace(name=kind, annotation=asked, default=None))

    @wraps(command)
    def run(**given: Any) -> None:
        command(pages=Pages(**{kind: given.pop(kind) for kind in PAGES}), **given)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def check_outputs(**paths: Path | None) -> None:
    """`check` for the files of options (``html=...``, ``csv=...``), their ends, and that no two are one file."""
    seen: dict[Path, str] = {}
    for kind, path in paths.items():
        if path is None:
            continue
        check(path)
        end, allowed = path.suffix.lower(), ENDS.get(kind)
        if allowed and end in _FOREIGN - set(allowed):
            raise UsageError(f"--{kind} writes {allowed[0]} files; got {str(path)!r}. Name it {path.stem}{allowed[0]}.")
        if (other := seen.setdefault(path.resolve(), kind)) != kind:
            raise UsageError(f"Each output must be a file of its own; --{other} and --{kind} both name {str(path)!r}.")


def attempt(outputs: Mapping[Path | None, Writer]) -> tuple[list[Path], UsageError | None]:
    """Call the writer of each path that is given: what was written, and the first error, to be raised after the results
    have been shown."""
    written: list[Path] = []
    lost: UsageError | None = None
    for path, writer in outputs.items():
        if path is None:
            continue
        try:
            writer(path)
            written.append(path)
        except UsageError as error:
            lost = lost or error
    return written, lost


def tables(table: pl.DataFrame, csv: Path | None, parquet: Path | None) -> dict[Path | None, Writer]:
    """Writers of a table, for `attempt`."""
    return {csv: lambda path: write(csv_of(table), path), parquet: lambda path: write(table.write_parquet, path)}


def say_written(paths: Iterable[Path]) -> None:
    """Where the files are."""
    for path in paths:
        console.print(f"wrote {path.resolve()}", soft_wrap=True, highlight=False, markup=False)
