"""Every code block of README and docs runs, in the order of its page, or says in one of few words why it does not."""

from __future__ import annotations

import collections
import json
import re
import runpy
import shlex
import shutil
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import numpy as np
import pytest
import torch
import typer
from pages import PAGES, ROOT, Block, blocks

import normscope
from normscope.cli import COMMANDS
from normscope.cli._index import index
from normscope.sweeping.executors import Pool

BLOCKS = {page: blocks(page) for page in PAGES}
SHELL, PYTHON = ("sh", "console"), ("python",)
#: Languages of what is no program: files of settings, what a command prints, drawings.
SHOWN = ("text", "toml", "yaml", "json", "ini", "mermaid")
#: How many blocks are not run, by reason.
NOT_RUN = {"installs something": 3}

#: Names that the prose takes for granted.
PRELUDE = """
import torch, normscope as ns
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class MyNet(nn.Module):
    def __init__(self, width=8, depth=2):
        super().__init__()
        sizes = [6, *[width] * depth]
        self.body = nn.Sequential(*[m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b), nn.ReLU())])
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.body(x))

make = MyNet
generator = torch.Generator().manual_seed(0)
model, inputs, targets = MyNet(), torch.randn(48, 6), torch.arange(48) % 3
loader = DataLoader(TensorDataset(inputs, targets), batch_size=16)
valid_loader = DataLoader(TensorDataset(torch.randn(48, 6), targets), batch_size=16)
loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1)

def train_step(model, optimizer, loss_fn, inputs, targets):
    optimizer.zero_grad()
    loss = loss_fn(model(inputs), targets)
    loss.backward()
    optimizer.step()
    return loss
"""
NET = """
import torch
from torch import nn

def make(width=8, depth=2):
    layers = [nn.Conv2d(width, width, 3, padding=1) if i else nn.Conv2d(3, width, 3, padding=1) for i in range(depth)]
    body = [m for layer in layers for m in (layer, nn.ReLU())]
    return nn.Sequential(nn.AvgPool2d(4), *body, nn.Flatten(), nn.Linear(64 * width, 10))

make_model = make

def batch():
    return torch.randn(32, 3, 32, 32), torch.arange(32) % 10
"""
TRAIN = f"""
import argparse
{PRELUDE}
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--epochs", type=int, default=1)
args = parser.parse_args()
optimizer = torch.optim.SGD(model.parameters(), args.lr)
for epoch in range(args.epochs):
    for x, y in loader:
        train_step(model, optimizer, loss_fn, x, y)
"""
#: Files of the reader's that the pages name.
FILES = {
    "net.py": NET, "path/to/net.py": NET, "train.py": TRAIN, "package/train.py": TRAIN, "package/__init__.py": "",
    "nets.py": (ROOT / "examples" / "ci" / "nets.py").read_text(),
}  # fmt: skip

#: Words that take long, and what stands for them here; the command as printed must parse.
SMALLER = {
    "transformers:gpt2": "transformers:gpt2,n_layer=1,n_embd=16,n_head=2,vocab_size=99,bos_token_id=0,eos_token_id=0",
    "transformers:bert": "transformers:bert,num_hidden_layers=1,hidden_size=16,intermediate_size=16,"
    "num_attention_heads=2,vocab_size=99",
    "mlp:depth=100,width=512,norm=batch": "mlp:depth=10,width=32,norm=batch",
    "mlp:depth=20": "mlp:depth=3,width=8",
    "mlp:depth=30": "mlp:depth=3,width=8",
    "mlp:depth=30,weights=torch": "mlp:depth=3,width=8,weights=torch",
    "mlp:depth=32,weights=torch,bias=0": "mlp:depth=4,width=8,weights=torch,bias=0",
    "search": "search:0.01",
    "1:64:log2": "1:2",
    "mlp:depth=32,width=64,norm=none": "mlp:depth=24,width=16,norm=none",
    "mlp:depth=40,width=128,norm=batch": "mlp:depth=4,width=16,norm=batch",
    "daneshmand2021": "nachum2024/two-clusters",
}
#: Options that come last, and so hold, where these words stand in a command.
LAST = {
    "diagnose": "--trial none",
    "cure": "--no-sharpness",
    "cure --data": "-n 16",
    "sharpness": "-n 12 --budget 1",
    "cure net.py:make": "--how he",
    "cure mine.py:make": "--how he",  # auto is tried on the page of cures
    "cure mlp:depth=32,width=64,norm=none": "--how he",
    "transfer": "--width 4,8 --depth 1,2 --to 12x4 --seeds 2 --steps 5 -n 16",
    "rates": "-n 16 --steps 10",
    "overfit": "-n 16",
    "race": "--samples 64 --test-samples 32 --epochs 1 --seeds 2 -n 32 --geometry 2",
    "verify": "nachum2024/two-clusters",
    "examples/sweeps/phase_diagram.toml": "--depth 2 --width 8 --norm none,batch --steps 2 --seeds 1",
}
#: Parts of a python block that take long, and what stands for them here.
SHORTER = {
    "widths=(16, 32, 64), depths=(2, 4, 8), to=(512, 32)": "widths=(4, 8), depths=(1, 2), to=(12, 4), budget=60",
    "depth=[1, 4, 16, 64], width=[32, 128]": "depth=[1, 2], width=[8]",
    "depth=20, width=64": "depth=2, width=8",
    "depth=40, width=128": "depth=40, width=32",
    "torch.randn(16, 128)": "torch.randn(16, 32)",
    "depth=100, width=1024": "depth=100, width=128",
    "torch.randn(32, 1024)": "torch.randn(32, 128)",
}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Trials of a moment; the cells of a sweep in this process."""
    monkeypatch.setattr("normscope.findings.checkup.trial.SECONDS", 0.3)
    monkeypatch.setattr("normscope.sweeping.executors.local", lambda workers=None: Pool(ThreadPoolExecutor(1), None, 1))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of the reader's: the files that the pages name, and data sets in ~/data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(tmp_path)  # as a script has its own folder, and a notebook its
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    rows = [f"{step},{2.3 * 0.97**step:.4f},0.1" for step in range(60)]  # what somebody's training has left
    (tmp_path / "losses.csv").write_text("\n".join(["step,loss,lr", *rows]) + "\n")
    (tmp_path / "logs" / "first").mkdir(parents=True)
    shutil.copy(tmp_path / "losses.csv", tmp_path / "logs" / "first")
    history = [{"step": step, "loss": 2.3 * 0.97**step, "learning_rate": 0.1} for step in range(60)]
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-500" / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    data, draw = tmp_path / "home" / "data", np.random.default_rng(0)
    (data / "fashion-mnist").mkdir(parents=True)
    arrays = {}
    for split, start in (("train", "train"), ("test", "t10k")):
        arrays[f"x_{split}"] = draw.integers(0, 256, (256, 32, 32, 3), np.uint8)
        arrays[f"y_{split}"] = np.arange(256) % 10
        for kind, shape in (("images-idx3", (256, 28, 28)), ("labels-idx1", (256,))):
            values = draw.integers(0, 10, shape, np.uint8)
            head = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
            (data / "fashion-mnist" / f"{start}-{kind}-ubyte").write_bytes(head + values.tobytes())
    np.savez(data / "cifar10_subset.npz", **arrays)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def command_of(name):
    import_module(f"normscope.cli.{COMMANDS[name]}")
    from normscope.cli._app import app

    return typer.main.get_command(app).get_command(None, name)


def examples_of(name):
    """The lines of a command's help that are commands."""
    command = command_of(name)
    lines = "\n".join([command.help or "", command.epilog or ""]).splitlines()
    return [line.strip() for line in lines if line.strip().startswith(f"normscope {name}")]


def smaller(words):
    """The command line that is run for a printed one: the words after ``normscope``."""
    found = [SMALLER.get(word, word) for word in words]
    for when, more in LAST.items():
        if set(when.split()) <= set(words):
            found += shlex.split(more)
    return ["why", "--trial", "none", *found[1:]] if found[0] == "why" else found  # what follows a script is its own


def run_command(words, code, run, home):
    if words[0] == "python":
        assert words[1].endswith(".py"), words
        argv, sys.argv = sys.argv, words[1:]
        try:
            runpy.run_path(words[1], run_name="__main__")
        finally:
            sys.argv = argv
        return
    assert words[0] == "normscope", f"there is no way to run {shlex.join(words)}"
    given = [word.replace("~", str(home), 1) if word.startswith("~/") else word for word in words[1:]]
    command_of(given[0]).make_context(given[0], [*given[1:]])
    answer = run(*smaller(given))
    assert answer[0] == code, f"{shlex.join(words)}\nexit code {answer[0]}, not {code}\n{answer[2] or answer[1]}"


def run_block(block: Block, names, run, folder):
    """One block after those before it."""
    if block.title:
        (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
        (folder / block.title).write_text(block.text)
    elif block.language in SHELL:
        for words, code in block.commands:
            run_command(words, code, run, folder / "home")
    elif block.language in PYTHON:
        text = block.text
        for long, short in SHORTER.items():
            text = text.replace(long, short)
        exec(compile("\n" * block.line + text, block.page, "exec"), names)


@pytest.mark.parametrize(
    "page",
    [p for p, found in BLOCKS.items() if any(b.language in SHELL + PYTHON and not b.reason for b in found)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_blocks_of_a_page_run_in_their_order(page, run, folder):
    names = {"__name__": "__main__"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(PRELUDE, names)
        for block in BLOCKS[page]:
            if not block.reason:
                try:
                    run_block(block, names, run, folder)
                except BaseException as error:
                    error.add_note(f"in the block at {block.page}:{block.line}")
                    raise


def test_what_is_not_run_says_why_in_one_of_few_words():
    reasons = collections.Counter(b.reason for found in BLOCKS.values() for b in found if b.reason)
    assert reasons == NOT_RUN


def test_every_block_has_a_language_that_is_known():
    strange = [
        f"{b.page}:{b.line} {b.language!r}"
        for found in BLOCKS.values()
        for b in found
        if b.language not in SHELL + PYTHON + SHOWN
    ]
    assert not strange


def test_a_block_of_the_shell_holds_commands():
    """Else nothing of it would run, and nobody notice."""
    empty = [f"{b.page}:{b.line}" for found in BLOCKS.values() for b in found if b.language in SHELL and not b.commands]
    assert not empty


def test_a_block_that_raises_fails(run, folder):
    with pytest.raises(ZeroDivisionError):
        run_block(Block("page", 1, "python", "1 / 0\n"), {}, run, folder)
    with pytest.raises(AssertionError, match="exit code 2, not 0"):
        run_block(Block("page", 1, "sh", "normscope explain NS000\n"), {}, run, folder)
    run_block(Block("page", 1, "sh", "normscope explain NS000  # exit code 2\n"), {}, run, folder)


# The command line's own texts


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_in_the_help_of_a_command_run(name, run, folder):
    lines = examples_of(name)
    assert lines
    for line in lines:
        run_block(Block(f"{name} --help", 1, "sh", f"{line}\n"), {}, run, folder)


def test_the_examples_are_shown_in_the_help(run):
    for name in COMMANDS:
        _, shown, _ = run(name, "--help")
        assert all(" ".join(line.split()) in " ".join(shown.split()) for line in examples_of(name)), name


def test_each_code_is_explained_and_each_list_is_listed(run):
    for words in [*(("explain", code) for code in index()["rules"]), *(("list", name) for name in index()["lists"])]:
        code, out, err = run(*words)
        assert (code, err) == (0, ""), words
        assert len(out) > 100, words


def test_each_name_that_is_public_is_on_the_page_of_the_reference():
    named = re.findall(r"^::: normscope\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert sorted(named) == sorted(normscope.__all__)
