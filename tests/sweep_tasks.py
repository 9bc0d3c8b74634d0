"""Tasks of the sweep's tests, in a file of their own because workers import them."""

import contextlib
import math
import os
import signal
import time

import numpy as np


def draw(x, y=1, seed=0):
    """Three numbers that depend on every parameter and on the seed."""
    values = np.random.default_rng(seed).standard_normal(2)
    return {"sum": x + y, "first": values[0], "second": values[1] * x}


def tensors(x, seed):
    """Arithmetic of torch and BLAS, which threads would change."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(60, 80, generator=generator)
    return {"trace": (a @ a.T).trace() * x, "threads": torch.get_num_threads()}


def threads():
    import torch
    from threadpoolctl import threadpool_info

    return {"torch": torch.get_num_threads(), "blas": max((p["num_threads"] for p in threadpool_info()), default=1)}


def strange(x):
    """Every way in which a cell can go wrong."""
    if x == "raises":
        raise ValueError("no weights today")
    if x == "nan":
        return {"m": math.nan}
    if x == "sleeps":
        time.sleep(600)
    if x == "swallows":
        while True:
            with contextlib.suppress(Exception):
                time.sleep(600)
    if x == "spins":
        while True:
            time.sleep(0.01)
    if x == "deaf":  # as compiled code does that never comes back to Python
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        time.sleep(600)
    if x == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if x == "memory":
        return {"m": np.ones(1 << 32).sum()}
    if x == "exits":
        raise SystemExit(3)
    if x == "text":
        return {"m": "not a number"}
    return {"m": 1.0}


def flaky(x, folder):
    """Fails once, the second time it is well."""
    mark = os.path.join(folder, str(x))
    if not os.path.exists(mark):
        open(mark, "w").close()
        raise OSError("the network, for a moment")
    return {"m": x}


def counted(x, folder):
    """Leaves a line each time it runs."""
    with open(os.path.join(folder, f"{x}-{os.getpid()}-{time.monotonic_ns()}"), "w"):
        pass
    return {"m": x}


def slow(x, seconds=0.05):
    time.sleep(seconds)
    return {"m": x * 0.1}
