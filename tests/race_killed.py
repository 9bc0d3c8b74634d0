"""Run by test_race_resume in a process of its own: a race that is killed again and again, and one that is left alone.

Each race runs in a forked child, so that torch is imported once; SIGKILL comes at random moments.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import polars  # noqa: F401 - before the forks, like dynamo, which torch.optim imports
import torch
import torch._dynamo
from torch import nn

from normscope.race import race


def net(norm):
    layers = [nn.Linear(8, 24), nn.BatchNorm1d(24) if norm else nn.Identity(), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(24, 3))


def run(folder):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(96, 8, generator=g)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    found = race(
        {"plain": lambda seed: net(False), "bn": lambda seed: net(True)}, (x, y), (x[:32], y[:32]), epochs=5, batch=16,
        lr={"plain": "search:0.03,0.1", "bn": 0.1}, momentum=0.9, warmup=5, seeds=2, geometry=6, out=folder,
        checkpoint_every=0.0,
    )  # fmt: skip
    found.table.write_parquet(f"{folder}.parquet")


def fork(folder):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run(folder)
            code = 0
        finally:
            os._exit(code)
    return pid


def newest(folder):
    return max((p.stat().st_mtime_ns for p in Path(folder).glob("*/*/state.pt*")), default=0)


def main(where, wanted):
    start = time.perf_counter()
    _, status = os.waitpid(fork(f"{where}/calm"), 0)
    assert status == 0
    whole = time.perf_counter() - start
    draw, kills, states = random.Random(0), 0, 0
    for i in range(wanted):
        before = newest(f"{where}/killed")
        pid = fork(f"{where}/killed")
        if i == 0:  # while it starts, or whatever it does by then
            time.sleep(draw.uniform(0, whole / 3))
        else:  # a few steps after the first new state, so that it gets on
            while newest(f"{where}/killed") == before:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, whole / 20))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        kills += os.WIFSIGNALED(status)
        states += any(Path(where, "killed").glob("*/*/state.pt*"))
    _, status = os.waitpid(fork(f"{where}/killed"), 0)
    assert status == 0
    print(json.dumps({"kills": kills, "states": states, "seconds": whole}))


main(sys.argv[1], int(sys.argv[2]))
