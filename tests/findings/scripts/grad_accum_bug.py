"""Digits with small micro-batches and gradient accumulation."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

MICRO_BATCH = 16
ACCUM_STEPS = 4
EPOCHS = 10


def get_data():
    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32)
    x = (x - x.mean()) / x.std()
    y = torch.tensor(y)
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    return TensorDataset(x[:1400], y[:1400]), (x[1400:], y[1400:])


def build_model():
    return nn.Sequential(
        nn.Linear(64, 128),
        nn.Tanh(),
        nn.Linear(128, 64),
        nn.Tanh(),
        nn.Linear(64, 10),
    )


def train_one_epoch(model, loader, optimizer, criterion):
    model.train()
    total = 0.0
    for step, (x, y) in enumerate(loader):
        loss = criterion(model(x), y)
        (loss / ACCUM_STEPS).backward()
        if (step + 1) % ACCUM_STEPS == 0 or step + 1 == len(loader):
            nn.utils.clip_grad_value_(model.parameters(), 5.0)
            optimizer.step()
        total += loss.item()
    return total / len(loader)


def main():
    torch.manual_seed(0)
    train_set, (xv, yv) = get_data()
    loader = DataLoader(train_set, batch_size=MICRO_BATCH, shuffle=True)
    model = build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    for epoch in range(EPOCHS):
        loss = train_one_epoch(model, loader, optimizer, criterion)
        model.eval()
        with torch.no_grad():
            logits = model(xv)
            val_loss = criterion(logits, yv).item()
            acc = (logits.argmax(1) == yv).float().mean().item()
        print(f"epoch {epoch}: train loss {loss:.4f} val loss {val_loss:.4f} val acc {acc:.3f}")


if __name__ == "__main__":
    main()
