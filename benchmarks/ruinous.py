"""Ruin for benchmarks/robustness.py: kills while files are written, many at once, disks and streams that fail."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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


def _ended(child: int, seconds: float = 120) -> int | None:
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
    "report": (["predict", SMALL, "-n", "4", "--html", "a.html", "--csv", "a.csv"], ["a.html", "a.csv"]),
    "diagnose": (["diagnose", SMALL, "-n", "16", "--trial", "none", "--html", "a.html", "--csv", "a.csv", "--parquet",
                  "a.parquet"], ["a.html", "a.csv", "a.parquet"]),
    "cure": (["cure", SMALL, "--how", "orthogonal", "-n", "8", "--no-sharpness", "--out", "a.safetensors", "--force"],
             ["a.safetensors"]),
}  # fmt: skip


def _fresh(root: Path) -> Path:
    folder = Path(tempfile.mkdtemp(dir=root))
    (folder / "cells.py").write_text(CELLS)
    shutil.copy(root / "F" / "loop.py", folder)
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
        _ended(_command(*words, folder=whole))
        took = time.monotonic() - began
        for number in range(rounds[name]):
            folder = _fresh(root)
            at = number // 2 + 1 if number % 2 and name not in ("sweep", "Dask", "verify") else 0
            child = _command(*words, killed=at, folder=folder)
            code = _ended(child, 120 if at else draw.uniform(0.2, 0.95) * took)
            why = _checked(folder)
            if why is None:
                code = _ended(_command(*words, folder=folder))
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

    _ended(loop(10_000, killed=number + 2 if number % 2 else 0), 60 if number % 2 else draw.uniform(0.3, 1.5))
    path = folder / "a.csv"
    before = path.read_bytes().count(b"\n") if path.exists() else 0
    code = _ended(loop(3, killed=0))
    if code != 0:
        return f"going on ends with {code}"
    lines = path.read_bytes().splitlines()
    if len({line.count(b",") for line in lines}) != 1 or len(lines) < before:
        return "the CSV has torn rows, or lost some"
    left = list((folder / "parts").glob(".*"))
    return _checked(folder) or (f"left over: {left}" if left else None)


def _nets(count: int) -> list[tuple[Any, Any]]:
    import torch

    found = []
    for i in range(count):
        torch.manual_seed(i)
        nn = torch.nn
        net = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 3))
        found.append((net, torch.randn(16, 8)))
    return found


def _numbers(net: Any, x: Any) -> list[float]:
    from normscope import probe

    return [r.value for r in probe(net, x, backward=True).records]


def _equal(a: list[float], b: list[float]) -> bool:
    import numpy as np

    return len(a) == len(b) and bool(np.allclose(a, b, rtol=1e-9, atol=0, equal_nan=True))


def _spawned(number: int) -> list[float]:
    return _numbers(*_nets(number + 1)[number])


class _Measured:
    """A data set that measures what it gives."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        import torch

        return torch.tensor(_numbers(*_nets(4)[i % 4])[:40], dtype=torch.float64).nan_to_num(-1.0)


def together(kind: Any, root: Path, count: int) -> None:
    """In a child, so that threads of torch's stay there; its findings come back as lines."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(write, "w") as told:
            try:
                for name, why in _together(count):
                    told.write(json.dumps([name, why]) + "\n")
                    told.flush()
            except BaseException as error:
                told.write(json.dumps(["together", repr(error)]) + "\n")
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as lines:
        for line in lines:
            kind.count(*json.loads(line))
    os.waitpid(child, 0)


def _together(count: int) -> Iterator[tuple[str, str | None]]:
    import torch

    wanted = [_numbers(net, x) for net, x in _nets(4)]

    def right(found: list[list[float]]) -> str | None:
        wrong = [i for i, values in enumerate(found) if not _equal(values, wanted[i % 4])]
        return f"other numbers in {wrong}" if wrong else None

    share = count // 5
    for number in range(share):  # several models, and one model, in four threads
        nets = _nets(4) if number % 2 else [_nets(1)[0]] * 4
        before = [p.clone() for net, _ in nets for p in net.state_dict().values()]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda pair: _numbers(*pair), nets))
        expected = wanted if number % 2 else [wanted[0]] * 4
        wrong = [i for i in range(4) if not _equal(found[i], expected[i])]
        after = [p for net, _ in nets for p in net.state_dict().values()]
        changed = not all(map(torch.equal, before, after))
        yield f"threads {number}", f"other numbers in {wrong}" if wrong else "a model was changed" if changed else None
    for number in range(share):  # fork, some while another thread measures
        nets, spare = _nets(4), _nets(4)  # made here: torch.manual_seed has a lock that a fork must not find taken
        busy = threading.Thread(target=lambda pairs: [_numbers(*p) for p in pairs], args=(spare,))
        if number % 2:
            busy.start()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, json.dumps(_equal(_numbers(*nets[number % 4]), wanted[number % 4])).encode())
            os._exit(0)
        os.close(write)
        code = _ended(child, 60)
        with os.fdopen(read) as told:
            said = told.read()
        if number % 2:
            busy.join()
        yield f"fork {number}", None if (code, said) == (0, "true") else f"code {code}, said {said!r}"
    for number in range(share):  # asyncio: in the loop itself, and in its threads

        async def gathered(inside: bool = bool(number % 2)) -> list[list[float]]:
            if inside:
                return [_numbers(*pair) for pair in _nets(4)]
            return list(await asyncio.gather(*(asyncio.to_thread(_numbers, *pair) for pair in _nets(4))))

        yield f"asyncio {number}", right(asyncio.run(gathered()))
    for number in range(share - 6):  # as a notebook's cells: code in a module that has no file, results shown
        space: dict[str, Any] = {"__name__": "__main__"}
        exec("from normscope import probe, Grid, sweep\ndef cell(x):\n    return {'a': x}\n", space)
        shown = eval("sweep(Grid(x=[1, 2]), cell, executor=pool)", {**space, "pool": ThreadPoolExecutor(2)})
        yield f"notebook {number}", None if sorted(shown["value"].to_list()) == [1, 2] else "other numbers"
    first = [torch.tensor(w[:40], dtype=torch.float64).nan_to_num(-1.0) for w in wanted]
    for number in range(share):
        workers = 2 if number % 4 == 0 else 0
        loader = torch.utils.data.DataLoader(_Measured(), batch_size=2, num_workers=workers)  # type: ignore[arg-type]
        rows = torch.cat(list(loader))
        held = all(torch.allclose(row, first[i % 4], rtol=1e-9) for i, row in enumerate(rows))
        yield f"DataLoader {number}", None if held else "other numbers"
    with multiprocessing.get_context("spawn").Pool(2) as spawned:
        for number, values in enumerate(spawned.map(_spawned, [0, 1, 2, 3, 0, 1])):
            yield f"spawn {number}", None if _equal(values, wanted[number % 4]) else "other numbers"


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
    line = line.replace("ns ", f"{sys.executable} -m normscope ")
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
        (f"{predict} --nope 2> /dev/full", {2}, {}), (f"{predict} | head -1; exit ${{PIPESTATUS[0]}}", {141}, {}),
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
        kind.count(f"Ctrl-C {number}", None if _ended(child, 30) in (130, 0, -2) else "it did not end by it")


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
        code = _ended(_command(*words, folder=folder))
        kind.count("normscope " + " ".join(words[:4]), None if code in (0, 1) else f"code {code}")
        shutil.rmtree(folder / "runs", ignore_errors=True)
