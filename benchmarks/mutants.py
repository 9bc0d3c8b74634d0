"""Mutants of the rooms of maths, drawn by chance: does a test of the room catch each?

    python benchmarks/mutants.py                   # 300 by seed 0 -> results/mutants.csv and mutants.md
    python benchmarks/mutants.py --seed 1 -n 50    # others
    python benchmarks/mutants.py --list            # only say which

What is finished stands in the csv, and the same command goes on from there.

A mutant is one place where one of cosmic-ray's operators applies (another operator, comparison, number, keyword ...),
with one of those operators; places are drawn, so that none counts more for having many. Annotations are left alone:
nothing runs them. The tests that import the file run first. Tests that do not end in ten minutes have caught it.
"""

from __future__ import annotations

import argparse
import ast
import csv
import difflib
import random
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from breaks import PACKAGE, RESULTS, ROOT, Break, run, share
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

#: What is mutated -> where its tests are.
ROOMS = {
    "geometry": "tests/geometry", "linalg": "tests/linalg", "nn": "tests/nn tests/house/test_values_by_hand.py",
    "theory": "tests/theory", "curvature": "tests/curvature", "gaussian.py": "tests/geometry/test_gaussian.py",
}  # fmt: skip
COLUMNS = ("file", "line", "was", "mutant", "by_tests", "seconds")


@dataclass(frozen=True)
class Mutant(Break):
    """The whole file as ``new``; ``line`` is that of the change."""

    line: int = 0

    def plant(self, package: Path) -> None:
        (package / self.file).write_text(self.new, "utf-8")


def places(file: Path) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """(line, column) -> the (operator, occurrence) that apply there."""
    found, tree = defaultdict(list), get_ast(file.read_text("utf-8"))
    for name in plugins.operator_names():
        operator = plugins.get_operator(name)
        if operator.arguments() or name.endswith(("NoOp", "_Is", "_IsNot")):  # of == these mostly say the same
            continue
        spots = (start for node in ast_nodes(tree) for start, _ in operator().mutation_positions(node))
        for occurrence, start in enumerate(spots):
            found[start].append((name, occurrence))
    return found


def running(text: str) -> str:
    """The code without what does not run: annotations, and how it is written; empty where it is none."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return ""
    for node in ast.walk(tree):
        for part in ("annotation", "returns"):
            if getattr(node, part, None) is not None:
                setattr(node, part, ast.Constant(None))
    return ast.dump(tree)


def tests(room: str, file: Path) -> str:
    """The files that import from this one, then the others of the room."""
    module = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
    near = [
        str(path.relative_to(ROOT))
        for where in ROOMS[room].split()
        for path in sorted((ROOT / where).rglob("test_*.py") if (ROOT / where).is_dir() else [ROOT / where])
        if re.search(rf"normscope\.{re.escape(module)}\b", path.read_text("utf-8"))
    ]
    return " ".join([*near, ROOMS[room]])


def drawn(n: int, seed: int) -> list[Mutant]:
    """So many mutants."""
    files = [(room, file) for room in ROOMS for file in
             ([PACKAGE / room] if room.endswith(".py") else sorted((PACKAGE / room).rglob("*.py")))]  # fmt: skip
    spots = [(room, file, at, how) for room, file in files for at, how in sorted(places(file).items())]
    chance, found = random.Random(seed), []
    chance.shuffle(spots)
    for room, file, at, how in spots:
        operator, occurrence = chance.choice(how)
        text = file.read_text("utf-8")
        new = mutate_code(text, plugins.get_operator(operator)(), occurrence)
        if new is None or running(new) in ("", running(text)):
            continue
        name = str(file.relative_to(PACKAGE))
        found.append(Mutant(f"{name}:{at[0]} {operator}", name, text, new, "", tests(room, file), at[0]))
        if len(found) == n:
            break
    return found


def change(one: Mutant) -> tuple[str, str]:
    """The lines that differ, before and after."""
    sides = {"-": "", "+": ""}
    for line in difflib.unified_diff(one.old.splitlines(), one.new.splitlines(), n=0, lineterm=""):
        if line[0] in sides and line[:3] not in ("---", "+++"):
            sides[line[0]] += line[1:].strip() + " "
    return sides["-"].strip(), sides["+"].strip()


def page(rows: list[dict[str, object]], seed: int) -> str:
    """The score, and what survived."""
    lines = [
        "# Mutants\n",
        f"{len(rows)} mutants of the rooms of maths ({', '.join(ROOMS)}), drawn by seed {seed} from all that "
        f"cosmic-ray can make there (`make mutants`; benchmarks/mutants.py): {share(rows, 'by_tests')} were caught by "
        "the tests of their room.\n",
        "| survived | was | mutant |",
        "|---|---|---|",
    ]
    lines += [
        f"| {r['file']}:{r['line']} | `{r['was']}` | `{r['mutant']}` |".replace("||", "\\|\\|")
        for r in rows
        if r["by_tests"] == "survived"
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Draw, plant and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "mutants.csv")
    options = parser.parse_args()
    rows = [] if options.list or not options.out.exists() else list(csv.DictReader(options.out.open(encoding="utf-8")))
    known = {(r["file"], int(r["line"]), r["mutant"]): r for r in rows}
    chosen = [(one, *change(one)) for one in drawn(options.n, options.seed)]
    rows = [known[key] for one, _, mutant in chosen if (key := (one.file, one.line, mutant)) in known]

    def told(given: tuple[Mutant, str, str]) -> dict[str, object]:
        one, was, mutant = given
        found = {} if options.list else run(one, claims=False)
        row = {"file": one.file, "line": one.line, "was": was, "mutant": mutant} | found
        return {name: row.get(name, "") for name in COLUMNS}

    with ThreadPoolExecutor(options.workers) as pool:
        for row in pool.map(told, [g for g in chosen if (g[0].file, g[0].line, g[2]) not in known]):
            rows.append(row)
            print(f"{row['by_tests']:<9} {row['file']}:{row['line']}  {row['was']}  ->  {row['mutant']}", flush=True)
            if not options.list:
                keep(rows, options.out, options.seed)


def keep(rows: list[dict[str, object]], out: Path, seed: int) -> None:
    """Write the table and the page of what is finished."""
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    out.with_suffix(".md").write_text(page(rows, seed), "utf-8")


if __name__ == "__main__":
    main()
