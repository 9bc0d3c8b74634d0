"""Data sets that write into what they hold when they are read: put back, and told from caches."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

import normscope as ns


class Images(Dataset):
    """``how``: clean, erased in place (by Python's random), or kept in a cache that is filled as it is read."""

    def __init__(self, how, images, labels):
        self.how, self.images, self.labels = how, images, labels
        self.cache, self.known = np.zeros((len(labels), 16), dtype=np.float16), set()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = self.images[i]
        if self.how == "erased" and random.random() < 0.5:
            k = random.randrange(12)
            image[k : k + 4] = 0
        if self.how == "cached":
            if i not in self.known:
                self.cache[i], self.known = image.numpy() * 2, self.known | {i}
            return torch.as_tensor(self.cache[i], dtype=torch.float32), self.labels[i]
        return image, self.labels[i]


def given(how, wrapped=False, array=False):
    torch.manual_seed(0)
    labels = torch.arange(96) % 3
    images = torch.randn(96, 16) + torch.randn(3, 16)[labels]
    data = Images(how, images.numpy() if array else images, labels)
    loader = DataLoader(Subset(data, range(96)) if wrapped else data, batch_size=32, shuffle=True)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3))
    return data, loader, model


def told(loader, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = ns.diagnose(model, loss=nn.CrossEntropyLoss(), optimizer=optimizer, data=loader, trial=False)
    return {f.code: f.evidence for f in found.findings}


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_data_that_wear_off_are_told_and_stay_as_they_were(wrapped, array):
    data, loader, model = given("erased", wrapped, array)
    before = copy.deepcopy(data.images)
    random.seed(3)
    said = told(loader, model)
    assert "Images.__getitem__ writes into what it holds" in said["NS814"]
    assert bool((data.images == before).all())
    assert random.random() == random.Random(3).random()


@pytest.mark.parametrize("how", ["clean", "cached"])
def test_neither_clean_data_nor_a_cache_is_called_so(how):
    data, loader, model = given(how)
    assert "NS814" not in told(loader, model)
    assert (len(data.known) == 0) == bool((data.cache == 0).all())


def test_batches_are_read_without_a_trace_by_the_other_verbs_too():
    data, loader, model = given("erased")
    before = data.images.clone()
    ns.probe(model, loss=nn.CrossEntropyLoss(), data=loader)
    ns.rates(model, loss=nn.CrossEntropyLoss(), data=loader, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    assert torch.equal(data.images, before)


def test_a_sparse_tensor_goes_with_the_dense_ones():
    torch.manual_seed(0)

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x, edges):
            return torch.sparse.mm(edges, self.second(torch.relu(torch.sparse.mm(edges, self.first(x)))))

    model, x, y = Graph(), torch.randn(40, 6), torch.randint(3, (40,))
    edges = torch.eye(40) + (torch.rand(40, 40) < 0.1)
    sparse, dense = (ns.probe(model, (x, e), y, mode="train") for e in (edges.to_sparse(),) * 2), None
    first, second = sparse
    assert first.frame().equals(second.frame())

    class Dense(Graph):
        def forward(self, x, edges):
            return edges @ self.second(torch.relu(edges @ self.first(x)))

    twin = Dense()
    twin.load_state_dict(model.state_dict())
    dense = ns.probe(twin, (x, edges), y, mode="train")
    norms = [[r.value for r in p.records if r.metric == "gradient_norm" and r.kind == "Linear"] for p in (first, dense)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert len(norms[0]) >= 2


class Filling(Dataset):
    """Fills what is missing as it is read; holds a sparse tensor beside."""

    def __init__(self):
        self.rows = torch.randn(64, 16)
        self.rows[::4, 3] = float("nan")
        self.edges = torch.eye(64).to_sparse()

    def __len__(self):
        return 64

    def __getitem__(self, i):
        row = self.rows[i]
        row[row.isnan()] = 0.0
        return row, i % 3


def test_missing_numbers_that_are_filled_in_place_are_missing_again():
    torch.manual_seed(0)
    data = Filling()
    missing = data.rows.isnan()
    ns.probe(given("clean")[2], loss=nn.CrossEntropyLoss(), data=DataLoader(data, batch_size=32))
    assert torch.equal(data.rows.isnan(), missing)
