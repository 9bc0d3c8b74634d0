"""Sequence classification with a GRU, using accelerate."""

import math

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def make_waves(n, seed):
    g = torch.Generator().manual_seed(seed)
    t = torch.linspace(0, 1, 40)
    freq = torch.randint(0, 3, (n,), generator=g)
    phase = torch.rand(n, 1, generator=g) * 2 * math.pi
    x = torch.sin(2 * math.pi * (2.0 + 2.0 * freq[:, None]) * t + phase)
    x = x + 0.2 * torch.randn(n, 40, generator=g)
    return TensorDataset(x.unsqueeze(-1), freq)


class GRUClassifier(nn.Module):
    def __init__(self, hidden=32, classes=3):
        super().__init__()
        self.rnn = nn.GRU(1, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x):
        out, _ = self.rnn(x)
        return self.fc(out.mean(dim=1))


def main():
    set_seed(3)
    accelerator = Accelerator(cpu=True)
    model = GRUClassifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    train_dl = DataLoader(make_waves(1200, 0), batch_size=50, shuffle=True)
    eval_dl = DataLoader(make_waves(300, 1), batch_size=100)
    model, optimizer, train_dl, eval_dl = accelerator.prepare(model, optimizer, train_dl, eval_dl)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12 * len(train_dl))

    for epoch in range(12):
        model.train()
        total = 0.0
        for x, y in train_dl:
            loss = nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            total += loss.detach().item()
        model.eval()
        hits = seen = 0
        for x, y in eval_dl:
            with torch.no_grad():
                pred = model(x).argmax(-1)
            pred, y = accelerator.gather_for_metrics((pred, y))
            hits += (pred == y).sum().item()
            seen += len(y)
        accelerator.print(f"epoch {epoch}: loss {total / len(train_dl):.4f} acc {hits / seen:.3f}")


if __name__ == "__main__":
    main()
