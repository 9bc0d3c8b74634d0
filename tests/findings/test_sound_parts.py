"""Parts of sound trainings that look like faults: nothing is said of them."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normscope as ns
from normscope.call.samples import read_samples
from normscope.core.spec import POINTWISE
from normscope.nn.norms.squash import curve_of


def codes(found, *severities):
    return {f.code for f in found.findings if not severities or f.severity in severities}


def test_a_branch_that_ends_in_weights_of_zero_and_tanh_is_not_dead():
    last = nn.Linear(32, 32)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), last, nn.Tanh(), nn.Linear(32, 3))
    assert "NS301" not in codes(ns.diagnose(model, torch.randn(64, 8), torch.randint(3, (64,)), trial=False))
    dead = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), last, nn.ReLU(), nn.Linear(32, 3))
    assert "NS301" in codes(ns.diagnose(dead, torch.randn(64, 8), torch.randint(3, (64,)), trial=False))


@pytest.mark.parametrize(("kind", "dies"), [("ReLU", True), ("Sigmoid", True), ("Tanh", False), ("Sin", False)])
def test_where_an_activation_is_zero_it_is_flat_or_steep(kind, dies):
    assert POINTWISE[kind].dies is dies


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.rnn, self.out = nn.Embedding(12, 16), nn.GRU(16, 32), nn.Linear(32, 12)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        return self.out(self.rnn(self.embedding(ids))[0])


def test_lengths_of_all_samples_tell_which_axis_runs_over_them():
    ids, lengths = torch.randint(1, 12, (7, 64)), torch.randint(2, 8, (64,))
    lengths[0] = 7
    read = read_samples(Recurrent(), (ids, lengths), {}, None, None)
    assert (read.n, read.axis) == (64, 1)
    assert read_samples(Recurrent(), (ids, torch.zeros(64).long()), {}, None, None) is None  # no lengths


def test_a_copy_that_follows_slowly_is_no_checkpoint_that_was_not_loaded():
    class Pairs(nn.Module):
        def __init__(self, follows: bool):
            super().__init__()
            self.online = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64))
            self.target = copy.deepcopy(self.online).requires_grad_(False)
            self.out = nn.Linear(64, 64)
            with torch.no_grad():
                for p in self.target.parameters():
                    p.add_(0.01 * torch.randn_like(p)) if follows else p.copy_(p.roll(1, -1))

        def forward(self, x: Tensor) -> Tensor:
            return (F.normalize(self.out(self.online(x)), dim=1) * F.normalize(self.target(x), dim=1)).sum(1)

    for follows in (True, False):
        found = ns.diagnose(Pairs(follows), torch.randn(64, 16), loss=lambda o, _: -o.mean(), trial=False)
        assert ("NS606" in codes(found)) != follows


@dataclass
class Window:
    past: Tensor
    future: Tensor


class Forecast(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 6))

    def forward(self, past: Tensor, future: Tensor) -> Tensor:
        return self.net(past)


def test_targets_that_travel_with_the_inputs_are_no_input_that_nobody_reads():
    past = torch.randn(64, 12)
    future = past[:, :6] + 0.1
    assert "NS122" not in codes(ns.diagnose(Forecast(), (past, future), future, "mse", trial=False))
    assert "NS122" in codes(ns.diagnose(Forecast(), (past, torch.randn(64, 6)), future, "mse", trial=False))


class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(20, 32), nn.Linear(32, 19)
        self.read = torch.tensor([[0.3], [0.3], [1.0]])  # most at the last place

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.relu((self.embedding(ids) * self.read).sum(1)))


def test_one_place_to_read_from_is_no_padding():
    ids = torch.cat([torch.randint(0, 19, (64, 2)), torch.full((64, 1), 19)], 1)
    model = Sums()
    said = codes(ns.diagnose(model, ids, ids[:, :2].sum(1) % 19, "cross_entropy", trial=False))
    assert "NS115" not in said


def test_a_flag_among_the_buffers_is_no_curve():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.register_buffer("ready", torch.tensor(False))

        def forward(self, x: Tensor) -> Tensor:
            return torch.round(x / self.scale) * self.scale

    assert curve_of(Scale()) is None


def test_a_loss_that_refuses_others_targets_leaves_the_rest_of_the_look():
    class Speech(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(8, 11)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).log_softmax(2).transpose(0, 1)

    lengths = torch.randint(2, 5, (16,))
    labels = torch.randint(1, 11, (int(lengths.sum()),))

    def loss(o: Tensor, t: tuple[Tensor, Tensor]) -> Tensor:
        return F.ctc_loss(o, t[0], torch.full((16,), 20), t[1])

    found = ns.diagnose(Speech(), torch.randn(16, 20, 8), (labels, lengths), loss, trial=False)
    assert "pull" not in found.facts["checkup"]["left_out"]


class Skips(nn.Module):
    """A part of the last block is for a next one that is not there, as in WaveNet."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"on": nn.Linear(12, 12), "out": nn.Linear(12, 8)}) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        total = 0
        for block in self.blocks:
            h = x.relu()
            total, x = total + block["out"](h), x + block["on"](h)
        return self.head(total)


def test_what_a_last_block_would_hand_on_is_a_note() -> None:
    torch.manual_seed(0)
    x = torch.randn(448, 12)
    found = ns.diagnose(Skips(), x, x[:, :3].argmax(1), trial=False)
    told = {f.code: (f.severity, f.name) for f in found.findings}
    assert told["NS604"] == ("info", "blocks.3.on")


@pytest.mark.parametrize("n", [2, 3])
def test_the_outputs_of_a_few_samples_have_no_ends(n: int) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
        assert "NS707" not in codes(ns.diagnose(model, torch.randn(n, 10), torch.randn(n, 1), trial=False))


def test_inputs_of_one_number_a_sample_are_read_as_data() -> None:
    class Ratings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = nn.Embedding(50, 8), nn.Embedding(40, 8)

        def forward(self, users: Tensor, items: Tensor) -> Tensor:
            return (self.users(users) * self.items(items)).sum(1)

    torch.manual_seed(0)
    data = [((torch.randint(50, (64,)), torch.randint(40, (64,))), torch.randn(64)) for _ in range(5)]
    found = ns.diagnose(Ratings(), *data[0], nn.MSELoss(), data=data, trial=False)
    assert not found.facts["checkup"]["left_out"]
