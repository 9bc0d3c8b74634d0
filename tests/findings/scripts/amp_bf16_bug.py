"""Small convnet on 8-bit digit images, bfloat16 autocast."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class DigitImages(Dataset):
    """Grey images stored the way a PNG would hold them (uint8)."""

    def __init__(self, train=True):
        bunch = load_digits()
        images = (bunch.images * 255 / 16).round().astype("uint8")
        split = slice(0, 1400) if train else slice(1400, None)
        self.images = torch.from_numpy(images[split]).unsqueeze(1)
        self.labels = torch.from_numpy(bunch.target[split])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, idx):
        image = self.images[idx].float()
        return image, self.labels[idx]


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc1 = nn.Linear(32 * 4, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def main():
    torch.manual_seed(0)
    train_loader = DataLoader(DigitImages(True), batch_size=64, shuffle=True, drop_last=True)
    test_loader = DataLoader(DigitImages(False), batch_size=200)
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    for epoch in range(10):
        model.train()
        losses = []
        for images, labels in train_loader:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(images)
                loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        correct = 0
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            for images, labels in test_loader:
                correct += (model(images).argmax(1) == labels).sum().item()
        acc = correct / len(test_loader.dataset)
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.4f} test acc {acc:.3f}")


if __name__ == "__main__":
    main()
