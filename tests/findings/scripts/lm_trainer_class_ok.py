"""Character language model with a home-made Trainer."""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

TEXT = " ".join(f"{a} plus {b} is {a + b}, and {b} minus {a} is {b - a}." for a in range(40) for b in range(40))
CHARS = sorted(set(TEXT))
STOI = {c: i for i, c in enumerate(CHARS)}


@dataclass
class Config:
    block: int = 48
    width: int = 48
    heads: int = 4
    layers: int = 2
    batch: int = 16
    steps: int = 300
    lr: float = 4e-3
    warmup: int = 30


class TinyLM(nn.Module):
    def __init__(self, cfg, vocab):
        super().__init__()
        self.tok = nn.Embedding(vocab, cfg.width)
        self.pos = nn.Embedding(cfg.block, cfg.width)
        layer = nn.TransformerEncoderLayer(cfg.width, cfg.heads, 2 * cfg.width, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, cfg.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(cfg.width)
        self.head = nn.Linear(cfg.width, vocab, bias=False)
        for emb in (self.tok, self.pos):
            nn.init.normal_(emb.weight, std=0.05)
        self.head.weight = self.tok.weight  # tied

    def forward(self, idx):
        mask = nn.Transformer.generate_square_subsequent_mask(idx.shape[1])
        x = self.tok(idx) + self.pos.weight[: idx.shape[1]]
        return self.head(self.norm(self.blocks(x, mask=mask, is_causal=True)))


class Trainer:
    def __init__(self, model, data, cfg):
        self.model, self.cfg = model, cfg
        cut = int(0.9 * len(data))
        self.splits = {"train": data[:cut], "val": data[cut:]}
        self.opt = torch.optim.AdamW(model.parameters(), lr=cfg.lr, betas=(0.9, 0.95))
        self.sched = torch.optim.lr_scheduler.LambdaLR(self.opt, self.schedule)

    def schedule(self, step):
        if step < self.cfg.warmup:
            return step / self.cfg.warmup
        done = (step - self.cfg.warmup) / (self.cfg.steps - self.cfg.warmup)
        return 0.5 * (1 + math.cos(math.pi * done))

    def loss(self, split):
        data = self.splits[split]
        start = torch.randint(len(data) - self.cfg.block - 1, (self.cfg.batch, 1))
        chunk = data[start + torch.arange(self.cfg.block + 1)]
        return F.cross_entropy(self.model(chunk[:, :-1]).flatten(0, 1), chunk[:, 1:].flatten())

    def fit(self):
        for step in range(self.cfg.steps):
            loss = self.loss("train")
            self.opt.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.opt.step()
            self.sched.step()
            if step % 50 == 49:
                with torch.no_grad():
                    print(f"step {step + 1}: train {loss.item():.3f} val {self.loss('val').item():.3f}")


if __name__ == "__main__":
    torch.manual_seed(0)
    Trainer(TinyLM(Config(), len(CHARS)), torch.tensor([STOI[c] for c in TEXT]), Config()).fit()
