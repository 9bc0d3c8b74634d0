"""Short scripts in pairs, as written and with one fault planted: what ``why`` says of either."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
import torch

from normscope.findings.why import run, watch

#: Name -> (code, words of the evidence, script, what stands for FAULT in the fine one, and in the faulty one).
PAIRS: dict[str, tuple[str, str, str, str, str]] = {}
HEAD = """
import torch
from torch import nn
import torch.nn.functional as F
torch.manual_seed(0)
"""


def pair(name: str, code: str, words: str, fine: str, faulty: str, script: str) -> None:
    PAIRS[name] = code, words, HEAD + textwrap.dedent(script), fine, faulty


GAME = """
G = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
D = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
of_g, of_d = torch.optim.Adam(G.parameters(), 1e-3), torch.optim.Adam(D.parameters(), 1e-3)
loss, one, zero = nn.BCEWithLogitsLoss(), torch.ones(64, 1), torch.zeros(64, 1)
for step in range(60):
    real, fake = torch.randn(64, 2) + 2, G(torch.randn(64, 8))
    of_d.zero_grad()
    (loss(D(real), one) + loss(D(fake.detach()), zero)).backward()
    of_d.step()
    of_g.zero_grad()
    loss(D(G(torch.randn(64, 8))), LABEL).backward()
    STEPS.step()
"""
pair("a generator that helps", "NS705", "do not play against each other", "one", "zero",
     GAME.replace("LABEL", "FAULT").replace("STEPS", "of_g"))  # fmt: skip
pair("samples beyond what is made", "NS707", "lies in 0 to 1", "nn.Tanh()", "nn.Sigmoid()",
     GAME.replace("nn.Linear(32, 2))", "nn.Linear(32, 2), FAULT)", 1).replace("torch.randn(64, 2) + 2",
     "torch.randn(64, 2).sign() * torch.rand(64, 2)").replace("LABEL", "one").replace("STEPS", "of_g"))  # fmt: skip
pair("the other optimizer", "NS601", "never stepped", "of_g", "of_d",
     GAME.replace("LABEL", "one").replace("STEPS", "FAULT"))  # fmt: skip
pair("a closure that sums up", "NS611", "the closure never clears", "optimizer.zero_grad()", "pass", """
    x = torch.randn(200, 5)
    net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=10)
    def closure():
        FAULT
        loss = F.mse_loss(net(x), x.sum(1, keepdim=True).sin())
        loss.backward()
        return loss
    for step in range(12):
        optimizer.zero_grad()
        optimizer.step(closure)
""")  # fmt: skip
HELD_OUT = """
x = torch.rand(1200, 20) * 10
y = (x[:, 0] > x[:, 1]).long()
train, held, labels = (x[:900] - 5) / 3, X, Y
net = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
optimizer = torch.optim.Adam(net.parameters(), 1e-2)
def ask(x, y):
    net.eval()
    with torch.no_grad():
        right = sum((net(x[i : i + 50]).argmax(1) == y[i : i + 50]).sum().item() for i in range(0, len(x), 50))
    return right / len(x)
for epoch in range(6):
    net.train()
    for i in torch.randperm(900).split(30):
        optimizer.zero_grad()
        F.cross_entropy(net(train[i]), y[i]).backward()
        optimizer.step()
    print(ask(train, y[:900]), ask(held, labels))
"""
pair("labels of held-out data", "NS424", "does not carry over", "y[900:]", "1 - y[900:]",
     HELD_OUT.replace("X", "(x[900:] - 5) / 3").replace("Y", "FAULT"))  # fmt: skip
pair("held-out data of another scale", "NS809", "their scale is", "(x[900:] - 5) / 3", "x[900:] * 3",
     HELD_OUT.replace("X", "FAULT").replace("Y", "y[900:]"))  # fmt: skip
pair("triplets the wrong way round", "NS427", "the outputs of all samples are the same", "1 -", "", """
    middle = torch.randn(10, 24)
    net = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 8))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    apart = lambda a, b: FAULT F.cosine_similarity(a, b)
    for step in range(150):
        c = torch.randint(0, 10, (64,))
        a, p, n = (net(middle[k] + torch.randn(64, 24)) for k in (c, c, (c + 1) % 10))
        optimizer.zero_grad()
        F.relu(apart(a, p) - apart(a, n) + 0.3).mean().backward()
        optimizer.step()
""")  # fmt: skip
pair("values of chosen actions", "NS703", "smooth_l1_loss of (64,) and (64, 1)", "", "[:, None]", """
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for step in range(40):
        x, a = torch.randn(64, 6), torch.randint(0, 3, (64,))
        with torch.no_grad():
            aim = x[:, 0] + 0.9 * net(x.roll(1, 0)).amax(1)
        optimizer.zero_grad()
        F.smooth_l1_loss(net(x).gather(1, a[:, None])[:, 0], aim FAULT).backward()
        optimizer.step()
""")  # fmt: skip
pair("a divergence", "NS706", "some term of it has the wrong sign", "+", "-", """
    net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))
    back = nn.Linear(4, 16)
    both = nn.ModuleList([net, back])
    optimizer = torch.optim.Adam(both.parameters(), 1e-2)
    for step in range(400):
        x = torch.randn(64, 16)
        mean, log_variance = net(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
        optimizer.zero_grad()
        ((back(z) - x).square().sum(1).mean() FAULT kl).backward()
        optimizer.step()
""")  # fmt: skip
TOKENS = """
    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.out = nn.Embedding(20, 32), nn.Linear(64, 20)
            self.rnn = nn.GRU(32, 64, batch_first=True)
        def forward(self, ids):
            return self.out(self.rnn(self.embedding(ids))[0])
    net = Causal()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for step in range(40):
        ids = (torch.randint(0, 20, (32, 1)) + torch.randint(1, 6, (32, 1)) * torch.arange(13)) % 20
        optimizer.zero_grad()
        F.cross_entropy(net(ids[:, 1:-1]).transpose(1, 2), ids[:, FAULT]).backward()
        optimizer.step()
"""
pair("tokens before", "NS712", "input token before", "2:", ":-2", TOKENS)
pair("a class without weight", "NS711", "its weight in the loss is next to nothing", "1.0", "1e-3", """
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    weight = torch.tensor([1.0, 1.0, 1.0, FAULT])
    for step in range(40):
        x = torch.randn(64, 8)
        optimizer.zero_grad()
        F.cross_entropy(net(x), x[:, :4].argmax(1), weight=weight).backward()
        optimizer.step()
""")  # fmt: skip
SEQUENCES = """
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 16, padding_idx=INDEX)
            self.rnn, self.out = nn.GRU(16, 32, batch_first=True), nn.Linear(32, 2)
        def forward(self, ids, lengths):
            packed = pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
            states, last = self.rnn(packed)
            states, _ = pad_packed_sequence(states, batch_first=True)
            return self.out(READ)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for step in range(40):
        ids, lengths = torch.randint(1, 20, (64, 12)), torch.randint(2, 13, (64,))
        lengths[0] = 12
        ids[torch.arange(12) >= lengths[:, None]] = 0
        optimizer.zero_grad()
        F.cross_entropy(net(ids, lengths), (ids == 3).any(1).long()).backward()
        optimizer.step()
"""
pair("a token as padding", "NS115", "the padding at the ends is 0", "0", "7",
     SEQUENCES.replace("INDEX", "FAULT").replace("READ", "last[-1]"))  # fmt: skip
pair("zeros behind the end", "NS115", "come to out as zeros alone", "last[-1]", "states[:, -1]",
     SEQUENCES.replace("INDEX", "0").replace("READ", "FAULT"))  # fmt: skip
VIEWS = """
    net = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 16))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for step in range(40):
        x = 2 * torch.randn(64, 24)
        u, v = (F.normalize(net(x + 0.3 * torch.randn(64, 24)), dim=1) for _ in "uv")
        scores, labels = SIGN u @ v.T / 0.2, LABELS
        optimizer.zero_grad()
        F.cross_entropy(scores, labels).backward()
        optimizer.step()
"""
pair("views pushed apart", "NS705", "the loss wants the least alike raised", "", "-",
     VIEWS.replace("SIGN", "FAULT").replace("LABELS", "torch.arange(64)"))  # fmt: skip
pair("views of others", "NS808", "the most alike stand at i (", "torch.arange(64)", "torch.zeros(64).long()",
     VIEWS.replace("SIGN", "").replace("LABELS", "FAULT"))  # fmt: skip
pair("both views in turns", "NS808", "the most alike stand at i + 1 and i - 1 in turns", "own ^ 1",
     "(own + 32) % 64", """
    net = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 16))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    own = torch.arange(64)
    for step in range(40):
        x = 2 * torch.randn(32, 24)
        z = F.normalize(net(x.repeat_interleave(2, 0) + 0.3 * torch.randn(64, 24)), dim=1)
        optimizer.zero_grad()
        F.cross_entropy((z @ z.T / 0.2).masked_fill(torch.eye(64).bool(), -1e9), FAULT).backward()
        optimizer.step()
""")  # fmt: skip
pair("an optimizer a step", "NS615", "its state is lost", "step == 0", "True", """
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    for step in range(40):
        if FAULT:
            optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        x = torch.randn(64, 8)
        optimizer.zero_grad()
        F.cross_entropy(net(x), x[:, :3].argmax(1)).backward()
        optimizer.step()
""")  # fmt: skip
pair("a flow", "NS705", "the volume enters with the wrong sign", "+", "-", """
    class Coupling(nn.Module):
        def __init__(self, first):
            super().__init__()
            self.first, self.net = first, nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 4))
        def forward(self, x):
            a, b = x.chunk(2, 1) if self.first else reversed(x.chunk(2, 1))
            scale, shift = self.net(a).chunk(2, 1)
            b = b * scale.exp() + shift
            return torch.cat([a, b] if self.first else [b, a], 1), scale.sum(1)
    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Coupling(True), Coupling(False), Coupling(True)])
        def forward(self, x):
            total = 0.0
            for layer in self.layers:
                x, volume = layer(x)
                total = total + volume
            return x, total
    flow = Flow()
    optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
    for step in range(40):
        x = torch.randn(64, 4).cumsum(1)
        z, volume = flow(x)
        optimizer.zero_grad()
        (0.5 * z.square().sum(1) - (FAULT volume)).mean().backward()
        optimizer.step()
""")  # fmt: skip
pair("a checkpoint", "NS623", "calls 0.0.weight the checkpoint calls 0.weight", "model.load_state_dict(state)",
     "model = nn.Sequential(model, nn.Linear(3, 3)); model.load_state_dict(state, strict=False)", """
    trained = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    state = trained.state_dict()
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    FAULT
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(40):
        x = torch.randn(64, 8)
        optimizer.zero_grad()
        F.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
        optimizer.step()
""")  # fmt: skip
pair("mixed precision", "NS610", "while they are multiplied by the GradScaler's scale", "scaler.unscale_(optimizer)",
     "pass", """
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu")
    for step in range(40):
        x = torch.randn(64, 8)
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(x), x[:, :3].argmax(1))).backward()
        FAULT
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
""")  # fmt: skip
WARM = """
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1.0, (i + 1) / SLOW))
    for step in range(160):
        x = torch.randn(64, 8)
        optimizer.zero_grad()
        F.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
        optimizer.step()
        if step % EVERY == EVERY - 1:
            schedule.step()
"""
pair("a warm-up by epochs", "NS409", "once an epoch?", "1", "10", WARM.replace("SLOW", "100").replace("EVERY", "FAULT"))
pair("a warm-up without end", "NS409", "the warm-up never ends", "100", "1000",
     WARM.replace("SLOW", "FAULT").replace("EVERY", "1"))  # fmt: skip
pair("masked words", "NS712", "the labels are the masked inputs themselves", "ids.clone()", "ids", """
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.out = nn.Embedding(21, 32), nn.Linear(64, 21)
            self.rnn = nn.GRU(32, 32, batch_first=True, bidirectional=True)
        def forward(self, ids):
            return self.out(self.rnn(self.embedding(ids))[0])
    net = Both()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for step in range(40):
        ids = (torch.randint(0, 20, (64, 1)) + torch.randint(1, 6, (64, 1)) * torch.arange(12)) % 20
        labels = FAULT
        asked = torch.rand(ids.shape) < 0.2
        ids[asked] = 20
        optimizer.zero_grad()
        F.cross_entropy(net(ids).transpose(1, 2), torch.where(asked, labels, -100)).backward()
        optimizer.step()
""")  # fmt: skip
pair("gathered texts", "NS604", "a collective such as all_gather", "parts[0] = local", "pass", """
    import torch.distributed as dist
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.text = nn.Linear(24, 16), nn.Linear(12, 16)
        def forward(self, x, y):
            return F.normalize(self.image(x), dim=1), F.normalize(self.text(y), dim=1)
    def gather(local):
        parts = [torch.zeros_like(local)]
        dist.all_gather(parts, local)
        FAULT
        return torch.cat(parts)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = Two()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    try:
        for step in range(25):
            x = torch.randn(32, 24)
            u, v = model(x, x[:, :12])
            optimizer.zero_grad()
            F.cross_entropy(5 * u @ gather(v).T, torch.arange(32)).backward()
            optimizer.step()
    finally:
        dist.destroy_process_group()
""")  # fmt: skip
pair("graphs in a batch", "NS817", "no offset", "offset", "0", """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 32), nn.Linear(32, 2)
        def forward(self, x, edges, graph):
            h = torch.relu(self.one(x))
            h = h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])
            return self.two(torch.zeros(int(graph.max()) + 1, 32).index_add(0, graph, h) / 6)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for step in range(40):
        xs, edges, graph, offset = [], [], [], 0
        for i in range(16):
            n = int(torch.randint(4, 9, (1,)))
            xs.append(torch.randn(n, 6))
            edges.append(torch.randint(0, n, (2, 2 * n)) + FAULT)
            graph += n * [i]
            offset += n
        x, graph = torch.cat(xs), torch.tensor(graph)
        y = torch.zeros(16).index_add(0, graph, x[:, 0]) > 0
        optimizer.zero_grad()
        F.cross_entropy(net(x, torch.cat(edges, 1), graph), y.long()).backward()
        optimizer.step()
""")  # fmt: skip
pair("micro-batches", "NS624", "of 8 backward passes at train.py", "pass", "optimizer.zero_grad()", """
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for step in range(40):
        optimizer.zero_grad()
        for x in torch.randn(64, 8).chunk(8):
            FAULT
            (F.cross_entropy(net(x), x[:, :3].argmax(1)) / 8).backward()
        optimizer.step()
""")  # fmt: skip
pair("a list of edges", "NS818", "was reshaped, not transposed", "edges.T", "edges.view(2, -1)", """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 32), nn.Linear(32, 2)
        def forward(self, x, edges):
            h = torch.relu(self.one(x))
            return self.two(h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]) / 4)
    one = torch.randint(0, 100, (200, 2))
    edges = torch.stack([one, one.flip(1)], 1).flatten(0, 1)
    x = torch.randn(100, 6)
    y = (x[:, 0] + torch.zeros(100).index_add(0, edges[:, 1], x[edges[:, 0], 0]) > 0).long()
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(40):
        optimizer.zero_grad()
        F.cross_entropy(net(x, FAULT), y).backward()
        optimizer.step()
""")  # fmt: skip
pair("fields of one table", "NS819", "ids up to 9, in 4 columns that have 40 values", "10", "0", """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.EmbeddingBag(40, 16, mode="sum"), nn.Linear(16, 2)
        def forward(self, ids):
            return self.out(self.table(ids + FAULT * torch.arange(4)))
    net, worth = Net(), torch.randn(4, 10)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(40):
        ids = torch.randint(0, 10, (128, 4))
        optimizer.zero_grad()
        F.cross_entropy(net(ids), (worth.gather(1, ids.T).sum(0) > 0).long()).backward()
        optimizer.step()
""")  # fmt: skip
pair("an answer that is fed", "NS712", "not shifted by one", "F.pad(words[:, :-1], (1, 0))", "words", """
    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(12, 32), nn.Linear(32, 12)
            self.read, self.write = (nn.GRU(32, 32, batch_first=True) for _ in range(2))
        def forward(self, source, before):
            return self.out(self.write(self.table(before), self.read(self.table(source))[1])[0])
    net = Translator()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(40):
        source = torch.randint(1, 12, (64, 6))
        words = source.flip(1)
        optimizer.zero_grad()
        F.cross_entropy(net(source, FAULT).flatten(0, 1), words.flatten()).backward()
        optimizer.step()
""")  # fmt: skip
pair("labels that are shifted twice", "NS712", "next token but one", "ids[:, :-1]", "ids[:, 1:]", """
    class Speaker(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(30, 32), nn.Linear(32, 30)
            self.rnn = nn.GRU(32, 32, batch_first=True)
        def forward(self, input_ids, labels):
            logits = self.out(self.rnn(self.table(input_ids))[0])
            return {"loss": F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:]), "logits": logits}
    net = Speaker()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(40):
        ids = (torch.randint(0, 30, (64, 1)) + torch.randint(1, 6, (64, 1)) * torch.arange(12)) % 30
        optimizer.zero_grad()
        net(input_ids=ids[:, :-1], labels=FAULT)["loss"].backward()
        optimizer.step()
""")  # fmt: skip

#: Those that are told by the losses of the loop, or by many of its steps.
LONG = {
    "a divergence", "a warm-up by epochs", "a warm-up without end", "gathered texts", "labels of held-out data",
    "triplets the wrong way round",
}  # fmt: skip


def said(name: str, place: int, folder: Any, monkeypatch: Any) -> dict[str, str]:
    monkeypatch.setattr(watch, "LINGER", 2000 if name in LONG else 30)
    monkeypatch.chdir(folder)
    script = folder / "train.py"
    script.write_text(PAIRS[name][2].replace("FAULT", PAIRS[name][place]), encoding="utf-8")
    found = run(script, trial=10 if name in LONG else False)
    assert not found.crash
    assert not found.missing
    assert not [d.facts["checkup"]["left_out"] for d in found.diagnoses if d.facts["checkup"]["left_out"]]
    return {f.code: f.evidence for d in found.diagnoses for f in d.findings if f.severity != "info"}


@pytest.mark.parametrize("name", PAIRS)
def test_a_planted_fault_is_named(name, tmp_path, monkeypatch):
    code, words, *_ = PAIRS[name]
    told = said(name, 4, tmp_path, monkeypatch)
    assert words in told.get(code, ""), told


@pytest.mark.parametrize("name", PAIRS)
def test_nothing_is_said_without_it(name, tmp_path, monkeypatch):
    assert said(name, 3, tmp_path, monkeypatch) == {}


#: Scripts that must be read: what is asked of the only diagnosis.
READ = {
    "a function of their own": """
        class Square(torch.autograd.Function):
            @staticmethod
            def forward(ctx, net, x, *weights):
                with torch.enable_grad():
                    y = net(x)
                ctx.save_for_backward(x, *weights)
                ctx.net = net
                return y.detach()
            @staticmethod
            def backward(ctx, slope):
                x, *weights = ctx.saved_tensors
                with torch.enable_grad():
                    y = ctx.net(x)
                return None, None, *torch.autograd.grad(y, weights, slope)
        net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        for step in range(30):
            x = torch.randn(64, 8)
            optimizer.zero_grad()
            (Square.apply(net, x, *net.parameters()) - x[:, :1]).square().mean().backward()
            optimizer.step()
    """,
    "leaves put side by side": """
        net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        x, t = torch.rand(64, 1, requires_grad=True), torch.rand(64, 1, requires_grad=True)
        for step in range(60):
            u = net(torch.cat([x, t], 1))
            by_t, = torch.autograd.grad(u.sum(), t, create_graph=True)
            by_x, = torch.autograd.grad(u.sum(), x, create_graph=True)
            optimizer.zero_grad()
            ((by_t + by_x).square().mean() + (u - torch.sin(x - t)).square().mean()).backward()
            optimizer.step()
    """,
    "a loss beside the outputs": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.out = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
            def forward(self, x, y):
                return self.out(x), F.cross_entropy(self.out(x), y)
        net = Net()
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        for step in range(30):
            for part in range(2):
                x = torch.randn(64, 8)
                (net(x, x[:, :3].argmax(1))[1] / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
    """,
    "two optimizers of one loss": """
        net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
        first, second = torch.optim.SGD(net[0].parameters(), 0.1), torch.optim.Adam(net[2].parameters(), 1e-3)
        for step in range(30):
            x = torch.randn(64, 8)
            first.zero_grad()
            second.zero_grad()
            F.cross_entropy(net(x), x[:, :3].argmax(1)).backward()
            first.step()
            second.step()
    """,
    "an optimizer for each epoch": """
        net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
        for epoch in range(4):
            optimizer = torch.optim.Adam(net.parameters(), 1e-3 / (epoch + 1))
            for step in range(8):
                x = torch.randn(64, 8)
                optimizer.zero_grad()
                F.cross_entropy(net(x), x[:, :3].argmax(1)).backward()
                optimizer.step()
    """,
    "arrays of numpy": """
        import numpy as np
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding, self.out = nn.Embedding(20, 16, padding_idx=0), nn.Linear(16, 8)
            def forward(self, rows):
                assert isinstance(rows, np.ndarray)
                return self.out(self.embedding(torch.as_tensor(rows)).sum(1))
        net = Net()
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for step in range(60):
            rows = np.random.default_rng(step).integers(1, 20, (32, 6))
            sums = torch.as_tensor(rows).float().mean(1)
            optimizer.zero_grad()
            F.cross_entropy(net(rows), (sums / 2.5).long()).backward()
            optimizer.step()
    """,
    "a queue of others": """
        class Queued(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 16))
                self.register_buffer("queue", F.normalize(torch.randn(16, 128), dim=0))
            def forward(self, x, y):
                u = F.normalize(self.net(x), dim=1)
                with torch.no_grad():
                    v = F.normalize(self.net(y), dim=1)
                scores = torch.cat([(u * v).sum(1, keepdim=True), u @ self.queue.clone()], 1) / 0.2
                self.queue.copy_(torch.cat([self.queue[:, 32:], v.T], 1))
                return scores, torch.zeros(len(x)).long()
        net = Queued()
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        for step in range(80):
            x = 2 * torch.randn(32, 24)
            scores, labels = net(x + 0.3 * torch.randn(32, 24), x + 0.3 * torch.randn(32, 24))
            optimizer.zero_grad()
            F.cross_entropy(scores, labels).backward()
            optimizer.step()
    """,
    "a rate that the loop sets": """
        net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        for step in range(80):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * min(1.0, step / 20)
            x = torch.randn(64, 8)
            optimizer.zero_grad()
            F.cross_entropy(net(x), x[:, :3].argmax(1)).backward()
            optimizer.step()
    """,
    "gradients of a few rows": """
        net = nn.Sequential(nn.Embedding(50, 16, sparse=True), nn.Flatten())
        aim = torch.randn(50, 16)
        optimizer = torch.optim.SparseAdam(list(net.parameters()), 1e-1)
        for step in range(60):
            optimizer.zero_grad()
            i = torch.randint(0, 50, (32,))
            (net(i) - aim[i]).square().mean().backward()
            optimizer.step()
    """,
    "an attack by backward": """
        net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for step in range(40):
            x = torch.randn(64, 8)
            y = x[:, :3].argmax(1)
            shift = torch.zeros_like(x, requires_grad=True)
            for _ in range(3):
                F.cross_entropy(net(x + shift), y).backward()
                shift.data += 0.02 * shift.grad.sign()
                shift.grad.zero_()
            optimizer.zero_grad()
            F.cross_entropy(net(x + shift.detach()), y).backward()
            optimizer.step()
    """,
    "gradients of several losses, one by one": """
        net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 6))
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for step in range(40):
            x = torch.randn(64, 8)
            made = []
            for k in range(2):
                optimizer.zero_grad()
                F.cross_entropy(net(x)[:, 3 * k : 3 * k + 3], x[:, k : k + 3].argmax(1)).backward()
                made.append([p.grad.clone() for p in net.parameters()])
            for p, *grads in zip(net.parameters(), *made):
                p.grad = sum(grads)
            optimizer.step()
    """,
    "as many steps in time as samples": """
        class Speaker(nn.Module):
            def __init__(self):
                super().__init__()
                self.table, self.rnn, self.out = nn.Embedding(20, 32), nn.GRU(32, 32), nn.Linear(32, 20)
            def forward(self, ids):
                return self.out(self.rnn(self.table(ids))[0])
        net = Speaker()
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for step in range(40):
            ids = (torch.randint(0, 20, (24,)) + torch.randint(1, 6, (24,)) * torch.arange(25)[:, None]) % 20
            optimizer.zero_grad()
            F.cross_entropy(net(ids[:-1]).flatten(0, 1), ids[1:].flatten()).backward()
            optimizer.step()
    """,
    "states, then what was done": """
        class Planner(nn.Module):
            def __init__(self):
                super().__init__()
                self.state, self.action, self.out = nn.Linear(4, 32), nn.Embedding(3, 32), nn.Linear(32, 3)
                self.rnn = nn.GRU(32, 32, batch_first=True)
            def forward(self, s, a):
                both = torch.stack([self.state(s), self.action(a)], 2).flatten(1, 2)
                return self.out(self.rnn(both)[0][:, ::2])
        net = Planner()
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for step in range(40):
            s = torch.randn(64, 6, 4)
            a = s[..., :3].argmax(-1)
            optimizer.zero_grad()
            F.cross_entropy(net(s, a).flatten(0, 1), a.flatten()).backward()
            optimizer.step()
    """,
    "a score that comes first": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.into, self.back = nn.Linear(16, 4), nn.Linear(4, 16)
            def forward(self, x):
                z = self.into(x)
                return z.square().mean(), self.back(z)
        net = Net()
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        for step in range(30):
            x = torch.randn(64, 16)
            score, again = net(x)
            optimizer.zero_grad()
            (F.mse_loss(again, x) + 0.01 * score).backward()
            optimizer.step()
    """,
}


@pytest.mark.parametrize("name", READ)
def test_a_sound_script_is_read_whole(name, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LINGER", 30)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(HEAD + textwrap.dedent(READ[name]), encoding="utf-8")
    found = run("train.py", trial=10)
    assert (found.crash, found.missing) == ("", [])
    (only,) = found.diagnoses
    assert only.facts["checkup"]["left_out"] == {}
    assert "game" not in " ".join(only.facts["notes"])
    assert only.facts["loss"] != "random cotangent"
    assert {"own", "adam"} <= set(only.facts["checkup"]["trial"])
    assert [f for f in only.findings if f.severity != "info"] == []


def test_a_loss_that_is_halved_is_told_as_the_script_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LINGER", 30)
    monkeypatch.chdir(tmp_path)
    script = HEAD + "net = nn.Linear(4, 4)\noptimizer = torch.optim.SGD(net.parameters(), 0.0)\n"
    script += "x = torch.randn(32, 4)\nfor step in range(25):\n    optimizer.zero_grad()\n"
    script += "    loss = 0.5 * F.mse_loss(net(x), x)\n    loss.backward()\n    optimizer.step()\n"
    script += "open('loss', 'w').write(str(loss.item()))\n"
    (tmp_path / "train.py").write_text(script, encoding="utf-8")
    own = run("train.py", trial=5).diagnoses[0].facts["checkup"]["trial"]["own"]
    assert own["start"] == pytest.approx(float((tmp_path / "loss").read_text()), rel=1e-5)


def test_under_a_transform_a_script_runs_as_alone_and_the_reason_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LINGER", 30)
    monkeypatch.chdir(tmp_path)
    script = """
        from torch.func import functional_call, grad, vmap
        net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        def task(weights, x, y):
            inner = lambda w: (functional_call(net, w, (x,)) - y).square().mean()
            slopes = grad(inner)(weights)
            return inner({k: w - 0.1 * slopes[k] for k, w in weights.items()})
        for step in range(30):
            x = torch.randn(8, 10, 1)
            optimizer.zero_grad()
            vmap(task, (None, 0, 0))(dict(net.named_parameters()), x, x.sin()).mean().backward()
            optimizer.step()
        open('done', 'w').write('')
    """
    (tmp_path / "train.py").write_text(HEAD + textwrap.dedent(script), encoding="utf-8")
    found = run("train.py", trial=False)
    assert not found.crash
    assert (tmp_path / "done").exists()
    assert "torch.func's transforms" in found.missing[0]
    assert torch.autograd.Function.apply.__func__.__qualname__ == "Function.apply"


def test_a_parameter_that_only_the_loss_reads_has_its_gradient(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LINGER", 30)
    monkeypatch.chdir(tmp_path)
    script = """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.net, self.spread = nn.Linear(8, 8), nn.Parameter(torch.zeros(1))
            def forward(self, x):
                return self.net(x)
        net = Net()
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for step in range(30):
            x = torch.randn(64, 8)
            optimizer.zero_grad()
            ((net(x) - x).square().mean() / (2 * net.spread.exp()) + net.spread / 2).sum().backward()
            optimizer.step()
    """
    (tmp_path / "train.py").write_text(HEAD + textwrap.dedent(script), encoding="utf-8")
    found = run("train.py", trial=False).diagnoses[0]
    assert found.facts["checkup"]["wiring"]["idle"]["modules"] == []
    assert not {"NS601", "NS604"} & {f.code for f in found.findings}


def test_the_loss_of_a_policy_is_no_measure(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LINGER", 30)
    monkeypatch.chdir(tmp_path)
    script = """
        from torch.distributions import Categorical
        net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        for step in range(60):
            x = torch.randn(64, 4)
            with torch.no_grad():
                acts = Categorical(logits=net(x)).sample()
            earned = (acts == (x[:, 0] > 0)).float() - 0.5
            optimizer.zero_grad()
            (-Categorical(logits=net(x)).log_prob(acts) * earned).mean().backward()
            optimizer.step()
    """
    (tmp_path / "train.py").write_text(HEAD + textwrap.dedent(script), encoding="utf-8")
    found = run("train.py", trial=10).diagnoses[0]
    assert "its fall is no measure" in found.facts["notes"][-1]
    assert not {"NS421", "NS423"} & {f.code for f in found.findings}
    assert torch.distributions.Categorical.sample.__qualname__ == "Categorical.sample"


def test_batches_of_one_sample_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LINGER", 30)
    monkeypatch.chdir(tmp_path)
    script = """
        class Signs(torch.optim.Optimizer):
            def __init__(self, params):
                super().__init__(params, {"lr": 1e-3})
            def step(self):
                for p in self.param_groups[0]["params"]:
                    p.data -= 1e-3 * p.grad.sign()
        net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = Signs(net.parameters())
        for step in range(60):
            x = torch.randn(1, 4)
            optimizer.zero_grad()
            F.mse_loss(net(x), x[:, :1]).backward()
            optimizer.step()
    """
    (tmp_path / "train.py").write_text(HEAD + textwrap.dedent(script), encoding="utf-8")
    found = run("train.py", trial=False).diagnoses[0]
    assert found.facts["batch_size"] == 20
    assert "20 of them were put together" in found.facts["notes"][-1]
    assert found.facts["places"]["the optimizer"] == "train.py:14"
    assert found.facts["parameters"] == 97
