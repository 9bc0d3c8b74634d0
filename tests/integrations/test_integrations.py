"""The tracker under the real libraries; each test skips where its library is not installed."""

import importlib
import sys

import polars as pl
import pytest
import torch
from torch import nn

from normscope import Tracker, UsageError
from normscope.integrations._summary import summary


def table(metric="rms", signal="activation", values=(1.0, float("nan"), 3.0, 9.0), step=0):
    n = len(values)
    return pl.DataFrame(
        {
            "source": ["measured"] * n, "step": [step] * n, "samples": [8] * n, "layer": range(1, n + 1),
            "name": [f"l{i}" for i in range(n)], "call": [0] * n, "kind": ["Linear"] * n, "signal": [signal] * n,
            "metric": [metric] * n, "value": list(values),
        }
    )  # fmt: skip


def test_a_summary_is_over_layers_and_the_deepest_hidden_one():
    found = summary(table())
    tag = "normscope/activation_rms"
    assert found == {f"{tag}/min": 1.0, f"{tag}/median": 3.0, f"{tag}/max": 9.0, f"{tag}/deepest": 3.0}


def test_a_summary_of_nothing_finite_is_nan():
    assert all(v != v for v in summary(table(values=[float("nan")] * 3)).values())


@pytest.mark.parametrize(
    ("name", "libraries"),
    [
        ("lightning", ["lightning", "pytorch_lightning"]), ("transformers", ["transformers"]),
        ("tensorboard", ["tensorboard", "torch.utils.tensorboard"]),
    ],
)  # fmt: skip
def test_a_missing_library_is_named_with_its_pip_line(monkeypatch, name, libraries):
    held = [m for m in sys.modules if any(m.startswith(f"{library}.") for library in libraries)]
    for library in (*libraries, *held):  # also what another test has imported
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"normscope.integrations.{name}", raising=False)
    with pytest.raises(UsageError, match="pip install") as caught:
        importlib.import_module(f"normscope.integrations.{name}")
    assert isinstance(caught.value, ImportError)
    assert name in str(caught.value)


# TensorBoard


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_gets_curves(tmp_path):
    pytest.importorskip("tensorboard")
    from normscope.integrations.tensorboard import TensorBoardWriter

    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    with Tracker(model, every=2, writers=TensorBoardWriter(tmp_path / "tb", layers=True)) as tracker:
        for _ in range(4):
            model(torch.randn(8, 6)).square().mean().backward()
    assert tracker.notes == ()
    drawn = scalars(tmp_path / "tb")
    frame = tracker.frame().filter(signal="activation", metric="rms")
    for layer, name in ((1, "0"), (2, "1"), (3, "2")):
        want = [tuple(row) for row in frame.filter(name=name).select("step", "value").rows()]
        got = drawn[f"normscope/activation_rms/layer/{layer:03}-{name}"]
        assert [s for s, _ in got] == [0, 2]
        assert [v for _, v in got] == pytest.approx([v for _, v in want], rel=1e-6)
    assert [s for s, _ in drawn["normscope/weight_gradient_norm/median"]] == [0, 2]


def test_a_summary_writer_of_the_users_stays_open(tmp_path):
    pytest.importorskip("tensorboard")
    from normscope.integrations.tensorboard import SummaryWriter, TensorBoardWriter

    with SummaryWriter(str(tmp_path)) as board:
        writer = TensorBoardWriter(board)
        writer(table(step=7))
        writer.close()
        board.add_scalar("mine", 1.0, 0)
    drawn = scalars(tmp_path)
    assert drawn["normscope/activation_rms/max"] == [(7, 9.0)]
    assert "mine" in drawn


# Lightning


def lightning_run(flavour, tmp_path, callbacks, *, manual=False, fail_at=None, logger=True, **options):
    pl_ = pytest.importorskip("lightning.pytorch" if flavour == "lightning" else flavour)

    class Net(pl_.LightningModule):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2))
            self.head = nn.Linear(6, 2)
            self.losses = []
            self.automatic_optimization = not manual

        def training_step(self, batch, i):
            if i == fail_at:
                raise RuntimeError("broken step")
            loss = nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1])
            self.losses.append(loss.item())
            if manual:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def validation_step(self, batch, i):
            self.head(self.body(batch[0]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    torch.manual_seed(0)
    model = Net()
    x, y = torch.randn(48, 6), torch.randint(2, (48,))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 8)
    trainer = pl_.Trainer(
        default_root_dir=str(tmp_path), accelerator="cpu", max_epochs=1, callbacks=callbacks, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=1, num_sanity_val_steps=1,
        logger=pl_.loggers.CSVLogger(str(tmp_path)) if logger else False, **options,
    )  # fmt: skip
    trainer.fit(model, data, data)
    return model, trainer


quiet = pytest.mark.filterwarnings("ignore")


@quiet
@pytest.mark.parametrize("flavour", ["lightning", "pytorch_lightning"])
def test_lightning_is_tracked_and_unchanged(tmp_path, monkeypatch, flavour):
    pytest.importorskip(flavour)
    monkeypatch.delitem(sys.modules, "normscope.integrations.lightning", raising=False)
    callback = importlib.import_module("normscope.integrations.lightning").TrackerCallback(every=2)
    model, trainer = lightning_run(flavour, tmp_path, [callback])
    plain, _ = lightning_run(flavour, tmp_path / "plain", [])
    assert model.losses == plain.losses
    frame = callback.tracker.frame()
    assert callback.tracker.notes == ()
    assert set(frame["step"]) == {0, 2, 4}
    assert set(frame["name"]) == {"body.0", "body.1", "body.2", "head"}
    assert set(frame["signal"]) == {"activation", "gradient", "weight"}
    assert set(frame["call"]) == {0}
    assert pl.read_parquet(f"{trainer.log_dir}/normscope").equals(frame)
    logged = pl.read_csv(f"{trainer.log_dir}/metrics.csv")
    want = frame.filter(step=4, signal="activation", metric="rms")["value"].min()
    assert logged.filter(step=4)["normscope/activation_rms/min"].drop_nulls()[0] == pytest.approx(want)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 0


@quiet
def test_lightning_accumulates_into_one_step(tmp_path):
    pytest.importorskip("lightning")
    from normscope.integrations.lightning import TrackerCallback

    callback = TrackerCallback(every=1, folder=tmp_path / "here")
    lightning_run("lightning", tmp_path, [callback], accumulate_grad_batches=3, logger=False)
    frame = pl.read_parquet(tmp_path / "here")
    assert sorted(set(frame["step"])) == [0, 1]
    assert set(frame["call"]) == {0}


@quiet
def test_lightning_manual_optimization_and_a_step_that_raises(tmp_path):
    pytest.importorskip("lightning")
    from normscope.integrations.lightning import TrackerCallback

    callback = TrackerCallback(every=1, folder=tmp_path / "here", log=False)
    with pytest.raises(RuntimeError, match="broken step"):
        lightning_run("lightning", tmp_path, [callback], manual=True, fail_at=3)
    frame = pl.read_parquet(tmp_path / "here").filter(signal="weight")
    assert sorted(set(frame["step"])) == [0, 1, 2]


# Hugging Face


def hugging_run(tmp_path, callbacks, **options):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertForSequenceClassification(config)
    g = torch.Generator().manual_seed(1)
    data = [
        {"input_ids": torch.randint(40, (7,), generator=g), "attention_mask": torch.ones(7).long(), "labels": i % 2}
        for i in range(48)
    ]
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=1, per_device_train_batch_size=4, save_strategy="no", report_to=[],
        use_cpu=True, disable_tqdm=True, seed=3, dataloader_num_workers=0, logging_strategy="no", **options,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=args, train_dataset=data, callbacks=callbacks)
    result = trainer.train()
    return model, result


@quiet
@pytest.mark.parametrize("checkpointing", [False, True])
def test_hugging_face_is_tracked_and_unchanged(tmp_path, checkpointing):
    pytest.importorskip("transformers")
    from normscope.integrations.transformers import TrackerCallback

    callback = TrackerCallback(every=2)
    options = {"gradient_accumulation_steps": 3, "gradient_checkpointing": checkpointing}
    model, result = hugging_run(tmp_path, [callback], **options)
    plain, plain_result = hugging_run(tmp_path / "plain", [], **options)
    assert result.training_loss == plain_result.training_loss
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    frame = callback.tracker.frame()
    assert [note.split(":")[0] for note in callback.tracker.notes] == ["bert.embeddings.position_embeddings"]
    assert sorted(set(frame["step"])) == [0, 2]
    assert set(frame["call"]) == {0}
    assert set(frame["samples"]) == {4}
    assert set(frame["signal"]) == {"activation", "gradient", "weight"}
    assert any(name.startswith("bert.encoder.layer.1") for name in frame["name"])
    assert pl.read_parquet(tmp_path / "normscope").equals(frame)
    hooks = [sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()) for net in (model, plain)]
    assert hooks[0] == hooks[1]  # checkpointing sets one of its own


def test_a_callback_counts_as_its_trainer_does():
    pytest.importorskip("transformers")
    from normscope.integrations.transformers import TrackerCallback

    with pytest.raises(UsageError, match="by="):
        TrackerCallback(by="forward")
