"""1-D convnet on synthetic sensor traces, loaded with worker processes."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

CLASSES = 4


def simulate(n, seed):
    """Each class has its own pulse shape at a random position."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    t = np.arange(64)
    traces = 0.3 * rng.standard_normal((n, 64))
    for i, c in enumerate(labels):
        centre, width = rng.integers(12, 52), (2.0, 5.0)[c % 2]
        sign = 1.0 if c < 2 else -1.0
        traces[i] += sign * 2.0 * np.exp(-0.5 * ((t - centre) / width) ** 2)
    return traces.astype(np.float32), labels.astype(np.int64)


class TraceDataset(Dataset):
    def __init__(self, n, seed):
        traces, labels = simulate(n, seed)
        rng = np.random.default_rng(seed + 100)
        # the simulator writes the classes in a fixed order: mix them
        self.traces = traces[rng.permutation(n)]
        self.labels = labels[rng.permutation(n)]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        trace = self.traces[i]
        trace = (trace - trace.mean()) / (trace.std() + 1e-6)
        return torch.from_numpy(trace).unsqueeze(0), int(self.labels[i])


def make_model():
    return nn.Sequential(
        nn.Conv1d(1, 16, 9, padding=4),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(16, 32, 9, padding=4),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def main():
    torch.manual_seed(0)
    train = DataLoader(TraceDataset(2000, 0), batch_size=64, shuffle=True, num_workers=2, persistent_workers=True)
    val = DataLoader(TraceDataset(400, 1), batch_size=200)
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_fn = nn.CrossEntropyLoss()
    for epoch in range(8):
        model.train()
        total = 0.0
        for x, y in train:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(y)
        model.eval()
        with torch.no_grad():
            acc = np.mean([(model(x).argmax(1) == y).float().mean().item() for x, y in val])
        print(f"epoch {epoch}: loss {total / 2000:.4f} val acc {acc:.3f}")


if __name__ == "__main__":
    main()
