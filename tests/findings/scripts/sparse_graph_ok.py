"""A graph convolution with a sparse adjacency, trained on the nodes of a mask."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
n = 240
labels = torch.arange(n) % 3
likely = torch.where(labels[:, None] == labels[None], 0.08, 0.01)
edges = (torch.rand(n, n) < likely).float()
edges = ((edges + edges.T) > 0).float() + torch.eye(n)
root = edges.sum(1).rsqrt()
adjacency = (root[:, None] * edges * root[None]).to_sparse()
features = torch.randn(n, 12) + 0.8 * F.one_hot(labels, 12)
train = torch.rand(n) < 0.3


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x, adjacency):
        h = F.relu(torch.sparse.mm(adjacency, self.first(x)))
        return torch.sparse.mm(adjacency, self.second(h))


model = Graph()
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(120):
    optimizer.zero_grad()
    out = model(features, adjacency)
    loss = F.cross_entropy(out[train], labels[train])
    loss.backward()
    optimizer.step()
