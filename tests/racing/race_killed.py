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

from normscope.racing import race


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
    return max((stamp(p) for p in Path(folder).glob("states/*.pt")), default=0)


def stamp(path):
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # its run has just been finished
        return 0


def killed_at_random(pid, folder, draw):
    """Kill after a few new states, somewhere between two; whether it was alive."""
    seen, wanted, changes = newest(folder), draw.randint(1, 8), 0
    while changes < wanted and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.0005)
        if (now := newest(folder)) != seen:
            seen, changes = now, changes + 1
    if changes < wanted:
        return False
    time.sleep(draw.uniform(0, 0.01))
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def main(where, wanted):
    _, status = os.waitpid(fork(f"{where}/calm"), 0)
    assert status == 0
    draw = random.Random(0)
    pid = fork(f"{where}/killed")
    time.sleep(draw.uniform(0, 0.2))  # the first one while it starts
    os.kill(pid, signal.SIGKILL)
    kills, states = int(os.WIFSIGNALED(os.waitpid(pid, 0)[1])), 0
    for _ in range(wanted - 1):
        kills += killed_at_random(fork(f"{where}/killed"), f"{where}/killed", draw)
        states += any(Path(where, "killed").glob("states/*.pt"))
    _, status = os.waitpid(fork(f"{where}/killed"), 0)
    assert status == 0
    print(json.dumps({"kills": kills, "states": states}))


main(sys.argv[1], int(sys.argv[2]))
