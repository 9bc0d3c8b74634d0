"""Batch norm keeps the rank, and gradients pay for it.

The same deep net with batch norm before each activation: the rank of the batch survives, but the gradient grows by a
constant factor a layer on its way back, so that the first layers get many times what the last ones get.
"""

import altair as alt
import polars as pl
import torch

import normscope as ns

x, y = torch.randn(96, 64, generator=torch.Generator().manual_seed(0)), torch.arange(96) % 10
nets = {norm: ns.build(ns.Spec(depth=32, width=64, norm=norm, outputs=10), 64, seed=0) for norm in ("none", "batch")}
tables = [ns.probe(net, x, y).frame().with_columns(norm=pl.lit(norm)) for norm, net in nets.items()]
table = pl.concat(tables, how="diagonal_relaxed")


def drawn(metric, title, signal):
    """One metric over the layers, a line a norm."""
    rows = table.filter(metric=metric, signal=signal).select("layer", "norm", "value")
    return (
        alt.Chart(rows, title=title, width=260, height=200)
        .mark_line()
        .encode(x="layer", y=alt.Y("value", title=None).scale(type="log"), color=alt.Color("norm", sort=None))
    )


rank = drawn("participation_rank", "Rank of the batch, directions", "activation")
(rank | drawn("gradient_norm", "Norm of the gradient", "gradient")).save("gradient_explosion.svg")

grown = table.filter(norm="batch", metric="gradient_norm", signal="gradient").sort("layer")["value"]
assert grown[1] > 10 * grown[-2]
