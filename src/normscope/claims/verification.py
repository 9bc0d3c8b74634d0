"""Run claims as cells of a sweep: in parallel, on any executor, kept in a store, resumed from it."""

from __future__ import annotations

import fnmatch
import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from normscope.claims.claim import CLAIMS, PAPERS, SIZES, Claim
from normscope.claims.verdict import Verdict, blank, judge
from normscope.core.errors import UsageError, seeds_of, shown, unknown
from normscope.core.faces import Shown, pictured, show
from normscope.core.files import expanded, whole, write
from normscope.core.records import Record

if TYPE_CHECKING:
    import polars

#: The modules that hold the claims, one a paper, in the order in which the papers build on each other.
_MODULES = ("daneshmand2020", "daneshmand2021", "nachum2024", "karakida2019")


def load() -> None:
    """Import the papers, so that `CLAIMS` and `PAPERS` are complete."""
    from importlib import import_module

    for name in _MODULES:
        import_module(f"normscope.claims.{name}")


def chosen(names: str | Iterable[str] = "*") -> list[Claim]:
    """The claims of these names, in order: ``paper``, ``paper/claim``, ``claim`` (of every paper that has one of this
    name), a pattern (``*/fig*``), or ``*`` for all.
    """
    load()
    given = [names] if isinstance(names, str) else names
    if not (isinstance(given, Sequence | Set) and all(isinstance(n, str) for n in given)):
        raise UsageError(f"Claims are chosen by a name, or a list of names; got {shown(names)}. Pass '*' for all.")
    found: set[str] = set()
    for pattern in given or ["*"]:
        hits = fnmatch.filter(CLAIMS, f"{pattern}/*" if pattern in PAPERS else pattern)
        hits = hits or fnmatch.filter(CLAIMS, f"*/{pattern}")
        if not hits and any(c in pattern for c in "*?["):
            raise UsageError(f"A pattern must match a claim; {pattern!r} matches none of the {len(CLAIMS)}.")
        if not hits:
            short = [name.rpartition("/")[2] for name in CLAIMS]
            raise unknown("claim", pattern, {*PAPERS, *(CLAIMS if "/" in pattern else short)})
        found.update(hits)
    return [claim for name, claim in CLAIMS.items() if name in found]


@dataclass(frozen=True)
class Verdicts(Shown, Sequence[Verdict]):
    """Verdicts in the order of the claims, then of the seeds."""

    face = "verdicts"
    verdicts: tuple[Verdict, ...]

    def __getitem__(self, index: Any) -> Any:
        return self.verdicts[index]

    def __len__(self) -> int:
        return len(self.verdicts)

    @property
    def failed(self) -> list[Verdict]:
        """Those that contradict what the claim should say: another status, a control that did not, an error."""
        return [v for v in self.verdicts if v.status not in (v.expected, "undecided")]

    @property
    def undecided(self) -> list[Verdict]:
        """Those whose errors are too large to tell."""
        return [v for v in self.verdicts if v.status == "undecided"]

    def frame(self) -> polars.DataFrame:
        """One row a reading:
        ``claim, size, seed, status, expected, control, quantity, value, stderr, low, high, ...``.
        """
        import polars as pl

        shared = ("claim", "size", "seed", "status", "expected", "control", "seconds", "device", "data", "torch",
                  "normscope")  # fmt: skip
        rows = []
        for v in self.verdicts:
            at = {name: getattr(v, name) for name in shared}
            told = [
                {k if k != "expected" else "value_expected": x for k, x in asdict(r).items()} | {"reading": r.status}
                for r in v.readings
            ]
            rows += [at | one for one in told or [{}]]
        return pl.DataFrame(rows, infer_schema_length=None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all of it as JSON lines, one verdict a line, which `load` reads; with the ending of a page or a picture
        (``.html``, ``.png``, ``.svg``, ``.pdf``) that.
        """
        if pictured(path):
            super().save(path)
            return
        write(self.to_jsonl(), path)

    def to_jsonl(self) -> str:
        """One verdict a line, as JSON."""
        return "".join(v.to_json() + "\n" for v in self.verdicts)

    @classmethod
    def load(cls, path: str | Path) -> Verdicts:
        """What `save` wrote. Raises ``UsageError`` for anything else."""
        try:
            return cls(tuple(Verdict.from_json(line) for line in whole(path).decode().splitlines()))
        except UsageError:
            raise
        except Exception as error:  # no such file, no text, no JSON, other fields
            raise UsageError(
                f"{path} must be a file that Verdicts.save wrote; reading it gave {type(error).__name__}: {error}."
            ) from None

    def to_html(self, path: str | Path) -> Path:
        """Write the report: per paper its verdicts, and its figures drawn from these numbers."""
        return Path(show("as.file", show(self.face, self), path, "html"))

    def __repr__(self) -> str:
        return f"Verdicts({len(self)}: {tally(self.verdicts)})"


def tally(verdicts: Iterable[Verdict]) -> str:
    """How many of each status: ``90 hold, 6 fail as they must, 1 fails``."""
    words = {("holds", "holds"): "hold", ("fails", "fails"): "fail as they must", ("fails", "holds"): "FAIL",
             ("holds", "fails"): "HOLD but must not"}  # fmt: skip
    counts: dict[str, int] = {}
    for v in verdicts:
        word = words.get((v.status, v.expected), v.status)
        counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{n} {word}" for word, n in counts.items()) or "none"


def coverage(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many readings turn under their control, are exact, have none of it (see `Verdict.guard`)."""
    counts = dict.fromkeys(("control", "exact", "none"), 0)
    for v in verdicts:
        for r in v.readings:
            counts[v.guard(r)] += 1
    return counts


def covered(verdicts: Iterable[Verdict]) -> str:
    """`coverage` in words: ``905 readings: 653 turn under a control, 40 are exact, 212 have no control``."""
    n = coverage(verdicts)
    return (
        f"{sum(n.values())} readings: {n['control']} turn under a control, {n['exact']} are exact, "
        f"{n['none']} have no control"
    )


def verify(
    claims: str | Iterable[str] = "*", size: str = "quick", *, seeds: int | Sequence[int] = 1, store: Any = None,
    executor: Any = None, workers: int | None = None, device: str = "cpu", data_dir: str | Path | None = None,
    progress: bool | Callable[[Any], object] = False, timeout: float | None = None,
    each: Callable[[Verdict], object] | None = None
) -> Verdicts:  # fmt: skip
    """Run claims of the four papers, each with its control, and say which hold.

    claims: names or patterns (see `chosen`). size: ``quick`` (all of them in minutes), ``full`` (the papers' sizes) or
        ``reduced`` (those too, but smaller where they need a GPU).
    seeds: how many, or which; a verdict each. data_dir: where the data sets lie; without it data-based claims run on
        the bundled digits, with the expectation declared for those.
    store, executor, workers, progress, timeout: as in `normscope.sweeping`; with a store, a second run computes only
        what is missing (verdicts of another version of the library, or of other code or arguments of the claim, are
        not reused).
    each: is called with every verdict as it ends; not with those that the store had.

    Returns `Verdicts`. A claim that raises, hangs, measures NaN or takes its worker with it is a verdict of status
    ``error``.
    Raises ``UsageError`` for unknown names, sizes, or a missing data folder.
    """
    from normscope.sweeping import Grid, sweep

    if size not in SIZES:
        raise UsageError(f"The size of a claim must be one of {', '.join(SIZES)}; got {size!r}.")
    if data_dir is not None and not expanded(data_dir).is_dir():
        raise UsageError(f"The folder of the data must exist; there is no {str(data_dir)!r}.")
    which = seeds_of(seeds)
    which_claims = chosen(claims)
    names = [claim.name for claim in which_claims]
    library = blank(names[0], size, 0).normscope
    shared: dict[str, Any] = {"size": size, "device": device}
    if data_dir is not None:
        shared["data_dir"] = str(Path(data_dir).resolve())
    grid = Grid([{"claim": c.name, "version": f"{library} {fingerprint(c)}"} for c in which_claims])
    grid = grid * Grid(seed=which) * Grid([shared])

    def tell(rows: polars.DataFrame) -> None:
        if each is not None:
            each(*_read(rows, size))

    table = sweep(grid, "normscope.claims.verification:cell", store, executor, workers=workers, progress=progress,
                  timeout=timeout, each=tell)  # fmt: skip
    found = {(v.claim, v.seed): v for v in _read(table.lazy().collect(), size)}
    return Verdicts(tuple(found[name, seed] for name in names for seed in which))


def fingerprint(claim: Claim) -> str:
    """What changes with the arguments of a claim, and with its code: its function, what this calls and reads in the
    claims (of its own package where it is not ours), and so on.
    """
    package = claim.measure.__module__.partition(".")[0]
    home = __package__ if __package__.startswith(f"{package}.") else package
    parts = [repr((claim.quick, claim.reduced, claim.full, claim.controls, claim.should))]
    left = [claim.measure] if isinstance(claim.measure, FunctionType) else []
    seen = set(left)
    while left:
        measure = left.pop()
        parts.append(_source(measure))
        for name in sorted(_names(measure.__code__)):
            used = measure.__globals__.get(name)
            if isinstance(used, FunctionType):
                if used.__module__.startswith(home) and used not in seen:
                    seen.add(used)
                    left.append(used)
            elif isinstance(used, type):
                parts.append(_source(used) if used.__module__.startswith(home) else name)
            elif used is not None and not isinstance(used, ModuleType) and not callable(used):
                parts.append(f"{name} = {used!r}")
    steady = re.sub(r" at 0x[0-9a-f]+", "", "\n".join(parts))  # the same in every process
    return hashlib.sha256(steady.encode()).hexdigest()[:16]


def _source(made: FunctionType | type) -> str:
    try:
        return inspect.getsource(made)
    except OSError:  # typed in, or shipped without its source
        return made.__code__.co_code.hex() if isinstance(made, FunctionType) else made.__qualname__


def _names(code: CodeType) -> set[str]:
    """The global names in the code of a function, and in what is defined in it."""
    inner = (_names(c) for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*inner)


def _read(rows: polars.DataFrame, size: str) -> list[Verdict]:
    """The verdicts in the rows of one cell or of many."""
    found = []
    for row in rows.iter_rows(named=True):
        if row["error"]:
            at = row if "claim" in row else json.loads(row["parameters"])
            found.append(replace(blank(at["claim"], size, at["seed"]), error=row["error"]))
        elif row["metric"] == "verdict":
            found.append(Verdict.from_json(row["name"]))
    return found


def cell(
    claim: str, seed: int, size: str = "quick", device: str = "cpu", data_dir: str | None = None, version: str = ""
) -> list[Record]:
    """One claim at one seed as records: a ``verdict`` (1: as it should be; its name is the whole as JSON), its
    readings.
    """
    load()
    verdict = judge(claim, size, seed, device=device, data_dir=None if data_dir is None else Path(data_dir))
    whole = Record(0, "verdict", float(verdict.as_expected), name=verdict.to_json(), kind=verdict.status, seed=seed)
    readings = [Record(i, "reading", r.value, name=r.quantity, kind=r.status, stderr=r.stderr, seed=seed)
                for i, r in enumerate(verdict.readings, 1)]  # fmt: skip
    return [whole, *readings]


def summary(verdicts: Verdicts) -> dict[str, Any]:
    """Everything as plain JSON data."""
    return {
        "tally": tally(verdicts),
        "coverage": coverage(verdicts),
        "verdicts": [
            json.loads(v.to_json())
            | {"as_expected": v.as_expected, "no_control": [r.quantity for r in v.readings if v.guard(r) == "none"]}
            for v in verdicts
        ],
    }
