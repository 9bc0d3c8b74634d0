"""Residual branches that start at zero: found by gradients alone, on nets whose branches are known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from normscope import Spec, build, diagnose, init
from normscope.core.errors import UsageError
from normscope.findings.cures import treat


class Block(nn.Module):
    """x + f(x), a projecting shortcut where the width changes, a gate inside the branch."""

    def __init__(self, a: int, b: int, gated: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(a, 12), nn.Linear(12, b)
        self.gate = nn.Linear(a, 12) if gated else None
        self.norm = nn.BatchNorm1d(b) if norm else nn.Identity()
        self.short = nn.Linear(a, b) if a != b else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).relu()
        if self.gate is not None:
            h = h * self.gate(x)
        return self.short(x) + self.norm(self.down(h))


def net(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 8), Block(8, 8, norm=norm), Block(8, 8, gated=True), Block(8, 6), nn.ReLU(), nn.Linear(6, 3)
    )


X = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", [False, True])
def test_the_ends_of_the_branches_are_found_and_nothing_else(norm: bool) -> None:
    model = net(norm)
    before = copy.deepcopy(model.state_dict())
    found = treat(model, "zero-branches", X)
    end = "norm" if norm else "down"
    assert found.treated == (f"1.{end}", "2.down", "3.down")
    for name, value in model.state_dict().items():
        zero = name.startswith(tuple(f"{t}." for t in found.treated)) and "running" not in name and "num_" not in name
        wanted = torch.zeros_like(value) if zero else before[name]
        assert torch.equal(value, wanted), name
    assert found.left_alone["3.short"] == "no end of a residual branch"
    assert found.left_alone["2.gate"] == "inside a branch that ends later"
    assert all(p.grad is None for p in model.parameters())


def test_the_net_begins_as_its_trunk() -> None:
    model = init.zero_branches_(net(), X)
    trunk = model[5](model[3].short(model[0](X)).relu())
    assert torch.equal(model(X), trunk)


def test_every_branch_comes_to_life() -> None:
    model = init.zero_branches_(net(), X)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        model(X).square().sum().backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_the_depth_of_a_residual_net_costs_no_scale() -> None:
    x = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    sizes = {}
    for how in ("none", "zero-branches"):
        model = build(Spec(family="resnet", depth=51, width=8, outputs=10, weights="gaussian"), (3, 12, 12), seed=0)
        if how != "none":
            assert len(treat(model, how, x).treated) == 25
        sizes[how] = float(model(x).detach().abs().max())
    assert sizes["none"] > 1000 > 100 > sizes["zero-branches"]


class Tokens(nn.Module):
    """One transformer block after an embedding: without its attention the output would not see the other tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.o((self.q(h) @ self.k(h).transpose(1, 2)).softmax(-1) @ self.v(h))
        h = h + self.down(self.up(h).relu())
        return self.head(h.mean(1))


def test_a_key_is_no_branch_though_its_query_dies_without_it() -> None:
    torch.manual_seed(0)
    found = treat(Tokens(), "zero-branches", torch.randn(6, 4, 5))
    assert found.treated == ("o", "down")


class Paths(nn.Module):
    """Two layers beside another path, put together in ways where zeros would never move, or kill what follows."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.a, self.b = how, nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.c, self.last = nn.Linear(8, 8), nn.Linear(16 if how == "concatenated" else 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        y = self.b(self.a(h).relu()).relu()
        joined = {"activated": h + y, "concatenated": torch.cat([h, y], 1), "two paths": y + self.c(h).relu()}
        return self.last(joined[self.how])


@pytest.mark.parametrize("how", ["activated", "concatenated", "two paths"])
def test_zeros_that_would_never_move_are_not_set(how: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(UsageError, match="no skip connection was found"):
        init.zero_branches_(Paths(how), X)


def test_the_first_block_is_found_without_a_stem() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block(5, 5), Block(5, 5), nn.Linear(5, 3))
    assert treat(model, "zero-branches", X).treated == ("0.down", "1.down")


def test_a_batch_that_cannot_be_cut_is_taken_whole() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.block, self.last = nn.Linear(5, 8), Block(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return self.last(self.block(self.first(x))[edges[0]])

    torch.manual_seed(0)
    x, edges = torch.randn(40, 5), torch.randint(30, 40, (2, 50))
    assert treat(Graph(), "zero-branches", (x, edges)).treated == ("block.down",)


def test_a_net_without_skips_is_told_so_and_stays() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match="no skip connection was found"):
        init.zero_branches_(model, X)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_branches_that_start_at_zero_are_no_vanishing_gradients_but_a_dead_chain_is() -> None:
    x, y = torch.randn(64, 5, generator=torch.Generator().manual_seed(2)), torch.arange(64) % 3
    model = nn.Sequential(nn.Linear(5, 16), *(Block(16, 16) for _ in range(6)), nn.Linear(16, 3))
    assert "NS202" not in {f.code for f in diagnose(init.zero_branches_(model, x), x, y, trial=False).findings}
    chain = nn.Sequential(*[m for _ in range(8) for m in (nn.Linear(5, 5), nn.ReLU())], nn.Linear(5, 3))
    nn.init.zeros_(chain[8].weight)
    assert "NS202" in {f.code for f in diagnose(chain, x, y, trial=False).findings}
