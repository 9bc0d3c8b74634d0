"""Attention alone merges the tokens of a sequence.

A transformer without skip connections averages: layer by layer the tokens of a sequence become one vector, and what
tells them apart is gone (NS106). With skips the same layers keep them apart.
"""

import altair as alt
import polars as pl
import torch
from torch import nn

import normscope as ns


class Attention(nn.Module):
    """Self-attention, with or without a skip connection."""

    def __init__(self, skip, width=32):
        super().__init__()
        self.mix, self.skip = nn.MultiheadAttention(width, 4, batch_first=True), skip

    def forward(self, x):
        return self.skip * x + self.mix(x, x, x, need_weights=False)[0]


torch.manual_seed(0)
nets = {name: nn.Sequential(*[Attention(skip) for _ in range(8)]) for name, skip in (("without skips", 0), ("with", 1))}
found = {
    name: ns.diagnose(net, torch.randn(16, 12, 32), trial=False, tokens=True, label=name) for name, net in nets.items()
}

table = pl.concat(d.layers.with_columns(net=pl.lit(name)) for name, d in found.items())
table = table.filter(pl.col("kind") != "MultiheadAttention")
alt.Chart(table, title="Rank of the tokens of 16 sequences", width=380, height=240).mark_line(point=True).encode(
    x="layer", y=alt.Y("participation_rank", title="directions").scale(type="log"), color=alt.Color("net", sort=None)
).save("token_collapse.svg")

codes = {name: {finding.code for finding in d.findings} for name, d in found.items()}
assert "NS106" in codes["without skips"] - codes["with"]
