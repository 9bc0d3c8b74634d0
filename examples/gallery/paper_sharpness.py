"""Karakida, Akaho, Amari 2019: mean subtraction in the last layer removes the sharpest directions.

The largest eigenvalues of the Fisher matrix of a wide net: as many outliers as outputs, which cap the learning rate,
and which go once the outputs' mean over the batch is subtracted.
"""

import altair as alt
import polars as pl
import torch

import normscope as ns

x = torch.randn(96, 256, generator=torch.Generator().manual_seed(0))
model = ns.build(ns.Spec(depth=3, width=256, outputs=4), 256, seed=0)
cases = {"as it is": ns.fisher(model, x)}
cases["mean subtracted"] = ns.fisher(ns.cure(model, "center-outputs", x), x)
rows = [
    {"case": case, "rank": rank, "value": value}
    for case, matrix in cases.items()
    for rank, value in enumerate(ns.spectrum(matrix, 12).eigenvalues.tolist(), 1)
]
chart = alt.Chart(pl.DataFrame(rows), title="Largest eigenvalues of the Fisher matrix", width=380, height=240)
chart.mark_line(point=True).encode(
    x=alt.X("rank:O").axis(labelAngle=0), y=alt.Y("value", title="eigenvalue").scale(type="log"), color="case"
).save("paper_sharpness.svg")

largest = {r["case"]: r["value"] for r in rows if r["rank"] == 1}
assert largest["mean subtracted"] < largest["as it is"] / 3
