"""Run the scripts of examples/gallery, and write docs/gallery/*.svg and docs/gallery.md.

python docs/gallery.py [SCRIPT ...]
"""

from __future__ import annotations

import ast
import os
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = HERE.parent / "examples" / "gallery"
#: Heading -> the scripts below it, in order.
ORDER = {
    "What goes wrong with depth": ("rank_collapse", "gradient_explosion", "token_collapse", "graph_network"),
    "What helps, and how fast it may train": (
        "cure_race",
        "learning_rates",
        "sharpness",
        "transfer",
        "tracked_run",
        "edge_of_stability",
    ),
    "Other models, other steps": ("language_model", "diffusion"),
    "Many nets at once": ("phase_diagram",),
    "A figure for each of the papers": ("paper_rank", "paper_orthogonality", "paper_odd_point", "paper_sharpness"),
}
LEAD = """Short scripts that run in seconds on one core, each with the picture that it writes: `python
examples/gallery/rank_collapse.py`, with the extra `report`. The line with `assert` at the end of each is what its text
claims; the tests run them. `python docs/gallery.py` draws the pictures and this page again.
"""


def parts(script: Path) -> tuple[str, str, str]:
    """The title of a script, its text, and its code."""
    source = script.read_text(encoding="utf-8")
    tree = ast.parse(source)
    title, _, text = (ast.get_docstring(tree) or "").partition("\n")
    code = source.splitlines()[tree.body[0].end_lineno :]
    return title.rstrip("."), text.strip(), "\n".join(code).strip()


def page() -> str:
    """The page: for each script its title, its text, its picture and its code."""
    lines = ["# Gallery\n", LEAD]
    for heading, names in ORDER.items():
        lines.append(f"## {heading}\n")
        for name in names:
            title, text, code = parts(SCRIPTS / f"{name}.py")
            lines += [f"### {title}\n", f"{text}\n", f"![{title}](gallery/{name}.svg)\n"]
            lines += [f"`examples/gallery/{name}.py`\n", f"```python\n{code}\n```\n"]
    return "\n".join(lines)


def main() -> None:
    wanted = sys.argv[1:] or [name for names in ORDER.values() for name in names]
    (HERE / "gallery").mkdir(exist_ok=True)
    os.chdir(HERE / "gallery")
    for name in wanted:
        runpy.run_path(str(SCRIPTS / f"{name}.py"))
        print(name, f"{Path(f'{name}.svg').stat().st_size / 1000:.0f} kB")
    (HERE / "gallery.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
