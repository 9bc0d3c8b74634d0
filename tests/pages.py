"""The code blocks of README and docs: where they stand, and whether a comment before one says why it is not run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)``` *$", re.S | re.M)
NOT_RUN = re.compile(r"<!-- not run: ([^>]+?) -->\s*\Z")
TITLE = re.compile(r'title="([^"]+)"')
EXIT = re.compile(r"#.*exit code (\d+)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its text, the file that its title names, and the reason why it is not run, if there is one."""

    page: str
    line: int
    language: str
    text: str
    title: str | None = None
    reason: str | None = None

    @property
    def commands(self) -> list[tuple[list[str], int]]:
        """The command lines of a block of the shell, as (words, exit code that a comment states, else 0)."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":  # what does not begin with $ is what the command says
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        found = []
        for line in lines:
            stated = EXIT.search(line)
            if words := shlex.split(line, comments=True):
                found.append((words, int(stated[1]) if stated else 0))
        return found


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in its order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        language, _, rest = match["info"].strip().partition(" ")
        reason, title = NOT_RUN.search(text[: match.start()]), TITLE.search(rest)
        code = "\n".join(line.removeprefix(match["indent"]) for line in match["text"].splitlines()) + "\n"
        line = text[: match.start()].count("\n") + 1
        where = str(page.relative_to(ROOT))
        found.append(Block(where, line, language, code, title and title[1], reason and reason[1]))
    return found
