"""Digits convnet through torch.compile."""

import torch
import torch.nn as nn
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset


class Block(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.conv(x))


class DigitNet(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.features = nn.Sequential(Block(1, 16), nn.MaxPool2d(2), Block(16, 32), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(32 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, num_classes),
            nn.Softmax(dim=1),
        )

    def forward(self, x):
        return self.classifier(self.features(x))


def loaders():
    bunch = load_digits()
    x = torch.tensor(bunch.images / 16.0, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(bunch.target)
    gen = torch.Generator().manual_seed(0)
    idx = torch.randperm(len(x), generator=gen)
    tr, te = idx[:1408], idx[1408:]
    return (
        DataLoader(TensorDataset(x[tr], y[tr]), batch_size=64, shuffle=True),
        DataLoader(TensorDataset(x[te], y[te]), batch_size=len(te)),
    )


def main():
    torch.manual_seed(0)
    train_loader, test_loader = loaders()
    model = DigitNet()
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion = nn.CrossEntropyLoss()

    for epoch in range(10):
        compiled.train()
        total = 0.0
        for x, y in train_loader:
            optimizer.zero_grad()
            loss = criterion(compiled(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item()
        compiled.eval()
        with torch.no_grad():
            x, y = next(iter(test_loader))
            acc = (compiled(x).argmax(1) == y).float().mean().item()
        print(f"epoch {epoch}: loss {total / len(train_loader):.4f} test acc {acc:.3f}")


if __name__ == "__main__":
    main()
