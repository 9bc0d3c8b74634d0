"""Random erasing that writes into the images that the data set holds."""

import random

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

torch.manual_seed(0)
random.seed(0)


class Images(Dataset):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = self.images[i]
        if random.random() < 0.5:
            row, column = random.randrange(6), random.randrange(6)
            image[:, row : row + 3, column : column + 3] = 0
        return image, self.labels[i]


labels = torch.arange(400) % 4
images = torch.randn(400, 1, 8, 8) + torch.randn(4, 1, 8, 8)[labels]
loader = DataLoader(Images(images, labels), batch_size=32, shuffle=True)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 4))
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for _ in range(10):
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
