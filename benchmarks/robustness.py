"""What happens to normscope where everything goes wrong: tried and held, kind by kind.

    python benchmarks/robustness.py                     # all kinds, about half an hour on two cores
    python benchmarks/robustness.py --only lines,kills --lines 60

Bad command lines and bad calls are made of every command and public function (hostile.py), and each runs in a process
of its own, forked from one that has imported everything: 4 GB of address space, 60 s. A command line holds if it ends
with one clear line and code 2, or with a code and a result that are documented; a call if it raises ``UsageError`` or
returns. Then writers are killed, several threads and processes measure at once, disks fill, streams close. The results
go to results/robustness.md. Exit code 1 if anything did not hold. Linux.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import at_once  # noqa: E402
import hostile  # noqa: E402
import ruinous  # noqa: E402

MARK = f"ROBUSTNESS_OF={os.getpid()}"
MEMORY, SECONDS = 4 << 30, 60.0
#: What must not be left in a folder.
PARTIAL = re.compile(r"\.tmp$|\.part$|\.partial$")
#: Where processes may write though nobody asked: what Python, torch and temporary folders are.
FREE = re.compile(r"^/(dev/(null|shm|tty|full|zero)|proc/self)|__pycache__|/\.cache/|\.pyc|/(torchinductor|dask-)")
#: What is the user's own: code 3 is for it.
USERS = re.compile(r"net\.py|syntax\.py|null\.py|latin\.py|loop\.py|random\.py|os:|sys:")


@dataclass
class Kind:
    """One kind of trouble: how many were tried, and what did not hold."""

    title: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, name: str, why: str | None) -> None:
        self.tried += 1
        if why:
            self.lost.append(f"{name}: {why}")
            print(f"  LOST {self.lost[-1][:400]}", flush=True)


@dataclass(frozen=True)
class Ended:
    """How a forked process ended. code: negative for a signal, ``None`` where its time was up."""

    code: int | None
    out: str
    err: str
    wrote: list[str]


def import_all() -> None:
    """Once, for all processes that are forked."""
    from importlib import import_module

    for room in ("cli", "cli._ends", "cli._app", "cli._shared", "cli._entrants", "claims", "racing", "sweeping",
                 "sweeping._work", "curvature", "init", "theory", "data.models", "learning_rates.transfer", "tasks",
                 "findings.diagnosis", "findings.cures", "findings.why", "findings.checkup", "probing.tracker",
                 "report.html", "report.terminal", "report.sweeps", "report.rates", "report.transfer",
                 "report.race_terminal"):  # fmt: skip
        import_module(f"normscope.{room}")
    from normscope.cli import COMMANDS

    for command in COMMANDS.values():
        import_module(f"normscope.cli.{command}")


def forked(work: Callable[[], Any], folder: Path, seconds: float = SECONDS) -> Ended:
    """Run ``work`` in a child, in ``folder``, with `MEMORY` of address space; what it opens for writing is noted."""
    told = [folder / ".stdout", folder / ".stderr", folder / ".wrote"]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _confine(folder, told)
            code = work() or 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)
    ended = _waited(child, seconds)
    out, err, wrote = (p.read_text("utf-8", "replace") if p.exists() else "" for p in told)
    for path in told:
        path.unlink(missing_ok=True)
    return Ended(ended, out, err, sorted(set(wrote.splitlines())))


def _confine(folder: Path, told: list[Path]) -> None:
    import resource

    os.setsid()
    os.chdir(folder)
    tempfile.tempdir = None
    os.environ["TMPDIR"] = str(folder / "tmp")
    os.mkdir(folder / "tmp")
    for number, path in ((1, told[0]), (2, told[1])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(told[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        writing = event in ("os.mkdir", "os.rename", "os.remove", "os.truncate", "os.symlink") or (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writing and isinstance(args[0], str | os.PathLike):
            path = os.path.abspath(os.fspath(args[0]))
            if not FREE.search(path) and not path.startswith(str(folder)):
                os.write(log, f"{event} {path}\n".encode("utf-8", "replace"))

    sys.addaudithook(hook)


def _waited(child: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            ended = os.waitstatus_to_exitcode(status)
            _end_group(child)
            return ended
        time.sleep(0.01)
    _end_group(child)
    os.waitpid(child, 0)
    return None


def _end_group(child: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


@contextmanager
def fresh(root: Path) -> Iterator[Path]:
    """An empty folder with the hostile files under ``F``."""
    folder = Path(tempfile.mkdtemp(dir=root))
    (folder / "F").symlink_to(root / "F")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def left(folder: Path) -> list[str]:
    """Partial files."""
    return [p.name for p in folder.rglob("*") if PARTIAL.search(p.name) and "F" not in p.parts]


def judged_line(words: list[str], ended: Ended, folder: Path) -> str | None:
    """Why a command line does not hold, or ``None``."""
    err = [line for line in ended.err.splitlines() if line.strip()]
    if ended.code is None:
        return "took longer than 60 s"
    if "Traceback (most recent" in ended.err + ended.out:
        return f"a traceback, code {ended.code}: {ended.err.strip()[-200:]}"
    if "Something unexpected" in ended.err:
        return f"unexpected: {ended.err.strip()[:300]}"
    if ended.code not in (0, 1, 2, 3, 4, 141):
        return f"code {ended.code}: {ended.err[-200:]}"
    errors = [line for line in err if line.startswith("error: ")]
    if ended.code == 2 and not (errors or "Usage:" in ended.err):
        return f"code 2 without a clear line: {ended.err[-200:]}"
    if ended.code in (2, 3) and (len(errors) > 1 or any(len(line) > 12_000 for line in err)):
        return f"{len(errors)} lines of errors, the longest of {max(map(len, err))} characters"
    if ended.code == 3 and not re.search(
        r"net\.py|syntax\.py|null\.py|latin\.py|loop\.py|random\.py|os:|sys:", err[-1]
    ):
        return f"code 3 is for the user's code: {err[-1][:300]}"
    if found := left(folder):
        return f"partial files {found}"
    named = tuple(os.path.dirname(os.path.abspath(w)) for w in words if w.startswith("/"))
    wrote = [w for w in ended.wrote if os.path.dirname(w.split(" ", 1)[1]) not in named]
    if wrote:
        return f"wrote outside: {wrote[:3]}"
    return None


def lines(kind: Kind, root: Path, count: int) -> None:
    from normscope.cli import main

    for words in hostile.command_lines(count):
        with fresh(root) as folder:
            ended = forked(lambda words=words: main(words), folder)  # type: ignore[misc]
            kind.count("normscope " + " ".join(w[:60] for w in words), judged_line(words, ended, folder))


def calls(kind: Kind, root: Path, count: int) -> None:
    from normscope import UsageError

    for name, call in hostile.calls(count):

        def work(call: Callable[[], Any] = call) -> int:
            try:
                call()
            except UsageError as error:
                print(str(error))
                return 2
            except ZeroDivisionError:  # the user's own
                return 4
            except Exception as error:  # the user's own too: it passes, with a note that says whose
                if any(note.startswith("normscope: ") for note in getattr(error, "__notes__", [])):
                    return 4
                raise
            except ImportError as error:
                return 5 if "pip install" in str(error) else 1
            return 0

        with fresh(root) as folder:
            ended = forked(work, folder)
            why = None
            if ended.code is None:
                why = "took longer than 60 s"
            elif ended.code not in (0, 2, 4, 5):
                why = f"code {ended.code}: {ended.err.strip().splitlines()[-1][:200] if ended.err.strip() else ''}"
            elif ended.code == 2 and len(ended.out) > 2000:
                why = f"an error of {len(ended.out)} characters"
            elif found := left(folder):
                why = f"partial files {found}"
            elif ended.wrote:
                why = f"wrote outside: {ended.wrote[:3]}"
            kind.count(name, why)


def _ours(process: int) -> bool:
    """Whether a process descends from this one, or was started with its environment."""
    with suppress(OSError, ValueError):
        if MARK.encode() in Path(f"/proc/{process}/environ").read_bytes():
            return True
        while process > 1:
            if process == os.getpid():
                return True
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return False


class Listeners(threading.Thread):
    """Looks all the time at which sockets listen, of processes that were started here, outside the loopback."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.looks, self.inside, self.found, self.stopped = 0, 0, set[str](), threading.Event()
        self.before = self._outside()

    def _outside(self) -> set[str]:
        told = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True).stdout
        ours = [line for line in told.splitlines() if any(map(_ours, map(int, re.findall(r"pid=(\d+)", line))))]
        places = {line.split()[3] for line in ours}
        near = {p for p in places if p.startswith(("127.", "[::1]", "[::ffff:127."))}
        self.inside = max(getattr(self, "inside", 0), len(near))
        return places - near

    def run(self) -> None:
        while not self.stopped.wait(0.1):
            self.looks += 1
            self.found |= self._outside() - self.before


KINDS: dict[str, tuple[str, Callable[[Kind, Path, int], None], int]] = {
    "lines": ("bad command lines: one clear line and code 2, or a documented result", lines, 450),
    "calls": ("bad calls: UsageError, or a result", calls, 300),
    "kills": ("kill -9 while they write: nothing lost, nothing torn", ruinous.kills, 72),
    "together": (
        "threads, fork, spawn, DataLoader, asyncio, a notebook's kernel: right or refused",
        at_once.together,
        200,
    ),
    "places": ("full disk, read-only, no home, closed streams, C locale, 20 columns", ruinous.places, 0),
    "writes": ("commands with workers: no process of theirs writes outside the paths given", ruinous.writes, 0),
    "listens": ("commands with workers and clusters: nothing listens outside the loopback", ruinous.listens, 0),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, with commas")
    for name, (_, _, count) in KINDS.items():
        if count:
            parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--out", type=Path, default=None, help="default results/robustness.md, where all kinds ran")
    given = parser.parse_args()
    os.environ.__setitem__(*MARK.split("="))
    import_all()
    wanted = given.only.split(",")
    root = Path(tempfile.mkdtemp(prefix="robustness-"))
    (root / "F").mkdir()
    made = os.fork()  # torch's threads of the saving stay there
    if made == 0:
        hostile.files(root / "F")
        os._exit(0)
    if os.waitpid(made, 0)[1]:
        raise SystemExit("the hostile files were not made")
    watch = Listeners() if shutil.which("ss") else None
    if watch is not None:
        watch.start()
    done = []
    try:
        for name in wanted:
            title, run, _ = KINDS[name]
            kind, began = Kind(title), time.monotonic()
            print(f"{name}: {title}", flush=True)
            run(kind, root, getattr(given, name, 0))
            kind.seconds = time.monotonic() - began
            print(f"  {kind.tried} tried, {kind.tried - len(kind.lost)} held, {kind.seconds:.0f} s", flush=True)
            done.append(kind)
        executed = list(root.rglob("pwned"))
        pickles = Kind("hostile pickles, of all kinds above: none was executed", len(wanted))
        pickles.lost += [str(p) for p in executed]
        done.append(pickles)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if watch is not None:
        watch.stopped.set()
        sockets = Kind(f"looks at listening sockets (ss -ltn; at most {watch.inside} on the loopback)", watch.looks)
        sockets.lost += sorted(watch.found)
        done.append(sockets)
    text = report(done)
    print(text)
    if given.out or wanted == list(KINDS):
        (given.out or HERE.parent / "results" / "robustness.md").write_text(text, "utf-8")
    return int(any(kind.lost for kind in done))


def report(done: list[Kind]) -> str:
    """The table, and what did not hold."""
    import torch

    about = (
        f"Python {platform.python_version()}, torch {torch.__version__}, {platform.system()}, {os.cpu_count()} cores"
    )
    rows = [f"| {k.title} | {k.tried} | {k.tried - len(k.lost)} | {k.seconds:.0f} |" for k in done]
    lost = [f"- `{line[:300].replace('`', ' ')}`" for kind in done for line in kind.lost]
    return "\n".join([
        "# Robustness", "", f"Made by `python benchmarks/robustness.py` ({about}); 4 GB of addresses, 60 s each.",
        "", "| kind | tried | held | seconds |", "|---|---:|---:|---:|", *rows, "",
        "What did not hold:" if lost else "Everything held.", *([""] if lost else []), *lost, "",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
