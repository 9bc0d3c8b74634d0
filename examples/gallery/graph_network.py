"""A deep graph network smooths its nodes into one.

Each layer averages a node with its neighbours, in plain torch: a product with the normalized adjacency. After some
layers all nodes of the graph are alike (NS106, over-smoothing).
"""

import torch
from torch import nn

import normscope as ns


class Layer(nn.Module):
    """Average over the neighbours, a linear map, ReLU."""

    def __init__(self, adjacency, width=32):
        super().__init__()
        self.map = nn.Linear(width, width)
        self.register_buffer("adjacency", adjacency)

    def forward(self, nodes):
        return self.map(self.adjacency @ nodes).relu()


torch.manual_seed(0)
edges = (torch.rand(64, 64) < 0.08).float()
adjacency = ((edges + edges.T) > 0).float() + torch.eye(64)
model = nn.Sequential(*[Layer(adjacency / adjacency.sum(1, keepdim=True)) for _ in range(8)])

found = ns.diagnose(model, torch.randn(64, 32), trial=False, label="8 graph layers")
found.save("graph_network.svg")

assert "NS106" in {finding.code for finding in found.findings}
