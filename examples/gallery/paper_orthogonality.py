"""Daneshmand, Joudaki, Bach 2021: batch norm orthogonalizes representations.

The orthogonality gap of four nearly parallel samples over depth, linear layers with batch norm (no recentring), for
three widths: it falls, and settles at a floor that is lower for wider nets (their figure 2a).
"""

import altair as alt
import polars as pl
import torch

import normscope as ns

start = torch.full((4, 4), 0.9).fill_diagonal_(1.0)
tables = []
for width in (32, 128, 512):
    spec = ns.Spec(depth=60, width=width, norm="batch_rescale", activation="identity")
    tables.append(ns.simulate(spec, start, seeds=4, metrics="orthogonality_gap").frame())
table = pl.concat(tables).group_by("width", "layer").agg(pl.col("value").mean())

alt.Chart(table, title="Orthogonality gap of 4 samples, mean of 4 nets", width=380, height=240).mark_line().encode(
    x="layer", y=alt.Y("value", title="orthogonality gap").scale(type="log"), color="width:N"
).save("paper_orthogonality.svg")

floor = dict(table.filter(pl.col("layer") > 30).group_by("width").agg(pl.col("value").mean()).iter_rows())
assert floor[512] < 0.6 * floor[128] < 0.6 * 0.7 * floor[32]
