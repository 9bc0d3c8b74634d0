"""Pretrain a denoising autoencoder on digits, then fine-tune a classifier on its encoder."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def make_encoder():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 24))


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = make_encoder()
        self.decoder = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x):
        return self.decoder(self.encoder(x + 0.1 * torch.randn_like(x)))


class CosineClassifier(nn.Module):
    """Pretrained encoder, class prototypes, learned logit scale."""

    def __init__(self, encoder, classes=10):
        super().__init__()
        self.encoder = encoder
        self.prototypes = nn.Linear(24, classes, bias=False)
        self.head_scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, x):
        z = F.normalize(self.encoder(x), dim=1)
        w = F.normalize(self.prototypes.weight, dim=1)
        return self.head_scale * z @ w.T


def pretrain(model, loader, epochs=15):
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(epochs):
        total = 0.0
        for x, _ in loader:
            loss = F.mse_loss(model(x), x)
            opt.zero_grad()
            loss.backward()
            opt.step()
            total += loss.item()
        if epoch % 5 == 4:
            print(f"pretrain {epoch + 1}: mse {total / len(loader):.4f}")


def finetune(model, loader, xv, yv, epochs=12):
    # only the head is trained, the encoder stays as pretrained
    for name, p in model.named_parameters():
        p.requires_grad = name.startswith("head")
    opt = torch.optim.Adam(model.parameters(), lr=5e-3)
    for epoch in range(epochs):
        total = 0.0
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            total += loss.item()
        with torch.no_grad():
            acc = (model(xv).argmax(1) == yv).float().mean().item()
        print(f"finetune {epoch + 1}: loss {total / len(loader):.4f} val acc {acc:.3f}")


if __name__ == "__main__":
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16.0, dtype=torch.float32), torch.tensor(y)
    loader = DataLoader(TensorDataset(x[:1400], y[:1400]), batch_size=50, shuffle=True)
    denoiser = Denoiser()
    pretrain(denoiser, loader)
    finetune(CosineClassifier(denoiser.encoder), loader, x[1400:], y[1400:])
