"""More set-ups that are broken in one way, each beside its mended twin: pairs, masks, shared norms, lost sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_checkup_healthy import N, images, mlp, setup, tokens
from torch import Tensor, nn

from normscope import diagnose

Setup = dict[str, Any]
KINDS: dict[str, tuple[Callable[[bool], Setup], str, str]] = {}


def kind(code: str, module: str = "") -> Callable[[Callable[[bool], Setup]], Callable[[bool], Setup]]:
    def add(make: Callable[[bool], Setup]) -> Callable[[bool], Setup]:
        KINDS[make.__name__] = (make, code, module)
        return make

    return add


class Distance(nn.Module):
    def __init__(self, both: bool) -> None:
        super().__init__()
        self.encoder, self.both = mlp(12, 32, 8), both

    def forward(self, x: Tensor) -> Any:
        one, other = self.encoder(x[:, 0]), self.encoder(x[:, 1])
        return (one, other) if self.both else (one - other).square().sum(1)


def couples(broken: bool, both: bool) -> Setup:
    centres = 2 * torch.randn(6, 12)
    of = torch.randint(6, (448, 2))
    of[::2, 1] = of[::2, 0]
    same = (of[:, 0] == of[:, 1]).float()

    def loss(out: Any, y: Tensor) -> Tensor:
        d = (out[0] - out[1]).square().sum(1) if both else out
        y = 1 - y if broken else y
        return (y * d + (1 - y) * F.relu(4 - d)).mean()

    return setup(Distance(both), centres[of] + 0.3 * torch.randn(448, 2, 12), same, loss)


@kind("NS705")
def distances_of_swapped_labels(broken: bool) -> Setup:
    return couples(broken, False)


@kind("NS705")
def embeddings_of_swapped_labels(broken: bool) -> Setup:
    return couples(broken, True)


@kind("NS120", "2")
def classes_on_the_wrong_axis(broken: bool) -> Setup:
    x = tokens(40, 6)
    loss = nn.CrossEntropyLoss() if broken else lambda o, t: F.cross_entropy(o.transpose(1, 2), t)
    return setup(nn.Sequential(nn.Embedding(40, 16), nn.ReLU(), nn.Linear(16, 6)), x, x % 6, loss)


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(41, 16), nn.GRU(16, 16, batch_first=True, bidirectional=True)
        self.out = nn.Linear(32, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(x))[0])


@kind("NS712")
def the_mask_of_the_labels_inverted(broken: bool) -> Setup:
    x = tokens(40, 12)
    hidden = torch.rand(x.shape) < 0.2
    wanted = torch.where(hidden != broken, x, -100)
    loss = lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten())  # noqa: E731
    return setup(Reads(), torch.where(hidden, 40, x), wanted, loss)


class LastStep(nn.Module):
    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.rnn, self.head, self.broken = nn.GRU(4, 16, batch_first=True), nn.Linear(16, 3), broken

    def forward(self, x: Tensor) -> Tensor:
        out = self.rnn(x)[0]
        return self.head(out[-1] if self.broken else out[:, -1])


@kind("NS111")
def the_last_step_of_the_wrong_axis(broken: bool) -> Setup:
    x = torch.randn(7 * 64, 64, 4)
    return setup(LastStep(broken), x, (x.mean((1, 2)) > 0).long(), nn.CrossEntropyLoss())


class Sensors(nn.Module):
    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.second = self.norm if shared else nn.BatchNorm1d(6)
        self.body = mlp(12, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.cat([self.norm(x[:, 0]), self.second(x[:, 1])], 1))


@kind("NS507", "norm")
def one_norm_for_two_sensors(broken: bool) -> Setup:
    x = torch.randn(448, 2, 6)
    t = (x[:, 0, 0] + x[:, 1, 1] > 0).long()
    return setup(Sensors(broken), x * torch.tensor([0.5, 4.0])[:, None] + torch.tensor([0.0, 9.0])[:, None], t,
                 nn.CrossEntropyLoss())  # fmt: skip


@kind("NS815", "0")
def loudness_behind_an_instance_norm(broken: bool) -> Setup:
    loud = 0.3 + 1.6 * torch.rand(448, 1, 1)
    x = loud * torch.sin(torch.arange(32) * (0.3 + 0.4 * torch.rand(448, 1, 1)) + 6.28 * torch.rand(448, 1, 1))
    body = [nn.Conv1d(1, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 1)]
    model = nn.Sequential(nn.InstanceNorm1d(1) if broken else nn.Identity(), *body)
    return setup(model, x, loud.flatten(1) - 1.1, nn.MSELoss())


class Anew(nn.Module):
    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.broken, self.proj, self.head = broken, nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.broken:
            self.proj = nn.Linear(12, 16)
        return self.head(self.proj(x).relu())


@kind("NS603", "proj")
def a_layer_made_in_forward(broken: bool) -> Setup:
    x = torch.randn(448, 12)
    return setup(Anew(broken), x, (x[:, 0] > 0).long(), nn.CrossEntropyLoss())


class Heads(nn.Module):
    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.broken, self.qkv, self.out = broken, nn.Linear(12, 36), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v)
        return self.out((h if self.broken else h.transpose(1, 2)).reshape(n, t, d)).mean(1)


@kind("NS119")
def heads_merged_without_a_transpose(broken: bool) -> Setup:
    x = torch.randn(448, 7, 12)
    return setup(Heads(broken), x, (x[:, 0, 0] > 0).long(), nn.CrossEntropyLoss())


class Taught(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student = mlp(12, 32, 3)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)


@kind("NS617", "student")
def an_average_into_the_student(broken: bool) -> Setup:
    model = Taught()

    def step(m: Taught, optimizer: torch.optim.Optimizer, loss: Any, x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        value = loss(m(x), y) + F.mse_loss(m.student(x), m.teacher(x))
        value.backward()
        optimizer.step()
        one, other = (m.student, m.teacher) if broken else (m.teacher, m.student)
        with torch.no_grad():
            for a, b in zip(one.parameters(), other.parameters(), strict=True):
                a.lerp_(b, 0.05)
        return value

    x = torch.randn(448, 12)
    optimizer = torch.optim.Adam(model.student.parameters(), 1e-3)
    return setup(model, x, (x[:, 0] > 0).long(), nn.CrossEntropyLoss(), optimizer, train_step=step)


def plain(loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


@kind("NS611")
def accumulation_that_is_never_cleared(broken: bool) -> Setup:
    seen = [0]

    def step(m: nn.Module, optimizer: torch.optim.Optimizer, loss: Any, x: Tensor, y: Tensor) -> Tensor:
        value = loss(m(x), y)
        (value / 2).backward()
        seen[0] += 1
        if seen[0] % 2 == 0:
            optimizer.step()
            if not broken:
                optimizer.zero_grad()
        return value

    x = torch.randn(448, 12)
    return setup(mlp(12, 32, 3), x, (x[:, 0] > 0).long(), nn.CrossEntropyLoss(), train_step=step)


@kind("NS622")
def weights_clipped_as_a_critics(broken: bool) -> Setup:
    def step(m: nn.Module, optimizer: torch.optim.Optimizer, loss: Any, x: Tensor, y: Tensor) -> Tensor:
        value = plain(loss(m(x), y), optimizer)
        for p in m.parameters() if broken else ():
            p.data.clamp_(-0.01, 0.01)
        return value

    x = torch.randn(448, 12)
    return setup(mlp(12, 32, 3), x, (x[:, 0] > 0).long(), nn.CrossEntropyLoss(), train_step=step)


@kind("NS407", "0")
def rates_that_fall_with_depth(broken: bool) -> Setup:
    model, x = mlp(12, 32, 32, 32, 3), torch.randn(448, 12)
    layers = [m for m in model if isinstance(m, nn.Linear)]
    rates = [0.5, 0.1, 0.03, 0.01]
    groups = [
        {"params": m.parameters(), "lr": r} for m, r in zip(layers, rates if broken else rates[::-1], strict=True)
    ]
    return setup(model, x, (x[:, 0] > 0).long(), nn.CrossEntropyLoss(), torch.optim.SGD(groups, 0.1))


class Denoiser(nn.Module):
    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.net, self.twice = mlp(12, 64, 12), twice

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn_like(x)
        seen = torch.randn_like(x) if self.twice else noise
        return torch.stack([self.net(0.8 * x + 0.6 * seen), noise], 1)


@kind("NS720")
def noise_that_is_drawn_twice(broken: bool) -> Setup:
    return setup(Denoiser(broken), torch.randn(448, 12), torch.zeros(448), lambda o, _: F.mse_loss(o[:, 0], o[:, 1]))


@kind("NS720")
def noise_that_the_loop_draws_twice(broken: bool) -> Setup:
    def step(m: nn.Module, optimizer: torch.optim.Optimizer, _: Any, x: Tensor, __: Tensor) -> Tensor:
        noise = torch.randn_like(x)
        seen = torch.randn_like(x) if broken else noise
        return plain((m(0.8 * x + 0.6 * seen) - noise).square().mean(), optimizer)

    x = torch.randn(448, 12)
    return setup(mlp(12, 64, 12), x, x, nn.MSELoss(), train_step=step)


@kind("NS719")
def a_done_flag_behind_one_hot_states(broken: bool) -> Setup:
    state = torch.randint(8, (448,))
    done = (state == 7).float()
    y = torch.cat([torch.randint(2, (448, 1)).float(), done[:, None], F.one_hot(state, 8), done[:, None]], 1)

    def loss(o: Tensor, y: Tensor) -> Tensor:
        to_come = 0.9 * y[:, 2:-1] @ torch.arange(8.0) * (1 if broken else 1 - y[:, -1])
        return F.mse_loss(o.gather(1, y[:, :1].long())[:, 0], y[:, 1] + to_come / 4)

    return setup(mlp(12, 32, 2), torch.randn(448, 12), y, loss)


class Pairs(nn.Module):
    def __init__(self, small: bool) -> None:
        super().__init__()
        self.one, self.other, self.small = mlp(12, 32, 8), mlp(12, 32, 8), small

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.normalize(self.one(x[:, 0]), dim=1), F.normalize(self.other(x[:, 1]), dim=1)
        return a @ b.T * 0.07 if self.small else a @ b.T / 0.07


@kind("NS716")
def similarities_times_the_temperature(broken: bool) -> Setup:
    x = torch.randn(448, 1, 12) + 0.3 * torch.randn(448, 2, 12)
    return setup(Pairs(broken), x, torch.arange(448), lambda o, _: F.cross_entropy(o, torch.arange(len(o))))


@kind("NS816")
def colours_that_are_viewed_into_place(broken: bool) -> Setup:
    x, y = images()
    x = x.permute(0, 2, 3, 1).contiguous().view_as(x) if broken else x
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 10))
    return setup(net, x, y, nn.CrossEntropyLoss())


class Each(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = mlp(12, 32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.encoder(x), dim=-1)


@kind("NS705")
def triplets_the_wrong_way_round(broken: bool) -> Setup:
    of = torch.randint(6, (448, 1)).repeat(1, 3)
    of[:, 2] = (of[:, 2] + torch.randint(1, 6, (448,))) % 6

    def loss(out: Tensor, _: Tensor) -> Tensor:
        near, far = ((out[:, 0] - out[:, k]).square().sum(1) for k in (1, 2))
        return F.relu((far - near if broken else near - far) + 0.5).mean()

    return setup(Each(), torch.randn(6, 12)[of] + 0.8 * torch.randn(448, 3, 12), torch.zeros(448), loss)


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8))
        self.head = mlp(8, 16, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.encoder(x[:, 0])), self.encoder(x[:, 1])


@kind("NS427")
def two_views_without_a_stop_gradient(broken: bool) -> Setup:
    x = torch.randn(448, 1, 12) + 0.3 * torch.randn(448, 2, 12)

    def loss(out: tuple[Tensor, Tensor], _: Tensor) -> Tensor:
        return -F.cosine_similarity(out[0], out[1] if broken else out[1].detach()).mean()

    return setup(Views(), x, torch.zeros(448), loss)


def bootstrapped(follows: bool) -> Setup:
    """Q-learning with a target network that may never be synchronised."""
    model, x = mlp(12, 32, 3), torch.randn(448, 12)
    target = copy.deepcopy(model)

    def step(m: nn.Module, optimizer: torch.optim.Optimizer, _: Any, x: Tensor, r: Tensor) -> Tensor:
        with torch.no_grad():
            goal = r + 0.9 * target(x.roll(1, 0)).max(1).values
        value = plain(F.mse_loss(m(x)[:, 0], goal), optimizer)
        for t, p in zip(target.parameters(), m.parameters(), strict=True) if follows else ():
            t.data.lerp_(p.data, 0.05)
        return value

    return setup(model, x, x[:, 0], lambda o, r: F.mse_loss(o[:, 0], r), train_step=step) | {"trial": 10}


@pytest.mark.parametrize("again", [True, False])
def test_weights_that_are_set_anew_are_said(again: bool) -> None:
    torch.manual_seed(0)
    model, x, seen = mlp(12, 32, 3), torch.randn(448, 12), [0]

    def step(m: nn.Module, optimizer: torch.optim.Optimizer, loss: Any, x: Tensor, y: Tensor) -> Tensor:
        if again and seen[0] % 15 == 0:
            for layer in (m[0], m[2]):  # type: ignore[index]
                layer.reset_parameters()
        seen[0] += 1
        return plain(loss(m(x), y), optimizer)

    given = setup(model, x, (x[:, 0] > 0).long(), nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.2))
    found = diagnose(**given, train_step=step, trial=40).findings
    assert ("NS617" in {f.code for f in found}) is again


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.gru, self.out = nn.Embedding(12, 16), nn.GRU(16, 32, batch_first=True), nn.Linear(32, 12)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        _, state = self.gru(self.emb(x))
        y = torch.ones_like(x[:, :4]) if y is None else y
        return self.out(self.gru(self.emb(y), state)[0])


def taught(m: nn.Module, optimizer: torch.optim.Optimizer, loss: Any, x: Tensor, y: Tensor) -> Tensor:
    out = m(x, torch.cat([torch.ones_like(y[:, :1]), y[:, :-1]], 1))
    return plain(loss(out.reshape(-1, 12), y.reshape(-1)), optimizer)


def test_a_loss_that_only_the_loop_can_compute_is_had_from_it() -> None:
    torch.manual_seed(0)
    x = torch.randint(2, 12, (448, 6))
    given = setup(Decoder(), x, x.flip(1)[:, :4], nn.CrossEntropyLoss(), train_step=taught)
    found = diagnose(**given, trial=10)
    assert found.facts["checkup"]["trial"]["own"]["end"] < 2.6
    assert not [f for f in found.findings if f.severity != "info"]
    assert any("train_step calls backward on" in note for note in found.facts["notes"])


def test_such_a_loop_leaves_its_optimizer_and_schedule_alone() -> None:
    torch.manual_seed(0)
    model, x = Decoder(), torch.randint(2, 12, (448, 6))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def step(*given: Any) -> Tensor:
        value = taught(*given)
        optimizer.param_groups[0]["weight_decay"] = 0.3
        schedule.step()
        return value

    diagnose(**setup(model, x, x.flip(1)[:, :4], nn.CrossEntropyLoss(), optimizer, train_step=step), trial=5)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], schedule.last_epoch, len(optimizer.state)) == (1e-2, 0, 0, 0)


def test_what_the_loop_holds_beside_the_model_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model, x = mlp(12, 32, 3), torch.randn(448, 12)
    average = copy.deepcopy(model)

    def step(m: nn.Module, optimizer: torch.optim.Optimizer, loss: Any, x: Tensor, y: Tensor) -> Tensor:
        value = plain(loss(m(x), y), optimizer)
        for a, p in zip(average.parameters(), m.parameters(), strict=True):
            a.data.lerp_(p.data, 0.1)
        return value

    before = [p.detach().clone() for p in average.parameters()]
    diagnose(**setup(model, x, (x[:, 0] > 0).long(), nn.CrossEntropyLoss()), train_step=step, trial=5)
    assert all(map(torch.equal, before, average.parameters()))


def test_a_rate_that_holds_the_loss_at_chance_is_too_large() -> None:
    torch.manual_seed(0)
    model, x = mlp(12, 64, 64, 64, 3, act=nn.Tanh), torch.randn(448, 12)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    found = diagnose(**setup(model, x, y, nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), 1.0)), trial=50)
    assert any("rate is too large" in f.evidence for f in found.findings if f.severity != "info")


def grouped(groups: int, depth: int, width: int = 64) -> Setup:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(width if i else 12, width), nn.GroupNorm(groups, width), nn.ReLU()]
    x = torch.randn(448, 12)
    return setup(nn.Sequential(*layers, nn.Linear(width, 3)), x, x[:, :3].argmax(1), nn.CrossEntropyLoss())


@kind("NS126", "1")
def groups_of_four_in_eight_layers(broken: bool) -> Setup:
    return grouped(16 if broken else 2, 10)


@kind("NS126", "7")
def groups_of_two_where_the_map_is_one_pixel(broken: bool) -> Setup:
    first = [
        nn.Conv2d(3, 32, 3, 2, 1),
        nn.GroupNorm(8, 32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.GroupNorm(32, 64),
    ]
    last = [nn.ReLU(), nn.Conv2d(64, 64, 2), nn.GroupNorm(32 if broken else 8, 64), nn.ReLU(), nn.Flatten()]
    x = torch.randn(448, 3, 8, 8)
    y = (x.mean((2, 3))).argmax(1)
    return setup(nn.Sequential(*first, *last, nn.Linear(64, 3)), x, y, nn.CrossEntropyLoss())


class Dynamic(nn.Module):
    """DyT as published, by another name."""

    def __init__(self, width: int, alpha: float) -> None:
        super().__init__()
        self.alpha, self.weight = nn.Parameter(torch.ones(1) * alpha), nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.alpha * x) * self.weight + self.bias


def curved(alphas: list[float]) -> Setup:
    layers: list[nn.Module] = [nn.Linear(12, 64)]
    for alpha in alphas:
        layers += [Dynamic(64, alpha), nn.GELU(), nn.Linear(64, 64)]
    for m in layers:
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, 0, m.in_features**-0.5)
    x = torch.randn(448, 12)
    return setup(nn.Sequential(*layers, nn.Linear(64, 3)), x, x[:, :3].argmax(1), nn.CrossEntropyLoss())


@kind("NS508")
def alphas_that_lose_the_signal(broken: bool) -> Setup:
    return curved([0.5] * 6 if broken else [1.0, 2.5, 2.5, 2.5, 2.5, 2.5])


@kind("NS508", "1")
def alphas_that_leave_a_sign(broken: bool) -> Setup:
    return curved([60.0] * 4 if broken else [1.0, 2.5, 2.5, 2.5])


class Experts(nn.Module):
    def __init__(self, one: bool) -> None:
        super().__init__()
        self.gate = mlp(12, 16, 4)
        experts = [mlp(12, 16, 3)] * 4 if one else [mlp(12, 16, 3) for _ in range(4)]
        self.experts = nn.ModuleList(experts)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate(x).softmax(1)
        return (shares[:, :, None] * torch.stack([e(x) for e in self.experts], 1)).sum(1)


@kind("NS127", "experts.0")
def experts_that_are_one(broken: bool) -> Setup:
    x = torch.randn(448, 12)
    return setup(Experts(broken), x, x[:, :3].argmax(1), nn.CrossEntropyLoss())


class Writer(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 16), nn.Embedding(N, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=batch_first)
        self.encoder, self.out = nn.TransformerEncoder(layer, 1), nn.Linear(16, 20)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        h = self.encoder(self.words(x) + self.places.weight[: x.shape[1]], mask=mask)
        return self.out(h).transpose(1, 2)


@kind("NS111", "encoder")
def as_many_samples_as_places(broken: bool) -> Setup:
    text = tokens(20, N + 1)
    return setup(Writer(not broken), text[:, :-1], text[:, 1:], nn.CrossEntropyLoss())


@kind("NS122")
def one_view_read_twice(broken: bool) -> Setup:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(24, 32, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(torch.cat([x[:, 0].cos(), x[:, 0 if broken else 1]], 1))

    x = torch.randn(448, 2, 12)
    return setup(Pair(), x, (x[:, 0, 0] > x[:, 1, 0]).long(), nn.CrossEntropyLoss())


class Causal(nn.Module):
    def __init__(self, place: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(20, 16), place
        self.block = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        self.out = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.out(self.block(self.embed(x), src_mask=mask)[:, self.place])


@kind("NS122")
def the_first_place_behind_a_causal_mask(broken: bool) -> Setup:
    x = tokens(20, 8)
    return setup(Causal(0 if broken else -1), x, x[:, -1] % 2, nn.CrossEntropyLoss())


class Itself(nn.Module):
    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.inp, self.out, self.broken = nn.Linear(12, 16), nn.Linear(16, 3), broken
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        for block in self.blocks:
            new = block(h)
            h = new + (new if self.broken else h)
        return self.out(h)


@kind("NS121", "blocks.0")
def a_block_added_to_itself(broken: bool) -> Setup:
    x = torch.randn(448, 12)
    return setup(Itself(broken), x, x[:, :3].argmax(1), nn.CrossEntropyLoss())


@kind("NS711")
def labels_one_too_low(broken: bool) -> Setup:
    x = torch.randn(448, 12)
    y = x[:, :3].argmax(1)
    return setup(mlp(12, 32, 3), x, y - 1 if broken else y, nn.CrossEntropyLoss(ignore_index=-1))


@kind("NS813")
def targets_in_other_units(broken: bool) -> Setup:
    x = torch.randn(448, 12)
    y = x[:, :1] + 0.3 * torch.randn(448, 1)
    if broken:
        y[5:448:150] *= 1000.0 * torch.arange(1, 4)[: len(y[5:448:150]), None]
    return setup(mlp(12, 32, 1), x, y, nn.MSELoss())


@kind("NS806")
def pixels_divided_as_integers(broken: bool) -> Setup:
    x = torch.randint(0, 255, (448, 16))
    x[:, 0] = torch.where(torch.rand(448) < 0.1, 255, x[:, 0])
    y = (x[:, 1] > 128).long()
    return setup(mlp(16, 32, 2), (x // 255).float() if broken else x / 255, y, nn.CrossEntropyLoss())


@kind("NS407")
def a_momentum_over_a_thousand_steps(broken: bool) -> Setup:
    model, x = mlp(12, 32, 3), torch.randn(448, 12)
    optimizer = torch.optim.SGD(model.parameters(), 0.001, momentum=0.999 if broken else 0.9)
    return setup(model, x, x[:, :3].argmax(1), nn.CrossEntropyLoss(), optimizer)


@kind("NS404")
def a_decay_that_takes_the_weights(broken: bool) -> Setup:
    model, x = mlp(12, 32, 3), torch.randn(448, 12)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=10 if broken else 0.01)
    return setup(model, x, x[:, :3].argmax(1), nn.CrossEntropyLoss(), optimizer)


@kind("NS714")
def boxes_in_pixels_beside_classes(broken: bool) -> Setup:
    x = torch.randn(448, 12)
    t = torch.cat([x[:, :2] * (640 if broken else 1), x[:, 2:5].argmax(1)[:, None].float()], 1)
    return setup(
        mlp(12, 32, 5), x, t, lambda o, t: F.mse_loss(o[:, :2], t[:, :2]) + F.cross_entropy(o[:, 2:], t[:, 2].long())
    )


class Points(nn.Module):
    def __init__(self, axis: int, conv: bool) -> None:
        super().__init__()
        self.each = nn.Conv1d(3, 24, 1) if conv else nn.Linear(3, 24)
        self.norm = nn.BatchNorm1d(24) if conv else nn.LayerNorm(24)
        self.axis, self.out = axis, nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.each(x)))
        return self.out(h.amax(self.axis))


@kind("NS128", "out")
def the_largest_of_the_channels(broken: bool) -> Setup:
    x = torch.randn(448, 3, 24)
    return setup(Points(1 if broken else 2, True), x, (x.amax((1, 2)) > 2.8).long(), nn.CrossEntropyLoss())


@kind("NS128", "out")
def the_largest_of_the_features(broken: bool) -> Setup:
    x = torch.randn(448, 24, 3)
    return setup(Points(2 if broken else 1, False), x, (x.amax((1, 2)) > 2.8).long(), nn.CrossEntropyLoss())


class Gated(nn.Module):
    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.gate, self.out, self.broken = mlp(12, 16, 16, 16), nn.Linear(12, 3), broken
        self.back = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        h = self.gate(x)
        return self.out(x * self.back(h.round() if self.broken else h))


def test_a_function_of_steps_is_named_where_no_gradient_comes_back() -> None:
    torch.manual_seed(0)
    x = torch.randn(448, 12)
    given = setup(Gated(True), x, x[:, :3].argmax(1), nn.CrossEntropyLoss())
    told = {f.code: f.evidence for f in diagnose(**given, trial=False).findings}
    assert "round in" in told["NS609"] or "round has the slope 0" in told["NS609"]


@kind("NS124", "0")
def two_units_for_ten_classes(broken: bool) -> Setup:
    x = torch.randn(448, 12)
    return setup(mlp(12, 2 if broken else 32, 10), x, x[:, :10].argmax(1), nn.CrossEntropyLoss())


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("broken", [True, False])
def test_a_kind_is_named_and_its_twin_is_quiet(name: str, broken: bool) -> None:
    make, code, module = KINDS[name]
    torch.manual_seed(3)
    found = diagnose(**make(broken), trial=False).findings
    if broken:
        hits = [f for f in found[:3] if f.code == code and f.severity != "info"]
        assert hits, [(f.code, f.evidence) for f in found]
        assert hits[0].name.startswith(module)
    else:
        assert not [f for f in found if f.severity != "info"]


SPELLED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squeezed": lambda o, y: F.binary_cross_entropy_with_logits(o.squeeze(1), y),
    "flat": lambda o, y: F.binary_cross_entropy_with_logits(o.view(-1), y),
    "made real": lambda o, y: F.binary_cross_entropy_with_logits(o[:, 0], y.float()),
}


@pytest.mark.parametrize("spelling", SPELLED)
@pytest.mark.parametrize("broken", [True, False])
def test_a_loss_that_brings_targets_and_outputs_to_one_shape_is_read_as_one_that_has_them(
    spelling: str, broken: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(448, 12)
    y = (x[:, 0] > 0).long() if spelling == "made real" else (x[:, 0] > 0).float()
    model = nn.Sequential(mlp(12, 32, 1), nn.Sigmoid()) if broken else mlp(12, 32, 1)
    found = {f.code for f in diagnose(**setup(model, x, y, SPELLED[spelling]), trial=False).findings}
    assert ("NS701" in found) == broken


def test_a_loss_that_does_not_still_broadcasts() -> None:
    torch.manual_seed(0)
    x = torch.randn(448, 12)
    found = diagnose(**setup(mlp(12, 32, 1), x, x[:, 0], lambda o, y: (o - y).square().mean()), trial=False)
    assert "NS703" in {f.code for f in found.findings}


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.back = mlp(16, 32, 8), mlp(4, 32, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log = self.into(x).chunk(2, 1)
        return self.back(mean + torch.randn_like(mean) * (0.5 * log).exp()), mean, log


@pytest.mark.parametrize("weight", [20.0, 0.01])
def test_a_divergence_that_leaves_nothing_of_the_targets_is_named(weight: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(448, 3) @ torch.randn(3, 16)

    def loss(out: Any, y: Tensor) -> Tensor:
        back, mean, log = out
        return F.mse_loss(back, y) + weight * (mean.square() + log.exp() - 1 - log).sum(1).mean() / 2

    given = setup(Autoencoder(), x, x, loss, valid=None)
    hits = [f for f in diagnose(**given, trial=40).findings if f.code == "NS714" and "likeness" in f.metric]
    assert len(hits) == (weight > 1)


class Agent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = mlp(6, 32, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.q(batch["state"]).gather(1, batch["action"][:, None]).squeeze(1)


def test_what_the_loop_reads_of_a_batch_by_name_is_no_unread_input() -> None:
    torch.manual_seed(0)
    n = 64
    batch = {"state": torch.randn(n, 6), "action": torch.randint(3, (n,)), "reward": torch.rand(n)}

    def step(m: Agent, optimizer: torch.optim.Optimizer, loss: Any, b: dict[str, Tensor], _: Tensor) -> Tensor:
        optimizer.zero_grad()
        value = loss(m(b), b["reward"] + 0.9 * m.q(b["state"]).amax(1).detach())
        value.backward()
        optimizer.step()
        return value

    model = Agent()
    found = diagnose(
        model, batch, batch["reward"], nn.SmoothL1Loss(), optimizer=torch.optim.Adam(model.parameters(), 3e-3),
        train_step=step, trial=30,
    )  # fmt: skip
    assert not {"NS122", "NS423", "NS424"} & {f.code for f in found.findings if f.severity != "info"}


def test_a_margin_of_angles_has_no_answer_that_needs_no_inputs() -> None:
    torch.manual_seed(0)

    class Cosines(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.classes = mlp(12, 32, 8), nn.Parameter(torch.randn(4, 8))

        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(self.body(x), dim=1) @ F.normalize(self.classes, dim=1).T

    def arc(o: Tensor, y: Tensor) -> Tensor:
        angle = o.clamp(-1 + 1e-6, 1 - 1e-6).acos()
        return F.cross_entropy(32 * torch.where(F.one_hot(y, 4).bool(), (angle + 0.4).cos(), o), y)

    x = torch.randn(448, 12)
    found = diagnose(**setup(Cosines(), x, (2 * (x[:, 0] > 0) + (x[:, 1] > 0)).long(), arc), trial=30)
    assert not {"NS421", "NS713"} & {f.code for f in found.findings if f.severity != "info"}


class Graph(nn.Module):
    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.register_buffer("a", a)
        self.one, self.two = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a @ self.two((self.a @ self.one(x)).relu())


def test_the_nodes_of_a_graph_are_one_batch_again_and_again() -> None:
    torch.manual_seed(0)
    x, t = torch.randn(64, 12), torch.randint(3, (64,))
    given = {"optimizer": torch.optim.Adam(Graph(torch.eye(64)).parameters()), "data": [(x, t)] * 8, "trial": False}
    model = Graph(torch.eye(64))
    given["optimizer"] = torch.optim.Adam(model.parameters())
    assert "NS806" not in {f.code for f in diagnose(model, x, t, nn.CrossEntropyLoss(), **given).findings}
    plain = mlp(12, 16, 3)
    given["optimizer"] = torch.optim.Adam(plain.parameters())
    assert "NS806" in {f.code for f in diagnose(plain, x, t, nn.CrossEntropyLoss(), **given).findings}


def test_rows_of_equal_sums_are_no_repetition() -> None:
    torch.manual_seed(0)
    x = torch.zeros(448, 60).scatter_(1, torch.randint(60, (448, 8)), 1.0)
    x = x / x.sum(1, keepdim=True).sqrt()
    found = diagnose(**setup(mlp(60, 16, 3), x, torch.randint(3, (448,)), nn.CrossEntropyLoss()), trial=False).findings
    assert "NS806" not in {f.code for f in found}


def test_a_constant_answer_is_known_where_all_outputs_are_alike() -> None:
    model = mlp(12, 16, 4)
    nn.init.zeros_(model[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(model[-1].bias)  # type: ignore[arg-type]
    x, t = torch.randn(64, 12), torch.arange(64) % 4
    loss = diagnose(model, x, t, nn.CrossEntropyLoss(), trial=False).profile.facts["checkup"]["loss"]
    assert loss["task"] == "classes"
    assert loss["constant"] == pytest.approx(1.3863, abs=1e-3)


def test_of_a_loss_that_reads_no_targets_one_answer_for_all_is_no_way_round_them() -> None:
    torch.manual_seed(0)
    x = torch.randn(448, 2, 12)

    def alike(o: Tensor, _: Tensor) -> Tensor:
        return 2 - 2 * F.cosine_similarity(o[:, 0], o[:, 1].detach()).mean()

    found = diagnose(**setup(mlp(12, 32, 8), x, torch.randint(3, (448,)), alike), trial=False).findings
    assert "NS717" not in {f.code for f in found}


class Density(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return -0.5 * ((x - self.shift) * self.scale.exp()).square().sum(1) + self.scale.sum()


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Embedding(20, 8), nn.Embedding(20, 8)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        return (self.into(x[:, 0]) * self.out(x[:, 1])).sum(1)


def ranked(o: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(o.squeeze(1), y)


def close(o: Tensor, y: Tensor) -> Tensor:
    return F.smooth_l1_loss(o.squeeze(1), y) + 0.0


SOUND: dict[str, tuple[str, Callable[[], Setup]]] = {
    "a log density": ("NS706", lambda: setup(Density(), torch.randn(448, 2), torch.zeros(448), lambda o, _: -o.mean())),
    "output vectors of zero": ("NS114", lambda: setup(
        Words(), torch.randint(20, (448, 2)), torch.randint(2, (448,)).float(), nn.BCEWithLogitsLoss())),
    "targets that are nearly one number": ("NS717", lambda: setup(
        mlp(12, 16, 1), torch.randn(448, 12), 1 + 0.03 * torch.randn(448), close)),
    "pairs in their order": ("NS421", lambda: setup(mlp(12, 16, 1), torch.randn(448, 12), torch.ones(448), ranked)),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_what_looks_odd_and_is_sound_is_no_warning(name: str) -> None:
    code, make = SOUND[name]
    torch.manual_seed(0)
    found = diagnose(**make(), trial=60 if code == "NS421" else False)
    assert code not in {f.code for f in found.findings if f.severity != "info"}


def test_a_loop_with_a_loss_of_its_own_is_not_held_against_another_one() -> None:
    torch.manual_seed(0)
    given = setup(mlp(12, 16, 1), torch.randn(448, 12), torch.full((448, 1), 9.0), nn.MSELoss())

    def own(model: nn.Module, optimizer: torch.optim.Optimizer, _: Any, x: Tensor, __: Tensor) -> Tensor:
        optimizer.zero_grad()
        value = model(x).square().mean()
        value.backward()
        optimizer.step()
        return value

    codes = {f.code for f in diagnose(**given, train_step=own, trial=30).findings if f.severity != "info"}
    assert not {"NS423", "NS424"} & codes


class Codebook(nn.Module):
    """Its vectors come to the encoder late, and the loss of a hidden layer grows until then."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.codes, self.out = mlp(196, 64, 32), nn.Parameter(0.3 * torch.randn(6, 4)), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.into(x).view(len(x), 8, 4)
        q = self.codes[torch.cdist(h.detach(), self.codes).argmin(-1)]
        return self.out((h + (q - h).detach()).flatten(1)), h, q


def coded(outs: tuple[Tensor, Tensor, Tensor], t: Tensor) -> Tensor:
    y, h, q = outs
    return F.cross_entropy(y, t) + F.mse_loss(q, h.detach()) + 0.5 * F.mse_loss(h, q.detach())


def test_a_codebook_that_comes_to_its_encoder_late_may_let_the_loss_rise() -> None:
    torch.manual_seed(0)
    model, x = Codebook(), 3 * torch.randn(448, 196)
    given = setup(model, x, x[:, :3].argmax(1), coded, torch.optim.Adam(model.parameters(), 2e-3))
    short = diagnose(**given, trial=50).facts["checkup"]["trial"]["own"]
    assert short["again"] > 1.5 * short["start"]
    found = diagnose(**given, trial=50, steps=400)
    assert found.facts["checkup"]["trial"]["own"]["again"] < 0.2 * short["start"]
    assert [f.code for f in found.findings if f.severity != "info"] == []


def test_a_group_of_rate_zero_is_told_unless_a_schedule_may_raise_it() -> None:
    torch.manual_seed(0)
    model = mlp(12, 32, 3)
    x = torch.randn(448, 12)

    def told(scheduled: bool) -> str:
        groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "lr": 0.1}]
        optimizer = torch.optim.SGD(groups)
        if scheduled:
            torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100)
        found = diagnose(**setup(model, x, x[:, :3].argmax(1), nn.CrossEntropyLoss(), optimizer), trial=False)
        return " ".join(f.evidence for f in found.findings if f.code == "NS403")

    assert "learning rate 0, another one 0.1: it never moves" in told(False)
    assert told(True) == ""


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (
            lambda p, b: torch.optim.SGD(p, 0.02, momentum=0.9, dampening=float(b)),
            "NS403",
            "dampening=1 lets 0 of each",
        ),
        (lambda p, b: torch.optim.Adagrad(p, 5e-3, lr_decay=5.0 * b), "NS409", "divides the rate by 301 in 60 steps"),
    ],
)
def test_what_an_optimizer_does_to_its_own_steps_is_read(make: Any, code: str, words: str) -> None:
    torch.manual_seed(0)
    model, x = mlp(12, 32, 3), torch.randn(448, 12)
    for broken in (True, False):
        optimizer = make(model.parameters(), broken)
        found = diagnose(**setup(model, x, x[:, :3].argmax(1), nn.CrossEntropyLoss(), optimizer), trial=False)
        told = {f.code: f.evidence for f in found.findings if f.severity != "info"}
        assert (words in told.get(code, "")) is broken
        assert broken or not told


def test_a_loss_of_batches_of_another_size_is_held_against_its_own_start() -> None:
    """The first batch has twice the pairs of the others, and a higher loss: nothing was learnt there."""
    torch.manual_seed(0)
    model, x = mlp(12, 32, 8), torch.randn(448, 2, 12)

    def likeness(z: Tensor, _: Tensor) -> Tensor:
        a, b = F.normalize(z[:, 0], dim=1), F.normalize(z[:, 1], dim=1)
        return F.cross_entropy(0.05 * a @ b.T, torch.arange(len(z)))

    given = setup(model, x, torch.arange(448), likeness, data=[(x[i : i + 32], torch.arange(32)) for i in (0, 32, 64)])
    found = diagnose(**given | {"inputs": x[:128], "targets": torch.arange(128)}, trial=50)
    assert found.facts["checkup"]["trial"]["own"]["trains"] is False
    assert "NS421" in {f.code for f in found.findings}


def test_a_warm_up_by_hand_that_never_gets_anywhere_is_told_as_one() -> None:
    torch.manual_seed(0)
    model, x, at = mlp(12, 32, 3), torch.randn(448, 12), [0]

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Any, x: Tensor, t: Tensor) -> Tensor:
        at[0] += 1
        optimizer.param_groups[0]["lr"] = 0.1 * at[0] / 100_000
        optimizer.zero_grad()
        value = loss(model(x), t)
        value.backward()
        optimizer.step()
        return value

    given = setup(model, x, x[:, :3].argmax(1), nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1))
    found = diagnose(**given, train_step=step, steps=300, trial=50)
    (told,) = [f.evidence for f in found.findings if f.code == "NS409"]
    assert "warms up from" in told
    assert "the training has 300" in told


def test_weights_too_small_to_be_heard_are_named_and_not_taken_for_a_mean() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(30, 16)
    nn.init.normal_(table.weight, std=1e-7)
    model, ids = nn.Sequential(table, nn.Flatten(), nn.Linear(96, 2)), torch.randint(30, (448, 6))
    found = diagnose(**setup(model, ids, ids[:, 0] % 2, nn.CrossEntropyLoss()), trial=False)
    told = {f.code: f for f in found.findings if f.severity != "info"}
    assert "the weights of 0 have rms 1e-07" in told["NS114"].evidence
    assert "NS122" not in told


def test_an_optimizer_with_a_closure_is_said_to_be_left_out() -> None:
    torch.manual_seed(0)
    model, x = mlp(12, 32, 3), torch.randn(448, 12)
    given = setup(model, x, x[:, :3].argmax(1), nn.CrossEntropyLoss(), torch.optim.LBFGS(model.parameters()))
    assert any("a closure" in note for note in diagnose(**given, trial=5).facts["notes"])
