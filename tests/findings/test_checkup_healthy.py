"""Healthy training set-ups of many kinds: no warning, no error, on any of them."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope import diagnose

HEALTHY: dict[str, Callable[[], dict[str, Any]]] = {}
N = 64


def healthy(make: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    HEALTHY[make.__name__] = make
    return make


def setup(model: nn.Module, x: Any, t: Any, loss: Any, optimizer: Any = None, **more: Any) -> dict[str, Any]:
    """One batch of N out of a loader's six; the last one validates."""
    optimizer = optimizer or torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    loader = [(x[i : i + N], t[i : i + N]) for i in range(0, len(x) - N, N)]
    given = {"model": model, "inputs": x[:N], "targets": t[:N], "loss": loss, "optimizer": optimizer, "data": loader}
    return given | {"valid": [(x[-N:], t[-N:])]} | more


def images(c: int = 3, size: int = 16, classes: int = 10, n: int = 7 * N) -> tuple[Tensor, Tensor]:
    """Smooth patterns, one a class, plus noise."""
    t = torch.randint(classes, (n,))
    base = F.interpolate(torch.randn(classes, c, 4, 4), size=(size, size), mode="bilinear")
    return base[t] + 0.7 * torch.randn(n, c, size, size), t


def table(d: int = 12, n: int = 7 * N) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, d)
    return x, x @ torch.randn(d, 1) / math.sqrt(d) + torch.sin(2 * x[:, :1]) * x[:, 1:2]


def tokens(v: int = 40, length: int = 12, n: int = 7 * N) -> Tensor:
    step = torch.randint(1, 4, (n, 1))
    return (torch.randint(v, (n, 1)) + step * torch.arange(length)) % v


def mlp(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


# Tables


@healthy
def linear_regression():
    x, t = table()
    model = nn.Linear(12, 1)
    return setup(model, x, t, nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.05))


@healthy
def logistic_regression():
    x, t = table()
    model = nn.Linear(12, 1)
    return setup(model, x, (t > 0).float(), nn.BCEWithLogitsLoss(), torch.optim.SGD(model.parameters(), 0.1))


@healthy
def binary_classifier_with_a_sigmoid():
    x, t = table()
    return setup(nn.Sequential(mlp(12, 32, 16, 1), nn.Sigmoid()), x, (t > 0).float(), nn.BCELoss())


@healthy
def regression_with_batch_norm_and_dropout():
    x, t = table()
    model = nn.Sequential(
        nn.Linear(12, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 1),
    )
    return setup(model, x, t, nn.MSELoss())


@healthy
def regression_of_targets_around_five():
    x, t = table()
    return setup(mlp(12, 64, 64, 1), x, 5 + 2 * t, nn.MSELoss())


@healthy
def positive_targets_with_softplus():
    x, t = table()
    model = nn.Sequential(mlp(12, 32, 1), nn.Softplus())
    return setup(model, x, t.exp(), nn.PoissonNLLLoss(log_input=False))


@healthy
def counts_with_poisson():
    x, t = table()
    return setup(mlp(12, 32, 1), x, torch.poisson(t.clamp(-2, 2).exp()), nn.PoissonNLLLoss())


@healthy
def huber_on_five_outputs():
    x, _ = table()
    t = torch.tanh(x @ torch.randn(12, 5) / 3)
    return setup(
        mlp(12, 64, 64, 5, act=nn.GELU), x, t, nn.SmoothL1Loss(), torch.optim.AdamW(mlp(1, 1).parameters(), 1e-3)
    ) | {"optimizer": None}


@healthy
def several_labels_with_a_sigmoid_each():
    x, _ = table()
    t = (x @ torch.randn(12, 6) > 0.5).float()
    return setup(mlp(12, 64, 6), x, t, nn.BCEWithLogitsLoss())


@healthy
def one_class_in_six():
    x, t = table()
    return setup(mlp(12, 32, 2), x, (t[:, 0] > 1.0).long(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0])))


@healthy
def wide_table_with_rare_columns():
    x, t = table(30)
    x[:, 20:] = (torch.rand(len(x), 10) < 0.03).float()
    x[:, 19] *= 20
    return setup(nn.Sequential(nn.BatchNorm1d(30), mlp(30, 64, 1)), x, t, nn.MSELoss())


# Images


@healthy
def convolutional_net():
    x, t = images()
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return setup(model, x, t, nn.CrossEntropyLoss(label_smoothing=0.1))


class Residual(nn.Module):
    def __init__(self, a: int, b: int, stride: int = 1):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(True))
        self.two = nn.Sequential(nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b))
        self.skip = (
            nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b)) if a != b else nn.Identity()
        )
        nn.init.zeros_(self.two[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.two(self.one(x)))


@healthy
def residual_net_with_a_schedule():
    x, t = images()
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), Residual(16, 16), Residual(16, 32, 2),
        Residual(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=200)

    def step(model, optimizer, loss_fn, x, t):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_fn(model(x), t)
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss

    return setup(model, x, t, nn.CrossEntropyLoss(), optimizer, train_step=step)


@healthy
def frozen_trained_backbone_with_a_new_head():
    x, t = images()
    body = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    )
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(x[:N]), t[:N]).backward()
        optimizer.step()
    body.requires_grad_(False)
    model[2] = nn.Linear(32, 10)
    return setup(model, x, t, nn.CrossEntropyLoss(), torch.optim.AdamW(model[2].parameters(), 1e-3))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 2, 1)
        self.norm = nn.GroupNorm(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.norm(self.down2(F.max_pool2d(a, 2))))
        return self.out(torch.cat([a, self.up(b)], 1))


@healthy
def segmentation_unet_with_a_void_class():
    x, _ = images(1)
    t = (x[:, 0] > 0.3).long()
    t[:, :1] = 255
    return setup(UNet(), x, t, nn.CrossEntropyLoss(ignore_index=255))


@healthy
def convolutional_autoencoder():
    x = torch.sigmoid(images(1)[0])
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 8, 2, 2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 1, 2, 2), nn.Sigmoid(),
    )  # fmt: skip
    return setup(model, x, x, nn.MSELoss())


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.mean, self.log, self.dec = nn.Linear(64, 32), nn.Linear(32, 4), nn.Linear(32, 4), mlp(4, 32, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.relu(self.enc(x))
        mean, log = self.mean(h), self.log(h)
        return self.dec(mean + torch.randn_like(mean) * (log / 2).exp()), mean, log


@healthy
def variational_autoencoder():
    x = torch.tanh(torch.randn(7 * N, 6) @ torch.randn(6, 64))

    def loss(out, t):
        y, mean, log = out
        return F.mse_loss(y, t) + 1e-3 * (mean.square() + log.exp() - 1 - log).mean()

    return setup(Vae(), x, x, loss)


class Patches(nn.Module):
    def __init__(self, d: int = 32, blocks: int = 2):
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, d, 4, 4), nn.Parameter(torch.zeros(1, 1, d))
        self.pos = nn.Parameter(0.02 * torch.randn(1, 17, d))
        layer = nn.TransformerEncoderLayer(d, 4, 2 * d, 0.1, "gelu", batch_first=True, norm_first=True)
        self.blocks, self.norm, self.head = (
            nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False),
            nn.LayerNorm(d),
            nn.Linear(d, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.cls.expand(len(x), -1, -1), h], 1) + self.pos
        return self.head(self.norm(self.blocks(h))[:, 0])


@healthy
def vision_transformer_with_a_warm_up():
    x, t = images()
    model = Patches()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, s / 100))
    return setup(model, x, t, nn.CrossEntropyLoss(), optimizer)


# Sequences


class Language(nn.Module):
    def __init__(self, v: int = 40, d: int = 32, tied: bool = True):
        super().__init__()
        self.emb, self.pos = nn.Embedding(v, d), nn.Embedding(16, d)
        nn.init.normal_(self.emb.weight, std=0.02)
        nn.init.normal_(self.pos.weight, std=0.02)
        self.block = nn.TransformerEncoderLayer(d, 2, 64, 0.0, batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, v, bias=False)
        if tied:
            self.head.weight = self.emb.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.emb(x) + self.pos(torch.arange(x.shape[1]))
        mask = torch.full((x.shape[1], x.shape[1]), -math.inf).triu(1)
        return self.head(self.norm(self.block(h, src_mask=mask)))


@healthy
def tied_language_model():
    x = tokens()
    model = Language()
    return setup(
        model, x[:, :-1].contiguous(), x[:, 1:].contiguous(), lambda o,
        t: F.cross_entropy(o.flatten(0, 1), t.flatten()),
        torch.optim.AdamW(model.parameters(), 3e-4),
    )  # fmt: skip


@healthy
def language_model_whose_loss_shifts():
    x = tokens()
    return setup(Language(tied=False), x, x, lambda o, t: F.cross_entropy(o[:, :-1].flatten(0, 1), t[:, 1:].flatten()))


class Reader(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM):
        super().__init__()
        self.rnn, self.out = kind(6, 32, num_layers=2, batch_first=True, dropout=0.1), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


@healthy
def lstm_classifier_with_clipping():
    x = torch.randn(7 * N, 20, 6).cumsum(1) / 4
    t = x[:, -1].argmax(1) % 3
    model = Reader()

    def step(model, optimizer, loss_fn, x, t):
        loss = loss_fn(model(x), t)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return setup(model, x, t, nn.CrossEntropyLoss(), train_step=step)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(40, 16, padding_idx=0)
        self.rnn, self.out = nn.GRU(16, 16, batch_first=True, bidirectional=True), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.emb(x))[0])


@healthy
def tagger_that_ignores_padding():
    x = tokens() % 39 + 1
    x[torch.arange(12) >= torch.randint(4, 13, (len(x), 1))] = 0
    t = torch.where(x > 0, x % 5, -100)
    return setup(Tagger(), x, t, lambda o, t: F.cross_entropy(o.transpose(1, 2), t))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.out = nn.Embedding(40, 32), nn.Linear(32, 2)
        self.block = nn.TransformerEncoderLayer(32, 2, 64, 0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        pad = x == 0
        h = self.block(self.emb(x), src_key_padding_mask=pad).masked_fill(pad[..., None], 0)
        return self.out(h.sum(1) / (~pad).sum(1, keepdim=True))


@healthy
def text_classifier_with_a_mask():
    x = tokens() % 39 + 1
    x[torch.arange(12) >= torch.randint(3, 9, (len(x), 1))] = 0
    return setup(Masked(), x, (x.sum(1) % 2).long(), nn.CrossEntropyLoss())


@healthy
def forecast_with_convolutions():
    x = torch.sin(torch.arange(24) / 3 + 6 * torch.rand(7 * N, 1)) + 0.1 * torch.randn(7 * N, 24)
    model = nn.Sequential(
        nn.Conv1d(1, 16, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv1d(16, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(1),
    )
    model(x[:2, None, :-1])
    return setup(model, x[:, None, :-1], x[:, -1:], nn.L1Loss())


# Others


class Denoiser(nn.Module):
    def __init__(self, d: int = 2, w: int = 64):
        super().__init__()
        self.inp, self.time = nn.Linear(d, w), nn.Linear(16, w)
        self.blocks = nn.ModuleList(mlp(w, w, w, act=nn.SiLU) for _ in range(3))
        self.out = nn.Linear(w, d)
        for block in self.blocks:
            nn.init.zeros_(block[2].weight)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.exp(-torch.arange(8) / 8 * math.log(1000.0))
        h = self.inp(x) + self.time(torch.cat([angles.sin(), angles.cos()], 1))
        for block in self.blocks:
            h = h + block(h)
        return self.out(h)


@healthy
def diffusion_with_zero_branches():
    x, t, noise = torch.randn(N, 2).sign(), torch.randint(0, 1000, (N,)).float(), torch.randn(N, 2)
    model = Denoiser()
    a = torch.cos(t / 1000 * math.pi / 2)[:, None]
    inputs = (a * x + (1 - a * a).sqrt() * noise, t)
    return {
        "model": model, "inputs": inputs, "targets": noise, "loss": nn.MSELoss(),
        "optimizer": torch.optim.AdamW(model.parameters(), 1e-3),
    }  # fmt: skip


class Lora(nn.Module):
    def __init__(self, base: nn.Linear, rank: int = 4):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a, self.b = (
            nn.Parameter(torch.randn(rank, base.in_features) / 8),
            nn.Parameter(torch.zeros(base.out_features, rank)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.t() @ self.b.t()


@healthy
def lora():
    x, t = table()
    model = nn.Sequential(
        Lora(nn.Linear(12, 64)), nn.ReLU(), Lora(nn.Linear(64, 64)), nn.ReLU(), Lora(nn.Linear(64, 3))
    )
    return setup(model, x, (t[:, 0] > 0).long() + (t[:, 0] > 1).long(), nn.CrossEntropyLoss())


class Graph(nn.Module):
    def __init__(self, a: Tensor):
        super().__init__()
        self.register_buffer("a", a)
        self.one, self.two = nn.Linear(50, 16, bias=False), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.a @ F.dropout(F.relu(self.a @ self.one(x)), 0.5, self.training))


@healthy
def graph_convolutions():
    links = (torch.rand(N, N) < 0.06).float()
    links = ((links + links.t()) > 0).float() + torch.eye(N)
    d = links.sum(1).rsqrt()
    x = (torch.rand(N, 50) < 0.1).float()
    x = x / x.sum(1, keepdim=True).clamp_min(1)
    model = Graph(d[:, None] * links * d)
    return {
        "model": model, "inputs": x, "targets": torch.randint(4, (N,)), "loss": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.Adam(model.parameters(), 1e-2, weight_decay=5e-4),
    }  # fmt: skip


class Points(nn.Module):
    def __init__(self):
        super().__init__()
        self.phi, self.rho = mlp(3, 32, 32), mlp(32, 32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.rho(self.phi(x).amax(1))


@healthy
def sets_of_points():
    x = torch.randn(7 * N, 20, 3)
    return setup(Points(), x, torch.randint(4, (len(x),)), nn.CrossEntropyLoss())


class Contrast(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.scale = mlp(12, 32, 16), nn.Parameter(torch.tensor(2.0))
        self.proto = nn.Parameter(torch.randn(3, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.exp() * F.normalize(self.net(x), dim=1) @ F.normalize(self.proto, dim=1).t()


@healthy
def cosine_classifier_with_a_learnt_scale():
    x, t = table()
    return setup(Contrast(), x, (t[:, 0] > 0).long() + (t[:, 0] > 1).long(), nn.CrossEntropyLoss())


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.target = mlp(12, 32, 4), mlp(12, 32, 4)
        self.target.load_state_dict(self.q.state_dict())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            later = self.target(x.roll(1, 0))
        return self.q(x), later


@healthy
def q_learning_with_a_target_net():
    x, _ = table()
    model = Critic()
    return setup(
        model, x, torch.randn(len(x)), lambda o, r: F.smooth_l1_loss(o[0].max(1).values, r + 0.9 * o[1].max(1).values),
        torch.optim.Adam(model.q.parameters(), 1e-3),
    )  # fmt: skip


@healthy
def physics_by_derivatives():
    x = torch.linspace(0, 1, 7 * N)[torch.randperm(7 * N), None]
    return setup(mlp(1, 32, 32, 1, act=nn.Tanh), x, torch.sin(6 * x), nn.MSELoss(), None)


@healthy
def two_losses_of_one_step():
    x, t = table()

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.value, self.kind = mlp(12, 32, 32), nn.Linear(32, 1), nn.Linear(32, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = F.relu(self.body(x))
            return {"value": self.value(h), "kind": self.kind(h)}

    def loss(o, t):
        return F.mse_loss(o["value"], t) + F.cross_entropy(o["kind"], (t[:, 0] > 0).long())

    return setup(Two(), x, t, loss)


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_setup_gets_no_warning(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        found = diagnose(**HEALTHY[name](), trial=False)
    assert [(f.code, f.evidence) for f in found.findings if f.severity != "info"] == []


@pytest.mark.parametrize("name", HEALTHY)
def test_no_part_of_the_check_up_fails_on_a_healthy_setup(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        found = diagnose(**HEALTHY[name](), trial=False)
    assert found.profile.facts["checkup"]["left_out"] == {}


PLAIN = {f"torch's default, {depth} layers": ((20, *[64] * (depth - 1), 3), nn.ReLU) for depth in range(2, 11)}
PLAIN |= {"one unit": ((20, 1, 3), nn.Tanh), "two sigmoid layers": ((20, 64, 64, 3), nn.Sigmoid)}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_net_is_quiet(name):
    widths, act = PLAIN[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = mlp(*widths, act=act)
    x = torch.randn(128, 20, generator=torch.Generator().manual_seed(0))
    found = diagnose(model, x, torch.arange(128) % 3, trial=False)
    assert [(f.code, f.evidence) for f in found.findings if f.severity != "info"] == []
