"""Every model of the tests' zoo, every verb, every circumstance: what is left behind.

    python benchmarks/no_trace.py                              # all combinations, some 12 000: five to ten minutes
    python benchmarks/no_trace.py --verb probe --context plain # some of them; each option may be given several times
    python benchmarks/no_trace.py --animal dropout --told      # and each change by name

The tests take a pairwise choice of the same combinations (``tests/call/test_no_trace_zoo.py``, which says what counts).
A cell is "combinations that left something or were answered wrongly / all"; below are the models with the most of them,
with an example each. Exit code 1 if there is any.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from test_no_trace_zoo import CONTEXTS, VERBS, Combination, outcome, unexpected
from zoo import ZOO


def troubles(combination: Combination) -> list[str]:
    """What the combination left behind, how training goes on differently, and an answer that it may not give."""
    found = outcome(combination)
    later = [f"a step later: {change}" for change in found.step]
    return [*found.model, *found.around, *later, *unexpected(combination)]


def matrix(found: dict[Combination, list[str]], verbs: list[str], contexts: list[str]) -> Table:
    """Verbs by circumstances."""
    table = Table(title="left something, or answered wrongly / all", title_style="bold")
    for heading in ("", *verbs, "all"):
        table.add_column(heading, justify="right" if heading else "left")

    def cell(verb: str | None, context: str | None) -> str:
        here = [t for c, t in found.items() if verb in (None, c.verb) and context in (None, c.context)]
        bad = sum(1 for t in here if t)
        return f"[{'red' if bad else 'green'}]{bad}[/] / {len(here)}"

    for context in (*contexts, None):
        table.add_row(context or "all", *(cell(verb, context) for verb in verbs), cell(None, context))
    return table


def models(found: dict[Combination, list[str]], most: int) -> Table:
    """The models with the most combinations that left something, and one example each."""
    table = Table(title="models", title_style="bold")
    for heading in ("model", "combinations", "where", "for example"):
        table.add_column(heading, overflow="fold")
    counts = Counter(c.animal for c, t in found.items() if t)
    for animal, count in counts.most_common(most):
        where, example = next((c, t[0]) for c, t in found.items() if t and c.animal == animal)
        table.add_row(animal, str(count), f"{where.verb}, {where.context}", escape(example[:160]))
    return table


def main() -> None:
    """Run the combinations asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--animal", action="append", choices=list(ZOO), metavar="NAME", help="a model of tests/zoo.py")
    parser.add_argument("--verb", action="append", choices=list(VERBS))
    parser.add_argument("--context", action="append", choices=list(CONTEXTS))
    parser.add_argument("--moments", type=int, default=1, help="at how many moments to interrupt each call")
    parser.add_argument("--most", type=int, default=30, help="how many models to list")
    parser.add_argument("--told", action="store_true", help="list every change of every combination")
    given = parser.parse_args()
    animals, verbs, contexts = given.animal or list(ZOO), given.verb or list(VERBS), given.context or list(CONTEXTS)

    console = Console(width=None if sys.stdout.isatty() else 200)
    for verb in verbs:  # what is imported on first use may add filters of warnings
        outcome(Combination("mlp-relu", verb, "plain"))
    started, found = time.process_time(), {}
    combinations = [
        Combination(animal, verb, context, moment)
        for animal, verb, context in product(animals, verbs, contexts)
        for moment in range(given.moments if CONTEXTS[context].events else 1)
    ]
    for one in track(combinations, "measuring", console=Console(stderr=True)):
        found[one] = troubles(one)
    console.print(matrix(found, verbs, contexts))
    bad = {c: t for c, t in found.items() if t}
    if bad:
        console.print(models(found, given.most))
    if given.told:
        for combination, told in bad.items():
            console.print(f"[bold]{combination}[/]")
            for line in told:
                console.print(f"  {escape(line)}", highlight=False)
    seconds = time.process_time() - started
    console.print(f"{len(found)} combinations, {len(bad)} with a trace or a wrong answer, {seconds:.0f} s of CPU")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
