"""A phase diagram: where depth kills the rank, with and without batch norm.

A sweep simulates random chains, exact in law, on every cell of a grid, here depth x width x norm, and returns one
table.
"""

from concurrent.futures import ThreadPoolExecutor

import altair as alt
import polars as pl

import normscope as ns

grid = ns.Grid(
    depth=[2, 4, 8, 16, 32, 64], width=[16, 32, 64, 128], norm=["none", "layer", "batch"], n=[16], seed=[0, 1]
)
with ThreadPoolExecutor(1) as executor:  # without it: processes, one a core
    table = ns.sweep(grid, "simulate", executor=executor).filter(metric="participation_rank")
cells = table.group_by("depth", "width", "norm").agg(pl.col("value").mean().alias("rank"))

chart = alt.Chart(cells, width=180, height=130)
chart = chart.mark_rect().encode(
    x=alt.X("depth:O").axis(labelAngle=0),
    y=alt.Y("width:O", sort="descending"),
    color=alt.Color("rank", title="directions").scale(scheme="viridis", domain=[1, 16]),
)
chart = chart.facet(alt.Column("norm", sort=["none", "layer", "batch"]), title="Rank of 16 samples after a random net")
chart.save("phase_diagram.svg")

deep = dict(cells.filter(depth=64, width=64).select("norm", "rank").iter_rows())
assert deep["batch"] > 3 * deep["none"]
