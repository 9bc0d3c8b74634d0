"""Several at once, for benchmarks/robustness.py: threads, forks, spawned processes, loaders, event loops, notebooks."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ruinous import ended


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
        code = ended(child, 60)
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
    yield from _notebook(share - 6, wanted)
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


#: What a cell of a notebook does: the numbers of a net; one that is interrupted first; a result that shows itself.
CELLS = (
    "print(json.dumps(_numbers(*_nets(4)[NUMBER])))",
    "net, x = _nets(4)[NUMBER]\n"
    "stop = net[1].register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))\n"
    "try:\n    _numbers(net, x)\nexcept KeyboardInterrupt:\n    stop.remove()\n"
    "print(json.dumps(_numbers(net, x)))",
    "net, x = _nets(4)[NUMBER]\ndisplay(ns.diagnose(net, x, trial=False))\nprint(json.dumps(_numbers(net, x)))",
    "found = ns.sweep(ns.Grid(x=[1, 2]), cell, executor=ThreadPoolExecutor(2))\n"
    "assert sorted(found['value'].to_list()) == [1, 2]\nprint(json.dumps(_numbers(*_nets(4)[NUMBER])))",
)


def _notebook(count: int, wanted: list[list[float]]) -> Iterator[tuple[str, str | None]]:
    """Cells in a Jupyter kernel: where it is not installed, nothing."""
    try:
        import nbformat
        from nbclient import NotebookClient
    except ImportError:
        return
    begin = (
        f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport normscope as ns\n"
        "from concurrent.futures import ThreadPoolExecutor\nfrom at_once import _nets, _numbers\n"
        "def cell(x):\n    return {'a': x}\n"
    )
    cells = [begin, *(CELLS[i % len(CELLS)].replace("NUMBER", str(i % 4)) for i in range(count))]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(book, timeout=120, kernel_name="python3", allow_errors=True).execute()
    for number, cell in enumerate(book.cells[1:]):
        said = "".join(o.get("text", "") for o in cell.outputs)
        shown = any("text/html" in o.get("data", {}) for o in cell.outputs) or "display(" not in cell.source
        try:
            why = None if shown and _equal(json.loads(said), wanted[number % 4]) else "other numbers, or nothing shown"
        except ValueError:
            why = f"it said {[o.get('evalue', said) for o in cell.outputs]}"[:300]
        yield f"notebook {number}", why
