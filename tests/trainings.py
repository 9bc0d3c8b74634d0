"""Small trainings, healthy and broken, watched by a tracker: what the rules over the steps are held against.

Each is a function of a seed and a number of steps that returns the model, its optimizer, and what makes the loss of a
step. ``followed`` trains one.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from sklearn.datasets import load_digits
from torch import nn

import normscope as ns

F = nn.functional
DIGITS = load_digits()
IMAGES, LABELS = torch.tensor(DIGITS.images / 16, dtype=torch.float32), torch.tensor(DIGITS.target)


def followed(make, seed=0, steps=120, every=4, told=True, **options):
    """The review of a training, its tracker closed. told: the loop logs its loss."""
    from normscope.findings.review import review

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        run = make(steps)
        tracker = ns.Tracker(run.model, every=every, **options)
        for step in range(steps):
            run.optimizer.zero_grad()
            loss = run.loss(step)
            loss.backward()
            if clip := getattr(run, "clip", None):
                nn.utils.clip_grad_norm_(run.model.parameters(), clip)
            run.optimizer.step()
            if schedule := getattr(run, "schedule", None):
                schedule.step()
            if told:
                tracker.log(loss=loss, lr=run.optimizer.param_groups[0]["lr"])
        tracker.close()
    return review(tracker.run())


def mlp(width=64, depth=3, norm=False, activation=nn.ReLU, dropout=0.0, inputs=64, outputs=10, bias=True):
    layers = [nn.Flatten()]
    for i in range(depth):
        layers.append(nn.Linear(inputs if i == 0 else width, width, bias=bias))
        layers += [nn.BatchNorm1d(width)] if norm else []
        layers.append(activation())
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def digits(batch=64):
    """Batches of images and labels."""

    def draw():
        at = torch.randint(len(IMAGES), (batch,))
        return IMAGES[at], LABELS[at]

    return draw


def classify(model, optimizer, batch=64, draw=None, **more):
    draw = draw or digits(batch)

    def loss(step):
        x, y = draw()
        return F.cross_entropy(model(x), y)

    return SimpleNamespace(model=model, optimizer=optimizer, loss=loss, **more)


def sgd(model, lr=0.1, **more):
    return torch.optim.SGD(model.parameters(), lr, **more)


def adam(model, lr=1e-3, **more):
    return torch.optim.AdamW(model.parameters(), lr, **more)


# Healthy


def plain_mlp(steps):
    model = mlp()
    return classify(model, sgd(model, 0.1, momentum=0.9))


def batch_norm(steps):
    model = mlp(norm=True, depth=5)
    return classify(model, sgd(model, 0.1, momentum=0.9, weight_decay=5e-4))


def dropout(steps):
    model = mlp(dropout=0.3)
    return classify(model, adam(model, 2e-3))


def convolutions(steps):
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip
    return classify(model, adam(model, 2e-3))


class Transformer(nn.Module):
    """Tokens -> the next of a walk with a rule: of steps 1 or 2, as the token before the last was even or odd."""

    def __init__(self, words=16, width=32, layers=2):
        super().__init__()
        self.embed, self.place = nn.Embedding(words, width), nn.Parameter(torch.randn(24, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 64, 0.1, batch_first=True, norm_first=True)
        self.body, self.norm = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False), nn.LayerNorm(width)
        self.head = nn.Linear(width, words)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.norm(self.body(self.embed(x) + self.place[: x.shape[1]], mask, is_causal=True)))


def transformer(steps, lr=3e-3):
    model = Transformer()
    optimizer = adam(model, lr, weight_decay=0.1)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / 20, 1.0) * (1 - s / (steps + 1)))

    def draw():
        x = [torch.randint(16, (32,))]
        for _ in range(16):
            x.append((x[-1] + 1 + x[-1] % 2 * 2) % 16)
        return torch.stack(x, 1)

    def loss(step):
        x = draw()
        return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    return SimpleNamespace(model=model, optimizer=optimizer, loss=loss, schedule=warm, clip=1.0)


def memorising(steps):
    model = mlp(width=128, depth=2)
    x, y = torch.rand(32, 8, 8), torch.randint(10, (32,))
    return classify(model, adam(model, 3e-3, weight_decay=0.0), draw=lambda: (x, y))


def autoencoder(steps):
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8), nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64)
    )
    draw = digits()

    def loss(step):
        x = draw()[0]
        return F.mse_loss(model(x), x.flatten(1))

    return SimpleNamespace(model=model, optimizer=adam(model, 3e-3), loss=loss)


def regression(steps):
    """One output, of a single direction of the inputs: its last hidden layer may end on a line."""
    model, w = mlp(outputs=1, activation=nn.GELU, inputs=16), torch.randn(16)

    def loss(step):
        x = torch.randn(64, 16)
        return F.mse_loss(model(x)[:, 0], torch.tanh(x @ w))

    return SimpleNamespace(model=model, optimizer=adam(model, 2e-3), loss=loss)


class Binary(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(1, 32, batch_first=True), nn.Linear(32, 2)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


def recurrent(steps):
    model = Binary()

    def draw():
        x = torch.randn(64, 12, 1)
        return x, (x[:, -3:].sum((1, 2)) > 0).long()

    return classify(model, adam(model, 1e-2), draw=draw, clip=1.0)


def fine_tuned(steps):
    """A body that is frozen on purpose and a new head, at a small rate."""
    model = mlp(norm=True)
    warm = sgd(model, 0.1, momentum=0.9)
    draw = digits()
    for _ in range(60):
        warm.zero_grad()
        x, y = draw()
        F.cross_entropy(model(x), y).backward()
        warm.step()
    for p in model[:-1].parameters():
        p.requires_grad_(False)
    model[-1] = nn.Linear(64, 10)
    return classify(model, adam(model, 1e-2))


def residual(steps):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.one, self.two = nn.LayerNorm(64), nn.Linear(64, 64), nn.Linear(64, 64)
            nn.init.zeros_(self.two.weight)

        def forward(self, x):
            return x + self.two(F.relu(self.one(self.norm(x))))

    model = nn.Sequential(nn.Flatten(), *[Block() for _ in range(6)], nn.Linear(64, 10))
    optimizer = sgd(model, 0.05, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return classify(model, optimizer, schedule=schedule)


HEALTHY = {
    "MLP, SGD": plain_mlp, "MLP, batch norm, decay": batch_norm, "MLP, dropout, AdamW": dropout,
    "CNN, AdamW": convolutions, "transformer, warm-up": transformer, "by heart": memorising,
    "autoencoder": autoencoder, "regression": regression, "LSTM, clipped": recurrent, "frozen body": fine_tuned,
    "residual, cosine": residual,
}  # fmt: skip


# Broken


def rate_too_large(steps):
    model = mlp(norm=True)
    return classify(model, sgd(model, 100.0))


def rate_too_large_adam(steps):
    model = mlp(depth=4)
    return classify(model, adam(model, 1.0))


def decay_wins(steps):
    model = mlp(depth=4)
    return classify(model, sgd(model, 0.1, weight_decay=0.5))


def dying(steps):
    """Biases are driven down by a rate that is too large for them."""
    model = mlp(depth=3)
    biases = [m.bias for m in model if isinstance(m, nn.Linear)][:-1]
    run = classify(model, sgd(model, 0.05))
    inner = run.loss

    def loss(step):
        with torch.no_grad():
            for b in biases:
                b -= 0.05
        return inner(step)

    run.loss = loss
    return run


def deep_plain(steps):
    model = mlp(depth=24)
    return classify(model, sgd(model, 0.1))


class Recurrent(nn.Module):
    """A linear recurrence with a matrix whose powers grow."""

    def __init__(self, gain, activation):
        super().__init__()
        self.into, self.over, self.out = nn.Linear(1, 32), nn.Linear(32, 32), nn.Linear(32, 2)
        nn.init.normal_(self.over.weight, std=gain / math.sqrt(32))
        self.activation = activation

    def forward(self, x):
        h = x.new_zeros(len(x), 32)
        for t in range(x.shape[1]):
            h = self.activation(self.over(h) + self.into(x[:, t]))
        return self.out(h)


def exploding(steps):
    model = Recurrent(1.6, lambda h: h)

    def draw():
        x = torch.randn(64, 30, 1)
        return x, (x.sum((1, 2)) > 0).long()

    return classify(model, sgd(model, 0.01), draw=draw)


def not_a_number(steps):
    """The logarithm of what becomes zero or less after some steps."""
    model = mlp(depth=2)
    run = classify(model, sgd(model, 0.1))
    inner = run.loss
    run.loss = lambda step: inner(step) + (torch.log(model[1].weight.sum() * 0 + 40.0 - step) * 1e-3)
    return run


def frozen(steps):
    """A layer that the optimizer was never given."""
    model = mlp()
    kept = [p for name, p in model.named_parameters() if not name.startswith("3.")]
    return classify(model, torch.optim.SGD(kept, 0.1, momentum=0.9))


def vanishing(steps):
    model = mlp(depth=12, activation=nn.Sigmoid)
    return classify(model, sgd(model, 0.1))


def rate_zero(steps):
    model = mlp()
    return classify(model, sgd(model, 0.0))


def tiny_rate(steps):
    model = mlp()
    return classify(model, sgd(model, 1e-7))


def shuffled(steps):
    """Labels of other samples."""
    model = mlp()
    draw = digits()

    def other():
        x, y = draw()
        return x, y[torch.randperm(len(y))]

    return classify(model, adam(model), draw=other)


BROKEN = {
    "rate too large, batch norm": (rate_too_large, {"NS916", "NS911"}),
    "rate too large, AdamW": (rate_too_large_adam, {"NS916", "NS921"}),
    "decay wins": (decay_wins, {"NS918"}),
    "dying ReLUs": (dying, {"NS913"}),
    "deep plain": (deep_plain, {"NS912"}),
    "exploding RNN": (exploding, {"NS914", "NS911"}),
    "NaN after 40 steps": (not_a_number, {"NS911"}),
    "a layer left out": (frozen, {"NS919"}),
    "vanishing": (vanishing, {"NS915"}),
    "rate zero": (rate_zero, {"NS917"}),
    "rate too small": (tiny_rate, {"NS917"}),
    "labels shuffled": (shuffled, {"NS922"}),
}
