"""The content of reports in tests: a plain ReLU net that collapses beside nets that do not."""

import math

import polars as pl
import pytest

from normscope.core.errors import UsageError
from normscope.report import Content
from normscope.report._labels import number
from normscope.report._layers import layers, measured

BATCH = 128
TABLE = {
    "model": pl.String, "source": pl.String, "seed": pl.Int64, "layer": pl.Int64, "name": pl.String, "call": pl.Int64,
    "kind": pl.String, "signal": pl.String, "metric": pl.String, "value": pl.Float64, "stderr": pl.Float64,
}  # fmt: skip
FINDINGS = {
    "model": pl.String, "code": pl.String, "severity": pl.String, "title": pl.String, "layer": pl.Int64,
    "name": pl.String, "metric": pl.String, "value": pl.Float64, "threshold": pl.Float64, "source": pl.String,
    "evidence": pl.String, "meaning": pl.String, "cure": pl.String,
}  # fmt: skip


def wobble(layer: int, width: float = 0.05, phase: float = 0.0) -> float:
    return 1 + width * math.sin(2.7 * layer + phase)


def activations(layer: int, depth: int, kind: str) -> dict[str, float]:
    """Numbers as such nets have them: ``plain`` collapses to one direction, ``batch`` and ``deep`` do not."""
    t = layer
    if kind == "plain":
        cosine = 1 - 0.78 / (1 + 0.035 * t * t)
        norm = 8.0 * 0.97**t * wobble(t)
    else:
        cosine = 0.1 + 0.34 * math.exp(-t / 4) * wobble(t)
        norm = 11.3 * wobble(t, 0.02)
    rank = 1 / (cosine**2 + (1 - cosine**2) / 40)
    return {
        "participation_rank": rank,
        "orthogonality_gap": math.sqrt(max(1 / rank - 1 / BATCH, 0)),
        "orthogonality_gap_floor": math.sqrt(1 / 64 - 1 / BATCH) if t == 0 else 0.0,
        "soft_rank": rank * 0.8,
        "numerical_rank": float(min(BATCH, 64 + 30 * t)),
        "numerical_rank_float32": float(max(3, min(BATCH, 64 + 30 * t) - (5 * t if kind == "plain" else 0))),
        "isometry_gap": math.inf if t == 0 else 2.0,
        "mean_abs_cosine": cosine,
        "mean_norm": norm,
        "norm_spread": 0.2,
        "odd_point_score": math.nan if t == 0 else 0.05 * wobble(t, 0.5),
        "odd_point_index": 17.0,
        "dead_units": 0.31 if t == 0 else min(0.9, 0.02 * t) if kind == "plain" else 0.0,
        "saturated_units": math.nan,
    }


def gradients(layer: int, depth: int, kind: str) -> dict[str, float]:
    back = depth - layer
    if kind == "batch":
        return {"gradient_norm": 0.02 * 1.21**back * wobble(layer)}
    return {"gradient_norm": 0.05 * 0.93**back * wobble(layer, 0.2)}


def records(model: str, kind: str, depth: int = 32, source: str = "measured", names=None) -> list[tuple]:
    rows = []
    for layer in range(depth + 1):
        name = (names or "net.{}").format(3 * layer) if layer else ""
        module = "BatchNorm1d" if kind == "batch" else "ReLU"
        where = (model, source, 0, layer, name, 0, module if layer else "")
        rows += [(*where, "activation", m, v, 0.0) for m, v in activations(layer, depth, kind).items()]
        if source == "measured":
            rows += [(*where, "gradient", m, v, 0.0) for m, v in gradients(layer, depth, kind).items()]
            if layer:
                rows.append(
                    (*where, "weight", "gradient_norm", gradients(layer, depth, kind)["gradient_norm"] * 2, 0.0)
                )
    return rows


def collapse(model: str, layer: int = 11, name: str = "net.33") -> tuple:
    return (
        model, "NS101", "error", "Rank collapse", layer, name, "participation_rank", 1.46, 1.5, "daneshmand2020",
        f"The participation rank falls from 12.1 at the input to 1.46 at layer {layer} and 1.04 at the end: every "
        "sample leaves in nearly the same direction.",
        "The last layers see one sample where there are 128, so the gradients of all samples agree and "
        "the loss stays flat.",
        "Put batch normalization after each linear layer (nn.BatchNorm1d), or start from orthogonal representations: "
        "normscope cure --how orthogonal.",
    )  # fmt: skip


def aligned(model: str, layer: int = 12, name: str = "net.36") -> tuple:
    return (
        model, "NS102", "warning", "Aligned batch", layer, name, "mean_abs_cosine", 0.871, 0.85, "chosen by us",
        f"The mean |cosine| between samples is 0.871 at layer {layer} and grows to 0.98.",
        "Classes that differ in the input are hard to tell apart after this layer.",
        "Recentre the activations, or use fewer layers.",
    )  # fmt: skip


def growing(model: str) -> tuple:
    return (
        model, "NS201", "warning", "Exploding gradient", 26, "net.78", "gradient_growth", 1.21, 1.2, "yang2019",
        "The gradient grows by 1.21 a layer from the output to the input, 460 times over the net.",
        "The first layers move far in one step at a learning rate that suits the last ones.",
        "Lower the learning rate at first (warm-up), or add skip connections.",
    )  # fmt: skip


def facts(label: str, verdict: str, **more) -> dict:
    known = {
        "label": label, "verdict": verdict, "mode": "train", "batch_size": BATCH, "dtype": "float32", "device": "cpu",
        "loss": "cross_entropy", "parameters": 2_103_818, "layers": 32, "seconds": 0.412, "torch": "2.13.0",
        "normscope": "0.1.0", "notes": ["Dropout was drawn with seed 0."],
    }  # fmt: skip
    return known | more


def content(rows: list[tuple], findings: list[tuple], known: tuple[dict, ...], title="Three nets on digits") -> Content:
    return Content(
        title,
        pl.DataFrame(rows, schema=TABLE, orient="row"),
        pl.DataFrame(findings, schema=FINDINGS, orient="row"),
        known,
    )


def one(label: str = "plain", title: str = "mlp:depth=32,width=256 on digits") -> Content:
    known = (facts(label, "At risk: the batch collapses to one direction from layer 11 on."),)
    return content(records(label, "plain"), [collapse(label), aligned(label)], known, title)


def three() -> Content:
    plain, batch, small = "plain relu", "batch norm", "plain relu, 4 layers"
    rows = records(plain, "plain") + records(batch, "batch") + records(small, "plain", depth=4)
    found = [collapse(plain), aligned(plain), growing(batch)]
    known = (
        facts(plain, "At risk: the batch collapses to one direction from layer 11 on."),
        facts(batch, "Should train; the gradient grows towards the input.", parameters=2_120_202, seconds=0.61),
        facts(small, "Should train: nothing found.", layers=4, parameters=280_074, seconds=0.07, notes=[]),
    )
    return content(rows, found, known)


def quiet() -> Content:
    return content(records("small", "plain", 4), [], (facts("small", "Should train: nothing found."),))


def deep(depth: int = 300) -> Content:
    label = "a transformer " + "with-a-very-long-name-" * 8
    rows = records(label, "batch", depth, names="transformer.encoder.layer.{}.attention.output.LayerNorm")
    rows += records("other", "plain", depth)
    known = (facts(label, "Should train."), facts("other", "At risk."))
    return content(rows, [collapse("other"), growing(label)], known)


def test_models_keep_the_order_of_the_facts():
    assert three().models == ("plain relu", "batch norm", "plain relu, 4 layers")


def test_missing_columns_are_named():
    with pytest.raises(UsageError, match="metric"):
        Content("t", one().table.drop("metric"), one().findings, ())


def test_findings_come_worst_first():
    assert [f["severity"] for f in one().findings_of("plain")] == ["error", "warning"]


def test_values_are_averaged_over_seeds():
    rows = [
        ("m", "measured", seed, 1, "a", 0, "ReLU", "activation", "mean_norm", v, 0.0)
        for seed, v in ((0, 1.0), (1, 3.0))
    ]
    (at,) = layers(content(rows, [], ()))
    assert at.values == {"mean_norm": 2.0}


def test_a_gradient_of_weights_has_its_own_column():
    at = measured(layers(one()), "plain")[3]
    assert at.values["weight_gradient_norm"] == pytest.approx(2 * at.values["gradient_norm"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"), (1.0231, "1.02"), (128.0, "128"), (0.0, "0"), (123456.0, "1.2e5"), (3.14e-9, "3.1e-9"),
        (-0.5, "-0.500"),
        (math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf"), (None, ""), (999.6, "1000"), (0.9996, "1.00"),
        (45678.9, "45679"),
    ],
)  # fmt: skip
def test_numbers_are_written_short(value, text):
    assert number(value) == text
