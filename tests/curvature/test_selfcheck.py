"""The self-check tells right from wrong, and the two commands answer."""

from __future__ import annotations

import json

import pytest
import torch

from normscope import curvature
from normscope.cli import main
from normscope.core.errors import UsageError
from normscope.curvature import _selfcheck


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_relied_on_is_exact(dtype: torch.dtype) -> None:
    checks = curvature.selfcheck(dtype=dtype)
    relied = [c for c in checks if c.relied_on]
    assert len(relied) >= 13
    assert {c.status for c in relied} == {"exact"}, [c for c in relied if c.status != "exact"]


def test_a_wrong_composition_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    off = lambda z, g, b: 1.01 * _selfcheck._plain_layer_norm(z, g, b)  # noqa: E731
    monkeypatch.setitem(_selfcheck.LAYERS, "layer norm", (off, _selfcheck._plain_layer_norm, True))
    found = {c.status for c in curvature.selfcheck(dtype=torch.float64) if c.layer == "layer norm"}
    assert found == {"WRONG"}


def test_half_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="float32 or float64"):
        curvature.selfcheck(dtype=torch.bfloat16)


def run(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = 0
    try:
        main(args)
    except SystemExit as end:
        code = int(end.code or 0)
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_selfcheck_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["selfcheck", "--json"], capsys)
    assert code == 0
    assert json.loads(out)["trusted"] is True
    code, out, _ = run(["selfcheck"], capsys)
    assert "Everything that normscope relies on is exact here" in out


def test_the_sharpness_command(capsys: pytest.CaptureFixture[str]) -> None:
    net = "mlp:depth=3,width=32,norm=batch"
    code, out, _ = run(["sharpness", net, "--json"], capsys)
    assert code == 0
    found = json.loads(out)
    assert found["max_stable_lr"] == pytest.approx(2 / found["lambda_max"])
    assert found["facts"]["mode"] == "train"
    assert found["facts"]["batch_size"] == 128
    code, out, _ = run(["sharpness", net, "--lr", str(1.1 * found["max_stable_lr"])], capsys)
    assert code == 1
    assert "above the threshold" in out
    code, out, _ = run(
        ["sharpness", net, "--lr", str(1.1 * found["max_stable_lr"]), "--optimiser", "heavy-ball"], capsys
    )
    assert code == 0
    assert "train mode, batch 128, float32" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--lr", "-1"], "positive"),
        (["--optimiser", "adam"], "heavy-ball"),
        (["--loss", "msee"], "msee"),
        (["--mode", "test"], "no mode 'test'"),
    ],
)
def test_misuse_is_exit_code_two(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["sharpness", "mlp:depth=2,width=8", *args], capsys)
    assert code == 2
    assert message in err
