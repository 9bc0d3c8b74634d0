"""Write what is made from the code and the results: findings.md, metrics.md, lists.md, architecture.md, papers/*.md,
report.png, the CLI's index.

python docs/generate.py [--picture]
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import sys
from pathlib import Path

from normscope.claims import CLAIMS, PAPERS, Claim, Verdict, Verdicts, load
from normscope.cli import _index
from normscope.core.words import duration
from normscope.findings import RULES
from normscope.geometry.metrics import METRICS
from normscope.report.claims import band, measured, number, said

HERE = Path(__file__).parent
#: Samples and features of the page's values without structure.
NULL = (64, 256)
QUICK = HERE.parent / "results" / "verify.jsonl"
FULL = HERE.parent / "results" / "verify_full.jsonl"


def findings_page() -> str:
    parts = [
        "# Findings\n",
        "Every rule that `normscope diagnose` applies, and, from NS911 on, those over the steps of a training that "
        "`normscope report` and a `Tracker` apply ([tracker.md](tracker.md)). The same texts: `normscope explain "
        "CODE`.\n",
        "| code | finding | severity | what it means |\n|---|---|---|---|",
        *(f"| [{r.code}](#{r.code.lower()}) | {r.title} | {r.severity} | {r.meaning} |" for r in RULES.values()),
        "",
        evidence(),
    ]
    for r in RULES.values():
        parts += [
            f"## {r.code}\n",
            f"**{r.title}** ({r.severity})\n",
            inspect.cleandoc(r.text) + "\n",
            f"- What it means: {r.meaning}\n- What to do: {r.cure}\n- Threshold: {r.source}\n",
        ]
    return "\n".join(parts)


def evidence() -> str:
    """What was said of every net of the zoo before it was trained, and what training then did."""
    zoo = str(HERE.parent / "benchmarks" / "zoo")
    sys.path.insert(0, zoo)
    try:
        from table import read  # type: ignore[import-not-found]
    finally:
        sys.path.remove(zoo)
    return read()


MORE_METRICS = """
## Null values

A number of a finite batch means little without what a batch without structure has: 64 samples of 256 normal features
have an `entropy_rank` of 61.8, not of 64. `i.i.d.` above is that value at one size;
`metrics.entropy_rank.null(n, d)` gives it at any, and `normscope.measure(x, null=True)` puts `entropy_rank_null` behind
`entropy_rank`, for all metrics that do not depend on the scale. For weights the null value is that of i.i.d. weights.

## Batches

`normscope.measure(data=loader)` measures batches of one representation as one, and keeps their second moments, (d, d),
not the samples: for the metrics of the spectrum alone, of any number of samples.

## Weights

`of` weight: measured on the weight matrix of a layer, (out, in times kernel). They take a decomposition of each matrix,
so that a probe has them only where they are asked for:

```python
ns.probe(model, inputs, metrics=["weight_spectral_norm", "weight_stable_rank", "weight_edge_ratio"])
```

`weight_edge_ratio` near 1 says that the largest singular value is where random weights have it; a trained or a low-rank
matrix lies above.

## Attention

A probe reads every attention, whichever way it is computed: `nn.MultiheadAttention`,
`F.scaled_dot_product_attention`, or a softmax and a product with the values.

- `attention_entropy`, nat: entropy of the weights, the mean over samples, queries and heads; 0: each query looks at one
  key. Its null value `attention_entropy_null` is that of uniform attention: log T, of the keys a query may see.
- `head_rank`, dimensions: participation rank of what a head returns over all N tokens of all samples, the mean over
  heads. Its null value `head_rank_null` is that of i.i.d. normal entries, (N d + 2) / (N + d + 1).

They stand in the table at the layer that the heads go to; `profile.facts["attention"]` has them head by head. Of at
most 32 samples, without dropout.

## Residual streams

`profile.facts["parts"]` says for each layer of a net with a residual stream what it is: `stream` (where a block ends),
`attention`, `mlp` (`branch` where nothing attends), `norm`, and `embedding`, `between`, `head` outside the blocks. A
block is an element of a `ModuleList` or `Sequential` with modules of its own; a stream is there if two blocks of a kind
or more add to what they are given. The page and `.chart()` draw the stream as the main line, the other kinds small.

## Views, and layers beside each other

`metrics.lidar(x)` of (views, n, d) is LiDAR: it needs several views of each sample; `metrics.lidar_null(views, n, d)`
is its null value. `normscope.similarity(model, inputs)` compares the layers with each other: unbiased CKA, or the
correlation of the distances between samples (`kind="rdm"`); both are 0 for layers without anything in common.
`.chart()` is a map of all pairs and the path of the layers in the plane (MDS).
"""


def metrics_page() -> str:
    lines = [
        "# Metrics\n",
        "Every metric of `normscope.measure(x)` and of a probe. Definitions with formulas are in the docstrings of",
        "`normscope.metrics`; `invariant` says what leaves the number unchanged, `needs` what is computed,",
        f"`i.i.d.` what {NULL[0]} samples of {NULL[1]} standard normal features give (`METRICS[name].null(n, d)`).\n",
        "| metric | unit | range | i.i.d. | of | needs | invariant under | source | meaning |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for m in METRICS.values():
        meaning = (inspect.getdoc(m.function) or "").splitlines()[0].replace("|", "\\|")
        span = f"{m.low:g} to {m.high:g}".replace("inf", "∞")
        null = m.null(*NULL)
        lines.append(
            f"| `{m.name}` | {m.unit} | {span} | {'' if null != null else number(null)} | {m.signal} | {m.needs} | "
            f"{', '.join(m.invariant)} | {m.source} | {meaning} |"
        )
    return "\n".join(lines) + "\n" + MORE_METRICS


def lists_page() -> str:
    """What has a name and no page of its own: the texts of ``normscope list``."""
    lists = json.loads(_index.text())["lists"]
    parts = ["# Lists\n", "What a command or a `Spec` takes by name; the same as `normscope list`.\n"]
    for kind in ("norms", "activations", "weights", "cures", "models", "datasets"):
        rows = [f"| `{name}` | {_cell(text)} |" for name, text in lists[kind].items()]
        parts += [f"## {kind.capitalize()}\n", "| name | what it is |\n|---|---|", *rows, ""]
    return "\n".join(parts)


def results() -> list[Verdicts | None]:
    """The stored verdicts of the last quick run, and of the full sizes that were run."""
    return [Verdicts.load(path) if path.exists() else None for path in (QUICK, FULL)]


def paper_page(key: str, quick: Verdicts | None, full: Verdicts | None) -> str:
    """What a paper says, in our words, what was measured, and where it deviates: from its claims and the last runs."""
    paper = PAPERS[key]
    small, large = ({v.claim: v for v in found or ()} for found in (quick, full))
    mine = [c for c in CLAIMS.values() if c.name.startswith(f"{key}/")]
    lines = [
        f"# {paper.title}\n",
        f"{paper.authors}, {paper.venue}. {paper.summary}\n",
        f"{len(mine)} claims, each with controls that must come out the other way; `normscope verify {key}` runs them "
        "at their quick size, `--size full` at the paper's, `--size reduced` too, but smaller where that needs a GPU. "
        "Seconds are of the clock, on one core of a machine with "
        f"other work; those of a size that was not run are estimates. {_run('quick', small)} {_run('full', large)}\n",
        "| claim | where | statement | quick size | full size |\n|---|---|---|---|---|",
    ]
    for c in mine:
        name, results = _bare(c.name), f"{_said(c, small, 'quick')} | {_said(c, large, 'full')}"
        lines.append(f"| [{name}](#{name}) | {_linked(c.where)} | {_cell(c.statement)} | {results} |")
    lines.append("")
    for c in mine:
        place = f"({_linked(c.where)}; covers {', '.join(c.covers)})"
        lines += [f"## {_bare(c.name)}\n", f"**{c.statement}** {place}\n", c.text, ""]
        lines.append(f"Control: {c.because}.\n")
        for found in (small, large):
            if (v := found.get(c.name)) is not None and v.readings:
                lines += _readings(v)
    if paper.left_out:
        lines += ["## Not checked\n", *(f"- {row}: {why}" for row, why in paper.left_out.items())]
    return "\n".join(lines).rstrip() + "\n"


def _readings(verdict: Verdict) -> list[str]:
    rows = [
        f"| {_cell(r.quantity)} | {measured(r)} | {band(r)} | {'' if r.printed is None else number(r.printed)} | "
        f"{r.status} | {verdict.guard(r)} | {_cell(r.reason)} |"
        for r in verdict.readings
    ]
    head = f"| quantity, {_size(verdict)} size | measured | band | printed | | control | why this band |"
    return [head, "|---|---|---|---|---|---|---|", *rows, "", *(f"- {note}" for note in verdict.notes)]


def _run(size: str, found: dict[str, Verdict]) -> str:
    """Where the results of a size come from."""
    if not found:
        return f"Nothing of {size} size was run yet."
    first = next(iter(found.values()))
    data = "data files" if first.data == "files" else "digits where data is needed"
    return f"Run at {size} size: seed {first.seed}, {data}, torch {first.torch}, normscope {first.normscope}."


def _linked(where: str) -> str:
    """A place in a page of ours as a link to it."""
    return re.sub(r"(\w+\.md)( [\d.]+)?", r"[\1\2](../\1)", where)


def _bare(name: str) -> str:
    return name.partition("/")[2]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _size(verdict: Verdict) -> str:
    """The size that was run, and what is smaller in a reduced one."""
    claim = CLAIMS[verdict.claim]
    smaller = {k: v for k, v in claim.reduced.items() if claim.full[k] != v}
    if verdict.size != "reduced" or not smaller:
        return "full" if verdict.size == "reduced" else verdict.size
    return f"reduced ({', '.join(f'{k} {v} instead of {claim.full[k]}' for k, v in smaller.items())})"


def _said(claim: Claim, found: dict[str, Verdict], size: str) -> str:
    """The verdict with its seconds, or the estimated cost of one that was not run."""
    if (verdict := found.get(claim.name)) is not None:
        reduced = "at a reduced size, " if _size(verdict).startswith("reduced") else ""
        return f"{said(verdict)}, {reduced}{verdict.seconds:.2g} s"
    if size != "quick" and claim.full == claim.quick:
        return "the same"
    return f"not run: {claim.needs or f'about {duration(claim.cost(size))}'}"


def picture() -> None:
    from normscope import Spec, build, diagnose
    from normscope.data.datasets import load
    from normscope.findings.diagnosis import content
    from normscope.report import html

    batch = load("digits", n=128)
    found = []
    for label, norm in (("32 ReLU layers", "none"), ("with batch norm", "batch")):
        model = build(Spec(depth=32, width=128, norm=norm, outputs=10), (1, 8, 8))
        found.append(diagnose(model, batch.inputs, batch.targets, label=label))
    html.to_png(content(found), HERE / "report.png")


def rooms() -> dict[str, tuple[str, set[str]]]:
    """Of each room (a folder of the package, or ``gaussian`` and ``tasks``): its first line, and the rooms that it
    imports.
    """
    package = HERE.parent / "src" / "normscope"
    found: dict[str, tuple[str, set[str]]] = {}
    single = [package / "gaussian.py", package / "tasks.py"]
    for top in sorted([*(d for d in package.iterdir() if (d / "__init__.py").exists()), *single]):
        files = [top] if top.is_file() else sorted(top.rglob("*.py"))
        doc = ast.get_docstring(ast.parse((top if top.is_file() else top / "__init__.py").read_text())) or ""
        text = re.sub(r"^ *if TYPE_CHECKING:\n(    .*\n|\n)+", "", "\n".join(f.read_text() for f in files), flags=re.M)
        found[top.stem] = (doc.splitlines()[0], set(re.findall(r"^ *(?:from|import) normscope\.(\w+)", text, re.M)))
    return {room: (line, {r for r in seen if r in found and r != room}) for room, (line, seen) in found.items()}


def architecture_page() -> str:
    """The rooms, and which imports which: arrows that a longer way says too are left out of the drawing."""
    found = rooms()
    below: dict[str, set[str]] = {}

    def under(room: str) -> set[str]:
        if room not in below:
            below[room] = set().union(*({r} | under(r) for r in found[room][1]))
        return below[room]

    arrows = [
        (a, b) for a, (_, seen) in found.items() for b in sorted(seen) if not any(b in under(c) for c in seen if c != b)
    ]  # fmt: skip
    return "\n".join([
        "# Architecture\n",
        "A *room* is a folder of the package. Imports go down only: what a room shows of a higher one (a page, a "
        "chart) goes",
        "through a registry in `core` that the higher one fills. The drawing is made from the imports (`python",
        "docs/generate.py`), without arrows that a longer way says too; `tests/house/test_layers_of_the_house.py` "
        "checks them.\n",
        "```mermaid", "flowchart TD", *(f"  {a} --> {b}" for a, b in arrows), "```\n",
        "| room | what it is for | imports |\n|---|---|---|",
        *(f"| `{room}` | {line} | {', '.join(sorted(seen)) or '-'} |" for room, (line, seen) in found.items()),
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", action="store_true", help="draw docs/report.png again as well")
    args = parser.parse_args()
    (HERE / "findings.md").write_text(findings_page())
    (HERE / "metrics.md").write_text(metrics_page())
    (HERE / "lists.md").write_text(lists_page())
    (HERE / "architecture.md").write_text(architecture_page())
    _index.write()
    load()
    (HERE / "papers").mkdir(exist_ok=True)
    for key in PAPERS:
        (HERE / "papers" / f"{key}.md").write_text(paper_page(key, *results()))
    if args.picture:
        picture()


if __name__ == "__main__":
    main()
