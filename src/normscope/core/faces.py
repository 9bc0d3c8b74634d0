"""What a result shows of itself on a higher floor: a chart, its page, its notebook cell, the tables of its report.

The higher floor enters where each face is made; it is imported when it is first asked for, and may need an extra.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from normscope.core.errors import UsageError
from normscope.core.files import check
from normscope.core.registry import Registry

#: ``race`` -> ``module:function`` that makes the sheet of a race; ``as.page`` -> what makes a page of any sheet.
FACES: Registry[str] = Registry("face", home="normscope.report")
#: How the files end that a result can be saved as.
SUFFIXES = (".html", ".png", ".svg", ".pdf")


def show(face: str, *args: Any, **options: Any) -> Any:
    """What the function of this name makes of the arguments."""
    module, _, function = FACES[face].partition(":")
    return getattr(import_module(module), function)(*args, **options)


class Shown:
    """A result that shows itself: ``face`` names the function that makes its sheet."""

    face: ClassVar[str] = ""

    def chart(self) -> Any:
        """The main numbers as one Altair chart (needs the extra ``report``)."""
        return show("as.chart", show(self.face, self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page (``.html``) or the main charts as a picture (``.png``, ``.svg``, ``.pdf``): whole, or not at
        all.

        Raises ``UsageError`` for another suffix, a path that cannot be written, and a picture of no numbers.
        """
        if not pictured(path):
            raise UsageError(
                f"A result is saved as {', '.join(SUFFIXES)}; got {str(path)!r}. Choose one of these endings."
            )
        check(path)
        show("as.file", show(self.face, self), path)

    def _repr_html_(self) -> str | None:
        """The notebook cell; where it cannot be drawn (no extra ``report``, too few addresses) the notebook shows the
        ``repr``.
        """
        try:
            return str(show("as.cell", show(self.face, self, brief=True)))
        except UsageError:
            return None


def pictured(path: str | os.PathLike[str]) -> bool:
    """Whether a path ends as a page or a picture does."""
    return Path(path).suffix.lower() in SUFFIXES
