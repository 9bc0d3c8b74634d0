"""Write the pages that are made from the code and the results: findings.md, metrics.md, papers/*.md, report.png.

python docs/generate.py [--picture]
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

import polars as pl

from normscope.claims import CLAIMS, PAPERS, Claim, Verdict, Verdicts, load
from normscope.findings import RULES
from normscope.geometry.metrics import METRICS
from normscope.report.claims import band, duration, measured, number, said

HERE = Path(__file__).parent
EVIDENCE = HERE.parent / "results" / "trainability.csv"
QUICK = HERE.parent / "results" / "verify.jsonl"
FULL = HERE.parent / "results" / "verify_full.jsonl"


def findings_page() -> str:
    parts = [
        "# Findings\n",
        "Every rule that `normscope diagnose` applies. The same texts: `normscope explain CODE`.\n",
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
    """The table behind the thresholds: what was said at initialization, and what training then did."""
    if not EVIDENCE.exists():
        return ""
    table = pl.read_csv(EVIDENCE, infer_schema_length=None)
    best = pl.col("accuracy").max().over("data")
    table = table.with_columns(relative=pl.col("accuracy") / best, trains=pl.col("accuracy") >= 0.8 * best)
    said = pl.col("findings").fill_null("")
    quiet = table.filter(~said.str.contains("warning|error"))
    error = table.filter(said.str.contains("error"))
    warned = table.filter(said.str.contains("warning") & ~said.str.contains("error"))
    lines = [
        "## The evidence\n",
        f"{len(table)} nets of width 128 ({table['net'].n_unique()} kinds, depths 4 to 64, digits and Fashion-MNIST), "
        "each diagnosed at initialization on 128 samples and then trained for 300 steps of plain SGD at five rates, "
        "the best of which counts. "
        "A net *trains* here if it reaches 80 % of the best training accuracy on its data. "
        "Made by `python benchmarks/trainability.py`; numbers in `results/trainability.csv`.\n",
        "| diagnosis | nets | of these train | median accuracy, relative to the best |\n|---|---|---|---|",
    ]
    for name, part in (("no warning", quiet), ("a warning", warned), ("an error", error)):
        share = f"{part['trains'].sum()} ({part['trains'].mean():.0%})" if len(part) else "-"
        lines.append(f"| {name} | {len(part)} | {share} | {part['relative'].median() or 0:.2f} |")
    lines += ["\nBy rule (a net may have several):\n", "| code | nets | of these train |\n|---|---|---|"]
    for code in RULES:
        part = table.filter(said.str.contains(code))
        if len(part):
            lines.append(f"| {code} | {len(part)} | {part['trains'].sum()} ({part['trains'].mean():.0%}) |")
    missed = table.filter(~said.str.contains("warning|error") & ~pl.col("trains"))
    wrong = table.filter(said.str.contains("error") & pl.col("trains"))
    for title, part in (("Missed: did not train, no warning", missed), ("Wrong: an error, yet it trained", wrong)):
        lines.append(f"\n{title}: " + ("; ".join(_named(row) for row in part.iter_rows(named=True)) or "none") + ".")
    lines += [
        "\nEvery net:\n",
        "| data | net | depth | accuracy | rate | rank, last hidden | gradient, first / last | findings |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table.sort("data", "net", "depth").iter_rows(named=True):
        lines.append(
            f"| {row['data']} | {row['net']} | {row['depth']} | {row['accuracy']:.2f} | {row['rate']} | "
            f"{_short(row['participation_rank'])} | {_short(row['gradient_ratio'])} | {row['findings'] or ''} |"
        )
    return "\n".join(lines) + "\n"


def _named(row: dict) -> str:
    return (
        f"{row['net']} at depth {row['depth']} on {row['data']} ({row['accuracy']:.2f}; {row['findings'] or 'quiet'})"
    )


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def metrics_page() -> str:
    lines = [
        "# Metrics\n",
        "Every metric of `normscope.measure(x)` and of a probe. Definitions with formulas are in the docstrings of",
        "`normscope.geometry.metrics`; `invariant` says what leaves the number unchanged.\n",
        "| metric | unit | range | of | invariant under | source | meaning |\n|---|---|---|---|---|---|---|",
    ]
    for m in METRICS.values():
        meaning = (inspect.getdoc(m.function) or "").splitlines()[0].replace("|", "\\|")
        span = f"{m.low:g} to {m.high:g}".replace("inf", "∞")
        lines.append(
            f"| `{m.name}` | {m.unit} | {span} | {m.signal} | {', '.join(m.invariant)} | {m.source} | {meaning} |"
        )
    return "\n".join(lines) + "\n"


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
        f"{len(mine)} claims, each with a control that must come out the other way; `normscope verify {key}` runs them at "
        "their quick size, `--size full` at the paper's. Seconds are of the clock, on one core of a machine with other work; "
        f"those of a size that was not run are estimates. {_run('quick', small)} {_run('full', large)}\n",
        "| claim | where | statement | quick size | full size |\n|---|---|---|---|---|",
    ]
    for c in mine:
        name = _bare(c.name)
        lines.append(
            f"| [{name}](#{name}) | {c.where} | {_cell(c.statement)} | {_said(c, small, 0)} | {_said(c, large, 1)} |"
        )
    lines.append("")
    for c in mine:
        lines += [f"## {_bare(c.name)}\n", f"**{c.statement}** ({c.where}; covers {', '.join(c.covers)})\n", c.text, ""]
        lines.append(f"Control: {c.because}.\n")
        for size, found in (("quick", small), ("full", large)):
            if (v := found.get(c.name)) is not None and v.readings:
                lines += _readings(v, size)
    if paper.left_out:
        lines += ["## Not checked\n", *(f"- {row}: {why}" for row, why in paper.left_out.items())]
    return "\n".join(lines).rstrip() + "\n"


def _readings(verdict: Verdict, size: str) -> list[str]:
    rows = [
        f"| {_cell(r.quantity)} | {measured(r)} | {band(r)} | {'' if r.printed is None else number(r.printed)} | {r.status} | "
        f"{_cell(r.reason)} |"
        for r in verdict.readings
    ]
    head = f"| quantity, {size} size | measured | band | printed | | why this band |\n|---|---|---|---|---|---|"
    return [head, *rows, "", *(f"- {note}" for note in verdict.notes)]


def _run(size: str, found: dict[str, Verdict]) -> str:
    """Where the results of a size come from."""
    if not found:
        return f"Nothing of {size} size was run yet."
    first = next(iter(found.values()))
    data = "data files" if first.data == "files" else "digits where data is needed"
    return f"Run at {size} size: seed {first.seed}, {data}, torch {first.torch}, normscope {first.normscope}."


def _bare(name: str) -> str:
    return name.partition("/")[2]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _said(claim: Claim, found: dict[str, Verdict], size: int) -> str:
    """The verdict with its seconds, or the estimated cost of one that was not run."""
    if (verdict := found.get(claim.name)) is not None:
        return f"{said(verdict)}, {verdict.seconds:.2g} s"
    if size and claim.full == claim.quick:
        return "the same"
    cost = f"about {duration(claim.seconds[size])}"
    return f"not run: {claim.needs or cost}"


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", action="store_true", help="draw docs/report.png again as well")
    args = parser.parse_args()
    (HERE / "findings.md").write_text(findings_page())
    (HERE / "metrics.md").write_text(metrics_page())
    load()
    (HERE / "papers").mkdir(exist_ok=True)
    for key in PAPERS:
        (HERE / "papers" / f"{key}.md").write_text(paper_page(key, *results()))
    if args.picture:
        picture()


if __name__ == "__main__":
    main()
