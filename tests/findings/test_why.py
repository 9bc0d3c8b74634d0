"""``normscope why``: scripts of many styles, half of them with one planted fault; what is said, and that nothing is
left.
"""

import json
import os
import random
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.optim.optimizer as optimizers
from torch import nn

import normscope
from normscope import UsageError
from normscope.cli import main
from normscope.findings.why import run, watch, why
from normscope.findings.why.tape import Entry, Tape

SCRIPTS = Path(__file__).parent / "scripts"


@pytest.fixture(autouse=True)
def _a_short_wait(monkeypatch):
    """How many more steps a script gets, for another training to begin."""
    monkeypatch.setattr(watch, "LINGER", 30)


HEAD = """
import torch
from torch import nn
torch.manual_seed(0)
x = torch.randn(512, 10)
t = (x[:, 0] + x[:, 1] > 0).long()
model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 2))
"""

LOOP = """
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for step in range(500):
    i = step % 8
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x[64 * i : 64 * i + 64]), t[64 * i : 64 * i + 64])
    loss.backward()
    optimizer.step()
    print("step", step)
"""


def written(folder, *parts, name="train.py"):
    path = folder / name
    path.write_text("".join(textwrap.dedent(p) for p in parts))
    return path


# What the script is


def test_the_step_is_the_scripts_own(tmp_path, capsys):
    found = why(written(tmp_path, HEAD, LOOP), trial=False)
    assert capsys.readouterr().out.split("\n")[0] == "step 0"
    assert found.facts["steps_seen"] >= 20
    assert found.profile.facts["checkup"]["left_out"] == {}
    assert [f for f in found.findings if f.severity != "info"] == []
    assert re.search(r"train.py:13", found.facts["places"]["the loss"])
    assert re.search(r"train.py:9", found.facts["places"]["the optimizer"])


def test_the_model_is_diagnosed_as_it_was_before_the_first_step(tmp_path):
    script = written(tmp_path, HEAD, "torch.save(model.state_dict(), 'before.pt')\n", LOOP)
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        found = run(script, trial=False).diagnoses[0]
    finally:
        os.chdir(here)
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 2))
    model.load_state_dict(torch.load(tmp_path / "before.pt"))
    torch.manual_seed(0)
    x = torch.randn(512, 10)
    t = (x[:, 0] + x[:, 1] > 0).long()
    alone = normscope.diagnose(model, x[:64], t[:64], "cross_entropy", trial=False)
    for metric in ("participation_rank", "rms"):
        assert found.profile.series(metric) == alone.profile.series(metric)


def test_losses_and_rates_are_those_of_the_running_loop(tmp_path):
    script = written(tmp_path, HEAD, LOOP.replace("print(", "open('losses', 'a').write(f'{loss.item()}\\n'); print("))
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        found = why(script, steps=12)
    finally:
        os.chdir(here)
    own = found.profile.facts["checkup"]["observed"]
    written_down = [float(v) for v in (tmp_path / "losses").read_text().split()]
    assert own["losses"][: len(written_down)] == written_down
    assert own["rates"] == [0.1] * len(own["losses"])
    assert len(own["losses"]) == 42


def test_arguments_reach_the_script_and_its_folder_is_on_the_path(tmp_path):
    (tmp_path / "helper_of_the_script.py").write_text("RATE = 0.1\n")
    script = written(
        tmp_path, "import sys\nfrom helper_of_the_script import RATE\nassert sys.argv[1:] == ['--lr', '3'], sys.argv\n",
        HEAD, LOOP,
    )  # fmt: skip
    assert why(script, ["--lr", "3"], trial=False).facts["steps_seen"] >= 20


def test_a_module_runs_as_python_m_would(tmp_path, monkeypatch):
    (tmp_path / "package_of_a_user").mkdir()
    (tmp_path / "package_of_a_user" / "__init__.py").write_text("")
    written(tmp_path / "package_of_a_user", HEAD, LOOP, name="__main__.py")
    monkeypatch.chdir(tmp_path)
    assert why("package_of_a_user", module=True, trial=False).facts["steps_seen"] >= 20


def test_two_trainings_are_told_apart_and_the_last_one_leads(tmp_path):
    second = """
    head = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 2))
    other = torch.optim.Adam(head.parameters(), 1e-2)
    for step in range(60):
        other.zero_grad()
        nn.functional.cross_entropy(head(x[:64]), t[:64]).backward()
        other.step()
    """
    found = run(written(tmp_path, HEAD, LOOP.replace("500", "30"), second), trial=False)
    assert len(found.diagnoses) == 2
    assert [d.profile.facts["parameters"] for d in found.diagnoses] == [210, 418]


# Ends


def test_a_script_that_crashes_is_told_with_its_line(tmp_path):
    script = written(tmp_path, HEAD, LOOP.replace("    print", "    if step == 5: x = x[:, :3]\n    print"))
    found = run(script, trial=False)
    assert "train.py:13" in found.crash or "train.py:14" in found.crash
    assert found.ended == "crashed"
    assert len(found.diagnoses) == 1


def test_a_script_without_a_step_is_told_so(tmp_path):
    script = written(tmp_path, HEAD, "nn.functional.cross_entropy(model(x), t).backward()\n")
    with pytest.raises(UsageError, match=r"no optimizer stepped .1 backward"):
        why(script, trial=False)


def test_a_loss_that_was_detached_is_a_finding_not_an_end(tmp_path):
    cut = LOOP.replace("64 * i + 64]), t", "64 * i + 64]).detach().requires_grad_(), t")
    assert {"NS604", "NS704"} & {f.code for f in why(written(tmp_path, HEAD, cut), trial=False).findings[:2]}


def test_a_script_that_is_none_is_refused():
    with pytest.raises(UsageError, match="no file"):
        why("there_is_no_such.py")


def test_seconds_end_a_script_at_its_next_step(tmp_path):
    script = written(tmp_path, "import time\n", HEAD, LOOP.replace("    print", "    time.sleep(0.2)\n    print"))
    assert why(script, max_seconds=1.0, trial=False).facts["steps_seen"] < 20


def test_an_exception_handler_of_the_script_does_not_keep_it_running(tmp_path):
    body = textwrap.indent(LOOP, "    ")
    script = written(tmp_path, HEAD, "try:\n" + body + "\nexcept Exception:\n    raise SystemExit(7)\n")
    assert run(script, trial=False).ended == "was stopped after enough steps"


def test_ctrl_c_passes_through_and_torch_is_whole(tmp_path):
    before = nn.Module.__call__
    script = written(tmp_path, HEAD, LOOP.replace("    print", "    if step == 3: raise KeyboardInterrupt\n    print"))
    with pytest.raises(KeyboardInterrupt):
        run(script, trial=False)
    assert nn.Module.__call__ is before


# Nothing is left


@pytest.mark.parametrize("end", ["stopped", "crashed", "exit"])
def test_what_the_script_changed_in_this_process_is_put_back(tmp_path, monkeypatch, end):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    more = {
        "stopped": "",
        "crashed": "    if step == 5: raise ValueError('x')\n",
        "exit": "    if step == 25: raise SystemExit(1)\n",
    }
    script = written(
        tmp_path, "import os, random, numpy\nassert os.environ['WANDB_MODE'] == 'offline'\nos.chdir('/')\n",
        "random.seed(1); numpy.random.seed(1)\n", HEAD, LOOP + more[end],
    )  # fmt: skip
    patched = (nn.Module, "__call__"), (torch.optim.Optimizer, "__init__"), (torch.optim.Optimizer, "zero_grad"), (
        nn.Module, "zero_grad"), (torch.autograd, "backward"), (torch, "compile"), (torch.nn.utils,
        "clip_grad_norm_")  # fmt: skip
    before = [getattr(o, k) for o, k in patched]
    outside = sys.argv, list(sys.path), os.getcwd(), dict(os.environ), sys.modules["__main__"]
    streams = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    hooks = len(optimizers._global_optimizer_pre_hooks), len(optimizers._global_optimizer_post_hooks)
    run(script, trial=False)
    assert [getattr(o, k) for o, k in patched] == before
    assert (sys.argv, sys.path, os.getcwd(), dict(os.environ), sys.modules["__main__"]) == outside
    assert random.getstate() == streams[0]
    assert np.array_equal(np.random.get_state()[1], streams[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), streams[2])
    assert hooks == (
        len(optimizers._global_optimizer_pre_hooks), len(optimizers._global_optimizer_post_hooks),
    )  # fmt: skip


# Scripts of many styles, half of them with one planted fault

#: Script, the first finding's code ("" where there is none), words of its evidence, the class of the model that is
#: trained last.
TOLD = {
    "module_level_bug": ("NS703", "broadcast", "Sequential"),
    "lightning_bug": ("NS601", "not in the optimizer", "Sequential"),
    "amp_bf16_bug": ("NS802", "255", "ConvNet"),
    "grad_accum_bug": ("NS611", "zero_grad", "Sequential"),
    "torch_compile_bug": ("NS701", "softmax", "DigitNet"),
    "pretrain_finetune_bug": ("NS605", "prototypes", "CosineClassifier"),
    "argparse_main_ok": ("", "", "Sequential"),
    "hf_trainer_ok": ("", "", "BertForSequenceClassification"),
    "accelerate_ok": ("", "", "GRUClassifier"),
    "gan_ok": ("", "", "Generator"),
    "gan_one_fake_ok": ("", "", "Sequential"),
    "contrastive_ok": ("", "", "Sequential"),
    "lbfgs_ok": ("", "", "SineFit"),
    "wgan_gp_ok": ("", "", "Sequential"),
    "heat_equation_ok": ("", "", "Heat"),
    "sparse_graph_ok": ("", "", "Graph"),
    "time_first_ok": ("", "", "Model"),
    "padded_translation_ok": ("", "", "Model"),
    "mixup_ok": ("", "", "Sequential"),
    "actor_critic_ok": ("", "", "Sequential"),
    "policy_ok": ("", "", "Policy"),
    "erasing_bug": ("NS814", "Images.__getitem__ writes into what it holds", "Sequential"),
    "lm_trainer_class_ok": ("", "", "TinyLM"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TOLD)
def test_a_script_of_another_style_is_told_right(name, tmp_path, monkeypatch):
    code, words, model = TOLD[name]
    needs = {"lightning_bug": "lightning", "hf_trainer_ok": "transformers", "accelerate_ok": "accelerate"}.get(name)
    if needs is not None:
        pytest.importorskip(needs)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(watch, "LINGER", 2000 if name == "pretrain_finetune_bug" else 30)
    found = run(SCRIPTS / f"{name}.py", trial=False)
    assert not found.crash
    assert not found.missing
    first = found.diagnoses[0]
    assert first.label == model
    assert first.profile.facts["checkup"]["left_out"] == {}
    said = [f for d in found.diagnoses[:1] for f in d.findings if f.severity != "info"]
    assert [f.code for f in said][:1] == ([code] if code else []), [(f.code, f.evidence) for f in said]
    assert not code or words in said[0].evidence
    assert f"{name}.py:" in first.facts["places"]["the loss"]


@pytest.mark.parametrize(("every", "told"), [(1, True), (100, False)])
def test_a_schedule_stepped_after_every_batch_is_told_by_all_the_steps_that_were_seen(
    every, told, tmp_path, monkeypatch
):
    monkeypatch.setattr(watch, "LINGER", 2000)
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\n"
        "model = torch.nn.Linear(4, 1)\n"
        "optimizer = torch.optim.Adam(model.parameters(), 1e-2)\n"
        "schedule = torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.5)\n"
        "x = torch.randn(64, 4)\n"
        "for step in range(900):\n"
        "    optimizer.zero_grad()\n"
        "    (model(x) - x.sum(1, keepdim=True)).square().mean().backward()\n"
        "    optimizer.step()\n"
        f"    if step % {every} == 0:\n"
        "        schedule.step()\n",
        encoding="utf-8",
    )
    codes = {f.code for f in run(script).diagnoses[0].findings}
    assert ("NS409" in codes) == told


def test_a_tape_takes_calls_from_the_one_before_it_and_no_farther():
    """A loss that is summed up over the steps must not make each tape longer than the last."""
    total, tape, lengths = torch.ones(1, requires_grad=True) * 1, Tape(), []
    tape.add(Entry(torch.mul, (), {}, total))
    for _ in range(4):
        tape = Tape(earlier=tape)
        before, total = total, total + 1
        tape.follows(before)
        tape.add(Entry(torch.add, (before, 1), {}, total))
        lengths.append(len(tape.entries))
    assert lengths == [2, 1, 2, 1]


def test_labels_that_were_shuffled_apart_are_told_by_what_does_not_carry_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run(SCRIPTS / "dataloader_workers_bug.py").diagnoses[0]
    assert "NS426" in {f.code for f in found.findings if f.severity != "info"}


def test_a_script_without_an_optimizer_is_told_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no optimizer stepped"):
        why(SCRIPTS / "functional_ok.py")


# The command


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """``normscope why ARGS`` in this process: exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def called(*args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["why", *map(str, args)])
        return (ended.value.code, *capsys.readouterr())

    return called


def test_the_command_names_cause_file_and_line(command, tmp_path):
    twice = LOOP.replace("model(x[64 * i : 64 * i + 64])", "model(x[64 * i : 64 * i + 64]).softmax(1)")
    script = written(tmp_path, HEAD, twice)
    code, out, err = command("--trial", "none", script)
    assert code == 0, err
    assert "NS701" in out
    assert "train.py:13" in out
    assert "as it is: 20 optimizer steps are recorded" in err
    assert command("--trial", "none", "--fail-on", "warning", script)[0] == 1


def test_machines_get_one_json_document_though_the_script_prints(command, tmp_path):
    code, out, err = command("--trial", "none", "--json", written(tmp_path, HEAD, LOOP))
    found = json.loads(out)
    assert code == 0
    assert found["ended"] == "was stopped after enough steps"
    assert len(found["models"]) == 1
    assert "step 3" in err


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [
        ("raise ValueError('no data here')", 3, "no data here"),
        ("print('done')", 4, "no optimizer stepped"),
        (None, 2, "no file"),
    ],
)
def test_other_ends_have_their_own_exit_codes(command, tmp_path, lines, code, words):
    script = tmp_path / "none.py" if lines is None else written(tmp_path, lines)
    ended, _, err = command(script)
    assert ended == code, err
    assert words in err
    assert "Traceback" not in err


def test_the_example_of_the_readme_says_what_the_readme_shows():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "normscope", "why", "examples/broken_train.py"], capture_output=True, text=True,
        cwd=root,
        timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"},
    )  # fmt: skip
    shown = (root / "README.md").read_text().split("```console")[1].split("```")[0]
    flat = " ".join(done.stdout.split())
    for line in re.findall(r"^  +(?!Will|error)(\S.*)$", shown, re.M):
        assert " ".join(line.split()) in flat, line
    assert "NS703 targets broadcast" in flat


def test_the_rates_of_a_scripts_own_optimizer_are_tried(tmp_path):
    found = why(written(tmp_path, HEAD, LOOP.replace("0.1", "1000.0")), steps=5, trial=False, rates=True)
    (own,) = found.rates
    assert (own.optimizer, own.own) == ("SGD", 1000.0)
    assert [f.severity for f in found.findings if f.code == "NS402"] == ["warning"]


CLASSES = (
    "import torch\n"
    "torch.manual_seed(0)\n"
    "y = torch.arange(640) % 4\n"
    "x = torch.randn(640, 16) + 2 * torch.randn(4, 16)[y]\n"
    "model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))\n"
)
EPOCHS = (
    "for epoch in range({epochs}):\n"
    "    order = torch.randperm(640)\n"
    "    for i in range(0, 640, 64):\n"
    "        optimizer.zero_grad()\n"
    "        loss = torch.nn.functional.cross_entropy(model(x[order[i : i + 64]]), y[order[i : i + 64]])\n"
    "        loss.backward()\n"
    "        optimizer.step()\n"
)


def test_a_schedule_that_takes_a_falling_loss_for_a_plateau_is_told_from_one_that_decays_at_each_step(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(watch, "LINGER", 2000)
    script = tmp_path / "train.py"
    schedule = "optimizer = torch.optim.SGD(model.parameters(), 0.05)\n" + (
        "schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode='max', patience=0)\n"
    )
    script.write_text(CLASSES + schedule + EPOCHS.format(epochs=12) + "    schedule.step(loss.item())\n")
    said = {f.code: f.evidence for f in run(script, trial=5).diagnoses[0].findings}
    assert "cuts it" in said["NS409"]
    assert "mode='min'" in said["NS409"]


@pytest.mark.parametrize(("rate", "told"), [(3e-4, True), (0.05, False)])
def test_a_long_run_far_behind_a_short_race_is_told_by_batches_that_the_race_never_saw(
    rate, told, tmp_path, monkeypatch
):
    monkeypatch.setattr(watch, "LINGER", 2000)
    script = tmp_path / "train.py"
    optimizer = f"optimizer = torch.optim.SGD(model.parameters(), {rate})\n"
    script.write_text(CLASSES + optimizer + EPOCHS.format(epochs=40))
    found = run(script).diagnoses[0]
    said = {f.code: f for f in found.findings}
    assert ("NS423" in said) == told
    assert not told or "batches that it never saw" in said["NS423"].evidence
    assert "in 400 steps" in found.verdict
    assert not told or str(said["NS423"]) in str(found)


def test_a_rate_that_is_set_where_no_optimizer_reads_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LINGER", 30)
    script = tmp_path / "train.py"
    script.write_text(
        CLASSES
        + "optimizer = torch.optim.SGD(model.parameters(), 1e-4)\n"
        + EPOCHS.format(epochs=3)
        + "        optimizer.lr = 0.1\n"
    )
    said = {f.code: f for f in run(script, trial=False).diagnoses[0].findings}
    assert "sets optimizer.lr (0.1)" in said["NS409"].evidence
    assert "param_groups" in said["NS409"].cure


@pytest.mark.parametrize(("copy", "told"), [("", True), (".clone()", False)])
def test_one_array_that_is_every_sample_is_told_so(copy, told, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LINGER", 30)
    script = tmp_path / "train.py"
    windows = (
        "wave, buffer, kept = torch.sin(torch.arange(700) / 5.0), torch.zeros(16), []\n"
        "for i in range(640):\n"
        "    buffer[:] = wave[i : i + 16]\n"
        f"    kept.append(buffer{copy})\n"
        "x, y = torch.stack(kept), wave[16:656, None]\n"
        "model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))\n"
        "optimizer = torch.optim.Adam(model.parameters(), 1e-2)\n"
    )
    epochs = EPOCHS.format(epochs=6).replace("cross_entropy", "mse_loss")
    script.write_text("import torch\ntorch.manual_seed(0)\n" + windows + epochs)
    said = {f.code: f for f in run(script, trial=False).diagnoses[0].findings}
    assert "one and the same, their targets are not" in said["NS806"].evidence if told else "NS806" not in said
    assert not told or said["NS806"].severity == "error"


@pytest.mark.parametrize(("target", "told"), [("same", True), ("2 * same - 1", False)])
def test_a_loss_of_pairs_that_gets_zeros_for_minus_ones_is_told(target, told, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LINGER", 30)
    script = tmp_path / "train.py"
    pairs = (
        "optimizer = torch.optim.Adam(model.parameters(), 1e-2)\n"
        "criterion = torch.nn.CosineEmbeddingLoss()\n"
        "for step in range(60):\n"
        "    i, j = torch.randint(640, (2, 64))\n"
        "    same = (y[i] == y[j]).float()\n"
        "    optimizer.zero_grad()\n"
        f"    loss = criterion(model(x[i]), model(x[j]), {target})\n"
        "    loss.backward()\n"
        "    optimizer.step()\n"
    )
    script.write_text(CLASSES + pairs)
    said = {f.code: f.evidence for f in run(script, trial=False).diagnoses[0].findings}
    assert ("NS711" in said) == told
    assert not told or "CosineEmbeddingLoss wants targets of -1 and 1, and gets 0, 1" in said["NS711"]


def test_an_image_that_is_optimized_is_no_network_that_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LINGER", 30)
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\n"
        "net = torch.nn.Conv2d(3, 4, 3).requires_grad_(False)\n"
        "image = torch.randn(1, 3, 8, 8, requires_grad=True)\n"
        "wanted = net(torch.randn(1, 3, 8, 8))\n"
        "optimizer = torch.optim.Adam([image], 1e-2)\n"
        "for step in range(40):\n"
        "    optimizer.zero_grad()\n"
        "    (net(image) - wanted).square().mean().backward()\n"
        "    optimizer.step()\n"
    )
    found = run(script)
    assert not found.diagnoses
    assert "trains no weight of a module that was called" in found.missing[0]
