"""The outcome of a race: one tidy table, its summary, its page."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

from normscope.core.errors import UsageError
from normscope.core.faces import Shown, pictured, show
from normscope.core.files import check_bytes, check_readable, write
from normscope.racing._statistics import Line, default_target, summarise

if TYPE_CHECKING:
    import polars

    from normscope.report.race import RaceContent


@dataclass(frozen=True, repr=False)
class Race(Shown):
    """Variants trained side by side.

    table: ``variant, seed, step, epoch, signal, metric, layer, name, value``, one number a row. ``step`` counts the
        updates done when it was measured. signal ``batch``: the loss of each step (training mode); ``train``, ``test``:
        loss and accuracy in eval mode, with running statistics; ``activation``, ``gradient``, ``weight``: layers, as
        `normscope.probing.passes` has them; ``run``: ``lr``, seconds, and ``diverged`` at the step where a run did.
    facts: settings, ``variants`` in order, ``baseline``, ``rates`` and how they were chosen, ``notes``.
    """

    face = "race"
    table: polars.DataFrame
    facts: Mapping[str, Any] = field(default_factory=dict)

    def frame(self) -> polars.DataFrame:
        """Every number, tidy."""
        return self.table

    @cached_property
    def target(self) -> float | None:
        """The loss that `summary` counts the steps to: as asked for, else half way down (geometric mean of the lowest
        first and the lowest final loss); ``None`` where no variant went down.
        """
        asked: float | None = self.facts.get("target_loss")
        return default_target(self.table, list(self.facts["variants"])) if asked is None else asked

    def lines(self) -> list[Line]:
        """The final table as objects; `Line` says what its numbers are."""
        return summarise(self.table, list(self.facts["variants"]), self.facts["baseline"], self.target)

    def summary(self) -> polars.DataFrame:
        """The final table: one row a variant, columns of `Line`."""
        import polars as pl

        rows = [line.to_dict() for line in self.lines()]
        words = {"variant": pl.String, "verdict": pl.String, "seeds": pl.Int64, "diverged": pl.Int64}
        return pl.DataFrame(rows, schema={name: words.get(name, pl.Float64) for name in rows[0]})

    def content(self) -> RaceContent:
        """What a report reads."""
        lines = tuple(line.to_dict() for line in self.lines())
        made: RaceContent = show("race.content", self.table, lines, {**self.facts, "target": self.target})
        return made

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the race as one self-contained HTML page (needs the extra ``report``)."""
        show("as.file", show(self.face, self), path, "html")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write table and facts to one file, a zip of ``table.parquet`` and ``facts.json``, which `load` reads; with
        the ending of a page or a picture (``.html``, ``.png``, ``.svg``, ``.pdf``) that.
        """
        if pictured(path):
            super().save(path)
            return

        def pack(file: BinaryIO) -> None:
            with zipfile.ZipFile(file, "w") as archive:
                with archive.open("table.parquet", "w", force_zip64=True) as part:
                    self.table.write_parquet(part)
                archive.writestr("facts.json", json.dumps(dict(self.facts)))

        write(pack, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Race:
        """Read what `save` wrote. Raises ``UsageError`` for anything else."""
        import polars as pl

        try:
            check_readable(path)
            with zipfile.ZipFile(path) as archive:
                check_bytes(sum(member.file_size for member in archive.infolist()), path)
                table = pl.read_parquet(io.BytesIO(archive.read("table.parquet")))
                return cls(table, json.loads(archive.read("facts.json")))
        except FileNotFoundError:
            raise UsageError(f"There must be a file {path}; there is none.") from None
        except UsageError:
            raise
        except Exception as error:  # a damaged file makes each reader raise its own
            raise UsageError(
                f"{path} must be a file that Race.save wrote; reading it gave {type(error).__name__}: {error}."
            ) from None

    def __repr__(self) -> str:
        lines = self.lines()
        heads = ", ".join(f"{x.variant} {x.train_loss:.4g}" + " (diverged)" * (x.diverged == x.seeds) for x in lines)
        return f"Race({len(lines)} variants, {max(x.seeds for x in lines)} seeds; final training loss: {heads})"
