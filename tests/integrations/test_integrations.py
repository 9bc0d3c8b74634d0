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
    whole = callback.tracker.frame()
    assert callback.tracker.notes == ()
    assert pl.read_parquet(f"{trainer.log_dir}/normscope").equals(whole)
    told = whole.filter(signal="run", metric="loss")
    assert told.select("step", "value").rows() == list(enumerate(model.losses))
    assert set(whole.filter(metric="lr")["value"]) == {0.1}
    frame = whole.filter(pl.col("signal") != "run")
    assert set(frame["step"]) == {0, 2, 4}
    assert set(frame["name"]) == {"body.0", "body.1", "body.2", "head"}
    assert set(frame["signal"]) == {"activation", "gradient", "weight"}
    assert set(frame["call"]) == {0}
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
    layers = frame.filter(pl.col("signal") != "run")
    assert sorted(set(layers["step"])) == [0, 1]
    assert set(layers["call"]) == {0}


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
    options = {"logging_strategy": "no", "save_strategy": "no", **options}
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=1, per_device_train_batch_size=4, report_to=[],
        use_cpu=True, disable_tqdm=True, seed=3, dataloader_num_workers=0, **options,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=args, train_dataset=data, callbacks=callbacks)
    trainer.result = trainer.train()
    return model, trainer


@quiet
@pytest.mark.parametrize("checkpointing", [False, True])
def test_hugging_face_is_tracked_and_unchanged(tmp_path, checkpointing):
    pytest.importorskip("transformers")
    from normscope.integrations.transformers import TrackerCallback

    callback = TrackerCallback(every=2)
    options = {"gradient_accumulation_steps": 3, "gradient_checkpointing": checkpointing}
    model, trainer = hugging_run(tmp_path, [callback], **options)
    plain, plain_trainer = hugging_run(tmp_path / "plain", [], **options)
    assert trainer.result.training_loss == plain_trainer.result.training_loss
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


@quiet
def test_hugging_face_s_log_is_kept_and_gets_the_scalars(tmp_path):
    pytest.importorskip("transformers")
    from normscope.findings.review import review
    from normscope.integrations.transformers import TrackerCallback

    callback = TrackerCallback(every=2)
    _, trainer = hugging_run(tmp_path, [callback], logging_strategy="steps", logging_steps=2, save_strategy="epoch")
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all("normscope/activation_rms/median" in entry for entry in log[1:])
    told = callback.tracker.frame().filter(signal="run")
    assert told.filter(metric="loss").select("step", "value").rows() == [(e["step"], e["loss"]) for e in log]
    assert len(told.filter(metric="grad_norm")) == len(told.filter(metric="lr")) == len(log)
    found = review(tmp_path)  # the checkpoint's trainer_state.json beside the tracker's parts
    assert found.layers > 10
    assert found.facts["loss"].startswith(f"{log[0]['loss']:.4g}")


# Any logger


def written(target, steps=4, **options):
    """A short training whose tracker hands its steps to a logger; its table."""
    from normscope.integrations.loggers import LoggerWriter

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    with Tracker(model, every=2, writers=LoggerWriter(target, **options)) as tracker:
        for _ in range(steps):
            model(torch.randn(8, 6)).square().mean().backward()
    assert tracker.notes == ()
    return tracker.frame()


class Taking:
    """A logger with one way to be given scalars."""

    def __init__(self, method):
        self.given = []
        setattr(self, method, getattr(self, f"_{method}"))

    def _log_metrics(self, found, step=None):
        self.given += [(name, value, step) for name, value in found.items()]

    _log = _log_metrics

    def _add_scalar(self, name, value, step):
        self.given.append((name, value, step))


@pytest.mark.parametrize("method", ["log_metrics", "log", "add_scalar", "a function"])
def test_any_logger_gets_the_scalars_of_each_measured_step(method):
    logger = Taking("log" if method == "a function" else method)
    frame = written(logger._log if method == "a function" else logger)
    tag = "normscope/activation_rms/max"
    want = [(tag, frame.filter(step=s, signal="activation", metric="rms")["value"].max(), s) for s in (0, 2)]
    assert [g for g in logger.given if g[0] == tag] == want


def test_layers_have_a_name_of_their_own():
    logger = Taking("log")
    frame = written(logger, layers=True, prefix="net")
    value = frame.filter(step=2, name="2", signal="weight", metric="gradient_norm")["value"][0]
    assert ("net/003-2/weight_gradient_norm", value, 2) in logger.given


def test_what_is_no_logger_is_refused():
    from normscope.integrations.loggers import LoggerWriter

    with pytest.raises(UsageError, match=r"wandb\.run"):
        LoggerWriter(3)


def test_mlflow_gets_the_scalars(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", exc_type=ImportError)
    mlflow.set_tracking_uri(f"file:{tmp_path}/runs")
    with mlflow.start_run() as run:
        frame = written(mlflow, layers=True)
    known = mlflow.MlflowClient().get_metric_history(run.info.run_id, "normscope/001-0/activation_rms")
    want = frame.filter(name="0", signal="activation", metric="rms").select("step", "value").rows()
    assert sorted((m.step, m.value) for m in known) == want


def test_wandb_gets_the_scalars_on_an_axis_of_their_own(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", project="x", dir=str(tmp_path))
    try:
        for step in range(3):  # the loop is ahead of the step that is handed over
            run.log({"mine": step})
        frame = written(run)
        run.log({"mine": 3})
        known = dict(run.summary)
    finally:
        run.finish()
    assert known["normscope/step"] == 2
    assert known["normscope/activation_rms/max"] == frame.filter(step=2, metric="rms")["value"].max()


def test_a_callback_counts_as_its_trainer_does():
    pytest.importorskip("transformers")
    from normscope.integrations.transformers import TrackerCallback

    with pytest.raises(UsageError, match="by="):
        TrackerCallback(by="forward")
