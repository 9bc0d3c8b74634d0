"""Cures by a law of depth: shaped activations, scaled branches, centred weights, folded batch norm."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from normscope import UsageError
from normscope.findings.cures import rank_cures, treat
from normscope.nn import Shaped
from normscope.nn import growth as law

X = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
Y = torch.randint(10, (64,), generator=torch.Generator().manual_seed(1))


def net(depth: int, act: type[nn.Module], width: int = 64, **options: bool) -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for i in range(depth):
        parts += [nn.Linear(width if i else 32, width, bias=False), nn.BatchNorm1d(width, **options), act()]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def log_growth(model: nn.Module, x: Tensor = X) -> float:
    """Log of the gradient at the second layer's weight over that at the last hidden one's."""
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    slopes = torch.autograd.grad(nn.functional.cross_entropy(model(x), Y[: len(x)]), weights)
    return float(torch.log(slopes[1].norm() / slopes[-2].norm()))


@pytest.mark.parametrize(("name", "act"), [("tanh", nn.Tanh), ("relu", nn.ReLU), ("gelu", nn.GELU)])
def test_the_law_of_growth_is_what_wide_orthogonal_nets_do(name: str, act: type[nn.Module]) -> None:
    depth, width = 30, 200
    torch.manual_seed(3)
    x = torch.randn(200, 32)
    model = treat(net(depth, act, width), "delta-orthogonal", x).model
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    out = model(x)
    slopes = torch.autograd.grad(out, weights, torch.randn_like(out))
    measured = float(torch.log(slopes[1].norm() / slopes[-2].norm()))
    wanted = law.total_growth(name, [1.0] * (depth - 2))
    assert measured == pytest.approx(wanted, rel=0.12, abs=0.3)


def test_slopes_and_gains_keep_the_budget() -> None:
    for layers, slope in ((50, 0.592), (200, 0.776), (1000, 0.894)):
        assert law.leaky_slope(layers) == pytest.approx(slope, abs=5e-4)
        assert law.total_growth(f"leaky_relu({law.leaky_slope(layers)})", [1.0] * layers) == pytest.approx(1, rel=1e-6)
    assert law.leaky_slope(2, 5.0) == 0
    gains = law.shaped_gains("tanh", 1000)
    assert gains[0] == pytest.approx(2**-0.4)
    assert law.total_growth("tanh", gains) == pytest.approx(0.36, abs=0.01)
    for name in ("gelu", "silu", "softplus", "elu", "sin"):
        assert law.total_growth(name, law.shaped_gains(name, 300)) <= 1
    assert law.growth("identity") == 0
    with pytest.raises(UsageError, match="homogeneous"):
        law.shaped_gains("relu", 10)
    with pytest.raises(UsageError, match="budget"):
        law.leaky_slope(10, math.nan)


@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU])
def test_shaped_nets_do_not_explode(act: type[nn.Module]) -> None:
    plain = net(40, act)
    before = copy.deepcopy(plain.state_dict())
    assert log_growth(plain) > 2
    shaped = treat(plain, "shape", X)
    assert shaped.model is plain
    assert len(shaped.treated) == 40
    assert abs(log_growth(plain)) < 2
    changed = [k for k, v in plain.named_parameters() if not torch.equal(v, before[k])]
    assert changed == []
    if act is nn.Tanh:
        gains = law.shaped_gains("tanh", 40)
        assert [(m.gain, m.scale) for m in plain.modules() if isinstance(m, Shaped)] == [(g, 1 / g) for g in gains]
    else:
        slopes = {m.negative_slope for m in plain.modules() if isinstance(m, nn.LeakyReLU)}
        assert slopes == {law.leaky_slope(40)}


def test_one_activation_for_all_layers_is_replaced_once_and_counted_each_time() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(20))
            self.norms = nn.ModuleList(nn.BatchNorm1d(32) for _ in range(20))
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            for layer, norm in zip(self.layers, self.norms, strict=True):
                x = self.act(norm(layer(x)))
            return x

    found = treat(Shared(), "shape", X)
    assert found.treated == ("act",)
    assert found.model.get_submodule("act").negative_slope == law.leaky_slope(20)  # type: ignore[union-attr]
    smooth = Shared()
    smooth.act = nn.GELU()  # type: ignore[assignment]
    found = treat(smooth, "shape", X)  # its gains differ from layer to layer: the norms get them
    assert found.treated == tuple(f"norms.{i}" for i in range(20))
    assert [float(m.weight[0]) for m in smooth.norms] == pytest.approx(law.shaped_gains("gelu", 20))


def test_what_cannot_be_shaped_is_said() -> None:
    with pytest.raises(UsageError, match=r"an activation module behind a norm or a layer"):
        treat(nn.Sequential(nn.Linear(32, 8), nn.GELU(), nn.Linear(8, 10)), "shape", X)
    model = net(200, nn.SELU, 8)
    with pytest.raises(UsageError, match=r"step at 0"):
        treat(model, "shape", X)


def cosine(h: Tensor) -> float:
    """The mean over pairs of samples."""
    h = h / h.norm(dim=1, keepdim=True)
    return float((h @ h.T)[~torch.eye(len(h), dtype=torch.bool)].mean())


def test_without_a_norm_lengths_stay_and_samples_do_not_merge() -> None:
    torch.manual_seed(0)
    parts = [m for _ in range(60) for m in (nn.Linear(400, 400, bias=False), nn.ReLU())]
    model = nn.Sequential(*parts)
    for m in model[::2]:
        nn.init.kaiming_normal_(m.weight)
    x = torch.randn(12, 400)
    before = model(x)
    shaped = treat(model, "shape", x)
    after = shaped.model(x)
    slope = shaped.model[1].negative_slope  # type: ignore[index]
    assert slope == law.leaky_slope(60)
    assert len(shaped.treated) == 60
    assert cosine(before) > 0.95
    # cosines of the law, dc = (1 - a)^2 / (pi (1 + a^2)) (sqrt(1 - c^2) - c arccos c) a layer
    wanted = 0.0
    for _ in range(60):
        more = math.sqrt(1 - wanted**2) - wanted * math.acos(wanted)
        wanted += (1 - slope) ** 2 / (math.pi * (1 + slope**2)) * more
    assert cosine(after) == pytest.approx(wanted, abs=0.1)
    assert 0.5 < float(after.norm() / x.norm()) < 2


def test_behind_layer_norm_the_gains_fall_as_behind_batch_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(40) for m in (nn.Linear(32, 32), nn.LayerNorm(32), nn.Tanh())))
    treat(model, "shape", X)
    assert [m.gain for m in model[2::3]] == law.shaped_gains("tanh", 40)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


def test_branches_are_scaled_by_one_over_the_root_of_their_number() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(9)), nn.Linear(32, 10))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = treat(model, "branch-scale", X)
    assert found.treated == tuple(f"{i}.down" for i in range(9))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name] / 3 if ".down." in name else before[name])


def test_centred_rows_keep_their_length() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10), nn.Linear(10, 1))
    lengths = [m.weight.flatten(1).norm(dim=1).clone() for m in model if hasattr(m, "weight")]
    treat(model, "weight-centering", torch.randn(4, 3, 8, 8))
    for m, was in zip([m for m in model if hasattr(m, "weight")], lengths, strict=True):
        assert m.weight.flatten(1).mean(1).abs().max() < 1e-7
        torch.testing.assert_close(m.weight.flatten(1).norm(dim=1), was)


@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_batch_norm_changes_nothing_on_its_batch(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10, bias=bias),
        nn.BatchNorm1d(10, affine=False), nn.Tanh(),
    )  # fmt: skip
    nn.init.uniform_(model[1].weight)  # type: ignore[arg-type]
    x = 3 + torch.randn(16, 3, 8, 8)
    wanted = copy.deepcopy(model)(x)
    found = treat(model, "fold-batch-norm", x)
    assert found.treated == ("1", "5")
    torch.testing.assert_close(model(x), wanted, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(model(x[:1]), wanted[:1], atol=2e-5, rtol=1e-4)  # samples no longer see each other


def test_auto_shapes_a_deep_tanh_net_with_batch_norm() -> None:
    model = net(40, nn.Tanh, 32)
    ranked = rank_cures(model, X, Y, candidates=("none", "he", "shape"), curvature=False)
    assert "shape" in ranked[0].name


def test_a_row_that_centring_would_take_away_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        model[2].weight[0] = 0.5  # type: ignore[operator]
    before = [m.weight.clone() for m in (model[0], model[2])]
    treat(model, "weight-centering", torch.randn(8, 1))
    torch.testing.assert_close(model[0].weight, before[0])  # type: ignore[arg-type]
    torch.testing.assert_close(model[2].weight[0], before[1][0])  # type: ignore[operator, index]
    torch.testing.assert_close(model[2].weight.norm(dim=1), before[1].norm(dim=1))  # type: ignore[operator]


def test_a_norm_over_another_axis_than_the_layers_is_not_folded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4))
    x = torch.randn(16, 6, 6)  # the first norm's channels are the places, the layer's features the last axis
    wanted = copy.deepcopy(model)(x)
    found = treat(model, "fold-batch-norm", x)
    assert found.treated == ("4",)
    assert "channel by channel" in found.left_alone["1"]
    torch.testing.assert_close(model(x), wanted, atol=2e-5, rtol=1e-4)


def test_nothing_is_folded_by_statistics_that_are_no_numbers() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(8, 4)
    x[0, 0] = math.nan
    with pytest.raises(UsageError, match="finite; what '1' gets"):
        treat(model, "fold-batch-norm", x)
    assert isinstance(model[1], nn.BatchNorm1d)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU])
def test_a_frozen_norm_is_left_alone(act: type[nn.Module]) -> None:
    model = net(3, act)
    for p in model[1].parameters():
        p.requires_grad_(False)
    found = treat(model, "shape", X)
    assert found.treated == ("5", "8")
    assert "frozen" in found.left_alone["1"]
    assert bool((model[1].weight == 1).all())  # type: ignore[union-attr]
    assert type(model[2]) is act


def test_a_tanh_net_without_norms_keeps_lengths_and_bends_less() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(40) for m in (nn.Linear(200, 200, bias=False), nn.Tanh())))
    x = torch.randn(64, 200)
    treat(model, "lsuv+shape", x)
    assert sum(isinstance(m, Shaped) for m in model) == 40
    assert 0.5 < float(model(x).norm() / treat(copy.deepcopy(model), "lsuv", x).model(x).norm()) < 2


def test_a_step_on_a_norm_weighs_as_much_as_before() -> None:
    def pull(how: str) -> float:
        model = treat(net(40, nn.GELU), how, X).model
        nn.functional.cross_entropy(model(X), Y).backward()
        return max(float(m.bias.grad.norm()) for m in model.modules() if isinstance(m, nn.BatchNorm1d))

    # by the norms' weights the shift of the last layers, whose gain is least, would pull 1/g = 41 times as hard
    assert pull("delta-orthogonal+shape") < 3 * pull("delta-orthogonal")


def test_what_shape_made_is_loaded_into_a_net_that_is_shaped_too() -> None:
    model, other = treat(net(6, nn.Tanh), "shape", X).model, net(6, nn.Tanh)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(other(X), model(X), atol=1e-3)
    treat(other, "shape", X)
    torch.testing.assert_close(other(X), model(X))
