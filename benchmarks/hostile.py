"""Hostile input for benchmarks/robustness.py: files, values by kind, command lines and calls made of them."""

from __future__ import annotations

import gzip
import inspect
import io
import json
import math
import os
import random
import typing
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NET = """
import os, sys, threading, torch
from torch import nn

class Odd(nn.Module):
    def __init__(self, how=""):
        super().__init__()
        self.how, self.layer = how, nn.Linear(64, 10)

    def forward(self, x):
        x = self.layer(x.flatten(1))
        if self.how == "exit": sys.exit(0)
        if self.how == "interrupt": raise KeyboardInterrupt
        if self.how == "base": raise BaseException("mine")
        if self.how == "pipe": raise BrokenPipeError("mine")
        if self.how == "memory": torch.empty(10**13)
        if self.how == "recursion": return self.forward(x)
        if self.how == "nan": return x * float("nan")
        if self.how == "none": return None
        if self.how == "long": raise ValueError(torch.eye(300).to_sparse())
        if self.how == "surrogate": raise ValueError("\\udcff")
        if self.how == "print": print("x" * 1000)
        return x

def make(how=""): return Odd(how)
def meta(): return nn.Linear(64, 10, device="meta")
def lazy(): return nn.LazyLinear(10)
def empty(): return nn.Sequential()
def number(): return 3
def leaves(): sys.exit(3)
def huge(): return torch.ones(1).expand(10**10, 64)
def sparse(): return torch.eye(64).to_sparse()
def complex_(): return torch.randn(8, 64, dtype=torch.complex64)
def nothing(): return None
def cell(x=1, seed=0): return {"a": float(x)}
def stops(x=1, seed=0): raise KeyboardInterrupt
"""
LOOP = """
import torch
from torch import nn
net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
step = torch.optim.SGD(net.parameters(), lr=0.1)
for _ in range(30):
    step.zero_grad(); nn.functional.mse_loss(net(torch.randn(16, 8)), torch.randn(16, 1)).backward(); step.step()
"""


class Evil:
    """A pickle that leaves a file when it is run."""

    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def files(folder: Path) -> None:
    """What a shared machine may hold."""
    import numpy as np
    import torch

    (folder / "net.py").write_text(NET)
    (folder / "loop.py").write_text(LOOP)
    (folder / "losses.csv").write_text("step,loss\n" + "".join(f"{s},{2 / (s + 1)}\n" for s in range(60)))
    (folder / "syntax.py").write_text("def make(:\n")
    (folder / "null.py").write_bytes(b"\0" * 100)
    (folder / "latin.py").write_bytes(b"# \xe9\ndef make(): pass\n")
    (folder / "bad.toml").write_text("task = [")
    (folder / "deep.toml").write_text("a = " + "[" * 5000)
    (folder / "odd.toml").write_text('task = "predict"\n[grid]\ndepth = [1, "x", [2]]\n')
    (folder / "many.toml").write_text('task = "predict"\n[grid]\ndepth = "1:9999999"\nwidth = "1:9999999"\n')
    for name in ("pipe.npz", "pipe.py", "pipe.toml", "pipe.pt"):
        os.mkfifo(folder / name)
    for name in ("loop.csv", "loop.npz", "loop.toml", "loop.py.py", "loop.html"):
        (folder / name).symlink_to(name)
    for end in ("py", "npz", "toml", "pt", "safetensors"):
        (folder / f"zero.{end}").symlink_to("/dev/zero")
        (folder / f"random.{end}").write_bytes(random.Random(end).randbytes(3000))
        (folder / f"empty.{end}").touch()
        with open(folder / f"sparse_file.{end}", "wb") as file:
            file.truncate(1 << 34)
    (folder / "folder.html").mkdir()
    saved: dict[str, Any] = {
        "meta": torch.empty(10, 64, device="meta"), "expanded": torch.ones(1).expand(10**10, 64),
        "sparse": torch.eye(64).to_sparse(), "complex": torch.randn(8, 64, dtype=torch.complex64),
        "scalar": torch.tensor(1.0), "none": None, "number": 3, "text": "text", "nan": torch.full((20, 64), math.nan),
        "infinite": torch.full((20, 64), math.inf), "nothing": torch.empty(0, 64), "bool": torch.ones(20, 64) > 0,
        "quantized": torch.quantize_per_tensor(torch.ones(8, 64), 1.0, 0, torch.qint8), "evil": Evil(),
    }  # fmt: skip
    laughing: Any = torch.ones(2)
    for _ in range(60):
        laughing = [laughing, laughing]
    for name, value in {**saved, "laughing": laughing}.items():
        torch.save(value, folder / f"{name}.pt")
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (550_000_000, 1)})
    archive = zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open("x.npy", "w", force_zip64=True) as part:
        part.write(head.getvalue())
        for _ in range(22):
            part.write(b"\0" * 100_000_000)
    np.savez(folder / "objects.npz", x=np.array([Evil()], dtype=object))
    np.savez(folder / "names.npz", x=np.array(["a", "b"]))
    images = folder / "mnist"
    images.mkdir()
    with gzip.open(images / "train-images-idx3-ubyte.gz", "wb", 1) as file:
        file.write(bytes((0, 0, 8, 3, 255, 255, 255, 255, 0, 0, 0, 28, 0, 0, 0, 28)) + b"\0" * 10**7)
    os.mkfifo(images / "train-labels-idx1-ubyte.gz")


#: Values by what an option takes.
NUMBERS = ["-1", "0", "99999999999999999999999", "9223372036854775807", "x", "", "1e3", "nan", "inf", "-inf", "1e400",
           "0x10", "9" * 5000, "²"]  # fmt: skip
OUTPUTS = ["F/loop.csv", "F/loop.html", "F/pipe.npz", "/dev/full", "gone/a.html", "x" * 5000, "/proc/a.html", "", ".",
           "~nobody_of_this_name/a.html", "F/folder.html", "a.exe", "/dev/zero", "F/net.py/a.csv"]  # fmt: skip
WORDS = ["", "nope", "\x1b[31m", "é" * 10, "[bold]", "a" * 5000, "=1+1", "-", "--", ",", ":", "a:b", "\udcff", "💥",
         "../../etc/passwd", "%s%n", "{0}", "None"]  # fmt: skip
MODELS = [
    "mlp:width=99999999999", "mlp:depth=2,width=1000000", "mlp:depth=10000000000", "mlp:depth=0", "mlp:depth=1e3",
    "mlp:depth=2,depth=3", "mlp:gain=nan", "mlp:gain=1e400", "mlp:depth=2,width=16,activation=leaky_relu(nan)",
    "mlp:depth=,", "vgg:depth=999999999", "resnet:width=9999999", "nope:", "mlp:outputs=99999999999", "timm:", ":",
    "F/net.py:make,how=exit", "F/net.py:make,how=interrupt", "F/net.py:make,how=base", "F/net.py:make,how=pipe",
    "F/net.py:make,how=memory", "F/net.py:make,how=recursion", "F/net.py:make,how=nan", "F/net.py:make,how=none",
    "F/net.py:make,how=long", "F/net.py:make,how=surrogate", "F/net.py:meta", "F/net.py:lazy", "F/net.py:empty",
    "F/net.py:number", "F/net.py:leaves", "F/net.py:gone", "F/net.py:make,x=1", "F/syntax.py:make", "F/null.py:make",
    "F/latin.py:make", "F/pipe.py:make", "F/zero.py:make", "F/sparse_file.py:make", "F/loop.py.py:make", "F:make",
    "F/empty.py:make", "F/random.py:make", "transformers:./F", "transformers:gpt2,n_layer=-1", "os:_exit", "sys:exit",
    *WORDS,
]  # fmt: skip
DATA = [
    *(f"F/{n}.pt" for n in (
        "meta", "expanded", "sparse", "complex", "scalar", "none", "number", "text", "nan", "infinite", "nothing",
        "bool",
        "quantized", "evil", "laughing", "pipe", "zero", "random", "empty", "sparse_file",
    )),
    *(f"F/{n}.npz" for n in ("bomb", "objects", "names", "pipe", "zero", "loop", "random", "empty", "sparse_file")),
    "F/random.safetensors", "F/sparse_file.safetensors", "F/zero.safetensors", "F/net.py:huge", "F/net.py:sparse",
    "F/net.py:complex_", "F/net.py:nothing", "F/net.py:leaves", "random:99999999999", "random:0", "random:-1x3",
    "random:", "random:1x1x1x1x1x1x1x1x1", "tokens:4x99999999999999999999", "tokens:4", "mnist", "cifar10", "F", *WORDS,
]  # fmt: skip
SWEEPS = [["/dev/zero"], ["F/pipe.toml"], ["F/bad.toml"], ["F/deep.toml"], ["F/odd.toml"], ["F/many.toml"],
          ["F/loop.toml"], ["F/zero.toml"], ["F/random.toml"], ["F"], ["--task", "predict", "--depth", "1:9999999"],
          ["--task", "predict", "--depth", "1:1e308:x1e200"], ["--task", "predict", "--depth", "5:1"],
          ["--task", "predict", "--depth", "1:9999", "--width", "1:9999"], ["--task", "predict", "--nope", "1"],
          ["--task", "predict", "--depth", "2,2"], ["--task", "predict", "--depth", "nan"], ["--task", "predict"],
          ["--task", "F/net.py:gone"], ["--task", "F/pipe.py:cell", "--x", "1"], ["--task", "predict", "--depth"],
          ["--task", "predict", "--depth", "1", "--seeds", "1000000000"], ["--scheduler", "x", "--task", "predict"],
          ["--task", "predict", "--depth", "9" * 5000], ["--task", "predict", "--depth", "2", "--store", "F"],
          ["--task", "predict", "--depth", "2", "--store", "F/net.py"], ["--task", "predict", "--depth", "2", "--store",
           "nope://x"]]  # fmt: skip
SMALL = "mlp:depth=2,width=8"
#: Command -> a line that is right and quick.
RIGHT = {
    "diagnose": [SMALL, "-n", "16", "--trial", "none"],
    "sharpness": [SMALL, "-n", "8"],
    "transfer": ["mlp:", "--width", "4", "--depth", "2", "--seeds", "1", "-n", "8"],
    "rates": [SMALL, "-n", "8", "--range", "--steps", "10"],
    "overfit": [SMALL, "-n", "8", "--lr", "0.01", "--steps", "10"],
    "cure": [SMALL, "--how", "orthogonal", "-n", "8", "--no-sharpness"],
    "race": [SMALL, "--samples", "64", "--test-samples", "0", "--epochs", "1", "--seeds", "1", "--geometry", "0"],
    "verify": ["nachum2024/gap", "--dry-run"],
    "sweep": ["--task", "predict", "--depth", "2", "--dry-run"],
    "predict": [SMALL, "-n", "4"],
    "report": ["F/losses.csv"],
    "why": ["F/loop.py"],
    "explain": ["NS101"],
    "list": ["norms"],
    "selfcheck": [],
}


def command_lines(count: int, seed: int = 0) -> Iterator[list[str]]:
    """Bad command lines: every command, one option or argument of it at a time given what it must not be given."""
    from normscope.cli._app import app

    draw = random.Random(seed)
    found: list[list[str]] = [["sweep", *line] for line in SWEEPS]
    for command in app.registered_commands:
        name = command.name or command.callback.__name__  # type: ignore[union-attr]
        right = RIGHT[name]
        for option, kind in _options(command.callback):
            if option in ("--html", "--csv", "--parquet", "--png", "--svg", "--pdf", "--out", "--data-dir", "--store"):
                values = OUTPUTS
            elif "int" in kind or "float" in kind:
                values = NUMBERS
            else:
                values = DATA if option == "--data" else WORDS
            before = [word for word in right if word != option] if name == "why" else right
            found += [[name, *([option, v, *before] if name == "why" else [*right, option, v])] for v in values]
        if right and right[0].startswith("mlp"):
            found += [[name, m, *right[1:]] for m in MODELS]
        elif name == "report":
            found += [[name, w] for w in [*WORDS, *DATA]]
        elif name in ("explain", "list", "verify", "why"):
            found += [[name, w, *right[1:]] for w in [*WORDS, "F/pipe.py", "F/zero.py", "F", "F/syntax.py"]]
    found += [["diagnose", SMALL, "-n", "8", "--trial", "none", "--data", d] for d in DATA]
    found += [[w] for w in WORDS] + [["--nope"], ["diagnose"], ["diagnose", SMALL, "--nope"]]
    sure = found[: len(SWEEPS)]
    rest = found[len(SWEEPS) :]
    draw.shuffle(rest)
    yield from [line for line in sure + rest if not any("\0" in word for word in line)][:count]


def _options(command: Any) -> Iterator[tuple[str, str]]:
    """(option, its type as text) of all that take a value."""
    hints = getattr(command, "__signature__", None)
    hints = (
        typing.get_type_hints(command, include_extras=True)
        if hints is None
        else {p.name: p.annotation for p in hints.parameters.values()}
    )
    for name, hint in hints.items():
        about = getattr(hint, "__metadata__", [None])[0]
        kind = str(getattr(hint, "__origin__", hint))
        if "Option" in type(about).__name__ and "bool" not in kind:
            named = [d for d in about.param_decls or () if d.startswith("--")]
            yield (named[0] if named else "--" + name.replace("_", "-")), kind


def calls(count: int, seed: int = 0) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Bad calls: every public function, one argument at a time given what it must not be given."""
    import torch

    import normscope as ns
    from normscope import init
    from normscope.data.datasets import load

    def net() -> Any:
        return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))

    x, y = torch.randn(12, 8), torch.arange(12) % 3
    spec = ns.Spec(depth=2, width=8)
    step = {"model": net(), "inputs": x, "targets": y}
    bare = {"model": net(), "inputs": x}
    right: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "measure": (ns.measure, {"x": x}), "configuration": (ns.configuration, {"x": x}), "probe": (ns.probe, step),
        "diagnose": (ns.diagnose, {**step, "trial": False}), "Step": (ns.Step, step), "rates": (ns.rates, step),
        "overfit": (ns.overfit, {**step, "steps": 10, "rate": 0.1}),
        "rate_range": (ns.rate_range, {**step, "steps": 10}), "gradient_noise": (ns.gradient_noise, step),
        "similarity": (ns.similarity, bare),
        "fisher": (ns.fisher, step), "hessian": (ns.hessian, step), "ntk": (ns.ntk, bare),
        "jacobian": (ns.jacobian, bare),
        "sharpness": (ns.sharpness, step), "build": (ns.build, {"spec": spec}),
        "predict": (ns.predict, {"spec": spec, "inputs": x.numpy()}), "Spec": (ns.Spec, {}),
        "simulate": (ns.simulate, {"spec": spec, "inputs": x.numpy()}), "Tracker": (ns.Tracker, {"model": net()}),
        "cure": (ns.cure, {"model": net(), "how": "orthogonal", "inputs": x}), "Grid": (ns.Grid, {"depth": [1, 2]}),
        "race": (ns.race, {"variants": {"a": net()}, "data": (x, y), "epochs": 1, "seeds": 1, "geometry": 0}),
        "spectrum": (ns.spectrum, {"a": ns.fisher(net(), x)}), "load": (load, {"name": "digits"}),
        "sweep": (ns.sweep, {"grid": ns.Grid(depth=[1]), "task": "predict"}), "why": (ns.why, {"script": "F/loop.py"}),
        "verify": (ns.verify, {"claims": "nope"}), "haar_": (init.haar_, bare),
        "identity_": (init.identity_, bare), "lsuv_": (init.lsuv_, bare),
        "transfer": (ns.transfer, {"make": lambda width, depth: net(), "inputs": x, "targets": y}),
    }  # fmt: skip
    recursive: list[Any] = []
    recursive.append(recursive)
    pool: list[Any] = [
        None, -1, 0, 1.5, math.nan, math.inf, 10**30, True, "", "nope", b"x", [], {}, (), object(), lambda *a: 1 / 0,
        int, recursive, {1: 2}, range(10**9), 1j, torch.tensor(math.nan), torch.empty(0), torch.empty(3, 0),
        torch.empty(4, 8, device="meta"), torch.eye(8).to_sparse(), torch.ones(1).expand(10**6, 10**6),
        torch.randn(4, 8, dtype=torch.complex64), torch.full((12, 8), math.nan), torch.full((12, 8), 1e-160).double(),
        torch.ones(12, 8) > 0, torch.nn.LazyLinear(3), torch.nn.Linear(8, 3, device="meta"), torch.nn.ReLU, ["a"],
        "x" * 5000, "F/pipe.npz", "F/loop.html", "F/zero.py:make", "\0", torch.float16, torch.device("meta"), json,
    ]  # fmt: skip
    found: list[tuple[str, Callable[[], Any]]] = []
    for name, (function, given) in right.items():
        known = inspect.signature(function).parameters
        keys = [k for k, p in known.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        for key in [*keys, *(k for k in given if k not in keys)]:
            for value in pool:
                call = (lambda f, g: lambda: f(**g))(function, {**given, key: value})
                found.append((f"{name}({key}={_shown(value)})", call))
    random.Random(seed).shuffle(found)
    yield from found[:count]


def _shown(value: Any) -> str:
    import torch

    if isinstance(value, torch.Tensor):
        return f"tensor{tuple(value.shape)}:{value.dtype}:{value.layout}:{value.device}"
    return repr(value)[:40]
