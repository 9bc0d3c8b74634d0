"""Daneshmand et al. 2020: batch norm avoids rank collapse.

The soft rank of linear and ReLU nets over 64 layers, random weights, with and without batch norm: without it falls to
one, with it stays of the order of the square root of the width (their figure 1).
"""

import altair as alt
import polars as pl
import torch

import normscope as ns

x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
tables = []
for activation in ("identity", "relu"):
    for norm in ("none", "batch"):
        spec = ns.Spec(depth=64, width=64, norm=norm, activation=activation)
        found = ns.simulate(spec, inputs=x, seeds=5, metrics="participation_rank")
        tables.append(found.frame())
table = pl.concat(tables, how="diagonal_relaxed").group_by("norm", "activation", "layer").agg(pl.col("value").mean())

alt.Chart(table, title="Participation rank of 32 samples, mean of 5 nets", width=380, height=240).mark_line().encode(
    x="layer",
    y=alt.Y("value", title="directions").scale(type="log"),
    color=alt.Color("norm", sort=["none", "batch"]),
    strokeDash=alt.StrokeDash("activation"),
).save("paper_rank.svg")

last = {(r["norm"], r["activation"]): r["value"] for r in table.filter(layer=64).iter_rows(named=True)}
assert last["none", "relu"] < 1.5
assert last["batch", "relu"] > 3
assert last["batch", "identity"] > 3
