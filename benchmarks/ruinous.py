"""Ruin for benchmarks/robustness.py: kills while files are written, disks and streams that fail, open sockets."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SMALL = "mlp:depth=2,width=8"
CELLS = """
import time

def cell(x, seed=0):
    time.sleep(0.05)
    return {"a": float(x), "b": float(seed % 97)}
"""


def _command(*words: str, killed: int = 0, folder: Path) -> int:
    """A command line in a forked child; killed: at which call of fsync, replace or truncate it kills itself."""
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        out = os.open(os.devnull, os.O_WRONLY)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if killed:
            _kill_at(killed)
        from normscope.cli import main

        try:
            main(list(words))
        except SystemExit as stop:
            os._exit(stop.code if isinstance(stop.code, int) else 1)
        os._exit(0)
    return child


def _kill_at(count: int) -> None:
    """kill -9 of this process at its ``count``-th step of writing: before a flush, a rename."""
    left = [count]

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)


def ended(child: int, seconds: float = 120) -> int | None:
    """The code, or ``None`` where it had to be killed; its whole group goes."""
    end = time.monotonic() + seconds
    code = None
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if code is None:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return code


def _torn(folder: Path) -> str | None:
    """What in a folder is not whole."""
    import polars as pl
    from safetensors import safe_open

    for path in folder.rglob("*"):
        if not path.is_file() or path.name.startswith("."):
            continue
        data = path.read_bytes()
        try:
            if path.suffix == ".html":
                assert data.rstrip().endswith(b"</html>")
            elif path.suffix == ".csv":
                assert data.endswith(b"\n")
            elif path.suffix == ".parquet":
                pl.read_parquet(path)
            elif path.suffix == ".json":
                json.loads(data)
            elif path.suffix == ".jsonl":
                [json.loads(line) for line in data.splitlines()]
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
        except Exception as error:
            return f"{path.name} is torn: {type(error).__name__} {str(error)[:80]}"
    return None


def _checked(folder: Path) -> str | None:
    """`_torn`, in a process of its own: polars' threads must not be in the one that is forked."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, (_torn(folder) or "").encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        text = told.read()
    os.waitpid(child, 0)
    return text or None


#: What writes, as command lines; what must be there in the end.
WRITERS: dict[str, tuple[list[str], list[str]]] = {
    "sweep": (["sweep", "--task", "cells.py:cell", "--x", "1:24", "--store", "runs", "--workers", "2", "--csv",
               "a.csv"], ["a.csv"]),
    "Dask": (["sweep", "--task", "cells.py:cell", "--x", "1:24", "--store", "runs", "--workers", "2", "--dask",
              "--csv", "a.csv"], ["a.csv"]),
    "race": (["race", SMALL, "--samples", "64", "--test-samples", "0", "--epochs", "3", "--seeds", "2", "--geometry",
              "2", "-n", "16", "--out", "race", "--csv", "a.csv"], ["a.csv", "race/race.json"]),
    "verify": (["verify", "nachum2024/parts", "nachum2024/odd-score", "--store", "runs", "--workers", "2", "--out",
                "a.jsonl"], ["a.jsonl"]),
    "why": (["why", "--trial", "none", "--html", "a.html", "loop.py"], ["a.html"]),
    "predict": (["predict", SMALL, "-n", "4", "--html", "a.html", "--csv", "a.csv"], ["a.html", "a.csv"]),
    "report": (["report", "losses.csv", "--html", "a.html", "--csv", "a.csv"], ["a.html", "a.csv"]),
    "diagnose": (["diagnose", SMALL, "-n", "16", "--trial", "none", "--html", "a.html", "--csv", "a.csv", "--parquet",
                  "a.parquet"], ["a.html", "a.csv", "a.parquet"]),
    "cure": (["cure", SMALL, "--how", "orthogonal", "-n", "8", "--no-sharpness", "--out", "a.safetensors", "--force"],
             ["a.safetensors"]),
}  # fmt: skip


def _fresh(root: Path) -> Path:
    folder = Path(tempfile.mkdtemp(dir=root))
    (folder / "cells.py").write_text(CELLS)
    shutil.copy(root / "F" / "loop.py", folder)
    (folder / "losses.csv").write_text("step,loss\n" + "".join(f"{i},{0.97**i:.4f}\n" for i in range(60)))
    return folder


def kills(kind: Any, root: Path, count: int) -> None:
    """Kill, look, run again, compare with a run that nobody killed."""
    from importlib.util import find_spec

    draw = random.Random(0)
    names = [n for n in WRITERS if n != "Dask" or find_spec("distributed")]
    #: Dask and verify take long to start: fewer rounds.
    rounds = {n: max(count // 24, 1) if n in ("Dask", "verify") else count // 8 for n in names}
    for name in names:
        words, there = WRITERS[name]
        whole = _fresh(root)
        began = time.monotonic()
        ended(_command(*words, folder=whole))
        took = time.monotonic() - began
        for number in range(rounds[name]):
            folder = _fresh(root)
            at = number // 2 + 1 if number % 2 and name not in ("sweep", "Dask", "verify") else 0
            child = _command(*words, killed=at, folder=folder)
            code = ended(child, 120 if at else draw.uniform(0.2, 0.95) * took)
            why = _checked(folder)
            if why is None:
                code = ended(_command(*words, folder=folder))
                if code not in (0, 1) or not all((folder / f).exists() for f in there):
                    why = f"run again it ends with {code}, {[f for f in there if not (folder / f).exists()]} is missing"
            why = why or _checked(folder) or _same(whole, folder) or _left(folder, name)
            kind.count(f"{name}, round {number}", why)
            shutil.rmtree(folder, ignore_errors=True)
    for number in range(count // 6):
        folder = _fresh(root)
        kind.count(f"Tracker, round {number}", _tracker(folder, draw, number))


def _same(whole: Path, folder: Path) -> str | None:
    """Whether the tables agree, by their lines."""
    a, b = whole / "a.csv", folder / "a.csv"
    if a.exists() and _rows(a) != _rows(b):
        return "the table is another"
    return None


def _rows(path: Path) -> list[str]:
    """The lines, in order, less those of the clock."""
    return sorted(line for line in path.read_text().splitlines() if ",seconds_" not in line)


def _left(folder: Path, name: str) -> str | None:
    found = [p.name for p in folder.rglob("*.tmp") if "runs" not in p.parts]
    return f"left over: {found}" if found else None


def _tracker(folder: Path, draw: random.Random, number: int) -> str | None:
    """A loop that is killed while it writes CSV and parquet; then it goes on with both."""

    def loop(steps: int, killed: int) -> int:
        child = os.fork()
        if child == 0:
            os.setsid()
            os.chdir(folder)
            import torch

            from normscope import Tracker
            from normscope.probing.writers import CsvWriter, ParquetWriter

            if killed:
                _kill_at(killed)
            net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
            writers = [CsvWriter("a.csv", append=True), ParquetWriter("parts", append=True)]
            tracker = Tracker(net, every=1, writers=writers)
            for _ in range(steps):
                net(torch.randn(16, 8)).square().mean().backward()
            tracker.close()
            os._exit(0)
        return child

    ended(loop(10_000, killed=number + 2 if number % 2 else 0), 60 if number % 2 else draw.uniform(0.3, 1.5))
    path = folder / "a.csv"
    before = path.read_bytes().count(b"\n") if path.exists() else 0
    code = ended(loop(3, killed=0))
    if code != 0:
        return f"going on ends with {code}"
    lines = path.read_bytes().splitlines()
    if len({line.count(b",") for line in lines}) != 1 or len(lines) < before:
        return "the CSV has torn rows, or lost some"
    left = list((folder / "parts").glob(".*"))
    return _checked(folder) or (f"left over: {left}" if left else None)


@contextmanager
def _disk(folder: Path, options: str) -> Iterator[Path | None]:
    """A small file system of its own at ``folder``; ``None`` where this user may not have one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    try:
        yield folder if done.returncode == 0 else None
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", str(folder)], check=False)


def _shell(line: str, folder: Path, **changed: str | None) -> tuple[int, str, str]:
    line = re.sub(r"\bns ", f"{sys.executable} -m normscope ", line)
    environment = {**os.environ, **{k: v for k, v in changed.items() if v is not None}}
    for name in (k for k, v in changed.items() if v is None):
        environment.pop(name, None)
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, timeout=120)
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


NOWHERE = "/nonexistent"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def places(kind: Any, root: Path, count: int) -> None:
    """Command lines in odd surroundings, each a process of its own: the code, and one line of error at most."""
    folder = _fresh(root)
    predict, sweep = f"ns predict {SMALL} -n 4", "ns sweep --task cells.py:cell --x 1:4 --workers 1"
    lines: list[tuple[str, set[int], dict[str, str | None]]] = [
        (f"{predict} >&-", {0}, {}), (f"{predict} --json >&- 2>&-", {0}, {}), (f"{predict} <&-", {0}, {}),
        (f"{predict} --csv b.csv <&- >&- 2>&-; grep -c source b.csv", {0}, {}), (f"{predict} > /dev/full", {2}, {}),
        (f"{predict} --nope 2> /dev/full", {2}, {}), (f"{predict} | head -1; exit ${{PIPESTATUS[0]}}", {141, 0}, {}),
        (f"{predict} --json | true; exit ${{PIPESTATUS[0]}}", {141, 0}, {}), (predict, {0}, {"COLUMNS": "20"}),
        (f"ns diagnose {SMALL} -n 8 --trial none", {0}, {"COLUMNS": "20"}), ("ns list", {0}, {"COLUMNS": "20"}),
        (predict, {0}, ASCII), (f"ns diagnose {SMALL} -n 8 --trial none", {0}, ASCII), ("ns list", {0}, ASCII),
        (predict, {0}, {"HOME": None}), (predict, {0}, {"HOME": NOWHERE}), (sweep, {0}, {"HOME": NOWHERE}),
        (f"{predict} --csv '~/a.csv'", {2}, {"HOME": NOWHERE}), (predict, {0}, {"TERM": "dumb", "LANG": "C"}),
        (predict, {0}, {"TMPDIR": NOWHERE}), (f"{sweep} --timeout 9", {0}, {"TMPDIR": NOWHERE}),
        (f"{predict} --csv /proc/a.csv", {2}, {}), (f"{predict} --html /sys/a.html", {2}, {}),
    ]  # fmt: skip
    for line, codes, changed in lines:
        code, out, err = _shell(line, folder, **changed)
        why = f"code {code}: {err[-200:]}" if code not in codes else None
        why = why or (f"said {err[-200:]}" if "Traceback" in err + out or len(err.splitlines()) > 1 else None)
        if not why and changed.get("COLUMNS") and max(map(len, out.splitlines())) > 20 and "list" not in line:
            why = None  # a name that is longer is not cut
        kind.count(f"{line.replace('ns ', 'normscope ')} {changed or ''}", why)
    writes = {
        "--csv": "ns predict mlp:depth=40,width=64 -n 4 --csv D/a.csv",
        "--html": f"{predict} --html D/a.html", "--store": f"{sweep} --store D/s",
        "race": "ns race mlp:depth=2,width=64 --samples 64 --test-samples 0 --epochs 1 --seeds 1 --out D/r",
        "cure": "ns cure mlp:depth=4,width=64 --how orthogonal -n 8 --no-sharpness --out D/a.safetensors",
        "diagnose": f"ns diagnose {SMALL} -n 8 --trial none --parquet D/a.parquet --html D/a.html",
    }  # fmt: skip
    for title, options in (("full", "size=4k,nr_inodes=20"), ("read-only", "size=64k,ro")):
        for name, line in writes.items():
            with _disk(folder / "D", options) as disk:
                if disk is None:
                    kind.count(f"{title} disk, {name}", None if os.getuid() else "no tmpfs can be mounted here")
                    continue
                code, out, err = _shell(line, folder)
                kept = [p.name for p in disk.rglob("*") if p.name.endswith(".tmp")]
                why = None if code in (1, 2) and "Traceback" not in err else f"code {code}: {err[-300:]}"
                kind.count(f"{title} disk, {name}", why or (f"left over: {kept}" if kept else None))
            (folder / "D").rmdir()
    with _disk(folder / "D", "size=32k") as disk:
        kind.count("full disk, Tracker", _full_tracker(disk) if disk else None)
    for number in range(6):  # Ctrl-C of the whole group while workers start
        child = _command(*WRITERS["sweep"][0], folder=folder)
        time.sleep(0.3 + 0.5 * number)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGINT)
        kind.count(f"Ctrl-C {number}", None if ended(child, 30) in (130, 0, -2) else "it did not end by it")


def _full_tracker(disk: Path) -> str | None:
    code = (
        "import torch\nfrom normscope import Tracker\nnet = torch.nn.Linear(8, 8)\n"
        "tracker = Tracker(net, every=1, writers=['a.csv'])\n"
        "for _ in range(400): net(torch.randn(16, 8)).square().mean().backward()\n"
        "tracker.close(); print(len(tracker.frame()), len(tracker.notes))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=disk, capture_output=True, text=True, timeout=120)
    data = (disk / "a.csv").read_bytes()
    if done.returncode or not data.endswith(b"\n"):
        return f"code {done.returncode}, the last row is {data[-40:]!r}: {done.stderr[-200:]}"
    return None if done.stdout.split()[1] != "0" else "nothing was told"


def listens(kind: Any, root: Path, count: int) -> None:
    """Commands that open sockets, while the listeners are watched."""
    from importlib.util import find_spec

    folder = _fresh(root)
    lines = [WRITERS["sweep"][0], WRITERS["verify"][0]] + ([WRITERS["Dask"][0]] * 2 if find_spec("distributed") else [])
    for words in lines:
        code = ended(_command(*words, folder=folder))
        kind.count("normscope " + " ".join(words[:4]), None if code in (0, 1) else f"code {code}")
        shutil.rmtree(folder / "runs", ignore_errors=True)


#: Told of every process that Python starts, workers of all kinds too: what it opens to write, makes, moves, removes.
AUDIT = """
import os, sys

log = os.open(os.environ["NORMSCOPE_AUDIT"], os.O_WRONLY | os.O_APPEND)

def hook(event, args):
    writing = event in ("os.mkdir", "os.rename", "os.remove", "os.truncate", "os.symlink") or (
        event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
    )
    if writing and isinstance(args[0], (str, os.PathLike)):
        os.write(log, (os.path.abspath(os.fspath(args[0])) + "\\n").encode("utf-8", "replace"))

sys.addaudithook(hook)
"""


def writes(kind: Any, root: Path, count: int) -> None:
    """Commands with workers, and those that run the user's code: where each of their processes writes."""
    from importlib.util import find_spec

    from robustness import FREE

    hooks = root / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(AUDIT)
    names = ["sweep", "verify", "race", "why", "diagnose", "cure", "predict", "report"] + ["Dask"] * bool(
        find_spec("distributed")
    )
    for name in names:
        folder = _fresh(root)
        (folder / "tmp").mkdir()
        log = root / f"writes-{name}"
        log.touch()
        line = "ns " + " ".join(WRITERS[name][0])
        changed = {"PYTHONPATH": str(hooks), "NORMSCOPE_AUDIT": str(log), "TMPDIR": str(folder / "tmp")}
        code, _, err = _shell(line, folder, **changed)
        told = sorted(set(log.read_text().splitlines()))
        outside = [p for p in told if not p.startswith(str(folder)) and not FREE.search(p) and p != str(log)]
        left = [p.name for p in (folder / "tmp").rglob("*") if p.is_file() and not FREE.search(str(p))]
        why = None if code in (0, 1) and told else f"code {code}, {len(told)} writes told: {err[-200:]}"
        why = why or (f"wrote outside: {outside[:3]}" if outside else None) or (f"left {left[:3]}" if left else None)
        kind.count(f"normscope {' '.join(WRITERS[name][0][:4])}", why)
